"""The files that a list names by their paths, wherever they lie, as PaddleClas keeps sets."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path, PurePosixPath

from eval.images.labels import LabelList, is_image
from eval.images.layouts import Listing
from eval.images.layouts.find import only_folder
from eval.images.layouts.folders import read_file


def list_listed(root: Path, place: Path, labels: LabelList) -> Listing | None:
    """The images of a list, with paths relative to the set, its only folder, or the list.

    The label of each is what the list says. Files beside them that are not listed are named. None
    if none of these folders has all files.
    """
    paths = [PurePosixPath(name.replace("\\", "/")) for name in labels.files]
    if any(path.is_absolute() or ".." in path.parts for path in paths):
        return None
    names = dict.fromkeys(map(str, paths))
    for folder in filter(None, (root, place, only_folder(root) if root.is_dir() else None)):
        if names and all(is_image(name) and (folder / name).is_file() for name in names):
            others = [
                path
                for inner in sorted({name.rpartition("/")[0] for name in names})
                for entry in os.scandir(folder / inner)
                if not entry.name.startswith(".") and entry.is_file()
                if (path := f"{inner}/{entry.name}" if inner else entry.name) not in names
            ]
            read = partial(read_file, folder)
            return Listing(
                folder, "listed files", dict.fromkeys(names), labels.name, read, others=others
            )
    return None
