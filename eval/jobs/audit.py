"""A random sample of a result's rows, measured again and compared."""

from __future__ import annotations

import csv
import hashlib
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from eval.backends import create_predictor
from eval.backends.device import choose_device
from eval.backends.formats import is_exported
from eval.config import builtin_variants
from eval.errors import UsageError
from eval.images.classes import read_classes
from eval.images.labels import image_key
from eval.images.preprocess import BadImage, Crop, Preprocess
from eval.images.valset import Sample, ValSet, fingerprint, open_valset
from eval.jobs.score import FORM
from eval.judge.audit import NOISE, Answer, is_near_tie, measured_answer
from eval.judge.result import Predictions, Row
from eval.measure.engine import choose_batch_size, choose_workers
from eval.measure.given import read_answers
from eval.measure.settings import exact_settings
from eval.metrics import CONFIDENCE, TOP, largest_number_wrong
from eval.models import Source, Subject, open_source
from eval.progress import Event, Observer, ignore
from eval.recipe import parse
from eval.request import FORMS, PRECISIONS, Request
from eval.results.read import read_predictions, read_rows
from eval.results.schema import PREDICTIONS_FILE, SUMMARY_FILE
from eval.text import examples, printable

SHOWN = 5


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
        remarks: what could not be checked, in sentences.
    """

    source: str
    population: int
    images: int
    seed: int
    different: list[dict[str, Any]] = field(default_factory=list)
    near_ties: list[dict[str, Any]] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

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
            "remarks": self.remarks,
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
        lines += [f"Note: {line}" for line in self.remarks]
        lines += [
            f"At most {100 * self.largest_share_wrong:.2f} % of the rows are wrong (95 % sure).",
            f"{self.outcome.upper()}",
        ]
        return "\n".join(map(printable, lines))


def _shown(row: Mapping[str, Any]) -> str:
    """A row that differs, on one line."""
    written, measured = row["written"], row["measured"]
    return (
        f"  {row['path']}, {row['form']}: written rank {written['rank']}, top {written['top']}; "
        f"measured rank {measured['rank']}, top {measured['top']}"
    )


class Measured(NamedTuple):
    """An image measured again.

    Attributes:
        answer: with `TOP` best classes; rank -1 where the image cannot be decoded.
        logits: (classes,), where they are known.
    """

    answer: Answer
    logits: NDArray[Any] | None = None


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


def audit(
    result: Path,
    request: Request,
    sampling: Sampling,
    given: Given | None = None,
    progress: Observer = ignore,
) -> Audit:
    """Measure a random sample of a result's rows again.

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
    if request.data is None and not request.demo:
        raise UsageError("Name the validation set of the result with --data PATH.")
    written = Written.read(result)
    request = _completed(request, written.rows)
    source = open_source(request)
    population = len(written.predictions.paths)
    images = min(sampling.images, population)
    chosen = sorted(random.Random(sampling.seed).sample(range(population), images))  # noqa: S311 - no secret
    found = Audit(str(result), population, images, sampling.seed)
    _check_counts(found, written)
    with TemporaryDirectory(prefix="pplcnet-eval-") as workspace:
        valset = _open_images(source, Path(workspace), progress)
        place = _check_rows(found, written, valset)
        rows = [row for row in chosen if row in place]
        part = replace(valset, samples=tuple(valset.samples[place[row]] for row in rows))
        if given:
            answers = _given_answers(given, part)
        else:
            answers = _measure_again(found, source, written, part, progress)
    precision = written.rows[0].cells["precision"]
    for form in written.answers:
        if form not in answers:
            found.contradictions.append(f"the form {form!r} of the result could not be measured")
            continue
        for row, measured, sample in zip(rows, answers[form], part.samples, strict=True):
            _compare(found, form, written.answers[form][row], measured, sample, precision)
    return found


