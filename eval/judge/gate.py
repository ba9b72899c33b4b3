"""Is the candidate worse than the baseline? Pure arithmetic on two results.

Both are measured on the same images, so the sampling error of an accuracy (0.19 points for 50,000
images) does not matter here; what counts is which predictions changed. Everything is compared in
images; a limit in points is converted to images exactly, with rational arithmetic.

The verdicts are read first. A result that failed or cannot be trusted cannot be a baseline, and a
candidate whose own verdict is a failure never passes the gate.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from eval.errors import UsageError
from eval.images.classes import ClassList
from eval.images.labels import examples
from eval.judge.result import Predictions, Result, Row
from eval.judge.verdict import Verdict
from eval.metrics import mcnemar
from eval.text import printable

KS = (1, 5)
# What else may differ between comparable runs; it is noted because it may be the reason.
NOTED = ("device", "backend", "precision", "torch", "torchvision", "timm", "git_commit")

REGRESSED = 1
# Verdicts that fail the gate whatever the figures say, and why.
FAILING: Mapping[Verdict, str] = {
    Verdict.FAIL: "its accuracy is not the reported one",
    Verdict.INCOMPLETE: "some of its images could not be read",
    Verdict.DISAGREE: "its two forms give different predictions",
}
# Those of a whole run, gravest first: what one form says holds for the others.
OF_THE_RUN = (Verdict.DISAGREE, Verdict.INCOMPLETE)


@dataclass(frozen=True)
class Limit:
    """How many images a count may drop.

    Attributes:
        amount: images, or percentage points.
        points: which of the two.
    """

    amount: Fraction
    points: bool = False

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Read ``5`` (images) or ``0.05pp`` (percentage points).

        Raises:
            ValueError: it is neither.
        """
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(pp)?", text)
        if not match or ("." in match[1] and not match[2]):
            raise ValueError(f"{text!r} is neither images (5) nor points (0.05pp)")
        return cls(Fraction(match[1]), bool(match[2]))

    def images(self, total: int) -> Fraction:
        """The limit in images of a set of `total`."""
        return self.amount * total / 100 if self.points else self.amount

    def shown(self, total: int) -> str:
        """The limit in words."""
        if not self.points:
            return f"{self.amount} images"
        return f"{float(self.amount):g}pp, {float(self.images(total)):g} images"


@dataclass(frozen=True)
class Limits:
    """How much worse a candidate may be without being a regression.

    Attributes:
        top1, top5: how far a count may drop.
        flips: images whose top-1 prediction may change, other than from wrong to correct; None:
            any number.
    """

    top1: Limit
    top5: Limit
    flips: int | None


# The same weights on the same images give the same answers but for the order of float32 sums and
# the JPEG decoder's build: Paddle against torch gives 50,000 of 50,000 equal (PaddleClas#3424),
# another machine up to 10 images (mlcommons/inference#288). A wrong pixel offset costs hundreds.
SAME_WEIGHTS = Limits(Limit(Fraction(5)), Limit(Fraction(5)), 5)

# Other weights answer thousands of images differently, so that flips say nothing. Trainings that
# differ in nothing but the seed scatter by 0.1 points on ImageNet (Picard, arXiv:2109.08203), and
# NNCF allows its quantized models as much: less is noise, more is a loss.
OTHER_WEIGHTS = Limits(Limit(Fraction(1, 10), True), Limit(Fraction(1, 10), True), None)


@dataclass(frozen=True)
class Asked:
    """How two results are to be compared.

    Attributes:
        form: only this form; ``A:B`` is A of the baseline with B of the candidate.
        top1, top5, flips: limits; a None is taken from `SAME_WEIGHTS` or `OTHER_WEIGHTS`.
        allow_other_weights: compare even if the weights differ or are unknown.
        allow_failed_baseline: accept a baseline whose verdict is FAIL.
    """

    form: str | None = None
    top1: Limit | None = None
    top5: Limit | None = None
    flips: int | None = None
    allow_other_weights: bool = False
    allow_failed_baseline: bool = False

    def limits(self, *, same_weights: bool) -> Limits:
        """The requested limits, and the defaults for the rest."""
        default = SAME_WEIGHTS if same_weights else OTHER_WEIGHTS
        flips = default.flips if self.flips is None else self.flips
        return Limits(self.top1 or default.top1, self.top5 or default.top5, flips)


DEFAULTS = Asked()


@dataclass(frozen=True)
class Flip:
    """An image whose top-1 prediction changed."""

    path: str
    label: int
    before: int  # top-1 prediction; -1: not read
    after: int
    rank_before: int
    rank_after: int

    @property
    def kind(self) -> str:
        """The direction of the change."""
        if self.before == self.label:
            return "correct to wrong"
        return "wrong to correct" if self.after == self.label else "wrong to wrong"


