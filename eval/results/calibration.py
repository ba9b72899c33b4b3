"""Statistics beyond top-1 and top-5: calibration, coverage, confusions, positions of the label.

All functions are pure. Their inputs are images with a prediction; the caller removes bad images,
which have none, and reports them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

BINS = 15  # as in Guo et al. 2017
POSITIONS = (1, 2, 3, 4, 5, 10, 20, 50, 100, 1000)  # last position of each bar of the plot

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """Accuracy and confidence of predictions, in bins of confidence.

    Attributes:
        count: int64 (bins,), number of images in each bin.
        confidence: float64 (bins,), mean top-1 probability; NaN for an empty bin.
        accuracy: float64 (bins,), share of correct predictions, 0 to 1; NaN for an empty bin.
    """

    count: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 1: the mean gap of the bins, weighted by their images.

        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
        """
        gap = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(gap * self.count) / self.count.sum())


def reliability(confidence: Floats, correct: NDArray[np.bool_], bins: int = BINS) -> Reliability:
    """Group predictions by their confidence, in bins of equal width.

    Bin m of M covers ((m - 1) / M, m / M], as in Guo et al. 2017; the first one includes 0.

    Args:
        confidence: float64 (N,), top-1 probabilities.
        correct: bool (N,), whether the top-1 prediction is correct.
        bins: number of bins.

    Raises:
        ValueError: there are no predictions, or the shapes differ.
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
    """Coverage and accuracy when only confident predictions are kept.

    There is one entry per distinct confidence, most confident first: it keeps all predictions that
    are at least that confident.

    Attributes:
        confidence: float64 (M,), strictly decreasing.
        coverage: float64 (M,), share of the images that are kept, 0 to 1; the last one is 1.
        accuracy: float64 (M,), share of the kept images that are correct, 0 to 1; the last one is
            the top-1 accuracy.
    """

    confidence: Floats
    coverage: Floats
    accuracy: Floats

    def from_confidence(self, threshold: Floats) -> tuple[Floats, Floats]:
        """Coverage and accuracy of the predictions at or above confidence thresholds.

        Args:
            threshold: float64 (T,).

        Returns:
            Coverage and accuracy, float64 (T,) each; the accuracy is NaN if no prediction is kept.
        """
        entries = np.searchsorted(-self.confidence, -threshold, side="right")
        coverage = np.append(0.0, self.coverage)[entries]
        return coverage, np.append(np.nan, self.accuracy)[entries]

    def keeping(self, share: float) -> int:
        """Index of the first entry that keeps at least this share of the images, 0 to 1."""
        return int(
            np.searchsorted(self.coverage, share, side="left").clip(max=len(self.coverage) - 1)
        )


def coverage_curve(confidence: Floats, correct: NDArray[np.bool_]) -> Coverage:
    """Compute the accuracy of the most confident predictions, for every possible coverage.

    Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", NIPS 2017.

    Args:
        confidence: float64 (N,), top-1 probabilities.
        correct: bool (N,), whether the top-1 prediction is correct.

    Raises:
        ValueError: there are no predictions, or the shapes differ.
    """
    _check(confidence, correct)
    order = np.argsort(-confidence, kind="stable")
    descending = confidence[order]
    last_of_equals = np.append(descending[1:] != descending[:-1], True)
    kept = np.flatnonzero(last_of_equals) + 1
    right = np.cumsum(correct[order])[kept - 1]
    return Coverage(descending[last_of_equals], kept / len(confidence), right / kept)


def confusions(labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> pd.DataFrame:
    """Count the wrong predictions by label and predicted class, most frequent first.

    Args:
        labels: int64 (N,).
        predicted: int64 (N,), the top-1 classes.

    Returns:
        Columns ``label``, ``predicted``, ``images`` and ``reverse``, the number of images of the
        reverse confusion.
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


def place_counts(rank: NDArray[np.int64], listed: int | None = None) -> list[tuple[str, int]]:
    """Count the images by the position of their label, which is its rank plus one.

    Args:
        rank: int64 (N,), 0 is best.
        listed: how many classes are ranked, if not all: this rank means that or more.

    Returns:
        The positions as text ("6-10") and the number of images, for each group.
    """
    positions: tuple[int, ...] = POSITIONS
    if listed is not None and listed < POSITIONS[-1]:
        positions = (*(each for each in POSITIONS if each < listed), listed, POSITIONS[-1])
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
            f"probabilities of shape {confidence.shape} and predictions of shape {correct.shape}: "
            "the shapes must be the same, with at least one image."
        )
