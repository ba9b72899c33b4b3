"""Labels that do not come from folders: the official list, and label files.

An image is identified by its file name: its folder, the case of its suffix and a synset appended
to the name do not matter. A label is an index in a list of classes; ImageNet's is sorted by
synset. Files with another numbering, such as the devkit's ILSVRC ids, are recognized by what they
say about the official images, never by a fixed offset.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from eval.errors import DataError
from eval.images.classes import IMAGENET, SYNSET, ClassList, numbers_in
from eval.images.lists import Row, plain_code, read_rows
from eval.text import check_path, read_text
from eval.text import examples as examples
from eval.text import shown as shown

VAL_IMAGES = 50_000
_SUFFIXES = "jpeg|jpg|jpe|jfif|png|bmp|webp|tif|tiff|gif|ppm|pgm|pbm|pnm|jp2|avif|heic|heif"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split("|"))

# The second group is what the Hugging Face copy appends to the names; what may follow is left of
# ``ILSVRC2012_val_00000001.JPEG.jpg``.
_OFFICIAL = re.compile(
    rf"ILSVRC2012_val_([0-9]{{8}})(?:_(n[0-9]{{8}}))?(?:\.(?:{_SUFFIXES}))*", re.IGNORECASE
)
_WITH_SYNSET = re.compile(r"(n[0-9]{8})[-_ ].*|.*[-_ ](n[0-9]{8})", re.DOTALL)
_DEVKIT_START = (490, 361, 171, 822)  # of ILSVRC2012_validation_ground_truth.txt
_NUMBER = re.compile(r"[0-9]{1,9}")
_ROWS = (
    "A list of labels has one line per image: its name and its class index; the devkit's is "
    "data/ILSVRC2012_validation_ground_truth.txt."
)


@dataclass(frozen=True)
class LabelList:
    """A file of labels.

    Attributes:
        name: what to call it, with the numbering that was recognized in it.
        label_of: `listed_key` to label.
        files: the names as they are listed.
    """

    name: str
    label_of: Mapping[str, int]
    files: Sequence[str] = ()

    @functools.cached_property
    def _keys_of(self) -> Mapping[str, list[str]]:
        """`image_key` to the listed ones."""
        found: dict[str, list[str]] = {}
        for key in self.label_of:
            found.setdefault(key.rpartition("/")[2], []).append(key)
        return found

    def key_of(self, path: str) -> str | None:
        """What an image is listed as; None if it is not.

        Where several files of that name are listed, the one whose folders are those of the path;
        the folders of a list may begin above or below those of a path.
        """
        keys = self._keys_of.get(image_key(path), [])
        if len(keys) < 2:
            return keys[0] if keys else None
        folders = path.split("/")[-2::-1]
        depths = {key: _same_start(key.split("/")[-2::-1], folders) for key in keys}
        best = [key for key in keys if depths[key] == max(depths.values())]
        if len(best) > 1:
            raise DataError(
                f"{self.name} lists {examples(best)}, each of which may be {shown(path)}.\n"
                "List the images by their paths in the validation set."
            )
        return best[0]


def is_image(name: str) -> bool:
    """Whether the name is that of an image; macOS's hidden ``._x.JPEG`` is not one."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def image_key(path: str) -> str:
    """The name of an image in every layout and list: without its folder and suffix."""
    number = official_number(path)
    return _stem(path) if number is None else official_key(number)


