"""A tar of the validation set, read in place: one pass over its headers finds the images."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from eval.errors import DataError, UnreadableImage
from eval.images.classes import ClassList
from eval.images.labels import examples, is_image, shown
from eval.images.layouts import (
    Listing,
    check_regular,
    is_class_folder,
    labels_by_folder,
    no_images,
    unreadable,
)

_BLOCK = 512  # bytes; headers and contents start at multiples of it
_COMPRESSED = {
    b"\x1f\x8b": "gzip: gunzip",
    b"BZh": "bzip2: bunzip2",
    b"\xfd7zXZ\x00": "xz: unxz",
    b"\x28\xb5\x2f\xfd": "zstd: unzstd",
    b"PK\x03\x04": "zip: unzip",
}
_TARFILE_ERRORS = (
    tarfile.TarError,
    ValueError,
    OverflowError,
    EOFError,
    MemoryError,
    RecursionError,
)
_DAMAGED = "Copy or download it again; the official tar's MD5 is 29b22e2961454d5413ddabcf34fc5622."


class _Place(NamedTuple):
    offset: int  # bytes
    size: int  # bytes


@dataclass(frozen=True)
class _Reader:
    """Random access. It opens the tar for each image, so that any thread or process may call it."""

    tar: Path
    place_of: Mapping[str, _Place]

    def __call__(self, path: str) -> bytes:
        """Bytes of one image."""
        offset, size = self.place_of[path]
        try:
            with self.tar.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise unreadable(self.tar, error) from error
        if len(data) != size:
            raise UnreadableImage(
                f"{self.tar} was truncated while it was read, at {shown(path)}.\n{_DAMAGED}"
            )
        return data


def list_tar(tar: Path, classes: ClassList) -> Listing:
    """The images of an uncompressed tar of class folders, or of all files in one folder.

    Raises:
        DataError: it is compressed, truncated, damaged, not a tar, or holds no validation set.
    """
    check_regular(tar, tar.stat().st_mode)
    with tar.open("rb") as file:
        start = file.read(8)
    for magic, advice in _COMPRESSED.items():
        if start.startswith(magic):
            kind, _, command = advice.partition(": ")
            raise DataError(
                f"--data {tar} is compressed with {kind}: its images cannot be read in place.\n"
                f"Decompress it first ({command}); that takes hardly more space."
            )
    place_of, others = _images(tar)
    prefix = _prefix(tar, place_of, classes)
    inside = {
        path.removeprefix(prefix): place
        for path, place in place_of.items()
        if path.startswith(prefix)
    }
    words, label_of = labels_by_folder(tar, inside, classes)
    if not label_of:
        raise no_images(tar, others, classes)
    return Listing(tar, f"tar of {words}", label_of, "folders", _Reader(tar, inside), lambda _: tar)


def _images(tar: Path) -> tuple[dict[str, _Place], set[str]]:
    """Where the images lie, by their names in the tar, and the other names at its top."""
    place_of: dict[str, _Place] = {}
    others = set()
    for member in _members(tar):
        name = member.name.removeprefix("./")
        folders = name.split("/")[:-1]
        if member.isdir() or not is_image(name):
            others.add(name.partition("/")[0])
            continue
        if {".", ".."} & set(folders) or "" in folders[1:]:
            raise DataError(
                f"--data {tar}: {shown(member.name)} has '.', '..' or '//' in its path.\n"
                "Create the tar again, from inside the folder of the validation set."
            )
        if any(folder.startswith(".") for folder in folders):
            others.add(folders[0])
            continue
        if name in place_of:
            raise DataError(
                f"--data {tar} contains {shown(name)} twice.\nCreate it again from the files."
            )
        if member.islnk():  # tar's way to store a file that it has stored under another name
            target = place_of.get(member.linkname.removeprefix("./"))
        else:
            plain = member.isreg() and not member.issparse()
            target = _Place(member.offset_data, member.size) if plain else None
        if target is None:
            raise DataError(
                f"--data {tar}: {shown(name)} is a link or not a regular file.\n"
                "Create the tar with --dereference, or give the folder that it was made from."
            )
        place_of[name] = target
    return place_of, others


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """All headers, after which the end mark of the archive is checked.

    tarfile stops silently at a header that it does not understand.
    """
    size = path.stat().st_size
    last, end = "", 0
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                if member.size < 0 or tar.offset <= end:
                    raise tarfile.ReadError("its headers point backwards")
                last, end = member.name, tar.offset
                if member.isreg() and member.offset_data + member.size > size:
                    break
                yield member
            end = tar.offset
    except _TARFILE_ERRORS as error:
        if not last:
            raise DataError(
                f"--data {path} is neither a tar nor a parquet file: {shown(str(error))}.\n"
                "Give the folder of the validation set, its tar, or its parquet shards."
            ) from error
        raise DataError(
            f"--data {path} is damaged after {shown(last)}: {shown(str(error))}.\n{_DAMAGED}"
        ) from error
    with path.open("rb") as file:
        file.seek(end)
        mark = file.read(_BLOCK)
    if mark != bytes(_BLOCK):
        what = "is truncated" if end + _BLOCK > size else "is damaged"
        raise DataError(
            f"--data {path} {what} after {shown(last)}, {size / 1e9:.2f} GB.\n{_DAMAGED}"
        )


def _prefix(tar: Path, names: Iterable[str], classes: ClassList) -> str:
    """The folder in a tar that holds the validation set, with its slash; "" for the top."""
    folders = {name.rpartition("/")[0] for name in names}
    found = {folder for folder in folders if is_class_folder(folder.rpartition("/")[2], classes)}
    tops = {folder.rpartition("/")[0] for folder in found} or folders
    if len(tops) > 1:
        tops = {top for top in tops if top.rpartition("/")[2] in ("val", "validation")} or tops
    if len(tops) > 1:
        last = {top.rpartition("/")[2] for top in tops}
        if any(name.isdecimal() for name in last):
            raise no_images(tar, last, classes)
        raise DataError(
            f"--data {tar} has images in several folders: "
            f"{examples(top or 'the top' for top in sorted(tops))}.\n"
            "It must contain a single validation set: unpack the tar and give that set's folder."
        )
    top = next(iter(tops), "")
    return f"{top}/" if top else ""
