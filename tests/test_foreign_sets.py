"""What is not read is recognized by its content; the message leads on, as docs/inputs.md says."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import shlex
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import small_valsets as small
from small_valsets import jpeg, name

from eval.data import main as data_main
from eval.errors import DataError, UsageError
from eval.images.layouts import find
from eval.images.valset import open_valset
from eval.request import Request

INPUTS = (Path(__file__).parents[1] / "docs" / "inputs.md").read_text(encoding="utf-8")


def varint(number: int) -> bytes:
    return (
        b""
        if number == 0
        else bytes([number & 127 | (128 if number > 127 else 0)]) + varint(number >> 7)
    )


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def tfrecord(photos: int = 3) -> bytes:
    """Records of `tf.train.Example`, as TFDS writes imagenet2012; the checksums are left out."""
    records = b""
    for number in range(1, photos + 1):
        features = {
            "file_name": field(1, field(1, name(number).encode())),
            "image": field(1, field(1, jpeg(number))),
            "label": field(3, field(1, bytes([number]))),
        }
        entries = (field(1, field(1, k.encode()) + field(2, v)) for k, v in features.items())
        example = field(1, b"".join(entries))
        records += struct.pack("<QI", len(example), 0) + example + bytes(4)
    return records


BETON = struct.pack("<HHIQQ", 2, 2, 1 << 21, 9, 99) + bytes(99)
FORMATS: dict[str, tuple[str, bytes, str]] = {
    "val.tar.gz": ("compressed with gzip", gzip.compress(b"x" * 999), "gunzip {path}"),
    "val.tar.bz2": ("compressed with bzip2", bz2.compress(b"x" * 999), "bunzip2 {path}"),
    "val.tar.xz": ("compressed with xz", lzma.compress(b"x" * 999), "unxz {path}"),
    "val.tar.zst": ("compressed with zstd", b"\x28\xb5\x2f\xfd" + bytes(999), "unzstd {path}"),
    "val.7z": ("a 7z archive", b"7z\xbc\xaf\x27\x1c" + bytes(999), "7z x {path} -oval"),
    "val.rar": ("a rar archive", b"Rar!\x1a\x07\x01\0" + bytes(999), "unrar x {path} val/"),
    "val.sqsh": ("a squashfs image", b"hsqs" + bytes(999), "unsquashfs -d val {path}"),
    "validation-00000-of-00128": ("a TFRecord file", tfrecord(), "pip install tfrecord"),
    "data.bin": ("an LMDB database", bytes(16) + b"\xde\xc0\xef\xbe" + bytes(999), "lmdb.open"),
    "val.rec": ("an MXNet record file", struct.pack("<I", 0xCED7230A) + bytes(999),
                "no names of files, and im2rec usually resized them. Give the folder or tar"),
    "val.beton": ("an FFCV file", BETON, "no names of files, and its writer usually"),
    "val": ("an FFCV file", BETON, "Give the folder or tar"),
    "val.h5": ("an HDF5 file", b"\x89HDF\r\n\x1a\n" + bytes(999), "--data"),
    "val.npy": ("a NumPy file", b"\x93NUMPY" + bytes(999), "python -m eval.score {path}"),
}  # fmt: skip


@pytest.mark.parametrize("file", FORMATS)
@pytest.mark.parametrize("in_folder", [False, True])
def test_formats(tmp_path: Path, file: str, in_folder: bool) -> None:
    kind, content, command = FORMATS[file]
    path = tmp_path / file
    path.write_bytes(content)
    (tmp_path / "features.json").write_text("{}")
    with pytest.raises(DataError) as caught:
        open_valset(tmp_path if in_folder else path)
    first, second = str(caught.value).split("\n")
    assert first.startswith(f"--data {path} is {kind}")
    assert command.format(path=path) in second
    assert f"is {kind}" in INPUTS or kind.startswith("compressed with")


def test_the_command_for_tfrecords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with a stand-in for the package, which gives what it gives."""
    (tmp_path / "x" / "tfrecord").mkdir(parents=True)
    (tmp_path / "x" / "validation-00000-of-00128").write_bytes(tfrecord())
    (tmp_path / "x" / "tfrecord" / "__init__.py").write_text(
        "from types import SimpleNamespace\n"
        "def loader(path, index):\n"
        "    assert path.endswith('-of-00128') and index is None\n"
        "    return [{'image/filename': b'../../a.JPEG', 'image/encoded': b'photo'}]\n"
        "reader = SimpleNamespace(tfrecord_loader=loader)\n"
    )
    with pytest.raises(DataError) as caught:
        open_valset(tmp_path / "x")
    program = re.search(r'python -c "(.*)" (\S+)$', str(caught.value))
    assert program is not None
    (tmp_path / "here").mkdir()
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program[1])} {program[2]}"
    environment = {"PYTHONPATH": str(tmp_path / "x"), "PATH": "/usr/bin:/bin"}
    subprocess.run(["sh", "-c", command], cwd=tmp_path / "here", env=environment, check=True)
    assert (tmp_path / "here" / "a.JPEG").read_bytes() == b"photo"


