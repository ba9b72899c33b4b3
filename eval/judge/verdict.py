"""From counts to an answer: is this the accuracy that was reported?

Compared in images, never in rounded percentages: 1 image of 50,000 is 0.002 points.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from eval.config import VariantConfig
from eval.errors import LogitsError
from eval.images.sets import VAL
from eval.measure.engine import Measurement
from eval.measure.metrics import percent, wilson_interval

# Largest difference between the forms' logits, relative to the largest logit. Folding changes the
# order of float32 roundings only: 5e-5 was seen with a head that amplifies them on purpose.
FORM_TOLERANCE = 1e-3


class Verdict(StrEnum):
    """What a run says about the reported accuracy."""

    PASS = "PASS"  # noqa: S105 - within tolerance
    FAIL = "FAIL"  # measured in full, outside tolerance
    PARTIAL = "PARTIAL"  # a subset: never compared
    INCOMPLETE = "INCOMPLETE"  # unreadable images were recorded
    NO_REFERENCE = "NO_REFERENCE"  # nothing that a difference could fail

    @property
    def exit_code(self) -> int:
        """As in the contract."""
        return {Verdict.FAIL: 1, Verdict.INCOMPLETE: 3}.get(self, 0)


@dataclass(frozen=True)
class FormResult:
    """The figures of one form.

    Attributes:
        form: ``unfused`` or ``reparameterized``.
        images: how many were measured.
        images_expected: how many there should be.
        top1_correct, top5_correct: counts.
        reference_top1, reference_top5: reported, in percent, or None.
        reference_source: where they are reported.
        tolerance: images by which a count may differ, or None where nothing is gated.
        verdict: the answer.
        reason: the answer in words.
    """

    form: str
    images: int
    images_expected: int
    top1_correct: int
    top5_correct: int
    reference_top1: float | None
    reference_top5: float | None
    reference_source: str
    tolerance: int | None
    verdict: Verdict
    reason: str

    @property
    def top1(self) -> float:
        """In percent, unrounded."""
        return percent(self.top1_correct, self.images)

    @property
    def top5(self) -> float:
        """In percent, unrounded."""
        return percent(self.top5_correct, self.images)

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of top-1, in percent."""
        return wilson_interval(self.top1_correct, self.images)

    @property
    def delta_top1(self) -> float | None:
        """Measured minus reported, in points."""
        return None if self.reference_top1 is None else self.top1 - self.reference_top1

    @property
    def delta_top5(self) -> float | None:
        """Measured minus reported, in points."""
        return None if self.reference_top5 is None else self.top5 - self.reference_top5


def judge(
    measured: Measurement, form: str, config: VariantConfig, preprocess: str, precision: str
) -> FormResult:
    """Compare one form's counts with the reported figures."""
    scores = measured.scores[form]
    images = len(measured.valset.samples)
    image_set = measured.valset.image_set
    expected = config.images if image_set is VAL else image_set.images
    reference = config.reference_for(preprocess) if image_set is VAL else None
    tolerance = config.tolerance.get(preprocess)
    counts = {1: scores.correct(1), 5: scores.correct(5)}

    gaps: dict[str, int] = {}
    if reference:
        for k, figure in ((1, reference.top1), (5, reference.top5)):
            if figure is not None:
                gaps[f"top-{k}"] = counts[k] - round(figure / 100 * expected)

    gated = reference is not None and reference.gated and tolerance is not None
    if measured.bad:
        verdict = Verdict.INCOMPLETE
        reason = (
            f"{len(measured.bad):,} of {images:,} images cannot be decoded and count as wrong: "
            "not compared with the reference"
        )
    elif images < expected:
        verdict = Verdict.PARTIAL
        reason = f"{images:,} of {expected:,} images: a subset is not compared"
    elif image_set is not VAL:
        verdict = Verdict.NO_REFERENCE
        reason = f"{image_set.name} is shown, not compared: the reported figures are of the val set"
    elif not gated or precision != "fp32":
        verdict = Verdict.NO_REFERENCE
        reason = _why_not_gated(config, preprocess, precision)
    else:
        assert tolerance is not None
        outside = any(abs(gap) > tolerance.images for gap in gaps.values())
        verdict = Verdict.FAIL if outside else Verdict.PASS
        reason = (
            ", ".join(f"{name} {gap:+,} images" for name, gap in gaps.items())
            + f" against the reference; tolerance {tolerance.images} images"
        )
    return FormResult(
        form=form,
        images=images,
        images_expected=expected,
        top1_correct=counts[1],
        top5_correct=counts[5],
        reference_top1=reference.top1 if reference else None,
        reference_top5=reference.top5 if reference else None,
        reference_source=reference.source if reference else "",
        tolerance=tolerance.images if gated and tolerance else None,
        verdict=verdict,
        reason=reason,
    )


def _why_not_gated(config: VariantConfig, preprocess: str, precision: str) -> str:
    if config.reference_for(preprocess) is None:
        return f"{config.name} has no reported figure to compare with"
    if precision != "fp32":
        return f"the reported figures are fp32; a {precision} run is not compared with them"
    if preprocess not in config.tolerance:
        return f"{config.name} has no tolerance for --preprocess {preprocess}: shown, not compared"
    return "the reported figure is for information only"


def check_forms_agree(measured: Measurement, precision: str) -> None:
    """Folding must not change the answers.

    Only fp32 is judged: lower precisions round the two forms differently by design.

    Raises:
        LogitsError: the two forms' logits differ by more than rounding can.
    """
    difference = measured.max_logit_diff
    if difference is None or precision != "fp32":
        return
    limit = FORM_TOLERANCE * max(1.0, measured.largest_logit or 0.0)
    if difference > limit:
        index = int(measured.logit_diff.argmax())
        raise LogitsError(
            f"The unfused and the reparameterized form disagree: a logit differs by "
            f"{difference:.3g} (limit {limit:.3g}) on {measured.valset.samples[index].path}, "
            f"{len(measured.flips)} predictions flip.\n"
            "The reparameterization does not preserve these weights: do not deploy it."
        )
