"""Finished runs, read back from their files and checked as if a stranger had written them.

Whatever is damaged, truncated or contradicts itself is refused, and so is a verdict that the
figures beside it do not support. The gate must never have to guess what a file means.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.errors import UsageError
from eval.images.classes import ClassList, ImageClass
from eval.images.labels import examples
from eval.judge.result import SCORED, Predictions, Result, Row
from eval.judge.verdict import (
    JUDGED_PRECISION,
    RunFacts,
    Verdict,
    decide,
    expected_correct,
    forms_differ,
    gravest,
)
from eval.metrics import TOP, percent, wilson_interval
from eval.results.schema import (
    ADDED_COLUMNS,
    PER_CLASS_FILE,
    PREDICTIONS_FILE,
    RUN_FILE,
    SUMMARY_COLUMNS,
    SUMMARY_FILE,
)
from eval.text import from_csv_cell, printable, table

_INTEGER = re.compile(r"-?[0-9]{1,18}")
# Bounded, so that no number takes long to read: 1e-99999999 has a hundred million digits.
_NUMBER = re.compile(r"[-+]?[0-9]{1,30}(\.[0-9]{1,30})?([eE][-+]?[0-9]{1,3})?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_YEARS = range(1970, 3000)  # others cannot be drawn, nor converted between time zones

# Columns that may be empty: those of counts, and those of other numbers with their bounds.
_OPTIONAL_COUNTS = ("tolerance", "prediction_flips", "params", "macs")
_OPTIONAL_NUMBERS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("top1_ci_low", "top1_ci_high"), (0.0, 100.0)),
    **dict.fromkeys(("reference_top1", "reference_top5"), (0.0, 100.0)),
    **dict.fromkeys(("delta_top1", "delta_top5"), (-100.0, 100.0)),
    **dict.fromkeys(ADDED_COLUMNS, (0.0, 100.0)),
    **dict.fromkeys(("nll", "max_abs_logit_diff", "images_per_second", "seconds"), (0, math.inf)),
}


def read_result(source: str | Path, *, skip_runs: Iterable[str] = ()) -> Result:
    """Read a result.

    Args:
        source: a result folder (with its predictions, where it has them), a ``summary.csv`` or a
            history (figures only). ``FILE#RUN_ID`` is one run of a history; without it, the
            latest row of each variant and form.
        skip_runs: runs that are not the latest one: the one that is being compared.

    Raises:
        UsageError: there is no such result, or its files are damaged.
    """
    path, run_id = _split_source(str(source))
    if path.is_dir():
        return _read_folder(str(source), path)
    rows = read_rows(path)
    if run_id:
        rows = [row for row in rows if row.run_id == run_id]
        if not rows:
            raise UsageError(
                f"{path} has no run {run_id}.\nList its runs with: python -m eval.history {path}"
            )
    else:
        skip = set(skip_runs)
        rows = [row for row in rows if row.run_id not in skip]
        if not rows:
            raise UsageError(f"{path} contains no run other than the one to compare with it.")
    # sorted() is stable: of two rows of the same second, the one further down is the latest.
    latest = {(row.variant, row.form): row for row in sorted(rows, key=lambda r: r.started_at)}
    return Result(str(source), latest)


def _split_source(source: str) -> tuple[Path, str]:
    """``FILE#RUN_ID`` in two; a ``#`` that is part of an existing path is left alone."""
    path, separator, run_id = source.rpartition("#")
    try:
        if not separator or Path(source).exists():
            path, run_id = source, ""
        found = Path(path).exists()
    except OSError as error:  # such as a folder that we may not look into
        raise UsageError(f"{source} cannot be read: {error.strerror or error}.") from error
    if not found:
        raise UsageError(
            f"{path}: there is no such result.\n"
            "Give a result folder, a summary.csv, or a history as FILE or FILE#RUN_ID."
        )
    if run_id and Path(path).is_dir():
        raise UsageError(f"{source}: a folder contains one run; #{run_id} is for a history file.")
    return Path(path), run_id


