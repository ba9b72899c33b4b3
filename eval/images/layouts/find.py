"""Finds the validation set in a path: which layout it has, and where in it the images are."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from eval.errors import DataError, UsageError
from eval.images.classes import ClassList
from eval.images.labels import examples, is_image, shown
from eval.images.layouts import START, Listing, check_regular, kind_of_image
from eval.images.layouts.arrow import NOTES, find_shards, list_shards, of_validation, split_folder
from eval.images.layouts.folders import is_val_folder, list_folder
from eval.images.layouts.foreign import refuse_foreign
from eval.images.layouts.shards import is_shard
from eval.images.layouts.tar import list_tars
from eval.images.layouts.zip import list_zip
from eval.text import printable

_OFFICIAL_TAR = "ILSVRC2012_img_val.tar"
_KAGGLE_FOLDERS = ("ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val", "CLS-LOC/val")
_VAL_FOLDERS = ("val", "validation")
_BRACES = re.compile(r"(.*)\{([^{}]*)\}([^{}]*)", re.DOTALL)
_RANGE = re.compile(r"([0-9]{1,6})\.\.([0-9]{1,6})")
# With what timm puts before it; without, only where the name speaks of ImageNet.
_HUB_NAME = re.compile(
    r"(hfi?ds/|(?!wds/|tfds/)(?=[^/]*/[^/]*imagenet))([\w.-]+/[\w.-]+)", re.IGNORECASE
)
_LONGEST_RANGE = 10_000
_MOST_SHARDS = 100_000
_TEXTS = (".txt", ".csv", ".tsv", ".json", ".jsonl")
_DATA = (".parquet", ".arrow", ".tar", ".zip", ".gz")
_ZIPS = (b"PK\x03\x04", b"PK\x05\x06")  # the second one is empty


def find(root: Path, classes: ClassList) -> Listing:
    """Recognize the layout.

    Raises:
        DataError: there is no validation set.
        UsageError: its name stands for too many shards.
        OSError: the system cannot read it.
    """
    if root.is_symlink() and not root.exists():
        raise DataError(
            f"--data {root} is a link to {shown(str(root.readlink()))}, which does not exist.\n"
            "Give the folder or file itself, or mount the disk that it is on."
        )
    if not root.exists():
        if shards := _shards_named(root):
            return _open_files(root, shards, classes)
        raise _missing(root)
    if not root.is_dir():
        return _open_files(root, [root], classes)
    if (snapshot := _snapshot(root)) is not None:
        found = find(snapshot, classes)
        return replace(found, words=f"{found.words} in snapshots/{snapshot.name[:8]}")
    if (split := split_folder(root)) is not None:
        found = find(split, classes)
        return replace(found, words=f"{found.words} in {split.name}/")
    for inner in ("", *_KAGGLE_FOLDERS, *_VAL_FOLDERS):
        folder = root / inner
        if folder.is_dir():
            where = f" in {inner}/" if inner else ""
            if is_val_folder(folder, classes):
                listing = list_folder(folder, classes)
                return replace(listing, words=listing.words + where)
            if not _has_images(folder) and (shards := find_shards(folder)):
                return list_shards(folder, shards, classes)
            if inner and (archive := _only_archive(folder)):
                listing = archive(classes)
                return replace(listing, words=listing.words + where)
    if (root / _OFFICIAL_TAR).is_file():
        return list_tars(root / _OFFICIAL_TAR, [root / _OFFICIAL_TAR], classes)
    if archive := _only_archive(root):
        return archive(classes)
    likely = list(_val_folders_below(root, classes))
    if 1 <= len(likely) <= 3:  # more of them are classes, not validation sets
        raise DataError(
            f"--data {root} itself is not a validation set.\n"
            f"Did you mean --data {' or '.join(printable(str(path)) for path in likely)}?"
        )
    if not _has_images(root):
        refuse_foreign(root)
        for path in itertools.islice(_tfrecords_below(root), 1):
            refuse_foreign(path)
    return list_folder(root, classes)


def _has_images(folder: Path) -> bool:
    return any(is_image(path.name) for path in folder.iterdir())


def only_folder(root: Path) -> Path | None:
    """The only visible folder in a folder; None if it has none, or more."""
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return folders[0] if len(folders) == 1 else None


def _open_files(root: Path, paths: Sequence[Path], classes: ClassList) -> Listing:
    """The images of an archive, or of one or more shards; all have the format of the first."""
    for path in paths:
        check_regular(path, path.stat().st_mode)
    with paths[0].open("rb") as file:
        start = file.read(START)
    if is_shard(start):
        return list_shards(root, paths, classes)
    if start.startswith(_ZIPS) and len(paths) == 1:
        return list_zip(root, classes)
    refuse_foreign(paths[0])
    if kind := kind_of_image(start):
        raise DataError(
            f"--data {root} is a single image ({kind}).\nGive the folder that holds the images."
        )
    if root.name in NOTES:
        raise DataError(
            f"--data {root} only describes a data set.\nDid you mean "
            f"--data {printable(str(root.parent))}?"
        )
    if root.suffix.lower() in _TEXTS:
        raise DataError(
            f"--data {root} is a list, not images.\n"
            f"Did you mean --data {printable(str(root.parent))} --labels {printable(str(root))}?"
        )
    return list_tars(root, paths, classes)


def _shards_named(pattern: Path) -> list[Path]:
    """The files of ``x-{00..63}.tar``, as webdataset names shards, or of ``x-*.tar``.

    Empty if it is no such name, or if no file has one that fits a star.
    """
    if "{" not in pattern.name:
        stars = "*" in pattern.name and pattern.parent.is_dir()
        return sorted(pattern.parent.glob(pattern.name)) if stars else []
    paths = [pattern.parent / name for name in _expanded(pattern, pattern.name)]
    if paths != [pattern] and (missing := [path for path in paths if not path.is_file()]):
        raise DataError(
            f"--data {pattern}: {examples(map(str, missing))}: no such file.\n"
            "Complete the copy, or name the shards that are there."
        )
    return [path for path in paths if path.is_file()]


def _expanded(pattern: Path, name: str) -> list[str]:
    """What a name with ``{00..63}`` or ``{00,07}`` stands for, as a shell has it.

    Raises:
        DataError: a range descends, or is too long.
        UsageError: all groups together stand for too many names.
    """
    parts: list[list[str]] = []  # the last one first
    total = 1
    while match := _BRACES.fullmatch(name):
        start, inside, end = match.groups()
        words = inside.split(",")
        if numbers := _RANGE.fullmatch(inside):
            first, last = map(int, numbers.groups())
            if not first <= last < first + _LONGEST_RANGE:
                raise DataError(
                    f"--data {pattern}: a range of shards ascends, and names {_LONGEST_RANGE:,} at "
                    "most.\nWrite it as in {00..63}."
                )
            width = len(numbers[1]) if numbers[1].startswith("0") else 0
            words = [f"{number:0{width}}" for number in range(first, last + 1)]
        elif len(words) < 2:
            break
        name, total = start, total * len(words)
        if total > _MOST_SHARDS:  # a few groups are more than any memory holds
            raise UsageError(
                f"--data {shown(str(pattern))}: its braces stand for more than {_MOST_SHARDS:,} "
                "shards.\nName those that are there, as in {00..63}."
            )
        parts.append([f"{word}{end}" for word in words])
    return ["".join(each) for each in itertools.product([name], *reversed(parts))]


def _missing(root: Path) -> DataError:
    """The error if there is nothing of that name, with what may have been meant."""
    word = str(root)
    what = f"--data {shown(word)}: there is no such file or folder."
    if word.startswith("pipe:") or "::" in word:
        return DataError(
            f"{what} Commands and lists of webdataset are not read.\n"
            "Give the folder of the shards, or name them as in 'x-{00..63}.tar'."
        )
    if match := _HUB_NAME.fullmatch(word):
        name = shlex.quote(match[2])
        return DataError(
            f"{what}\nA data set of the Hugging Face hub is downloaded first: hf download {name} "
            f"--repo-type dataset --include 'data/val*' --local-dir DIR"
        )
    place = root.absolute()
    there = next(folder for folder in place.parents if folder.exists())
    name = place.relative_to(there).parts[0]
    with contextlib.suppress(OSError):
        names = [path.name for path in itertools.islice(there.iterdir(), 1000)]
        if close := difflib.get_close_matches(name, names, n=1, cutoff=0.75):
            return DataError(f"{what}\nDid you mean {printable(str(there / close[0]))}?")
    return DataError(f"{what}\n{printable(str(there))} has no {shown(name)}.")


def _snapshot(root: Path) -> Path | None:
    """The only snapshot with data of a repository in the Hub's cache; None if it is none."""
    if not (root / "snapshots").is_dir() or not (root / "blobs").is_dir():
        return None
    snapshots = [
        path
        for path in sorted((root / "snapshots").iterdir())
        if path.is_dir() and not path.is_symlink()
    ]
    filled = [path for path in snapshots if any(map(_is_data, path.rglob("*")))]
    if len(filled) == 1:
        return filled[0]
    if not filled:
        raise DataError(
            f"--data {root} is a cache of the Hub without a snapshot that has images.\n"
            "Download the data set first."
        )
    raise DataError(
        f"--data {root} is a cache of the Hub with {len(filled)} snapshots.\n"
        f"Did you mean --data {' or '.join(printable(str(path)) for path in filled[:3])}?"
    )


