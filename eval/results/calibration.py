"""What per-image results tell beyond two percentages: calibration, coverage, confusions, ranks.

All functions are pure. They take answered images only: a bad image has no probability, and is
left out by the caller, who says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

BINS = 15  # as in Guo et al. 2017
POSITIONS = (1, 2, 3, 4, 5, 10, 20, 50, 100, 1000)  # last place that each bar of ranks counts

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """How often answers of a given confidence are right.

    Attributes:
        count: int64 (bins,), images of each bin.
        confidence: float64 (bins,), mean top-1 probability; NaN where the bin is empty.
        accuracy: float64 (bins,), share of right answers; NaN where the bin is empty.
    """

    count: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats

    @property
    def ece(self) -> float:
        """Expected calibration error in 0..1: the bins' mean gap, weighted by their images.

        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
        """
        gap = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(gap * self.count) / self.count.sum())


def reliability(confidence: Floats, correct: NDArray[np.bool_], bins: int = BINS) -> Reliability:
    """Group answers by their confidence, in bins of equal width.

    Bin m of M holds ((m - 1) / M, m / M], as in the paper; a confidence of 0 is in the first.

    Args:
        confidence: (N,), top-1 probabilities.
        correct: (N,), whether the top-1 answer is right.
        bins: how many.

    Raises:
        ValueError: there are no answers.
    """
    _check(confidence, correct)
    edges = np.arange(1, bins) / bins
    where = np.searchsorted(edges, confidence, side="left")
    count = np.bincount(where, minlength=bins)
    filled = np.where(count > 0, count, np.nan)
    return Reliability(
        count,
        np.bincount(where, weights=confidence, minlength=bins) / filled,
        np.bincount(where, weights=correct, minlength=bins) / filled,
    )


@dataclass(frozen=True)
class Coverage:
    """What answering only when confident enough costs and gains.

    One entry per distinct confidence, most confident first, for keeping all answers that are at
    least as confident: equally confident answers are kept together.

    Attributes:
        confidence: float64 (M,), strictly decreasing.
        coverage: float64 (M,), share of the images that are kept; ends at 1.
        accuracy: float64 (M,), share of the kept that is right; ends at the top-1 accuracy.
    """

    confidence: Floats
    coverage: Floats
    accuracy: Floats

    def from_confidence(self, threshold: Floats) -> tuple[Floats, Floats]:
        """Coverage and accuracy of the answers at or above each threshold (T,).

        The accuracy is NaN where no answer is.
        """
        entries = np.searchsorted(-self.confidence, -threshold, side="right")
        coverage = np.append(0.0, self.coverage)[entries]
        return coverage, np.append(np.nan, self.accuracy)[entries]

    def keeping(self, share: float) -> int:
        """The first entry that keeps at least this share of the images."""
        return int(
            np.searchsorted(self.coverage, share, side="left").clip(max=len(self.coverage) - 1)
        )


def coverage_curve(confidence: Floats, correct: NDArray[np.bool_]) -> Coverage:
    """Accuracy of the most confident answers, for every share of them.

    Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", NIPS 2017.

    Args:
        confidence: (N,), top-1 probabilities.
        correct: (N,), whether the top-1 answer is right.

    Raises:
        ValueError: there are no answers.
    """
    _check(confidence, correct)
    order = np.argsort(-confidence, kind="stable")
    descending = confidence[order]
    last_of_equals = np.append(descending[1:] != descending[:-1], True)
    kept = np.flatnonzero(last_of_equals) + 1
    right = np.cumsum(correct[order])[kept - 1]
    return Coverage(descending[last_of_equals], kept / len(confidence), right / kept)


def confusions(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> pd.DataFrame:
    """Wrong answers by label and predicted class, most frequent first.

    Args:
        labels: (N,).
        predicted: (N,), the top-1 class.

    Returns:
        Columns ``label, predicted, images`` and ``reverse``, the images of the opposite
        confusion.
    """
    wrong = labels != predicted
    pairs = pd.DataFrame({"label": labels[wrong], "predicted": predicted[wrong]})
    counts = pairs.value_counts().rename("images").reset_index()
    opposite = counts.rename(
        columns={"label": "predicted", "predicted": "label", "images": "reverse"}
    )
    both = counts.merge(opposite, how="left", on=["label", "predicted"])
    both["reverse"] = both["reverse"].fillna(0).astype(int)
    return both.sort_values(
        ["images", "label", "predicted"], ascending=[False, True, True], ignore_index=True
    )


def place_counts(
    rank: NDArray[np.int64], positions: tuple[int, ...] = POSITIONS
) -> list[tuple[str, int]]:
    """How many labels come first, second, ... among the answers.

    Args:
        rank: (N,), 0 is best.
        positions: the last place of each group, ascending.

    Returns:
        The places in words ("6-10"), and the number of images.
    """
    group = np.searchsorted(positions, rank + 1, side="left")
    counts = np.bincount(group, minlength=len(positions))[: len(positions)]
    first = [1, *(position + 1 for position in positions[:-1])]
    return [
        (str(low) if low == high else f"{low}–{high}", int(count))  # noqa: RUF001 - a range
        for low, high, count in zip(first, positions, counts, strict=True)
    ]


def _check(confidence: NDArray[Any], correct: NDArray[Any]) -> None:
    if not len(confidence) or confidence.shape != correct.shape:
        raise ValueError(
            f"{confidence.shape} probabilities and {correct.shape} answers: "
            "as many of each are needed, and at least one."
        )
