"""A tar of the validation set, read in place: one pass over its headers finds the images."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from eval.errors import DataError, UnreadableImage
from eval.images.classes import ClassList
from eval.images.labels import is_image, shown
from eval.images.layouts import START, Listing, Tree, arrange, check_regular, top_folder, unreadable

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
OFFICIAL_MD5 = "29b22e2961454d5413ddabcf34fc5622"  # as torchvision's ImageNet checks it
_DAMAGED = f"Copy or download it again; the official tar's MD5 is {OFFICIAL_MD5}."


class _Place(NamedTuple):
    tar: Path
    offset: int  # bytes
    size: int  # bytes


@dataclass(frozen=True)
class _Reader:
    """Random access. It opens the tar for each file, so that any thread or process may call it."""

    place_of: Mapping[str, _Place]
    most: int | None = None  # bytes; None for the whole file

    def __call__(self, path: str) -> bytes:
        """Bytes of one file."""
        tar, offset, size = self.place_of[path]
        size = size if self.most is None else min(size, self.most)
        try:
            with tar.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise unreadable(tar, error) from error
        if len(data) != size:
            raise UnreadableImage(
                f"{tar} was truncated while it was read, at {shown(path)}.\n{_DAMAGED}"
            )
        return data


def list_tars(root: Path, tars: Sequence[Path], classes: ClassList) -> Listing:
    """The images of an uncompressed tar, or of several that are shards of one set.

    Args:
        root: the tar, or the folder of the shards.
        tars: the files.
        classes: the names of the folders.

    Raises:
        DataError: one is compressed, truncated, damaged, not a tar, or holds no validation set.
    """
    contents = _Contents(root)
    for tar in tars:
        _check_uncompressed(tar)
        contents.add(tar)
    place_of = contents.place_of
    top = top_folder(root, filter(is_image, place_of), classes)
    inside = {
        path.removeprefix(top): place for path, place in place_of.items() if path.startswith(top)
    }
    folders = {path.partition("/")[0] for path in inside if "/" in path}
    folders |= {
        path.removeprefix(top).partition("/")[0]
        for path in contents.folders
        if path.startswith(top) and path != top
    }
    tree = Tree(
        root,
        list(inside),
        folders,
        _Reader(inside),
        _Reader(inside, START),
        f"{len(tars)} tars of " if len(tars) > 1 else "tar of ",
        f" in {top}" if len(inside) < len(place_of) else "",
        {
            path.removeprefix(top): first.removeprefix(top)
            for path, first in contents.same_as.items()
            if path.startswith(top)
        },
    )
    return arrange(tree, classes)


def _check_uncompressed(tar: Path) -> None:
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


class _Contents:
    """The visible files of tars.

    Attributes:
        place_of: where they lie, by their names.
        folders: that the tars list, each with a slash.
        same_as: name of an image that is a hard link to the one that it is a link to.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.place_of: dict[str, _Place] = {}
        self.folders: set[str] = set()
        self.same_as: dict[str, str] = {}

    def add(self, tar: Path) -> None:
        """Add the files of one tar."""
        for member in _members(tar):
            name = member.name.removeprefix("./")
            parts = name.split("/")
            if {".", ".."} & set(parts[:-1]) or "" in parts[1:-1]:
                raise DataError(
                    f"--data {tar}: {shown(member.name)} has '.', '..' or '//' in its path.\n"
                    "Create the tar again, from inside the folder of the validation set."
                )
            if any(part.startswith(".") for part in parts):
                continue
            if member.isdir():
                self.folders.add(f"{name}/")
                continue
            place = self._place(tar, member, name)
            if place is None:
                continue
            if name in self.place_of:
                raise DataError(
                    f"--data {self._root} contains {shown(name)} twice.\n"
                    "Create it again from the files."
                )
            self.place_of[name] = place

    def _place(self, tar: Path, member: tarfile.TarInfo, name: str) -> _Place | None:
        """Where the bytes of a file lie; None for what is neither a file nor named like an image.

        Raises:
            DataError: it is named like an image, and is no file.
        """
        if member.isreg() and not member.issparse():
            return _Place(tar, member.offset_data, member.size)
        place = None
        if member.islnk():  # tar's way to store a file that it has stored under another name
            first = member.linkname.removeprefix("./")
            place = self.place_of.get(first)
            self.same_as[name] = first
        if place is None and is_image(name):
            raise DataError(
                f"--data {tar}: {shown(name)} is a link or not a regular file.\n"
                "Create the tar with --dereference, or give the folder that it was made from."
            )
        return place


def _is_zero(file: BinaryIO) -> bool:
    """Whether the rest of a file is zeros."""
    return not any(block.strip(b"\0") for block in iter(lambda: file.read(1 << 20), b""))


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
        more = mark == bytes(_BLOCK) and not _is_zero(file)
    if more:
        raise DataError(
            f"--data {path} goes on behind the end of its archive: several tars in one?\n"
            "Unpack it with tar --ignore-zeros -xf, or give each tar by itself in one folder."
        )
    if mark != bytes(_BLOCK):
        what = "is truncated" if end + _BLOCK > size else "is damaged"
        raise DataError(
            f"--data {path} {what} after {shown(last)}, {size / 1e9:.2f} GB.\n{_DAMAGED}"
        )
