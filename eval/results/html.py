"""``report.html``: what a run found, for a person who would rather look than read.

One file that needs no network and no other file: styles, script, plots and thumbnails are inside.
Its size is bounded by the 1000 classes and a fixed number of thumbnails, not by the images. What
comes from outside (names of files, classes and figures) is escaped by the template engine, and a
content security policy lets only the page's own script run.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from eval.errors import EvalError, LogitsError
from eval.images.classes import imagenet_classes
from eval.images.preprocess import PREPROCESS, BadImage
from eval.images.sets import VAL
from eval.judge.verdict import FormResult, Verdict, check_forms_agree
from eval.measure.engine import Measurement
from eval.measure.metrics import TOP, wilson_interval
from eval.results.calibration import confusions, coverage_curve, place_counts, reliability
from eval.results.files import write_atomically
from eval.results.plots import Accuracy, accuracy_plot, coverage_plot, places_plot, reliability_plot
from eval.results.write import RunFacts, mean_nll
from pplcnet import VARIANTS

DEMO = "demo"  # name of the configuration that says nothing about ImageNet
THUMBNAIL = 128  # pixels a side, about 5 kB each
MISTAKES = 24  # with thumbnails
FLIPS = 24  # with thumbnails
LISTED = 200  # rows of a list that could be as long as the val set
PAIRS = 25
NOTHING = "–"  # noqa: RUF001 - an en dash
MINUS = "−"  # noqa: RUF001 - as wide as the plus
SHARES = (1.0, 0.9, 0.8, 0.7, 0.5, 0.25)  # of the images, in the table of coverage

# From the mildest to the gravest: the page's headline is that of the gravest form.
_HEADLINES = {
    Verdict.PASS: "This is the reported accuracy, within the tolerance.",
    Verdict.NO_REFERENCE: "Measured, and compared with nothing.",
    Verdict.PARTIAL: "Only a part of the set was measured, so nothing is compared.",
    Verdict.INCOMPLETE: "Some images could not be decoded: these figures are not complete.",
    Verdict.FAIL: "This is not the reported accuracy.",
}
_DEMO_HEADLINES = _HEADLINES | {
    Verdict.PASS: "The demo gives its known answer.",
    Verdict.FAIL: "The demo does not give its known answer: do not trust this installation.",
    Verdict.PARTIAL: "Only a part of the demo set was measured, so nothing is compared.",
}
_JUDGED = (Verdict.PASS, Verdict.FAIL)


def write_html_report(
    output: Path, facts: RunFacts, measured: Measurement, results: Sequence[FormResult]
) -> None:
    """Write ``report.html`` into a folder.

    Raises:
        UsageError: the folder cannot be written to.
    """
    write_atomically(output / "report.html", html_report(facts, measured, results))


def html_report(facts: RunFacts, measured: Measurement, results: Sequence[FormResult]) -> str:
    """The whole page.

    Where something can be shown of one form only, it is that of the last one: with both, the
    reparameterized form, which is what gets deployed.

    Args:
        facts: how the run was made.
        measured: what it found; thumbnails are made from its images, as far as they can be read.
        results: the judgement of each form, at least one.
    """
    shown = results[-1].form
    script = _resource("report.js")
    page = _environment().get_template("report.html.jinja")
    html = page.render(
        facts=facts,
        style=Markup(_resource("report.css")),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        subject=_subject(facts, measured),
        demo=facts.variant.name == DEMO,
        shown=shown,
        results=results,
        verdict=_verdict(facts, measured, results),
        figures=_figures(facts, measured, results),
        accuracy_plot=_accuracy_plot(facts, measured, results),
        agreement=_agreement(facts, measured),
        bad=_bad_images(measured),
        bad_count=len(measured.bad),
        tolerance=facts.variant.tolerance.get(facts.preprocess),
        mistakes=_mistakes(facts, measured, shown),
        pairs=_pairs(measured, shown),
        classes=_classes(measured, shown),
        empty_classes=len(imagenet_classes()) - len(np.unique(measured.labels)),
        confidence=_confidence(measured, shown),
        facts_groups=_facts_groups(facts, measured),
    )
    # A file name may hold bytes that are no text, which Python keeps as lone surrogates.
    return html.encode("utf-8", "backslashreplace").decode("utf-8")


def _subject(facts: RunFacts, measured: Measurement) -> str:
    """What was measured on what."""
    if facts.variant.name == DEMO:
        return "PP-LCNetV2 on the demo set"
    image_set = measured.valset.image_set
    where = "the ImageNet validation set" if image_set is VAL else image_set.name
    model = "PP-LCNetV2" if facts.variant.model in VARIANTS else "A model of timm's"
    return f"{model} on {where}"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("eval", "resources"),
        autoescape=True,
        undefined=StrictUndefined,
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


def _class_name(label: int) -> str:
    """A short name that is unique, which WordNet's alone are not."""
    if label < 0:
        return NOTHING
    return f"{imagenet_classes()[label].name.partition(',')[0]} ({label})"


