"""A zip of the validation set, read in place by its own index."""

from __future__ import annotations

import shlex
import zipfile
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from eval.errors import DataError, UnreadableImage
from eval.images.classes import ClassList
from eval.images.labels import shown
from eval.images.layouts import START, Listing, arrange
from eval.images.layouts.archives import Members, visible_name

_LARGEST = 256 << 20  # bytes of one file
_ENCRYPTED = 1  # in the flags of a member
_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


def list_zip(path: Path, classes: ClassList) -> Listing:
    """The images of a zip of class folders, or of all files in one folder."""
    try:
        archive = _Archive(path)
        members = archive.infolist()
    except _ERRORS as error:
        raise DataError(
            f"--data {path} cannot be read as a zip: {shown(str(error))}.\nCopy or create it again."
        ) from error
    found: Members[zipfile.ZipInfo] = Members(path)
    # Some tools of Windows separate folders with what no other zip has.
    windows = not any("/" in member.filename for member in members)
    for member in members:
        member_name = member.filename.replace("\\", "/") if windows else member.filename
        name = visible_name(path, member_name)
        if name is None:
            continue
        if member.flag_bits & _ENCRYPTED:
            raise DataError(
                f"--data {path} is encrypted: {shown(name)} needs a password.\n"
                f"Unpack it: unzip {shlex.quote(str(path))} -d FOLDER"
            )
        if member_name.endswith("/"):
            found.folders.add(name)
        else:
            found.add(name, member)
    return arrange(found.tree("zip of", classes, partial(partial, _read, archive), START), classes)


class _Archive(zipfile.ZipFile):
    """A zip that another process opens for itself."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.filename,)


def _read(
    archive: zipfile.ZipFile, inside: Mapping[str, zipfile.ZipInfo], size: int, path: str
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
