"""What a run found: facts, without the files that show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from eval.errors import EvalError
from eval.images.labelset import LabelScore
from eval.judge.gate import Comparison
from eval.judge.verdict import Judgment, Verdict
from eval.models import Subject
from eval.provenance import Provenance

if TYPE_CHECKING:
    from eval.measure.latency import LatencyRow
    from eval.measure.measurement import Measurement
    from eval.measure.setup import Computation


class LabelResult(NamedTuple):
    """The accuracy of one form by another set of labels, such as ReaL."""

    form: str
    score: LabelScore


@dataclass(frozen=True)
class Record:
    """An evaluation, as the reports show it.

    Attributes:
        provenance: when, where and by what code.
        judgment: what they say about the reported accuracy.
        by_other_labels: accuracies by other sets of labels, if requested.
        latency: the time per image, if requested.
        comparisons: with the baseline, if there is one.
        problems: failures after the judgment: of the comparison, the history or the model card.
    """

    subject: Subject
    data: str
    setup: Computation
    provenance: Provenance
    measured: Measurement
    judgment: Judgment
    by_other_labels: tuple[LabelResult, ...] = ()
    latency: tuple[LatencyRow, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    problems: tuple[EvalError, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The verdict of the whole run; a `str`, such as ``"PASS"``."""
        return self.judgment.verdict

    @property
    def exit_code(self) -> int:
        """The command's exit code: the verdict's, or else that of a later failure."""
        follow_up = [1] if any(row.regressed for row in self.comparisons) else []
        follow_up += [problem.exit_code for problem in self.problems]
        return self.judgment.exit_code or max(follow_up, default=0)
