"""The cache of crops: the same bits without decoding, and never a stale or damaged one."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import os
import shutil
import stat
import tarfile
import zlib
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import jpeg
from test_run import Fake, assert_same

from eval import snapshot
from eval.errors import UnreadableImage, UsageError
from eval.images import decoders
from eval.images.cache import CODE, RECORD, CropCache
from eval.images.preprocess import PREPROCESS, BadImage, Crop, Preprocess
from eval.images.valset import ValSet, open_valset
from eval.measure import batch, engine, measurement
from eval.measure.journal import Journal, NoJournal

ROOT = Path(__file__).parents[1]

MakeVal = Callable[..., Path]
TORCHVISION = PREPROCESS["torchvision"]


@pytest.fixture
def valset(val_folder: MakeVal) -> ValSet:
    names = {"n01440764": 3, "n01443537": 4, "n15075141": 4}
    return open_valset(val_folder({s: [f"{i}.JPEG" for i in range(n)] for s, n in names.items()}))


class Counting:
    """A preprocessing that knows how many images it has decoded."""

    def __init__(self) -> None:
        self.calls = 0
        self.preprocess = dataclasses.replace(TORCHVISION, crop=self.crop)

    def crop(self, data: bytes) -> Crop:
        self.calls += 1
        return TORCHVISION.crop(data)


def measured(
    valset: ValSet, folder: Path, output: Path, preprocess: Preprocess, *, record_bad: bool = False
) -> measurement.Measurement:
    forms = ("a", "b")
    with Journal(output, {}, forms) as journal, CropCache(folder, valset, preprocess) as cache:
        plan = batch.Plan(preprocess, forms, 4, 2, record_bad=record_bad)
        part = engine.measure(valset, Fake(), plan, journal=journal, cache=cache)
    return measurement.assemble(valset, [part], forms)


def filled(valset: ValSet, folder: Path, preprocess: Preprocess) -> None:
    """By a run without a model, as `eval.sweep` does it."""
    plan = batch.Plan(preprocess, (), 4, 2, record_bad=True)
    with CropCache(folder, valset, preprocess) as cache:
        engine.measure(valset, Fake(()), plan, journal=NoJournal(()), cache=cache)


def digest(valset: ValSet, index: int) -> bytes:
    return hashlib.sha256(valset.read(valset.samples[index].path)).digest()


def decoded(valset: ValSet, folder: Path, output: Path) -> int:
    counting = Counting()
    measured(valset, folder, output, counting.preprocess)
    return counting.calls


def test_the_second_run_decodes_nothing_and_finds_the_same(valset: ValSet, tmp_path: Path) -> None:
    counting = Counting()
    first = measured(valset, tmp_path / "cache", tmp_path / "1", counting.preprocess)
    assert counting.calls == 11
    second = measured(valset, tmp_path / "cache", tmp_path / "2", counting.preprocess)
    assert counting.calls == 11
    assert_same(second, first)
    assert second.dataset_sha256 == first.dataset_sha256


def test_crops_are_kept_bit_for_bit(valset: ValSet, tmp_path: Path) -> None:
    measured(valset, tmp_path / "cache", tmp_path / "1", TORCHVISION)
    with CropCache(tmp_path / "cache", valset, TORCHVISION) as cache:
        for index, sample in enumerate(valset.samples):
            crop = cache.get(index, digest(valset, index))
            assert crop is not None
            assert np.array_equal(crop, TORCHVISION.crop(valset.read(sample.path)))
            assert cache.get(index, bytes(32)) is None
        (folder,) = (tmp_path / "cache").iterdir()
        assert (folder / "crops.bin").stat().st_size == 11 * 224 * 224 * 3


def test_an_image_that_changed_is_decoded_again(valset: ValSet, tmp_path: Path) -> None:
    """Though its size and times are those of before, as after ``cp --preserve`` or ``rsync -t``."""
    before = measured(valset, tmp_path / "cache", tmp_path / "1", TORCHVISION)
    path = valset.root / valset.samples[5].path
    content, times = path.read_bytes(), path.stat()
    noise = np.random.RandomState(5).randint(0, 256, (40, 48, 3), dtype=np.uint8)
    other = jpeg(noise, quality=40)
    path.write_bytes(other + bytes(len(content) - len(other)))  # decoders ignore what follows
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)

    after = measured(valset, tmp_path / "cache", tmp_path / "2", TORCHVISION)
    assert after.digests[5] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert after.dataset_sha256 != before.dataset_sha256
    with CropCache(tmp_path / "cache", valset, TORCHVISION) as cache:
        crop = cache.get(5, digest(valset, 5))
        assert crop is not None
        assert np.array_equal(crop, TORCHVISION.crop(path.read_bytes()))


def test_only_the_image_that_changed_is_decoded_again(valset: ValSet, tmp_path: Path) -> None:
    decoded(valset, tmp_path / "cache", tmp_path / "1")
    path = valset.root / valset.samples[5].path
    path.write_bytes(valset.read(valset.samples[0].path))
    assert decoded(valset, tmp_path / "cache", tmp_path / "2") == 1
    for sample in valset.samples:  # new times alone change nothing
        os.utime(valset.root / sample.path, ns=(0, 7))
    assert decoded(valset, tmp_path / "cache", tmp_path / "3") == 0


@pytest.mark.parametrize(
    ("name", "offset"),
    [("crops.bin", 3 * 224 * 224 * 3 + 7), ("index.bin", 3 * RECORD.itemsize + 20)],
)
def test_a_damaged_byte_is_noticed(name: str, offset: int, valset: ValSet, tmp_path: Path) -> None:
    decoded(valset, tmp_path / "cache", tmp_path / "1")
    (folder,) = (tmp_path / "cache").iterdir()
    data = bytearray((folder / name).read_bytes())
    data[offset] ^= 1
    (folder / name).write_bytes(bytes(data))
    assert decoded(valset, tmp_path / "cache", tmp_path / "2") == 1


@pytest.mark.parametrize("name", ["crops.bin", "index.bin"])
def test_a_cache_that_was_cut_short_is_filled_up(name: str, valset: ValSet, tmp_path: Path) -> None:
    decoded(valset, tmp_path / "cache", tmp_path / "1")
    (folder,) = (tmp_path / "cache").iterdir()
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) * 6 // 11 + 5])
    assert decoded(valset, tmp_path / "cache", tmp_path / "2") == 5
    assert decoded(valset, tmp_path / "cache", tmp_path / "3") == 0


def test_other_preprocessing_and_other_images_have_caches_of_their_own(
    valset: ValSet, tmp_path: Path
) -> None:
    folders = []
    for images, preprocess in [
        (valset, TORCHVISION),
        (valset, PREPROCESS["paddle"]),
        (valset.limited(5), TORCHVISION),
    ]:
        with CropCache(tmp_path / "cache", images, preprocess) as cache:
            folders.append(cache.folder)
    assert len(set(folders)) == 3


def test_a_tar_is_cached_and_a_changed_image_in_it_is_noticed(
    valset: ValSet, tmp_path: Path
) -> None:
    path = tmp_path / "val.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(valset.root, arcname=".")
    packed = open_valset(path)
    assert decoded(packed, tmp_path / "cache", tmp_path / "1") == 11
    assert decoded(packed, tmp_path / "cache", tmp_path / "2") == 0
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[data.index(valset.read(valset.samples[4].path)) + 700] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert decoded(packed, tmp_path / "cache", tmp_path / "3") == 1


def test_a_bad_image_is_never_cached(valset: ValSet, tmp_path: Path) -> None:
    path = valset.root / valset.samples[2].path
    path.write_bytes(path.read_bytes()[:300])
    for output in ("1", "2"):
        found = measured(
            valset, tmp_path / "cache", tmp_path / output, TORCHVISION, record_bad=True
        )
        assert list(found.bad) == [2]
        assert found.digests[2] != "0" * 64
    with pytest.raises(BadImage):
        TORCHVISION.crop(path.read_bytes())


@pytest.mark.parametrize(
    ("target", "why"),
    [("nowhere", "is a link to a file that is gone"), ("itself", "cannot be rea")],
)
def test_an_image_that_cannot_be_read_is_recorded(
    valset: ValSet, tmp_path: Path, target: str, why: str
) -> None:
    path = valset.root / valset.samples[2].path
    path.unlink()
    path.symlink_to(path.name if target == "itself" else target)
    opened = open_valset(valset.root)
    assert len(opened.samples) == 11
    found = measured(opened, tmp_path / "cache", tmp_path / "1", TORCHVISION, record_bad=True)
    assert list(found.bad) == [2]
    assert why in found.bad[2]
    with pytest.raises(UnreadableImage, match=why):
        measured(opened, tmp_path / "cache", tmp_path / "2", TORCHVISION)


def test_filling_skips_what_cannot_be_read_or_decoded(valset: ValSet, tmp_path: Path) -> None:
    (valset.root / valset.samples[2].path).unlink()
    (valset.root / valset.samples[3].path).write_bytes(b"x")
    filled(valset, tmp_path / "cache", TORCHVISION)
    with CropCache(tmp_path / "cache", valset, TORCHVISION) as cache:
        kept = [cache.get(i, digest(valset, i)) is not None for i in range(11) if i != 2]
    assert kept == [True, True, False, *[True] * 7]


def test_too_little_room_is_said_before_the_run(
    valset: ValSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    with pytest.raises(UsageError, match=r"11 crops need 0\.0 GB"):
        CropCache(tmp_path / "cache", valset, TORCHVISION)


def test_a_folder_that_cannot_be_written_is_named(valset: ValSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"file.*cannot be written"):
        CropCache(tmp_path / "file", valset, TORCHVISION)


def test_folder_and_files_by_hand(
    valset: ValSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key stands for all that a crop depends on, and a cache of the same key is used again."""
    monkeypatch.setattr("eval.images.decoders.versions", lambda: {"pillow": "1"})
    monkeypatch.setattr("eval.images.cache.files_sha256", lambda *names: " ".join(sorted(names)))
    monkeypatch.setattr("eval.images.cache.image_list_sha256", lambda _: "ab" * 32)
    preprocess = dataclasses.replace(TORCHVISION, name="mine", description="crop é", size=2)
    before = os.umask(0)
    try:
        with CropCache(tmp_path / "new" / "cache", valset, preprocess) as cache:
            folder = cache.folder
            cache.put(1, bytes(range(32)), np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
            found = cache.get(1, bytes(range(32)))
            with CropCache(tmp_path / "new" / "cache", valset, preprocess) as again:
                assert again.folder == folder
                assert np.array_equal(again.get(1, bytes(range(32))), found)
    finally:
        os.umask(before)
    table = hashlib.sha256(TORCHVISION.table.tobytes()).hexdigest()
    code = "eval/images/decoders.py eval/images/jpeg.py eval/images/preprocess.py eval/recipe.py"
    text = (
        '{\n  "format": 2,\n  "preprocess": "mine: crop \\u00e9",\n  "size": 2,\n'
        f'  "table_sha256": "{table}",\n  "code_sha256": "{code}",\n  "images": 11,\n'
        f'  "image_list_sha256": "{"ab" * 32}",\n  "decoders": {{\n    "pillow": "1"\n  }}\n}}\n'
    )
    assert (folder / "cache.json").read_bytes() == text.encode()
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert folder == tmp_path / "new" / "cache" / f"mine-{key}"
    assert found is not None
    assert (found.shape, found.dtype) == ((2, 2, 3), np.uint8)
    assert found.ravel().tolist() == list(range(12))
    pixels, index = (folder / "crops.bin").read_bytes(), (folder / "index.bin").read_bytes()
    assert pixels == bytes(12) + bytes(range(12))
    record = bytes(range(32)) + zlib.crc32(bytes(range(12))).to_bytes(4, "little")
    assert index == bytes(40) + record + zlib.crc32(record).to_bytes(4, "little")
    for name in ("crops.bin", "index.bin"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o644


def test_files_are_closed_at_the_end(valset: ValSet, tmp_path: Path) -> None:
    with CropCache(tmp_path, valset, TORCHVISION) as cache:
        handles = (cache._crops, cache._index)
        assert [os.fstat(handle).st_size for handle in handles] == [0, 0]
    for handle in handles:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)


def small(**changes: Any) -> Preprocess:
    return dataclasses.replace(TORCHVISION, name="mine", size=2, **changes)


def test_a_record_without_its_crop_is_not_used(valset: ValSet, tmp_path: Path) -> None:
    crop = np.full((2, 2, 3), 7, np.uint8)
    with CropCache(tmp_path, valset, small()) as cache:
        cache.put(0, bytes(32), crop)
        os.ftruncate(cache._crops, 11)
        assert cache.get(0, bytes(32)) is None
        cache.put(0, bytes(32), crop)
        assert np.array_equal(cache.get(0, bytes(32)), crop)
        os.ftruncate(cache._index, 39)
        assert cache.get(0, bytes(32)) is None
        assert cache.get(10, bytes(32)) is None  # never written


def test_a_record_with_a_damaged_checksum_is_not_used(valset: ValSet, tmp_path: Path) -> None:
    with CropCache(tmp_path, valset, small()) as cache:
        cache.put(0, bytes(32), np.full((2, 2, 3), 7, np.uint8))
        for byte in (36, 39):  # the first and the last of the record's own checksum
            value = os.pread(cache._index, 1, byte)
            os.pwrite(cache._index, bytes([value[0] ^ 1]), byte)
            assert cache.get(0, bytes(32)) is None
            os.pwrite(cache._index, value, byte)
            assert cache.get(0, bytes(32)) is not None


def test_a_write_may_take_several_calls(
    valset: ValSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is nearly full writes less than it was given."""
    pwrite = os.pwrite
    crop = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    with CropCache(tmp_path, valset, small()) as cache, monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda handle, data, at: pwrite(handle, data[:5], at))
        cache.put(2, bytes(range(32)), crop)
        assert np.array_equal(cache.get(2, bytes(range(32))), crop)


def test_the_record_is_written_after_the_crop(
    valset: ValSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handles = []
    pwrite = os.pwrite

    def written(handle: int, data: bytes, offset: int) -> int:
        handles.append(handle)
        return pwrite(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", written)
    with CropCache(tmp_path, valset, small()) as cache:
        cache.put(2, bytes(32), np.zeros((2, 2, 3), np.uint8))
        assert handles == [cache._crops, cache._index]


@pytest.mark.parametrize("kept", [0, 1, 11])
def test_room_is_needed_for_what_is_missing(
    valset: ValSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    preprocess = dataclasses.replace(small(), size=20_000)  # 1.2 GB for each crop
    with CropCache(tmp_path, valset, preprocess) as cache:
        folder = cache.folder
    (folder / "index.bin").write_bytes(bytes(40 * kept))
    needed = (11 - kept) * 20_000 * 20_000 * 3
    usage = namedtuple("usage", "total used free")
    asked = []

    def room(path: Path) -> Any:
        asked.append(path)
        return usage(10**15, 0, free)

    monkeypatch.setattr(shutil, "disk_usage", room)
    free = needed
    with CropCache(tmp_path, valset, preprocess):
        pass  # exactly enough
    assert asked == [folder]
    free = needed - 1
    if not kept:
        with pytest.raises(UsageError) as caught:
            CropCache(tmp_path, valset, preprocess)
        assert str(caught.value) == (
            f"--cache {tmp_path}: 11 crops need 13.2 GB, 13.2 GB are free.\n"
            "Name a folder with more room, or omit --cache."
        )
    elif kept == 1:
        with pytest.raises(UsageError, match=r"10 crops need 12\.0 GB, 12\.0 GB are free"):
            CropCache(tmp_path, valset, preprocess)


def test_errors_in_words(valset: ValSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    def broken(*_: object) -> int:
        raise OSError("the share is gone")

    with CropCache(tmp_path, valset, small()) as cache:
        cache.put(0, bytes(32), np.zeros((2, 2, 3), np.uint8))
        for fails, words in ((full, "No space left on device"), (broken, "the share is gone")):
            monkeypatch.setattr(os, "pwrite", fails)
            with pytest.raises(UsageError) as caught:
                cache.put(0, bytes(32), np.zeros((2, 2, 3), np.uint8))
            assert str(caught.value) == (
                f"--cache: {cache.folder} cannot be written: {words}.\n"
                "Name another folder, make room, or omit --cache."
            )
            monkeypatch.setattr(os, "pread", fails)
            with pytest.raises(UsageError) as caught:
                cache.get(0, bytes(32))
            assert str(caught.value) == (
                f"{cache.folder} cannot be read: {words}.\nDelete it, or omit --cache."
            )


def test_filling_decodes_once(valset: ValSet, tmp_path: Path) -> None:
    counting = Counting()
    for _ in range(2):
        filled(valset, tmp_path / "cache", counting.preprocess)
        assert counting.calls == 11
    with CropCache(tmp_path / "cache", valset, counting.preprocess) as cache:
        for index, sample in enumerate(valset.samples):
            found = cache.get(index, digest(valset, index))
            assert np.array_equal(found, TORCHVISION.crop(valset.read(sample.path)))


def key(valset: ValSet, folder: Path, preprocess: Preprocess) -> str:
    with CropCache(folder, valset, preprocess) as cache:
        return cache.folder.name


def test_the_code_of_crops_is_whole() -> None:
    """All that the modules import of ours, but for what makes no pixels."""
    found = {"eval/images/preprocess.py"}
    for _ in range(3):
        for name in sorted(found):
            tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
            imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
            modules = {str(node.module).replace(".", "/") + ".py" for node in imports}
            found |= {module for module in modules if module.startswith("eval/")}
    assert found - {"eval/errors.py"} == {*CODE} - {"eval/images/decoders.py"}


def test_crops_of_other_code_or_decoders_are_not_used(
    valset: ValSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(valset, tmp_path, TORCHVISION)
    assert key(valset, tmp_path, TORCHVISION) == before
    hashes = snapshot._HASHES
    for name in CODE:
        with monkeypatch.context() as patch:
            patch.setitem(hashes, name, "other")
            assert key(valset, tmp_path, TORCHVISION) != before
    with monkeypatch.context() as patch:  # code that makes no pixels
        patch.setitem(hashes, "eval/judge/verdict.py", "other")
        assert key(valset, tmp_path, TORCHVISION) == before
    for name in decoders.versions():
        other = decoders.versions() | {name: "other"}
        with monkeypatch.context() as patch:
            patch.setattr(decoders, "versions", lambda other=other: other)
            assert key(valset, tmp_path, TORCHVISION) != before, name
    table = TORCHVISION.table + 1
    assert key(valset, tmp_path, dataclasses.replace(TORCHVISION, table=table)) != before


def test_a_library_that_crops_is_a_decoder(
    valset: ValSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crop(data: bytes) -> Crop:
        return TORCHVISION.crop(data)

    crop.__module__ = "eval.models.timm"
    own = dataclasses.replace(TORCHVISION, crop=crop, recipe=None)
    assert TORCHVISION.recipe is not None
    recipe = dataclasses.replace(TORCHVISION.recipe, resizer="tensor")
    tensor = dataclasses.replace(TORCHVISION, recipe=recipe)
    before, plain = key(valset, tmp_path, own), key(valset, tmp_path, TORCHVISION)
    on_tensors = key(valset, tmp_path, tensor)
    assert len({before, plain, on_tensors}) == 3
    monkeypatch.setattr("eval.images.cache.versions", lambda: {
        "torch": "0", "torchvision": "0", "timm": "0"
    })  # fmt: skip
    assert key(valset, tmp_path, own) != before
    assert key(valset, tmp_path, tensor) != on_tensors
    assert key(valset, tmp_path, TORCHVISION) == plain


def test_crops_from_the_cache_are_counted(valset: ValSet, tmp_path: Path) -> None:
    assert measured(valset, tmp_path / "cache", tmp_path / "1", TORCHVISION).from_cache == 0
    path = valset.root / valset.samples[5].path
    path.write_bytes(valset.read(valset.samples[0].path))
    again = measured(valset, tmp_path / "cache", tmp_path / "2", TORCHVISION)
    assert again.from_cache == 10


@pytest.mark.parametrize("name", ["index.bin", "crops.bin"])
def test_a_link_is_not_followed(name: str, valset: ValSet, tmp_path: Path) -> None:
    with CropCache(tmp_path / "cache", valset, TORCHVISION) as cache:
        folder = cache.folder
    (tmp_path / "mine").write_bytes(b"mine")
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match=f"{folder.name} cannot be written"):
        CropCache(tmp_path / "cache", valset, TORCHVISION)
    assert (tmp_path / "mine").read_bytes() == b"mine"
