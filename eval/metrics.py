"""The metrics: ranks of labels, then counts, and percentages only at the very end.

All functions are pure. `Scores` holds the results of one batch or of a whole run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.errors import LogitsError

TOP = 5
_SUM = 0.01  # how far the sum of probabilities may be from 1
Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


class Kind(StrEnum):
    """What a model's outputs are."""

    LOGITS = "logits"
    LOG_PROBABILITIES = "log-probabilities"
    PROBABILITIES = "probabilities"
    SCORES = "numbers between 0 and 1"  # as after a sigmoid: no distribution over the classes
    CLASSES = "predicted classes"  # 1 for the top-1 prediction, 0 for all other classes

    @property
    def words(self) -> str:
        """What is made of such outputs, for reports; "" for logits."""
        return {
            Kind.LOGITS: "",
            Kind.LOG_PROBABILITIES: f"{self.value}, used as logits",
            Kind.PROBABILITIES: f"{self.value}, used as they are",
            Kind.SCORES: f"{self.value} that do not add up to 1, as after a sigmoid: they rank the "
            "classes, and there are no probabilities and no NLL",
            Kind.CLASSES: f"{self.value}: there is a top-1 and nothing else",
        }[self]


def together(kinds: Iterable[Kind]) -> Kind:
    """What outputs are, of which parts are of these kinds."""
    found = set(kinds)
    if len(found) == 1:
        return found.pop()
    return Kind.SCORES if found == {Kind.SCORES, Kind.PROBABILITIES} else Kind.LOGITS


def as_logits(outputs: NDArray[Any], kind: Kind) -> NDArray[Any]:
    """Outputs (B, C) on the scale of logits, so that differences between models mean the same."""
    if kind is not Kind.PROBABILITIES:
        return outputs
    logs: NDArray[Any] = np.log(np.maximum(outputs, np.finfo(np.float32).tiny))
    return logs


def without_background(outputs: NDArray[Any], kind: Kind) -> NDArray[Any]:
    """Outputs (B, C + 1) without those of the first class: (B, C), as if there was none."""
    rest = outputs[:, 1:]
    return rest / rest.sum(axis=1, keepdims=True) if kind is Kind.PROBABILITIES else rest


def kind_of(outputs: NDArray[Any]) -> Kind:
    """What the outputs of some images are, by their values alone.

    Args:
        outputs: finite, (B, C). Sums may be off by 0.01: halves and rounded text are.
    """
    values = outputs.astype(np.float64)
    if (values >= 0).all():
        if (np.abs(values.sum(axis=1) - 1) < _SUM).all():
            return Kind.PROBABILITIES
        return Kind.SCORES if (values <= 1).all() else Kind.LOGITS
    if (values <= 0).all() and (np.abs(np.exp(values).sum(axis=1) - 1) < _SUM).all():
        return Kind.LOG_PROBABILITIES
    return Kind.LOGITS


def check_logits(logits: NDArray[Any], names: list[str], kind: Kind = Kind.LOGITS) -> None:
    """Refuse logits that have no meaningful rank.

    NaN compares false with everything, so a label with NaN would get rank 0; in a constant row, the
    rank is the class index.

    Args:
        logits: (B, C).
        names: the images, for the message.
        kind: what the outputs are.

    Raises:
        LogitsError: a row contains NaN or infinity, or the same value for every class; or it is no
            probabilities, although those of other images are.
    """
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise LogitsError(
            f"The logits of {names[row]} contain NaN or infinity "
            f"({int((~finite).sum())} of {len(names)} images in this batch).\n"
            "Check the weights; with fp16, try --precision bf16 or fp32."
        )
    constant = logits.max(axis=1) == logits.min(axis=1)
    if constant.any():
        row = int(np.argmax(constant))
        raise LogitsError(
            f"The logits of {names[row]} have the same value for every class.\n"
            "No trained model does this: check the weights."
        )
    if kind is Kind.PROBABILITIES and kind_of(logits) is not kind:
        row = next(i for i in range(len(names)) if kind_of(logits[i : i + 1]) is not kind)
        raise LogitsError(
            f"The outputs of {names[row]} are no probabilities, although those of noise are.\n"
            "Export the model without the layer that makes probabilities."
        )


