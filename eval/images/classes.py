"""The classes of a model in index order: ImageNet's 1000, or those of a file.

Label index = position in the list. ImageNet's list is sorted by synset.
"""

from __future__ import annotations

import ast
import csv
import functools
import json
import re
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from eval.errors import DataError
from eval.text import check_path, read_text, shown

SYNSET = re.compile(r"n[0-9]{8}")  # a WordNet id
# A synset with other words around it, and words with the number of the class before them.
_WITH_SYNSET = re.compile(r"(?:(.*)[\W_])?(n[0-9]{8})(?:[\W_](.*))?", re.IGNORECASE | re.DOTALL)
_WITH_NUMBER = re.compile(r"([0-9]{1,6})[\W_]+(.*)", re.DOTALL)
_NUMBER = re.compile(r"[0-9]{1,9}")
_HEADER_WORDS = frozenset(
    ["class", "classes", "class_name", "class_id", "class_index", "folder", "id", "idx", "index",
     "label", "labels", "name", "names", "synset", "title", "wnid"]
)  # fmt: skip
# Of JSON documents: within `features` (datasets), `config.json` (transformers), and by themselves.
_DOCUMENT_KEYS = ("features", "label", "id2label", "label2id", "class_to_idx", "classes", "names")
_YAML = re.compile(r"\s*(-\s|---|[A-Za-z_]\w*:\s*$)")
_NOT_HIDDEN = re.compile(r"[^.].*", re.DOTALL)


