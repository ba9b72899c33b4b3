"""``python -m eval.sweep``: several models, forms, backends and precisions in one table.

Each row is one evaluation, with its whole report in a folder of its own. All of them share one
cache of crops, which is filled first, so that each image is decoded once for each preprocessing and
the speeds are those of the models. A combination that a runtime does not offer is named and left
out; one that fails is named, and the others go on.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.backends import BACKENDS
from eval.cli import program, run_command
from eval.config import load_variant
from eval.errors import UsageError
from eval.options import positive
from eval.recipe import OWN, Recipe, split_list
from eval.recipe_files import recipe_of
from eval.request import FORMS, ON_BAD_IMAGE, PRECISIONS


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; its exit code is the largest of the evaluations'."""
    return run_command(_main, argv, interrupted=lambda: "interrupted: the same command continues")


def _main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    import pandas as pd

    from eval.jobs import sweep
    from eval.measure.settings import keep_freed_memory
    from eval.results.folder import OutputFolder, csv_text, put_away
    from eval.results.schema import SWEEP_FILE

    planned = list(sweep.combinations(args))
    if not planned:
        raise UsageError("Nothing is left to run: see what was left out above.")
    names = [combination.name for combination in planned]
    if len(set(names)) < len(names):
        raise UsageError("--weights: two files have the same name. Rename one of them.")
    keep_freed_memory()
    requests = [row.request(args, args.output / row.name) for row in planned]
    with OutputFolder(args.output, (SWEEP_FILE,)) as folder:
        for name in names:
            put_away(args.output / name)
        image_set = sweep.fill_cache(requests, args.quiet)
        rows = list(sweep.run_rows(planned, requests, args.quiet))
        folder.write(SWEEP_FILE, csv_text(pd.DataFrame(rows, columns=list(sweep.COLUMNS))))
    print(sweep.table(rows, sweep.short_names(planned)))
    print("Flips: images whose best class is not that of the first row of the same pixels.")
    for variant in args.variant:
        if ":" not in variant:
            for line in sweep.reported(load_variant(variant), image_set):
                print(line)
    if args.plot:
        sweep.plot(rows, sweep.short_names(planned), args.plot)
    print(f"Reports: {args.output}")
    return max(int(row["exit_code"]) for row in rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("sweep"),
        description="Several models, forms, backends, precisions and preprocessings over one "
        "validation set, decoded once, in one table.",
        epilog="Lists are separated by commas. The exit code is the largest of the rows'.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="PATH", help="the validation set")
    add(
        "--variant",
        default="base_ssld",
        metavar="LIST",
        help="variants, timm:NAME or torchvision:NAME; default %(default)s",
    )
    add(
        "--weights",
        nargs="+",
        default=["auto"],
        metavar="FILE",
        help="checkpoints and exported files; VARIANT=FILE for those of one variant; default auto",
    )
    add("--forms", default="reparameterized", metavar="LIST", help="default %(default)s")
    add("--backend", default="torch", metavar="LIST", help="default %(default)s")
    add("--precision", default="fp32", metavar="LIST", help="default %(default)s")
    add(
        "--preprocess",
        default=OWN,
        metavar="LIST",
        help="recipes, as of eval.imagenet: own, torchvision, paddle, squash, paddle,crop=288 "
        "...; default %(default)s",
    )
    add(
        "--limit",
        type=positive,
        metavar="N",
        help="only the first N images of a fixed shuffled order",
    )
    add("--labels", type=Path, metavar="FILE", help="labels of flat files")
    add("--on-bad-image", choices=ON_BAD_IMAGE, default=ON_BAD_IMAGE[0])
    add("--cache", type=Path, metavar="DIR", help="default: in --output")
    add("--latency", action="store_true", help="also measure the time per image")
    add("--plot", type=Path, metavar="IMAGE", help="draw accuracy against latency: .png or .svg")
    add(
        "--output",
        type=Path,
        default=Path("results/sweep"),
        metavar="DIR",
        help="folder for the reports (default %(default)s)",
    )
    add("--quiet", action="store_true", help="print only errors on stderr")
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; what is wrong with it is said before hours of work.

    Raises:
        UsageError: a name in a list is not known, or --plot cannot be drawn.
    """
    args = _parser().parse_args(arguments)
    if args.plot and args.plot.suffix not in (".png", ".svg"):
        raise UsageError(f"--plot {args.plot}: name a .png or .svg file.")
    if args.plot and not args.latency:
        raise UsageError("--plot draws accuracy against latency: add --latency.")
    known = {
        "forms": FORMS,
        "backend": BACKENDS,
        "precision": PRECISIONS,
    }
    for option, names in known.items():
        chosen = getattr(args, option).split(",")
        unknown = [name for name in chosen if name not in names]
        if unknown:
            raise UsageError(f"--{option} {','.join(unknown)}: use {', '.join(names)}.")
        setattr(args, option, chosen)
    args.preprocess = split_list(args.preprocess)
    for recipe in args.preprocess:
        recipe_of(recipe, own=Recipe())
    if args.plot and not args.latency:
        raise UsageError("--plot draws the latency: add --latency.")
    args.variant = args.variant.split(",")
    for variant in args.variant:
        if ":" not in variant:
            load_variant(variant)
    args.weights = [_owned(word, args.variant) for word in args.weights]
    args.cache = args.cache or args.output / "cache"
    args.command = f"{program('sweep')} {shlex.join(arguments)}"
    return args


def _owned(word: str, variants: Sequence[str]) -> tuple[str | None, str]:
    """The variant that a weights file is of, if it is said, and the file."""
    owner, equals, file = word.partition("=")
    return (owner, file) if equals and owner in variants else (None, word)


if __name__ == "__main__":
    sys.exit(main())