@pytest.mark.slow
def test_the_package_for_tfrecords(tmp_path: Path) -> None:
    reader = pytest.importorskip("tfrecord.reader")
    (tmp_path / "x").write_bytes(tfrecord())
    rows = list(reader.tfrecord_loader(str(tmp_path / "x"), None))
    assert [(row["file_name"], row["image"]) for row in rows] == [
        (name(n).encode(), jpeg(n)) for n in (1, 2, 3)
    ]


@pytest.mark.slow
def test_lmdb_itself(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "val.lmdb")) as database, database.begin(write=True) as writing:
        writing.put(b"a.jpg", jpeg(1))
    with pytest.raises(DataError, match=r"val\.lmdb is an LMDB database") as caught:
        open_valset(tmp_path / "val.lmdb")
    command = str(caught.value).partition("python -c ")[2]
    subprocess.run(
        ["sh", "-c", f"{shlex.quote(sys.executable)} -c {command}"], cwd=tmp_path, check=True
    )
    assert (tmp_path / "a.jpg").read_bytes() == jpeg(1)


def test_the_root_of_tensorflow_datasets(tmp_path: Path) -> None:
    path = tmp_path / "imagenet2012" / "5.1.0" / "imagenet2012-validation.tfrecord-00000-of-00064"
    path.parent.mkdir(parents=True)
    path.write_bytes(tfrecord())
    with pytest.raises(DataError, match="00000-of-00064 is a TFRecord file"):
        open_valset(tmp_path)


def test_a_file_that_only_begins_like_a_record(tmp_path: Path) -> None:
    data = bytearray(tfrecord())
    data[13] += 1  # the message no longer fills its record
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(DataError, match="neither a tar nor a parquet file"):
        open_valset(tmp_path / "x")


def numbered(root: Path) -> Path:
    (root / "7").mkdir(parents=True)
    (root / "7" / "a.jpg").write_bytes(jpeg(1))
    return root


def in_words(root: Path) -> Path:
    for folder in ("crane", "hen"):
        (root / folder).mkdir(parents=True)
        (root / folder / "a.jpg").write_bytes(jpeg(1))
    return root


def training(root: Path) -> Path:
    (root / "n01440764").mkdir(parents=True)
    for number in range(51):
        (root / "n01440764" / f"n01440764_{number}.JPEG").touch()
    return root


def nested(root: Path) -> Path:
    (small.folders(root) / "n01440764" / "images").mkdir(parents=True)
    (root / "n01440764" / "images" / "a.JPEG").write_bytes(jpeg(1))
    return root


def image(root: Path) -> Path:
    root.write_bytes(jpeg(1))
    return root


def a_list(root: Path) -> Path:
    path = root.with_suffix(".csv")
    path.write_text("a.jpg,1\n")
    return path


def broken_link(root: Path) -> Path:
    root.symlink_to("nowhere")
    return root


def snapshots(root: Path) -> Path:
    repository = small.hub_cache(root)
    (repository / "snapshots" / "0123").mkdir()
    (repository / "snapshots" / "0123" / "x.parquet").touch()
    return repository


def splits(root: Path) -> Path:
    (small.saved_to_disk(root) / "validation").rename(root / "other")
    return root