@dataclass(frozen=True)
class Written:
    """What a result states.

    Attributes:
        folder: where it is.
        rows: of its summary, one per form.
        predictions: the images, in the order of the file.
        answers: form to the answer to each image.
    """

    folder: Path
    rows: Sequence[Row]
    predictions: Predictions
    answers: Mapping[str, Sequence[Answer]]

    @classmethod
    def read(cls, folder: Path) -> Written:
        """Read a result folder.

        Raises:
            UsageError: it is missing or damaged, or it has no predictions.
        """
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder.\nName a result folder.")
        rows = read_rows(folder / SUMMARY_FILE)
        predictions = read_predictions(folder / PREDICTIONS_FILE)
        with (folder / PREDICTIONS_FILE).open(newline="", encoding="utf-8") as file:
            table = list(csv.DictReader(file))
        answers = {}
        for form, ranks in predictions.rank.items():
            columns = [f"{form}_top{k}" for k in range(1, TOP + 1) if f"{form}_top{k}" in table[0]]
            answers[form] = [
                Answer(int(rank), tuple(int(row[name]) for name in columns if row[name].isdigit()))
                for rank, row in zip(ranks, table, strict=True)
            ]
        return cls(folder, rows, predictions, answers)


def _completed(request: Request, rows: Sequence[Row]) -> Request:
    """The request, with the options that it leaves out taken from the result."""
    row = rows[0]
    changes: dict[str, Any] = {}
    if request.preprocess is None:
        with suppress(UsageError):  # the model's own, which no recipe can say
            changes["preprocess"] = parse(row.preprocess).text
    named = request.variant or request.config or request.model or request.demo
    if not named and row.variant in builtin_variants():
        changes["variant"] = row.variant
    forms = [each.form for each in rows if each.form in FORMS]
    if request.forms is None and forms:
        changes["forms"] = forms
    if not is_exported(request.weights) and row.cells["precision"] in PRECISIONS:
        changes["precision"] = row.cells["precision"]
    return replace(request, **changes)


def _open_images(source: Source, workspace: Path, progress: Observer) -> ValSet:
    request = source.request
    root = source.images(workspace, progress)
    classes = read_classes(Path(request.classes)) if request.classes else None
    labels = Path(request.labels) if request.labels else None
    return open_valset(root, labels, classes, source.image_set)


def _check_counts(found: Audit, written: Written) -> None:
    """The counts of the summary follow from the rows."""
    for row in written.rows:
        if row.form not in written.predictions.rank:
            found.contradictions.append(f"predictions.csv has no columns of the form {row.form!r}")
            continue
        counted = [int(written.predictions.correct(row.form, k).sum()) for k in (1, 5)]
        stated = [row.top1_correct, row.top5_correct]
        if counted != stated or row.images != len(written.predictions.paths):
            found.contradictions.append(
                f"{row.form}: the rows count {counted[0]:,}/{counted[1]:,} of "
                f"{len(written.predictions.paths):,} images, the summary says "
                f"{stated[0]:,}/{stated[1]:,} of {row.images:,}"
            )


def _check_rows(found: Audit, written: Written, valset: ValSet) -> dict[int, int]:
    """Check that your images and labels are those of the rows; index of a row to its image's."""
    names = {image_key(sample.path): i for i, sample in enumerate(valset.samples)}
    paths = {sample.path: i for i, sample in enumerate(valset.samples)}
    place: dict[int, int] = {}
    absent, relabeled = [], []
    for row, path in enumerate(written.predictions.paths):
        index = paths.get(path, names.get(image_key(path)))
        if index is None:
            absent.append(path)
            continue
        place[row] = index
        if valset.samples[index].label != written.predictions.labels[row]:
            relabeled.append(path)
    if absent:
        found.contradictions.append(f"not among your images: {examples(absent)}")
    if relabeled:
        found.contradictions.append(f"other labels than yours: {examples(relabeled)}")
    return place


def _check_weights(found: Audit, written: Written, subject: Subject) -> None:
    """The weights are those that the result names."""
    hashes = {row.weights_sha256 for row in written.rows}
    if "" in hashes:
        found.remarks.append("the result does not say which weights it was made with")
    elif hashes != {subject.sha256}:
        found.contradictions.append(
            f"the result was made with the weights {min(hashes)[:16]}..., yours are "
            f"{subject.sha256[:16]}..."
        )


def _check_contents(found: Audit, written: Written, valset: ValSet, digests: list[str]) -> None:
    """The contents of the images are those that the result was made from.

    The hash of a set needs every image; if only some were read, only the rows are compared.
    """
    if len(digests) < len(written.predictions.paths):
        found.remarks.append(
            "the hash of the images was not checked, as that needs all of them (--images "
            f"{len(written.predictions.paths)})"
        )
    elif {row.dataset_sha256 for row in written.rows} != {fingerprint(valset.samples, digests)}:
        found.contradictions.append("your images are not those of the result (their hashes differ)")