def rank_of_label(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rank of the label: classes with a greater logit, plus equal ones with a lower index.

    Args:
        logits: finite, (B, C).
        labels: (B,), each in 0..C-1.

    Returns:
        int64 (B,); 0 is best.
    """
    own = logits[np.arange(len(logits)), labels][:, np.newaxis]
    lower = np.arange(logits.shape[1]) < labels[:, np.newaxis]
    rank: NDArray[np.int64] = ((logits > own) | ((logits == own) & lower)).sum(axis=1)
    return rank


def top_classes(logits: NDArray[Any], k: int = TOP) -> NDArray[np.int64]:
    """The top-k classes, int64 (B, k), best first; equal logits are ordered by class index.

    One after another: sorting all of a thousand classes takes thirty times as long.

    Args:
        logits: finite floats, (B, C).
        k: at most C are found.
    """
    rows, left = np.arange(len(logits)), logits.copy()
    top = np.empty((len(logits), min(k, logits.shape[1])), np.int64)
    for place in range(top.shape[1]):
        top[:, place] = best = left.argmax(axis=1)  # the first of equal ones
        left[rows, best] = -np.inf
    return top


def padded(rows: NDArray[Any], filler: float) -> NDArray[Any]:
    """Rows (B, k) as (B, 5), for models of fewer than five classes."""
    missing = max(0, TOP - rows.shape[1])
    if not missing:
        return rows
    return np.pad(rows, ((0, 0), (0, missing)), constant_values=filler)


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Natural logarithm of the softmax of logits (B, C), as float64 (B, C)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


@dataclass
class Scores:
    """Per-image results of one form, in image order.

    An image without a prediction has rank and classes -1, and NaN elsewhere.

    Attributes:
        rank: int64 (N,), see `rank_of_label`.
        top: int64 (N, 5), the top-5 classes; -1 where a model has fewer classes.
        prob: float64 (N, 5), their probabilities; NaN where a model has fewer classes, and where
            its outputs are none and cannot be made any.
        nll: float64 (N,), negative log-likelihood of the label, in nats; infinite where its
            probability was rounded to 0, NaN as `prob`.
        tied: bool (N,), whether several classes have the largest output.
        known: the largest k of which the top-k is known; 5 but for predictions of fewer classes
            that were made elsewhere, and graphs that give nothing but the top-1 prediction.
        listed: how many classes predictions made elsewhere rank, if that is so: this rank means
            that or more. None: all.
    """

    rank: NDArray[np.int64]
    top: NDArray[np.int64]
    prob: NDArray[np.float64]
    nll: NDArray[np.float64]
    tied: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    known: int = field(default=TOP, kw_only=True)
    listed: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if len(self.tied) != len(self.rank):
            self.tied = np.zeros(len(self.rank), bool)

    @classmethod
    def empty(cls, n: int) -> Scores:
        """Scores of n images without predictions, to be filled by `put`."""
        return cls(
            np.full(n, -1), np.full((n, TOP), -1), np.full((n, TOP), np.nan), np.full(n, np.nan)
        )

    @classmethod
    def of(
        cls,
        logits: NDArray[Any],
        labels: NDArray[np.int64],
        among: NDArray[np.int64] | None = None,
        kind: Kind = Kind.LOGITS,
    ) -> Scores:
        """Score a batch of outputs.

        Args:
            logits: finite, (B, C).
            labels: int64 (B,), each in 0..C-1, and in `among` if that is given.
            among: int64 (K,), ascending; if given, only these classes are scored, as if the model
                had no others.
            kind: what the outputs are.
        """
        if among is not None:
            chosen = logits[:, among]
            if kind is Kind.PROBABILITIES:
                chosen = chosen / chosen.sum(axis=1, keepdims=True)
            part = cls.of(chosen, np.searchsorted(among, labels), kind=kind)
            return replace(part, top=np.where(part.top < 0, -1, among[part.top]))
        rows = np.arange(len(logits))
        top, rank = top_classes(logits), rank_of_label(logits, labels)
        tied = (logits == logits.max(axis=1, keepdims=True)).sum(axis=1) > 1
        if kind is Kind.CLASSES:
            none = logits.max(axis=1) <= 0  # it was the background
            top[:, 1:], rank = -1, np.where(none, 1, np.minimum(rank, 1))
            top[none], tied = -1, np.zeros(len(top), bool)
        if kind is Kind.PROBABILITIES:
            values = logits.astype(np.float64)
            with np.errstate(divide="ignore"):
                log_prob = np.log(values)
            prob = values[rows[:, np.newaxis], top]
        elif kind in (Kind.SCORES, Kind.CLASSES):
            log_prob, prob = np.full(logits.shape, np.nan), np.full(top.shape, np.nan)
        else:
            log_prob = log_softmax(logits)
            prob = np.exp(log_prob[rows[:, np.newaxis], top])
        return cls(
            rank=rank,
            top=padded(top, -1),
            prob=padded(prob, np.nan),
            nll=-log_prob[rows, labels],
            tied=tied,
            known=1 if kind is Kind.CLASSES else TOP,
        )

    def put(self, where: NDArray[np.int64], batch: Scores) -> None:
        """Store the scores of a batch at the given image indices (B,)."""
        self.rank[where] = batch.rank
        self.top[where] = batch.top
        self.prob[where] = batch.prob
        self.nll[where] = batch.nll
        self.tied[where] = batch.tied

    @property
    def mean_nll(self) -> float | None:
        """Mean negative log-likelihood, in nats, of the images with a prediction.

        None if there are none, or if a label's probability was rounded to 0.
        """
        if np.isinf(self.nll).any():
            return None
        known = self.nll[np.isfinite(self.nll)]
        return float(known.mean()) if len(known) else None

    def correct(self, k: int) -> int:
        """Number of images with the label in the top-k."""
        return int(((self.rank >= 0) & (self.rank < k)).sum())

    def correct_per_class(self, labels: NDArray[np.int64], k: int, classes: int) -> NDArray[Any]:
        """Number of images of each class with the label in the top-k, int64 (classes,).

        Args:
            labels: int64 (N,).
            k: of the top-k.
            classes: number of classes.
        """
        hit = (self.rank >= 0) & (self.rank < k)
        return np.bincount(labels[hit], minlength=classes)


@dataclass(frozen=True)
class ClassFigures:
    """How well each class is told from the others, by the top-1 predictions; in percent.

    Attributes:
        precision: float64 (C,), correct of the images that are predicted as the class; NaN if none
            are.
        recall: float64 (C,), correct of the images of the class; NaN if it has none.
        f1: float64 (C,), the harmonic mean of the two, which is 0 without a correct prediction; NaN
            if the class has no images and no predictions.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]

    @classmethod
    def of(cls, scores: Scores, labels: NDArray[np.int64], classes: int) -> ClassFigures:
        """Those of all classes; an image without a prediction counts as wrong.

        Args:
            scores: of all images.
            labels: int64 (N,).
            classes: C.
        """
        predicted = scores.top[:, 0]
        correct = np.bincount(labels[predicted == labels], minlength=classes)
        images = np.bincount(labels, minlength=classes)
        named = np.bincount(predicted[predicted >= 0], minlength=classes)
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
            return cls(
                100 * correct / named, 100 * correct / images, 200 * correct / (images + named)
            )

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images (Brodersen et al., ICPR 2010)."""
        return float(np.nanmean(self.recall))

    @property
    def macro_precision(self) -> float:
        """Mean precision of the classes that have images; 0 of one that is never predicted."""
        return float(np.nan_to_num(self.precision[np.isfinite(self.recall)]).mean())

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have images."""
        return float(self.f1[np.isfinite(self.recall)].mean())


