"""``python -m eval.data``: check a validation set before hours are spent on it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval.cli import leave, run_command
from eval.errors import DataError, EvalError
from eval.options import add_option
from eval.parser import Parser

if TYPE_CHECKING:  # decoders take a while to import: --help and wrong options do without
    from eval.images.survey import Survey


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code: 0, or 3 if something is wrong with the set."""
    return run_command(_main, argv, interrupted=lambda: "interrupted: not all images were checked")


def _main(arguments: Sequence[str]) -> int:
    args = _parser().read(arguments)
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
    from eval.images.sets import STATED
    from eval.images.valset import open_valset

    classes = read_classes(args.classes) if args.classes else None
    stated = STATED[args.image_set] if args.image_set else None
    valset = open_valset(args.data, args.labels, classes, stated, args.folders)

    from tqdm import tqdm

    from eval.images.survey import survey

    with tqdm(total=len(valset.samples), unit="img", disable=args.quiet) as bar:
        return survey(valset, args.workers, bar.update)


def _parser() -> Parser:
    parser = Parser(
        "data",
        "Check a validation set: its layout, labels, counts and duplicates, and that every image "
        "can be decoded.",
        "Exit codes: 0 ready to evaluate (perhaps as a partial set); 2 wrong options; 3 not ready; "
        "70 a bug in this package; 130 interrupted.",
    )
    add_option(parser, "data", required=True)
    for name in ("labels", "image_set", "classes", "folders", "workers"):
        add_option(parser, name)
    parser.add_flag("--json", "print one JSON document")
    parser.add_flag("--quiet", "print only errors on stderr")
    return parser


if __name__ == "__main__":
    leave(main())
