"""``python -m eval.history FILE``: accuracy and speed over time."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.cli import program, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code."""
    return run_command(_run, argv)


def _run(arguments: Sequence[str]) -> int:
    args = _parser().parse_args(arguments)
    from eval.results.history import append_history, plot, read_history, trend

    if args.add:
        append_history(args.file, args.add)
    series = read_history(args.file, args.variant, args.form)
    print(trend(series), flush=True)
    if args.plot:
        plot(series, args.plot)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("history"),
        description="Show the runs of a history, by variant and form.",
        epilog="change: in images, from the previous run on the same images with the same "
        "preprocessing; * marks other weights. A run is named by its id, such as "
        "FILE#base-20260101T000000Z. Exit codes: 0; 2 if the history or the result "
        "cannot be read or written; 70 a crash; 130 interrupted.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "file",
        type=Path,
        metavar="FILE",
        help="the history: a CSV file, as --history of eval.imagenet writes it",
    )
    add(
        "--add",
        type=Path,
        metavar="RESULT",
        help="first add a result: its folder or its summary.csv",
    )
    add("--variant", metavar="NAME", help="only this variant")
    add("--form", metavar="NAME", help="only this form")
    add("--plot", type=Path, metavar="IMAGE", help="also draw top-1 over time: .png or .svg")
    return parser


if __name__ == "__main__":
    sys.exit(main())