def _path(path: str) -> Markup:
    """A file name that may be broken after its folders."""
    return Markup("/<wbr>").join(path.split("/"))  # escapes what it joins


# ---- the verdict, in words and in images


@dataclass(frozen=True)
class _VerdictText:
    """The first thing on the page.

    Attributes:
        name: of the gravest verdict.
        headline: one sentence.
        groups: forms, and what is said of their top-1 and top-5; forms with the same counts are
            one group.
        reasons: why nothing was judged, in the judge's own words, each once.
        warnings: what makes the figures doubtful whatever the verdict.
    """

    name: str
    headline: str
    groups: list[tuple[str, list[tuple[str, float, str]]]]
    reasons: list[str]
    warnings: list[str]


def _verdict(facts: RunFacts, measured: Measurement, results: Sequence[FormResult]) -> _VerdictText:
    gravest = max((result.verdict for result in results), key=list(_HEADLINES).index)
    demo = facts.variant.name == DEMO
    name, headline = gravest.value, (_DEMO_HEADLINES if demo else _HEADLINES)[gravest]
    reference = "the known answer" if demo else "reported"
    warnings = []
    try:
        check_forms_agree(measured, facts.precision)
    except LogitsError as error:
        name, headline = "DISAGREE", "The two forms disagree: do not deploy these weights."
        warnings.append(str(error))
    if results[0].images >= 200 and max(result.top1 for result in results) < 1:
        warnings.append(
            "Below 1 %: are the labels in another order, or the weights of another set?"
        )

    groups: dict[tuple[tuple[str, float, str], ...], list[str]] = {}
    for result in results:
        lines = (
            ("Top-1", result.top1, count_in_words(result, 1, reference)),
            ("Top-5", result.top5, count_in_words(result, TOP, reference)),
        )
        groups.setdefault(lines, []).append(result.form)
    return _VerdictText(
        name,
        headline,
        [
            ("Both forms" if len(forms) > 1 else forms[0].capitalize(), list(lines))
            for lines, forms in groups.items()
        ],
        list(dict.fromkeys(r.reason for r in results if r.verdict not in _JUDGED)),
        warnings,
    )


def count_in_words(result: FormResult, k: int, reference: str = "reported") -> str:
    """A count, and how far it is from the reported one: in images, as it is judged.

    Args:
        result: the judgement of a form.
        k: 1 or 5.
        reference: what the counts are compared with, in words.

    >>> count_in_words(result, 1)  # doctest: +SKIP
    '38,497 of 50,000, 23 fewer than reported; tolerance 25: PASS'
    """
    correct = result.top1_correct if k == 1 else result.top5_correct
    reported = result.reference_top1 if k == 1 else result.reference_top5
    gap = image_gap(result, k)
    text = f"{correct:,} of {result.images:,}"
    if gap is not None:
        direction = "fewer" if gap < 0 else "more"
        text += f", {abs(gap):,} {direction} than" if gap else ", exactly as many as"
        text += f" {reference}"
        if result.verdict in _JUDGED and result.tolerance is not None:
            within = Verdict.PASS if abs(gap) <= result.tolerance else Verdict.FAIL
            text += f"; tolerance {result.tolerance:,}: {within.value}"
    elif result.verdict is Verdict.PARTIAL:
        low, high = wilson_interval(correct, result.images)
        text += f"; 95 % interval {low:.2f} to {high:.2f} %"
        if reported is not None:
            where = "inside" if low <= reported <= high else "outside"
            text += f" ({reference}: {reported} %, {where})"
    return text


def image_gap(result: FormResult, k: int) -> int | None:
    """Images more (or fewer) than reported; None where that would compare unlike sets of images."""
    correct = result.top1_correct if k == 1 else result.top5_correct
    reported = result.reference_top1 if k == 1 else result.reference_top5
    whole = result.images >= result.images_expected and result.verdict is not Verdict.INCOMPLETE
    if reported is None or not whole:
        return None
    return correct - round(reported / 100 * result.images_expected)


# ---- the figures, side by side