def _measure_again(
    found: Audit, source: Source, written: Written, part: ValSet, progress: Observer
) -> Mapping[str, list[Measured]]:
    """The answers of your model to the sample."""
    request = source.request
    with exact_settings():
        subject = source.load(len(part.classes), progress)
        _check_weights(found, written, subject)
        device = choose_device(request.device)
        batch = request.batch_size or choose_batch_size(device)
        workers = request.workers or choose_workers()
        predictor = create_predictor(
            request.backend or source.backend,
            subject.forms,
            subject.preprocess,
            device,
            request.precision,
            batch_size=batch,
            workers=workers,
        )
        answers: dict[str, list[Measured]] = {form: [] for form in subject.forms}
        digests: list[str] = []

        def compute(start: int) -> tuple[Mapping[str, Any], list[bool], list[str]]:
            samples = part.samples[start : start + batch]
            crops, readable, hashes = _read_batch(part, samples, subject.preprocess, batch)
            return predictor(crops), readable, hashes

        starts = range(0, len(part.samples), batch)
        with ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(1)) as pool:
            for start, computed in zip(starts, pool.map(compute, starts), strict=True):
                logits, readable, hashes = computed
                digests += hashes
                labels = [sample.label for sample in part.samples[start : start + batch]]
                for form, values in logits.items():
                    answers[form] += [
                        Measured(measured_answer(row, label, TOP), row)
                        if good
                        else Measured(Answer(-1, ()))
                        for row, label, good in zip(values, labels, readable, strict=False)
                    ]
                progress(Event("measuring again", len(digests), len(part.samples)))
        _check_contents(found, written, part, digests)
    return answers


def _read_batch(
    part: ValSet, samples: Sequence[Sample], preprocess: Preprocess, size: int
) -> tuple[Crop, list[bool], list[str]]:
    """Read images into a batch that is always of one size.

    Returns:
        Crops, uint8 (size, side, side, 3), black after the last image; whether each image can be
        decoded; and the SHA-256 of each file.
    """
    crops = np.zeros((size, preprocess.size, preprocess.size, 3), np.uint8)
    readable, hashes = [], []
    for row, sample in enumerate(samples):
        data = part.read(sample.path)
        hashes.append(hashlib.sha256(data).hexdigest())
        try:
            crops[row] = preprocess.crop(data)
            readable.append(True)
        except BadImage:
            readable.append(False)
    return crops, readable, hashes


def _given_answers(given: Given, part: ValSet) -> Mapping[str, list[Measured]]:
    """The answers in the predictions that a scored result was made from."""
    answers = read_answers(given.predictions, len(part.classes), given.names, given.array)
    row_of = {image_key(name): row for row, name in enumerate(answers.names)}
    missing = [s.path for s in part.samples if image_key(s.path) not in row_of]
    if missing:
        raise UsageError(
            f"{given.predictions} has no prediction for {examples(missing)}.\n"
            "Give the file that the result was made from."
        )
    rows = np.array([row_of[image_key(sample.path)] for sample in part.samples])
    scores = answers.scores(rows, np.array([sample.label for sample in part.samples]))
    return {
        FORM: [
            Measured(Answer(int(rank), tuple(int(place) for place in top)))
            for rank, top in zip(scores.rank, scores.top, strict=True)
        ]
    }


def _compare(
    found: Audit, form: str, written: Answer, measured: Measured, sample: Sample, precision: str
) -> None:
    """Separate rows that rounding may explain from those that it cannot."""
    now = Answer(measured.answer.rank, measured.answer.top[: len(written.top)])
    if now == written:
        return
    near = (
        measured.logits is not None
        and written.rank >= 0
        and precision in NOISE
        and is_near_tie(written, measured.logits, sample.label, NOISE[precision])
    )
    (found.near_ties if near else found.different).append(
        {
            "path": sample.path,
            "form": form,
            "label": sample.label,
            "written": {"rank": written.rank, "top": list(written.top)},
            "measured": {"rank": now.rank, "top": list(now.top)},
        }
    )
