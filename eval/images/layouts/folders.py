"""Class folders, ImageNetV2's numbered ones, or all files in one folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from eval.errors import DataError
from eval.images.classes import ClassList
from eval.images.labels import is_image, official_number
from eval.images.layouts import (
    Listing,
    check_regular,
    is_class_folder,
    labels_by_folder,
    no_images,
    read_regular,
    unknown_folders,
    unreadable,
)


def list_folder(folder: Path, classes: ClassList) -> Listing:
    """The images of a folder.

    Raises:
        DataError: it has none, or unknown class folders, or loose images beside class folders,
            or a FIFO, socket or device that is named like an image.
    """
    entries = list(os.scandir(folder))
    folders = {entry.name for entry in entries if _is_folder(entry)}
    unknown = {
        name for name in folders - set(classes.index_of) if classes.checked_folders.fullmatch(name)
    }
    if unknown:
        raise unknown_folders(folder, unknown, classes)
    words, label_of = labels_by_folder(folder, _files(entries, classes), classes)
    numbered = not label_of and _is_numbered(folders, len(classes))
    if numbered:
        words, label_of = _labels_by_number(folder, len(classes))
    if not label_of:
        raise no_images(folder, (entry.name for entry in entries), classes)
    read = partial(_read, folder)
    return Listing(folder, words, label_of, "folders", read, folder.joinpath, numbered)


def is_val_folder(folder: Path, classes: ClassList) -> bool:
    """Whether there are class folders or official names, whatever may be wrong with them."""
    with os.scandir(folder) as entries:
        return any(
            is_class_folder(entry.name, classes)
            if _is_folder(entry)
            else official_number(entry.name)
            for entry in entries
        )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one.

    A link whose target is missing, or that leads in a circle, counts as a file: it must fail when
    it is read, not vanish.
    """
    try:
        return entry.is_dir()
    except OSError:
        return False


def _files(entries: Iterable[os.DirEntry[str]], classes: ClassList) -> Iterator[str]:
    """Relative paths of the files in a folder and in its class folders."""
    for entry in entries:
        if not _is_folder(entry):
            yield _checked(entry).name
        elif entry.name in classes.index_of:
            for inner in list(os.scandir(entry)):
                if not _is_folder(inner):
                    yield f"{entry.name}/{_checked(inner).name}"


def _checked(entry: os.DirEntry[str]) -> os.DirEntry[str]:
    """The same, unless it is named like an image and is a FIFO, a socket or a device."""
    if is_image(entry.name):
        try:
            # For all but links, this is known without asking the system again.
            if not entry.is_file():
                check_regular(Path(entry.path), entry.stat().st_mode)
        except DataError:
            raise
        except OSError:  # a broken link
            pass
    return entry


def _is_numbered(folders: set[str], classes: int) -> bool:
    """Whether it has ImageNetV2's folders, all of them: with fewer, a number may mean anything."""
    numbers = _numbers(classes)
    return folders >= numbers and not any(name.isdecimal() for name in folders - numbers)


def _labels_by_number(folder: Path, classes: int) -> tuple[str, dict[str, int | None]]:
    """What the layout is called, and path to label; nothing if there are official names.

    Names of folders are read as numbers: sorted as text they would be 0, 1, 10, 100, ...
    """
    label_of: dict[str, int | None] = {
        f"{number}/{_checked(entry).name}": int(number)
        for number in _numbers(classes)
        for entry in list(os.scandir(folder / number))
        if is_image(entry.name) and not _is_folder(entry)
    }
    if any(official_number(path) for path in label_of):
        return "", {}
    return f"{classes} numbered folders, read as numbers (2 before 10)", label_of


def _numbers(classes: int) -> set[str]:
    return {str(label) for label in range(classes)}


def _read(folder: Path, path: str) -> bytes:
    try:
        return read_regular(folder / path)
    except OSError as error:
        raise unreadable(folder / path, error) from error
