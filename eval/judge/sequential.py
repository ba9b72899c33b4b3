"""Is the outcome of a run certain before every image has been measured?

Images are measured in a shuffled order, so that those measured so far are a sample drawn without
replacement from a finite set. The test is the prior-posterior ratio of Waudby-Smith and Ramdas
("Confidence sequences for sampling without replacement", NeurIPS 2020, arXiv:2006.04347): with a
uniform prior over how many of the N images are correct, K of N is rejected after s of t images as
soon as

    log betabinom.pmf(s; t, 1, 1) - log hypergeom.pmf(s; N, K, t) >= log(1 / alpha).

The chance that the true K is ever rejected is at most alpha, however often one looks: the test may
be asked after every batch. Everything here is pure; counts may come from several processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval.config import VariantConfig
from eval.judge.gate import Limits
from eval.judge.verdict import compared_with, expected_counts
from eval.metrics import ALPHA, evidence_against, hardest_to_reject, possible_totals


class Figure(NamedTuple):
    """One of the counts of a run: images of a form whose label is among the k best."""

    form: str
    k: int

    def __str__(self) -> str:
        return f"{self.form} top-{self.k}"


def references(config: VariantConfig, preprocess: str, forms: tuple[str, ...]) -> dict[Figure, int]:
    """The reported counts that a run of the whole set is compared with, as the verdict does.

    Empty where nothing is gated.
    """
    reference, _ = compared_with(config, preprocess)
    if reference is None:
        return {}
    counts = expected_counts(reference, config.images)
    return {Figure(form, k): count for form in forms for k, count in counts.items()}


@dataclass
class EarlyStop:
    """Ends a run as soon as it is certain that the full set would not be within tolerance.

    Args:
        population: images of the whole set.
        references: the count that each figure is compared with, see `references`.
        tolerance: images that a count may differ.
        alpha: error probability of the whole run, split over the figures.
    """

    population: int
    references: Mapping[Figure, int]
    tolerance: int
    alpha: float = ALPHA
    bound: dict[str, Any] = field(default_factory=dict, init=False)

    def update(self, counts: Mapping[Figure, int], images: int) -> str | None:
        """Apply the test after a batch.

        Args:
            counts: images that are correct so far, for every figure of `references`.
            images: images measured so far, of all processes.

        Returns:
            Why the run is certain to fail, in words; None while it is not. `bound` then holds the
            facts for ``run.json``.
        """
        if not self.references or not images:
            return None
        needed = math.log(len(self.references) / self.alpha)
        for figure, reference in self.references.items():
            correct = counts[figure]
            lowest, highest = max(0, reference - self.tolerance), reference + self.tolerance
            total = hardest_to_reject(lowest, highest, correct, images, self.population)
            if float(evidence_against(total, correct, images, self.population)) >= needed:
                return self._certain(figure, correct, images)
        return None

    def _certain(self, figure: Figure, correct: int, images: int) -> str:
        reference = self.references[figure]
        share = self.alpha / len(self.references)
        lowest, highest = possible_totals(correct, images, self.population, 1 - share)
        self.bound = {
            "form": figure.form,
            "top": figure.k,
            "images": images,
            "correct": correct,
            "population": self.population,
            "reference_correct": reference,
            "tolerance": self.tolerance,
            "possible_correct": [lowest, highest],
            "error_probability": self.alpha,
        }
        return (
            f"{figure}: {correct:,} of {images:,} images are correct "
            f"({100 * correct / images:.2f} %), "
            f"the reference is {100 * reference / self.population:.2f} %. All "
            f"{self.population:,} images could give {lowest:,} to {highest:,} correct, but not "
            f"{reference:,} +- {self.tolerance} (error probability {self.alpha:g})"
        )


class Exchange(NamedTuple):
    """What changed between a baseline and the images measured so far.

    Attributes:
        correct_before: measured images that the baseline predicts correctly.
        lost: those of them that are wrong now.
        gained: images that the baseline has wrong and that are correct now.
    """

    correct_before: int
    lost: int
    gained: int

    @classmethod
    def of(cls, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Exchange:
        """Count; both bool (images,), in the same order."""
        return cls(int(before.sum()), int((before & ~after).sum()), int((after & ~before).sum()))


@dataclass
class BaselineStop:
    """Ends a run as soon as it is certain that a limit of the regression gate is passed.

    Flips that have been counted are certain by themselves. A drop is certain when the least number
    of losses exceeds the greatest number of gains by more than the limit; the two are drawn from
    the images that the baseline predicts correctly, and from the others: two sets of known size.

    Args:
        population: images of the whole set.
        correct_before: what the baseline predicts correctly of it, for every figure.
        limits: of the gate.
        alpha: error probability of the whole run, split over the figures.
    """

    population: int
    correct_before: Mapping[Figure, int]
    limits: Limits
    alpha: float = ALPHA

    def update(
        self, exchanges: Mapping[Figure, Exchange], flips: Mapping[str, int], images: int
    ) -> str | None:
        """Apply the test after a batch.

        Args:
            exchanges: for every figure of `correct_before`.
            flips: form to the images whose top-1 prediction changed, other than from wrong to
                correct.
            images: images measured so far, of all processes.

        Returns:
            Which limit is passed, in words; None while that is not certain.
        """
        for form, number in flips.items():
            if self.limits.flips is not None and number > self.limits.flips:
                return (
                    f"{form}: the top-1 prediction of {number:,} images changed, of {images:,} "
                    "measured; "
                    f"only {self.limits.flips:,} of {self.population:,} may"
                )
        for figure, exchange in exchanges.items():
            drop = self._certain_drop(figure, exchange, images)
            limit = {1: self.limits.top1, 5: self.limits.top5}[figure.k]
            if drop > limit.images(self.population):
                return (
                    f"{figure}: {exchange.lost:,} images lost and {exchange.gained:,} gained, of "
                    f"{images:,} measured. All {self.population:,} would lose at least {drop:,} "
                    f"more than they gain; {limit.shown(self.population)} may be lost "
                    f"(error probability {self.alpha:g})"
                )
        return None

    def _certain_drop(self, figure: Figure, exchange: Exchange, images: int) -> int:
        """By how many images the count of the whole set drops at least."""
        correct = self.correct_before[figure]
        if exchange.lost <= exchange.gained:  # a drop is nowhere near certain: save the work
            return exchange.lost - exchange.gained
        confidence = 1 - self.alpha / len(self.correct_before) / 2
        wrong_seen = images - exchange.correct_before
        least, _ = possible_totals(exchange.lost, exchange.correct_before, correct, confidence)
        _, most = possible_totals(
            exchange.gained, wrong_seen, self.population - correct, confidence
        )
        return least - most
