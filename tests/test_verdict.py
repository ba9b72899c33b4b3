"""From counts to verdicts and exit codes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_evaluations import counted

from eval.config import Reference, Tolerance, VariantConfig, load_variant
from eval.images.sets import ImageSet
from eval.judge.verdict import FormResult, Judgment, Verdict, expected_correct, gravest, judge
from eval.measure.measurement import Measurement
from eval.metrics import Scores


def verdict(measured: Measurement, variant: str = "base_ssld", preprocess: str = "paddle",
            precision: str = "fp32") -> Verdict:  # fmt: skip
    return judge(measured, load_variant(variant), preprocess, precision).verdict


@pytest.mark.parametrize(
    ("top1", "top5", "expected"),
    [
        # 80.07 / 94.87 of 50,000 are 40,035 / 47,435; the tolerance of `paddle` is 10 images.
        (40_035, 47_435, Verdict.PASS),
        (40_025, 47_445, Verdict.PASS),
        (40_024, 47_435, Verdict.FAIL),
        (40_046, 47_435, Verdict.FAIL),
        (40_035, 47_424, Verdict.FAIL),
        (40_035, 47_446, Verdict.FAIL),
    ],
)
def test_reported_figures_are_compared_in_images(top1: int, top5: int, expected: Verdict) -> None:
    assert verdict(counted(top1, top5)) == expected


def test_base_is_compared_with_its_own_figures() -> None:
    assert verdict(counted(38_520, 46_635), "base") == Verdict.PASS
    assert verdict(counted(40_035, 47_435), "base") == Verdict.FAIL


def test_torchvision_is_looser_than_paddle() -> None:
    measured = counted(40_035 - 140, 47_435)
    assert verdict(measured, preprocess="torchvision") == Verdict.PASS
    assert verdict(measured, preprocess="paddle") == Verdict.FAIL
    assert verdict(counted(40_035 - 151, 47_435), preprocess="torchvision") == Verdict.FAIL


def test_what_is_not_comparable_is_not_compared() -> None:
    exact = counted(40_035, 47_435)
    assert verdict(exact, preprocess="squash") == Verdict.NO_REFERENCE
    assert verdict(exact, precision="bf16") == Verdict.NO_REFERENCE
    assert verdict(counted(36_985, 0), "small") == Verdict.NO_REFERENCE


def test_a_subset_never_passes() -> None:
    assert verdict(counted(40_035, 47_435, images=49_999)) == Verdict.PARTIAL


def test_bad_images_make_it_incomplete() -> None:
    assert verdict(counted(40_035, 47_435, bad={3: "truncated"})) == Verdict.INCOMPLETE
    assert verdict(counted(1, 1, images=9, bad={3: "truncated"})) == Verdict.INCOMPLETE, (
        "a subset with bad images too"
    )


def test_exit_codes() -> None:
    codes = {verdict.value: verdict.exit_code for verdict in Verdict}
    assert codes == {
        "PASS": 0, "FAIL": 1, "PARTIAL": 0, "INCOMPLETE": 3, "NO_REFERENCE": 0, "DISAGREE": 5,
    }  # fmt: skip


def test_reference_per_preprocessing() -> None:
    config = VariantConfig(
        "demo", "base", 100,
        {"paddle": Reference("known", 50.0, 60.0)}, {"paddle": Tolerance(0, "known")},
    )  # fmt: skip
    measured = counted(50, 60, images=100)
    assert judge(measured, config, "paddle", "fp32").verdict == Verdict.PASS
    assert judge(measured, config, "squash", "fp32").verdict == Verdict.NO_REFERENCE
    off = counted(51, 60, images=100)
    assert judge(off, config, "paddle", "fp32").verdict == Verdict.FAIL


def test_figures_are_unrounded() -> None:
    judgment = judge(counted(40_001, 47_001), load_variant("base"), "paddle", "fp32")
    (result,) = judgment.forms
    assert result.accuracy(1) == 80.002
    assert result.accuracy(5) == 94.002
    assert result.delta(1) == pytest.approx(2.962)
    assert result.delta(5) == pytest.approx(0.732)
    assert (result.gap(1), result.gap(5)) == (1481, 366)
    assert "top-1 +1,481, top-5 +366 images" in result.reason
    assert result.expected == {1: 38_520, 5: 46_635}


@pytest.mark.parametrize(
    ("accuracy", "images", "count"),
    [
        (77.04, 50_000, 38_520), (80.07, 50_000, 40_035), (94.87, 50_000, 47_435),
        (50.0, 9, 5), (50.0, 10, 5), (43.7, 1000, 437), (0.0, 7, 0), (100.0, 7, 7),
        (66.67, 3, 2), (33.33, 3, 1), (16.6, 3, 0), (16.7, 3, 1),
        # Halves are rounded up, where `round` would give the even neighbor: 762 and 320.
        (76.25, 1000, 763), (32.05, 1000, 321),
        # The float product is below the half: 32.05 * 1000 / 100 is 320.49999999999994.
        (16.15, 1000, 162), (57.485, 100_000, 57_485),
    ],
)  # fmt: skip
def test_a_reported_accuracy_is_the_nearest_count(accuracy: float, images: int, count: int) -> None:
    assert expected_correct(accuracy, images) == count


@given(st.integers(1, 50_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_unrounded_accuracy_gives_its_own_count(counts: tuple[int, int]) -> None:
    correct, images = counts
    assert expected_correct(100 * correct / images, images) == correct


def two_forms(images: int = 9, right: int = 9, difference: float = 0.011) -> Measurement:
    """Both forms with the same counts, and one logit that differs; the limit is 0.01."""
    forms = {}
    for form in ("unfused", "reparameterized"):
        forms[form] = Scores.empty(images)
        forms[form].rank[:] = 10
        forms[form].rank[:right] = 0
        forms[form].top[:] = 0
    differences = np.zeros(images)
    differences[4] = difference  # the limit is 1e-3 of the largest logit, 10
    return counted(0, 0, images=images, scores=forms, logit_diff=differences)


def of_nine(reported: float) -> VariantConfig:
    reference = {"paddle": Reference("known", reported)}
    return VariantConfig("own", "base", 9, reference, {"paddle": Tolerance(0, "known")})


def test_forms_that_disagree_never_pass() -> None:
    """A full set, with exactly the reported counts: still no verdict that can be relied on."""
    judgment = judge(two_forms(), of_nine(100.0), "paddle", "fp32")
    assert judgment.verdict == Verdict.DISAGREE
    assert [result.verdict for result in judgment.forms] == [Verdict.DISAGREE] * 2
    assert judgment.exit_code == 5
    assert "a logit differs by 0.011 (limit 0.01)" in judgment.disagreement
    assert "n01440764/x.JPEG" in judgment.disagreement
    fits = judge(two_forms(difference=0.01), of_nine(100.0), "paddle", "fp32")
    assert (fits.verdict, fits.disagreement) == (Verdict.PASS, "")
    fits = judge(two_forms(difference=0.009), of_nine(100.0), "paddle", "fp32")
    assert fits.verdict == Verdict.PASS


def test_a_disagreement_outweighs_all_else() -> None:
    failed = judge(two_forms(right=3), of_nine(100.0), "paddle", "fp32")
    assert failed.verdict == Verdict.DISAGREE
    bad = two_forms()
    bad.bad[0] = "truncated"
    assert judge(bad, of_nine(100.0), "paddle", "fp32").verdict == Verdict.DISAGREE
    partial = judge(two_forms(), load_variant("base"), "paddle", "fp32")
    assert partial.verdict == Verdict.DISAGREE


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_lower_precisions_round_the_forms_differently(precision: str) -> None:
    judgment = judge(two_forms(), of_nine(100.0), "paddle", precision)
    assert (judgment.verdict, judgment.disagreement) == (Verdict.NO_REFERENCE, "")


def test_weights_that_are_stored_in_less_are_not_compared_but_their_forms_are() -> None:
    judgment = judge(two_forms(), of_nine(100.0), "paddle", "fp16 weights")
    assert judgment.verdict == Verdict.DISAGREE
    alike = judge(two_forms(difference=0.0), of_nine(100.0), "paddle", "fp16 weights")
    assert (alike.verdict, alike.disagreement) == (Verdict.NO_REFERENCE, "")


def test_small_logits_have_an_absolute_limit() -> None:
    measured = two_forms(difference=0.0011)
    measured.largest_logit = 0.1
    judgment = judge(measured, of_nine(100.0), "paddle", "fp32")
    assert judgment.verdict == Verdict.DISAGREE
    assert "limit 0.001" in judgment.disagreement
    measured.logit_diff[4] = 0.0009
    assert judge(measured, of_nine(100.0), "paddle", "fp32").verdict == Verdict.PASS


def test_a_disagreement_in_words() -> None:
    measured = two_forms(difference=0.01234)
    measured.scores["unfused"].top[2:5, 0] = 7
    judgment = judge(measured, of_nine(100.0), "paddle", "fp32")
    assert judgment.disagreement == (
        "The unfused and the reparameterized form disagree: a logit differs by 0.0123 (limit 0.01)"
        " on n01440764/x.JPEG, 3 predictions flip.\n"
        "The reparameterization does not preserve these weights: do not deploy it."
    )
    assert {result.reason for result in judgment.forms} == {
        "the two forms give different predictions"
    }


def test_one_form_cannot_disagree() -> None:
    measured = counted(9, 9, images=9, logit_diff=np.full(9, np.nan), largest_logit=None)
    judgment = judge(measured, of_nine(100.0), "paddle", "fp32")
    assert (judgment.verdict, judgment.disagreement) == (Verdict.PASS, "")


def test_without_a_largest_logit_the_limit_is_absolute() -> None:
    measured = two_forms(difference=0.0011)
    measured.largest_logit = None
    assert "limit 0.001)" in judge(measured, of_nine(100.0), "paddle", "fp32").disagreement


def test_every_field_of_a_full_set() -> None:
    (result,) = judge(counted(9, 9, images=9), of_nine(100.0), "paddle", "fp32").forms
    assert result == FormResult(
        form="unfused", images=9, images_expected=9, correct={1: 9, 5: 9},
        reference={1: 100.0, 5: None}, reference_source="known", tolerance=0,
        verdict=Verdict.PASS,
        reason="top-1 +0 images vs. reference; tolerance 0",
        expected={1: 9}, anytime=None,
    )  # fmt: skip
    assert (result.gap(1), result.gap(5)) == (0, None)
    assert (result.delta(1), result.delta(5)) == (0.0, None)


def test_every_field_of_a_part() -> None:
    (result,) = judge(counted(2, 4, images=5), of_nine(100.0), "paddle", "fp32").forms
    assert (result.images, result.images_expected) == (5, 9)
    assert result.expected == {}
    assert (result.gap(1), result.delta(1)) == (None, pytest.approx(-60.0))
    assert result.tolerance == 0
    assert result.reason == "5 of 9 images: a part of the set is not compared"
    # Of 9 images, 2 of 5 right leave 2 to 6 right ones possible.
    assert result.anytime == (pytest.approx(100 * 2 / 9), pytest.approx(100 * 6 / 9))
    assert result.interval() == result.interval(1)
    assert result.interval(5)[0] > 37  # Wilson's interval of 4 of 5: 37.6 to 96.4
    assert result.interval(1)[0] == pytest.approx(11.762077, abs=1e-6)  # of 2 of 5
    assert result.interval(1)[1] == pytest.approx(76.927572, abs=1e-6)


def test_a_bad_image_in_words() -> None:
    measured = counted(8, 8, images=9, bad={3: "truncated"})
    (result,) = judge(measured, of_nine(100.0), "paddle", "fp32").forms
    assert result.reason == (
        "1 of 9 images cannot be decoded and count as wrong: not compared with the reference"
    )
    assert (result.expected, result.gap(1)) == ({}, None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": 8}, "9 images, but the reference is for 8: not compared"),
        ({"reference": {}}, "own has no reported figure to compare with"),
        ({"reference": {"": Reference("x")}}, "own has no reported figure to compare with"),
        (
            {"reference": {"": Reference("x", 1.0, gated=False)}},
            "the reported figure is for information only",
        ),
        ({"tolerance": {}}, "own has no tolerance for the preprocessing paddle: not compared"),
    ],
)
def test_why_nothing_is_compared(change: dict[str, Any], reason: str) -> None:
    config = dataclasses.replace(of_nine(100.0), **change)
    (result,) = judge(counted(9, 9, images=9), config, "paddle", "fp32").forms
    assert (result.verdict, result.reason) == (Verdict.NO_REFERENCE, reason)
    assert (result.tolerance is None) == ("images" not in change)


def test_another_precision_in_words() -> None:
    (result,) = judge(counted(9, 9, images=9), of_nine(100.0), "paddle", "bf16").forms
    assert result.reason == "the reported figures are fp32: a bf16 run is not compared with them"
    assert result.reference_source == "known"


def test_another_set_than_the_validation_set_is_not_compared() -> None:
    measured = counted(9, 9, images=9)
    measured.valset = dataclasses.replace(measured.valset, image_set=ImageSet("own set", 9))
    (result,) = judge(measured, of_nine(100.0), "paddle", "fp32").forms
    assert result.verdict == Verdict.NO_REFERENCE
    assert result.reason == ("own set: the reported figures are for the ILSVRC2012 validation set")
    assert result.reference == {1: None, 5: None}
    assert (result.reference_source, result.tolerance, result.expected) == ("", None, {})
    measured.valset = dataclasses.replace(measured.valset, image_set=ImageSet("own set", 10))
    (result,) = judge(measured, of_nine(100.0), "paddle", "fp32").forms
    assert (result.verdict, result.images_expected) == (Verdict.PARTIAL, 10)
    measured.valset = dataclasses.replace(measured.valset, image_set=ImageSet("own set", None))
    (result,) = judge(measured, of_nine(100.0), "paddle", "fp32").forms
    assert (result.verdict, result.images_expected) == (Verdict.NO_REFERENCE, 9)


def test_more_images_than_the_reference_is_of_are_not_compared() -> None:
    judgment = judge(counted(10, 10, images=10), of_nine(100.0), "paddle", "fp32")
    assert judgment.verdict == Verdict.NO_REFERENCE
    assert "10 images, but the reference is for 9" in judgment.forms[0].reason


def test_a_reference_without_figures_is_none() -> None:
    config = VariantConfig("own", "base", 9, {"": Reference("a paper")},
                           {"paddle": Tolerance(9, "wide")})  # fmt: skip
    judgment = judge(counted(9, 9, images=9), config, "paddle", "fp32")
    assert judgment.verdict == Verdict.NO_REFERENCE
    assert judgment.forms[0].tolerance is None
    assert "no reported figure" in judgment.forms[0].reason


def test_a_figure_for_information_is_not_compared() -> None:
    config = VariantConfig("own", "base", 9, {"": Reference("a paper", 0.0, gated=False)},
                           {"paddle": Tolerance(0, "none")})  # fmt: skip
    (result,) = judge(counted(9, 9, images=9), config, "paddle", "fp32").forms
    assert result.verdict == Verdict.NO_REFERENCE
    assert result.reference == {1: 0.0, 5: None}
    assert result.delta(1) == 100.0
    assert result.delta(5) is None


def test_a_top5_alone_is_compared() -> None:
    config = VariantConfig("own", "base", 9, {"": Reference("a paper", None, 100.0)},
                           {"paddle": Tolerance(0, "none")})  # fmt: skip
    assert judge(counted(0, 9, images=9), config, "paddle", "fp32").verdict == Verdict.PASS
    assert judge(counted(9, 9, images=9), config, "paddle", "fp32").verdict == Verdict.PASS
    assert judge(counted(0, 8, images=9), config, "paddle", "fp32").verdict == Verdict.FAIL


def test_an_early_end_is_a_fail() -> None:
    measured = counted(3, 3, images=5, stopped="certain after 5 images")
    judgment = judge(measured, of_nine(100.0), "paddle", "fp32")
    assert (judgment.verdict, judgment.exit_code) == (Verdict.FAIL, 1)
    assert judgment.forms[0].reason == "ended early: certain after 5 images"


def test_a_stop_in_the_last_batch_is_no_early_end() -> None:
    """Every image was measured: the counts decide, whatever the test said before it."""
    measured = counted(9, 9, images=9, stopped="certain after 9 images")
    (form,) = judge(measured, of_nine(100.0), "paddle", "fp32").forms
    assert (form.verdict, form.reason) == (
        Verdict.PASS,
        "top-1 +0 images vs. reference; tolerance 0",
    )
    measured = counted(8, 8, images=9, stopped="certain after 9 images")
    (form,) = judge(measured, of_nine(100.0), "paddle", "fp32").forms
    assert (form.verdict, form.reason) == (
        Verdict.FAIL,
        "top-1 -1 images vs. reference; tolerance 0",
    )


@pytest.mark.parametrize(
    ("images", "flips", "verdict"),
    [(9, 5, "PASS"), (9, 6, "DISAGREE"), (1000, 10, "PASS"), (1000, 11, "DISAGREE")],
)
def test_forms_whose_predictions_differ_do_not_pass(images: int, flips: int, verdict: str) -> None:
    """The logits are close, and yet more than 5 predictions (or 1 %) are others."""
    measured = two_forms(images, images, difference=0.001)
    measured.scores["unfused"].top[:flips, 0] = 7
    config = dataclasses.replace(of_nine(100.0), images=images)
    judgment = judge(measured, config, "paddle", "fp32")
    assert judgment.verdict == verdict
    assert (f"{flips} predictions flip" in judgment.disagreement) == (verdict == "DISAGREE")
    assert judge(measured, config, "paddle", "bf16").verdict == Verdict.NO_REFERENCE


def test_one_form_that_fails_fails_the_run() -> None:
    measured = two_forms(difference=0.0)
    measured.scores["reparameterized"].rank[0] = 10
    judgment = judge(measured, of_nine(100.0), "paddle", "fp32")
    assert [result.verdict for result in judgment.forms] == [Verdict.PASS, Verdict.FAIL]
    assert (judgment.verdict, judgment.exit_code) == (Verdict.FAIL, 1)


def test_the_gravest_verdict_stands_for_all() -> None:
    order = ["PASS", "NO_REFERENCE", "PARTIAL", "FAIL", "INCOMPLETE", "DISAGREE"]
    assert [verdict.value for verdict in Verdict] == order
    for position, name in enumerate(order):
        several = [Verdict(other) for other in order[: position + 1]]
        assert gravest(several) == gravest(several[::-1]) == Verdict(name)


def test_labels_in_another_order_are_suspected() -> None:
    def warned(right: int, images: int) -> bool:
        judgment: Judgment = judge(counted(right, right, images), of_nine(1.0), "paddle", "fp32")
        return any("labels" in warning for warning in judgment.warnings)

    assert warned(1, 200)
    assert not warned(2, 200)
    assert not warned(0, 199), "a few images say nothing"
    judgment = judge(counted(1, 1, 200), of_nine(1.0), "paddle", "fp32")
    assert judgment.warnings == (
        "Below 1 %: are the labels in another order, or the weights for other classes?",
    )


def test_one_form_that_is_right_speaks_for_the_labels() -> None:
    measured = two_forms(images=200, right=200)
    measured.scores["unfused"].rank[:] = 10
    assert judge(measured, of_nine(1.0), "paddle", "fp32").warnings == ()


def test_where_the_top5_is_unknown_the_top1_is_compared_alone() -> None:
    """As of a graph that gives the predicted class alone: its top-5 counts nothing."""
    measured = counted(40_035, 40_035)
    measured.scores["unfused"].known = 1
    judgment = judge(measured, load_variant("base_ssld"), "paddle", "fp32")
    (form,) = judgment.forms
    assert form.figures(1) == (80.07, 40_035, 0)
    assert form.figures(5) == (None, None, None)
    assert judgment.verdict == Verdict.PASS
    assert form.reason.endswith("; top-5 is unknown")
    measured.scores["unfused"].rank[0] = 7
    measured.scores["unfused"].rank[1:11] = 7
    judgment = judge(measured, load_variant("base_ssld"), "paddle", "fp32")
    assert judgment.verdict == Verdict.FAIL


def test_ties_are_counted_and_said() -> None:
    measured = counted(40_035, 47_435)
    measured.scores["unfused"].tied[:1234] = True
    judgment = judge(measured, load_variant("base_ssld"), "paddle", "fp32")
    assert judgment.verdict == Verdict.PASS
    (said,) = judgment.ties
    assert said.startswith("unfused: 1,234 of 50,000 images have several classes")
