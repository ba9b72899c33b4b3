"""Synset folders, ImageNetV2's numbered ones, or all files in one folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from eval.images.labels import CLASSES, SYNSET, is_image, official_number
from eval.images.layouts import Listing, labels_by_folder, no_images, unreadable

_NUMBERS = {str(label) for label in range(CLASSES)}


def list_folder(folder: Path) -> Listing:
    """The images of a folder.

    Raises:
        DataError: it has none, or unknown synsets, or loose images beside synset folders.
    """
    words, label_of = labels_by_folder(folder, _files(folder))
    numbered = not label_of and _is_numbered(folder)
    if numbered:
        words, label_of = _labels_by_number(folder)
    if not label_of:
        raise no_images(folder, (entry.name for entry in folder.iterdir()))
    read = partial(_read, folder)
    return Listing(folder, words, label_of, "folders", read, folder.joinpath, numbered)


def _is_numbered(folder: Path) -> bool:
    """Whether it has ImageNetV2's folders, all of them: with fewer, a number may mean anything."""
    names = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    return names >= _NUMBERS and not any(name.isdecimal() for name in names - _NUMBERS)


def _labels_by_number(folder: Path) -> tuple[str, dict[str, int | None]]:
    """What the layout is called, and path to label; nothing if there are official names.

    Names of folders are read as numbers: sorted as text they would be 0, 1, 10, 100, ...
    """
    label_of: dict[str, int | None] = {
        f"{number}/{entry.name}": int(number)
        for number in _NUMBERS
        for entry in os.scandir(folder / number)
        if is_image(entry.name) and not entry.is_dir()
    }
    if any(official_number(path) for path in label_of):
        return "", {}
    return f"{CLASSES} numbered folders, read as numbers (2 before 10)", label_of


def is_val_folder(folder: Path) -> bool:
    """Whether there are synset folders or official names, whatever may be wrong with them."""
    with os.scandir(folder) as entries:
        return any(
            SYNSET.fullmatch(entry.name) if entry.is_dir() else official_number(entry.name)
            for entry in entries
        )


def _files(folder: Path) -> Iterator[str]:
    """Relative paths of the files in a folder and in its synset folders.

    A link whose file is missing counts as a file: it must fail when it is read, not vanish.
    """
    for entry in os.scandir(folder):
        if not entry.is_dir():
            yield entry.name
        elif SYNSET.fullmatch(entry.name):
            for inner in os.scandir(entry):
                if not inner.is_dir():
                    yield f"{entry.name}/{inner.name}"


def _read(folder: Path, path: str) -> bytes:
    try:
        return (folder / path).read_bytes()
    except OSError as error:
        raise unreadable(folder / path, error) from error
