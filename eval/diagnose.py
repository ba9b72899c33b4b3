"""``python -m eval.diagnose``: why is this accuracy wrong?

It takes what `eval.imagenet` takes, measures a sample as configured, and tries the known mistakes
on it (eval/diagnosis/hypotheses.py), one change at a time and then pairs.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from eval.cli import program, run_command
from eval.diagnosis import IMAGES
from eval.files import remove
from eval.options import (
    add_array_options,
    add_compute_options,
    add_message_options,
    add_subject_options,
    positive,
)
from eval.progress import ProgressBar
from eval.request import Request

if TYPE_CHECKING:
    pass


EPILOG = """
Exit codes: 0 healthy; 1 explained or unexplained; 2 wrong options; 3 data; 4 checkpoint;
5 useless predictions; 70 a bug in this package; 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code."""
    return run_command(_main, argv)


def _main(arguments: Sequence[str]) -> int:
    args = _parser().parse_args(arguments)
    for file in filter(None, (args.json, args.html)):
        remove(file)  # an earlier diagnosis must not look like this one's
    options = {name: value for name, value in vars(args).items() if name in _REQUESTED}
    request = Request(**options, command=shlex.join(["python", "-m", "eval.diagnose", *arguments]))
    from eval.diagnosis.report import text
    from eval.jobs.diagnose import diagnose, diagnose_predictions, save

    with ProgressBar(args.quiet) as progress:
        if args.predictions:
            found = diagnose_predictions(request, args.predictions, args.names, args.array)
        else:
            found = diagnose(request, args.images, progress)
    print(text(found))
    save(found, args.json, args.html)
    return found.exit_code


_REQUESTED = frozenset(field.name for field in fields(Request)) - {"command"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("diagnose"),
        description="Explain a wrong accuracy: try the known mistakes on a sample of the images, "
        "and name the one that restores it.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    add_subject_options(parser)
    add_compute_options(parser)
    add = parser.add_argument
    add(
        "--images",
        type=positive,
        default=IMAGES,
        metavar="N",
        help="size of the sample (default %(default)s)",
    )
    add(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="predictions made elsewhere, instead of a model; only the order of their classes "
        "is tried",
    )
    add_array_options(parser)
    add("--json", type=Path, metavar="FILE", help="write the diagnosis to this file, for programs")
    add("--html", type=Path, metavar="FILE", help="write it to this file as a page")
    add_message_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
