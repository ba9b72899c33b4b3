"""``python -m eval.audit RESULT``: was this result really measured?

A random sample of its ``predictions.csv`` is measured again, with your own data and weights, and
compared image by image. The counts, the rows and the hashes must agree as well.
"""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Sequence

from eval.cli import leave, program, run_command
from eval.files import remove, write_atomically
from eval.options import add_array_options, add_message_options, add_request_options, to_request
from eval.parser import Parser
from eval.progress import ProgressBar
from eval.values import Whole, path, positive

IMAGES = 300  # none different: at most 1 % of the rows are wrong, at 95 %

EPILOG = """
Exit codes: 0 confirmed; 1 contradicted; 2 wrong options or a damaged result; 3 data; 4 checkpoint;
5 non-finite or constant logits; 70 a bug in this package; 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code."""
    return run_command(_main, argv)


def _main(arguments: Sequence[str]) -> int:
    args = _parser().read(arguments)
    if args.json:
        remove(args.json)  # an earlier audit must not look like this one's
    request = to_request(args, f"{program('audit')} {shlex.join(arguments)}")
    from eval.jobs.audit import Given, Sampling, audit

    seed = secrets.randbelow(1 << 32) if args.seed is None else args.seed
    with ProgressBar(args.quiet) as progress:
        found = audit(
            args.result,
            request,
            Sampling(args.images, seed),
            Given(args.predictions, args.names, args.array) if args.predictions else None,
            progress,
        )
    print(found.text())
    if args.json:
        write_atomically(args.json, json.dumps(found.as_json(), indent=1) + "\n")
    return found.exit_code


def _parser() -> Parser:
    parser = Parser(
        "audit",
        "Measure a random sample of a result's rows again, and bound the share of wrong rows.",
        EPILOG,
    )
    add = parser.add
    add("result", path, metavar="RESULT", help="a result folder with a predictions.csv")
    add_request_options(parser, "subject", "compute", without="precision")
    add(
        "--images",
        positive,
        default=IMAGES,
        metavar="N",
        help="number of rows to measure again (default %(default)s)",
    )
    add(
        "--seed",
        Whole(),
        metavar="N",
        help="seed of the sample (default: chosen at random, and printed)",
    )
    add(
        "--predictions",
        path,
        metavar="FILE",
        help="for a result of eval.score: the predictions that were scored, instead of weights",
    )
    add_array_options(parser)
    add("--json", path, metavar="FILE", help="write the audit to this file, for programs")
    add_message_options(parser)
    return parser


if __name__ == "__main__":
    leave(main())
