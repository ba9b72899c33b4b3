"""Formats that are not read, known by their content, each with the shortest way to one that is.

Sources of the signatures: LMDB's ``mdb.c`` (`MDB_MAGIC`), MXNet's ``recordio.h`` (`kMagic`), FFCV's
``types.py`` (`HeaderType`), TensorFlow's ``tf.train.Example`` and TFRecord format; for archives,
their own specifications.
"""

from __future__ import annotations

import re
import shlex
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from eval.errors import DataError
from eval.text import printable

_LOOKED_AT = 4096  # bytes
_MOST_FILES = 100  # of a folder
_SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}$")


class _Format(NamedTuple):
    """A format that is not read.

    Attributes:
        name: for the message.
        is_it: by the first bytes of a file and its size.
        way: what to do, as an instruction; ``{path}`` is the file, ``{stem}`` its name without
            suffixes.
        suffix: of the files that are of this format whatever they begin with.
    """

    name: str
    is_it: Callable[[bytes, int], bool]
    way: str
    suffix: str = ""


def _begins(*magic: bytes) -> Callable[[bytes, int], bool]:
    return lambda start, _: start.startswith(magic)


def _is_page(start: bytes, _: int) -> bool:
    return start.lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _is_tfrecord(start: bytes, size: int) -> bool:
    """A length, its checksum, and a message whose only field fills that length."""
    if len(start) < 24:
        return False
    length = struct.unpack_from("<Q", start)[0]
    if start[12] != 0x0A or length + 16 > size:
        return False
    inner = 0
    for place in range(10):
        byte = start[13 + place]
        inner |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return bool(inner + place + 2 == length)
    return False


def _is_beton(start: bytes, size: int) -> bool:
    """A version, few fields, pages of 2^n bytes, and a table of allocations within the file."""
    if len(start) < 24:
        return False
    version, fields, page, samples, table = struct.unpack_from("<HHIQQ", start)
    is_page = page >= 1 << 12 and page & (page - 1) == 0
    return bool(0 < version < 10 and 0 < fields < 100 and is_page and samples and table <= size)


_UNPACK = "Unpack it first, that takes hardly more space: "
_ORIGINAL = "Give the folder or tar of images that it was made from: --data FOLDER"
_FORMATS = (
    _Format(
        "a pointer of Git LFS, not the file itself",
        _begins(b"version https://git-lfs"),
        "Fetch the file: git lfs pull, in the folder of its repository",
    ),
    _Format("a web page", _is_page, "Download the file again, logged in where that is needed."),
    _Format("compressed with gzip", _begins(b"\x1f\x8b"), f"{_UNPACK}gunzip {{path}}"),
    _Format("compressed with bzip2", _begins(b"BZh"), f"{_UNPACK}bunzip2 {{path}}"),
    _Format("compressed with xz", _begins(b"\xfd7zXZ\0"), f"{_UNPACK}unxz {{path}}"),
    _Format("compressed with zstd", _begins(b"\x28\xb5\x2f\xfd"), f"{_UNPACK}unzstd {{path}}"),
    _Format("compressed with lz4", _begins(b"\x04\x22\x4d\x18"), f"{_UNPACK}unlz4 {{path}}"),
    _Format("a 7z archive", _begins(b"7z\xbc\xaf\x27\x1c"), f"{_UNPACK}7z x {{path}} -o{{stem}}"),
    _Format("a rar archive", _begins(b"Rar!\x1a\x07"), f"{_UNPACK}unrar x {{path}} {{stem}}/"),
    _Format(
        "a squashfs image",
        _begins(b"hsqs", b"sqsh"),
        "Mount it, or unpack it: unsquashfs -d {stem} {path}",
    ),
    _Format(
        "a TFRecord file (TensorFlow Datasets, TF-slim)",
        _is_tfrecord,
        "Give the ILSVRC2012_img_val.tar that it was made from, or write its images here: pip "
        'install tfrecord && python -c "import sys, os, tfrecord as t; [open(os.path.basename('
        "(r.get('file_name') or r['image/filename']).decode()), 'wb').write(r.get('image') or "
        "r['image/encoded']) for f in sys.argv[1:] for r in t.reader.tfrecord_loader(f, None)]\" "
        "{path}",
    ),
    _Format(
        "an LMDB database",
        lambda start, _: start[16:20] == b"\xde\xc0\xef\xbe",
        "Give the images that it was made from, or write its values here, if they are image "
        'files: python -c "import lmdb, os, sys; p = sys.argv[1]; [open(os.path.basename('
        "k.decode()), 'wb').write(v) for k, v in lmdb.open(p, readonly=True, lock=False, "
        'subdir=os.path.isdir(p)).begin().cursor()]" {path}',
    ),
    _Format(
        "an MXNet record file",
        _begins(b"\x0a\x23\xd7\xce"),
        f"It has no names of files, and im2rec usually resized them. {_ORIGINAL}",
    ),
    _Format(
        "an FFCV file",
        _is_beton,
        f"It has no names of files, and its writer usually resized them. {_ORIGINAL}",
        ".beton",
    ),
    _Format("an HDF5 file", _begins(b"\x89HDF\r\n\x1a\n"), _ORIGINAL),
    _Format(
        "a NumPy file",
        _begins(b"\x93NUMPY"),
        "Predictions are scored by python -m eval.score {path} --data IMAGES",
    ),
)


def refuse_foreign(path: Path) -> None:
    """Refuse a file, or a folder of files, in a known format that is not read."""
    files = [path]
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if file.is_file()][:_MOST_FILES]
    for file in files:
        if found := _format_of(file):
            if file.name == "data.mdb":
                file = file.parent
            names = {"path": _word(file), "stem": _word(Path(file.name.partition(".")[0] or "val"))}
            alike = [each for each in files if each.suffixes == file.suffixes]
            if len(alike) > 1 and "*" not in names["path"] and "{stem}" not in found.way:
                names["path"] = f"{_word(file.parent)}/*{''.join(file.suffixes)}"
            raise DataError(
                f"--data {printable(str(file))} is {found.name}: its images cannot be read in "
                f"place.\n{found.way.format(**names)}"
            )


def _format_of(path: Path) -> _Format | None:
    with path.open("rb") as file:
        start = file.read(_LOOKED_AT)
    size = path.stat().st_size
    for each in _FORMATS:
        if each.is_it(start, size) or (each.suffix and path.suffix == each.suffix):
            return each
    return None


def _word(path: Path) -> str:
    """A path as a word of a shell; all shards of a set in place of one."""
    name = str(path)
    stem = _SHARD.sub("", name)
    return printable(shlex.quote(stem) + ("-*" if stem != name else ""))
