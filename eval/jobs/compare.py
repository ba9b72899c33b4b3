"""Two results compared, with reports of what differs; and a result made the baseline."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from eval.errors import UsageError
from eval.files import remove
from eval.judge.gate import DEFAULTS, FAILING, Asked, Comparison, check_baseline_verdict, compare
from eval.judge.verdict import Verdict
from eval.results.folder import OutputFolder, csv_text
from eval.results.read import read_result
from eval.results.regression_report import csv_files, junit, markdown
from eval.results.schema import (
    COMPARISON_FILE,
    JUNIT_FILE,
    PREDICTIONS_FILE,
    RESULT_FILES,
    SUMMARY_FILE,
)
from eval.text import printable


def compare_results(
    baseline: str | Path,
    candidate: str | Path,
    asked: Asked | None = None,
    *,
    output: OutputFolder | None = None,
) -> list[Comparison]:
    """Compare two results, and write the reports of the comparison.

    Args:
        baseline: a result folder, ``summary.csv``, history, or ``FILE#RUN_ID``.
        candidate: the same.
        asked: form and limits.
        output: the claimed folder for ``regression.md``, ``regression*.csv`` and ``junit.xml``.

    Raises:
        UsageError: the two cannot be compared, or a file cannot be read or written. If they
            cannot be compared, ``junit.xml`` and the step summary show that error as well.
    """
    sources = str(baseline), str(candidate)
    try:
        after = read_result(candidate)
        own = {row.run_id for row in after.rows.values()}
        comparisons = compare(read_result(baseline, skip_runs=own), after, asked or DEFAULTS)
    except UsageError as error:
        try:
            _write(output, {JUNIT_FILE: junit([], error)})
            _append_step_summary(f"## Accuracy: not compared\n\n```text\n{error}\n```\n")
        except UsageError as other:  # must not hide why nothing was compared
            raise UsageError(f"{error}\n{other}") from error
        raise
    report = markdown(comparisons, sources)
    _write(
        output, {COMPARISON_FILE: report, JUNIT_FILE: junit(comparisons), **csv_files(comparisons)}
    )
    _append_step_summary(report)
    return comparisons


def check_baseline(baseline: str | Path, variant: str, preprocess: str) -> None:
    """Check, before a run is measured, that it can be compared with a baseline."""
    result = read_result(baseline)
    rows = [row for row in result.rows.values() if row.variant == variant]
    if not rows or any(row.preprocess != preprocess for row in rows):
        raise UsageError(
            f"--baseline {baseline} has no run of {variant} with --preprocess {preprocess}"
            + (f" but with {printable(rows[0].preprocess)}." if rows else ".")
        )
    for row in rows:
        check_baseline_verdict(result, row)


def accept(candidate: str | Path, folder: Path) -> None:
    """Make a result the baseline: keep what a comparison needs, in files fit to be committed.

    The predictions are kept without probabilities, so that the diff of a later change shows the
    images whose prediction changed.
    """
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
    with (source / SUMMARY_FILE).open(encoding="utf-8", newline="") as file:
        summary = file.read()
    # What belongs to the result that was here before is moved away, but for the two that version
    # control keeps. The summary goes first and comes back last: no moment shows a mixture.
    kept = (SUMMARY_FILE, PREDICTIONS_FILE)
    with OutputFolder(folder, [name for name in RESULT_FILES if name not in kept]) as output:
        remove(folder / SUMMARY_FILE)
        if result.predictions:
            columns = {"path": result.predictions.paths, "label": result.predictions.labels}
            for form, rank in result.predictions.rank.items():
                columns |= {f"{form}_rank": rank, f"{form}_top1": result.predictions.top1[form]}
            output.write(PREDICTIONS_FILE, csv_text(pd.DataFrame(columns)))
        else:
            remove(folder / PREDICTIONS_FILE)
        output.write(SUMMARY_FILE, summary)


def _write(output: OutputFolder | None, files: Mapping[str, str]) -> None:
    if output:
        for name, content in files.items():
            output.write(name, content)


def _append_step_summary(report: str) -> None:
    """What GitHub shows on the page of a workflow run."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        try:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(report + "\n")
        except OSError as error:
            raise UsageError(f"$GITHUB_STEP_SUMMARY {path}: {error.strerror}.") from error
