"""A zip of the validation set, read in place by its own index."""

from __future__ import annotations

import zipfile
import zlib
from functools import partial
from pathlib import Path

from eval.errors import DataError, UnreadableImage
from eval.images.classes import ClassList
from eval.images.labels import is_image, shown
from eval.images.layouts import START, Listing, Tree, arrange, top_folder

_LARGEST = 256 << 20  # bytes of one file
_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


def list_zip(path: Path, classes: ClassList) -> Listing:
    """The images of a zip of class folders, or of all files in one folder.

    Raises:
        DataError: it is damaged or encrypted, or holds no validation set.
    """
    try:
        archive = zipfile.ZipFile(path)
        members = archive.infolist()
    except _ERRORS as error:
        raise _damaged(path, error) from error
    files: dict[str, zipfile.ZipInfo] = {}
    folders: set[str] = set()
    for member in members:
        name = member.filename
        parts = name.rstrip("/").split("/")
        if {".", "..", ""} & set(parts):
            raise DataError(
                f"--data {path}: {shown(name)} has '.', '..' or '//' in its path.\n"
                "Create the zip again, from inside the folder of the validation set."
            )
        if any(part.startswith(".") for part in parts):
            continue
        if member.is_dir():
            folders.add(name)
            continue
        if name in files:
            raise DataError(
                f"--data {path} contains {shown(name)} twice.\nCreate it again from the files."
            )
        files[name] = member
    top = top_folder(path, filter(is_image, files), classes)
    inside = {
        name.removeprefix(top): member for name, member in files.items() if name.startswith(top)
    }
    tops = {name.partition("/")[0] for name in inside if "/" in name}
    tops |= {
        name.removeprefix(top).partition("/")[0]
        for name in folders
        if name.startswith(top) and name != top
    }
    read = partial(_read, archive, inside)
    tree = Tree(
        path,
        list(inside),
        tops,
        partial(read, -1),
        partial(read, START),
        "zip of ",
        f" in {top}" if len(inside) < len(files) else "",
    )
    return arrange(tree, classes)


def _read(
    archive: zipfile.ZipFile, inside: dict[str, zipfile.ZipInfo], size: int, path: str
) -> bytes:
    member = inside[path]
    where = f"{archive.filename}, {shown(path)}"
    if member.file_size > _LARGEST:
        raise UnreadableImage(f"{where} has {member.file_size >> 20} MiB.\nReplace the image.")
    try:
        with archive.open(member) as file:
            return file.read(size)
    except (OSError, *_ERRORS) as error:
        raise UnreadableImage(
            f"{where} cannot be read: {shown(str(error))}.\nCreate the zip again; without a "
            "password, and with the method deflate or store."
        ) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"--data {path} cannot be read as a zip: {shown(str(error))}.\nCopy or create it again."
    )