def _is_data(path: Path) -> bool:
    """Whether a file may hold images, by its suffix."""
    return (path.suffix.lower() in _DATA or is_image(path.name)) and path.is_file()


def _only_archive(root: Path) -> Callable[[ClassList], Listing] | None:
    """Reads the shards or the zip that a folder has instead of images; None if it has others."""
    names = [path for path in sorted(root.iterdir()) if not path.name.startswith(".")]
    if any(path.is_dir() or is_image(path.name) for path in names):
        return None
    tars = of_validation([path for path in names if path.suffix == ".tar"])
    zips = [path for path in names if path.suffix == ".zip"]
    if tars and not zips:
        return lambda classes: list_tars(root, tars, classes)
    if len(zips) == 1 and not tars:
        return lambda classes: list_zip(zips[0], classes)
    return None


def _tfrecords_below(root: Path) -> Iterator[Path]:
    """Files of TensorFlow Datasets, which keeps them in folders of names and versions."""
    for depth in range(1, 4):
        yield from root.glob("*/" * depth + "*.tfrecord*")


def _val_folders_below(root: Path, classes: ClassList) -> Iterator[Path]:
    """Folders that the user may have meant, among the first thousand."""
    yield from itertools.islice(root.glob("datasets--*"), 1000)
    yield from {path.parent for path in itertools.islice(root.glob("*/*/*/*/*.arrow"), 1000)}
    inner = only_folder(root)
    is_class = inner and (inner.name.isdecimal() or classes.meant_by(inner.name))
    if inner and not is_class and _has_images(inner):
        yield inner
        return
    found: list[Path] = []
    below = (path for pattern in ("*/", "*/*/") for path in root.glob(pattern))
    for folder in itertools.islice(below, 1000):
        with contextlib.suppress(OSError, DataError):  # this is only for a hint
            if is_val_folder(folder, classes) or (
                folder.name in _VAL_FOLDERS and find_shards(folder)
            ):
                found.append(folder)
    yield from found
    if inner and not is_class and not found:
        yield from _val_folders_below(inner, classes)
