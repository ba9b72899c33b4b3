"""A result, judged again from its rows, and a random sample of its images measured again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.backends import BACKENDS
from eval.backends.formats import is_exported
from eval.config import builtin_variants
from eval.errors import UsageError
from eval.images.labels import image_key
from eval.images.valset import ValSet
from eval.jobs import score
from eval.judge.audit import (
    answer,
    is_near_tie,
    noise_of,
    probabilities_differ,
    rankings_differ,
)
from eval.judge.verdict import JUDGED_PRECISION, judge
from eval.measure.engine import Engine, Measurement
from eval.measure.given import read_answers
from eval.measure.settings import exact_settings
from eval.measure.setup import Computation, choose_computation, open_data, open_images, task_of
from eval.metrics import CONFIDENCE, Scores, largest_number_wrong
from eval.models import Subject, identify, open_source
from eval.models.exported import FORM as EXPORTED
from eval.progress import Observer, ignore
from eval.provenance import Provenance
from eval.recipe import parse
from eval.request import FORMS, PRECISIONS, Request
from eval.results.claims import Claims, of_files, of_rows, published_differs
from eval.results.record import Record
from eval.results.schema import RUN_FILE
from eval.text import examples, printable

SHOWN = 5
CONTENTS = "images' contents"


@dataclass
class Audit:
    """What an audit found.

    Attributes:
        source: the result.
        population: rows that it has.
        images: rows that were measured again.
        seed: of the sample.
        different: rows that rounding cannot explain, each as written and as measured.
        near_ties: rows that differ, but only where rounding may decide.
        contradictions: other disagreements, in sentences.
        unchecked: what could not be checked.
    """

    source: str
    population: int
    images: int
    seed: int
    different: list[dict[str, Any]] = field(default_factory=list)
    near_ties: list[dict[str, Any]] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def rows_different(self) -> int:
        """Images with a different answer of any form."""
        return len({row["path"] for row in self.different})

    @property
    def outcome(self) -> str:
        """``confirmed`` or ``contradicted``."""
        return "contradicted" if self.different or self.contradictions else "confirmed"

    @property
    def exit_code(self) -> int:
        """0 where nothing contradicts the result."""
        return 0 if self.outcome == "confirmed" else 1

    @property
    def largest_share_wrong(self) -> float:
        """Upper bound of the share of wrong rows, at 95 %."""
        wrong = largest_number_wrong(self.population, self.images, self.rows_different)
        return wrong / self.population

    def as_json(self) -> dict[str, Any]:
        """The object of ``--json``."""
        return {
            "outcome": self.outcome,
            "images": self.images,
            "population": self.population,
            "seed": self.seed,
            "different": self.rows_different,
            "near_ties": len({row["path"] for row in self.near_ties}),
            "largest_share_wrong": self.largest_share_wrong,
            "confidence": CONFIDENCE,
            "contradictions": self.contradictions,
            "unchecked": self.unchecked,
            "examples": self.different or self.near_ties,
        }

    def text(self) -> str:
        """A report for a terminal, without a trailing newline."""
        near = len({row["path"] for row in self.near_ties})
        lines = [
            (
                f"{self.source}: {self.images:,} of {self.population:,} rows measured again "
                f"(--seed {self.seed})"
            ),
            f"different: {self.rows_different:,}; near-ties that rounding may decide: {near:,}",
        ]
        lines += [_shown(row) for row in self.different[:SHOWN]]
        if len(self.different) > SHOWN:
            lines.append(f"  ... and {len(self.different) - SHOWN:,} more")
        lines += [f"Contradiction: {line}" for line in self.contradictions]
        unchecked = f", {', '.join(self.unchecked)} not checked" if self.unchecked else ""
        lines += [
            (
                f"At most {100 * self.largest_share_wrong:.2f} % of the rows are wrong "
                f"({100 * CONFIDENCE:.0f} % confidence)."
            ),
            f"{self.outcome.upper()}{unchecked}",
        ]
        return "\n".join(lines)


def _shown(row: Mapping[str, Any]) -> str:
    """A row that differs, on one line."""
    written, measured = row["written"], row["measured"]
    answers = [f"rank {each['rank']}, top {each['top']}" for each in (written, measured)]
    if answers[0] == answers[1]:
        answers = [f"prob1 {each['prob1']}" for each in (written, measured)]
    return (
        f"  {printable(row['path'])}, {printable(row['form'])}: written {answers[0]}; "
        f"measured {answers[1]}"
    )


@dataclass(frozen=True)
class Sampling:
    """Which rows are measured again.

    Attributes:
        images: how many.
        seed: of the choice.
    """

    images: int
    seed: int


@dataclass(frozen=True)
class Given:
    """Predictions that a scored result was made from, see `eval.measure.given`."""

    predictions: Path
    names: Path | None = None
    array: str | None = None


@dataclass(frozen=True)
class Again:
    """What an audit knows about the model and its answers.

    Attributes:
        subject: the model, with the figures that it is compared with.
        computation: how the sample was computed.
        measured: the sample.
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
        place = _match_rows(found, claims, valset, given)
        samples = tuple(valset.samples[index] for index in place.values())
        whole = valset.image_set.images or len(valset.samples)
        image_set = replace(valset.image_set, images=whole)
        rows = replace(valset, samples=samples, image_set=image_set)
        numbers = {row: number for number, row in enumerate(place)}
        chosen = sorted(random.Random(sampling.seed).sample(range(population), images))  # noqa: S311 - no secret
        part = [numbers[row] for row in chosen if row in numbers]
        if not part:
            return found
        sample = replace(rows, samples=tuple(samples[i] for i in part))
        measure = _scored if given else _measured
        with measure(completed, claims, sample, given, progress) as again:
            scores = {form: _rows_of(each, list(place)) for form, each in claims.scores.items()}
            record = _judged(claims, again, rows, scores)
            _check_subject(found, claims, again, request, record)
            found.contradictions += of_rows(claims, len(valset.classes))
            found.contradictions += of_files(claims, record)
            _check_contents(found, claims, again)
            _check_logits(found, claims, again)
            for form in scores:
                if form not in again.measured.scores:
                    line = f"the form {printable(form)} of the result could not be measured"
                    found.contradictions.append(line)
                    continue
                _compare(found, form, _rows_of(scores[form], part), again, sample)
    return found


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
def _measured(
    request: Request, _claims: Claims, sample: ValSet, _given: Given | None, progress: Observer
) -> Iterator[Again]:
    """The sample, measured as the result says it was."""
    source = open_source(request)
    with exact_settings() as settings:
        subject = source.load(len(sample.classes), progress)
        computation = choose_computation(source, subject, len(sample.samples), settings)
        engine = Engine(task_of(request, subject, computation, len(sample.classes)), progress)
        measured = engine.measure(sample, record_bad=True, stage="measuring again")
        subject.check_unchanged()
        yield Again(subject, computation, measured, computation.precision, engine.logits_of)