@dataclass(frozen=True)
class ClassChange:
    """A class with more or fewer correct images (top-1)."""

    label: int
    images: int
    before: int
    after: int


@dataclass(frozen=True)
class Paired:
    """Both runs, image by image.

    Attributes:
        lost: k to the number of images that only the baseline has among its k best.
        gained: k to the number that only the candidate has.
        flips: losses first, then in the order of their paths.
        classes: greatest loss first.
    """

    lost: Mapping[int, int]
    gained: Mapping[int, int]
    flips: tuple[Flip, ...]
    classes: tuple[ClassChange, ...]

    def p_value(self, k: int) -> float:
        """How likely so uneven an exchange is between equally good runs, see `mcnemar`."""
        return mcnemar(self.lost[k], self.gained[k])

    @property
    def flips_by_kind(self) -> Counter[str]:
        """Number of flips of each `Flip.kind`."""
        return Counter(flip.kind for flip in self.flips)


@dataclass(frozen=True)
class Check:
    """One gate.

    Attributes:
        passed: None if it was not checked.
    """

    name: str
    passed: bool | None
    reason: str
    exit_code: int = REGRESSED


@dataclass(frozen=True)
class Comparison:
    """One form of one variant, before and after.

    Attributes:
        paired: None if one of the results has no predictions.
        notes: other differences between the runs, in words.
        classes: of the model; None if neither result says which they are.
    """

    baseline: Row
    candidate: Row
    paired: Paired | None
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    classes: ClassList | None = None

    @property
    def name(self) -> str:
        """Variant and form."""
        forms = dict.fromkeys((self.baseline.form, self.candidate.form))
        return f"{self.candidate.variant}, {' to '.join(forms)}"

    @property
    def known(self) -> tuple[int, ...]:
        """The k of which both know how many images have their label among the k best."""
        return tuple(k for k in KS if k in self.baseline.counts and k in self.candidate.counts)

    @property
    def regressed(self) -> bool:
        """Whether any gate failed."""
        return self.exit_code != 0

    @property
    def exit_code(self) -> int:
        """The greatest exit code of the gates that failed; 0 if none did."""
        return max((check.exit_code for check in self.checks if check.passed is False), default=0)


def compare(baseline: Result, candidate: Result, asked: Asked = DEFAULTS) -> list[Comparison]:
    """Compare each form of the candidate with that of the baseline.

    Raises:
        UsageError: the two cannot be compared, the baseline's verdict does not let it be one, or
            a limit that was asked for cannot be checked.
    """
    comparisons = []
    for before, after in _pairs(baseline, candidate, asked.form):
        check_baseline_verdict(baseline, before, allow_failed=asked.allow_failed_baseline)
        _check_comparable(baseline, candidate, before, after, asked.allow_other_weights)
        paired = None
        if baseline.predictions and candidate.predictions:
            paired = pair(
                baseline.predictions,
                before.form,
                candidate.predictions,
                after.form,
                [k for k in KS if k in before.counts and k in after.counts],
            )
        elif asked.flips is not None:
            lacking = candidate if baseline.predictions else baseline
            raise UsageError(
                f"--max-flips needs predictions.csv on both sides; {lacking.source} has none.\n"
                "Name the result folders, or omit --max-flips."
            )
        limits = asked.limits(same_weights=_same_weights(before, after))
        verdicts = verdict_of(baseline, before), verdict_of(candidate, after)
        checks = (_verdict_check(*verdicts), *_checks(before, after, paired, limits))
        comparisons.append(
            Comparison(
                before,
                after,
                paired,
                checks,
                _notes(before, after) + _other_environment(baseline, candidate),
                candidate.classes or baseline.classes,
            )
        )
    return comparisons


def verdict_of(result: Result, row: Row) -> Verdict:
    """The verdict of a row, or that of its whole run where any form of the run has one.

    Forms that disagree, for example, cannot be compared one at a time.
    """
    said = {other.verdict for other in result.rows.values() if other.run_id == row.run_id}
    return next((word for word in OF_THE_RUN if word in said), row.verdict)


def check_baseline_verdict(baseline: Result, row: Row, *, allow_failed: bool = False) -> None:
    """A baseline must have earned its figures.

    A FAIL may be meant, where a model is known to be below its reported accuracy, but that must
    be said. Unreadable images or forms that disagree never leave figures to compare with.
    """
    verdict = verdict_of(baseline, row)
    failed = verdict is Verdict.FAIL
    if verdict not in FAILING or (failed and allow_failed):
        return
    raise _refusal(
        f"The baseline {baseline.source} ({row.variant}, {row.form}) says {verdict}: "
        f"{FAILING[verdict]}.",
        "Name another result, or use eval.regression with --allow-failed-baseline."
        if failed
        else "Name another result as the baseline.",
    )


