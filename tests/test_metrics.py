"""Counting, against definitions written another way and against values worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eval.errors import LogitsError
from eval.metrics import (
    ClassFigures,
    Kind,
    Scores,
    check_logits,
    kind_of,
    log_softmax,
    padded,
    percent,
    rank_of_label,
    together,
    top_classes,
    wilson_interval,
    without_background,
)

# Few distinct values, so that ties are common.
logit_rows = hnp.arrays(np.float32, (4, 7), elements=st.integers(-2, 2).map(float))
label_rows = hnp.arrays(np.int64, 4, elements=st.integers(0, 6))


@given(logit_rows, label_rows)
def test_rank_is_the_place_in_a_stable_sort(logits: np.ndarray, labels: np.ndarray) -> None:
    for row, label, rank in zip(logits, labels, rank_of_label(logits, labels), strict=True):
        order = sorted(range(7), key=lambda c: (-row[c], c))
        assert order.index(label) == rank


@given(logit_rows, label_rows)
def test_rank_and_top_classes_agree(logits: np.ndarray, labels: np.ndarray) -> None:
    ranks, top = rank_of_label(logits, labels), top_classes(logits)
    for label, rank, classes in zip(labels, ranks, top, strict=True):
        assert (label in classes) == (rank < 5)
        if rank < 5:
            assert classes[rank] == label


@given(logit_rows, label_rows)
def test_correct_grows_with_k_to_all(logits: np.ndarray, labels: np.ndarray) -> None:
    scores = Scores.of(logits, labels)
    counts = [scores.correct(k) for k in range(1, 8)]
    assert counts == sorted(counts)
    assert counts[-1] == len(labels)


def test_counts_by_hand() -> None:
    logits = np.array([[9, 1, 2, 3, 4, 5], [1, 9, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]], np.float32)
    labels = np.array([0, 0, 4])
    scores = Scores.of(logits, labels)
    assert scores.rank.tolist() == [0, 5, 1]
    assert scores.correct(1) == 1
    assert scores.correct(5) == 2
    assert scores.correct_per_class(labels, 5, 6).tolist() == [1, 0, 0, 0, 1, 0]
    assert scores.top[1].tolist() == [1, 5, 4, 3, 2]


def test_ties_go_to_the_lower_index() -> None:
    logits = np.array([[1.0, 2.0, 2.0, 2.0]])
    for label, rank in ((1, 0), (2, 1), (3, 2), (0, 3)):
        assert rank_of_label(logits, np.array([label])).tolist() == [rank]
    assert top_classes(logits)[0].tolist() == [1, 2, 3, 0]


def test_a_batch_is_counted_as_its_rows_are() -> None:
    rng = np.random.RandomState(0)
    logits, labels = rng.randn(20, 10).astype(np.float32), rng.randint(0, 10, 20)
    whole = Scores.of(logits, labels)
    rows = [Scores.of(logits[i : i + 1], labels[i : i + 1]) for i in range(20)]
    assert whole.correct(1) == sum(row.correct(1) for row in rows)
    assert whole.nll.tolist() == [row.nll[0] for row in rows]


def test_probabilities_and_nll_by_hand() -> None:
    scores = Scores.of(np.array([[0.0, math.log(3.0), 0.0, 0, 0]]), np.array([1]))
    # softmax: 3 / 7 and 1 / 7
    assert scores.prob[0] == pytest.approx([3 / 7] + [1 / 7] * 4, abs=1e-15)
    assert scores.nll[0] == pytest.approx(math.log(7 / 3), abs=1e-15)


def test_large_logits_do_not_overflow() -> None:
    row = log_softmax(np.array([[1000.0, 0.0]], np.float32))
    assert row[0].tolist() == [0.0, -1000.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_logits_are_an_error(bad: float) -> None:
    logits = np.zeros((3, 4), np.float32) + np.arange(4)
    logits[1, 2] = bad
    with pytest.raises(LogitsError, match=r"logits of b contain NaN or infinity \(1 of 3"):
        check_logits(logits, ["a", "b", "c"])


def test_refusals_in_words() -> None:
    logits = np.array([[0.0, 1.0], [0.0, np.nan], [np.inf, 1.0]])
    with pytest.raises(LogitsError) as caught:
        check_logits(logits, ["a", "b", "c"])
    assert str(caught.value) == (
        "The logits of b contain NaN or infinity (2 of 3 images in this batch).\n"
        "Check the weights; with fp16, try --precision bf16 or fp32."
    )
    with pytest.raises(LogitsError) as caught:
        check_logits(np.array([[1.0, 2.0], [3.0, 3.0], [4.0, 4.0]]), ["a", "b", "c"])
    assert str(caught.value) == (
        "The logits of b have the same value for every class.\n"
        "No trained model does this: check the weights."
    )
    check_logits(np.array([[1.0, 2.0, 1.0], [-3.0, -3.0, -2.0]]), ["a", "b"])


def test_constant_logits_are_an_error() -> None:
    logits = np.array([[1.0, 2.0], [3.0, 3.0]])
    with pytest.raises(LogitsError, match="logits of b have the same value"):
        check_logits(logits, ["a", "b"])


def test_nan_would_have_ranked_first() -> None:
    """Why finiteness is checked before: the failure that this guards against."""
    assert rank_of_label(np.full((1, 10), np.nan), np.array([7])).tolist() == [0]


def test_wilson_interval_by_hand() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81/263 and 0/20
    low, high = wilson_interval(81, 263)
    assert (round(low, 2), round(high, 2)) == (25.53, 36.62)
    low, high = wilson_interval(0, 20)
    assert low == 0.0
    assert round(high, 2) == 16.11


@given(st.integers(1, 1000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share(counts: tuple[int, int]) -> None:
    correct, total = counts
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= percent(correct, total) + 1e-9
    assert percent(correct, total) - 1e-9 <= high <= 100


def test_wilson_interval_with_other_quantiles() -> None:
    # z = 1, 1 of 1: center 1 + 1/2, spread sqrt(1/4), scale 100 / 2
    assert wilson_interval(1, 1, 1.0) == (50.0, 100.0)
    # z = 3, 3 of 4: center 3/4 + 9/8, spread 3 * sqrt(3/64 + 9/64), scale 100 / (13/4)
    spread = 3 * math.sqrt(12 / 64)
    low, high = wilson_interval(3, 4, 3.0)
    assert low == pytest.approx(100 * (15 / 8 - spread) / (13 / 4), abs=1e-12)
    assert high == pytest.approx(100 * (15 / 8 + spread) / (13 / 4), abs=1e-12)


@pytest.mark.parametrize("images", range(1, 100))
def test_wilson_interval_never_leaves_the_percentages(images: int) -> None:
    """Rounding would take it past the ends, for some numbers of images."""
    assert wilson_interval(0, images)[0] >= 0.0
    assert wilson_interval(images, images)[1] <= 100.0


def test_percentages_by_hand() -> None:
    assert percent(0, 1) == 0.0
    assert percent(1, 1) == 100.0
    assert percent(1, 8) == 12.5
    assert percent(38_520, 50_000) == 77.04


@pytest.mark.parametrize("total", [0, -1])
def test_no_accuracy_of_nothing(total: int) -> None:
    with pytest.raises(ValueError, match=r"^Accuracy is undefined for zero images\.$"):
        percent(0, total)
    with pytest.raises(ValueError, match="zero images"):
        wilson_interval(0, total)


def test_mean_nll_is_of_the_images_with_a_prediction() -> None:
    scores = Scores.empty(4)
    assert scores.mean_nll is None
    scores.nll[1:3] = (1.0, 4.0)
    assert scores.mean_nll == 2.5


def test_fewer_than_five_classes_are_filled_up() -> None:
    scores = Scores.of(np.array([[0.0, math.log(3.0)]]), np.array([0]))
    assert scores.rank.tolist() == [1]
    assert scores.top.tolist() == [[1, 0, -1, -1, -1]]
    assert scores.prob[0, :2] == pytest.approx([0.75, 0.25], abs=1e-15)
    assert np.isnan(scores.prob[0, 2:]).all()
    assert scores.nll[0] == pytest.approx(math.log(4.0), abs=1e-15)
    assert padded(np.zeros((1, 5)), 7.0).tolist() == [[0.0] * 5]
    assert padded(np.zeros((2, 4)), 7.0).tolist() == [[0.0, 0.0, 0.0, 0.0, 7.0]] * 2


def test_only_the_classes_asked_for_are_scored() -> None:
    logits = np.array([[9.0, 0.0, 8.0, math.log(3.0), 7.0, 0.0]])
    among = np.array([1, 3, 5])
    scores = Scores.of(logits, np.array([5]), among)
    # Among 1, 3 and 5 with the odds 1 : 3 : 1, the last is behind 3, and behind 1 by its index.
    assert scores.rank.tolist() == [2]
    assert scores.top.tolist() == [[3, 1, 5, -1, -1]]
    assert scores.prob[0, :3] == pytest.approx([0.6, 0.2, 0.2], abs=1e-15)
    assert scores.nll[0] == pytest.approx(math.log(5.0), abs=1e-15)
    first = Scores.of(logits, np.array([1]), np.array([1, 3]))
    assert first.top.tolist() == [[3, 1, -1, -1, -1]]


def test_batches_are_put_at_their_places() -> None:
    scores = Scores.empty(4)
    batch = Scores.of(np.array([[5.0, 4, 3, 2, 1, 0], [0.0, 1, 2, 3, 4, 5]]), np.array([1, 2]))
    scores.put(np.array([3, 1]), batch)
    assert scores.rank.tolist() == [-1, 3, -1, 1]
    assert scores.top.tolist() == [[-1] * 5, [5, 4, 3, 2, 1], [-1] * 5, [0, 1, 2, 3, 4]]
    assert np.isnan(scores.prob[[0, 2]]).all()
    assert scores.prob[[3, 1]].tolist() == batch.prob.tolist()
    assert np.isnan(scores.nll[[0, 2]]).all()
    assert scores.nll[[3, 1]].tolist() == batch.nll.tolist()
    assert scores.rank.dtype == scores.top.dtype == np.int64
    assert [scores.correct(k) for k in (1, 2, 3, 4)] == [0, 1, 1, 2]
    labels = np.array([2, 0, 1, 2])
    assert scores.correct_per_class(labels, 2, 4).tolist() == [0, 0, 1, 0]
    assert scores.correct_per_class(labels, 5, 3).tolist() == [1, 0, 1]


def test_log_softmax_by_hand() -> None:
    rows = log_softmax(np.array([[0.0, math.log(3.0)], [1.0, 1.0]], np.float64))
    assert rows[0] == pytest.approx([math.log(0.25), math.log(0.75)], abs=1e-15)
    assert rows[1] == pytest.approx([math.log(0.5)] * 2, abs=1e-15)
    # float16 would lose what float64 keeps.
    assert log_softmax(np.zeros((1, 3), np.float16)).dtype == np.float64


def test_unanswered_images_are_never_correct() -> None:
    scores = Scores.empty(3)
    assert scores.correct(1) == scores.correct(1000) == 0


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([[0.2, 0.3, 0.5], [1, 0, 0]], Kind.PROBABILITIES),
        ([[0.2, 0.3, 0.495]], Kind.PROBABILITIES),
        ([[0.2, 0.3, 0.5], [0.9, 0.8, 0]], Kind.SCORES),
        ([[np.log(0.2), np.log(0.8)]], Kind.LOG_PROBABILITIES),
        ([[-0.2, -0.3, -0.5]], Kind.LOGITS),
        ([[0.2, 0.3, 1.5]], Kind.LOGITS),
        ([[3, -3, 1]], Kind.LOGITS),
    ],
)
def test_what_outputs_are(rows: list[list[float]], kind: Kind) -> None:
    assert kind_of(np.array(rows)) is kind


@pytest.mark.parametrize(
    ("kinds", "kind"),
    [
        ([Kind.PROBABILITIES, Kind.PROBABILITIES], Kind.PROBABILITIES),
        ([Kind.SCORES, Kind.PROBABILITIES], Kind.SCORES),
        ([Kind.SCORES, Kind.LOGITS], Kind.LOGITS),
        ([Kind.LOG_PROBABILITIES, Kind.LOGITS], Kind.LOGITS),
    ],
)
def test_parts_of_outputs(kinds: list[Kind], kind: Kind) -> None:
    assert together(kinds) is kind


LABEL_2 = np.array([2])


def test_probabilities_are_used_as_they_are() -> None:
    rows = np.array([[0.1, 0.6, 0.2, 0.1]])
    scores = Scores.of(rows, LABEL_2, kind=Kind.PROBABILITIES)
    assert scores.prob[0, :4].tolist() == [0.6, 0.2, 0.1, 0.1]
    assert scores.nll.tolist() == [-math.log(0.2)]
    assert (scores.rank.tolist(), scores.tied.tolist()) == ([1], [False])
    # Among the classes 0 and 2, as if the model had no others: 1/3 and 2/3.
    part = Scores.of(rows, LABEL_2, np.array([0, 2]), Kind.PROBABILITIES)
    assert part.prob[0, :2] == pytest.approx([2 / 3, 1 / 3], rel=1e-12)
    assert part.nll == pytest.approx([-math.log(2 / 3)], rel=1e-12)
    assert part.top[0, :2].tolist() == [2, 0]


def test_a_probability_of_zero_has_no_likelihood() -> None:
    rows = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    scores = Scores.of(rows, np.array([2, 2]), kind=Kind.PROBABILITIES)
    assert scores.nll.tolist() == [math.inf, 0]
    assert scores.mean_nll is None
    assert scores.tied.tolist() == [True, False]


def test_scores_only_rank() -> None:
    scores = Scores.of(np.array([[1.0, 0.3, 1.0]]), LABEL_2, kind=Kind.SCORES)
    assert scores.rank.tolist() == [1]  # the lower index of two that are equal counts
    assert scores.top[0, :3].tolist() == [0, 2, 1]
    assert np.isnan(scores.prob).all()
    assert scores.mean_nll is None
    assert scores.tied.tolist() == [True]


def test_a_predicted_class_alone() -> None:
    """One prediction for each image; none where it is the background, which was left out."""
    rows = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    scores = Scores.of(rows, np.array([1, 0, 0]), kind=Kind.CLASSES)
    assert scores.rank.tolist() == [0, 1, 1]
    assert scores.top.tolist() == [[1] + 4 * [-1], [2] + 4 * [-1], 5 * [-1]]
    assert np.isnan(scores.prob).all()
    assert (scores.known, scores.mean_nll, scores.tied.any()) == (1, None, False)


def test_without_a_background_class() -> None:
    logits = np.array([[7.0, 1.0, 2.0]])
    assert without_background(logits, Kind.LOGITS).tolist() == [[1.0, 2.0]]
    rows = np.array([[0.6, 0.1, 0.3]])
    found = without_background(rows, Kind.PROBABILITIES)
    assert found[0] == pytest.approx([0.25, 0.75], rel=1e-12)


def test_what_is_no_probability_although_others_are() -> None:
    rows = np.array([[0.4, 0.6], [0.5, 1.5]])
    check_logits(rows[:1], ["a"], Kind.PROBABILITIES)
    with pytest.raises(LogitsError, match="The outputs of b are no probabilities"):
        check_logits(rows, ["a", "b"], Kind.PROBABILITIES)


def predicted(top1: list[int], labels: list[int]) -> tuple[Scores, np.ndarray]:
    """Scores of images whose top-1 prediction is known; -1 for one that was not read."""
    scores = Scores.empty(len(top1))
    scores.top[:, 0] = top1
    scores.rank[:] = [
        -1 if p < 0 else int(p != label) for p, label in zip(top1, labels, strict=True)
    ]
    return scores, np.array(labels)


def test_figures_of_classes_by_hand() -> None:
    """Five classes: two of three right; one of two, of which one cannot be read; never predicted;
    predicted without images; neither."""
    scores, labels = predicted([0, 0, 3, 1, -1, 0], [0, 0, 0, 1, 1, 2])
    found = ClassFigures.of(scores, labels, 5)
    nan = math.nan
    np.testing.assert_allclose(found.precision, [200 / 3, 100, nan, 0, nan])
    np.testing.assert_allclose(found.recall, [200 / 3, 50, 0, nan, nan])
    np.testing.assert_allclose(found.f1, [200 / 3, 200 / 3, 0, 0, nan])
    assert found.balanced_accuracy == pytest.approx((200 / 3 + 50 + 0) / 3)
    assert found.macro_precision == pytest.approx((200 / 3 + 100 + 0) / 3)
    assert found.macro_f1 == pytest.approx((200 / 3 + 200 / 3 + 0) / 3)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30))
def test_means_over_classes_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="it comes with NNCF")
    top1, labels = [p for p, _ in pairs], [label for _, label in pairs]
    found = ClassFigures.of(*predicted(top1, labels), 6)
    options = {"labels": sorted(set(labels)), "average": "macro", "zero_division": 0}
    assert found.macro_precision / 100 == pytest.approx(
        metrics.precision_score(labels, top1, **options)
    )
    assert found.balanced_accuracy / 100 == pytest.approx(
        metrics.recall_score(labels, top1, **options)
    )
    assert found.macro_f1 / 100 == pytest.approx(metrics.f1_score(labels, top1, **options))
