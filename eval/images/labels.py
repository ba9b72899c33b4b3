"""Labels that do not come from folders: the official list, and the files that people have.

An image is known by its name: the folder that it is in, the case of its suffix and a synset that
somebody appended to it say nothing about which image it is. A label is the position of its synset
in the sorted list of 1000. Files that count in another way, such as the devkit's ILSVRC ids, are
recognised by what they say about the official images, never by a fixed offset.
"""

from __future__ import annotations

import csv
import functools
import io
import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath

from eval.errors import DataError
from eval.images.classes import imagenet_classes, label_of_synset

VAL_IMAGES = 50_000
CLASSES = 1000
IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"}
SYNSET = re.compile(r"n[0-9]{8}")

# The second group is how the Hugging Face copy names the same files.
_OFFICIAL = re.compile(r"ILSVRC2012_val_([0-9]{8})(?:_(n[0-9]{8}))?", re.IGNORECASE)
_DEVKIT_START = (490, 361, 171, 822)  # of ILSVRC2012_validation_ground_truth.txt
_NUMBER = re.compile(r"[0-9]{1,9}")
_LARGEST_FILE = 64 << 20  # bytes; the largest real one, Kaggle's, has 2 MB


@dataclass(frozen=True)
class LabelList:
    """A file of labels.

    Attributes:
        name: what to call it, with the numbering that was recognised in it.
        label_of: `image_key` to label.
    """

    name: str
    label_of: Mapping[str, int]


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image; ``._x.JPEG`` of macOS is none."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def image_key(path: str) -> str:
    """What an image is called in every layout and list: no folder, no suffix."""
    number = official_number(path)
    return _stem(path) if number is None else official_key(number)


def official_key(number: int) -> str:
    """`image_key` of an official image, 1..50000."""
    return f"ILSVRC2012_val_{number:08d}"


@functools.cache
def _official_keys() -> tuple[str, ...]:
    return tuple(official_key(number) for number in range(1, VAL_IMAGES + 1))


def official_number(path: str) -> int | None:
    """1..50000 where the name is that of an official validation image, else None."""
    match = _OFFICIAL.fullmatch(_stem(path))
    number = int(match[1]) if match else 0
    return number if 1 <= number <= VAL_IMAGES else None


def synset_in_name(path: str) -> str | None:
    """The synset that a copy from Hugging Face has appended to an official name."""
    match = _OFFICIAL.fullmatch(_stem(path))
    return match[2] if match else None


def _stem(path: str) -> str:
    name = path.rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return stem if f"{dot}{suffix}".lower() in IMAGE_SUFFIXES else name


@functools.cache
def official_labels() -> tuple[int, ...]:
    """Labels of the 50,000 validation images, in the order of their numbers.

    Source: ILSVRC2012 validation ground truth, as positions in the sorted synsets
    (scripts/make_val_labels.py).
    """
    labels = array("H", resources.files("eval").joinpath("resources/val_labels.u16").read_bytes())
    if sys.byteorder == "big":
        labels.byteswap()
    return tuple(labels)


def shown(text: str) -> str:
    """`text` fit for a line of a message: printable, and not endless."""
    text = text if len(text) <= 120 else f"{text[:117]}..."
    return text if text.isprintable() else ascii(text)


def examples(rows: Iterable[str]) -> str:
    """The first three, for a message, and how many there are in all if more."""
    rows = list(rows)
    more = f", ... ({len(rows):,} in all)" if len(rows) > 3 else ""
    return ", ".join(shown(row) for row in rows[:3]) + more


def read_labels(path: Path) -> LabelList:
    """Read a `name index` list, a ground-truth file of the devkit, or Kaggle's solution.

    Which of them it is, and how it counts classes, is seen in its content. An index may be a
    synset instead.

    Raises:
        DataError: it cannot be read, or is none of these, or contradicts the official labels.
    """
    text = _read_text(path)
    lines = [
        (number, words)
        for number, line in enumerate(text.split("\n"), 1)
        if (words := line.split())
    ]
    if not lines:
        raise DataError(f"{path} is empty.\nName a list of labels, or leave --labels out.")
    first = lines[0][1]
    if first[0].startswith("ImageId,"):
        return _read_solution(path, text)
    if len(first) == 1:
        return _read_ground_truth(path, lines)
    return _read_name_list(path, lines)


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise DataError(
                f"{path} is too large for a list of labels ({path.stat().st_size >> 20} MiB).\n"
                "A list has one line for each image: its name and its class index."
            )
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(
            f"{path} is no text file.\nA list of labels has one line for each image: its name and "
            "its class index; the devkit's is data/ILSVRC2012_validation_ground_truth.txt."
        ) from None
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}.\nName a list of labels."
        ) from error


def _read_ground_truth(path: Path, lines: Sequence[tuple[int, list[str]]]) -> LabelList:
    """One class for each image, in the order of the images' numbers."""
    if len(lines) != VAL_IMAGES:
        raise DataError(
            f"{path} has one word a line and {len(lines):,} lines; a ground-truth file has one "
            f"for each of the {VAL_IMAGES:,} images.\n"
            "Use the devkit's ILSVRC2012_validation_ground_truth.txt, or lines of `name index`."
        )
    if any(len(words) != 1 for _, words in lines):
        raise _bad_line(path, *next(row for row in lines if len(row[1]) != 1))
    codes = [_code(path, *row, largest=CLASSES) for row in lines]
    numbers = [code for code in codes if isinstance(code, int)]
    labels: Sequence[int]
    if len(numbers) == VAL_IMAGES:
        labels, name = official_labels(), f"{path.name} ({_numbering(path, numbers)})"
    else:
        labels, name = [_label(path, *row) for row in lines], path.name
    return LabelList(name, dict(zip(_official_keys(), labels, strict=True)))


