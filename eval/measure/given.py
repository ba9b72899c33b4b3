"""Predictions that another device or runtime has made, read so that they can be scored.

Three kinds: a CSV of ranked classes, arrays of logits, and the text of VastModelZOO's tools.
Classes are identified by index, since their names are not unique ("crane" is 134 and 517), and
images by file name, never by their position in a list.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.errors import DataError, LogitsError, UsageError
from eval.images.labels import examples, image_key, shown
from eval.images.valset import Sample
from eval.metrics import (
    TOP,
    Kind,
    Scores,
    check_logits,
    kind_of,
    together,
)
from eval.text import table

CHUNK = 2048  # images whose logits are sorted at a time

_NAME_COLUMNS = ("path", "name")
_NAME_ARRAYS = ("names", "name", "paths", "path")
_RELAY = re.compile(
    r"(?P<name>.+): Relay top-(?P<place>[0-9]{1,3}) id: (?P<id>-?[0-9]{1,9}), "
    r"prob: (?P<prob>[^,]+), class name: .*"
)


@dataclass(frozen=True)
class Ranked:
    """The top classes of each image.

    Attributes:
        names: of the images, as they are written.
        classes: int64 (N, K), best first, K at least 5, or all classes if there are fewer.
        prob: float64 (N, K), or None if they are not given or are not probabilities.
    """

    names: tuple[str, ...]
    classes: NDArray[np.int64]
    prob: NDArray[np.float64] | None

    @property
    def description(self) -> str:
        """What is known about each image, for the report."""
        places = self.classes.shape[1]
        return f"{places} top classes; rank {places} means {places} or more"

    def scores(self, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> Scores:
        """Score rows (B,) against labels (B,); a label that is not listed has rank K."""
        classes = self.classes[rows]
        hit = classes == labels[:, np.newaxis]
        scores = Scores.empty(len(rows))
        scores.rank[:] = np.where(hit.any(axis=1), hit.argmax(axis=1), classes.shape[1])
        places = min(TOP, classes.shape[1])
        scores.top[:, :places] = classes[:, :places]
        if self.prob is not None:
            scores.prob[:, :places] = self.prob[rows, :places]
        return scores


@dataclass(frozen=True)
class Logits:
    """A value for each class of each image.

    Attributes:
        names: of the images, as they are written.
        values: (N, classes), logits or probabilities of any numeric type.
        kind: what they are.
    """

    names: tuple[str, ...]
    values: NDArray[Any]
    kind: Kind

    @property
    def description(self) -> str:
        """What is known about each image, for the report."""
        return f"{self.kind.words or self.kind} (of all classes, {self.values.dtype})"

    def scores(self, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> Scores:
        """Score rows (B,) against labels (B,)."""
        scores = Scores.empty(len(rows))
        for start in range(0, len(rows), CHUNK):
            where = np.arange(start, min(start + CHUNK, len(rows)))
            values = self.values[rows[where]].astype(np.float64)
            scores.put(where, Scores.of(values, labels[where], kind=self.kind))
        return scores


Answers = Ranked | Logits


def read_answers(
    path: Path, classes: int, names: Path | None = None, array: str | None = None
) -> Answers:
    """Read predictions; their kind is recognized by the suffix and the first line.

    Args:
        path: ``.npy`` or ``.npz`` arrays, or text: a CSV with a header, or VastModelZOO's.
        classes: how many classes the model has.
        names: for arrays, a file with the name of an image per line, in the order of the array.
        array: which array of an ``.npz`` holds the logits.

    Raises:
        UsageError: there is no such file, or the options do not fit it.
        DataError: it is damaged, or an image has too few classes or one that does not exist.
        LogitsError: values are not finite, or the same for every class.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file of predictions.")
    if path.suffix in (".npy", ".npz"):
        return _read_arrays(path, classes, names, array)
    if names or array:
        raise UsageError(
            f"{path}: --names and --array are for .npy and .npz files; omit them for text."
        )
    text = _read_text(path)
    first = text.lstrip().partition("\n")[0]
    read = _read_relay if _RELAY.fullmatch(first.rstrip()) else _read_csv
    return read(path, text, classes)


