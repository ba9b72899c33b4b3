"""The cache of crops: the same bits without decoding, and never a stale or damaged one."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tarfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_run import Fake, assert_same

from eval.errors import UsageError
from eval.images.cache import RECORD, CropCache
from eval.images.preprocess import PREPROCESS, BadImage, Crop, Preprocess
from eval.images.valset import ValSet, open_valset
from eval.measure import engine
from eval.measure.journal import Journal

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
) -> engine.Measurement:
    forms = ("a", "b")
    with Journal(output, {}, forms) as journal, CropCache(folder, valset, preprocess) as cache:
        part = engine.measure(
            valset,
            preprocess,
            Fake(),
            forms,
            batch_size=4,
            workers=2,
            journal=journal,
            cache=cache,
            record_bad=record_bad,
        )
    return engine.assemble(valset, [part], forms)


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
            cached = cache.get(index)
            assert cached is not None
            assert np.array_equal(cached.crop, TORCHVISION.crop(valset.read(sample.path)))
        (folder,) = (tmp_path / "cache").iterdir()
        assert (folder / "crops.bin").stat().st_size == 11 * 224 * 224 * 3


def test_an_image_that_changed_is_decoded_again(valset: ValSet, tmp_path: Path) -> None:
    decoded(valset, tmp_path / "cache", tmp_path / "1")
    path = valset.file_of(valset.samples[5].path)
    path.write_bytes(valset.read(valset.samples[0].path))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert decoded(valset, tmp_path / "cache", tmp_path / "2") == 1
    with CropCache(tmp_path / "cache", valset, TORCHVISION) as cache:
        one, other = cache.get(0), cache.get(5)
        assert one is not None
        assert other is not None
        assert np.array_equal(one.crop, other.crop)
        assert one.sha256 == other.sha256


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


def test_a_tar_is_cached_and_its_change_is_seen(valset: ValSet, tmp_path: Path) -> None:
    path = tmp_path / "val.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(valset.root, arcname=".")
    packed = open_valset(path)
    assert decoded(packed, tmp_path / "cache", tmp_path / "1") == 11
    assert decoded(packed, tmp_path / "cache", tmp_path / "2") == 0
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert decoded(packed, tmp_path / "cache", tmp_path / "3") == 11


def test_a_bad_image_is_never_cached(valset: ValSet, tmp_path: Path) -> None:
    path = valset.file_of(valset.samples[2].path)
    path.write_bytes(path.read_bytes()[:300])
    for output in ("1", "2"):
        found = measured(
            valset, tmp_path / "cache", tmp_path / output, TORCHVISION, record_bad=True
        )
        assert list(found.bad) == [2]
        assert found.digests[2] != "0" * 64
    with pytest.raises(BadImage):
        TORCHVISION.crop(path.read_bytes())


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