@contextmanager
def _scored(
    request: Request, claims: Claims, sample: ValSet, given: Given | None, progress: Observer
) -> Iterator[Again]:
    """The sample, scored again as `eval.score` did it."""
    assert given is not None
    stated, tolerance = claims.rows[0], claims.option("tolerance")
    asked = score.Scoring(
        predictions=given.predictions,
        data=Path(str(request.data)),
        variant=request.variant,
        config=Path(request.config) if request.config else None,
        preprocess=stated.preprocess,
        reference=claims.option("reference") or None,
        tolerance=int(tolerance) if tolerance.isdecimal() else None,
    )
    files = () if request.weights == "auto" else identify([Path(request.weights)])
    subject = score.subject_of(asked, score.config_of(asked), files)
    answers = read_answers(given.predictions, len(sample.classes), given.names, given.array)
    row_of = {image_key(name): row for row, name in enumerate(answers.names)}
    missing = [s.path for s in sample.samples if image_key(s.path) not in row_of]
    if missing:
        raise UsageError(
            f"{given.predictions} has no prediction for {examples(missing)}.\n"
            "Give the file that the result was made from."
        )
    rows = np.array([row_of[image_key(each.path)] for each in sample.samples])
    labels = np.array([each.label for each in sample.samples])
    measured = Measurement(
        valset=sample,
        scores={score.FORM: answers.scores(rows, labels)},
        logit_diff=np.full(len(rows), np.nan),
        largest_logit=None,
        digests=score.digests(sample, progress),
        seconds=0.0,
    )
    precision = stated.cells["precision"]
    computation = Computation("external", stated.cells["device"], precision)
    judged_as = precision if asked.tolerance is None else JUDGED_PRECISION
    yield Again(subject, computation, measured, judged_as)


