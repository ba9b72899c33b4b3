"""Lists of images and their classes, in the forms that people have them.

    a.jpg 7               a name, which may contain blanks, and a class
    7 a.jpg
    a.jpg tench           a title or a folder of a class in place of its index
    filename,label        CSV with commas, semicolons or tabs, quoted or not; with a header or not
    ImageId,PredictionString    Kaggle's: the boxes of an image, each after its class
    {"a.jpg": 7}          JSON; also a list of objects, or one object a line

Lines that begin with ``#`` are comments. Where two columns could be the label, they must agree.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval.errors import DataError
from eval.images.classes import ClassList, column_key
from eval.text import examples, shown

NAME_KEYS = ("path", "file_path", "filepath", "file_name", "filename", "file", "image_path",
             "img_path", "image_name", "img_name", "image", "img", "imageid", "image_id", "name",
             "fname")  # fmt: skip
LABEL_KEYS = ("label", "labels", "cls", "class", "target", "class_id", "class_idx", "class_index",
              "label_id", "label_idx", "category", "category_id", "synset", "wnid",
              "class_name", "class_label", "label_name", "predictionstring", "ground_truth", "gt",
              "gt_label")  # fmt: skip
_WEAK_KEYS = ("index", "idx", "id")  # of a label, where no other column has one; else of the row
_BOXES = "predictionstring"
_DELIMITERS = ("\t", ",", ";", "|")
_MOST_CELLS = 5_000_000  # of a table; ImageNet's training set has 1.3 million images
_LARGEST_DOCUMENT = 16 << 20  # characters
_LONGEST_LINE = 100_000  # characters
_NUMBER = re.compile(r"([0-9]{1,9})(\.0{1,9})?")


class Row(NamedTuple):
    """One image.

    Attributes:
        line: its number, from 1; of a JSON document, the number of the entry.
        name: of the file, as the list has it; may be a path.
        code: what the list says about its class.
        is_number: whether it is a number of JSON, and so no name.
    """

    line: int
    name: str
    code: str
    is_number: bool = False


def read_rows(
    path: Path, text: str, classes: ClassList, is_image: Callable[[str], bool]
) -> list[Row] | None:
    """The rows of a list; None if it has one word per line."""
    return _Reader(path, classes, is_image).read(text)


def plain_code(word: str) -> str:
    """A code without what pandas adds to a whole number: ``7`` for ``7.0``."""
    match = _NUMBER.fullmatch(word.strip())
    return match[1] if match else word.strip()


def codes_of(row: Mapping[str, Any]) -> dict[str, str]:
    """What an object says about a class, by those of its keys that may name one (lower case)."""
    codes: dict[str, str] = {}
    for key in LABEL_KEYS:
        if word := _text(row.get(key)):
            codes[key] = plain_code(word.split()[0] if key == _BOXES else word)
    return codes


class _Reader:
    def __init__(self, path: Path, classes: ClassList, is_image: Callable[[str], bool]) -> None:
        self._path, self._classes, self._is_image = path, classes, is_image

    def read(self, text: str) -> list[Row] | None:
        if text.lstrip()[:1] in ("{", "["):
            return list(self._documents(text))
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        lines = [
            (number, line)
            for number, line in enumerate(text.split("\n"), 1)
            if line.strip() and not line.startswith("#")
        ]
        if not lines:
            return []
        if long := next((n for n, line in lines if len(line) > _LONGEST_LINE), 0):
            raise DataError(
                f"{self._path}, line {long} has more than {_LONGEST_LINE:,} characters.\n"
                "A list has one line for each image."
            )
        first = lines[0][1]
        for delimiter in _DELIMITERS:
            header = [column_key(cell) for cell in first.split(delimiter)]
            if len(header) > 1 and _is_header(header):
                return self._with_header(text, delimiter)
        for delimiter in _DELIMITERS:
            if all(delimiter in line for _, line in lines):
                rows = self._without_header(text, delimiter)
                if rows is not None:
                    return rows
        between = next((each for each in _DELIMITERS if each in first.strip()), "")
        if between and all(between in line and len(line.split()) < 3 for _, line in lines):
            raise DataError(
                f"{self._path} has the columns {examples(first.split(between))}, without a name "
                f"that says which is what.\nWrite filename{between}label into the first line, and "
                "name others otherwise."
            )
        if len(first.split()) == 1:
            return None
        if _is_header(first.casefold().split()) and len(lines) > 1:
            del lines[0]
        return self._by_blanks(lines)

    # One image a line, with blanks

    def _by_blanks(self, lines: Sequence[tuple[int, str]]) -> list[Row]:
        """By the first way of splitting that fits every line, or else the name first."""
        for split in (self._name_first, self._code_first, self._title_last):
            found = []
            for number, line in lines:
                if (row := split(line.split())) is None:
                    break
                found.append(Row(number, *row))
            else:
                return found
        words = [(number, line.split()) for number, line in lines]
        return [Row(number, " ".join(each[:-1]), plain_code(each[-1])) for number, each in words]

    def _name_first(self, words: list[str]) -> tuple[str, str] | None:
        code = plain_code(words[-1])
        is_code = code.isdecimal() or code in self._classes.index_of
        name = " ".join(words[:-1]).removesuffix(":")
        return (name, code) if is_code and name else None

    def _code_first(self, words: list[str]) -> tuple[str, str] | None:
        code, name = plain_code(words[0]), " ".join(words[1:])
        is_code = code.isdecimal() or code in self._classes.index_of
        return (name, code) if is_code and self._is_image(name) else None

    def _title_last(self, words: list[str]) -> tuple[str, str] | None:
        end = next((n for n, word in enumerate(words, 1) if self._is_image(word)), 0)
        title = " ".join(words[end:])
        return (" ".join(words[:end]), title) if end and self._classes.meant_by(title) else None

    # Tables

    def _cells(self, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
        reader, found = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), 0
        try:
            for cells in reader:
                found += len(cells)
                if found > _MOST_CELLS:
                    raise DataError(
                        f"{self._path} has more than {_MOST_CELLS:,} cells, too many for a list.\n"
                        "Give a list of names and labels, and nothing else."
                    )
                if any(cells) and not cells[0].startswith("#"):
                    yield reader.line_num, [cell.strip() for cell in cells]
        except csv.Error as error:
            raise DataError(
                f"{self._path}, line {reader.line_num}: {error}.\nThe file is damaged or was "
                "edited: write it again."
            ) from error

    def _with_header(self, text: str, delimiter: str) -> list[Row]:
        (_, header), *lines = self._cells(text, delimiter)
        keys = [column_key(cell) for cell in header]
        if twice := [key for key, times in Counter(filter(None, keys)).items() if times > 1]:
            raise DataError(
                f"{self._path} has more than one column {examples(twice)}.\nRemove all but one."
            )
        found = []
        for number, cells in lines:
            if len(cells) > len(keys):
                raise DataError(
                    f"{self._path}, line {number} has {len(cells)} of {len(keys)} columns.\n"
                    "Quote cells that contain the separator."
                )
            found.append(self._row(number, dict(zip(keys, cells, strict=False))))
        return found

    def _without_header(self, text: str, delimiter: str) -> list[Row] | None:
        """By what the columns hold; None if this is no such table."""
        lines = list(self._cells(text, delimiter))
        if len({len(cells) for _, cells in lines}) > 1:
            return None
        columns = list(zip(*(cells for _, cells in lines), strict=True))
        names = [n for n, cells in enumerate(columns) if all(map(self._is_image, cells))]
        numbers = [n for n, cells in enumerate(columns) if all(map(_is_number, cells))]
        titles = [
            n
            for n, cells in enumerate(columns)
            if n not in (*names, *numbers) and all(map(self._classes.meant_by, cells))
        ]
        if not names and len(columns) == 2 and len(numbers + titles) == 1:
            names = [n for n in (0, 1) if n not in (*numbers, *titles)]  # names without suffixes
            if any(self._is_image(word) for word in columns[names[0]][0].split()):
                return None  # `a.jpg tench, Tinca tinca`
        if len(numbers) > 1 and numbers[0] == 0 and _is_counter(columns[0]):
            numbers.remove(0)  # pandas' index
        labels = titles or numbers  # names of classes say what they are, numbers may be anything
        if not names or not labels:
            return None
        if all(
            len(set(map(self._meaning, row))) == 1
            for row in zip(*(columns[n] for n in labels), strict=False)
        ):
            labels = labels[:1]  # they agree
        if len(names) > 1 or len(labels) > 1:
            what, several = ("name", names) if len(names) > 1 else ("label", labels)
            raise DataError(
                f"{self._path}: columns {' and '.join(str(n + 1) for n in several)} could both be "
                f"the {what}.\nName the columns in the first line (filename{delimiter}label), or "
                "remove one."
            )
        name, label = columns[names[0]], columns[labels[0]]
        return [
            Row(number, name[row], plain_code(label[row])) for row, (number, _) in enumerate(lines)
        ]

    # Objects

    def _row(self, number: int, row: Mapping[str, Any]) -> Row:
        """The name and the class of an object, or of a line by the names of its columns."""
        name = next((row[key] for key in (*NAME_KEYS, "id") if _text(row.get(key))), "")
        codes = codes_of(row)
        if not codes:
            codes = {key: plain_code(word) for key in _WEAK_KEYS if (word := _text(row.get(key)))}
        numbers = {key for key in codes if not isinstance(row[key], str)}
        if len({self._meaning(code, key in numbers) for key, code in codes.items()}) > 1:
            said = " and ".join(f"{key} ({shown(code)})" for key, code in codes.items())
            raise DataError(
                f"{self._path}, line {number}: {said} could both be the label of "
                f"{shown(str(name))}.\nKeep only the column that is."
            )
        key = next(iter(codes), "")
        return Row(number, _text(name), codes.get(key, ""), key in numbers)

    def _meaning(self, code: str, is_number: bool = False) -> object:
        """What a code means, to be compared with others; two things only if it is text."""
        code = plain_code(code)
        meant = () if is_number else self._classes.meant_by(code)
        if code.isdecimal():
            number = int(code)
            return (number, *(each for each in meant if each != number))
        return meant if len(meant) == 1 else code

    def _documents(self, text: str) -> Iterator[Row]:
        """The rows of a JSON document, or of JSON lines."""
        if len(text) > _LARGEST_DOCUMENT:
            raise DataError(
                f"{self._path} is too large for a list in JSON ({len(text) >> 20} MiB).\n"
                "Write lines of `name index`."
            )
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            document = []
            for number, line in enumerate(text.split("\n"), 1):
                try:
                    document += [json.loads(line)] if line.strip() else []
                except (ValueError, RecursionError):
                    raise DataError(
                        f"{self._path}, line {number} is not JSON: {shown(str(error))}.\n{_JSON}"
                    ) from None
        if isinstance(document, dict):
            document = [{"name": name, "label": code} for name, code in document.items()]
        for number, entry in enumerate(document, 1):
            if isinstance(entry, list) and len(entry) == 2:
                entry = {"name": entry[0], "label": entry[1]}
            keys = {
                str(key).casefold(): value
                for key, value in (entry if isinstance(entry, dict) else {}).items()
            }
            row = self._row(number, keys)
            if not row.name or not row.code:
                raise DataError(
                    f"{self._path}, entry {number} is not an image and a class: "
                    f"{shown(json.dumps(entry))}.\n{_JSON}"
                )
            yield row


_JSON = 'Write {"a.jpg": 7, ...}, or objects with the keys "filename" and "label".'


def _is_header(words: Sequence[str]) -> bool:
    """Whether a line names the columns of a list: one for names, one for labels."""
    named, labeled = set(words) & set(NAME_KEYS), set(words) & set(LABEL_KEYS)
    is_named = bool(named and (labeled or set(words) & set(_WEAK_KEYS)))
    return is_named or ("id" in words and bool(labeled))


def _is_number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell) is not None


def _is_counter(cells: Sequence[str]) -> bool:
    first = cells[0]
    return first in ("0", "1") and all(
        cell == str(number) for number, cell in enumerate(cells, int(first))
    )


def _text(value: Any) -> str:
    """A name or a code as text; "" for anything else."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""