def match(names: Sequence[str], samples: Sequence[Sample]) -> dict[int, int]:
    """Find the prediction for each image by the image's name, whatever its folder and suffix.

    A backslash separates folders, unless an image of the validation set has it in its name.

    Returns:
        Index of the sample to index of the name; images without a prediction are left out.

    Raises:
        DataError: an image is predicted twice, or is not in the validation set, or names are not
            unique.
    """
    sample_of = {image_key(sample.path): i for i, sample in enumerate(samples)}
    if len(sample_of) < len(samples):
        raise DataError(
            "--data has images of the same name in different folders: predictions are matched by "
            "file name.\nRename the images."
        )
    keys = [_key(name, sample_of) for name in names]
    twice = [name for name, number in Counter(keys).items() if number > 1]
    if twice:
        raise DataError(
            f"Predicted more than once: {examples(twice)}.\n"
            "Did a second run append to the file? Remove it and predict again."
        )
    unknown = [name for name, key in zip(names, keys, strict=True) if key not in sample_of]
    if unknown:
        raise DataError(
            f"Not in --data: {examples(unknown)}.\n"
            "Name the validation set that the predictions were made on."
        )
    return {sample_of[key]: row for row, key in enumerate(keys)}


def _key(name: str, known: Container[str]) -> str:
    """`image_key` of an image, or of a file that was made from one."""
    name = re.sub(r"\.(npz|npy|bin|txt)$", "", name.strip())
    key = image_key(name)
    return key if key in known else image_key(name.replace("\\", "/"))


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(
            f"{path} is not a UTF-8 text file.\n"
            "Predictions are .csv, .npy, .npz, or VastModelZOO's .txt."
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _read_relay(path: Path, text: str, count: int) -> Ranked:
    """``NAME: Relay top-0 id: 65, prob: 0.9, class name: ...``, then top-1, ..., for each image."""
    names: list[str] = []
    classes: list[list[str]] = []
    prob: list[list[str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        found = _RELAY.fullmatch(line.rstrip())
        if not found:
            if line.strip():
                raise DataError(
                    f"{path}, line {number} is not a prediction: {shown(line)}.\n"
                    "Remove other output of the tool from the file."
                )
            continue
        if int(found["place"]) == 0:
            names.append(found["name"])
            classes.append([])
            prob.append([])
        if not names or found["name"] != names[-1] or int(found["place"]) != len(classes[-1]):
            raise DataError(
                f"{path}, line {number}: top-{found['place']} of {shown(found['name'])} is out of "
                "order.\nWas the file written by two processes at once, or truncated?"
            )
        classes[-1].append(found["id"])
        prob[-1].append(found["prob"])
    return _ranked(path, names, classes, prob, count)


def _read_csv(path: Path, text: str, count: int) -> Ranked:
    """Columns `path` or `name`, and `top1` to `top5` (or more), or `classes` with blanks."""
    header, rows = table(path, text, DataError)
    columns = dict(
        zip(header, zip(*rows, strict=True) if rows else [()] * len(header), strict=True)
    )
    name = next((name for name in _NAME_COLUMNS if name in columns), None)
    places = list(_numbered(columns, "top"))
    if name is None or not (places or "classes" in columns):
        raise DataError(
            f"{path} has the columns {examples(header)}.\nNeeded: path or name, and top1 to top5 "
            "(class indices, best first) or classes (the same, separated by blanks)."
        )
    if places:
        classes = [list(row) for row in zip(*(columns[place] for place in places), strict=True)]
    else:
        classes = [cell.split() for cell in columns["classes"]]
    given = list(_numbered(columns, "prob"))
    prob = None
    if places and len(given) >= len(places):
        prob = [list(row) for row in zip(*(columns[place] for place in given), strict=True)]
        prob = [row[: len(places)] for row in prob]
    return _ranked(path, columns[name], classes, prob, count)


def _numbered(columns: Mapping[str, object], stem: str) -> Iterator[str]:
    """``top1``, ``top2``, ... up to the first that is missing; or from ``top0``, if it is there."""
    number = 0 if f"{stem}0" in columns else 1
    while f"{stem}{number}" in columns:
        yield f"{stem}{number}"
        number += 1


def _ranked(
    path: Path,
    names: Sequence[str],
    classes: list[list[str]],
    prob: list[list[str]] | None,
    count: int,
) -> Ranked:
    """Check the ranked classes of each image.

    Args:
        path: for messages.
        names: of the images.
        classes: of each image, best first.
        prob: of each of those classes, if given.
        count: how many classes there are.
    """
    if not names:
        raise DataError(f"{path} contains no predictions.\nDid the tool stop early?")
    places, needed = len(classes[0]), min(TOP, count)
    for name, row in zip(names, classes, strict=True):
        if len(row) != places or places < needed:
            raise DataError(
                f"{path}: {len(row)} ranked classes for {shown(name)}"
                + (f", {places} for {shown(names[0])}" if len(row) != places else "")
                + f".\nAll images need the same number of ranked classes, at least {needed}."
            )
        for cell in row:
            if not re.fullmatch(r" *[0-9]{1,9} *", cell) or int(cell) >= count:
                raise DataError(
                    f"{path}: {shown(name)} has class {shown(cell)}; classes are 0 to "
                    f"{count - 1}.\n"
                    "If the model has a background class as class 0, subtract 1 first."
                )
        if len({int(cell) for cell in row}) < places:
            raise DataError(f"{path}: {shown(name)} has a class twice: {' '.join(row)}.")
    table = np.array([[int(cell) for cell in row] for row in classes], dtype=np.int64)
    return Ranked(tuple(names), table, _probabilities(path, names, prob))


def _probabilities(
    path: Path, names: Sequence[str], cells: list[list[str]] | None
) -> NDArray[np.float64] | None:
    """The numbers beside the classes, if they can be probabilities; they must not increase."""
    if cells is None or any(not cell.strip() for row in cells for cell in row):
        return None
    try:
        values = np.array([[float(cell) for cell in row] for row in cells])
    except ValueError as error:
        raise DataError(f"{path}: {error}.\nProbabilities are numbers.") from None
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values).all(axis=1)))
        raise LogitsError(f"{path}: the prediction for {shown(names[row])} is NaN or infinite.")
    rises = (np.diff(values, axis=1) > 0).any(axis=1)
    if rises.any():
        raise DataError(
            f"{path}: the classes of {shown(names[int(rises.argmax())])} are not best first: a "
            f"later one is more probable ({int(rises.sum()):,} such images).\n"
            "Sort the classes of each image by probability."
        )
    return values if (values >= 0).all() and (values.sum(axis=1) < 1.01).all() else None