def percent(correct: int, total: int) -> float:
    """Accuracy in percent, unrounded.

    Raises:
        ValueError: `total` is not positive.
    """
    if total <= 0:
        raise ValueError("Accuracy is undefined for zero images.")
    return 100.0 * correct / total


def wilson_interval(correct: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of an accuracy, in percent (Wilson, JASA 22, 1927).

    Args:
        correct: number of correct images.
        total: number of images.
        z: quantile of the normal distribution; the default gives a 95 % interval.

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: `total` is not positive.
    """
    share = percent(correct, total) / 100
    center = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 100 / (1 + z * z / total)
    return max(0.0, (center - spread) * scale), min(100.0, (center + spread) * scale)


ALPHA = 0.001  # error probability of a whole run


CONFIDENCE = 0.95  # of the intervals that are shown


def evidence_against(
    total: NDArray[np.int64] | int, correct: int, images: int, population: int
) -> NDArray[np.float64]:
    """Natural logarithm of the prior-posterior ratio; K is rejected from log(1 / alpha) on.

    Args:
        total: K, how many of the whole set would be correct; a number or an array.
        correct: s, how many of the measured images are.
        images: t, how many were measured.
        population: N, images of the whole set.

    Returns:
        One value for each K; infinite where s of t is impossible.
    """
    from scipy.stats import hypergeom

    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = hypergeom.logpmf(correct, population, np.asarray(total), images)
    # The beta-binomial with the uniform prior Beta(1, 1) gives every s the same probability.
    result: NDArray[np.float64] = -math.log1p(images) - np.asarray(likelihood)
    return result


def possible_totals(
    correct: int, images: int, population: int, confidence: float = CONFIDENCE
) -> tuple[int, int]:
    """How many of the whole set may be correct: the least and the greatest K that is not rejected.

    The probability that the true K is ever outside, at any number of images, is at most
    ``1 - confidence``. The likelihood of K has a single peak, so that what is not rejected is one
    interval.
    """
    totals = np.arange(correct, population - images + correct + 1)
    evidence = evidence_against(totals, correct, images, population)
    kept = totals[evidence < -math.log(1 - confidence)]
    if not len(kept):  # so few images that even the likeliest K has no large likelihood
        kept = totals[[int(np.argmin(evidence))]]
    return int(kept[0]), int(kept[-1])


def anytime_interval(
    correct: int, images: int, population: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Confidence interval of the accuracy on the whole set, in percent, valid at any time.

    Unlike Wilson's interval, it stays valid if the measurement is ended because the figure looks
    good, and it shrinks to a point once every image has been measured.
    """
    lowest, highest = possible_totals(correct, images, population, confidence)
    return 100 * lowest / population, 100 * highest / population


def hardest_to_reject(lowest: int, highest: int, correct: int, images: int, population: int) -> int:
    """Of all K in lowest..highest, the likeliest after `correct` of `images`.

    The likelihood of K rises up to floor(s (N + 1) / t) and falls from there on (the maximum
    likelihood estimate of a hypergeometric count), so that the K nearest to it is the likeliest.
    """
    peak = correct * (population + 1) // images
    return min(max(peak, lowest), highest, population)


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided p-value of McNemar's exact test.

    Of the images that changed sides, half go each way if neither run is better: a binomial test
    (McNemar, Psychometrika 12, 1947; exact form by Cochran, 1950). In whole numbers until the
    last division, so that thousands of changes neither overflow nor round.

    Args:
        lost: images that only the first run predicts correctly.
        gained: images that only the second run predicts correctly.
    """
    changed = lost + gained
    term = tail = 1
    for i in range(min(lost, gained)):
        term = term * (changed - i) // (i + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << changed))


def largest_number_wrong(
    population: int, sampled: int, different: int, confidence: float = CONFIDENCE
) -> int:
    """Exact upper bound of the number of wrong rows, after a sample of them.

    It is the largest number W of wrong rows for which so few in the sample would still have a
    probability above ``1 - confidence`` (the hypergeometric distribution, drawing without
    replacement). With W + 1 wrong rows, more than `different` are found with at least `confidence`.

    Args:
        population: rows in all.
        sampled: rows that were measured again.
        different: those of them that are wrong.
        confidence: probability that the bound holds.
    """
    from scipy.stats import hypergeom

    low, high = different, population - sampled + different  # all that is possible
    while low < high:  # the probability falls as W grows
        middle = (low + high + 1) // 2
        if hypergeom.cdf(different, population, middle, sampled) > 1 - confidence:
            low = middle
        else:
            high = middle - 1
    return low
