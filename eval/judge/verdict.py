"""From counts to an answer: is this the accuracy that was reported?

Compared in images, never in rounded percentages: 1 image of 50,000 is 0.002 points. `judge` is the
only place that decides; stdout, files, history, gate and exit code all read what it gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING

from eval.backends.precision import computed_in
from eval.config import Reference, Tolerance, VariantConfig
from eval.images.sets import VAL
from eval.metrics import TOP, anytime_interval, percent, wilson_interval

if TYPE_CHECKING:
    from eval.measure.measurement import Measurement

# Largest difference between the forms' logits, relative to the largest logit. Folding changes the
# order of float32 roundings only: 5e-5 was seen with a head that amplifies them on purpose.
FORM_TOLERANCE = 1e-3
# Most images whose top-1 predictions may differ: 5, or 1 %. A prediction flips only where the two
# largest logits are closer than twice the difference, which is rare on a trained network.
FLIPS, FLIP_SHARE = 5, 0.01
JUDGED_PRECISION = "fp32"  # what the reported figures were measured in


class Verdict(StrEnum):
    """What a run says about the reported accuracy, from mildest to most severe."""

    PASS = "PASS"  # noqa: S105 - every image measured, within tolerance
    NO_REFERENCE = "NO_REFERENCE"  # nothing to compare with
    PARTIAL = "PARTIAL"  # part of the set: never compared
    FAIL = "FAIL"  # outside the tolerance
    INCOMPLETE = "INCOMPLETE"  # unreadable images were recorded
    DISAGREE = "DISAGREE"  # the two forms differ by more than rounding can explain

    @property
    def exit_code(self) -> int:
        """As in the contract."""
        return {Verdict.FAIL: 1, Verdict.INCOMPLETE: 3, Verdict.DISAGREE: 5}.get(self, 0)


def gravest(verdicts: Sequence[Verdict]) -> Verdict:
    """The most severe of several verdicts."""
    return max(verdicts, key=list(Verdict).index)


@dataclass(frozen=True)
class FormResult:
    """The figures of one form.

    Attributes:
        form: ``unfused``, ``reparameterized``, ``exported`` or ``scored``.
        images: how many were measured.
        images_expected: how many the whole set has; the same as `images` if that is unknown.
        correct: k to the number of images whose label is among the k best, for k = 1 and 5; the
            latter is missing where only the top-1 predictions are known.
        reference: k to the reported accuracy in percent, or None.
        reference_source: where it is reported.
        tolerance: images by which a count may differ, or None if nothing is compared.
        verdict: the answer.
        reason: the answer in words.
        expected: k to the number of correct predictions that was reported; empty where the
            images are not all of those that the reported figure is of.
        anytime: where the top-1 accuracy of the whole set lies, in percent (95 %, valid whenever
            the run ended); None for the whole set itself.
    """

    form: str
    images: int
    images_expected: int
    correct: Mapping[int, int]
    reference: Mapping[int, float | None]
    reference_source: str
    tolerance: int | None
    verdict: Verdict
    reason: str
    expected: Mapping[int, int] = field(default_factory=dict)
    anytime: tuple[float, float] | None = None

    def accuracy(self, k: int) -> float:
        """Top-k accuracy in percent, unrounded."""
        return percent(self.correct[k], self.images)

    def interval(self, k: int = 1) -> tuple[float, float]:
        """95 % Wilson interval of the top-k accuracy, in percent."""
        return wilson_interval(self.correct[k], self.images)

    def delta(self, k: int) -> float | None:
        """Measured minus reported, in percentage points."""
        reported = self.reference[k]
        return None if reported is None or k not in self.correct else self.accuracy(k) - reported

    def gap(self, k: int) -> int | None:
        """Correct predictions minus those reported; None if they are not comparable."""
        known = k in self.expected and k in self.correct
        return self.correct[k] - self.expected[k] if known else None

    def figures(self, k: int) -> tuple[float | None, int | None, int | None]:
        """Accuracy in percent, count and `gap`; None where they are unknown."""
        if k not in self.correct:
            return None, None, None
        return self.accuracy(k), self.correct[k], self.gap(k)


@dataclass(frozen=True)
class Judgment:
    """The answer of a run.

    Attributes:
        forms: the result of each form, at least one.
        disagreement: how the two forms disagree; empty if they do not.
        warnings: what to look at, whatever the verdict.
        ties: forms that leave open which class they predict.
    """

    forms: tuple[FormResult, ...]
    disagreement: str = ""
    warnings: tuple[str, ...] = ()
    ties: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The verdict of the whole run: the most severe of its forms."""
        return gravest([result.verdict for result in self.forms])

    @property
    def exit_code(self) -> int:
        """As in the contract."""
        return self.verdict.exit_code


