"""``python -m eval.imagenet``: does this model give the reported ImageNet accuracy?

The command parses, calls `eval.evaluate`, prints and exits; the whole path is in
eval/jobs/evaluate.py.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from eval.cli import leave, program, run_command
from eval.errors import EvalError
from eval.options import add_message_options, add_request_options, read, to_request
from eval.parser import Parser
from eval.processes import own_place
from eval.progress import ProgressBar
from eval.request import Request
from eval.text import printable_lines

if TYPE_CHECKING:
    from eval.results.evaluation import Evaluation

EPILOG = """
Exit codes: 0 within tolerance, or nothing to compare with; 1 outside the tolerance, or worse than
the baseline; 2 wrong options; 3 data; 4 checkpoint; 5 non-finite or constant predictions, or forms
that disagree; 70 a bug in this package; 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code."""
    kept: list[Path] = []  # the output folder, once it is known
    done: list[Evaluation] = []
    code = run_command(
        lambda words: _main(words, kept, done), argv, interrupted=lambda: _kept(kept)
    )
    if done and code != done[0].exit_code:  # such as a diagnosis or a stdout that failed
        from eval.results.folder import record_exit_code

        run_command(lambda _: record_exit_code(kept[0], done[0].provenance.run_id, code), argv)
    return code


def _main(arguments: Sequence[str], kept: list[Path], done: list[Evaluation]) -> int:
    args = read(_parser(), arguments)
    place = own_place()
    try:
        request = _placed(to_request(args, f"{program('imagenet')} {shlex.join(arguments)}"))
    except EvalError:
        if place.is_first:
            from eval.results.folder import put_away

            put_away(getattr(args, "output", None))
        raise
    assert request.output is not None
    kept.append(Path(request.output))
    from eval.jobs.evaluate import evaluate
    from eval.measure.settings import keep_freed_memory

    keep_freed_memory()
    with ProgressBar(args.quiet or not place.is_first) as progress:
        evaluation = evaluate(request, progress)
    if not place.is_first:
        return 0  # the first one reports: torchrun would end it as soon as another one failed
    done.append(evaluation)

    from eval.results.console import format_evaluation

    print(format_evaluation(evaluation))
    tolerance = evaluation.subject.published.tolerance.get(evaluation.subject.preprocess.name)
    if args.verbose and tolerance:
        print(f"Tolerance, in images: {tolerance.images:,}. {tolerance.reason}")
    print(f"Reports: {request.output}")
    if evaluation.comparisons:
        from eval.results.regression_report import text

        print(f"\n{text(evaluation.comparisons, (str(request.baseline), str(request.output)))}")
    for problem in filter(None, (*evaluation.problems, evaluation.judgment.disagreement)):
        print(f"error: {printable_lines(str(problem))}", file=sys.stderr)
    _explain(evaluation, request, args)
    return evaluation.exit_code


def _explain(evaluation: Evaluation, request: Request, args: argparse.Namespace) -> None:
    """If the accuracy is far too low, say how to find out why, or find it out."""
    from eval.diagnosis.report import text
    from eval.jobs.diagnose import diagnose, diagnose_command, save, suggests_diagnosis
    from eval.results.schema import DIAGNOSIS_FILE

    if not suggests_diagnosis(evaluation) and not evaluation.judgment.warnings:
        return
    if not args.diagnose:
        print(f"To find out why: {diagnose_command(request)}")
        return
    with ProgressBar(args.quiet) as progress:
        found = diagnose(request, progress=progress)
    assert request.output is not None
    print()
    print(text(found))
    save(found, None, Path(request.output) / DIAGNOSIS_FILE)
    print(f"Diagnosis: {Path(request.output) / DIAGNOSIS_FILE}")


def _kept(folders: Sequence[Path]) -> str:
    """What to say after an interruption."""
    if not folders or not (folders[0] / "journal").is_dir():
        if folders and (folders[0] / "summary.csv").is_file():
            return f"interrupted: the reports in {folders[0]} are complete"
        return "interrupted: nothing was measured yet"
    return (
        f"interrupted: what was measured is kept in {folders[0]}.\n"
        f"The same command with --output {folders[0]} continues."
    )


def _placed(request: Request) -> Request:
    """The request; without --output, its reports go below ``results/``."""
    if request.output is not None:
        return request
    from eval.models import open_source

    name = open_source(request).name
    return replace(request, output=Path("results") / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")


def _parser() -> Parser:
    parser = Parser(
        "imagenet",
        "Measure an image classifier on the ImageNet validation set, as trained and as deployed, "
        "and compare both with the reported accuracy.",
        EPILOG,
    )
    add_request_options(parser, "subject", "compute", "run")
    parser.add_flag(
        "--diagnose", "after a FAIL far below the reference, also run python -m eval.diagnose"
    )
    add_message_options(parser, "explain the tolerance; print tracebacks of errors")
    return parser


if __name__ == "__main__":
    leave(main())
