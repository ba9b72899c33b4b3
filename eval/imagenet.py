"""``python -m eval.imagenet``: does this model give the reported ImageNet accuracy?

The command parses, calls `eval.evaluate`, prints and exits; the whole path is in
eval/jobs/evaluate.py.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from eval.cli import program, run_command
from eval.errors import EvalError
from eval.options import add_compute_options, add_subject_options, positive
from eval.processes import is_first_process
from eval.progress import ProgressBar
from eval.request import ON_BAD_IMAGE, Request
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
    args = _parser().parse_args(arguments)
    try:
        request = to_request(args, arguments)
    except EvalError:
        if is_first_process():
            from eval.results.folder import put_away

            put_away(args.output)
        raise
    assert request.output is not None
    kept.append(Path(request.output))
    from eval.jobs.evaluate import evaluate
    from eval.measure.settings import keep_freed_memory

    keep_freed_memory()
    with ProgressBar(args.quiet or not is_first_process()) as progress:
        evaluation = evaluate(request, progress)
    if not is_first_process():
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
    for problem in evaluation.problems:
        print(f"error: {printable_lines(str(problem))}", file=sys.stderr)
    if evaluation.judgment.disagreement:
        print(f"error: {printable_lines(evaluation.judgment.disagreement)}", file=sys.stderr)
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


def to_request(args: argparse.Namespace, arguments: Sequence[str]) -> Request:
    """The request of a command line; without --output, its reports go below ``results/``.

    Raises:
        UsageError: options that do not go together.
    """
    options = {name: value for name, value in vars(args).items() if name in _REQUESTED}
    request = Request(**options, command=f"{program('imagenet')} {shlex.join(arguments)}")
    if request.output is not None:
        return request
    from dataclasses import replace

    from eval.models import open_source

    name = open_source(request).name
    return replace(request, output=Path("results") / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")


_REQUESTED = frozenset(Request.__dataclass_fields__) - {"command"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("imagenet"),
        description="Measure an image classifier on the ImageNet validation set, as trained and "
        "as deployed, and compare both with the reported accuracy.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    add_subject_options(parser)
    add_compute_options(parser)
    add = parser.add_argument
    add(
        "--limit",
        type=positive,
        metavar="N",
        help="only the first N images of a fixed shuffled order",
    )
    add(
        "--on-bad-image",
        choices=ON_BAD_IMAGE,
        default=ON_BAD_IMAGE[0],
        help="record: list it and count it as wrong; the verdict is INCOMPLETE then",
    )
    add("--cache", type=Path, metavar="DIR", help="keep the decoded crops for later runs")
    add("--real-labels", action="store_true", help="also score against the ReaL labels")
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for the reports (default results/<variant>-<time>); name the same folder "
        "again to continue an interrupted run",
    )
    add(
        "--stop-early",
        action="store_true",
        help="end the run as soon as it is certain that the whole set would FAIL",
    )
    add("--latency", action="store_true", help="also measure the time per image")
    add(
        "--diagnose",
        action="store_true",
        help="after a FAIL far below the reference, also run python -m eval.diagnose",
    )
    add("--history", type=Path, metavar="FILE", help="also append the summary to this CSV file")
    add(
        "--model-card",
        type=Path,
        metavar="FILE",
        help="also write a complete result as the metadata of a Hugging Face model card",
    )
    add(
        "--hub-benchmark",
        metavar="ORG/NAME:TASK",
        help="with --model-card: also write .eval_results/*.yaml beside FILE, for this benchmark "
        "on the Hugging Face Hub",
    )
    add("--baseline", metavar="PATH", help="at the end, compare with an earlier result")
    add("--quiet", action="store_true", help="print only errors on stderr")
    add("--verbose", action="store_true", help="explain the tolerance; print tracebacks of errors")
    return parser


if __name__ == "__main__":
    sys.exit(main())