def judge(
    measured: Measurement, published: VariantConfig, preprocess: str, precision: str
) -> Judgment:
    """Compare a measurement with what was reported."""
    disagreement = forms_disagree(measured, precision)
    case = _Case(measured, published, preprocess, precision, disagreement)
    forms = tuple(_judge_form(case, form) for form in measured.scores)
    return Judgment(forms, disagreement, tuple(_warnings(forms)), tuple(_ties(measured)))


@dataclass(frozen=True)
class RunFacts:
    """All that the verdict of a form depends on, as counted in a run or as written in a summary.

    Attributes:
        images: how many were measured.
        whole: how many the whole set has.
        bad: how many of the measured ones cannot be decoded.
        gaps: k to the count minus the one that was reported, for the figures that are reported.
        tolerance: images by which a count may differ; None if nothing is compared.
        precision: what was computed in.
        disagree: whether the two forms differ by more than rounding can explain.
        stopped: why the run ended before its last image; empty if it did not.
    """

    images: int
    whole: int
    bad: int
    gaps: Mapping[int, int]
    tolerance: int | None
    precision: str
    disagree: bool = False
    stopped: str = ""


def decide(facts: RunFacts) -> tuple[Verdict, str]:
    """The verdict of a form, and why: the first reason that applies.

    By this, a run gets its verdict, and a summary that is read may have it.
    """
    images, whole = facts.images, facts.whole
    if facts.disagree:
        return Verdict.DISAGREE, "the two forms give different predictions"
    if facts.bad:
        return Verdict.INCOMPLETE, (
            f"{facts.bad:,} of {images:,} images cannot be decoded and count as wrong: not "
            "compared with the reference"
        )
    if images < whole:
        if facts.stopped:
            return Verdict.FAIL, f"ended early: {facts.stopped}"
        return Verdict.PARTIAL, f"{images:,} of {whole:,} images: a part of the set is not compared"
    if images > whole:
        return Verdict.NO_REFERENCE, (
            f"{images:,} images, but the reference is for {whole:,}: not compared"
        )
    if facts.precision != JUDGED_PRECISION:
        return Verdict.NO_REFERENCE, (
            f"the reported figures are {JUDGED_PRECISION}: a {facts.precision} run is not compared "
            "with them"
        )
    if facts.tolerance is None or not facts.gaps:
        return Verdict.NO_REFERENCE, "there is no reference or no tolerance"
    outside = any(abs(gap) > facts.tolerance for gap in facts.gaps.values())
    reason = ", ".join(f"top-{k} {gap:+,}" for k, gap in facts.gaps.items())
    return (
        Verdict.FAIL if outside else Verdict.PASS,
        f"{reason} images vs. reference; tolerance {facts.tolerance:,}",
    )


def expected_correct(accuracy: float, images: int) -> int:
    """The count that a reported accuracy stands for: the nearest, a half rounded up.

    In exact arithmetic on the decimal that was written: 77.04 of 50,000 is 38,520.
    """
    exact = Fraction(repr(accuracy))
    return (2 * exact.numerator * images + 100 * exact.denominator) // (200 * exact.denominator)


def expected_counts(reference: Reference, images: int) -> dict[int, int]:
    """K to the count that was reported of a set of `images`, for the figures that are reported."""
    return {k: expected_correct(figure, images) for k, figure in _figures(reference).items()}


def compared_with(
    published: VariantConfig, preprocess: str
) -> tuple[Reference, Tolerance] | tuple[None, None]:
    """What runs of the whole set are compared with; None where they are not compared."""
    reference = published.reference_for(preprocess)
    tolerance = published.tolerance.get(preprocess)
    if reference is None or tolerance is None or not (reference.gated and _figures(reference)):
        return None, None
    return reference, tolerance


def _figures(reference: Reference) -> dict[int, float]:
    """K to the reported accuracy, for those that are reported."""
    both = {1: reference.top1, TOP: reference.top5}
    return {k: figure for k, figure in both.items() if figure is not None}


@dataclass(frozen=True)
class _Case:
    """A run, and what is known about the model."""

    measured: Measurement
    published: VariantConfig
    preprocess: str
    precision: str
    disagreement: str

    @property
    def is_val(self) -> bool:
        """Whether these are images of the set that reported figures are of."""
        return self.measured.valset.image_set.is_judged

    @property
    def images_expected(self) -> int:
        """Images of the whole set."""
        image_set = self.measured.valset.image_set
        whole = self.published.images if self.is_val else image_set.images
        return whole or len(self.measured.valset.samples)

    @property
    def reference(self) -> Reference | None:
        return self.published.reference_for(self.preprocess) if self.is_val else None


