"""``python -m eval.sweep``: several forms, backends, precisions and preprocessings, one table.

Each combination is a run of ``python -m eval.imagenet`` in a process of its own, with its whole
report in a folder of its own. All of them share one cache of crops, which is filled first, so that
each image is decoded once for each preprocessing and the speeds are those of the models. A
combination that a runtime does not offer is named and left out; one that fails is named, and the
others go on.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.backends import BACKENDS
from eval.backends.exported import RUNTIMES, is_exported, precision_of, size_of
from eval.config import VariantConfig, load_variant
from eval.errors import EvalError, UsageError
from eval.imagenet import CRASHED, FORMS, INTERRUPTED, PRECISIONS, PREPROCESSES
from eval.images.sets import VAL, ImageSet
from eval.results.files import write_atomically

COLUMNS = (
    *("name", "variant", "weights", "form", "backend", "precision", "preprocess", "images"),
    *("top1_correct", "top5_correct", "top1", "top5", "flips", "images_per_second", "megabytes"),
    *("verdict", "exit_code", "output"),
)


@dataclass(frozen=True)
class Combination:
    """One run: a model, its form, and how it is computed."""

    model: str  # what to call the weights among those of the sweep
    variant: str
    weights: str
    form: str  # "" for an exported file
    backend: str
    precision: str
    preprocess: str

    @property
    def name(self) -> str:
        """Of its folder."""
        words = (self.model, self.form, self.backend, self.precision, self.preprocess)
        return "-".join(word for word in words if word)

    @property
    def words(self) -> list[str]:
        """For the command line of ``eval.imagenet``."""
        form = ["--forms", self.form] if self.form else []
        precision = [] if is_exported(self.weights) else ["--precision", self.precision]
        return [
            *("--variant", self.variant, "--weights", self.weights, *form, *precision),
            *("--backend", self.backend, "--preprocess", self.preprocess),
        ]


def combinations(args: argparse.Namespace) -> Iterator[Combination]:
    """All that were asked for and exist, in the order of the options."""
    for preprocess, (owner, weights) in itertools.product(args.preprocess, args.weights):
        for variant in [owner] if owner else args.variant:
            model = _model_name(args, variant, weights)
            if is_exported(weights):
                for backend in RUNTIMES[Path(weights).suffix.lower()]:
                    if backend in args.backend:
                        precision = precision_of(Path(weights))
                        yield Combination(
                            model, variant, weights, "", backend, precision, preprocess
                        )
                continue
            for form, backend, precision in itertools.product(
                args.forms, args.backend, args.precision
            ):
                if backend == "onnxruntime" and precision != "fp32":
                    print(f"left out: onnxruntime has no {precision} on a CPU", file=sys.stderr)
                    continue
                yield Combination(model, variant, weights, form, backend, precision, preprocess)


def _model_name(args: argparse.Namespace, variant: str, weights: str) -> str:
    """As short as it can be without being another's: the variant, the file, or both."""
    alike = [
        file
        for owner, file in args.weights
        if is_exported(file) == is_exported(weights) and owner in (None, variant)
    ]
    if is_exported(weights):
        names = [variant, Path(weights).name] if len(args.variant) > 1 else [Path(weights).name]
    else:
        names = [variant, Path(weights).name] if len(alike) > 1 else [variant]
    return "-".join(names)


def fill_cache(args: argparse.Namespace) -> ImageSet:
    """Decode each image once for each preprocessing; what is bad is left to the runs.

    Returns:
        Which set the images are of.
    """
    from eval.images.cache import CropCache
    from eval.images.preprocess import PREPROCESS
    from eval.images.valset import open_valset
    from eval.measure.engine import choose_workers
    from eval.measure.progress import Progress

    valset = open_valset(args.data, args.labels)
    if args.limit is not None:
        valset = valset.limited(args.limit)
    for name in args.preprocess:
        with (
            CropCache(args.cache, valset, PREPROCESS[name]) as cache,
            Progress(len(valset.samples), args.quiet) as progress,
        ):
            progress.describe(f"decoding, {name}")
            cache.fill(choose_workers(), lambda: progress.add(1))
    return valset.image_set


