"""``report.html``: the results of a run as a page for people.

The page is one self-contained file: styles, script, plots and thumbnails are embedded, and it loads
nothing. Its size depends on the number of classes and a fixed number of thumbnails, not on the
number of images. The template engine escapes all text from outside (names of files, classes and
results), and a content security policy lets only the page's own script run.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from eval.errors import EvalError
from eval.images.classes import ClassList
from eval.images.preprocess import BadImage
from eval.images.sets import VAL
from eval.judge.verdict import FormResult, Verdict
from eval.measure.engine import Measurement
from eval.metrics import TOP
from eval.results.calibration import confusions, coverage_curve, place_counts, reliability
from eval.results.plots import (
    Accuracy,
    accuracy_plot,
    coverage_plot,
    places_plot,
    reliability_plot,
)
from eval.results.schema import shown_facts
from eval.text import printable

if TYPE_CHECKING:
    from eval.results.record import Record

THUMBNAIL = 128  # pixels per side; about 5 kB each
MISTAKES = 24  # with thumbnails
FLIPS = 24  # with thumbnails
LISTED = 200  # most rows of a list that could be as long as the validation set
PAIRS = 25
NOTHING = "–"  # noqa: RUF001 - an en dash
MINUS = "−"  # noqa: RUF001 - as wide as the plus sign
SHARES = (1.0, 0.9, 0.8, 0.7, 0.5, 0.25)  # of the images, in the coverage table

_HEADLINES = {
    Verdict.PASS: "The result matches the {reference}, within the tolerance.",
    Verdict.NO_REFERENCE: "Measured; there is no reference to compare with.",
    Verdict.PARTIAL: "Only part of the set was measured, so it is not judged.",
    Verdict.FAIL: "The result does not match the {reference}.",
    Verdict.INCOMPLETE: "Some images could not be decoded, so the accuracy is not judged.",
    Verdict.DISAGREE: "The two forms disagree: do not deploy these weights.",
}
_COMPARED = (Verdict.PASS, Verdict.FAIL)


def html_report(evaluation: Record) -> str:
    """Make the page.

    Sections that can only show one form show the last one: if both were evaluated, that is the
    reparameterized form, which is the one that is deployed.

    Args:
        evaluation: a finished evaluation. Thumbnails are made from its images; images that can no
            longer be read have none.

    Returns:
        The HTML, which can be encoded as UTF-8.
    """
    measured, judgment = evaluation.measured, evaluation.judgment
    shown = judgment.forms[-1].form
    script = _resource("report.js")
    page = _environment(measured.valset.classes).get_template("report.html.jinja")
    preprocess = evaluation.subject.preprocess.name
    html = page.render(
        style=Markup(_resource("report.css")),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        name=evaluation.subject.name,
        subject=f"{evaluation.subject.title} on {_set_name(evaluation)}",
        caution=evaluation.subject.caution,
        provenance=evaluation.provenance,
        setup=evaluation.setup,
        preprocess=preprocess,
        shown=shown,
        results=judgment.forms,
        reference_word=evaluation.subject.published.reference_word,
        verdict=_verdict(evaluation),
        figures=_figures(evaluation),
        accuracy_plot=_accuracy_plot(evaluation),
        agreement=_agreement(evaluation),
        bad=_bad_images(measured),
        bad_count=len(measured.bad),
        tolerance=evaluation.subject.published.tolerance.get(preprocess),
        mistakes=_mistakes(evaluation, shown),
        pairs=_pairs(measured, shown),
        classes=_classes(measured, shown),
        empty_classes=len(measured.valset.classes) - len(np.unique(measured.labels)),
        confidence=_confidence(measured, shown),
        facts_groups=_facts_groups(evaluation),
    )
    # A file name may contain bytes that are not text; Python represents them as lone surrogates.
    return html.encode("utf-8", "backslashreplace").decode("utf-8")


def _set_name(evaluation: Record) -> str:
    """The name of the image set, for the title of the page."""
    if evaluation.subject.caution:
        return "synthetic images"
    image_set = evaluation.measured.valset.image_set
    return "the ImageNet validation set" if image_set is VAL else image_set.name


def _environment(classes: ClassList) -> Environment:
    environment = Environment(
        loader=PackageLoader("eval", "resources"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": _count,
        "millions": _millions,
        "fixed": _fixed,
        "signed": _signed,
        "class_name": lambda label: classes.title(label) if label >= 0 else NOTHING,
        "path": _path,
    }
    return environment


def _resource(name: str) -> str:
    return resources.files("eval").joinpath("resources", name).read_text(encoding="utf-8")


def _count(number: int | None) -> str:
    return NOTHING if number is None else f"{number:,}"


def _millions(number: int | None) -> str:
    return NOTHING if number is None else f"{number / 1e6:,.2f} M"


def _fixed(number: float | None, places: int = 3) -> str:
    return NOTHING if number is None else f"{number:.{places}f}"


def _signed(number: float, form: str = "+,") -> str:
    return format(number, form).replace("-", MINUS) if number else "0"


def _path(path: str) -> Markup:
    """A path with optional line breaks after its folders."""
    return Markup("/<wbr>").join(path.split("/"))  # escapes the parts


# ---- the verdict


@dataclass(frozen=True)
class _VerdictText:
    """The verdict at the top of the page.

    Attributes:
        name: the verdict of the run.
        headline: one sentence.
        groups: forms, with the name, percentage and description of their top-1 and top-5; forms
            with the same counts are one group.
        reasons: why nothing was judged, without repetitions.
        warnings: reasons to doubt the results, whatever the verdict.
    """

    name: str
    headline: str
    groups: list[tuple[str, list[tuple[str, float, str]]]]
    reasons: list[str]
    warnings: list[str]


def _verdict(evaluation: Record) -> _VerdictText:
    judgment = evaluation.judgment
    reference = evaluation.subject.published.reference_word
    groups: dict[tuple[tuple[str, float, str], ...], list[str]] = {}
    for result in judgment.forms:
        lines = tuple(
            (f"Top-{k}", result.accuracy(k), count_in_words(result, k, reference)) for k in (1, TOP)
        )
        groups.setdefault(lines, []).append(result.form)
    words = {"reported": "reported accuracy"}.get(reference, reference)
    disagreement = [judgment.disagreement] if judgment.disagreement else []
    reasons = [r.reason for r in judgment.forms if r.verdict not in _COMPARED]
    return _VerdictText(
        judgment.verdict.value,
        _HEADLINES[judgment.verdict].format(reference=words),
        [
            ("Both forms" if len(forms) > 1 else forms[0].capitalize(), list(lines))
            for lines, forms in groups.items()
        ],
        list(dict.fromkeys(reasons)),
        [*disagreement, *judgment.warnings],
    )


def count_in_words(result: FormResult, k: int, reference: str = "reported") -> str:
    """Describe a count and its difference from the reference, in images.

    Args:
        result: the judgment of a form.
        k: 1 or 5.
        reference: the name of the reference.

    >>> count_in_words(result, 1)  # doctest: +SKIP
    '38,497 of 50,000, 23 fewer than reported; tolerance 25: PASS'
    """
    reported, gap = result.reference[k], result.gap(k)
    text = f"{result.correct[k]:,} of {result.images:,}"
    if gap is not None:
        direction = "fewer" if gap < 0 else "more"
        text += f", {abs(gap):,} {direction} than" if gap else ", exactly as many as"
        text += f" {reference if reference == 'reported' else f'the {reference}'}"
        if result.verdict in _COMPARED and result.tolerance is not None:
            within = "PASS" if abs(gap) <= result.tolerance else "FAIL"
            text += f"; tolerance {result.tolerance:,}: {within}"
    elif result.verdict is Verdict.PARTIAL:
        low, high = result.interval(k)
        text += f"; 95 % interval {low:.2f} to {high:.2f} %"
        if reported is not None:
            where = "inside" if low <= reported <= high else "outside"
            text += f" ({reference}: {reported} %, {where})"
    return text


# ---- the table of results


@dataclass(frozen=True)
class _Figures:
    """A row of the table; None is shown as a dash."""

    name: str
    kind: str  # measured, reported or other (third-party)
    note: str
    top1: float | None
    top5: float | None
    correct: tuple[int | None, int | None] = (None, None)
    gap: tuple[int | None, int | None] = (None, None)
    nll: float | None = None
    params: int | None = None
    macs: int | None = None


def _figures(evaluation: Record) -> list[_Figures]:
    subject, measured = evaluation.subject, evaluation.measured
    rows = [
        _Figures(
            name=result.form,
            kind="measured",
            note="",
            top1=result.accuracy(1),
            top5=result.accuracy(TOP),
            correct=(result.correct[1], result.correct[TOP]),
            gap=(result.gap(1), result.gap(TOP)),
            nll=measured.scores[result.form].mean_nll,
            params=subject.params.get(result.form),
            macs=subject.macs.get(result.form),
        )
        for result in evaluation.judgment.forms
    ]
    rows += [
        _Figures(
            name=f"{form}, {score.name} labels",
            kind="measured",
            note=f"on the {score.images:,} images that have such labels",
            top1=score.top1,
            top5=score.top5,
            correct=(score.top1_correct, score.top5_correct),
        )
        for form, score in evaluation.by_other_labels
    ]
    first = evaluation.judgment.forms[0]
    if first.reference[1] is not None:
        rows.append(
            _Figures(
                subject.published.reference_word,
                "reported",
                first.reference_source,
                first.reference[1],
                first.reference[TOP],
                correct=(first.expected.get(1), first.expected.get(TOP)),
            )
        )
    rows += [
        _Figures(other.name, "other", other.source, other.top1, other.top5)
        for other in subject.published.others_on(measured.valset.image_set.name)
    ]
    return rows


def _accuracy_plot(evaluation: Record) -> Markup:
    results = evaluation.judgment.forms
    rows = [Accuracy(result.form, result.accuracy(1), result.interval()) for result in results]
    image_set = evaluation.measured.valset.image_set
    rows += [
        Accuracy(other.name, other.top1)
        for other in evaluation.subject.published.others_on(image_set.name)
    ]
    return accuracy_plot(rows, results[0].reference[1])


# ---- single images


@dataclass(frozen=True)
class _Card:
    """One image with its predictions.

    Attributes:
        path: inside the validation set.
        thumbnail: a data URI; None if the image cannot be shown.
        label: its class.
        answers: for each form shown: its name, its top-1 class and probability, and the position of
            the label (1 is best).
    """

    path: str
    thumbnail: str | None
    label: int
    answers: list[tuple[str, int, float, int]]


def _card(evaluation: Record, index: int, forms: Iterable[str], *, thumbnail: bool) -> _Card:
    measured = evaluation.measured
    sample = measured.valset.samples[index]
    answers = []
    for form in forms:
        scores = measured.scores[form]
        place = int(scores.rank[index]) + 1
        answers.append((form, int(scores.top[index, 0]), float(scores.prob[index, 0]), place))
    picture = _thumbnail(evaluation, sample.path) if thumbnail else None
    return _Card(sample.path, picture, sample.label, answers)


def _thumbnail(evaluation: Record, path: str) -> str | None:
    """The model's crop, reduced, as a data URI; None if it cannot be made.

    A missing thumbnail must not prevent the report: the images may have been moved, or the
    preprocessing may be unknown, as for predictions made by another program.
    """
    try:
        crop = evaluation.subject.preprocess.crop(evaluation.measured.valset.read(path))
    except (BadImage, EvalError, OSError):
        return None
    file = io.BytesIO()
    small = Image.fromarray(crop).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    small.save(file, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class _Agreement:
    """How well the predictions of the two forms agree.

    Attributes:
        flips: number of images with different top-1 predictions.
        max_diff: largest absolute difference of a logit.
        where: path of the image with that difference.
        cards: the first flips, with thumbnails.
        listed: the next flips, without thumbnails.
    """

    flips: int
    max_diff: float | None
    where: str
    cards: list[_Card]
    listed: list[_Card]


def _agreement(evaluation: Record) -> _Agreement | None:
    """Compare the forms; None if there is only one."""
    measured = evaluation.measured
    if len(measured.scores) < 2:
        return None
    flips = [int(index) for index in measured.flips]
    forms = list(measured.scores)
    return _Agreement(
        len(flips),
        measured.max_logit_diff,
        measured.where_logits_differ,
        [_card(evaluation, i, forms, thumbnail=True) for i in flips[:FLIPS]],
        [_card(evaluation, i, forms, thumbnail=False) for i in flips[FLIPS:][:LISTED]],
    )


def _mistakes(evaluation: Record, form: str) -> list[_Card]:
    """The wrong predictions with the greatest confidence."""
    scores = evaluation.measured.scores[form]
    confidence = scores.prob[:, 0]
    wrong = np.flatnonzero((scores.rank > 0) & np.isfinite(confidence))
    first = wrong[np.argsort(-confidence[wrong], kind="stable")[:MISTAKES]]
    return [_card(evaluation, int(i), [form], thumbnail=True) for i in first]


def _bad_images(measured: Measurement) -> list[tuple[str, str]]:
    """Path and reason of the first images that could not be decoded."""
    first = sorted(measured.bad.items())[:LISTED]
    return [(measured.valset.samples[index].path, reason) for index, reason in first]


# ---- classes


@dataclass(frozen=True)
class _ClassRow:
    """One class, with at least one image."""

    label: int
    synset: str
    name: str
    images: int
    correct1: list[int]  # of each form
    top1: float
    top5: float
    taken_for: tuple[int, int] | None  # most frequent wrong prediction, and how often


def _pairs(measured: Measurement, form: str) -> list[dict[str, int]]:
    """The most frequent confusions, without those that happened only once."""
    pairs = confusions(*_answered_classes(measured, form))
    frequent = pairs[pairs["images"] > 1].head(PAIRS)
    return [{str(k): int(v) for k, v in row.items()} for row in frequent.to_dict("records")]


def _classes(measured: Measurement, form: str) -> list[_ClassRow]:
    """The classes that have images, worst first."""
    classes = measured.valset.classes
    labels = measured.labels
    images = np.bincount(labels, minlength=len(classes))
    correct = {
        k: [s.correct_per_class(labels, k, len(classes)) for s in measured.scores.values()]
        for k in (1, TOP)
    }
    shown = list(measured.scores).index(form)
    pairs = confusions(*_answered_classes(measured, form)).drop_duplicates("label")
    taken_for = {
        int(label): (int(predicted), int(count))
        for label, predicted, count in zip(
            pairs["label"], pairs["predicted"], pairs["images"], strict=True
        )
    }
    rows = [
        _ClassRow(
            label=int(label),
            synset=classes.rows[label].folder,
            name=classes.rows[label].title,
            images=int(images[label]),
            correct1=[int(counts[label]) for counts in correct[1]],
            top1=100 * float(correct[1][shown][label] / images[label]),
            top5=100 * float(correct[TOP][shown][label] / images[label]),
            taken_for=taken_for.get(int(label)),
        )
        for label in np.flatnonzero(images)
    ]
    return sorted(rows, key=lambda row: (row.top1, row.top5, row.label))


def _answered_classes(
    measured: Measurement, form: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels and top-1 classes, int64 (N,) each, of the images that have a prediction."""
    best = measured.scores[form].top[:, 0]
    answered = best >= 0
    return measured.labels[answered], best[answered]


