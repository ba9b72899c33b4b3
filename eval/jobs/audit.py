"""A result, judged again from its rows, and a random sample of its images measured again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval.backends import BACKENDS
from eval.backends.formats import is_exported
from eval.config import builtin_variants
from eval.errors import UsageError
from eval.images.sets import STATED
from eval.images.valset import ValSet
from eval.jobs import score
from eval.judge.audit import (
    Audit,
    answer,
    is_near_tie,
    noise_of,
    probabilities_differ,
    rankings_differ,
)
from eval.judge.verdict import JUDGED_PRECISION, judge
from eval.measure.engine import Engine
from eval.measure.given import Answers, match, read_answers
from eval.measure.measurement import Measurement
from eval.measure.reading import hash_images
from eval.measure.settings import exact_settings
from eval.measure.setup import (
    Computation,
    choose_computation,
    open_data,
    open_images,
    outputs_of,
    task_of,
)
from eval.metrics import Scores
from eval.models import Subject, identify, open_source
from eval.models.exported import EXPORTED
from eval.progress import Observer, ignore
from eval.provenance import Provenance
from eval.recipe import parse
from eval.request import FOLDERS, FORMS, PRECISIONS, Request
from eval.results.claims import Claims, Places, of_files, of_rows, places, published_differs
from eval.results.record import Record
from eval.results.schema import RUN_FILE
from eval.text import examples, printable

CONTENTS = "images' contents"


@dataclass(frozen=True)
class Sampling:
    """How many rows are measured again, and the seed of the choice."""

    images: int
    seed: int


@dataclass(frozen=True)
class Given:
    """Predictions that a scored result was made from, see `eval.measure.given`."""

    predictions: Path
    names: Path | None = None
    array: str | None = None


class _Answers(NamedTuple):
    """Predictions, and the row of each image that has one, by its path in the set."""

    answers: Answers
    row_of: Mapping[str, int]


@dataclass(frozen=True)
class Again:
    """What an audit knows about the model and its answers.

    Attributes:
        subject: the model, with the figures that it is compared with.
        computation: how the sample was computed.
        judged_as: the precision that the verdict depends on.
        logits_of: logits of images by form; None where there are only predictions.
    """

    subject: Subject
    computation: Computation
    measured: Measurement
    judged_as: str
    logits_of: Callable[[ValSet], Mapping[str, NDArray[np.float32]]] | None = None


def audit(
    result: Path,
    request: Request,
    sampling: Sampling,
    given: Given | None = None,
    progress: Observer = ignore,
) -> Audit:
    """Judge a result again from its rows, and measure a random sample of them again.

    Args:
        result: its folder.
        request: your data and weights; options that it leaves out are taken from the result.
        sampling: which rows.
        given: the predictions of a result of `eval.score`, instead of weights.
        progress: called with every `eval.progress.Event`.

    Raises:
        UsageError: the result is missing or damaged, or options do not fit it.
        DataError: the validation set is missing, mislabeled or unreadable.
        ModelError: the checkpoint is missing, damaged, refused or of another model.
    """
    claims = Claims.read(result)
    completed = _completed(request, claims)
    population = len(claims.predictions.paths)
    images = min(sampling.images, population)
    found = Audit(str(result), population, images, sampling.seed, unchecked=claims.missing)
    with TemporaryDirectory(prefix="pplcnet-eval-") as folder:
        if given:  # the model may be unknown
            valset = open_data(completed, Path(str(completed.data)))
        else:
            valset = open_images(open_source(completed), Path(folder), progress=progress)
        answers = _answers(given, valset) if given else None
        placed = places(claims, valset, answers and answers.row_of)
        found.contradictions += placed.contradictions
        if not placed.is_certain:
            found.unchecked.append("which images the run came to")
        rows = _images_of(placed, valset)
        chosen = set(random.Random(sampling.seed).sample(range(population), images))  # noqa: S311 - no secret
        part = [number for number, row in enumerate(placed.place) if row in chosen]
        if not part:
            return found
        sample = replace(rows, samples=tuple(rows.samples[number] for number in part))
        with _again(completed, claims, sample, answers, progress) as again:
            scores = {f: _rows_of(each, list(placed.place)) for f, each in claims.scores.items()}
            record = _judged(claims, again, rows, scores)
            _check_subject(found, claims, again, request, record)
            found.contradictions += of_rows(claims, len(valset.classes))
            found.contradictions += of_files(claims, record)
            _check_contents(found, claims, again)
            _check_logits(found, claims, again)
            for form in scores:
                if form in again.measured.scores:
                    _compare(found, form, _rows_of(scores[form], part), again)
                else:
                    line = f"the form {printable(form)} of the result could not be measured"
                    found.contradictions.append(line)
    return found


def _images_of(placed: Places, valset: ValSet) -> ValSet:
    """The images of the rows, in their order, as a part of the whole set."""
    samples = tuple(valset.samples[index] for index in placed.place.values())
    images = valset.image_set.images or len(valset.samples)
    return replace(valset, samples=samples, image_set=replace(valset.image_set, images=images))


# ---- what is measured


def _completed(request: Request, claims: Claims) -> Request:
    """The request, with the options that it leaves out taken from the result."""
    if request.data is None and not request.demo:
        raise UsageError("Name the validation set of the result with --data PATH.")
    row = claims.rows[0]
    changes: dict[str, Any] = {}
    if request.preprocess is None:
        with suppress(UsageError):  # the model's own, which no recipe can say
            changes["preprocess"] = parse(row.preprocess).text
    if not (request.variant or request.config or request.model or request.demo):
        changes |= _model_of(claims)
    forms = [each.form for each in claims.rows]
    if request.forms is None and set(forms) <= set(FORMS):
        changes["forms"] = forms
    exported = is_exported(request.weights)
    if forms == [EXPORTED] and not exported:
        raise UsageError(
            f"{claims.folder} is of an exported file ({printable(row.cells['weights'])}).\n"
            "Name yours with --weights FILE."
        )
    if request.backend is None and row.cells["backend"] in BACKENDS:
        changes["backend"] = row.cells["backend"]
    if not exported and row.cells["precision"] in PRECISIONS:
        changes["precision"] = row.cells["precision"]
    for name in ("classes", "labels"):
        if getattr(request, name) is None and claims.option(name):
            changes[name] = _there(claims, name)
    if request.weights_entry is None and not exported and claims.option("weights_entry"):
        changes["weights_entry"] = claims.option("weights_entry")
    if exported and request.output_name is None and claims.option("output_name"):
        changes["output_name"] = claims.option("output_name")
    if claims.option("background_first") == "True":
        changes["background_first"] = True
    if request.image_set is None and claims.option("image_set") in STATED:
        changes["image_set"] = claims.option("image_set")
    tolerance = claims.option("tolerance")
    if request.tolerance is None and tolerance.isdecimal() and changes.get("model", request.model):
        changes["tolerance"] = int(tolerance)
        if request.timm_results is None and claims.option("timm_results"):
            changes["timm_results"] = _there(claims, "timm_results")
    if request.folders is None and claims.option("folders") in FOLDERS:
        changes["folders"] = claims.option("folders")
    return replace(request, **changes)


def _model_of(claims: Claims) -> dict[str, Any]:
    """The options that name the model of a result."""
    changes: dict[str, Any] = {}
    variant = claims.rows[0].variant
    if claims.option("demo"):
        raise UsageError(f"{claims.folder} is of the demo: use --demo, without --data.")
    if model := claims.option("model"):
        changes["model"] = model
    if claims.option("config"):
        changes["config"] = _there(claims, "config")
    elif not model:
        if variant not in builtin_variants():
            raise UsageError(
                f"{claims.folder} is of the model {printable(variant)}, which is not built in.\n"
                "Name it with --model LIBRARY:NAME, or its configuration with --config FILE."
            )
        changes["variant"] = variant
    return changes


def _there(claims: Claims, option: str) -> Path:
    """A file that the result was made with."""
    path = Path(claims.option(option))
    if not path.is_file():
        raise UsageError(
            f"{claims.folder} was made with --{option} {printable(str(path))}, which is not here.\n"
            f"Name that file with --{option} FILE."
        )
    return path


@contextmanager
def _again(
    request: Request, claims: Claims, sample: ValSet, answers: _Answers | None, progress: Observer
) -> Iterator[Again]:
    """The sample, measured as the result says it was."""
    if answers is not None:
        yield _scored(request, claims, sample, answers, progress)
        return
    source = open_source(request)
    with exact_settings() as settings:
        subject = source.load(outputs_of(request, len(sample.classes)), progress)
        computation = choose_computation(source, subject, len(sample.samples), settings)
        task = task_of(request, subject, computation, len(sample.classes))
        with closing(Engine(task, progress, computation.processes_here)) as engine:
            measured = engine.measure(sample, record_bad=True, stage="measuring again")
            subject.check_unchanged()
            yield Again(subject, computation, measured, computation.precision, engine.logits_of)


def _answers(given: Given, valset: ValSet) -> _Answers:
    """Predictions, matched with all images as `eval.score` does it."""
    file = score.predictions_file(given.predictions)
    answers = read_answers(file, len(valset.classes), given.names, given.array)
    rows = match(answers.names, valset.samples)
    return _Answers(answers, {valset.samples[index].path: row for index, row in rows.items()})


def _scored(
    request: Request, claims: Claims, sample: ValSet, answers: _Answers, progress: Observer
) -> Again:
    """The sample, scored again as `eval.score` did it."""
    stated, tolerance = claims.rows[0], claims.option("tolerance")
    asked = score.Scoring(
        predictions=Path(),
        data=Path(str(request.data)),
        variant=request.variant,
        config=Path(request.config) if request.config else None,
        preprocess=stated.preprocess,
        reference=claims.option("reference") or None,
        tolerance=int(tolerance) if tolerance.isdecimal() else None,
    )
    files = () if request.weights == "auto" else identify([Path(request.weights)])
    subject = score.subject_of(asked, score.config_of(asked), files)
    paths = [each.path for each in sample.samples]
    if missing := [path for path in paths if path not in answers.row_of]:
        raise UsageError(
            f"--predictions has none for {examples(missing)}.\n"
            "Give the file that the result was made from."
        )
    rows = [answers.row_of[path] for path in paths]
    hashes = hash_images(sample, progress)
    measured = score.measurement(sample, answers.answers, rows, hashes)
    precision = stated.cells["precision"]
    computation = Computation("external", stated.cells["device"], precision)
    judged_as = precision if asked.tolerance is None else JUDGED_PRECISION
    return Again(subject, computation, measured, judged_as)


# ---- what is compared


def _rows_of(scores: Scores, rows: Sequence[int]) -> Scores:
    where = np.array(rows, np.int64)
    return Scores(
        scores.rank[where],
        scores.top[where],
        scores.prob[where],
        scores.nll[where],
        scores.tied[where],
        known=scores.known,
    )


def _judged(claims: Claims, again: Again, rows: ValSet, scores: dict[str, Scores]) -> Record:
    """The rows, judged again by the figures that the model in hand is compared with."""
    bad = {i for each in scores.values() for i in np.flatnonzero(each.rank < 0)}
    difference = np.full(len(rows.samples), np.nan)
    difference[0] = float(claims.rows[0].cells["max_abs_logit_diff"] or "nan")
    stopped = claims.run.get("stopped")
    measured = Measurement(
        valset=rows,
        scores=scores,
        logit_diff=difference,
        largest_logit=claims.largest_logit,
        digests=[],
        seconds=0.0,
        bad=dict.fromkeys(map(int, bad), ""),
        stopped=stopped if isinstance(stopped, str) else "",
    )
    subject = again.subject
    return Record(
        subject=subject,
        data=str(rows.root),
        setup=again.computation,
        provenance=Provenance.of(subject.name, datetime.now(UTC), "", {}),
        measured=measured,
        judgment=judge(measured, subject.published, subject.preprocess.name, again.judged_as),
    )


def _check_subject(
    found: Audit, claims: Claims, again: Again, request: Request, record: Record
) -> None:
    """The weights and the configuration are those that the result names."""
    hashes = {row.weights_sha256 for row in claims.rows}
    if not again.subject.sha256 or "" in hashes:
        found.unchecked.append("weights")
    elif hashes != {again.subject.sha256}:
        found.contradictions.append(
            f"the result was made with the weights {min(hashes)[:16]}..., yours are "
            f"{again.subject.sha256[:16]}..."
        )
    if not (differing := published_differs(claims, record)):
        return
    if claims.option("config") and not request.config:
        raise UsageError(
            f"{printable(claims.option('config'))} is not the configuration that "
            f"{claims.folder / RUN_FILE} has under `published` ({', '.join(differing)}).\n"
            "Name that one with --config FILE."
        )
    found.contradictions.append(
        f"{RUN_FILE}, published: not your configuration's {', '.join(differing)}"
    )


def _check_contents(found: Audit, claims: Claims, again: Again) -> None:
    """The contents of the images are those that the result was made from.

    The hash of a set needs every image; if only some were read, only the rows are compared.
    """
    if len(again.measured.digests) < len(claims.predictions.paths):
        found.unchecked.append(CONTENTS)
    elif {row.dataset_sha256 for row in claims.rows} != {again.measured.dataset_sha256}:
        found.contradictions.append("your images are not those of the result (their hashes differ)")


def _check_logits(found: Audit, claims: Claims, again: Again) -> None:
    """What is said of the logits of all images includes those of the sample."""
    measured, noise = again.measured, _margin(again)
    pairs = [
        (f"{printable(row.form)}, max_abs_logit_diff", float(cell), measured.max_logit_diff)
        for row in claims.rows
        if (cell := row.cells["max_abs_logit_diff"])
    ]
    if claims.largest_logit is not None:
        pairs.append(("largest_logit", claims.largest_logit, measured.largest_logit))
    whole = len(measured.valset.samples) == len(claims.predictions.paths)
    for words, stated, seen in pairs:
        if seen is not None and (stated < seen - noise or (whole and stated > seen + noise)):
            where = "measured again" if whole else "on the sample"
            found.contradictions.append(f"{words} is {stated:.6g}, {where} {seen:.6g}")


def _margin(again: Again) -> float:
    """How far the logarithm of a probability may be off by rounding."""
    largest = again.measured.largest_logit
    return 0.0 if largest is None else 2 * noise_of(again.computation.precision) * max(1.0, largest)


def _compare(found: Audit, form: str, written: Scores, again: Again) -> None:
    """Separate rows that rounding may explain from those that it cannot."""
    measured = again.measured.scores[form]
    differing = rankings_differ(written, measured)
    near = _near_ties(form, written, again, np.flatnonzero(differing))
    wrong = probabilities_differ(written, measured, _margin(again)) | (differing & ~near)
    for row in map(int, np.flatnonzero(differing | wrong)):
        rows = found.different if wrong[row] else found.near_ties
        each = again.measured.valset.samples[row]
        rows.append(
            {
                "path": each.path,
                "form": form,
                "label": each.label,
                "written": _row(written, row),
                "measured": _row(measured, row),
            }
        )


def _near_ties(
    form: str, written: Scores, again: Again, rows: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which of the rows rounding may explain, bool (N,), by logits that are asked for again."""
    near = np.zeros(len(written.rank), bool)
    valset = again.measured.valset
    rows = rows[again.measured.scores[form].rank[rows] >= 0]
    if again.logits_of is None or not len(rows):
        return near
    samples = tuple(valset.samples[row] for row in rows)
    logits = again.logits_of(replace(valset, samples=samples))[form]
    among = None if valset.among is None else np.array(valset.among)
    noise = noise_of(again.computation.precision)
    for row, values in zip(rows, logits, strict=True):
        label = valset.samples[row].label
        near[row] = is_near_tie(answer(written, row), values, label, noise, among)
    return near


def _row(scores: Scores, row: int) -> dict[str, Any]:
    """An answer, for the JSON."""
    each = answer(scores, row)
    probability = float(scores.prob[row, 0])
    shown = probability if np.isfinite(probability) else None
    return {"rank": each.rank, "top": list(each.top), "prob1": shown}
