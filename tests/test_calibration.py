from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.results.calibration import confusions, coverage_curve, place_counts, reliability

# Few distinct confidences, so that ties and full bins are common.
answers = st.lists(
    st.tuples(st.integers(0, 20).map(lambda n: n / 20), st.booleans()), min_size=1, max_size=60
)


def columns(rows: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    confidence, correct = zip(*rows, strict=True)
    return np.array(confidence, float), np.array(correct, bool)


def test_ece_worked_by_hand() -> None:
    # Bin (0, 0.5]: confidence 0.2, half right. Bin (0.5, 1]: confidence 0.85, half right.
    bins = reliability(np.array([0.1, 0.8, 0.3, 0.9]), np.array([False, True, True, False]), bins=2)
    assert bins.count.tolist() == [2, 2]
    assert bins.confidence.tolist() == pytest.approx([0.2, 0.85])
    assert bins.accuracy.tolist() == [0.5, 0.5]
    assert bins.ece == pytest.approx((0.3 + 0.35) / 2)


def test_bins_weigh_by_their_images() -> None:
    # Three images that are 0.6 sure and right, one that is 0.1 sure and wrong.
    bins = reliability(np.array([0.6, 0.6, 0.6, 0.1]), np.array([True, True, True, False]), bins=2)
    assert bins.ece == pytest.approx(0.75 * 0.4 + 0.25 * 0.1)


def test_perfectly_calibrated_is_0() -> None:
    confidence = np.repeat([0.2, 0.5, 1.0], 10)
    correct = np.concatenate([np.arange(10) < right for right in (2, 5, 10)])
    assert reliability(confidence, correct).ece == pytest.approx(0)


def test_always_sure_and_always_wrong_is_1() -> None:
    assert reliability(np.ones(7), np.zeros(7, bool)).ece == 1


def test_an_edge_belongs_to_the_lower_bin_as_in_the_paper() -> None:
    confidence = np.array([0.0, 1 / 15, np.nextafter(1 / 15, 1), 14 / 15, 1.0])
    count = reliability(confidence, np.ones(5, bool)).count
    assert len(count) == 15
    assert count[[0, 1, 13, 14]].tolist() == [2, 1, 1, 1]


@given(answers, st.integers(1, 30))
def test_ece_is_between_the_mean_gap_and_1(rows: list[tuple[float, bool]], bins: int) -> None:
    confidence, correct = columns(rows)
    result = reliability(confidence, correct, bins)
    assert result.count.sum() == len(rows)
    assert abs(confidence.mean() - correct.mean()) - 1e-9 <= result.ece <= 1 + 1e-9


@given(answers, st.randoms(use_true_random=False))
def test_order_does_not_matter(rows: list[tuple[float, bool]], random: object) -> None:
    shuffled = rows.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert reliability(*columns(rows)).ece == pytest.approx(reliability(*columns(shuffled)).ece)
    one, other = coverage_curve(*columns(rows)), coverage_curve(*columns(shuffled))
    assert one.accuracy.tolist() == other.accuracy.tolist()


def test_coverage_worked_by_hand_keeps_equals_together() -> None:
    curve = coverage_curve(np.array([0.5, 0.9, 0.2, 0.5]), np.array([False, True, False, True]))
    assert curve.confidence.tolist() == [0.9, 0.5, 0.2]
    assert curve.coverage.tolist() == [0.25, 0.75, 1]
    assert curve.accuracy.tolist() == pytest.approx([1, 2 / 3, 1 / 2])


def test_coverage_of_a_confidence_and_of_a_share() -> None:
    curve = coverage_curve(np.array([0.5, 0.9, 0.2, 0.5]), np.array([False, True, False, True]))
    coverage, accuracy = curve.from_confidence(np.array([0.95, 0.9, 0.4, 0.0]))
    assert coverage.tolist() == [0, 0.25, 0.75, 1]
    assert accuracy.tolist() == pytest.approx([np.nan, 1, 2 / 3, 1 / 2], nan_ok=True)
    assert [curve.keeping(share) for share in (0, 0.25, 0.26, 1, 1.1)] == [0, 0, 1, 2, 2]


# No subnormal numbers: a runtime that ran in this process before may flush them to zero.
@given(answers, st.floats(0, 1, allow_subnormal=False))
def test_coverage_is_what_filtering_gives(rows: list[tuple[float, bool]], threshold: float) -> None:
    confidence, correct = columns(rows)
    curve = coverage_curve(confidence, correct)
    coverage, accuracy = curve.from_confidence(np.array([threshold]))
    kept = confidence >= threshold
    assert coverage[0] == pytest.approx(kept.mean())
    if kept.any():
        assert accuracy[0] == pytest.approx(correct[kept].mean())
    else:
        assert np.isnan(accuracy[0])
    assert curve.accuracy[-1] == pytest.approx(correct.mean())
    assert (np.diff(curve.coverage) > 0).all()


@pytest.mark.parametrize("function", [reliability, coverage_curve])
def test_no_answers_is_an_error(function: object) -> None:
    with pytest.raises(ValueError, match="at least one"):
        function(np.empty(0), np.empty(0, bool))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"of shape \(2,\) and predictions of shape \(1,\)"):
        function(np.ones(2), np.ones(1, bool))  # type: ignore[operator]


def test_confusions_worked_by_hand() -> None:
    labels = np.array([1, 1, 1, 2, 3, 3, 4])
    predicted = np.array([2, 2, 1, 1, 4, 4, 4])
    assert confusions(labels, predicted).to_dict("split")["data"] == [
        [1, 2, 2, 1],
        [3, 4, 2, 0],
        [2, 1, 1, 2],
    ]


def test_no_confusions() -> None:
    table = confusions(np.array([1, 2]), np.array([1, 2]))
    assert list(table.columns) == ["label", "predicted", "images", "reverse"]
    assert table.empty


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=60))
def test_confusions_count_each_mistake_once(rows: list[tuple[int, int]]) -> None:
    labels = np.array([label for label, _ in rows], np.int64)
    predicted = np.array([answer for _, answer in rows], np.int64)
    table = confusions(labels, predicted)
    assert table["images"].sum() == (labels != predicted).sum()
    assert table["images"].is_monotonic_decreasing
    for row in table.itertuples():
        assert row.reverse == rows.count((row.predicted, row.label))


def test_places_worked_by_hand() -> None:
    rank = np.array([0, 0, 0, 1, 4, 5, 9, 10, 99, 100, 999])
    assert place_counts(rank) == [
        ("1", 3),
        ("2", 1),
        ("3", 0),
        ("4", 0),
        ("5", 1),
        ("6–10", 2),  # noqa: RUF001
        ("11–20", 1),  # noqa: RUF001
        ("21–50", 0),  # noqa: RUF001
        ("51–100", 1),  # noqa: RUF001
        ("101–1000", 2),  # noqa: RUF001
    ]


@pytest.mark.parametrize(
    ("listed", "last"),
    [
        (5, [("5", 1), ("6–1000", 2)]),  # noqa: RUF001
        (7, [("5", 1), ("6–7", 1), ("8–1000", 1)]),  # noqa: RUF001
        (10, [("5", 1), ("6–10", 2), ("11–1000", 0)]),  # noqa: RUF001
    ],
)
def test_places_of_predictions_that_rank_some_classes(
    listed: int, last: list[tuple[str, int]]
) -> None:
    """A label that is not among them has a place behind them, and nobody knows which."""
    assert place_counts(np.array([0, 4, 5, 7]), listed)[4:] == last
