"""Can a result be believed? What its rows say, beside what a measurement of the same images gives.

A row is what a result says about one image: the rank of its label, the top-5 classes and their
probabilities. Differences that rounding may explain are kept apart from those that it cannot.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.backends.precision import computed_in
from eval.metrics import CONFIDENCE, Scores, largest_number_wrong
from eval.text import printable

# How far a logit may differ between two machines, relative to the largest one. float32 sums in
# another order: 5e-5 at most was seen with weights that amplify it on purpose. The others are a few
# units of their last place; int8 rounds its activations.
NOISE = {"fp32": 1e-4, "fp16": 4e-3, "bf16": 3e-2, "int8": 3e-2}
SHOWN = 5  # rows, in a report for a terminal
WRITTEN = 1e-5  # relative error of a probability of six digits
_TINY = 1e-30  # probabilities below it are all the same


@dataclass(frozen=True)
class Answer:
    """The ranking of one image, as a result states it.

    Attributes:
        rank: classes before the label; -1 for an image that was not read.
        top: the top-5 classes, as many as are written down.
    """

    rank: int
    top: tuple[int, ...]


def answer(scores: Scores, row: int) -> Answer:
    """The ranking of one image."""
    return Answer(int(scores.rank[row]), tuple(int(c) for c in scores.top[row] if c >= 0))


def noise_of(precision: str) -> float:
    """How far a logit may be off, relative to the largest one; that of fp32 where unknown."""
    return NOISE.get(computed_in(precision), NOISE["fp32"])


def rankings_differ(written: Scores, measured: Scores) -> NDArray[np.bool_]:
    """Images with another rank or other top-5 classes, bool (N,)."""
    differs: NDArray[np.bool_] = (written.rank != measured.rank) | (
        (written.top != measured.top).any(axis=1)
    )
    return differs


def probabilities_differ(
    written: Scores, measured: Scores, margin: float = 0.0
) -> NDArray[np.bool_]:
    """Images with other probabilities, place by place, bool (N,).

    If no logit is off by more than e, neither is the logarithm of the sum over classes, nor the
    k-th largest logit: the logarithm of a probability is off by no more than 2 e.

    Args:
        written: what a result says.
        measured: the same images.
        margin: 2 e, in nats.
    """
    known = np.isfinite(written.prob), np.isfinite(measured.prob)
    with np.errstate(invalid="ignore"):
        logs = [np.log(np.maximum(scores.prob, _TINY)) for scores in (written, measured)]
        off = np.abs(logs[0] - logs[1]) > margin + WRITTEN
    differs: NDArray[np.bool_] = ((known[0] != known[1]) | (known[0] & off)).any(axis=1)
    return differs


def is_near_tie(
    written: Answer,
    logits: NDArray[np.float32],
    label: int,
    noise: float,
    among: NDArray[np.int64] | None = None,
) -> bool:
    """Whether noise on the logits could turn them into the written answer.

    Args:
        written: what the result says.
        logits: (classes,), measured again.
        label: the class of the image.
        noise: how far a logit may differ, relative to the largest one.
        among: the classes that are ranked, ascending; all if None.
    """
    largest = max(1.0, float(np.abs(logits).max()))
    classes = np.arange(len(logits)) if among is None else among
    if written.rank < 0 or not set(written.top) <= set(classes.tolist()):
        return False
    margin = 2 * noise * largest  # two logits may both be off
    rivals, own = logits[classes], logits[label]
    surely, perhaps = int((rivals > own + margin).sum()), int((rivals >= own - margin).sum()) - 1
    if not surely <= written.rank <= perhaps:
        return False
    top = list(written.top)
    if len(set(top)) < len(top):
        return False
    left = np.setdiff1d(classes, top)
    best_left = logits[left].max(initial=-np.inf)
    falls = all(logits[a] >= logits[b] - margin for a, b in itertools.pairwise(top))
    return falls and bool(not top or logits[top[-1]] >= best_left - margin)


def contradictions_of_rows(
    scores: Scores, labels: NDArray[np.int64], classes: int
) -> dict[str, NDArray[np.int64]]:
    """What is impossible in the rows of a form, in words, and where.

    Args:
        scores: as written; the negative log-likelihoods are not looked at.
        labels: int64 (N,).
        classes: how many the model has.
    """
    rank, top, prob = scores.rank, scores.top, scores.prob
    read = rank >= 0
    ranked = read & (rank < min(scores.known, top.shape[1]))
    place = np.where(ranked, rank, 0)[:, np.newaxis]
    at_place = np.take_along_axis(top, place, axis=1)[:, 0]
    ordered = np.sort(top, axis=1)
    named = (top == labels[:, np.newaxis]).any(axis=1)
    given = np.isfinite(prob)
    filled = np.nan_to_num(prob)
    tests = {
        "a rank or a class that does not exist": (rank >= classes) | (top >= classes).any(axis=1),
        "the label is not at its rank": np.where(ranked, at_place != labels, named),
        "a class twice": ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1),
        "predictions of an image that was not read": ~read
        & ((top >= 0).any(axis=1) | given.any(axis=1)),
        "probabilities that are none": (filled < 0).any(axis=1)
        | (filled.sum(axis=1) > 1 + top.shape[1] * WRITTEN)
        | (filled[:, 1:] > filled[:, :-1] * (1 + WRITTEN)).any(axis=1),
    }
    return {words: np.flatnonzero(where) for words, where in tests.items() if where.any()}


def nll_bounds(scores: Scores) -> tuple[float, float]:
    """What the mean negative log-likelihood of the labels can be, in nats, by their probabilities.

    A label among the top-5 has its probability written down. Any other has at most the smallest of
    those, and at most what they leave.

    Returns:
        The least and the greatest mean, the latter infinite unless all labels are among the top-5.
    """
    read = (scores.rank >= 0) & np.isfinite(scores.prob[:, 0])
    rank, prob = scores.rank[read], scores.prob[read]
    if not len(rank):
        return 0.0, np.inf
    ranked = rank < prob.shape[1]
    own = np.take_along_axis(prob, np.where(ranked, rank, 0)[:, np.newaxis], axis=1)[:, 0]
    rest = np.clip(1 - np.nansum(prob, axis=1), 0, None) + WRITTEN
    most = np.where(ranked, own, np.minimum(np.nanmin(prob, axis=1), rest))
    known = most > _TINY
    nll = -np.log(np.where(known, most, _TINY))
    lowest = float(nll.mean())
    return lowest, lowest if (ranked & known).all() else np.inf


@dataclass
class Audit:
    """What an audit found.

    Attributes:
        population: rows that it has.
        images: rows that were measured again.
        different: rows that rounding cannot explain, each as written and as measured.
        near_ties: rows that differ, but only where rounding may decide.
        contradictions: other disagreements, in sentences.
        unchecked: what could not be checked.
    """

    source: str
    population: int
    images: int
    seed: int
    different: list[dict[str, Any]] = field(default_factory=list)
    near_ties: list[dict[str, Any]] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def rows_different(self) -> int:
        """Images with a different answer of any form."""
        return len({row["path"] for row in self.different})

    @property
    def outcome(self) -> str:
        """``confirmed`` or ``contradicted``."""
        return "contradicted" if self.different or self.contradictions else "confirmed"

    @property
    def exit_code(self) -> int:
        """0 where nothing contradicts the result."""
        return 0 if self.outcome == "confirmed" else 1

    @property
    def largest_share_wrong(self) -> float:
        """Upper bound of the share of wrong rows, at 95 %."""
        wrong = largest_number_wrong(self.population, self.images, self.rows_different)
        return wrong / self.population

    def as_json(self) -> dict[str, Any]:
        """The object of ``--json``."""
        return {
            "outcome": self.outcome,
            "images": self.images,
            "population": self.population,
            "seed": self.seed,
            "different": self.rows_different,
            "near_ties": len({row["path"] for row in self.near_ties}),
            "largest_share_wrong": self.largest_share_wrong,
            "confidence": CONFIDENCE,
            "contradictions": self.contradictions,
            "unchecked": self.unchecked,
            "examples": self.different or self.near_ties,
        }

    def text(self) -> str:
        """A report for a terminal, without a trailing newline."""
        near = len({row["path"] for row in self.near_ties})
        lines = [
            (
                f"{self.source}: {self.images:,} of {self.population:,} rows measured again "
                f"(--seed {self.seed})"
            ),
            f"different: {self.rows_different:,}; near-ties that rounding may decide: {near:,}",
        ]
        lines += [_shown(row) for row in self.different[:SHOWN]]
        if len(self.different) > SHOWN:
            lines.append(f"  ... and {len(self.different) - SHOWN:,} more")
        lines += [f"Contradiction: {line}" for line in self.contradictions]
        unchecked = f", {', '.join(self.unchecked)} not checked" if self.unchecked else ""
        lines += [
            (
                f"At most {100 * self.largest_share_wrong:.2f} % of the rows are wrong "
                f"({100 * CONFIDENCE:.0f} % confidence)."
            ),
            f"{self.outcome.upper()}{unchecked}",
        ]
        return "\n".join(map(printable, lines))


def _shown(row: Mapping[str, Any]) -> str:
    """A row that differs, on one line."""
    written, measured = row["written"], row["measured"]
    answers = [f"rank {each['rank']}, top {each['top']}" for each in (written, measured)]
    if answers[0] == answers[1]:
        answers = [f"prob1 {each['prob1']}" for each in (written, measured)]
    return f"  {row['path']}, {row['form']}: written {answers[0]}; measured {answers[1]}"