def _read_folder(source: str, folder: Path) -> Result:
    rows = read_rows(folder / SUMMARY_FILE)
    keys = [(row.variant, row.form) for row in rows]
    if len({row.run_id for row in rows}) > 1 or len(set(keys)) < len(keys):
        raise UsageError(
            f"{folder / SUMMARY_FILE} contains more than one run.\n"
            "Give a history as a file: FILE, or FILE#RUN_ID for one of its runs."
        )
    path = folder / PREDICTIONS_FILE
    classes = (
        read_per_class(folder / PER_CLASS_FILE) if (folder / PER_CLASS_FILE).exists() else None
    )
    number = None if classes is None else len(classes)
    predictions = read_predictions(path, number) if path.exists() else None
    if predictions:
        for row in rows:
            _check_counts(path, row, predictions)
    environment = {}
    if (folder / RUN_FILE).exists():
        environment = _check_document(folder / RUN_FILE, rows)
    return Result(source, dict(zip(keys, rows, strict=True)), predictions, classes, environment)


def _check_counts(path: Path, row: Row, predictions: Predictions) -> None:
    """A summary and the predictions beside it must be of the same run."""
    if row.form not in predictions.rank:
        raise UsageError(
            f"{path} has no columns for the form {row.form!r}, which {SUMMARY_FILE} lists."
        )
    counted = [len(predictions.paths)]
    counted += [int(predictions.correct(row.form, k).sum()) for k in row.counts]
    written = [row.images, *row.counts.values()]
    unread = int((predictions.rank[row.form] < 0).sum())
    if counted != written or unread != row.bad_images:
        raise UsageError(
            f"{path} has {'/'.join(map(str, counted[1:]))} of {counted[0]} images correct and "
            f"{unread} unreadable ({printable(row.form)}), its {SUMMARY_FILE} says "
            f"{'/'.join(map(str, written[1:]))} of {written[0]} and {row.bad_images}.\n"
            "They belong to different runs, or one of them is damaged."
        )
    flips = row.cells["prediction_flips"]
    if flips and len(predictions.top1) > 1:
        first, *others = predictions.top1.values()
        differing = int(np.any([first != other for other in others], axis=0).sum())
        if differing != int(flips):
            raise UsageError(
                f"{path} has {differing} images with different predictions of the forms, its "
                f"{SUMMARY_FILE} says {flips}.\n"
                "They belong to different runs, or one of them is damaged."
            )


def _check_document(path: Path, rows: Sequence[Row]) -> dict[str, str]:
    """A summary and the ``run.json`` beside it must say the same; its machine and versions."""
    try:
        document = json.loads(path.read_bytes())
        results = {result["form"]: result for result in document["results"]}
        stated = document["run_id"], document["verdict"]
        said = {
            form: (result["verdict"], result["images"], result["top1"], result["top5"])
            for form, result in results.items()
        }
        environment = {"machine": document.get("machine", ""), **document.get("versions", {})}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error!r}. The file is damaged.") from error
    whole = rows[0].run_id, gravest([row.verdict for row in rows])
    written = {
        row.form: (row.verdict, row.images, *(_known(row.cells[f"top{k}"]) for k in (1, TOP)))
        for row in rows
    }
    if stated != whole or said != written:
        raise UsageError(
            f"{path} and its {SUMMARY_FILE} contradict each other: {_brief(stated, said)} and "
            f"{_brief(whole, written)}.\nThey belong to different runs, or one was edited."
        )
    return {printable(name): printable(str(value)) for name, value in environment.items()}


def _known(cell: str) -> float | None:
    return float(cell) if cell else None


def _brief(run: tuple[Any, ...], forms: Mapping[str, tuple[Any, ...]]) -> str:
    said = [f"{form}: {', '.join(map(str, cells))}" for form, cells in forms.items()]
    return printable(f"{', '.join(map(str, run))} ({'; '.join(said)})")[:200]


def read_per_class(path: Path) -> ClassList:
    """The classes of a ``per_class.csv``."""
    header, rows = read_table(path)
    missing = [name for name in ("synset", "name") if name not in header]
    if missing or not rows:
        what = f"no column {examples(missing)}" if missing else "no rows"
        raise UsageError(f"{path} is not a per_class.csv of eval.imagenet: it has {what}.")
    places = header.index("synset"), header.index("name")
    return ClassList(str(path), tuple(ImageClass(row[places[0]], row[places[1]]) for row in rows))


