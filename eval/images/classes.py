"""The classes of a model in index order: ImageNet's 1000, or those of a file.

Label index = position in the list. ImageNet's list is sorted by synset.
"""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from eval.errors import DataError
from eval.text import check_path, read_text, shown

SYNSET = re.compile(r"n[0-9]{8}")  # a WordNet id
_NOT_HIDDEN = re.compile(r"[^.].*", re.DOTALL)


class ImageClass(NamedTuple):
    """One class.

    Attributes:
        folder: the name of its folder; for ImageNet, its synset.
        title: what it shows, optionally with synonyms after commas; need not be unique.
    """

    folder: str
    title: str


@dataclass(frozen=True)
class ClassList:
    """The classes that a model tells apart, in the order of its outputs.

    Attributes:
        name: of the list, for messages and reports.
        rows: the classes, in index order.
        kind: what to call one of its folders in a message: a `kind` folder.
        checked_folders: names of folders that must belong to a class; a folder that matches and
            is not in the list is an error, others may lie beside the classes.
    """

    name: str
    rows: tuple[ImageClass, ...]
    kind: str = "class"
    checked_folders: re.Pattern[str] = _NOT_HIDDEN

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def index_of(self) -> Mapping[str, int]:
        """Name of the folder to index."""
        return {row.folder: index for index, row in enumerate(self.rows)}

    def title(self, label: int) -> str:
        """Short and unique, for display: ``crane (134)``."""
        row = self.rows[label]
        return f"{row.title.partition(',')[0].strip() or row.folder} ({label})"


def _imagenet() -> ClassList:
    """Source of the titles: WordNet 3.0, as timm ships them."""
    file = resources.files("eval").joinpath("resources/classes.csv")
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    classes = tuple(ImageClass(row["synset"], row["name"]) for row in rows)
    return ClassList("ILSVRC2012", classes, kind="synset", checked_folders=SYNSET)


IMAGENET = _imagenet()

_ROWS = (
    "A file of classes has one class per line, in index order: the name of its folder, then "
    "optionally a title."
)


def read_classes(path: Path) -> ClassList:
    """Read a file with one class per line, in index order.

    The first word is the name of the class's folder, the rest, if any, its title. Where a tab
    separates the two, the name may contain blanks.

    Raises:
        DataError: it cannot be read, is empty, or a line is not a class; with the line's number.
    """
    check_path("--classes", path)
    lines = read_text(path, "file of classes", _ROWS).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DataError(f"{path} is empty.\n{_ROWS}")
    rows: list[ImageClass] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        row = _parse(where, line)
        first = line_of.setdefault(row.folder, number)
        if first != number:
            raise DataError(
                f"{where}: {shown(row.folder)} is already on line {first}.\n"
                "Each class is listed once; its line is its index (the first line is 0)."
            )
        rows.append(row)
    return ClassList(path.name, tuple(rows))


def _parse(where: str, line: str) -> ImageClass:
    """One line: a name, and perhaps a title behind a tab or blanks."""
    parts = line.split("\t" if "\t" in line else None, 1)
    folder = parts[0].strip() if parts else ""
    title = " ".join("".join(parts[1:]).split())
    problem = ""
    if not folder:
        problem = "has no name, which would shift the classes below it"
    elif "/" in folder or "\\" in folder:
        problem = f"has the path {shown(folder)} instead of the name of a folder"
    elif folder.startswith("."):
        problem = f"has {shown(folder)}: hidden folders, '.' and '..' are not classes"
    elif not f"{folder}{title}".isprintable():
        problem = f"has characters that cannot be printed: {shown(line)}"
    if problem:
        raise DataError(f"{where} {problem}.\n{_ROWS}")
    return ImageClass(folder, title or folder)


class ImageNetClass(NamedTuple):
    """One class of ImageNet."""

    synset: str
    name: str


@functools.cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """The rows of `IMAGENET`."""
    return tuple(ImageNetClass(*row) for row in IMAGENET.rows)
