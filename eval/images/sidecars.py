"""Files beside the images that say their labels: claims like all others.

    x.cls, x.txt, x.json   beside x.jpg: an index or the name of a class, or a document with one
    metadata.csv, .jsonl   as Hugging Face's image folders have them: `file_name` and `label`

A ``.cls`` is always a label; text and documents without one, such as captions, say nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from eval.errors import DataError
from eval.images.classes import ClassList
from eval.images.labels import shown
from eval.images.layouts import Listing
from eval.images.lists import codes_of
from eval.text import decoded, table

METADATA = ("metadata.csv", "metadata.jsonl")

_NAMES = ("file_name", "filename")
_NUMBER = re.compile(r"-?[0-9]{1,9}")
_NO_LABEL = "-1"  # in the sets of Hugging Face
_PICKLE = b"\x80"  # its first byte, which no text begins with
_LARGEST = 16 << 20  # bytes


class Sidecars:
    """What the files beside the images of a listing say.

    Attributes:
        silent: paths of those that say nothing about a label.
        sources: the kinds of those that do, for messages.
    """

    def __init__(self, listing: Listing, classes: ClassList) -> None:
        self._listing, self._classes = listing, classes
        self.silent: list[str] = []
        self.sources: list[str] = []
        self._metadata: dict[str, dict[str, int]] = {}
        for path in listing.others:
            if path.rpartition("/")[2] in METADATA and len(data := listing.read(path)):
                self._metadata[path] = labels_in_metadata(path, data, classes)

    def claims(self, image: str) -> dict[str, int]:
        """Who gives an image a label, and the label."""
        claims = {}
        for path in self._listing.beside.get(image, ()):
            label = label_beside(path, self._listing.read(path), self._classes)
            if label is None:
                self.silent.append(path)
            else:
                claims[f"its .{path.rpartition('.')[2]}"] = label
        for path, label_of in self._metadata.items():
            if image in label_of:
                claims[path] = label_of[image]
        self.sources += [name for name in claims if name not in self.sources]
        return claims


def label_beside(path: str, data: bytes, classes: ClassList) -> int | None:
    """The label that a file beside an image gives it; None if it does not say any."""
    suffix = path.rpartition(".")[2].lower()
    try:
        text = decoded(data)
    except UnicodeDecodeError:
        text = ""
    said = _document(text) if suffix == "json" else text.strip()
    label = _label(path, said, classes)
    if label is None and suffix == "cls":
        found = "a pickle" if data.startswith(_PICKLE) else shown(text.strip())
        raise DataError(
            f"{path} is not a class: {found}.\nIt should hold an index "
            f"0..{len(classes) - 1} or the name of a class, as text."
        )
    return label


def labels_in_metadata(path: str, data: bytes, classes: ClassList) -> dict[str, int]:
    """Path of an image to its label, by a ``metadata.csv`` or ``metadata.jsonl`` beside them."""
    if len(data) > _LARGEST:
        raise DataError(f"{path} is too large ({len(data) >> 20} MiB).\nMove it away.")
    try:
        text = decoded(data)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a text file in UTF-8 or UTF-16.\nMove it away.") from None
    folder = path.rpartition("/")[0]
    label_of = {}
    for row in _rows(path, text):
        name = next((row[key] for key in _NAMES if isinstance(row.get(key), str)), None)
        label = _label(path, row, classes)
        if name is not None and label is not None:
            label_of[f"{folder}/{name}" if folder else name] = label
    return label_of


def _rows(path: str, text: str) -> Iterator[Mapping[str, Any]]:
    if path.endswith(".csv"):
        header, rows = table(path, text, DataError)
        for cells in rows:
            yield dict(zip(header, cells, strict=True))
        return
    for line in text.splitlines():
        document = _document(line)
        if isinstance(document, dict):
            yield document


def _document(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _label(path: str, said: Any, classes: ClassList) -> int | None:
    """The index that a number, the name of a class or an object with these means; None if none."""
    if not isinstance(said, dict):
        said = {"label": said}
    said = {str(key).casefold(): value for key, value in said.items()}
    codes = codes_of(said)
    found = {
        key: _meaning(path, code, classes, is_text=isinstance(said[key], str))
        for key, code in codes.items()
    }
    found = {key: label for key, label in found.items() if label is not None}
    if len(set(found.values())) > 1:
        both = " and ".join(f"{key} ({shown(codes[key])})" for key in found)
        raise DataError(f"{path}: {both} could both be the label.\nKeep only the one that is.")
    return next(iter(found.values()), None)


def _meaning(path: str, code: str, classes: ClassList, *, is_text: bool) -> int | None:
    """The class that a word means; a number is an index, as in a list."""
    if not _NUMBER.fullmatch(code):
        meant = classes.meant_by(code)
        return meant[0] if len(meant) == 1 else None
    if is_text:
        classes.check_number(path, code)
    if code == _NO_LABEL:
        return None
    if not 0 <= int(code) < len(classes):
        raise DataError(
            f"{path} has the class {code}; indices are 0 to {len(classes) - 1}.\n"
            "Are these labels of other classes? List them with --classes FILE."
        )
    return int(code)