def read_rows(path: Path) -> list[Row]:
    """Rows of a ``summary.csv`` or a history, in the order of the file."""
    header, rows = read_table(path)
    missing = [name for name in SUMMARY_COLUMNS if name not in (*header, *ADDED_COLUMNS)]
    if missing:
        raise UsageError(
            f"{path} is not a summary or history of eval.imagenet: it has no column "
            f"{examples(missing)}."
        )
    if not rows:
        raise UsageError(f"{path} contains no runs.")
    return [
        _row(dict(zip(header, cells, strict=True)), f"{path}, row {number}")
        for number, cells in enumerate(rows, 1)
    ]


def _row(cells: dict[str, str], where: str) -> Row:
    cells = dict.fromkeys(ADDED_COLUMNS, "") | cells

    def count(name: str) -> int:
        return _integers([cells[name]], f"{where}, {name}", 0)[0]

    started_at = _moment(cells["started_at"], f"{where}, started_at")
    for name in ("run_id", "variant", "form", "preprocess"):
        if not cells[name]:
            raise _damaged(f"{where}, {name}", "", "empty")
    for name in ("weights_sha256", "dataset_sha256"):
        if not _SHA256.fullmatch(cells[name]) and (cells[name] or name == "dataset_sha256"):
            raise _damaged(f"{where}, {name}", cells[name], "not a SHA-256")
    for name in _OPTIONAL_COUNTS:
        if cells[name]:
            count(name)
    for name, bounds in _OPTIONAL_NUMBERS.items():
        if cells[name]:
            _number(cells[name], f"{where}, {name}", *bounds)
    row = Row(
        run_id=cells["run_id"],
        started_at=started_at,
        variant=cells["variant"],
        form=cells["form"],
        preprocess=cells["preprocess"],
        images=count("images"),
        images_expected=count("images_expected"),
        bad_images=count("bad_images"),
        top1_correct=count("top1_correct"),
        top5_correct=count("top5_correct") if cells["top5_correct"] else None,
        verdict=_verdict(cells["verdict"], f"{where}, verdict"),
        weights_sha256=cells["weights_sha256"],
        dataset_sha256=cells["dataset_sha256"],
        cells=cells,
    )
    _check_accuracy(row, where)
    _check_forms(row, where)
    possible = _possible_verdicts(row)
    if row.verdict not in possible:
        verdict, reason = next(iter(possible.items()))
        reason = f"not what its figures say: {verdict}, {reason}"
        raise _damaged(f"{where}, verdict", row.verdict.value, reason)
    return row


def _verdict(cell: str, where: str) -> Verdict:
    try:
        return Verdict(cell)
    except ValueError:
        raise _damaged(where, cell, f"not one of {', '.join(Verdict)}") from None


def _moment(cell: str, where: str) -> datetime:
    try:
        moment = datetime.fromisoformat(cell)
    except ValueError:
        raise _damaged(where, cell, "not a date and time") from None
    if moment.tzinfo is None:
        raise _damaged(where, cell, "without its time zone")
    if moment.year not in _YEARS:
        raise _damaged(where, cell, f"not a year from {_YEARS.start} to {_YEARS.stop - 1}")
    return moment


def _number(cell: str, where: str, low: float, high: float) -> float:
    """A finite number within bounds, as Python and pandas write it."""
    value = float(cell) if _NUMBER.fullmatch(cell) else math.nan
    if not (math.isfinite(value) and low <= value <= high):
        bounds = f"from {low:g}" + (f" to {high:g}" if math.isfinite(high) else "")
        raise _damaged(where, cell, f"not a number {bounds}")
    return value