# ---- what is compared


def _match_rows(
    found: Audit, claims: Claims, valset: ValSet, given: Given | None
) -> dict[int, int]:
    """Check that the rows are the images in hand; index of a row to that of its image."""
    paths = claims.predictions.paths
    images = {sample.path: index for index, sample in enumerate(valset.samples)}
    keys = {image_key(path): index for path, index in images.items()}
    unique = len(keys) == len(images)
    place: dict[int, int] = {}
    taken: dict[int, int] = {}
    absent, twice = [], []
    for row, path in enumerate(paths):
        index = images.get(path, keys.get(image_key(path)) if unique else None)
        if index is None:
            absent.append(path)
        elif taken.setdefault(index, row) != row:
            twice.append(path)
        else:
            place[row] = index
    labels = claims.predictions.labels
    relabeled = [
        paths[row] for row, index in place.items() if valset.samples[index].label != labels[row]
    ]
    expected = _expected(found, claims, valset, given, len(place))
    missing = [valset.samples[index].path for index in sorted(expected - taken.keys())]
    beyond = [paths[row] for row, index in place.items() if index not in expected]
    for words, rows in (
        ("not among your images", absent),
        ("rows of an image that has one already", twice),
        ("other labels than yours", relabeled),
        ("images without a row", missing),
        ("rows that the options of the run leave out", beyond),
    ):
        if rows:
            found.contradictions.append(f"{words}: {examples(rows)}")
    return place


def _expected(
    found: Audit, claims: Claims, valset: ValSet, given: Given | None, rows: int
) -> set[int]:
    """Indices of the images that a result with these options has rows of."""
    limit = claims.option("limit")
    everything = set(range(len(valset.samples)))
    if limit.isdecimal() and 0 < int(limit) < len(everything):
        return set(valset.shuffled()[: int(limit)])
    if claims.run.get("stopped"):
        found.unchecked.append("which images the run came to")
        return set(valset.shuffled()[:rows])
    if given and claims.option("allow_missing"):
        answers = read_answers(given.predictions, len(valset.classes), given.names, given.array)
        answered = {image_key(name) for name in answers.names}
        return {i for i, each in enumerate(valset.samples) if image_key(each.path) in answered}
    return everything


def _rows_of(scores: Scores, rows: Sequence[int]) -> Scores:
    where = np.array(rows, np.int64)
    return Scores(scores.rank[where], scores.top[where], scores.prob[where], scores.nll[where])


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


def _compare(found: Audit, form: str, written: Scores, again: Again, sample: ValSet) -> None:
    """Separate rows that rounding may explain from those that it cannot."""
    measured = again.measured.scores[form]
    differing = rankings_differ(written, measured)
    near = _near_ties(form, written, again, np.flatnonzero(differing))
    wrong = probabilities_differ(written, measured, _margin(again)) | (differing & ~near)
    for row in map(int, np.flatnonzero(differing | wrong)):
        rows = found.different if wrong[row] else found.near_ties
        each = sample.samples[row]
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
