"""Logits as arrays: .npy, .npz and what torch.save wrote, with the names of the images.

The names are in the file, as a list of text beside the array, or in a list of their own
(``--names``). An array has a row for each image, or is one of batches (batches, B, classes), or
transposed (classes, N).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.errors import DataError, UsageError
from eval.files import is_inflated
from eval.images.labels import examples, shown
from eval.measure.given.answers import Answers, logits, ranked
from eval.measure.given.tables import delimiter_of, names_columns, parse_json
from eval.text import read_text, table
from pplcnet._errors import WeightsError

SUFFIXES = (".npy", ".npz", ".pt", ".pth")
_TORCH = (".pt", ".pth")
_NAMES = ("names", "name", "paths", "path")  # of a list of names, where several could be
_LISTED = "Give the name of an image per line, or a table with a column path."


def read_arrays(path: Path, classes: int, names: Path | None, array: str | None) -> Answers:
    """Read a file of arrays; see `eval.measure.given.read_answers`."""
    try:
        arrays = _load(path)
    except WeightsError as error:
        raise DataError(str(error)) from error
    except DataError:
        raise
    except Exception as error:  # a damaged file lets numpy's parsers raise anything
        raise DataError(
            f"{path} cannot be read as numbers: {shown(str(error).partition(chr(10))[0])}.\n"
            "Save plain numbers: arrays of Python objects are refused, since reading them could "
            "run code."
        ) from error
    written = _written_names(path, arrays)
    if (written is None) == (names is None):
        raise UsageError(
            f"{path} contains the names: omit --names."
            if names
            else f"{path} does not say which row is which image.\n"
            "Add --names FILE, with the name of an image per line, in the order of the rows."
        )
    listed = read_names(names) if names else _decode(path, written)
    values = _choose(path, arrays, array, classes)
    if _are_classes(values, len(listed), classes):
        cells = values.reshape(len(listed), -1).astype(str).tolist()
        return ranked(path, listed, cells, None, classes)
    return logits(listed, _rows(path, values, len(listed), classes))


def _are_classes(values: NDArray[Any], images: int, classes: int) -> bool:
    """Whether an array has the predicted class of each image, or several, instead of logits."""
    shape = values.shape
    is_short = len(shape) == 1 or (len(shape) == 2 and shape[1] < classes)
    return values.dtype.kind in "iu" and is_short and shape[0] == images and images > 0


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file, and its lists of text as arrays of text, by name."""
    if path.suffix.lower() == ".npy":
        return {"": np.load(path, mmap_mode="r", allow_pickle=False)}
    if path.suffix.lower() in _TORCH:
        from pplcnet._checkpoint import read_values  # takes torch

        return {name: _as_array(path, value) for name, value in read_values(path).items()}
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        _check_size(path, sum(member.file_size for member in arrays.zip.infolist()))
        return {name: arrays[name] for name in arrays.files}


def _check_size(path: Path, size: int) -> None:
    """Zeros that were compressed, and a text that is kept once, take no space in a file."""
    stored = path.stat().st_size
    if is_inflated(size, stored):
        raise DataError(
            f"{path} makes {size >> 20:,} MiB of {stored:,} bytes, which no real file does.\n"
            "Save it with numpy.savez, with the names of the images alone beside the logits."
        )


def _as_array(path: Path, value: Any) -> NDArray[Any]:
    if isinstance(value, list):  # whose array has the width of the longest
        _check_size(path, 4 * len(value) * max(map(len, value), default=0))
        return np.array(value)
    found: NDArray[Any] = (value.float() if value.is_floating_point() else value).numpy()
    return found


def _written_names(path: Path, arrays: dict[str, NDArray[Any]]) -> NDArray[Any] | None:
    """The names beside the logits, which are taken out; None if there are none."""
    texts = [name for name, values in arrays.items() if values.dtype.kind in "US"]
    found = next((key for key in _NAMES if key in arrays), None)
    if found is None and len(texts) > 1:
        raise UsageError(
            f"{path} has several lists of text: {examples(texts)}.\n"
            "Call that of the images' names `names`."
        )
    found = found or (texts[0] if texts else None)
    return None if found is None else arrays.pop(found)


def _choose(
    path: Path, arrays: Mapping[str, NDArray[Any]], array: str | None, classes: int
) -> NDArray[Any]:
    """The array of logits: the one that is named, or the only one that has a fitting size."""
    fitting = [name for name, values in arrays.items() if values.size and not values.size % classes]
    if array is None and (len(fitting) == 1 or len(arrays) == 1):
        return arrays[(fitting or list(arrays))[0]]
    if array is None or array not in arrays:
        raise UsageError(
            f"{path} contains the arrays {examples(arrays) or 'none'}: name the one with the "
            "logits with --array."
        )
    return arrays[array]


def _rows(path: Path, values: NDArray[Any], images: int, classes: int) -> NDArray[Any]:
    """An array as (images, classes): axes of one element do not matter.

    A square array has a row for each image, as nearly all have.
    """
    if values.dtype.kind not in "fiu":
        raise DataError(
            f"{path} contains {values.dtype}, not real numbers.\nSave floats or integers."
        )
    shape = tuple(length for length in values.shape if length != 1)
    wanted = tuple(length for length in (images, classes) if length != 1)
    if shape == wanted:
        return values.reshape(images, classes)
    if shape == wanted[::-1]:
        return values.reshape(classes, images).T
    if len(shape) > 2 and shape[-1] == classes and math.prod(shape[:-1]) == images:  # batches
        return values.reshape(images, classes)
    raise DataError(
        f"{path} has an array of {' x '.join(map(str, values.shape))} for {images:,} "
        f"names; {images:,} x {classes} are needed.\n"
        + (
            "The first class is a background class: remove it."
            if classes + 1 in shape
            else "Give the list of exactly these images with --names, in the order of the rows."
        )
    )


def _decode(path: Path, names: NDArray[Any] | None) -> list[str]:
    if names is None or names.dtype.kind not in "US" or names.ndim != 1:
        raise DataError(f"{path}: its names are not a list of strings.\nSave them as text.")
    try:
        return [name.decode() if isinstance(name, bytes) else str(name) for name in names.tolist()]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: its names are not valid UTF-8 ({error}).\nSave them as text."
        ) from error


def read_names(path: Path) -> list[str]:
    """The names of images, in order: a name per line, a CSV with a header, or a JSON list.

    A label after the name, as lists often have it, is ignored.
    """
    if not path.is_file():
        raise UsageError(f"--names {path}: there is no such file.")
    text = read_text(path, "list of names", _LISTED)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"--names {path} is empty.\n{_LISTED}")
    if lines[0].startswith("["):
        found = parse_json(path, text)
        if not all(isinstance(name, str) for name in found):
            raise DataError(f"--names {path} is no list of text.\n{_LISTED}")
        return list(found)
    delimiter = delimiter_of(lines[0])
    header = [cell.strip('" ') for cell in lines[0].split(delimiter)]
    if columns := names_columns(header):
        header, rows = table(path, text, DataError, delimiter)
        return [row[header.index(columns[0])] for row in rows]
    return [_without_label(line) for line in lines]


def _without_label(line: str) -> str:
    for delimiter in (None, ",", ";"):
        name, *label = line.rsplit(delimiter, maxsplit=1)
        if label and label[0].strip().isascii() and label[0].strip().isdigit():
            return name.strip(' "')
    return line