def _check_accuracy(row: Row, where: str) -> None:
    """The counts must be possible, and what follows from them must be what they say."""
    read = row.images - row.bad_images
    counts = list(row.counts.values())
    if not (counts[0] >= 0 and counts == sorted(counts) and counts[-1] <= read and row.images):
        raise _damaged(
            where,
            f"{' and '.join(map(str, counts))} of {row.images}",
            "impossible as counts of top-1, top-5 and images"
            + (f" with {row.bad_images} unreadable" if row.bad_images else ""),
        )
    accuracy = {k: percent(count, row.images) for k, count in row.counts.items()}
    for name in ("top5", "delta_top5") if TOP not in accuracy else ():
        if row.cells[name]:
            raise _damaged(f"{where}, {name}", row.cells[name], "there without top5_correct")
    low, high = wilson_interval(row.top1_correct, row.images)
    derived = {"top1_ci_low": low, "top1_ci_high": high}
    derived |= {f"top{k}": share for k, share in accuracy.items()}
    for k, share in accuracy.items():
        if reference := row.cells[f"reference_top{k}"]:
            derived[f"delta_top{k}"] = share - float(reference)
        elif row.cells[f"delta_top{k}"]:
            raise _damaged(f"{where}, delta_top{k}", row.cells[f"delta_top{k}"], _ALONE)
    for name, value in derived.items():
        cell = row.cells[name]
        if not cell and name in _OPTIONAL_NUMBERS:
            continue
        bounds = _OPTIONAL_NUMBERS.get(name, (0, 100))
        if abs(_number(cell, f"{where}, {name}", *bounds) - value) >= 1e-6:
            raise _damaged(f"{where}, {name}", cell, "not what its counts say")


_ALONE = "a difference from a reference that is not there"


def _check_forms(row: Row, where: str) -> None:
    """Predictions can only differ where logits do."""
    difference, flips = row.cells["max_abs_logit_diff"], row.cells["prediction_flips"]
    if flips and int(flips) > row.images - row.bad_images:
        raise _damaged(f"{where}, prediction_flips", flips, f"more than {row.images} images")
    if flips and int(flips) and not (difference and float(difference)):
        raise _damaged(f"{where}, prediction_flips", flips, "not possible: no logit differs")
    tolerance = row.cells["tolerance"]
    if tolerance and int(tolerance) > row.images_expected:
        raise _damaged(f"{where}, tolerance", tolerance, f"more than {row.images_expected} images")


# A row does not show the largest logit, on which depends how far two forms may differ. Those of
# classifiers are tens.
_LARGEST_LOGIT = 1e4


def _possible_verdicts(row: Row) -> dict[Verdict, str]:
    """What the judge may have said of the figures of a row, and why.

    A row does not show whether the run was ended early, the largest logit, nor, of predictions
    made elsewhere, whether they were to be compared whatever their precision.
    """
    cells = row.cells
    reported = {
        k: float(cells[f"reference_top{k}"]) for k in (1, TOP) if cells[f"reference_top{k}"]
    }
    precisions = {cells["precision"]} | ({JUDGED_PRECISION} if row.form == SCORED else set())
    difference = float(cells["max_abs_logit_diff"]) if cells["max_abs_logit_diff"] else None
    possible: dict[Verdict, str] = {}
    for stopped, largest, precision in itertools.product(
        ("", "certain"), (_LARGEST_LOGIT, 0.0), precisions
    ):
        facts = RunFacts(
            images=row.images,
            whole=row.images_expected,
            bad=row.bad_images,
            gaps={
                k: count - expected_correct(reported[k], row.images_expected)
                for k, count in row.counts.items()
                if k in reported
            },
            tolerance=int(cells["tolerance"]) if cells["tolerance"] else None,
            precision=precision,
            disagree=forms_differ(
                difference, largest, int(cells["prediction_flips"] or 0), row.images, precision
            ),
            stopped=stopped,
        )
        verdict, reason = decide(facts)
        possible.setdefault(verdict, reason)
    return possible