@dataclass(frozen=True)
class _Figures:
    """A row of the table; None is shown as a dash."""

    name: str
    kind: str  # measured, reported or other
    note: str
    top1: float | None
    top5: float | None
    correct: tuple[int | None, int | None] = (None, None)
    gap: tuple[int | None, int | None] = (None, None)
    interval: tuple[float, float] | None = None
    nll: float | None = None
    params: int | None = None
    macs: int | None = None


def _figures(
    facts: RunFacts, measured: Measurement, results: Sequence[FormResult]
) -> list[_Figures]:
    rows = [
        _Figures(
            name=result.form,
            kind="measured",
            note="",
            top1=result.top1,
            top5=result.top5,
            correct=(result.top1_correct, result.top5_correct),
            gap=(image_gap(result, 1), image_gap(result, TOP)),
            interval=result.top1_interval,
            nll=mean_nll(measured.scores[result.form]),
            params=facts.params.get(result.form),
            macs=facts.macs.get(result.form),
        )
        for result in results
    ]
    rows += [
        _Figures(
            name=f"{form}, ReaL labels",
            kind="measured",
            note=f"of {real.images:,} images that have some",
            top1=real.top1,
            top5=real.top5,
            correct=(real.top1_correct, real.top5_correct),
        )
        for form, real in (facts.real or {}).items()
    ]
    first = results[0]
    if first.reference_top1 is not None:
        in_images = tuple(
            None if figure is None else round(figure / 100 * first.images_expected)
            for figure in (first.reference_top1, first.reference_top5)
        )
        rows.append(
            _Figures(
                "reported",
                "reported",
                first.reference_source,
                first.reference_top1,
                first.reference_top5,
                correct=(in_images[0], in_images[1]),
            )
        )
    rows += [
        _Figures(other.name, "other", other.source, other.top1, other.top5)
        for other in facts.variant.others_on(measured.valset.image_set)
    ]
    return rows


def _accuracy_plot(facts: RunFacts, measured: Measurement, results: Sequence[FormResult]) -> Markup:
    rows = [Accuracy(result.form, result.top1, result.top1_interval) for result in results]
    others = facts.variant.others_on(measured.valset.image_set)
    rows += [Accuracy(other.name, other.top1) for other in others]
    return accuracy_plot(rows, results[0].reference_top1)


# ---- single images


@dataclass(frozen=True)
class _Card:
    """One image that is looked at.

    Attributes:
        path: inside the val set.
        thumbnail: a data URI; None where the image cannot be shown.
        label: its class.
        answers: of each form, or of the one: its name, class, probability and the label's place.
    """

    path: str
    thumbnail: str | None
    label: int
    answers: list[tuple[str, int, float, int]]


def _card(
    facts: RunFacts, measured: Measurement, index: int, forms: Iterable[str], *, thumbnail: bool
) -> _Card:
    sample = measured.valset.samples[index]
    answers = []
    for form in forms:
        scores = measured.scores[form]
        place = int(scores.rank[index]) + 1
        answers.append((form, int(scores.top[index, 0]), float(scores.prob[index, 0]), place))
    picture = _thumbnail(facts, measured, sample.path) if thumbnail else None
    return _Card(sample.path, picture, sample.label, answers)


