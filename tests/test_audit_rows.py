"""What the rows of a result can say: by hand, and for rows that logits have given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eval.errors import UsageError
from eval.judge.audit import (
    Answer,
    contradictions_of_rows,
    is_near_tie,
    nll_bounds,
    noise_of,
    probabilities_differ,
    rankings_differ,
)
from eval.metrics import Scores
from eval.results.claims import _scores

LABELS = np.array([0, 3, 5, 9, 2, 7, 7, 1])


def given(seed: int = 1, scale: float = 3.0) -> Scores:
    """Of ten classes, with labels among the top-5 and beyond; as a file has it."""
    logits = np.random.default_rng(seed).normal(0, scale, (len(LABELS), 10)).astype(np.float32)
    scores = Scores.of(logits, LABELS)
    scores.prob[:] = [[float(f"{p:.6g}") for p in row] for row in scores.prob]
    return scores


@pytest.mark.parametrize("seed", range(20))
def test_what_logits_give_contradicts_nothing(seed: int) -> None:
    scores = given(seed, scale=10.0 ** (seed % 4 - 1))
    assert contradictions_of_rows(scores, LABELS, 10) == {}
    low, high = nll_bounds(scores)
    assert low - 2e-5 <= scores.mean_nll <= high + 2e-5  # type: ignore[operator]


def test_what_rows_cannot_say() -> None:
    def found(row: int, **changes: object) -> list[str]:
        scores = given()
        for name, value in changes.items():
            getattr(scores, name)[row] = value
        problems = contradictions_of_rows(scores, LABELS, 10)
        assert all(where.tolist() == [row] for where in problems.values())
        return list(problems)

    best = int(given().rank.argmin())
    worst = int(given().rank.argmax())
    assert given().rank[best] < 5 < given().rank[worst]
    assert found(worst, rank=10) == ["a rank or a class that does not exist"]
    assert found(best, rank=7) == ["the label is not at its rank"]
    assert found(worst, rank=0) == ["the label is not at its rank"]
    assert found(worst, rank=-1) == ["predictions of an image that was not read"]
    assert found(worst, prob=0.999999) == ["probabilities that are none"]  # more than 1 in all
    assert found(worst, prob=[0.1, 0.2, 0.1, 0.1, 0.1]) == ["probabilities that are none"]
    assert found(worst, prob=[0.1, 0.1, 0.1, 0.1, -0.1]) == ["probabilities that are none"]
    first = int(given().top[worst, 0])
    twice = [first, first, *given().top[worst, 2:]]
    assert found(worst, top=twice) == ["a class twice"]


def test_bounds_of_the_nll_by_hand() -> None:
    scores = Scores(
        rank=np.array([0, 1, 6]),
        top=np.array([[0, 1, 2, 3, 4]] * 3),
        prob=np.array([[0.5, 0.2, 0.1, 0.1, 0.05]] * 3),
        nll=np.full(3, np.nan),
    )
    low, high = nll_bounds(scores)
    # -ln 0.5 and -ln 0.2; the third label has at most the 0.05 that the five leave.
    assert low == pytest.approx((0.693147 + 1.609438 + 2.995732) / 3, abs=1e-4)
    assert high == np.inf
    scores.rank[2] = 2
    assert nll_bounds(scores) == pytest.approx([(0.693147 + 1.609438 + 2.302585) / 3] * 2, abs=1e-6)
    assert nll_bounds(Scores.empty(2)) == (0.0, np.inf)


def test_probabilities_within_the_noise_of_logits() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 5, (200, 10))
    labels = rng.integers(0, 10, 200)
    e = 0.01
    one = Scores.of(logits, labels)
    other = Scores.of(logits + rng.uniform(-e, e, logits.shape), labels)
    assert not probabilities_differ(one, other, 2 * e).any()
    assert probabilities_differ(one, other, e / 100).mean() > 0.9
    other = Scores.of(logits, labels)
    other.prob[7, 3] *= 1.1
    other.prob[9] = np.nan
    assert np.flatnonzero(probabilities_differ(one, other, 2 * e)).tolist() == [7, 9]
    assert not rankings_differ(one, other).any()
    other.top[3] = other.top[3][::-1]
    other.rank[5] += 1
    assert np.flatnonzero(rankings_differ(one, other)).tolist() == [3, 5]


def test_cells_of_an_image_that_was_not_read_are_empty() -> None:
    table = pd.DataFrame({"f_rank": ["0", ""], "f_top1": ["3", ""], "f_prob1": ["0.5", ""]})
    scores = _scores(Path("x.csv"), table, "f")
    assert scores.rank.tolist() == [0, -1]
    assert scores.top[:, 0].tolist() == [3, -1]
    assert scores.prob[0, 0] == 0.5
    assert np.isnan(scores.prob[1]).all()
    assert (scores.top[:, 1:] == -1).all()  # columns that are not there
    for cell in ("1e30", "2.5", "inf", "x", "-3", "nan"):
        with pytest.raises(UsageError, match=r"x\.csv, f_top1: not "):
            _scores(Path("x.csv"), table.assign(f_top1=["3", cell]), "f")


def test_noise_of_an_unknown_precision_is_that_of_fp32() -> None:
    assert noise_of("unknown") == noise_of("fp32") == 1e-4
    assert noise_of("bf16") == 3e-2


def test_a_near_tie_among_the_classes_of_a_set() -> None:
    logits = np.array([9.0, 5, 4.0001, 4, 3, 2, 1, 0], np.float32)
    among = np.array([1, 2, 3, 4, 5, 6])
    swapped = Answer(1, (1, 3, 2, 4, 5))
    assert is_near_tie(swapped, logits, 3, 1e-4, among)
    assert not is_near_tie(swapped, logits, 3, 1e-7, among)
    assert not is_near_tie(swapped, logits, 3, 1e-4)  # class 0 would be first
    assert not is_near_tie(Answer(1, (0, 3, 2, 4, 5)), logits, 3, 1e-4, among)