def run_one(combination: Combination, args: argparse.Namespace) -> tuple[int, Path]:
    """Run a combination; its exit code and folder."""
    output = args.output / combination.name
    words = [*combination.words, "--data", str(args.data), "--cache", str(args.cache)]
    words += ["--output", str(output), "--on-bad-image", args.on_bad_image]
    if args.limit is not None:
        words += ["--limit", str(args.limit)]
    if args.labels:
        words += ["--labels", str(args.labels)]
    done = subprocess.run(
        [sys.executable, "-m", "eval.imagenet", *words, "--quiet"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    write_atomically(output / "console.txt", done.stdout + done.stderr)
    if done.returncode not in (0, 1):
        print(f"{combination.name}: {done.stderr.strip()}", file=sys.stderr)
    return done.returncode, output


def row_of(
    combination: Combination, code: int, output: Path, first: list[str] | None
) -> tuple[dict[str, object], list[str]]:
    """A row of the table, and the best class of each image."""
    row: dict[str, object] = {
        "name": combination.name,
        "variant": combination.variant,
        "weights": combination.weights,
        "form": combination.form or "exported",
        "backend": combination.backend,
        "precision": combination.precision,
        "preprocess": combination.preprocess,
        "exit_code": code,
        "output": str(output),
    }
    if not (output / "summary.csv").is_file():
        return row, []
    with (output / "summary.csv").open(encoding="utf-8") as file:
        summary = next(csv.DictReader(file))
    with (output / "predictions.csv").open(encoding="utf-8") as file:
        classes = [line[f"{row['form']}_top1"] for line in csv.DictReader(file)]
    row |= {key: summary[key] for key in ("images", "top1_correct", "top5_correct", "top1", "top5")}
    row |= {key: summary[key] for key in ("images_per_second", "verdict")}
    row["flips"] = sum(a != b for a, b in zip(classes, first or classes, strict=True))
    path = Path(summary["weights"])
    row["megabytes"] = size_of(path) / 1e6 if path.is_file() else ""
    return row, classes


def table(rows: Sequence[dict[str, object]]) -> str:
    """What a person reads."""
    width = max(len(str(row["name"])) for row in rows)
    heading = f"{'':{width}}  {'top-1':>7}  {'correct':>8}  {'top-5':>7}  {'correct':>8}"
    lines = [f"{heading}  {'flips':>6}  {'images/s':>8}  {'MB':>6}  verdict"]
    for row in rows:
        if "top1" not in row:
            lines.append(f"{row['name']:{width}}  failed with exit code {row['exit_code']}")
            continue
        lines.append(
            f"{row['name']:{width}}  {float(str(row['top1'])):7.3f}  {row['top1_correct']:>8}"
            f"  {float(str(row['top5'])):7.3f}  {row['top5_correct']:>8}  {row['flips']:>6}"
            f"  {float(str(row['images_per_second'] or 'nan')):8.1f}"
            f"  {float(str(row['megabytes'] or 'nan')):6.1f}  {row['verdict']}"
        )
    return "\n".join(lines)


def reported(variant: VariantConfig, image_set: ImageSet) -> Iterator[str]:
    """What was reported of a variant on a set, and what others got, on whatever device."""
    reference = variant.reference_for("") if image_set is VAL else None
    rows = [(row.name, row.top1, row.top5, row.source) for row in variant.others_on(image_set)]
    if reference and reference.top1 is not None:
        rows.insert(0, ("reported", reference.top1, reference.top5, reference.source))
    for name, top1, top5, source in rows:
        yield f"{variant.name}, {name}: {top1} / {'-' if top5 is None else top5} ({source})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; its exit code is the largest of the runs'."""
    try:
        args = parse(argv)
        planned = list(combinations(args))
        if not planned:
            raise UsageError("Nothing is left to run: see what was left out above.")
        names = [combination.name for combination in planned]
        if len(set(names)) < len(names):
            raise UsageError("--weights: two files have the same name. Rename one of them.")
        image_set = fill_cache(args)
        rows: list[dict[str, object]] = []
        first: dict[tuple[str, str], list[str]] = {}
        for combination in planned:
            code, output = run_one(combination, args)
            if code == INTERRUPTED:
                raise KeyboardInterrupt
            against = (combination.variant, combination.preprocess)
            row, classes = row_of(combination, code, output, first.get(against))
            if classes:
                first.setdefault(against, classes)
            rows.append(row)
            if not args.quiet:
                print(f"{combination.name}: exit code {code}", file=sys.stderr)
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(args.output / "sweep.csv", text.getvalue())
    except EvalError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: the same command continues", file=sys.stderr)
        return INTERRUPTED
    print(table(rows))
    print("Flips: images whose best class is not that of the first row of the same pixels.")
    for variant in args.variant:
        for line in reported(load_variant(variant), image_set):
            print(line)
    print(f"Reports: {args.output}")
    codes = [int(str(row["exit_code"])) for row in rows]
    return CRASHED if any(code < 0 for code in codes) else max(codes)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        UsageError: a name in a list is not known.
    """
    parser = argparse.ArgumentParser(
        prog="python -m eval.sweep",
        description="Several forms, backends, precisions and preprocessings over one val set, "
        "decoded once, in one table.",
        epilog="Lists are separated by commas. The exit code is the largest of the runs'.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="PATH")
    add("--variant", default="base_ssld", metavar="LIST", help="default %(default)s")
    add(
        "--weights",
        nargs="+",
        default=["auto"],
        metavar="FILE",
        help="weights and exported .onnx or .xml files, VARIANT=FILE for those of one variant; "
        "default auto",
    )
    add("--forms", default="reparameterized", metavar="LIST", help="default %(default)s")
    add("--backend", default="torch", metavar="LIST", help="default %(default)s")
    add("--precision", default="fp32", metavar="LIST", help="default %(default)s")
    add("--preprocess", default="torchvision", metavar="LIST", help="default %(default)s")
    add("--limit", type=int, metavar="N")
    add("--labels", type=Path, metavar="FILE")
    add("--on-bad-image", choices=("fail", "record"), default="fail")
    add("--cache", type=Path, metavar="DIR", help="default: in --output")
    add("--output", type=Path, default=Path("results/sweep"), help="default %(default)s")
    add("--quiet", action="store_true")
    args = parser.parse_args(argv)
    known = {
        "forms": FORMS,
        "backend": BACKENDS,
        "precision": PRECISIONS,
        "preprocess": PREPROCESSES,
    }
    for option, names in known.items():
        chosen = getattr(args, option).split(",")
        unknown = [name for name in chosen if name not in names]
        if unknown:
            raise UsageError(f"--{option} {','.join(unknown)}: use {', '.join(names)}.")
        setattr(args, option, chosen)
    args.variant = args.variant.split(",")
    for variant in args.variant:
        load_variant(variant)
    args.weights = [_owned(word, args.variant) for word in args.weights]
    args.cache = args.cache or args.output / "cache"
    return args


def _owned(word: str, variants: Sequence[str]) -> tuple[str | None, str]:
    """The variant that a weights file is of, if it is said, and the file."""
    owner, equals, file = word.partition("=")
    return (owner, file) if equals and owner in variants else (None, word)


if __name__ == "__main__":
    sys.exit(main())