def read_predictions(path: Path, classes: int | None = None) -> Predictions:
    """Read a ``predictions.csv``: the label, rank and top-1 prediction of each image."""
    header, rows = read_table(path)
    columns = dict(zip(header, zip(*rows, strict=True), strict=True)) if rows else {}
    forms = [name.removesuffix("_rank") for name in header if name.endswith("_rank")]
    needed = ["path", "label", *(f"{form}_top1" for form in forms)]
    missing = [name for name in needed if name not in header]
    if not rows or not forms or missing:
        what = f"no column {examples(missing)}" if missing else "no forms" if rows else "no rows"
        raise UsageError(f"{path} is not a predictions.csv of eval.imagenet: it has {what}.")
    paths = columns["path"]
    _check_paths(path, paths)
    if "index" in columns:
        _check_index(path, columns["index"], paths)
    if twice := [name for name, number in Counter(paths).items() if number > 1]:
        raise UsageError(f"{path} names images more than once: {examples(twice)}.")

    def numbers(name: str, low: int) -> NDArray[np.int64]:
        values = np.array(_integers(columns[name], f"{path}, {name}", low), dtype=np.int64)
        if classes is not None and (values >= classes).any():
            row = int(np.argmax(values >= classes))
            raise _damaged(f"{path}, {name}", columns[name][row], f"not below {classes}")
        return values

    labels = numbers("label", 0)
    rank = {form: numbers(f"{form}_rank", -1) for form in forms}
    top1 = {form: numbers(f"{form}_top1", -1) for form in forms}
    for form in forms:
        # The label is the top-1 prediction exactly if its rank is 0; without a rank, there is none.
        wrong = ((rank[form] == 0) != (top1[form] == labels)) | (
            (rank[form] < 0) != (top1[form] < 0)
        )
        if wrong.any():
            row = int(np.argmax(wrong))
            raise UsageError(
                f"{path} contradicts itself: {printable(paths[row])} has {printable(form)}_rank "
                f"{rank[form][row]}, {printable(form)}_top1 {top1[form][row]} and label "
                f"{labels[row]}."
            )
    return Predictions(paths, labels, rank, top1)


def _check_paths(path: Path, names: Sequence[str]) -> None:
    """Images are named as they are inside a validation set."""
    for name in names:
        if not name or "\0" in name or name.startswith("/") or ".." in name.split("/"):
            raise _damaged(f"{path}, path", name, "no path inside a validation set")


def _check_index(path: Path, cells: Sequence[str], names: Sequence[str]) -> None:
    """Images are numbered in the order of their paths; the rows may have any order."""
    index = _integers(cells, f"{path}, index", 0)
    if sorted(index) != list(range(len(index))):
        raise UsageError(f"{path}, index: not the numbers from 0 to {len(index) - 1}, each once.")
    in_order = [name for _, name in sorted(zip(index, names, strict=True))]
    if in_order == sorted(in_order):
        return
    if any("\\" in name for name in names):  # bytes that are no text are written as escapes
        return
    place = next(i for i, name in enumerate(in_order) if name < in_order[max(0, i - 1)])
    raise UsageError(
        f"{path}, index: {printable(in_order[place])} is number {place}, but the images are sorted "
        "by path. The file is damaged or was edited."
    )


def _integers(cells: Sequence[str], where: str, low: int) -> list[int]:
    """Whole numbers from `low`; with a `low` of -1 an empty cell, which has none, is -1."""
    values = []
    for cell in cells:
        if not cell and low < 0:
            values.append(-1)
        elif _INTEGER.fullmatch(cell) and int(cell) >= low:
            values.append(int(cell))
        else:
            raise _damaged(where, cell, f"not a whole number from {low}")
    return values


def _damaged(where: str, found: str, reason: str) -> UsageError:
    return UsageError(
        f"{printable(where)}: {found[:80]!r} is {reason}. The file is damaged or was edited."
    )


def read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file whose every row is whole."""
    try:
        if path.exists() and not path.is_file():  # a pipe would keep us waiting for ever
            raise UsageError(f"{path} is not a regular file.")
        data = path.read_bytes()
        if data and not data.endswith(b"\n"):
            raise UsageError(f"{path} is cut off: its last line has no end.")
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    header, rows = table(path, text, UsageError)
    if "'" in text:
        rows = [[from_csv_cell(cell) for cell in row] for row in rows]
    return header, rows