ILSVRC_ID = "ilsvrc-id"  # of `eval.request.FOLDERS`


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
        numbers: what the number of a numbered folder means, one of `eval.request.FOLDERS`; "" if
            that is not said. It is no property of the classes themselves.
    """

    name: str
    rows: tuple[ImageClass, ...]
    kind: str = "class"
    checked_folders: re.Pattern[str] = _NOT_HIDDEN
    numbers: str = field(default="", compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def index_of(self) -> Mapping[str, int]:
        """Name of the folder to index."""
        return {row.folder: index for index, row in enumerate(self.rows)}

    @functools.cached_property
    def _named(self) -> Mapping[str, frozenset[int]]:
        """Titles and their parts, as `_plain` has them, to the classes that they may mean."""
        found: dict[str, set[int]] = {}
        for index, row in enumerate(self.rows):
            for name in (row.folder, row.title, *row.title.split(",")):
                found.setdefault(_plain(name), set()).add(index)
        return {name: frozenset(indices) for name, indices in found.items() if name}

    def meant_by(self, name: str) -> tuple[int, ...]:
        """Indices of the classes that a name may mean, ascending; one where it is without doubt.

        It is the name of a class's folder, a title or a synonym of it in any spelling
        (``American_alligator``), or a synset with one of these beside it (``n01440764_tench``),
        which must not be those of another class. A number before it (``0000_tench``) must be the
        place of that class, from 0 or 1.
        """
        if name in self.index_of:
            return (self.index_of[name],)
        if found := self._named.get(_plain(name)):
            return tuple(sorted(found))
        if words := _WITH_SYNSET.fullmatch(name):
            index = self.index_of.get(words[2].lower())
            before, behind = words[1] or "", words[3] or ""
        else:
            words = _WITH_NUMBER.fullmatch(name)
            meant = self.meant_by(words[2]) if words else ()
            if words is None or len(meant) != 1:
                return meant
            index, before, behind = meant[0], words[1], ""
        if index is None or (before and not self._places(before)):
            return ()
        others = [self._places(word) for word in (before, behind)]
        return tuple(sorted({index}.union(*(each for each in others if index not in each))))

    def _places(self, word: str) -> frozenset[int]:
        """The classes that words or a number beside the name of one may mean."""
        if _NUMBER.fullmatch(word):
            return frozenset({int(word), int(word) - 1} & set(range(len(self))))
        return self._named.get(_plain(word), frozenset())

    def numbered(self, name: str) -> int | None:
        """The class of a numbered folder, as `numbers` says; None if it is of no class."""
        if not _NUMBER.fullmatch(name):
            return None
        number = int(name)
        if self.numbers == ILSVRC_ID:
            return ilsvrc_ids()[number - 1] if 1 <= number <= len(ilsvrc_ids()) else None
        return number if number < len(self) else None

    def check_number(self, where: str, text: str, index: int | None = None) -> None:
        """Refuse a number, written as text, that is an index and also the name of another class.

        Args:
            where: what has it as a label, for the message.
            text: the number.
            index: of the class that it stands for; the number itself unless given.

        Raises:
            DataError: nothing says which of the two is meant.
        """
        index = int(text) if index is None else index
        others = [str(other) for other in self.meant_by(text) if other != index]
        if not others:
            return
        named = f"the name of class {' and '.join(others)}"
        has = (
            f"may be the index {text} ({shown(self.rows[index].folder)}) or {named}"
            if 0 <= index < len(self)
            else f"is {named}, and no index 0..{len(self) - 1}; numbers are read as indices"
        )
        raise DataError(
            f"{where}: the label {text} {has}.\nGive the classes of {self.name} names that are no "
            f"numbers, such as class_{text.lstrip('-')}; a number is an index then."
        )

    def title(self, label: int) -> str:
        """Short and unique, for display: ``crane (134)``."""
        row = self.rows[label]
        return f"{row.title.partition(',')[0].strip() or row.folder} ({label})"


@functools.cache
def ilsvrc_ids() -> tuple[int, ...]:
    """Label of each ILSVRC id, from id 1 on.

    Source: the ids of the ILSVRC2012 devkit (``meta.mat``); darknet's ``imagenet.labels.list`` is
    in the same order. They agree with the official labels of the first four validation images,
    whose ids are 490, 361, 171 and 822.
    """
    return numbers_in("ilsvrc_ids.u16")


def numbers_in(resource: str) -> tuple[int, ...]:
    """The numbers of a file of this package, each of two bytes, the lower one first."""
    numbers = array("H", resources.files("eval").joinpath("resources", resource).read_bytes())
    if sys.byteorder == "big":
        numbers.byteswap()
    return tuple(numbers)


def _plain(name: str) -> str:
    """A title without what spellings differ in: case, and the signs between words."""
    return " ".join(re.split(r"[\W_]+", name.casefold())).strip()


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
    """Read a file with one class per line, in index order, or a JSON document of classes.

    The first word is the name of the class's folder, the rest, if any, its title. Where a tab
    separates the two, the name may contain blanks. Lines of `name index` are in the order of their
    indices, as are those of a CSV file; lines that begin with ``#`` are comments. A document is an
    object of names and indices (``class_to_idx``), or of indices and names (``id2label``, also
    within a ``config.json``).

    Raises:
        DataError: it cannot be read, is empty, or a line is not a class; with the line's number.
    """
    check_path("--classes", path)
    text = read_text(path, "file of classes", _ROWS)
    if text.lstrip().startswith(("{", "[")):
        return _listed(path, _from_document(path, text))
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    numbered = [(n, line) for n, line in enumerate(lines, 1) if not line.startswith("#")]
    if not numbered:
        raise DataError(f"{path} is empty.\n{_ROWS}")
    if table := _table(numbered):
        numbered, header = table, 0
    else:
        header = _header(path, numbered)
    for number, line in numbered:
        if _YAML.match(line):
            raise DataError(
                f"{path}, line {number} is YAML ({shown(line.strip())}); it is not read.\n{_ROWS}"
            )
    rows: list[ImageClass] = []
    line_of: dict[str, int] = {}
    twice = ""
    for number, line in numbered[header:]:
        where = f"{path}, line {number}"
        row = _parse(where, line)
        first = line_of.setdefault(row.folder, number)
        if first != number and not twice:
            twice = f"{where}: {shown(row.folder)} is already on line {first}"
        rows.append(row)
    if twice:
        raise _twice(twice, rows)
    return _listed(path, _in_order(path, rows))


def _listed(path: Path, rows: tuple[ImageClass, ...]) -> ClassList:
    """The list, in which each class has a name of its own."""
    first_of: dict[str, int] = {}
    for index, row in enumerate(rows):
        first = first_of.setdefault(row.folder, index)
        if first != index:
            raise _twice(f"{path}, class {index}: {shown(row.folder)} is also class {first}", rows)
    return ClassList(path.name, rows)


def _twice(what: str, rows: Sequence[ImageClass]) -> DataError:
    """The error if a class is listed twice, by the rows that were read."""
    of_imagenet = sum(
        index in IMAGENET.meant_by(name)
        for index, row in enumerate(rows[: len(IMAGENET)])
        for name in {row.folder, row.title, f"{row.folder} {row.title}"}
    )
    if len(rows) == len(IMAGENET) and 2 * of_imagenet > len(rows):
        return DataError(f"{what}.\nThese are ImageNet's own classes: omit --classes.")
    return DataError(
        f"{what}.\nEach class is listed once, in index order; where its name contains blanks, a "
        "tab follows it."
    )


def column_key(cell: str) -> str:
    """The name of a column, as the known ones are written."""
    return cell.strip('" ').casefold().replace(" ", "_")


def _table(lines: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """The lines of a CSV file as those of a list, in the order of their indices, if it has any.

    It has a header of known words, or each line begins with a synset or a number and a separator.
    Empty if it is no such file, or its indices are not 0, 1, 2, ...
    """
    first = lines[0][1]
    for delimiter in (",", ";"):
        header = [column_key(cell) for cell in first.split(delimiter)]
        has_header = len(header) > 1 and set(header) <= _HEADER_WORDS and len(lines) > 1
        begins = re.compile(rf'"?(n[0-9]{{8}}|[0-9]{{1,9}})"?\s*{delimiter}')
        if not has_header and not all(begins.match(line) for _, line in lines):
            continue
        try:
            rows = list(csv.reader((line for _, line in lines[has_header:]), delimiter=delimiter))
        except csv.Error:
            return []
        columns = [[cell.strip() for cell in cells] for cells in zip(*rows, strict=False)]
        indices = [cells for cells in columns if all(map(_NUMBER.fullmatch, cells))]
        names = [cells for cells in columns if cells not in indices]
        if not names or len(indices) > 1 or len(rows) < len(lines) - has_header:
            return []
        # A folder's name stands before its title; in a table of all three, so does the index.
        order = [int(cell) for cell in indices[0]] if indices else list(range(len(rows)))
        if sorted(order) != list(range(len(rows))):
            return []
        numbers = [number for number, _ in lines[has_header:]]
        texts = ["\t".join(cells[:2]) for cells in zip(*names, strict=True)]
        places = sorted(range(len(rows)), key=order.__getitem__)
        return [(numbers[place], f"{texts[place]}\t") for place in places]
    return []


def _header(path: Path, lines: Sequence[tuple[int, str]]) -> int:
    """1 if the first line names the columns of `name index` lines, else 0."""
    (number, first), *others = lines
    words = re.split(r"[\s,;]+", first.strip().casefold())
    if not words or not set(words) <= _HEADER_WORDS or len(lines) == 1:
        return 0
    if all(_is_index(line.split()[-1:]) for _, line in others) and len(words) > 1:
        return 1
    raise DataError(
        f"{path}, line {number} looks like a header ({shown(first.strip())}), not like a class.\n"
        "Remove the line."
    )


def _is_index(words: Sequence[str]) -> bool:
    return bool(words) and _NUMBER.fullmatch(words[0]) is not None


def _in_order(path: Path, rows: Sequence[ImageClass]) -> tuple[ImageClass, ...]:
    """The classes by the indices behind their names, where there are any."""
    places = range(len(rows))
    if all(_NUMBER.fullmatch(row.title) and row.title != row.folder for row in rows):
        indices = [int(row.title) for row in rows]
        if sorted(indices) != list(places):
            raise DataError(
                f"{path} has numbers behind its names that are not the indices 0 to "
                f"{len(rows) - 1}, each once.\n{_ROWS}"
            )
        return tuple(
            ImageClass(row.folder, row.folder)
            for _, row in sorted(zip(indices, rows, strict=True), key=lambda pair: pair[0])
        )
    numbers = [int(row.folder) for row in rows if _NUMBER.fullmatch(row.folder)]
    titled = all(row.title != row.folder for row in rows)
    if titled and numbers != list(places) and sorted(numbers) == list(places):
        raise DataError(
            f"{path} has numbers before its names, in another order than its lines.\nSort the "
            "lines by index, or write the names first."
        )
    return tuple(rows)


def _from_document(path: Path, text: str) -> tuple[ImageClass, ...]:
    """The classes of a JSON document."""
    try:
        # The list of ImageNet's titles that is passed around is written as Python has it.
        document = json.loads(text) if '"' in text.partition(":")[0] else ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        # Python's own reasons name its parts, and may be empty.
        reason = f": {error}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{path} is not JSON{reason}.\n{_ROWS}") from None
    for key in _DOCUMENT_KEYS:
        if isinstance(document, dict) and isinstance(document.get(key), (dict, list)):
            document = document[key]
    found: dict[int, str] = {}
    if isinstance(document, list):
        document = dict(enumerate(document))
    for key, value in document.items() if isinstance(document, dict) else ():
        if _NUMBER.fullmatch(str(key)):
            name, *title = value if isinstance(value, list) else [value]
            found[int(key)] = "\t".join(map(str, (name, *(title or [""]))))
        elif isinstance(value, int) and not isinstance(value, bool):
            found[value] = f"{key}\t"
    if not found or len(found) < len(document) or sorted(found) != list(range(len(found))):
        raise DataError(
            f"{path} does not give each of the indices 0, 1, 2, ... one class.\n"
            "Write an object of names and indices, or of indices and names."
        )
    return tuple(_parse(f"{path}, class {index}", found[index]) for index in sorted(found))


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