def listed_key(name: str) -> str:
    """An image in a list: its folders there, if any, and its `image_key`."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return "/".join([*parts[:-1], image_key(parts[-1])]) if parts else ""


def _same_start(first: Sequence[str], second: Sequence[str]) -> int:
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def official_key(number: int) -> str:
    """`image_key` of an official image, 1..50000."""
    return f"ILSVRC2012_val_{number:08d}"


@functools.cache
def _official_keys() -> tuple[str, ...]:
    return tuple(official_key(number) for number in range(1, VAL_IMAGES + 1))


def official_number(path: str) -> int | None:
    """1..50000 if the name is that of an official validation image, else None."""
    match = _OFFICIAL.fullmatch(_stem(path))
    number = int(match[1]) if match else 0
    return number if 1 <= number <= VAL_IMAGES else None


def synset_in_name(path: str) -> str | None:
    """The synset before or behind the name of a file: ``n01440764_10026``, as of the training set.

    Behind an official name, it is that of Hugging Face's copy.
    """
    stem = _stem(path)
    if official := _OFFICIAL.fullmatch(stem):
        return official[2]
    match = _WITH_SYNSET.fullmatch(stem)
    return (match[1] or match[2]) if match else None


def has_official_name(path: str) -> bool:
    """Whether it is named as officially; another suffix behind the official one is a disguise."""
    return official_number(path) is not None and path.rpartition("/")[2].count(".") == 1


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
    return numbers_in("val_labels.u16")


def read_labels(path: Path, classes: ClassList = IMAGENET) -> LabelList:
    """Read a list of images and classes (eval/images/lists.py), or a devkit's ground-truth file.

    The kind of file and its numbering are recognized by its content. The name of a class's folder
    may stand in place of an index.

    Raises:
        DataError: it cannot be read, or is none of these, or contradicts the official labels.
    """
    check_path("--labels", path)
    return _LabelFile(path, classes).read()


@dataclass(frozen=True)
class _LabelFile:
    """Reads one file, in which an index stands for one of the classes."""

    path: Path
    classes: ClassList

    def read(self) -> LabelList:
        """See `read_labels`."""
        text = read_text(self.path, "list of labels", _ROWS)
        if not text.strip():
            raise DataError(f"{self.path} is empty.\nGive a list of labels, or omit --labels.")
        rows = read_rows(self.path, text, self.classes, is_image)
        if rows is not None:
            return self._read_name_list(rows)
        words = ((number, line.split()) for number, line in enumerate(text.split("\n"), 1))
        return self._read_ground_truth([(number, each) for number, each in words if each])

    def _read_ground_truth(self, lines: Sequence[tuple[int, list[str]]]) -> LabelList:
        """One class per line, in the order of the official images."""
        if len(lines) != VAL_IMAGES or self.classes != IMAGENET:
            raise DataError(
                f"{self.path} has one word per line and {len(lines):,} lines; a ground-truth file "
                f"has one line for each of ImageNet's {VAL_IMAGES:,} validation images.\n"
                "Use the devkit's ILSVRC2012_validation_ground_truth.txt, or lines of `name index`."
            )
        if any(len(words) != 1 for _, words in lines):
            raise self._bad_line(*next(row for row in lines if len(row[1]) != 1))
        codes = [self._code(*row, largest=len(self.classes)) for row in lines]
        numbers = [code for code in codes if isinstance(code, int)]
        labels: Sequence[int]
        if len(numbers) == VAL_IMAGES:
            labels, name = official_labels(), f"{self.path.name} ({_numbering(self.path, numbers)})"
        else:
            labels, name = [self._label(*row) for row in lines], self.path.name
        return LabelList(name, dict(zip(_official_keys(), labels, strict=True)))

    def _read_name_list(self, rows: Sequence[Row]) -> LabelList:
        """Names and classes."""
        if not rows:
            raise DataError(f"{self.path} lists no images.\nIt was cut: write it again.")
        code_of: dict[str, Row] = {}
        for row in rows:
            if not row.name or not row.code:
                nameless = bool(self.classes.meant_by(row.code))
                raise self._bad_line(row.line, [f"{', ' * nameless}{row.name}{row.code}"])
            key = listed_key(row.name)
            before = code_of.setdefault(key, row)
            if before.code != row.code:
                raise DataError(
                    f"{self.path}: {shown(key)} is listed twice, as {shown(before.code)} in line "
                    f"{before.line} and as {shown(row.code)} in line {row.line}.\n"
                    "Each image has one label: remove the wrong line."
                )
        files = [row.name for row in rows]
        numbers_of = {official_number(key): row for key, row in code_of.items()}
        if len(numbers_of) == VAL_IMAGES and None not in numbers_of and self.classes == IMAGENET:
            # A list of the whole set shows its own numbering.
            keys = sorted(code_of, key=image_key)
            codes = [self._code(*_words(code_of[key]), largest=len(self.classes)) for key in keys]
            numbers = [code for code in codes if isinstance(code, int)]
            if len(numbers) == len(keys) == VAL_IMAGES:
                name = f"{self.path.name} ({_numbering(self.path, numbers)})"
                return LabelList(name, dict(zip(keys, official_labels(), strict=True)), files)
        for row in rows:
            if not row.is_number and _NUMBER.fullmatch(row.code):
                self.classes.check_number(f"{self.path}, line {row.line}", row.code)
        label_of = {key: self._label(*_words(row)) for key, row in code_of.items()}
        return LabelList(self.path.name, label_of, files)

    def _code(self, line: int, words: list[str], *, largest: int) -> int | str:
        """The class that a line ends with: the name of a folder, or a number in some numbering."""
        word = plain_code(words[-1])
        if _NUMBER.fullmatch(word):
            if (code := int(word)) <= largest:
                return code
        elif len(meant := self.classes.meant_by(word)) == 1:
            return self.classes.rows[meant[0]].folder
        elif meant:
            raise DataError(
                f"{self.path}, line {line} has {shown(word)}, which is the name of the classes "
                f"{' and '.join(map(str, meant))}.\nUse the index, or the name of the folder."
            )
        raise self._bad_line(line, words)

    def _label(self, line: int, words: list[str]) -> int:
        """The label that a line ends with, where a number can only be an index."""
        code = self._code(line, words, largest=len(self.classes) - 1)
        return self.classes.index_of[code] if isinstance(code, str) else code

    def _bad_line(self, line: int, words: list[str]) -> DataError:
        word = words[-1] if words else ""
        image = official_number(words[0]) if len(words) > 1 else None
        if image and _NUMBER.fullmatch(word) and int(word) == image:
            reason = "numbers the images instead of their classes (ImageSets/CLS-LOC/val.txt?)"
        elif _NUMBER.fullmatch(word):
            hint = " (are these ILSVRC ids?)" if self.classes == IMAGENET else ""
            reason = f"has {word} instead of an index 0..{len(self.classes) - 1}{hint}"
        elif SYNSET.fullmatch(word):
            reason = f"has {word}, which is not one of the {len(self.classes)} classes"
        else:
            reason = f"is not an image name and a class: {shown(' '.join(words))}"
        advice = (
            "An index is the position of the synset in the sorted list of 1000; the official "
            "labels are built in: omit --labels if the names are official."
            if self.classes == IMAGENET
            else f"An index is the position of the class in {self.classes.name}, from 0."
        )
        return DataError(f"{self.path}, line {line} {reason}.\n{advice}")


def _words(row: Row) -> tuple[int, list[str]]:
    return row.line, [row.name, row.code]


def _numbering(path: Path, codes: Sequence[int]) -> str:
    """How a file numbers ImageNet's classes, from its numbers of the 50,000 images.

    What a number stands for follows from the images that have it. If each stands for one class,
    and each class for one number, the file agrees with the official labels: the devkit's ids
    (490, 361, 171, ...) and sorted positions (65, 970, 230, ...) both do.
    """
    official = official_labels()
    meaning: dict[int, int] = {}
    for (code, label), _ in reversed(Counter(zip(codes, official, strict=True)).most_common()):
        meaning[code] = label  # the most frequent one comes last
    wrong = [i for i, code in enumerate(codes) if meaning[code] != official[i]]
    if wrong or len(meaning) != len(IMAGENET):
        classes = IMAGENET.rows
        rows = [
            f"image {i + 1} has {codes[i]} (elsewhere {classes[meaning[codes[i]]].folder}) but "
            f"shows {classes[official[i]].folder}"
            for i in wrong
        ]
        reason = (
            "Its lines are in another order than the images, or belong to another set"
            if len(wrong) > VAL_IMAGES // 2
            else "The file is damaged or was edited"
        )
        raise DataError(
            f"{path} contradicts the official labels: "
            f"{examples(rows) or f'{len(meaning)} numbers for {len(IMAGENET)} classes'}.\n"
            f"{reason}; omit --labels to use the built-in labels."
        )
    if all(code == label for code, label in meaning.items()):
        return "sorted positions"
    if all(code == label + 1 for code, label in meaning.items()):
        return "sorted positions from 1"
    return "ILSVRC ids" if tuple(codes[:4]) == _DEVKIT_START else "a numbering of its own"
