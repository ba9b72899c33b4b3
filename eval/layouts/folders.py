"""Synset folders, or all files in one folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from eval.labels import SYNSET, official_number
from eval.layouts import Listing, labels_by_folder, no_images, unreadable


def list_folder(folder: Path) -> Listing:
    """The images of a folder.

    Raises:
        DataError: it has none, or unknown synsets, or loose images beside synset folders.
    """
    words, label_of = labels_by_folder(folder, _files(folder))
    if not label_of:
        raise no_images(folder, (entry.name for entry in folder.iterdir()))
    return Listing(folder, words, label_of, "folders", partial(_read, folder), folder.joinpath)


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