def _read_name_list(path: Path, lines: Sequence[tuple[int, list[str]]]) -> LabelList:
    """A name, which may hold blanks, and a class."""
    code_of: dict[str, tuple[int, list[str]]] = {}
    for number, words in lines:
        if len(words) < 2:
            raise _bad_line(path, number, words)
        key = image_key(" ".join(words[:-1]))
        before = code_of.setdefault(key, (number, words))
        if before[1][-1] != words[-1]:
            raise DataError(
                f"{path}: {shown(key)} is named twice, as {shown(before[1][-1])} in line "
                f"{before[0]} and as {shown(words[-1])} in line {number}.\n"
                "Folders in a list are not looked at: file names must differ."
            )
    if len(code_of) == VAL_IMAGES and all(official_number(key) for key in code_of):
        # A list of the whole set shows by itself how it counts.
        keys = sorted(code_of)
        codes = [_code(path, *code_of[key], largest=CLASSES) for key in keys]
        numbers = [code for code in codes if isinstance(code, int)]
        if len(numbers) == VAL_IMAGES:
            name = f"{path.name} ({_numbering(path, numbers)})"
            return LabelList(name, dict(zip(keys, official_labels(), strict=True)))
    return LabelList(path.name, {key: _label(path, *row) for key, row in code_of.items()})


def _read_solution(path: Path, text: str) -> LabelList:
    """Kaggle's ``LOC_val_solution.csv``: the boxes of an image, each after its synset."""
    label_of = {}
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            name, boxes = row.get("ImageId"), row.get("PredictionString")
            words = boxes.split() if boxes else []
            if not name or not words:
                raise _bad_line(path, reader.line_num, [value for value in (name, boxes) if value])
            label_of[image_key(name)] = _label(path, reader.line_num, [name, words[0]])
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num}: {error}.\nGet LOC_val_solution.csv from Kaggle again."
        ) from error
    if not label_of:
        raise DataError(f"{path} names no images.\nGet LOC_val_solution.csv from Kaggle again.")
    return LabelList(path.name, label_of)


def _code(path: Path, line: int, words: list[str], *, largest: int) -> int | str:
    """The class that a line ends with: a synset, or a number in some numbering."""
    word = words[-1]
    if _NUMBER.fullmatch(word):
        if (code := int(word)) <= largest:
            return code
    elif word in label_of_synset():
        return word
    raise _bad_line(path, line, words)


def _label(path: Path, line: int, words: list[str]) -> int:
    """The label that a line ends with, where only the sorted positions can be meant."""
    code = _code(path, line, words, largest=CLASSES - 1)
    return label_of_synset()[code] if isinstance(code, str) else code


def _bad_line(path: Path, line: int, words: list[str]) -> DataError:
    word = words[-1] if words else ""
    image = official_number(words[0]) if len(words) > 1 else None
    if image and _NUMBER.fullmatch(word) and int(word) == image:
        reason = "numbers the images instead of naming their classes (ImageSets/CLS-LOC/val.txt?)"
    elif _NUMBER.fullmatch(word):
        reason = f"has {word} where an index 0..{CLASSES - 1} belongs (are these ILSVRC ids?)"
    elif SYNSET.fullmatch(word):
        reason = f"has {word}, which is none of the 1000 synsets"
    else:
        reason = f"is no image name with a class: {shown(' '.join(words))}"
    return DataError(
        f"{path}, line {line} {reason}.\n"
        "An index is the position of the synset in the sorted list of 1000; the official labels "
        "are built in: leave --labels out where names are official."
    )


def _numbering(path: Path, codes: Sequence[int]) -> str:
    """How a file numbers the classes, seen from its numbers of the 50,000 images.

    What a number stands for is seen from the images that have it. If each stands for one class,
    and each class for one number, the file says what the official labels say: the devkit's ids
    (490, 361, 171, ...) and sorted positions (65, 970, 230, ...) both do.
    """
    official = official_labels()
    meaning: dict[int, int] = {}
    for (code, label), _ in reversed(Counter(zip(codes, official, strict=True)).most_common()):
        meaning[code] = label  # the most frequent one comes last
    wrong = [i for i, code in enumerate(codes) if meaning[code] != official[i]]
    if wrong or len(meaning) != CLASSES:
        classes = imagenet_classes()
        rows = [
            f"image {i + 1} has {codes[i]} (elsewhere {classes[meaning[codes[i]]].synset}) but "
            f"shows {classes[official[i]].synset}"
            for i in wrong
        ]
        reason = (
            "Its lines are in another order than the images, or of another set"
            if len(wrong) > VAL_IMAGES // 2
            else "The file is damaged or was edited"
        )
        raise DataError(
            f"{path} contradicts the official labels: "
            f"{examples(rows) or f'{len(meaning)} numbers for {CLASSES} classes'}.\n"
            f"{reason}; leave --labels out to use the built-in labels."
        )
    if all(code == label for code, label in meaning.items()):
        return "sorted positions"
    if all(code == label + 1 for code, label in meaning.items()):
        return "sorted positions from 1"
    return "ILSVRC ids" if tuple(codes[:4]) == _DEVKIT_START else "a numbering of its own"
