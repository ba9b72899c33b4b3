"""``python -m eval.history FILE``: accuracy and speed over time."""

from __future__ import annotations

from collections.abc import Sequence

from eval.cli import leave, run_command
from eval.parser import Parser
from eval.values import drawing, path


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code."""
    return run_command(_run, argv)


def _run(arguments: Sequence[str]) -> int:
    args = _parser().read(arguments)
    from eval.results.history import append_history, plot, read_history, trend

    if args.add:
        append_history(args.file, args.add)
    series = read_history(args.file, args.variant, args.form)
    print(trend(series), flush=True)
    if args.plot:
        plot(series, args.plot)
    return 0


def _parser() -> Parser:
    parser = Parser(
        "history",
        "Show the runs of a history, by variant and form.",
        "change: in images, from the previous run on the same images with the same preprocessing; "
        "* marks other weights. A run is named by its id, such as FILE#base-20260101T000000Z. "
        "Exit codes: 0; 2 if the history or the result cannot be read or written; 70 a crash; "
        "130 interrupted.",
    )
    add = parser.add
    add(
        "file",
        path,
        metavar="FILE",
        help="the history: a CSV file, as --history of eval.imagenet writes it",
    )
    add("--add", path, metavar="RESULT", help="first add a result: its folder or its summary.csv")
    add("--variant", metavar="NAME", help="only this variant")
    add("--form", metavar="NAME", help="only this form")
    add("--plot", drawing, metavar="IMAGE", help="also draw top-1 over time: .png or .svg")
    return parser


if __name__ == "__main__":
    leave(main())
