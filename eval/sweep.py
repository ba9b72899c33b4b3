"""``python -m eval.sweep``: several models, forms, backends and precisions in one table.

Each row is one evaluation, with its report in a folder of its own. All share one cache of crops,
filled first, so that the speeds are those of the models. A combination that a runtime does not
offer is named and left out; one that fails is named, and the others go on.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from eval.backends import backend_name
from eval.cli import leave, program, run_command
from eval.config import load_variant
from eval.errors import UsageError
from eval.options import add_option
from eval.parser import Parser
from eval.progress import ProgressBar
from eval.recipe import OWN, split_list
from eval.request import DEFAULT_VARIANT, PRECISION, read_forms, read_preprocess
from eval.values import ListOf, drawing, file_or_word, path, text

_AS_THEY_ARE = ("limit", "labels", "image_set", "folders", "on_bad_image", "latency",
                "weights_entry", "output_name", "background_first")  # fmt: skip

if TYPE_CHECKING:  # torch takes seconds to import, and wrong options are refused without it
    from eval.jobs.sweep import Sweep


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

    asked = to_sweep(args)
    planned, left_out = sweep.combinations(asked)
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    keep_freed_memory()
    with OutputFolder(asked.output, (SWEEP_FILE,)) as folder, ProgressBar(args.quiet) as progress:
        for combination in planned:
            put_away(asked.output / combination.name)
        image_set, results = sweep.start(asked, planned, progress)
        rows = []
        for row, error in results:
            rows.append(row)
            if error:
                print(f"{row['name']}: {error}", file=sys.stderr)
        folder.write(SWEEP_FILE, csv_text(pd.DataFrame(rows, columns=list(sweep.COLUMNS))))
    names = sweep.short_names(planned)
    print(sweep.table(rows, names))
    print("Flips: top-1 predictions that differ from the first row with the same preprocessing.")
    sys.stdout.writelines(f"{line}\n" for line in sweep.reported(asked.variants, image_set))
    if args.plot:
        sweep.plot(rows, names, args.plot)
    print(f"Reports: {asked.output}")
    return max(int(row["exit_code"]) for row in rows)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; what is wrong with it is said before hours of work."""
    args = _parser().read(arguments)
    if args.plot and not args.latency:
        raise UsageError("--plot draws accuracy against latency: add --latency.")
    for variant in args.variants:
        if ":" not in variant:
            load_variant(variant)
    args.weights = tuple(_owned(str(word), args.variants) for word in args.weights)
    args.cache = args.cache or args.output / "cache"
    args.command = f"{program('sweep')} {shlex.join(arguments)}"
    return args


def to_sweep(values: argparse.Namespace) -> Sweep:
    """What a command line compares."""
    from eval.jobs.sweep import Sweep

    return Sweep(**{field.name: getattr(values, field.name) for field in fields(Sweep)})


def _owned(word: str, variants: Sequence[str]) -> tuple[str | None, str]:
    """The variant that a weights file is of, if it is said, and the file."""
    owner, equals, file = word.partition("=")
    if equals and owner in variants:
        return owner, str(file_or_word("--weights", file))
    return None, word


def _recipes(option: str, value: str) -> tuple[str, ...]:
    """Texts of recipes, which may have commas of their own."""
    return tuple(str(read_preprocess(option, each)) for each in split_list(text(option, value)))


def _parser() -> Parser:
    parser = Parser(
        "sweep",
        "Several models, forms, backends, precisions and preprocessings over one validation set, "
        "decoded once, in one table.",
        "Lists are separated by commas. The exit code is the largest of the rows'.",
    )
    add = parser.add
    add_option(parser, "data", required=True)
    add("--variant", ListOf(), dest="variants", default=(DEFAULT_VARIANT,), metavar="LIST",
        help=f"variants, timm:NAME or torchvision:NAME; default {DEFAULT_VARIANT}")  # fmt: skip
    add("--weights", file_or_word, nargs="+", default=["auto"], metavar="FILE",
        help="checkpoints and exported files; VARIANT=FILE for those of one variant; default "
        "auto")  # fmt: skip
    for name, dest, kind, default in (
        ("--forms", "forms", read_forms, "reparameterized"),
        ("--backend", "backends", ListOf(backend_name), "torch"),
        ("--precision", "precisions", ListOf(PRECISION), "fp32"),
    ):
        add(name, kind, dest=dest, default=(default,), metavar="LIST", help=f"default {default}")
    add("--preprocess", _recipes, dest="preprocesses", default=(OWN,), metavar="LIST",
        help="recipes, as of eval.imagenet: own, torchvision, paddle, squash, paddle,crop=288 "
        f"...; default {OWN}")  # fmt: skip
    for name in _AS_THEY_ARE:
        add_option(parser, name)
    add_option(parser, "cache", help="default: in --output")
    add("--plot", drawing, metavar="IMAGE", help="draw accuracy against latency: .png or .svg")
    add("--output", path, default=Path("results/sweep"), metavar="DIR",
        help="folder for the reports (default %(default)s)")  # fmt: skip
    parser.add_flag("--quiet", "print only errors on stderr")
    return parser


if __name__ == "__main__":
    leave(main())