REFUSED: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "numbers": (numbered, ("has numbered folders", "Say which")),
    "words": (in_words, ("named in words", "Rename them to synsets")),
    "training": (training, ("51 images of n01440764, ", "; the validation set has 50 of")),
    "nested": (nested, ("images in other folders than those of",)),
    "image": (image, ("is a single image", "Give the folder")),
    "list": (a_list, ("is a list, not images", "--labels")),
    "link": (broken_link, ("is a link to ", ", which does not exist")),
    "snapshots": (snapshots, ("with 2 snapshots", "Did you mean")),
    "splits": (splits, ("splits, none of them for validation alone", "Did you mean")),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals_are_in_the_table(tmp_path: Path, kind: str) -> None:
    make, words = REFUSED[kind]
    with pytest.raises(DataError) as caught:
        open_valset(make(tmp_path / "set"))
    for part in words:
        assert part in str(caught.value)
        assert part in INPUTS


def test_urls(capsys: pytest.CaptureFixture[str]) -> None:
    url = "https://example.org/val.tar"
    with pytest.raises(UsageError) as caught:
        Request(data=url)
    assert str(caught.value) == (
        f"--data {url} is a URL; what is evaluated lies on this machine.\n"
        "Download it first, and give its path."
    )
    assert data_main(["--data", "s3://bucket/val"]) == 2
    assert "--data s3://bucket/val is a URL" in capsys.readouterr().err
    assert all(words in INPUTS for words in ("is a URL", "Download it first"))


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Request(data="~/val").data == tmp_path / "val"


# Ranges of shards


def shard(path: Path, number: int) -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo(name(number))
        member.size = len(jpeg(number))
        archive.addfile(member, io.BytesIO(jpeg(number)))


@pytest.mark.parametrize(("form", "range_"), [("{:02}", "{01..03}"), ("{}", "{1..3}")])
def test_ranges(tmp_path: Path, form: str, range_: str) -> None:
    for number in (1, 2, 3, 4):
        shard(tmp_path / f"x-{form.format(number)}.tar", number)
    valset = open_valset(tmp_path / f"x-{range_}.tar")
    assert valset.layout == "3 tars of flat files, official labels"
    assert {s.path: valset.read(s.path) for s in valset.samples} == {
        name(n): jpeg(n) for n in (1, 2, 3)
    }
    (tmp_path / f"x-{form.format(2)}.tar").unlink()
    with pytest.raises(DataError, match=r"x-0?2\.tar: no such file\.\nComplete the copy"):
        open_valset(tmp_path / f"x-{range_}.tar")


@pytest.mark.parametrize("range_", ["{3..1}", "{0..10000}"])
def test_ranges_that_are_none(tmp_path: Path, range_: str) -> None:
    with pytest.raises(DataError, match=r"a range of shards ascends, and names 10,000 at most"):
        open_valset(tmp_path / f"x-{range_}.tar")


@pytest.mark.parametrize("groups", ["{,}" * 60, "{0,1}" * 45, "{0..9999}" * 20, "{0..9}" * 6])
def test_groups_that_stand_for_too_many_shards(tmp_path: Path, groups: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_valset(tmp_path / f"x{groups}.tar")
    message = str(caught.value)
    assert "its braces stand for more than 100,000 shards.\nName those that are there" in message
    assert len(message) < 300


def test_groups_beside_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of a shell; the limit is of all of them."""
    with pytest.raises(DataError, match=r"/a0b0c\.tar, .*/a0b1c\.tar, .*/a0b2c.* \(6 in all\)"):
        open_valset(tmp_path / "a{0,1}b{0..2}c.tar")
    monkeypatch.setattr(find, "_MOST_SHARDS", 100)
    with pytest.raises(DataError, match=r"\(100 in all\): no such file"):
        open_valset(tmp_path / "x{0..9}{0..9}")


def test_a_range_of_parquet(tmp_path: Path) -> None:
    root = small.parquet(tmp_path / "set")
    valset = open_valset(root / "data" / "validation-{00000..00001}-of-00002.parquet")
    assert valset.samples == open_valset(root).samples


def test_training_shards_beside(tmp_path: Path) -> None:
    """As timm/imagenet-1k-wds keeps both splits."""
    shard(tmp_path / "imagenet1k-train-0000.tar", 1)
    shard(tmp_path / "imagenet1k-validation-00.tar", 2)
    assert [s.path for s in open_valset(tmp_path).samples] == [name(2)]
