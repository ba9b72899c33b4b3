"""Exported files: the kinds there are, what belongs to them, and the precision of each.

All of it comes from the rows of `eval.backends.BACKENDS` and the modules they name.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from eval.backends import BACKENDS, Backend
from eval.errors import ModelError

T = TypeVar("T")

_HEAD = 64  # bytes from which a kind of file is recognized

# Suffix to the backends that run it, the default first: the one whose own kind of file it is.
RUNTIMES = {
    suffix: tuple(
        sorted(
            (name for name, row in BACKENDS.items() if suffix in row.suffixes),
            key=lambda name: BACKENDS[name].suffixes.index(suffix),
        )
    )
    for suffix in dict.fromkeys(suffix for row in BACKENDS.values() for suffix in row.suffixes)
}

# What can be written: its backend, and the ending of the file.
EXPORTS = {row.export[0]: (name, row.export[1]) for name, row in BACKENDS.items() if row.export[0]}


class Copy(type(Path())):  # type: ignore[misc]
    """A private copy of an exported file: what was hashed is what is used.

    Its folder is there as long as it is.

    Attributes:
        original: the file, by whose name messages call it.
    """

    original: Path


def private_copy(path: Path) -> Copy:
    """Copy an exported file and all that belongs to it into a folder of this process's own."""
    folder = Path(tempfile.mkdtemp(prefix="pplcnet-eval-"))
    copy = Copy(folder / path.name)
    copy.original = path
    weakref.finalize(copy, shutil.rmtree, folder, ignore_errors=True)
    try:
        shutil.copyfile(path, copy)
        for beside in companions(copy):
            relative = Path(os.path.normpath(beside)).relative_to(os.path.normpath(folder))
            beside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path.parent / relative, beside)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be copied to {folder}: {error.strerror or error}.\n"
            "Make room there, or name another folder in TMPDIR."
        ) from error
    except ValueError as error:
        raise ModelError(
            f"{path} keeps its weights in {beside.name}, outside its own folder.\n"
            "Export the model again, with all of its files in one folder."
        ) from error
    return copy


def in_original(message: str, path: Path) -> str:
    """A message, with the folder of the original in place of a copy's."""
    if not isinstance(path, Copy):
        return message
    return message.replace(str(path.parent), str(path.original.parent))


def name_of(path: Path) -> str:
    """What to call a file in messages."""
    return str(getattr(path, "original", path))


def is_exported(path: str | Path) -> bool:
    """Whether a weights file is a graph of its own, and not a checkpoint as well."""
    runtimes = RUNTIMES.get(Path(path).suffix.lower())
    return runtimes is not None and not BACKENDS[runtimes[0]].official


def check_file(path: Path) -> None:
    """Refuse a file that is not of the kind that its name says, or lacks its other files."""
    row = _row(path)
    head = _readable(path, _head)
    if not head or not row.load().begins(head):
        found = f"not a valid {row.file} file" if head else "empty"
        advice = "Export the model again, or get an intact copy."
        if head.startswith(b"version https://git-lfs"):
            found, advice = "a pointer of Git LFS", "Run git lfs pull in its repository."
        elif head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
            found, advice = "a web page", "Download the file again, logged in if need be."
        raise ModelError(f"{path} is {found}: no runtime can load it.\n{advice}")
    for beside in companions(path):
        if not beside.is_file():
            raise ModelError(
                f"{path} keeps its weights in {beside.name}, which is not beside it.\n"
                "Copy all files of the model into one folder."
            )
    getattr(row.load(), "check", lambda _: None)(path)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def companions(path: Path) -> tuple[Path, ...]:
    """The other files of an exported model: all that its runtime reads besides `path`."""
    module: Any = _row(path).load()
    return _readable(path, getattr(module, "companions", lambda _: ()))


def files_of(path: Path) -> tuple[Path, ...]:
    """Every file that an exported model consists of."""
    return (path, *companions(path))


def size_of(path: Path) -> int:
    """Size of all files of the model, in bytes."""
    return sum(file.stat().st_size for file in files_of(path) if file.exists())


def precision_of(path: Path) -> str:
    """What a file computes in, and keeps its weights in.

    From the types of all tensors that take part, see `eval.backends.precision.describe`;
    ``unknown`` where they cannot be read: such a file is measured, but not judged.
    """
    precision: str = _readable(path, _row(path).load().precision)
    return precision


def side_of(path: Path) -> int | None:
    """Height and width of the images that a file takes; None where it does not say."""
    module: Any = _row(path).load()
    side: int | None = _readable(path, getattr(module, "side", lambda _: None))
    return side


def _row(path: Path) -> Backend:
    """The runtime whose own kind of file it is."""
    return BACKENDS[RUNTIMES[path.suffix.lower()][0]]


def _readable(path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except OSError as error:
        raise ModelError(
            f"--weights {path} cannot be read: {error.strerror or error}.\nGive an exported file."
        ) from error
