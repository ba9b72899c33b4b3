"""Damage small validation sets and label files at random: no error but `DataError` may be raised.

    python scripts/fuzz_readers.py [NUMBER]

This opens NUMBER (default 10000) damaged inputs of each kind and prints how many were read and how
many refused. The test suite does the same with fewer inputs (tests/test_layouts_fuzz.py).
"""

from __future__ import annotations

import argparse
import collections
import io
import sys
import tarfile
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
from fuzz_weights import damaged, outcomes, tell, tell_memory
from hypothesis import strategies as st

from eval.cli import run_command
from eval.errors import DataError
from eval.images.classes import imagenet_classes
from eval.images.labels import official_key, official_labels, official_number
from eval.images.valset import open_valset

IMAGES = 6
BLOCK = 512  # bytes in a tar block
CHECKSUM = slice(148, 156)


def content(number: int) -> bytes:
    """Bytes in place of an image; nothing here decodes them."""
    return f"image {number}".encode() * number


def synset(number: int) -> str:
    """The synset of official image `number` (1..50000)."""
    return imagenet_classes()[official_labels()[number - 1]].synset


def name_list() -> bytes:
    """A label file with a line `name index` per image."""
    rows = [
        f"val/{official_key(number)}.JPEG {official_labels()[number - 1]}\n"
        for number in range(1, 40)
    ]
    return "".join(rows).encode()


def ground_truth() -> bytes:
    """A ground-truth file like the devkit's, with class numbers 1..1000."""
    return "".join(f"{(label + 371) % 1000 + 1}\n" for label in official_labels()).encode()


def solution() -> bytes:
    """A solution file like Kaggle's CSV."""
    rows = [f"{official_key(n)},{synset(n)} 1 2 3 4 {synset(n)} 5 6 7 8 \n" for n in range(1, 40)]
    return "".join(["ImageId,PredictionString\n", *rows]).encode()


def tar(kind: int, folders: bool) -> bytes:
    """A tar archive of images.

    Args:
        kind: a format of `tarfile`.
        folders: put the images into synset folders with long names; if not, add a hard link.
    """
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as archive:
        for number in range(1, IMAGES + 1):
            folder = f"{'v' * 120}/{synset(number)}/" if folders else ""
            member = tarfile.TarInfo(f"{folder}{official_key(number)}.JPEG")
            member.size = len(content(number))
            archive.addfile(member, io.BytesIO(content(number)))
        # Of the same class: a link that stands for another class's image is refused.
        twin = next(n for n in range(IMAGES + 1, 50_000) if synset(n) == synset(IMAGES))
        link = tarfile.TarInfo(f"{official_key(twin)}.JPEG")
        link.type, link.linkname = tarfile.LNKTYPE, member.name
        if not folders:
            archive.addfile(link)
    return file.getvalue()


def table() -> pyarrow.Table:
    """Rows of images and labels."""
    images = [{"bytes": content(n), "path": f"{official_key(n)}.JPEG"} for n in range(1, 7)]
    return pyarrow.table({"image": images, "label": list(official_labels()[:IMAGES])})


def parquet() -> bytes:
    """A parquet shard with two row groups."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(table(), file, row_group_size=3)
    return file.getvalue()


def arrow() -> bytes:
    """A stream of two batches, as `datasets` writes it."""
    file = io.BytesIO()
    with pyarrow.ipc.new_stream(file, table().schema) as writer:
        writer.write_table(table(), max_chunksize=3)
    return file.getvalue()


@st.composite
def damaged_tar(draw: st.DrawFn, data: bytes) -> bytes:
    """Damage a tar; in half of the cases, correct the checksums of its headers afterwards."""
    result = bytearray(draw(damaged(data)))
    if draw(st.booleans()):
        for start in range(0, len(result) - BLOCK + 1, BLOCK):
            header = result[start : start + BLOCK]
            if header[257:262] == b"ustar":
                header[CHECKSUM] = b" " * 8
                header[CHECKSUM] = b"%06o\0 " % sum(header)
                result[start : start + BLOCK] = header
    return bytes(result)


Inputs = dict[str, tuple[bytes, Callable[[bytes], st.SearchStrategy[bytes]]]]


def inputs() -> Inputs:
    """A small valid input of each kind, and the strategy that damages it."""
    return {
        "name list": (name_list(), damaged),
        "ground truth": (ground_truth(), damaged),
        "Kaggle solution": (solution(), damaged),
        "tar, ustar": (tar(tarfile.USTAR_FORMAT, folders=False), damaged_tar),
        "tar, GNU": (tar(tarfile.GNU_FORMAT, folders=True), damaged_tar),
        "tar, pax": (tar(tarfile.PAX_FORMAT, folders=True), damaged_tar),
        "parquet": (parquet(), damaged),
        "arrow": (arrow(), damaged),
    }


def outcome(root: Path, labels: Path | None) -> str:
    """Open and read a validation set, and return "read" or "refused".

    Any other outcome is a bug and raises.
    """
    try:
        valset = open_valset(root, labels)
        contents = [valset.read(sample.path) for sample in valset.samples]
    except DataError as error:
        lines = str(error).split("\n")
        assert len(lines) == 2, lines
        assert all(line.isprintable() for line in lines), lines
        return "refused"
    assert contents
    assert all(type(data) is bytes for data in contents)
    # The images have official names, so damaged labels must never be accepted.
    for sample in valset.samples:
        number = official_number(sample.path)
        assert number is None or sample.label == official_labels()[number - 1]
    return "read"


def fuzz(kind: str, examples: int, folder: Path) -> collections.Counter[str]:
    """Open `examples` damaged inputs of a kind and count the outcomes."""
    data, strategy = inputs()[kind]
    flat = folder / "flat"
    flat.mkdir(exist_ok=True)
    for number in range(1, IMAGES + 1):
        (flat / f"{official_key(number)}.JPEG").write_bytes(content(number))
    path = folder / "damaged"
    is_valset = kind.startswith(("tar", "parquet", "arrow"))
    root, labels = (path, None) if is_valset else (flat, path)
    path.write_bytes(data)
    assert outcome(root, labels) == "read", f"the undamaged {kind}"

    return outcomes(path, strategy(data), examples, lambda: outcome(root, labels))


def main() -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "number", nargs="?", type=int, default=10_000, help="damaged inputs per kind (10000)"
    )
    parser.add_argument("--only", choices=list(inputs()), help="only this kind of input")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for kind in [args.only] if args.only else inputs():
            tell(f"{kind:16}", partial(fuzz, kind, args.number, Path(folder)))
    tell_memory()
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda _: main()))
