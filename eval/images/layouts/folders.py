"""Class folders, ImageNetV2's numbered ones, or all files in one folder."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from eval.errors import DataError
from eval.images.classes import ClassList
from eval.images.labels import is_image, official_number
from eval.images.layouts import (
    START,
    Listing,
    Tree,
    arrange,
    check_regular,
    is_class_folder,
    labels_of_folders,
    read_regular,
    unreadable,
)

_MOST_OTHERS = 100_000  # files in folders that are no classes


def list_folder(folder: Path, classes: ClassList) -> Listing:
    """The images of a folder."""
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    folders = {entry.name for entry in entries if _is_folder(entry)}
    paths = [entry.name for entry in entries if entry.name not in folders and _is_file(entry)]
    in_words = not any(map(is_image, paths))
    inner = {name for name in folders if is_class_folder(name, classes)}
    inner |= set(labels_of_folders(folder, folders, classes, in_words=in_words))
    if not inner and folders >= {str(label) for label in range(len(classes))}:
        inner = folders
    for name in inner:
        paths += _walk(folder, name)
    if any(map(is_image, paths)):
        # Whatever else is here must not hold images; without any, this is not a validation set.
        rest = itertools.chain.from_iterable(_walk(folder, name) for name in folders - inner)
        others = list(itertools.islice(rest, _MOST_OTHERS))
        if len(others) == _MOST_OTHERS:
            raise DataError(
                f"--data {folder} has {_MOST_OTHERS:,} files or more in other folders than those "
                "of classes.\nGive the folder that holds the validation set and nothing else."
            )
        paths += others
    read = partial(read_file, folder)
    return arrange(Tree(folder, paths, folders, read, partial(read, size=START)), classes)


def is_val_folder(folder: Path, classes: ClassList) -> bool:
    """Whether there are class folders or official names, whatever may be wrong with them."""
    folders = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _is_folder(entry):
                if official_number(entry.name):
                    return True
            elif is_class_folder(entry.name, classes):
                return True
            elif not entry.name.startswith("."):
                folders.add(entry.name)
    if classes.numbers:
        return any(classes.numbered(name) is not None for name in folders)
    return len(folders) > 1 and all(map(classes.meant_by, folders))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one.

    A link whose target is missing, or that leads in a circle, counts as a file: it must fail when
    it is read, not vanish.
    """
    try:
        return entry.is_dir()
    except OSError:
        return False


def _walk(root: Path, name: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Paths of the visible files in a folder and below it; links that lead upwards are left out."""
    here = os.path.realpath(root / name) if above else ""
    if here in above:
        return
    for entry in list(os.scandir(root / name)):
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            start = above or (os.path.realpath(root), os.path.realpath(root / name))
            yield from _walk(root, f"{name}/{entry.name}", (*start, here))
        elif _is_file(entry):
            yield f"{name}/{entry.name}"


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a regular file, or named like an image."""
    try:
        if entry.is_file():  # for all but links, this is known without asking the system again
            return True
        if is_image(entry.name):
            check_regular(Path(entry.path), entry.stat().st_mode)
    except DataError:
        raise
    except OSError:  # a broken link
        pass
    return is_image(entry.name)


def read_file(folder: Path, path: str, size: int = -1) -> bytes:
    """Bytes of a file, or the first `size` of them; raises `UnreadableImage`."""
    try:
        return read_regular(f"{folder}/{path}", size)
    except OSError as error:
        raise unreadable(folder / path, error) from error
