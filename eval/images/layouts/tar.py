"""A tar of the validation set, read in place: one pass over its headers finds the images."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from eval.errors import DataError, UnreadableImage
from eval.images.classes import ClassList
from eval.images.labels import examples, is_image, shown
from eval.images.layouts import START, Listing, arrange, check_regular, unreadable
from eval.images.layouts.archives import EACH, Members, visible_name

_BLOCK = 512  # bytes; headers and contents start at multiples of it
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
    most: int = -1  # bytes; negative for the whole file

    def __call__(self, path: str) -> bytes:
        """Bytes of one file."""
        tar, offset, size = self.place_of[path]
        size = size if self.most < 0 else min(size, self.most)
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
    """The images of an uncompressed tar, or of several that are shards of one set."""
    if all(tar.stem in classes.index_of for tar in tars):
        raise DataError(
            f"--data {root}: {examples(tar.name for tar in tars)}: tars named after classes, as of "
            f"the training set.\nUnpack each into a folder of its name: {EACH}"
        )
    members: Members[_Place] = Members(root)
    for tar in tars:
        check_regular(tar, tar.stat().st_mode)
        _add(members, tar)
    words = f"{len(tars)} tars of" if len(tars) > 1 else "tar of"
    return arrange(members.tree(words, classes, _Reader, START), classes)


def _add(members: Members[_Place], tar: Path) -> None:
    """Add the files of one tar."""
    for member in _members(tar):
        name = visible_name(tar, member.name)
        if name is None:
            continue
        if member.isdir():
            members.folders.add(name)
        elif (place := _place(members, tar, member, name)) is not None:
            members.add(name, place)


def _place(
    members: Members[_Place], tar: Path, member: tarfile.TarInfo, name: str
) -> _Place | None:
    """Where the bytes of a file lie; None for what is neither a file nor named like an image."""
    if member.isreg() and not member.issparse():
        return _Place(tar, member.offset_data, member.size)
    place = None
    if member.islnk():  # tar's way to store a file that it has stored under another name
        first = member.linkname.removeprefix("./")
        place = members.place_of.get(first)
        members.same_as[name] = first
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