def _thumbnail(facts: RunFacts, measured: Measurement, path: str) -> str | None:
    """The crop that the model saw, smaller; None where it cannot be made again.

    A picture is not worth a report: the images may lie elsewhere by now, or were never here
    (predictions of another device).
    """
    preprocess = PREPROCESS.get(facts.preprocess)
    if preprocess is None:
        return None
    try:
        crop = preprocess.crop(measured.valset.read(path))
    except (BadImage, EvalError, OSError):
        return None
    file = io.BytesIO()
    small = Image.fromarray(crop).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    small.save(file, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class _Agreement:
    """What the two forms say of the same images.

    Attributes:
        flips: images whose best class differs.
        max_diff: largest absolute difference of any logit.
        where: the image of that difference.
        cards: the first flips, with thumbnails.
        listed: the next ones, without.
    """

    flips: int
    max_diff: float | None
    where: str
    cards: list[_Card]
    listed: list[_Card]


def _agreement(facts: RunFacts, measured: Measurement) -> _Agreement | None:
    """None for a single form."""
    if len(measured.scores) < 2:
        return None
    flips = [int(index) for index in measured.flips]
    max_diff = measured.max_logit_diff
    where = ""
    if max_diff is not None:
        where = measured.valset.samples[int(np.nanargmax(measured.logit_diff))].path
    forms = list(measured.scores)
    return _Agreement(
        len(flips),
        max_diff,
        where,
        [_card(facts, measured, i, forms, thumbnail=True) for i in flips[:FLIPS]],
        [_card(facts, measured, i, forms, thumbnail=False) for i in flips[FLIPS:][:LISTED]],
    )


def _mistakes(facts: RunFacts, measured: Measurement, form: str) -> list[_Card]:
    """The wrong answers that were given with the greatest confidence."""
    scores = measured.scores[form]
    confidence = scores.prob[:, 0]
    wrong = np.flatnonzero((scores.rank > 0) & np.isfinite(confidence))
    first = wrong[np.argsort(-confidence[wrong], kind="stable")[:MISTAKES]]
    return [_card(facts, measured, int(i), [form], thumbnail=True) for i in first]


def _bad_images(measured: Measurement) -> list[tuple[str, str]]:
    """Path and reason of the first images that could not be decoded."""
    first = sorted(measured.bad.items())[:LISTED]
    return [(measured.valset.samples[index].path, reason) for index, reason in first]


# ---- classes


@dataclass(frozen=True)
class _ClassRow:
    """One class that has images."""

    label: int
    synset: str
    name: str
    images: int
    correct1: list[int]  # of each form
    top1: float
    top5: float
    taken_for: tuple[int, int] | None  # most frequent wrong answer, and how often


def _pairs(measured: Measurement, form: str) -> list[dict[str, int]]:
    """The most frequent confusions; those that happened once are no pattern."""
    pairs = confusions(*_answered_classes(measured, form))
    frequent = pairs[pairs["images"] > 1].head(PAIRS)
    return [{str(k): int(v) for k, v in row.items()} for row in frequent.to_dict("records")]


def _classes(measured: Measurement, form: str) -> list[_ClassRow]:
    """Worst first."""
    classes = imagenet_classes()
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
            synset=classes[label].synset,
            name=classes[label].name,
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
    """Labels and best classes of the images that were answered."""
    best = measured.scores[form].top[:, 0]
    answered = best >= 0
    return measured.labels[answered], best[answered]


# ---- confidence


@dataclass(frozen=True)
class _Confidence:
    """What the probabilities are worth.

    Attributes:
        images: how many have one.
        ece: of each form, in points.
        excess: mean confidence minus accuracy, in points.
        coverage: rows of share, lowest confidence and accuracy, in percent but the confidence.
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
    """None where no answer has a probability, as those of another device may."""
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


# ---- how to repeat it

_GROUPS = {
    "Run": ("run_id", "started_at", "machine", "git_commit"),
    "Model": ("weights", "weights_sha256", "weights_layout", "params", "macs"),
    "Images": ("data", "layout", "limit"),
    "Pipeline": (
        "preprocess",
        "preprocess_description",
        "backend",
        "device",
        "precision",
        "batch_size",
        "workers",
        "processes",
        "settings",
    ),
    "Versions": ("versions",),
}
_ELSEWHERE = ("command", "variant")


def _facts_groups(
    facts: RunFacts, measured: Measurement
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Every field of `RunFacts`, also those that are added later, and what the run adds."""
    values: dict[str, Any] = {field.name: getattr(facts, field.name) for field in fields(facts)}
    groups = {
        title: [
            pair for name in names if name in values for pair in _entries(name, values.pop(name))
        ]
        for title, names in _GROUPS.items()
    }
    for name in _ELSEWHERE:
        values.pop(name)
    rate = measured.images_per_second
    groups["Run"] += [
        ("seconds", f"{measured.seconds:.1f}"),
        ("images per second", "" if rate is None else f"{rate:.1f}"),
    ]
    groups["Images"] += [
        ("images", f"{len(measured.valset.samples):,}"),
        ("bad images", f"{len(measured.bad):,}"),
        ("dataset sha256", measured.dataset_sha256),
    ]
    groups["Other"] = [pair for name, value in values.items() for pair in _entries(name, value)]
    return [(title, rows) for title, rows in groups.items() if rows]


def _entries(name: str, value: Any) -> list[tuple[str, str]]:
    """A field as rows of name and text; a table has one for each of its keys."""
    words = name.replace("_", " ")
    if isinstance(value, dict):
        prefix = "" if name in ("settings", "versions") else f"{words}, "
        return [(f"{prefix}{key}", _text(item)) for key, item in value.items()]
    return [(words, _text(value))]


def _text(value: Any) -> str:
    if value is None or value == "":
        return NOTHING
    counted = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if counted else str(value)