def _refusal(problem: str, advice: str = "") -> UsageError:
    """An error whose text may come from files: one line for each of the two parts."""
    return UsageError("\n".join(printable(line) for line in (problem, advice) if line))


def _verdict_check(before: Verdict, after: Verdict) -> Check:
    """The candidate's own verdict; a FAIL passes only if the baseline has it, too."""
    allowed = after is before is Verdict.FAIL
    words = f"{after}, like the baseline: allowed" if allowed else f"{after}; {before} before"
    if after in FAILING:
        words = f"{words} ({FAILING[after]})"
    return Check("verdict", after not in FAILING or allowed, words, after.exit_code)


def _same_weights(before: Row, after: Row) -> bool:
    """Unknown weights are never the same."""
    return before.weights_sha256 == after.weights_sha256 != ""


def _pairs(baseline: Result, candidate: Result, form: str | None) -> list[tuple[Row, Row]]:
    """Rows of the two results that belong together.

    No form of either is left out silently. A history may hold variants that are not asked about.
    """
    first, separator, second = (form or "").partition(":")
    second = second if separator else first
    pairs = []
    for variant in dict.fromkeys(variant for variant, _ in candidate.rows):
        before = {f: row for (v, f), row in baseline.rows.items() if v == variant}
        after = {f: row for (v, f), row in candidate.rows.items() if v == variant}
        if not before:
            known = ", ".join(dict.fromkeys(v for v, _ in baseline.rows))
            raise _refusal(
                f"Not comparable: variant is {known} in the baseline ({baseline.source}) and "
                f"{variant} in the candidate ({candidate.source})."
            )
        if form is None:
            if set(before) != set(after):
                raise _refusal(
                    f"Not comparable: form is {', '.join(before)} in the baseline and "
                    f"{', '.join(after)} in the candidate.",
                    "Name one with --form NAME, or as --form BASELINE:CANDIDATE.",
                )
            pairs += [(before[name], row) for name, row in after.items()]
            continue
        for name, rows, result in ((first, before, baseline), (second, after, candidate)):
            if name not in rows:
                raise _refusal(
                    f"--form {form}: {result.source} has {', '.join(rows)}, but not {name!r}."
                )
        pairs.append((before[first], after[second]))
    return pairs


def _check_comparable(
    baseline: Result, candidate: Result, before: Row, after: Row, allow_other_weights: bool
) -> None:
    """Both must have seen the same images, labels and preprocessing."""

    def differs(name: str, first: object, second: object) -> str:
        return f"{name} is {first} in the baseline and {second} in the candidate"

    problems = [
        differs(name, getattr(before, name), getattr(after, name))
        for name in ("preprocess", "images")
        if getattr(before, name) != getattr(after, name)
    ]
    if baseline.predictions and candidate.predictions:
        problems += _image_differences(baseline.predictions, candidate.predictions)
    problems += _class_differences(baseline.classes, candidate.classes)
    if before.dataset_sha256 != after.dataset_sha256:
        problems.append(
            differs("dataset_sha256", before.dataset_sha256[:12], after.dataset_sha256[:12])
        )
    advice = "Only runs on the same images, labels and preprocessing can be compared."
    if not allow_other_weights and not _same_weights(before, after):
        hashes = [row.weights_sha256[:12] or "unknown" for row in (before, after)]
        problems.append(differs("weights_sha256", *hashes))
        if len(problems) == 1:
            advice = "To compare them anyway: python -m eval.regression --allow-other-weights."
    if after.verdict is Verdict.FAIL and before.images != after.images < after.images_expected:
        advice = "The candidate was stopped early, with FAIL: only a whole run can be compared."
    if problems:
        raise _refusal(
            f"Not comparable ({after.variant}, {after.form}): {'; '.join(problems)}.", advice
        )


def _class_differences(before: ClassList | None, after: ClassList | None) -> list[str]:
    """What makes two lists of classes different, in words; their titles may be."""
    if before is None or after is None:
        return []
    if len(before) != len(after):
        return [f"classes: {len(before)} in the baseline and {len(after)} in the candidate"]
    others = [
        f"{label} is {first.folder} and {second.folder}"
        for label, (first, second) in enumerate(zip(before.rows, after.rows, strict=True))
        if first.folder != second.folder
    ]
    return [f"classes differ (baseline and candidate): {examples(others)}"] if others else []


