"""``python -m eval.regression``: is one result worse than another? The gate for CI.

`check_regression` is the whole path: read, compare, print, write, exit code. `eval.judge.gate`
compares, and `eval.results.regression_report` puts the result into words.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.cli import program
from eval.command import run_command
from eval.errors import UsageError

if TYPE_CHECKING:  # numpy is needed to compare, and --help does without
    from eval.judge.gate import Asked, Comparison, Limit

EPILOG = """
A and B are each one of:
  DIR            a result folder of eval.imagenet or eval.score; if both have
                 a predictions.csv, they are compared image by image
  FILE           a summary.csv, or a history: the latest row of each variant
                 and form (other than those of the candidate's own run)
  FILE#RUN_ID    one run of a history; python -m eval.history FILE lists them

Not comparable (exit 2): results with a different variant, preprocessing, list
of classes, number of images or dataset_sha256 (names, labels and contents of
the images); and different or unknown weights, unless --allow-other-weights.

Verdicts count. A baseline whose verdict is DISAGREE or INCOMPLETE is refused
(exit 2), and so is one with FAIL, unless --allow-failed-baseline. A candidate
with one of these verdicts is compared, and fails: exit 5, 3 or 1. A FAIL only
passes if the baseline has it, too. A verdict that contradicts the figures
beside it is refused.

Limits are in images (5) or percentage points (0.05pp). An improvement is never
a failure.
  default             same weights   other weights
  --max-drop-top1          5            0.1pp
  --max-drop-top5          5            0.1pp
  --max-flips              5            not checked
With the same weights, only float rounding and the build of the JPEG decoder can
differ, which changes single images. Other weights change thousands of
predictions; trainings that differ only in the seed scatter by 0.1 points.

Exit codes: 0 not worse; 1 regressed, or the candidate's verdict is FAIL; 2 not
comparable, damaged, or wrong options; 3 its verdict is INCOMPLETE; 5 it is
DISAGREE; 70 a bug in this package; 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code."""
    return run_command(_run, argv)


def _run(arguments: Sequence[str]) -> int:
    args = _parser().parse_args(arguments)
    if args.accept:
        accept(args.candidate, Path(args.baseline))
        return 0
    from eval.judge.gate import Asked

    asked = Asked(
        form=args.form,
        top1=_limit("--max-drop-top1", args.max_drop_top1),
        top5=_limit("--max-drop-top5", args.max_drop_top5),
        flips=args.max_flips,
        allow_other_weights=args.allow_other_weights,
        allow_failed_baseline=args.allow_failed_baseline,
    )
    return check_regression(args.baseline, args.candidate, asked, output=args.output)


def check_regression(
    baseline: str | Path,
    candidate: str | Path,
    asked: Asked | None = None,
    *,
    output: Path | None = None,
) -> int:
    """Compare two results, print the differences, and return the exit code.

    The code is 0 if the candidate is not worse, 1 if it is or its verdict is FAIL, 3 if the verdict
    is INCOMPLETE, and 5 if it is DISAGREE.

    Raises:
        UsageError: see `compare_results`.
    """
    from eval.results.regression_report import text

    comparisons = compare_results(baseline, candidate, asked, output=output)
    print(text(comparisons, (str(baseline), str(candidate))))
    return max(row.exit_code for row in comparisons)


def compare_results(
    baseline: str | Path,
    candidate: str | Path,
    asked: Asked | None = None,
    *,
    output: Path | None = None,
) -> list[Comparison]:
    """Compare two results, and write the reports of the comparison.

    Args:
        baseline: a result folder, ``summary.csv``, history, or ``FILE#RUN_ID``.
        candidate: the same.
        asked: form and limits.
        output: where ``regression.md``, ``regression*.csv`` and ``junit.xml`` go, if anywhere.

    Raises:
        UsageError: the two cannot be compared, or a file cannot be read or written. If they
            cannot be compared, ``junit.xml`` and the step summary show that error as well.
    """
    from eval.judge.gate import DEFAULTS, compare
    from eval.results.read import read_result
    from eval.results.regression_report import csv_files, junit, markdown

    sources = str(baseline), str(candidate)
    try:
        after = read_result(candidate)
        own = {row.run_id for row in after.rows.values()}
        comparisons = compare(read_result(baseline, skip_runs=own), after, asked or DEFAULTS)
    except UsageError as error:
        try:
            _write(output, {"junit.xml": junit([], error)})
            _append_step_summary(f"## Accuracy: not compared\n\n```text\n{error}\n```\n")
        except UsageError as other:  # must not hide why nothing was compared
            raise UsageError(f"{error}\n{other}") from error
        raise
    report = markdown(comparisons, sources)
    _write(
        output,
        {"regression.md": report, "junit.xml": junit(comparisons), **csv_files(comparisons)},
    )
    _append_step_summary(report)
    return comparisons


def check_baseline(
    baseline: str | Path, variant: str, preprocess: str, *, allow_failed: bool = False
) -> None:
    """Check, before a run is measured, that it can be compared with a baseline.

    Raises:
        UsageError: there is no such baseline, it is damaged, of another variant or preprocessing,
            or its verdict does not let it be one.
    """
    from eval.judge.gate import check_baseline_verdict
    from eval.results.read import printable, read_result

    result = read_result(baseline)
    rows = [row for row in result.rows.values() if row.variant == variant]
    if not rows or any(row.preprocess != preprocess for row in rows):
        raise UsageError(
            f"--baseline {baseline} has no run of {variant} with --preprocess {preprocess}"
            + (f" but with {printable(rows[0].preprocess)}." if rows else ".")
        )
    for row in rows:
        check_baseline_verdict(result, row, allow_failed=allow_failed)


def accept(candidate: str | Path, folder: Path) -> None:
    """Make a result the baseline: keep what a comparison needs, in files fit to be committed.

    The predictions are kept without probabilities, so that the diff of a later change shows the
    images whose prediction changed.

    Raises:
        UsageError: the candidate is not an intact result folder, or its verdict is a failure.
    """
    import pandas as pd

    from eval.judge.gate import FAILING
    from eval.judge.verdict import Verdict
    from eval.results.files import remove, write_atomically
    from eval.results.read import PREDICTIONS, SUMMARY, printable, read_result

    source = Path(candidate)
    if not source.is_dir():
        raise UsageError(f"--accept needs a result folder; {candidate} is not a folder.")
    if source.resolve() == folder.resolve():
        raise UsageError(f"--accept needs two folders; {candidate} and {folder} are the same one.")
    result = read_result(source)
    for row in result.rows.values():
        if row.verdict in FAILING:
            others = ", ".join(verdict for verdict in Verdict if verdict not in FAILING)
            raise UsageError(
                f"{candidate} says {row.verdict} ({printable(row.form)}): it cannot become a "
                f"baseline.\nOnly results that say one of {others} can."
            )
    with (source / SUMMARY).open(encoding="utf-8", newline="") as file:
        summary = file.read()
    # The summary goes first and comes back last: no moment shows a mixture of two results.
    remove(folder / SUMMARY)
    if result.predictions:
        columns = {"path": result.predictions.paths, "label": result.predictions.labels}
        for form, rank in result.predictions.rank.items():
            columns |= {f"{form}_rank": rank, f"{form}_top1": result.predictions.top1[form]}
        write_atomically(folder / PREDICTIONS, pd.DataFrame(columns).to_csv(index=False))
    else:
        remove(folder / PREDICTIONS)
    write_atomically(folder / SUMMARY, summary)
    print(f"{folder} now holds {candidate}. Review the change, and commit it.")


def _write(output: Path | None, files: Mapping[str, str]) -> None:
    if output:
        from eval.results.files import write_atomically

        for name, content in files.items():
            write_atomically(output / name, content)


def _append_step_summary(report: str) -> None:
    """What GitHub shows on the page of a workflow run."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        try:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(report + "\n")
        except OSError as error:
            raise UsageError(f"$GITHUB_STEP_SUMMARY {path}: {error.strerror}.") from error


def _limit(option: str, value: str | None) -> Limit | None:
    from eval.judge.gate import Limit

    try:
        return None if value is None else Limit.parse(value)
    except ValueError as error:
        raise UsageError(f"{option}: {error}.") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("regression"),
        description="Compare two results on the same images, and fail if the second is worse.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--baseline", required=True, metavar="A", help="the result to compare with")
    add("--candidate", required=True, metavar="B", help="the result to judge")
    add("--form", metavar="F", help="only this form; F:G is F of the baseline with G of B")
    add("--max-drop-top1", metavar="LIMIT", help="in images (5) or percentage points (0.05pp)")
    add("--max-drop-top5", metavar="LIMIT", help="the same for top-5")
    add(
        "--max-flips",
        type=_natural,
        metavar="N",
        help="how many predictions may change, other than from wrong to right",
    )
    add(
        "--allow-other-weights",
        action="store_true",
        help="compare even if the weights differ or are unknown",
    )
    add(
        "--allow-failed-baseline",
        action="store_true",
        help="accept a baseline with the verdict FAIL: the model is known to miss its figure",
    )
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for regression.md, regression.csv, regression_flips.csv, "
        "regression_classes.csv and junit.xml",
    )
    add(
        "--accept", action="store_true", help="do not compare, but make B the baseline, in folder A"
    )
    return parser


def _natural(value: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of images")
    return int(value)


if __name__ == "__main__":
    sys.exit(main())
