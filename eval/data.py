"""``python -m eval.data``: check a validation set before hours are spent on it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.cli import program, run_command
from eval.errors import DataError, EvalError
from eval.options import positive

if TYPE_CHECKING:  # decoders take a while to import: --help and wrong options do without
    from eval.images.survey import Survey


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code: 0, or 3 if something is wrong with the set."""
    return run_command(_main, argv, interrupted=lambda: "interrupted: not all images were checked")


def _main(arguments: Sequence[str]) -> int:
    args = _parser().parse_args(arguments)
    try:
        seen = _survey(args)
    except EvalError as error:
        if args.json:
            document = {"ok": False, "problems": [str(error)], "advice": str(error)}
            print(json.dumps({"data": str(args.data), **document}, indent=2))
        raise

    from eval.images.survey import to_json, to_text

    if args.json:
        print(json.dumps({"data": str(args.data), **to_json(seen)}, indent=2))
    else:
        print(to_text(seen))
    return DataError.exit_code if seen.problems else 0


def _survey(args: argparse.Namespace) -> Survey:
    from eval.images.classes import read_classes
    from eval.images.valset import open_valset

    classes = read_classes(args.classes) if args.classes else None
    valset = open_valset(args.data, args.labels, classes)

    from tqdm import tqdm

    from eval.images.survey import survey

    with tqdm(total=len(valset.samples), unit="img", disable=args.quiet) as bar:
        return survey(valset, args.workers, bar.update)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("data"),
        description="Check a validation set: its layout, labels, counts and duplicates, and that "
        "every image can be decoded.",
        epilog="Exit codes: 0 ready to evaluate (perhaps as a partial set); 2 wrong options; 3 not "
        "ready; 70 a bug in this package; 130 interrupted.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="PATH", required=True,
        help="class folders, a folder of ILSVRC2012_val_*.JPEG, their tar, Kaggle's tree, or "
        "parquet shards")  # fmt: skip
    add("--labels", type=Path, metavar="FILE",
        help="`name index` list or ground-truth file; official labels are built in")  # fmt: skip
    add("--classes", type=Path, metavar="FILE",
        help="classes other than ImageNet's: a file with one class per line, in index order, the "
        "name of its folder first")  # fmt: skip
    add("--json", action="store_true", help="print one JSON document")
    add("--workers", type=positive, metavar="N", help="threads (default: chosen for the machine)")
    add("--quiet", action="store_true", help="print only errors on stderr")
    return parser


if __name__ == "__main__":
    sys.exit(main())