def _judge_form(case: _Case, form: str) -> FormResult:
    measured, reference, whole = case.measured, case.reference, case.images_expected
    images = len(measured.valset.samples)
    scores = measured.scores[form]
    correct = {k: scores.correct(k) for k in (1, TOP) if k <= scores.known}
    expected = expected_counts(reference, whole) if reference else {}
    tolerance = compared_with(case.published, case.preprocess)[1] if case.is_val else None
    facts = RunFacts(
        images=images,
        whole=whole,
        bad=len(measured.bad),
        gaps={k: correct[k] - count for k, count in expected.items() if k in correct},
        tolerance=tolerance.images if tolerance else None,
        precision=case.precision,
        disagree=bool(case.disagreement),
        stopped=measured.stopped,
    )
    verdict, reason = decide(facts)
    if verdict is Verdict.NO_REFERENCE:
        reason = _why_not_compared(case) or reason
    if TOP not in correct:
        reason += "; top-5 is unknown"
    figures = _figures(reference) if reference else {}
    return FormResult(
        form=form,
        images=images,
        images_expected=whole,
        correct=correct,
        reference={k: figures.get(k) for k in (1, TOP)},
        reference_source=reference.source if reference else "",
        tolerance=facts.tolerance,
        verdict=verdict,
        reason=reason,
        expected=expected if images == whole and not measured.bad else {},
        anytime=anytime_interval(correct[1], images, whole) if images < whole else None,
    )


def _why_not_compared(case: _Case) -> str:
    """What the figures alone do not show; empty if they say it all."""
    name = case.published.name
    if not case.is_val:
        image_set = case.measured.valset.image_set.title
        return f"{image_set}: the reported figures are for the {VAL.name} set"
    if len(case.measured.valset.samples) > case.images_expected:
        return ""
    if case.reference is None or not _figures(case.reference):
        return f"{name} has no reported figure to compare with"
    if case.precision != JUDGED_PRECISION:
        return ""
    if not case.reference.gated:
        return "the reported figure is for information only"
    return f"{name} has no tolerance for the preprocessing {case.preprocess}: not compared"


def forms_differ(
    difference: float | None, largest_logit: float | None, flips: int, images: int, precision: str
) -> bool:
    """Whether two forms differ by more than rounding can explain.

    Only what computes in fp32 is judged: less rounds the two forms differently by design.

    Args:
        difference: the largest of a logit between the forms; None with one form.
        largest_logit: the largest absolute logit; None where it is not known.
        flips: images whose top-1 predictions differ.
        images: how many were measured.
        precision: what was computed in.
    """
    if difference is None or computed_in(precision) != JUDGED_PRECISION:
        return False
    return difference > _logit_limit(largest_logit) or flips > max(FLIPS, FLIP_SHARE * images)


def _logit_limit(largest_logit: float | None) -> float:
    return FORM_TOLERANCE * max(1.0, largest_logit or 0.0)


def forms_disagree(measured: Measurement, precision: str) -> str:
    """How the forms' logits differ, if rounding cannot explain it; else ""."""
    difference, flips = measured.max_logit_diff, len(measured.flips)
    images = len(measured.valset.samples)
    if difference is None or not forms_differ(
        difference, measured.largest_logit, flips, images, precision
    ):
        return ""
    return (
        f"The unfused and the reparameterized form disagree: a logit differs by {difference:.3g} "
        f"(limit {_logit_limit(measured.largest_logit):.3g}) on {measured.where_logits_differ}, "
        f"{flips} predictions flip.\n"
        "The reparameterization does not preserve these weights: do not deploy it."
    )


def _ties(measured: Measurement) -> Iterator[str]:
    """Images whose top-1 prediction is only the first of several."""
    for form, scores in measured.scores.items():
        tied = int(scores.tied.sum())
        if tied:
            yield (
                f"{form}: {tied:,} of {len(scores.tied):,} images have several classes with the "
                "largest output, of which the one with the lowest index counts: are the outputs "
                "rounded, or a saturated sigmoid or softmax?"
            )


def _warnings(forms: Sequence[FormResult]) -> list[str]:
    if forms[0].images >= 200 and max(result.accuracy(1) for result in forms) < 1:
        return ["Below 1 %: are the labels in another order, or the weights for other classes?"]
    return []
