"""A pytest plugin: what was skipped, and why, as the last thing that is said."""

from __future__ import annotations

from collections import Counter

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Reasons, each with its number of tests, so that a skip is never taken for a pass."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    reasons = Counter(_reason(report) for report in skipped)
    terminalreporter.section(f"{len(skipped)} skipped: not verified here", bold=True, yellow=True)
    for reason, number in reasons.most_common():
        terminalreporter.write_line(f"{number:5}  {reason}")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):  # (file, line, "Skipped: the reason")
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return str(report.longrepr)
