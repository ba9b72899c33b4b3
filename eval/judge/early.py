"""``--stop-early``: the sequential tests of eval/judge/sequential.py, applied during a run.

With several processes, the counts are merged after every round of batches and the decision is made
on the merged counts, so that all processes stop in the same round.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.errors import UsageError
from eval.images.labels import image_key
from eval.images.valset import ValSet
from eval.judge.gate import KS, Asked
from eval.judge.result import Predictions, Result
from eval.judge.sequential import BaselineStop, EarlyStop, Exchange, Figure, references
from eval.judge.verdict import JUDGED_PRECISION
from eval.measure.journal import Records
from eval.models import Subject
from eval.processes import Group

ROUND = 8  # batches that each process measures between two merges


class SequentialStopper:
    """Ends a run as soon as the first of its tests is certain of the outcome."""

    def __init__(self, group: Group, tests: list[ReferenceTest | BaselineTest]) -> None:
        self._group, self._tests = group, tests
        self._rounds = self._batches = 0
        self.reason = ""
        self.bound: dict[str, Any] = {}

    def begin(self, kept: Records, batches: int) -> bool:
        """See `eval.measure.engine.Stopper`."""
        size = ROUND if self._group.count > 1 else 1
        self._rounds = -(-max(self._group.gather(batches)) // size)
        for test in self._tests:
            test.add(kept)
        return self._merge()

    def after(self, records: Records) -> bool:
        """See `eval.measure.engine.Stopper`."""
        for test in self._tests:
            test.add(records)
        self._batches += 1
        if self._group.count > 1 and self._batches % ROUND:
            return False
        self._rounds -= 1
        return self._merge()

    def finish(self) -> None:
        """See `eval.measure.engine.Stopper`."""
        while self._rounds > 0 and not self.reason:
            self._rounds -= 1
            self._merge()

    def _merge(self) -> bool:
        everyone = self._group.gather([test.counts for test in self._tests])
        for test, counts in zip(self._tests, zip(*everyone, strict=True), strict=True):
            reason = test.ask(sum(counts[1:], start=counts[0]))
            if reason and not self.reason:
                self.reason, self.bound = reason, test.bound
        return bool(self.reason)


class ReferenceTest:
    """Tests whether the full set would certainly be outside the tolerance of the reference."""

    def __init__(self, test: EarlyStop) -> None:
        self._test = test
        self._figures = list(test.references)
        self.counts = np.zeros(1 + len(self._figures), np.int64)  # images, then each figure

    def add(self, records: Records) -> None:
        """Add the counts of a batch."""
        correct = [_correct(records, figure).sum() for figure in self._figures]
        self.counts += np.array([len(records), *correct])

    def ask(self, counts: NDArray[np.int64]) -> str:
        """The reason if the outcome is certain, else ""."""
        correct = dict(zip(self._figures, counts[1:].tolist(), strict=True))
        return self._test.update(correct, int(counts[0])) or ""

    @property
    def bound(self) -> dict[str, Any]:
        """See `eval.measure.measurement.Measurement`."""
        return self._test.bound


class BaselineTest:
    """Tests whether the full set would certainly exceed a limit of the regression gate.

    Args:
        test: the sequential test.
        before: for each figure, whether the baseline is correct on each image, bool (N,).
        top1: for each form, the baseline's top-1 class of each image, int64 (N,).
        labels: class of each image, int64 (N,).
    """

    def __init__(
        self,
        test: BaselineStop,
        before: Mapping[Figure, NDArray[np.bool_]],
        top1: Mapping[str, NDArray[np.int64]],
        labels: NDArray[np.int64],
    ) -> None:
        self._test, self._before, self._top1, self._labels = test, before, top1, labels
        self.bound: dict[str, Any] = {}
        self.counts = np.zeros(1 + 3 * len(before) + len(top1), np.int64)

    def add(self, records: Records) -> None:
        """Add the exchanges and flips of a batch."""
        index = records["index"]
        row: list[int] = [len(records)]
        for figure, before in self._before.items():
            row += Exchange.of(before[index], _correct(records, figure))
        for form, best in self._top1.items():
            now = records[form]["top"][:, 0]
            row.append(int(((now != best[index]) & (now != self._labels[index])).sum()))
        self.counts += np.array(row)

    def ask(self, counts: NDArray[np.int64]) -> str:
        """The reason if the outcome is certain, else ""."""
        values = counts.tolist()
        images, rest = values[0], values[1:]
        exchanges = {
            figure: Exchange(*rest[3 * i : 3 * i + 3]) for i, figure in enumerate(self._before)
        }
        flips = dict(zip(self._top1, rest[3 * len(self._before) :], strict=True))
        reason = self._test.update(exchanges, flips, images) or ""
        if reason:
            self.bound = {"baseline": reason, "images": images}
        return reason


def _correct(records: Records, figure: Figure) -> NDArray[np.bool_]:
    rank = records[figure.form]["rank"]
    correct: NDArray[np.bool_] = (rank >= 0) & (rank < figure.k)
    return correct


def stopper_for(
    group: Group, subject: Subject, valset: ValSet, baseline: Result | None, precision: str
) -> SequentialStopper:
    """Choose the sequential tests that apply to a run."""
    tests: list[ReferenceTest | BaselineTest] = []
    preprocess, forms = subject.preprocess.name, tuple(subject.forms)
    compared = references(subject.published, preprocess, forms)
    whole = len(valset.samples)
    judged = valset.image_set.is_judged and whole == subject.published.images
    if compared and judged and precision == JUDGED_PRECISION:
        tolerance = subject.published.tolerance[preprocess].images
        tests.append(ReferenceTest(EarlyStop(whole, compared, tolerance)))
    if baseline is not None and baseline.predictions is not None:
        tests.append(_baseline_test(subject, valset, baseline, baseline.predictions))
    if not tests:
        raise UsageError(
            "--stop-early has nothing to compare this run with.\nIt needs the whole validation set "
            "in fp32 and a reference with a tolerance, or a --baseline with predictions."
        )
    return SequentialStopper(group, tests)


def _baseline_test(
    subject: Subject, valset: ValSet, baseline: Result, predictions: Predictions
) -> BaselineTest:
    place = {key: i for i, key in enumerate(predictions.keys())}
    keys = [image_key(sample.path) for sample in valset.samples]
    try:
        rows = np.array([place[key] for key in keys])
    except KeyError as error:
        raise UsageError(
            f"--baseline {baseline.source} has no prediction for {error.args[0]}.\n"
            "Only runs on the same images can be compared."
        ) from None
    forms = [form for form in subject.forms if form in predictions.rank]
    before = {Figure(form, k): predictions.correct(form, k)[rows] for form in forms for k in KS}
    same = all(
        row.weights_sha256 == subject.sha256
        for (_, form), row in baseline.rows.items()
        if form in forms
    )
    test = BaselineStop(
        len(valset.samples),
        {figure: int(correct.sum()) for figure, correct in before.items()},
        Asked().limits(same_weights=same),
    )
    labels = np.array([sample.label for sample in valset.samples])
    return BaselineTest(test, before, {f: predictions.top1[f][rows] for f in forms}, labels)