# ---- confidence


@dataclass(frozen=True)
class _Confidence:
    """The calibration of the top-1 probabilities.

    Attributes:
        images: number of images with a probability.
        ece: expected calibration error of each form, in percentage points.
        excess: mean confidence minus accuracy, in percentage points.
        coverage: rows of coverage in percent, lowest confidence (0 to 1), and accuracy in percent.
        reliability_plot, coverage_plot, places_plot: SVG.
    """

    images: int
    ece: dict[str, float]
    excess: float
    coverage: list[tuple[float, float, float]]
    reliability_plot: Markup
    coverage_plot: Markup
    places_plot: Markup


def _confidence(measured: Measurement, form: str) -> _Confidence | None:
    """None if a form has no probabilities, as predictions of another program may."""
    bins = {}
    for name, scores in measured.scores.items():
        answered = (scores.rank >= 0) & np.isfinite(scores.prob[:, 0])
        if not answered.any():
            return None
        bins[name] = reliability(scores.prob[answered, 0], scores.rank[answered] == 0)
    scores = measured.scores[form]
    answered = (scores.rank >= 0) & np.isfinite(scores.prob[:, 0])
    confidence, correct = scores.prob[answered, 0], scores.rank[answered] == 0
    curve = coverage_curve(confidence, correct)
    entries = dict.fromkeys(curve.keeping(share) for share in SHARES)
    return _Confidence(
        images=int(answered.sum()),
        ece={name: 100 * values.ece for name, values in bins.items()},
        excess=100 * float(confidence.mean() - correct.mean()),
        coverage=[
            (
                100 * float(curve.coverage[entry]),
                float(curve.confidence[entry]),
                100 * float(curve.accuracy[entry]),
            )
            for entry in entries
        ],
        reliability_plot=reliability_plot(bins[form]),
        coverage_plot=coverage_plot(curve),
        places_plot=places_plot(place_counts(scores.rank[answered])),
    )


# ---- how to reproduce this run


def _facts_groups(evaluation: Record) -> list[tuple[str, list[tuple[str, str]]]]:
    """The facts needed to reproduce the run, as rows of name and text, by heading."""
    return [
        (title, [pair for name, value in facts for pair in _entries(name, value)])
        for title, facts in shown_facts(evaluation).items()
    ]


_OWN_NAMES = ("settings", "versions", "files")  # tables with self-explanatory keys


def _entries(name: str, value: Any) -> list[tuple[str, str]]:
    """A fact as rows of name and text; a table has one row per key."""
    if isinstance(value, dict):
        prefix = "" if name in _OWN_NAMES else f"{name}, "
        return [(f"{prefix}{key}", _text(item)) for key, item in value.items()]
    return [(name, _text(value))]


def _text(value: Any) -> str:
    if value is None or value == "":
        return NOTHING
    if isinstance(value, float):
        return f"{value:.1f}"
    counted = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if counted else str(value)
