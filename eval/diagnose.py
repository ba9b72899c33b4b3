"""``python -m eval.diagnose``: why is this accuracy wrong?

It takes what `eval.imagenet` takes, measures a sample as configured, and tries the known mistakes
on it (eval/diagnosis/hypotheses.py), one change at a time and then pairs.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from eval.cli import leave, program, run_command
from eval.diagnosis import IMAGES
from eval.files import remove
from eval.options import add_array_options, add_message_options, add_request_options, to_request
from eval.parser import Parser
from eval.progress import ProgressBar
from eval.values import path, positive

EPILOG = """
Exit codes: 0 healthy; 1 explained or unexplained; 2 wrong options; 3 data; 4 checkpoint;
5 non-finite or constant logits; 70 a bug in this package; 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code."""
    return run_command(_main, argv)


def _main(arguments: Sequence[str]) -> int:
    args = _parser().read(arguments)
    for file in filter(None, (args.json, args.html)):
        remove(file)  # an earlier diagnosis must not look like this one's
    request = to_request(args, f"{program('diagnose')} {shlex.join(arguments)}")
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


def _parser() -> Parser:
    parser = Parser(
        "diagnose",
        "Explain a wrong accuracy: try the known mistakes on a sample of the images, and name the "
        "one that restores it.",
        EPILOG,
    )
    add_request_options(parser, "subject", "compute")
    add = parser.add
    add(
        "--images",
        positive,
        default=IMAGES,
        metavar="N",
        help="size of the sample (default %(default)s)",
    )
    add(
        "--predictions",
        path,
        metavar="FILE",
        help="predictions made elsewhere, instead of a model; only the order of their classes "
        "is tried",
    )
    add_array_options(parser)
    add("--json", path, metavar="FILE", help="write the diagnosis to this file, for programs")
    add("--html", path, metavar="FILE", help="write it to this file as a page")
    add_message_options(parser)
    return parser


if __name__ == "__main__":
    leave(main())
