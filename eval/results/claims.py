"""All that a result folder says, and what of it does not follow from its rows.

For an audit, which believes nothing: the rows of ``predictions.csv`` are judged again, and every
file must say what follows from them.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eval.errors import UsageError
from eval.images.labels import image_key
from eval.images.sets import UNIDENTIFIED
from eval.images.valset import ValSet
from eval.judge.audit import WRITTEN, contradictions_of_rows, nll_bounds
from eval.judge.result import Predictions, Row
from eval.judge.verdict import gravest
from eval.metrics import TOP, Scores
from eval.results.read import read_predictions, read_rows, read_table
from eval.results.record import Record
from eval.results.schema import (
    ADDED_COLUMNS,
    BAD_IMAGES_FILE,
    CONFUSIONS,
    CONFUSIONS_FILE,
    PAGE_FILE,
    PER_CLASS_FILE,
    PREDICTIONS_FILE,
    RUN,
    RUN_FILE,
    SUMMARY,
    SUMMARY_FILE,
    confusions_table,
    per_class_table,
)
from eval.text import examples, printable

NEAR = 1e-6  # of a number that was written and read
# Columns of summary.csv that follow from the rows, the model and the configuration.
_FOLLOW = (
    *("variant", "precision", "preprocess", "images", "images_expected", "bad_images"),
    *("top1_correct", "top5_correct", "top1", "top5", "top1_ci_low", "top1_ci_high"),
    *("reference_top1", "reference_top5", "reference_source", "delta_top1", "delta_top5"),
    *("tolerance", "verdict", "max_abs_logit_diff", "prediction_flips", "params", "macs"),
    *ADDED_COLUMNS,
)
# Keys of a result in run.json that do; the others are words.
_RESULT = (
    *("form", "images", "images_expected", "correct", "reference", "reference_source"),
    *("tolerance", "verdict", "expected", "top1", "top5"),
)
_DOCUMENT = ("results", "flips", "published")
PUBLISHED = ("name", "model", "images", "reference", "tolerance")  # what a verdict depends on
_PAGE_VERDICT = re.compile(r'<section class="verdict ([A-Z_]{4,20})"')


@dataclass(frozen=True)
class Claims:
    """What a result states.

    Attributes:
        folder: where it is.
        rows: of its summary, one per form.
        predictions: the images, in the order of the file.
        scores: of each form, without the negative log-likelihoods, which no file has.
        run: ``run.json``; empty if it is missing.
    """

    folder: Path
    rows: Sequence[Row]
    predictions: Predictions
    scores: Mapping[str, Scores]
    run: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Claims:
        """Read a result folder."""
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder.\nName a result folder.")
        path = folder / PREDICTIONS_FILE
        rows, predictions = read_rows(folder / SUMMARY_FILE), read_predictions(path)
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        scores = {form: _scores(path, table, form) for form in predictions.rank}
        for row in rows:
            if TOP not in row.counts and row.form in scores:
                filled = (scores[row.form].top >= 0).any(axis=0)
                scores[row.form].known = max(1, int(filled.sum()))
        return cls(folder, rows, predictions, scores, _read_run(folder / RUN_FILE))

    def option(self, name: str) -> str:
        """An option of the run; empty if it is not known or was not given."""
        options = self.run.get("request")
        value = options.get(name) if isinstance(options, dict) else None
        return "" if value is None or isinstance(value, (dict, list)) else _given(str(value))

    @property
    def largest_logit(self) -> float | None:
        """As ``run.json`` has it; None where it does not say."""
        value = self.run.get("largest_logit")
        return float(value) if isinstance(value, (int, float)) else None

    @property
    def missing(self) -> list[str]:
        """Files that every result has and this one has not."""
        names = (RUN_FILE, PER_CLASS_FILE, CONFUSIONS_FILE, PAGE_FILE)
        return [name for name in names if not (self.folder / name).is_file()]


def _given(text: str) -> str:
    return "" if text in ("None", "False") else text  # as eval.score writes its options


def _scores(path: Path, table: pd.DataFrame, form: str) -> Scores:
    """The columns of a form; -1 and NaN for empty cells and for columns that are not there."""

    def numbers(name: str, filler: float) -> Any:
        if name not in table:
            return np.full(len(table), filler)
        try:
            values = np.array([float(cell) if cell else filler for cell in table[name]])
        except ValueError as error:
            raise UsageError(f"{path}, {printable(name)}: not numbers ({error}).") from None
        with np.errstate(invalid="ignore"):
            is_class = (values >= -1) & (values < 1e9) & (values % 1 == 0)
        if filler == -1 and not is_class.all():
            raise UsageError(f"{path}, {printable(name)}: not classes. The file is damaged.")
        return values

    scores = Scores.empty(len(table))
    scores.rank[:] = numbers(f"{form}_rank", -1)
    for k in range(TOP):
        scores.top[:, k] = numbers(f"{form}_top{k + 1}", -1)
        scores.prob[:, k] = numbers(f"{form}_prob{k + 1}", np.nan)
    return scores


def _read_run(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from error
    if not isinstance(document, dict):
        raise UsageError(f"{path} is not a run.json of eval.imagenet.")
    return document


@dataclass(frozen=True)
class Places:
    """Where the images of a result are in a validation set.

    Attributes:
        place: index of a row to that of its image; each image at most once.
        contradictions: how the rows are not the images, in sentences.
        is_certain: whether the result says which images it has rows of.
    """

    place: Mapping[int, int]
    contradictions: Sequence[str]
    is_certain: bool


def places(claims: Claims, valset: ValSet, answered: Collection[str] | None = None) -> Places:
    """Find the image of each row, and see whether there is a row of each image.

    Args:
        claims: the result.
        valset: all images in hand.
        answered: paths of the images that have a prediction; None if all have.
    """
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
    expected = _expected(claims, valset, answered, len(place))
    missing = [valset.samples[index].path for index in sorted(expected - taken.keys())]
    beyond = [paths[row] for row, index in place.items() if index not in expected]
    problems = {
        "not among your images": absent,
        "rows of an image that has one already": twice,
        "other labels than yours": relabeled,
        "images without a row": missing,
        "rows that the options of the run leave out": beyond,
    }
    sentences = [f"{words}: {examples(rows)}" for words, rows in problems.items() if rows]
    return Places(place, sentences, is_certain=not claims.run.get("stopped"))


def _expected(
    claims: Claims, valset: ValSet, answered: Collection[str] | None, rows: int
) -> set[int]:
    """Indices of the images that a result with these options has rows of."""
    limit = claims.option("limit")
    everything = set(range(len(valset.samples)))
    if limit.isdecimal() and 0 < int(limit) < len(everything):
        return set(valset.shuffled()[: int(limit)])
    if claims.run.get("stopped"):
        return set(valset.shuffled()[:rows])
    if answered is not None and claims.option("allow_missing"):
        return {i for i, each in enumerate(valset.samples) if each.path in answered}
    return everything


def of_rows(claims: Claims, classes: int) -> Iterator[str]:
    """What is impossible in the rows themselves."""
    paths = claims.predictions.paths
    for form, scores in claims.scores.items():
        found = contradictions_of_rows(scores, claims.predictions.labels, classes)
        for words, where in found.items():
            yield f"{printable(form)}, {words}: {examples([paths[i] for i in where])}"


def of_files(claims: Claims, record: Record) -> Iterator[str]:
    """What the files say that does not follow from the rows, or that another file denies."""
    yield from _of_summary(claims, record)
    if claims.run:
        yield from _of_run(claims, record)
    yield from _of_classes(claims.folder / PER_CLASS_FILE, record)
    yield from _of_confusions(claims.folder / CONFUSIONS_FILE, record)
    yield from _of_bad_images(claims, record)
    yield from _of_page(claims)


def _of_summary(claims: Claims, record: Record) -> Iterator[str]:
    results = {result.form: result for result in record.judgment.forms}
    if stray := [row.form for row in claims.rows if row.form not in results]:
        yield f"{SUMMARY_FILE} has forms that {PREDICTIONS_FILE} has not: {examples(stray)}"
    if stray := sorted(set(results) - {row.form for row in claims.rows}):
        yield f"{PREDICTIONS_FILE} has forms that {SUMMARY_FILE} has not: {examples(stray)}"
    columns = {column.name: column for column in SUMMARY}
    for row in claims.rows:
        if row.form not in results:
            continue
        given = {name: columns[name].value(record, results[row.form]) for name in _FOLLOW}
        other = [
            name
            for name in _FOLLOW
            if not same(row.cells[name], given[name])
            and (row.cells[name] or name not in ADDED_COLUMNS)  # of an earlier version
        ]
        if other:
            words = [f"{n} {_shown(given[n])} (not {_shown(row.cells[n])})" for n in other]
            yield (
                f"{SUMMARY_FILE}, {printable(row.form)}: its rows and the configuration give "
                f"{', '.join(words)}"
            )
        low, high = nll_bounds(record.measured.scores[row.form])
        cell = row.cells["nll"]
        if cell and not low - 2 * WRITTEN <= float(cell) <= high + 2 * WRITTEN:
            yield (
                f"{SUMMARY_FILE}, {printable(row.form)}: nll is {cell}, by its probabilities it is "
                f"{'at least ' if math.isinf(high) else ''}{low:.6g}"
            )


def _of_run(claims: Claims, record: Record) -> Iterator[str]:
    run = claims.run
    for row in claims.rows:
        for name, cell in row.cells.items():
            value = _beside(run, name, row.form)
            if value is not _ABSENT and not same(cell, value):
                yield (
                    f"{SUMMARY_FILE}, {printable(row.form)}: {name} is {_shown(cell)}, "
                    f"{RUN_FILE} says {_shown(value)}"
                )
    verdict = gravest([row.verdict for row in claims.rows])
    if run.get("verdict") != verdict.value:
        yield f"{RUN_FILE}: the verdict is {_shown(run.get('verdict'))}, the rows' {verdict.value}"
    if verdict.exit_code and run.get("exit_code") == 0:
        yield f"{RUN_FILE}: exit_code is 0 with the verdict {verdict.value}"
    # A comparison or a history that failed afterwards also changes the exit code.
    later = claims.option("baseline") or claims.option("history")
    if not verdict.exit_code and run.get("exit_code") == 1 and not later:
        yield f"{RUN_FILE}: exit_code is 1 with the verdict {verdict.value}, and no baseline"
    ours, said = record.measured.valset.image_set, run.get("image_set")
    if said not in (None, ours.title) and UNIDENTIFIED.name not in (said, ours.name):
        yield f"{RUN_FILE}: the images are {_shown(said)}, by their names {ours.title}"
    expected = _document(record)
    for mine, theirs in zip(expected["results"], _results(run), strict=False):
        other = [name for name in _RESULT if not _equal(theirs.get(name), mine[name])]
        if other:
            words = [f"{n} {_shown(mine[n])} (not {_shown(theirs.get(n))})" for n in other]
            yield (
                f"{RUN_FILE}, {printable(str(mine['form']))}: its rows and the configuration give "
                f"{', '.join(words)}"
            )
    if len(_results(run)) != len(expected["results"]):
        yield f"{RUN_FILE} has results of {len(_results(run))} forms"
    flips = run.get("flips")
    if not isinstance(flips, list) or len(flips) != len(expected["flips"]):
        yield f"{RUN_FILE}: its flips are not those of the rows"


def _document(record: Record) -> dict[str, Any]:
    """The keys of run.json that follow, as they are read back."""
    values = {key.name: key.value(record) for key in RUN if key.name in _DOCUMENT}
    document: dict[str, Any] = json.loads(json.dumps(values))
    return document


_ABSENT = object()
_VERSIONS = ("torch", "torchvision", "timm")


def _beside(run: Mapping[str, Any], name: str, form: str) -> Any:
    """What run.json says about a column of summary.csv."""
    if name in _VERSIONS:
        versions = run.get("versions")
        return versions.get(name, _ABSENT) if isinstance(versions, dict) else _ABSENT
    if name == "verdict":
        return _ABSENT  # of the whole run
    value = run.get(name, _ABSENT)
    return value.get(form, _ABSENT) if isinstance(value, dict) else value


def _results(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    results = run.get("results")
    rows = results if isinstance(results, list) else []
    return [row for row in rows if isinstance(row, dict)]


def _of_classes(path: Path, record: Record) -> Iterator[str]:
    if not path.is_file():
        return
    expected = list(csv.DictReader(io.StringIO(per_class_table(record).to_csv(index=False))))
    written = _table(path)
    if len(written) != len(expected):
        yield f"{path.name} has {len(written)} classes, the model {len(expected)}"
        return
    columns = [name for name in expected[0] if name in written[0]]
    lacking = [
        name for name in expected[0] if name.endswith(("@1", "@5")) and name not in written[0]
    ]
    if lacking:
        yield f"{path.name} has no column {examples(lacking)}"
    other = [
        mine["synset"]
        for mine, theirs in zip(expected, written, strict=True)
        if any(not same(theirs[name] or "", mine[name]) for name in columns)
    ]
    if other:
        yield f"{path.name} is not that of the rows: {examples(other)}"


def _of_confusions(path: Path, record: Record) -> Iterator[str]:
    if not path.is_file():
        return
    columns = [name for name, _ in CONFUSIONS]
    expected = {tuple(map(str, row)) for row in confusions_table(record).itertuples(index=False)}
    written = [tuple(row.get(name, "") for name in columns) for row in _table(path)]
    if len(written) != len(expected) or set(written) != expected:
        other = sorted(expected ^ set(written))
        yield f"{path.name} is not that of the rows: {examples(', '.join(row) for row in other)}"


def _table(path: Path) -> list[dict[str, str]]:
    header, rows = read_table(path)
    return [dict(zip(header, row, strict=True)) for row in rows]


def _of_bad_images(claims: Claims, record: Record) -> Iterator[str]:
    path = claims.folder / BAD_IMAGES_FILE
    listed = {row.get("path") for row in _table(path)} if path.is_file() else set()
    if listed != {claims.predictions.paths[index] for index in record.measured.bad}:
        yield f"{path.name} does not list the images without a prediction"


def _of_page(claims: Claims) -> Iterator[str]:
    path = claims.folder / PAGE_FILE
    if not path.is_file():
        return
    found = _PAGE_VERDICT.search(path.read_text(encoding="utf-8", errors="replace"))
    verdict = gravest([row.verdict for row in claims.rows]).value
    if not found or found[1] != verdict:
        shown = found[1] if found else "no verdict"
        yield f"{path.name} shows {shown}, {SUMMARY_FILE} says {verdict}"


def published_differs(claims: Claims, record: Record) -> list[str]:
    """In what the configuration of the audit is not the one that the result names."""
    stated = claims.run.get("published")
    if not isinstance(stated, dict):
        return []
    ours = _document(record)["published"]
    return [name for name in PUBLISHED if not _equal(stated.get(name), ours[name])]


def same(cell: str, value: Any) -> bool:
    """Whether a cell says what a value does: numbers as numbers, nothing as an empty cell."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return cell == ""
    try:
        number = float(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError):
        number = None
    if number is None:
        return cell == str(value)
    try:
        return abs(float(cell) - number) <= NEAR * max(1.0, abs(number))
    except ValueError:
        return False


def _equal(one: Any, other: Any) -> bool:
    """Of two values from JSON, with numbers that were written and read."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return bool(abs(one - other) <= NEAR * max(1.0, abs(other)))
    return bool(one == other)


def _shown(value: Any) -> str:
    """A value for a sentence."""
    text = printable(str(value))
    if value is None or text == "":
        return "empty"
    return text if len(text) <= 80 else f"{text[:77]}..."