def _image_differences(before: Predictions, after: Predictions) -> list[str]:
    """What makes two sets of labeled images different, in words; nothing if they are the same."""
    first = dict(zip(before.keys(), before.labels.tolist(), strict=True))
    second = dict(zip(after.keys(), after.labels.tolist(), strict=True))
    problems = []
    if first.keys() != second.keys():
        only_first, only_second = sorted(first.keys() - second), sorted(second.keys() - first)
        if only_first:
            problems.append(f"only in the baseline: {examples(only_first)}")
        if only_second:
            problems.append(f"only in the candidate: {examples(only_second)}")
    labels = [
        f"{key} {first[key]} and {second[key]}"
        for key in sorted(first.keys() & second.keys())
        if first[key] != second[key]
    ]
    if labels:
        problems.append(f"labels differ (baseline and candidate): {examples(labels)}")
    return problems


def pair(
    before: Predictions,
    form_before: str,
    after: Predictions,
    form_after: str,
    known: Iterable[int] = KS,
) -> Paired:
    """Compare two runs of the same images, image by image; their order may differ.

    `known` are the k of which both know the k best.
    """
    place = {key: i for i, key in enumerate(after.keys())}
    order = np.array([place[key] for key in before.keys()])  # noqa: SIM118 - a method
    labels = before.labels
    right = {
        k: (before.correct(form_before, k), after.correct(form_after, k)[order]) for k in known
    }
    top1 = before.top1[form_before], after.top1[form_after][order]
    rank = before.rank[form_before], after.rank[form_after][order]
    flips = [
        Flip(before.paths[i], *(int(column[i]) for column in (labels, *top1, *rank)))
        for i in np.flatnonzero(top1[0] != top1[1])
    ]
    worst_first = ("correct to wrong", "wrong to wrong", "wrong to correct")
    return Paired(
        lost={k: int((first & ~second).sum()) for k, (first, second) in right.items()},
        gained={k: int((second & ~first).sum()) for k, (first, second) in right.items()},
        flips=tuple(sorted(flips, key=lambda flip: (worst_first.index(flip.kind), flip.path))),
        classes=_class_changes(labels, *right[1]),
    )


def _class_changes(
    labels: NDArray[np.int64], before: NDArray[np.bool_], after: NDArray[np.bool_]
) -> tuple[ClassChange, ...]:
    images, first, second = (
        Counter(rows.tolist()) for rows in (labels, labels[before], labels[after])
    )
    changes = [
        ClassChange(label, number, first[label], second[label])
        for label, number in images.items()
        if first[label] != second[label]
    ]
    return tuple(sorted(changes, key=lambda change: (change.after - change.before, change.label)))


def _checks(before: Row, after: Row, paired: Paired | None, limits: Limits) -> tuple[Check, ...]:
    checks = []
    for k, limit in ((1, limits.top1), (5, limits.top5)):
        if k not in before.counts or k not in after.counts:
            checks.append(Check(f"top-{k}", None, "not checked: unknown on one side"))
            continue
        change = after.counts[k] - before.counts[k]
        checks.append(
            Check(
                f"top-{k}",
                -change <= limit.images(before.images),
                f"{change:+,} images; limit: a drop of {limit.shown(before.images)}",
            )
        )
    if limits.flips is None:
        checks.append(Check("flips", None, "not checked, as the weights differ"))
    elif paired is None:
        checks.append(Check("flips", None, "not checked: no predictions.csv on both sides"))
    else:
        kinds = paired.flips_by_kind
        worse = len(paired.flips) - kinds["wrong to correct"]
        words = ", ".join(f"{number} {kind}" for kind, number in kinds.items()) or "none"
        passed = worse <= limits.flips
        checks.append(
            Check("flips", passed, f"{words}; limit: {limits.flips} besides wrong to correct")
        )
    bad = after.bad_images - before.bad_images
    checks.append(
        Check("unreadable images", bad <= 0, f"{before.bad_images} before, {after.bad_images} now")
    )
    return tuple(checks)


def _notes(before: Row, after: Row) -> tuple[str, ...]:
    notes = []
    if before.cells == after.cells:
        notes.append("both are the same run")
    if before.verdict is Verdict.FAIL:
        notes.append("the verdict of the baseline is FAIL, which --allow-failed-baseline allows")
    if not _same_weights(before, after):
        notes.append("the weights differ or are unknown")
    for name in NOTED:
        first, second = before.cells[name], after.cells[name]
        if first != second:
            notes.append(f"{name} {first[:13] or 'unknown'} -> {second[:13] or 'unknown'}")
    return tuple(notes)


def _other_environment(baseline: Result, candidate: Result) -> tuple[str, ...]:
    """The machine and the versions that differ, beside those of `NOTED`."""
    before, after = baseline.environment, candidate.environment
    if not before or not after:
        return ()
    return tuple(
        f"{name} {before.get(name) or 'unknown'} -> {after.get(name) or 'unknown'}"
        for name in sorted((before.keys() | after.keys()) - {*NOTED})
        if before.get(name, "") != after.get(name, "")
    )
