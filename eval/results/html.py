"""``report.html``: the results of a run as a page for people.

The page is one self-contained file: styles, script, plots and thumbnails are embedded, and it loads
nothing. Its size depends on the number of classes and a fixed number of thumbnails, not on the
number of images. The template engine escapes all text from outside (names of files, classes and
results), and a content security policy lets only the page's own script run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup
from PIL import Image

from eval.errors import EvalError
from eval.images.preprocess import BadImage
from eval.images.sets import VAL
from eval.judge.verdict import FormResult, Verdict
from eval.measure.measurement import Measurement
from eval.metrics import TOP, ClassFigures
from eval.results.calibration import coverage_curve, place_counts, reliability
from eval.results.plots import Accuracy, accuracy_plot, coverage_plot, places_plot, reliability_plot
from eval.results.schema import confusions_of, shown_facts
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
    subject = evaluation.subject
    shown = judgment.forms[-1].form
    script = _resource("report.js")
    page = _environment().get_template("report.html.jinja")
    word = subject.published.reference_word
    return page.render(
        style=Markup(_resource("report.css")),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        evaluation=evaluation,
        subject=subject,
        measured=measured,
        judgment=judgment,
        samples=measured.valset.samples,
        results=judgment.forms,
        image_set=_set_name(evaluation),
        headline=_HEADLINES[judgment.verdict].format(
            reference="reported accuracy" if word == "reported" else word
        ),
        groups=_groups(judgment.forms, word),
        reasons=dict.fromkeys(r.reason for r in judgment.forms if r.verdict not in _COMPARED),
        others=subject.published.others_on(measured.valset.image_set.name),
        tolerance=subject.published.tolerance.get(subject.preprocess.name),
        accuracy_plot=_accuracy_plot(evaluation),
        shown=shown,
        flips=measured.flips.tolist() if len(measured.scores) > 1 else [],
        bad=sorted(measured.bad.items()),
        mistakes=_mistakes(measured, shown),
        pairs=_pairs(measured, shown),
        classes=_classes(measured, shown),
        averages={
            form: ClassFigures.of(scores, measured.labels, len(measured.valset.classes))
            for form, scores in measured.scores.items()
        },
        empty_classes=len(measured.valset.classes) - len(np.unique(measured.labels)),
        confidence=_confidence(measured, shown),
        facts_groups=_facts_groups(evaluation),
        limits={"flips": FLIPS, "listed": LISTED},
    )


def _set_name(evaluation: Record) -> str:
    """The name of the image set, for the title of the page."""
    if evaluation.subject.caution:
        return "synthetic images"
    image_set = evaluation.measured.valset.image_set
    return "the ImageNet validation set" if image_set == VAL else image_set.title


@functools.cache  # compiling the page takes longer than filling it in
def _environment() -> Environment:
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
        "class_name": _class_name,
        "path": _path,
        "thumbnail": _thumbnail_of,
    }
    return environment


@pass_context
def _class_name(context: Context, label: int) -> str:
    classes = context["measured"].valset.classes
    return classes.title(label) if label >= 0 else NOTHING


@pass_context
def _thumbnail_of(context: Context, path: str) -> str | None:
    return _thumbnail(context["evaluation"], path)


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


def _groups(
    results: Sequence[FormResult], reference: str
) -> dict[tuple[tuple[str, float, str], ...], list[str]]:
    """Name, percentage and description of top-1 and top-5, with the forms that share them."""
    groups: dict[tuple[tuple[str, float, str], ...], list[str]] = {}
    for result in results:
        lines = tuple(
            (f"Top-{k}", result.accuracy(k), count_in_words(result, k, reference))
            for k in result.correct
        )
        groups.setdefault(lines, []).append(result.form)
    return groups


def count_in_words(result: FormResult, k: int, reference: str = "reported") -> str:
    """Describe a count and its difference from the reference, in images.

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


def _accuracy_plot(evaluation: Record) -> Markup:
    results = evaluation.judgment.forms
    rows = [Accuracy(result.form, result.accuracy(1), result.interval()) for result in results]
    image_set = evaluation.measured.valset.image_set
    rows += [
        Accuracy(printable(other.name), other.top1)
        for other in evaluation.subject.published.others_on(image_set.name)
    ]
    return accuracy_plot(rows, results[0].reference[1])