def _read_arrays(path: Path, classes: int, names: Path | None, array: str | None) -> Logits:
    try:
        arrays = _load(path)
    except Exception as error:  # a damaged file lets numpy's parsers raise anything
        raise DataError(
            f"{path} cannot be read as numbers: {shown(str(error))}.\n"
            "Save plain numbers: arrays of Python objects are refused, since reading them could "
            "run code."
        ) from error
    written = next((arrays.pop(key) for key in _NAME_ARRAYS if key in arrays), None)
    if (written is None) == (names is None):
        raise UsageError(
            f"{path} contains the names: omit --names."
            if names
            else f"{path} does not say which row is which image.\n"
            "Add --names FILE, with the name of an image per line, in the order of the rows."
        )
    listed = _read_names(names) if names else _decode_names(path, written)
    values = _choose(path, arrays, array, classes)
    if values.ndim < 1 or values.size != len(listed) * classes or values.shape[0] != len(listed):
        raise DataError(
            f"{path} has an array of {' x '.join(map(str, values.shape))} for {len(listed):,} "
            f"names; {len(listed):,} x {classes} are needed.\n"
            f"If there are {classes + 1} classes, the first is a background class: remove it."
        )
    if values.dtype.kind not in "fiu":
        raise DataError(
            f"{path} contains {values.dtype}, not real numbers.\nSave floats or integers."
        )
    values = values.reshape(len(listed), classes)
    kinds = set()
    for start in range(0, len(values), CHUNK):
        with np.errstate(invalid="ignore"):  # NaN is found by the check
            chunk = values[start : start + CHUNK].astype(np.float64)
        check_logits(chunk, list(listed[start : start + CHUNK]))
        kinds.add(kind_of(chunk))
    return Logits(tuple(listed), values, together(kinds))


def _load(path: Path) -> dict[str, NDArray[Any]]:
    if path.suffix == ".npy":
        return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _choose(
    path: Path, arrays: Mapping[str, NDArray[Any]], array: str | None, classes: int
) -> NDArray[Any]:
    """The array of logits: the one that is named, or the only one that has a fitting size."""
    fitting = [name for name, values in arrays.items() if values.size and not values.size % classes]
    if array is None and len(fitting) == 1:
        return arrays[fitting[0]]
    if array is None or array not in arrays:
        raise UsageError(
            f"{path} contains the arrays {examples(arrays) or 'none'}: name the one with the "
            "logits with --array."
        )
    return arrays[array]


def _decode_names(path: Path, names: NDArray[Any] | None) -> list[str]:
    if names is None or names.dtype.kind not in "US" or names.ndim != 1:
        raise DataError(f"{path}: its names are not a list of strings.\nSave them as text.")
    try:
        return [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: its names are not valid UTF-8 ({error}).\nSave them as text."
        ) from error


def _read_names(path: Path) -> list[str]:
    """A name per line; a label after the name, as lists often have it, is ignored."""
    if not path.is_file():
        raise UsageError(f"--names {path}: there is no such file.")
    lines = (line.strip() for line in _read_text(path).splitlines())
    return [_without_label(line) for line in lines if line]


def _without_label(line: str) -> str:
    name, *label = line.rsplit(maxsplit=1)
    return name if label and label[0].isascii() and label[0].isdigit() else line
