"""From counts to verdicts and exit codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eval.config import Reference, Tolerance, VariantConfig, load_variant
from eval.errors import LogitsError
from eval.images.valset import Sample, ValSet
from eval.judge.verdict import Verdict, check_forms_agree, judge
from eval.measure.engine import Measurement
from eval.measure.metrics import Scores


def measurement(top1: int, top5: int, images: int = 50_000, **changes: object) -> Measurement:
    """A measurement in which the first images are right."""
    scores = Scores.empty(images)
    scores.rank[:] = 10
    scores.rank[:top5] = 3
    scores.rank[:top1] = 0
    valset = ValSet(Path("x"), "x", (Sample("n01440764/x.JPEG", 0),) * images, lambda _: b"", Path)
    return Measurement(
        **{  # type: ignore[arg-type]
            "valset": valset,
            "scores": {"unfused": scores},
            "logit_diff": np.zeros(images),
            "largest_logit": 10.0,
            "digests": [""] * images,
            "seconds": 1.0,
        }
        | changes
    )


def verdict(measured: Measurement, variant: str = "base_ssld", preprocess: str = "paddle",
            precision: str = "fp32") -> Verdict:  # fmt: skip
    return judge(measured, "unfused", load_variant(variant), preprocess, precision).verdict


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
    assert verdict(measurement(top1, top5)) == expected


def test_base_is_compared_with_its_own_figures() -> None:
    assert verdict(measurement(38_520, 46_635), "base") == Verdict.PASS
    assert verdict(measurement(40_035, 47_435), "base") == Verdict.FAIL


def test_torchvision_is_looser_than_paddle() -> None:
    measured = measurement(40_035 - 140, 47_435)
    assert verdict(measured, preprocess="torchvision") == Verdict.PASS
    assert verdict(measured, preprocess="paddle") == Verdict.FAIL
    assert verdict(measurement(40_035 - 151, 47_435), preprocess="torchvision") == Verdict.FAIL


def test_what_is_not_comparable_is_not_compared() -> None:
    exact = measurement(40_035, 47_435)
    assert verdict(exact, preprocess="squash") == Verdict.NO_REFERENCE
    assert verdict(exact, precision="bf16") == Verdict.NO_REFERENCE
    assert verdict(measurement(36_985, 0), "small") == Verdict.NO_REFERENCE


def test_a_subset_never_passes() -> None:
    assert verdict(measurement(40_035, 47_435, images=49_999)) == Verdict.PARTIAL


def test_bad_images_make_it_incomplete() -> None:
    assert verdict(measurement(40_035, 47_435, bad={3: "truncated"})) == Verdict.INCOMPLETE
    assert verdict(measurement(1, 1, images=9, bad={3: "truncated"})) == Verdict.INCOMPLETE, (
        "a subset with bad images too"
    )


def test_exit_codes() -> None:
    codes = {verdict.value: verdict.exit_code for verdict in Verdict}
    assert codes == {"PASS": 0, "FAIL": 1, "PARTIAL": 0, "INCOMPLETE": 3, "NO_REFERENCE": 0}


def test_reference_per_preprocessing() -> None:
    config = VariantConfig(
        "demo", "base", 100,
        {"paddle": Reference("known", 50.0, 60.0)}, {"paddle": Tolerance(0, "known")},
    )  # fmt: skip
    measured = measurement(50, 60, images=100)
    assert judge(measured, "unfused", config, "paddle", "fp32").verdict == Verdict.PASS
    assert judge(measured, "unfused", config, "squash", "fp32").verdict == Verdict.NO_REFERENCE
    off = measurement(51, 60, images=100)
    assert judge(off, "unfused", config, "paddle", "fp32").verdict == Verdict.FAIL


def test_figures_are_unrounded() -> None:
    result = judge(measurement(40_001, 47_001), "unfused", load_variant("base"), "paddle", "fp32")
    assert result.top1 == 80.002
    assert result.delta_top1 == pytest.approx(2.962)
    assert "top-1 +1,481 images, top-5 +366 images" in result.reason


def test_forms_that_disagree_are_an_error() -> None:
    two = {"unfused": Scores.empty(9), "reparameterized": Scores.empty(9)}
    for scores in two.values():
        scores.top[:] = 0
    difference = np.zeros(9)
    difference[4] = 0.011  # the limit is 1e-3 of the largest logit, 10
    measured = measurement(0, 0, images=9, scores=two, logit_diff=difference)
    with pytest.raises(LogitsError, match=r"a logit differs by 0\.011 \(limit 0\.01\)"):
        check_forms_agree(measured, "fp32")
    check_forms_agree(measured, "fp16")
    difference[4] = 0.009
    check_forms_agree(measured, "fp32")
