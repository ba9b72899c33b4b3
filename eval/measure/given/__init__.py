"""Predictions that another device or runtime has made, read so that they can be scored.

    answers.py   what predictions are, and which image each is of
    tables.py    CSV, JSON, JSON lines, parquet
    logs.py      what VastModelZOO's, PaddleClas's and MLPerf's tools print
    arrays.py    logits: .npy, .npz, .pt

A format is recognized by its content. To add one, write its reader and a row of `_FORMATS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from eval.errors import DataError, UsageError
from eval.measure.given import logs, tables
from eval.measure.given.answers import Answers as Answers
from eval.measure.given.answers import Logits as Logits
from eval.measure.given.answers import Ranked as Ranked
from eval.measure.given.answers import match as match
from eval.measure.given.arrays import SUFFIXES, read_arrays, read_names
from eval.text import decoded

_LARGEST_TEXT = 2 << 30  # bytes; logits of 50,000 images as CSV have about 1 GB


class _Text(NamedTuple):
    """A file of predictions that is text."""

    path: Path
    text: str
    classes: int
    names: Sequence[str] | None
    array: str | None


class _Format(NamedTuple):
    """How a format is recognized and read.

    Attributes:
        start: what its first line that is not blank begins with.
        read: the reader.
        takes: the options that fit it.
    """

    start: re.Pattern[str]
    read: Callable[[_Text], Answers]
    takes: tuple[str, ...] = ()


def _read_json(file: _Text) -> Answers:
    document = tables.parse_json(file.path, file.text)
    if logs.is_mlperf(document):
        _refuse_options(file, ("--names",))
        return logs.read_mlperf(file.path, document, file.classes, file.names)
    _refuse_options(file, ("--array",))
    columns = tables.columns_of(file.path, document)
    return tables.from_columns(file.path, columns, file.classes, file.array)


_FORMATS = (  # the first that fits
    _Format(logs.RELAY, lambda file: logs.read_relay(*file[:3])),
    _Format(
        re.compile(rf"{logs.PREDICT_CLS.pattern}|{logs.LIST.pattern}|.* ppcls INFO: "),
        lambda file: logs.read_paddle(*file[:3]),
    ),
    _Format(re.compile(r"\[\{'class_ids'"), lambda file: logs.read_paddle(*file[:3])),
    _Format(re.compile(r"[{\[]"), _read_json, ("--names", "--array")),
    _Format(re.compile(r""), lambda file: tables.read_csv(*file[:3], file.array), ("--array",)),
)


def read_answers(
    path: Path, classes: int, names: Path | None = None, array: str | None = None
) -> Answers:
    """Read predictions; their format is recognized by the content.

    Args:
        path: see the modules of this package.
        classes: how many classes the model has.
        names: for arrays and MLPerf's log, a file with the name of an image per line, in order.
        array: which array of several holds the logits; which form of our own predictions to score.

    Raises:
        UsageError: there is no such file, or the options do not fit it.
        DataError: it is damaged, or an image has a class that does not exist, or it is ambiguous
            what is meant.
        LogitsError: values are not finite, or the same for every class.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file of predictions.")
    if path.suffix.lower() in SUFFIXES:
        return read_arrays(path, classes, names, array)
    listed = read_names(names) if names else None
    try:
        with path.open("rb") as file:
            head, size = file.read(4), path.stat().st_size
            if head == b"PAR1":
                _refuse_options(_Text(path, "", classes, listed, array), ("--array",))
                return tables.read_parquet(path, classes, array)
            if size > _LARGEST_TEXT:
                raise DataError(
                    f"{path} is too large for text ({size >> 20} MiB).\nSave logits as .npy."
                )
            text = decoded(head + file.read())
            if "\0" in text:
                raise ValueError("not text")
    except ValueError:
        raise DataError(
            f"{path} is not a UTF-8 text file.\n"
            "Predictions are CSV, JSON, parquet, .npy, .npz, .pt, or a tool's text."
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    given = _Text(path, text, classes, listed, array)
    first = text.lstrip().partition("\n")[0]
    form = next(form for form in _FORMATS if form.start.match(first))
    _refuse_options(given, form.takes)
    return form.read(given)


def _refuse_options(file: _Text, taken: Sequence[str]) -> None:
    """Refuse options that mean nothing for a format."""
    given = {"--names": file.names, "--array": file.array}
    stray = [name for name, value in given.items() if value is not None and name not in taken]
    if stray:
        raise UsageError(
            f"{file.path} needs no {stray[0]}: omit it.\n"
            "--names is for arrays and MLPerf's log, --array for what has several parts."
        )