# ---- single images


def _thumbnail(evaluation: Record, path: str) -> str | None:
    """The model's crop, reduced, as a data URI; None if it cannot be made.

    A missing thumbnail must not prevent the report: the images may have been moved, or the
    preprocessing may be unknown, as for predictions made by another program.
    """
    preprocess = evaluation.subject.preprocess
    try:
        crop = preprocess.crop(evaluation.measured.valset.read(path))
    except (BadImage, EvalError, OSError):
        return None
    if preprocess.recipe is not None and preprocess.recipe.channels == "bgr":
        crop = crop[:, :, ::-1]
    file = io.BytesIO()
    small = Image.fromarray(crop).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    small.save(file, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _mistakes(measured: Measurement, form: str) -> list[int]:
    """Indices of the wrong predictions with the greatest confidence."""
    scores = measured.scores[form]
    confidence = scores.prob[:, 0]
    wrong = np.flatnonzero((scores.rank > 0) & np.isfinite(confidence))
    first: list[int] = wrong[np.argsort(-confidence[wrong], kind="stable")[:MISTAKES]].tolist()
    return first


# ---- classes


def _pairs(measured: Measurement, form: str) -> list[dict[str, int]]:
    """The most frequent confusions, without those that happened only once."""
    pairs = confusions_of(measured, form)
    frequent = pairs[pairs["images"] > 1].head(PAIRS)
    return [{str(k): int(v) for k, v in row.items()} for row in frequent.to_dict("records")]


def _classes(measured: Measurement, form: str) -> list[dict[str, Any]]:
    """The classes that have images, worst first.

    `correct` has the count of each form, `taken_for` the most frequent wrong prediction and how
    often it was made.
    """
    classes = measured.valset.classes
    labels = measured.labels
    images = np.bincount(labels, minlength=len(classes))
    correct = {
        k: [s.correct_per_class(labels, k, len(classes)) for s in measured.scores.values()]
        for k in (1, TOP)
    }
    shown = list(measured.scores).index(form)
    is_known = measured.scores[form].known >= TOP
    figures = ClassFigures.of(measured.scores[form], labels, len(classes))
    pairs = confusions_of(measured, form).drop_duplicates("label")
    taken_for = {
        int(label): (int(predicted), int(count))
        for label, predicted, count in zip(
            pairs["label"], pairs["predicted"], pairs["images"], strict=True
        )
    }
    rows = [
        {
            "label": int(label),
            "synset": classes.rows[label].folder,
            "name": classes.rows[label].title,
            "images": int(images[label]),
            "correct": [int(counts[label]) for counts in correct[1]],
            "top1": 100 * float(correct[1][shown][label] / images[label]),
            "top5": 100 * float(correct[TOP][shown][label] / images[label]) if is_known else None,
            "precision": _number(figures.precision[label]),
            "f1": _number(figures.f1[label]),
            "taken_for": taken_for.get(int(label)),
        }
        for label in np.flatnonzero(images)
    ]
    return sorted(rows, key=lambda row: (row["top1"], row["top5"] or 0.0, row["label"]))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


# ---- confidence


def _confidence(measured: Measurement, form: str) -> dict[str, Any] | None:
    """The calibration of the top-1 probabilities, with its plots; None if a form has none.

    `ece` is the expected calibration error of each form, and `excess` the mean confidence minus the
    accuracy, both in percentage points; `coverage` has rows of coverage in percent, lowest
    confidence (0 to 1) and accuracy in percent.
    """
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
    return {
        "images": int(answered.sum()),
        "ece": {name: 100 * values.ece for name, values in bins.items()},
        "excess": 100 * float(confidence.mean() - correct.mean()),
        "coverage": [
            (
                100 * float(curve.coverage[entry]),
                float(curve.confidence[entry]),
                100 * float(curve.accuracy[entry]),
            )
            for entry in entries
        ],
        "reliability_plot": reliability_plot(bins[form]),
        "coverage_plot": coverage_plot(curve),
        "places_plot": (
            places_plot(place_counts(scores.rank[answered], scores.listed))
            if scores.known >= TOP
            else None
        ),
    }


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
