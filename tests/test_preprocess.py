"""Preprocessing, bit for bit, against torchvision, PaddleClas's rules and the official hashes."""

from __future__ import annotations

import csv
import hashlib
import io
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import jpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from torchvision import transforms

from eval.images.decoders import exact_decoders
from eval.images.preprocess import PREPROCESS, BadImage

ROOT = Path(__file__).parents[1]

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TORCHVISION = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)


def torchvision_input(data: bytes) -> np.ndarray:
    """torchvision's own transforms: float32 (3, 224, 224)."""
    return TORCHVISION(Image.open(io.BytesIO(data)).convert("RGB")).numpy()


def paddle_input(data: bytes) -> np.ndarray:
    """PaddleClas's operators as the notes describe them: float32 (3, 224, 224)."""
    image = cv2.imdecode(np.frombuffer(data, "uint8"), 1)[:, :, ::-1]
    h, w = image.shape[:2]
    percent = float(256) / min(w, h)
    w, h = int(round(w * percent)), int(round(h * percent))
    image = cv2.resize(np.ascontiguousarray(image), (w, h))
    x, y = (w - 224) // 2, (h - 224) // 2
    image = image[y : y + 224, x : x + 224]
    mean = np.array(MEAN).reshape(1, 1, 3).astype("float32")
    std = np.array(STD).reshape(1, 1, 3).astype("float32")
    return ((image.astype("float32") * np.float32(1.0 / 255.0) - mean) / std).transpose(2, 0, 1)


def squash_input(data: bytes) -> np.ndarray:
    image = cv2.resize(cv2.imdecode(np.frombuffer(data, "uint8"), 1)[:, :, ::-1], (256, 256))
    image = image[16:240, 16:240].astype("float32") * np.float32(1.0 / 255.0)
    return ((image - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1)


REFERENCE = {"torchvision": torchvision_input, "paddle": paddle_input, "squash": squash_input}


def model_input(name: str, data: bytes) -> np.ndarray:
    preprocess = PREPROCESS[name]
    batch = preprocess.normalize(np.stack([preprocess.crop(data)]))
    return np.ascontiguousarray(batch[0].transpose(2, 0, 1))


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.RandomState(height * 10007 + width).randint(
        0, 256, (height, width, channels), dtype=np.uint8
    )


@pytest.mark.parametrize("name", REFERENCE)
@settings(max_examples=25)
@given(st.integers(20, 420), st.integers(20, 420))
def test_any_size(name: str, height: int, width: int) -> None:
    data = jpeg(noise(height, width), quality=90)
    assert np.array_equal(model_input(name, data), REFERENCE[name](data))


# 256 already; rounding up against truncation; odd margins; up-sampling; extreme aspects.
SIZES = [
    (256, 256),
    (256, 300),
    (375, 500),
    (500, 375),
    (333, 500),
    (257, 391),
    (40, 33),
    (68, 400),
]


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("size", SIZES)
def test_telling_sizes(name: str, size: tuple[int, int]) -> None:
    data = jpeg(noise(*size))
    assert np.array_equal(model_input(name, data), REFERENCE[name](data))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated_by_exif() -> bytes:
    image = Image.fromarray(noise(90, 120))
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, exif=exif)


ODD = {
    "grayscale": lambda: encoded(Image.fromarray(noise(90, 120)).convert("L")),
    "cmyk": lambda: encoded(Image.fromarray(noise(90, 120)).convert("CMYK")),
    "progressive": lambda: jpeg(noise(90, 120), progressive=True),
    "no subsampling": lambda: jpeg(noise(90, 120), subsampling=0),
    "png": lambda: encoded(Image.fromarray(noise(90, 120)), "PNG"),
    "gray png": lambda: encoded(Image.fromarray(noise(90, 120)).convert("L"), "PNG"),
    "exif": rotated_by_exif,
}


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("kind", ODD)
def test_odd_files(name: str, kind: str) -> None:
    data = ODD[kind]()
    assert np.array_equal(model_input(name, data), REFERENCE[name](data))


def test_exif_rotation_is_paddles_alone() -> None:
    data = rotated_by_exif()
    plain = encoded(Image.fromarray(noise(90, 120)))
    assert np.array_equal(model_input("torchvision", data), model_input("torchvision", plain))
    assert not np.array_equal(model_input("paddle", data), model_input("paddle", plain))


@pytest.mark.parametrize("name", REFERENCE)
def test_every_level_is_normalized_with_the_same_bits(name: str) -> None:
    levels = np.arange(256, dtype=np.uint8)
    crops = np.zeros((1, 224, 224, 3), np.uint8)
    crops[0, :, :, :] = np.resize(levels, (224, 224))[..., np.newaxis]
    found = PREPROCESS[name].normalize(crops)[0].transpose(2, 0, 1)
    if name == "torchvision":
        tensor = transforms.functional.to_tensor(crops[0])
        expected = transforms.functional.normalize(tensor, MEAN, STD).numpy()
    else:
        scaled = crops[0].astype("float32") * np.float32(1.0 / 255.0)
        expected = ((scaled - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)


def test_the_two_arithmetics_do_differ() -> None:
    assert not np.array_equal(PREPROCESS["torchvision"].table, PREPROCESS["paddle"].table)


def test_normalizing_a_batch_is_normalizing_its_images() -> None:
    crops = np.stack([noise(224, 224) for _ in range(3)])
    crops[1:] = crops[1:] // 2
    preprocess = PREPROCESS["torchvision"]
    one_by_one = np.concatenate([preprocess.normalize(crop[np.newaxis]) for crop in crops])
    assert np.array_equal(preprocess.normalize(crops), one_by_one)


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("cut", [1, 2, 50, 1000, 3000])
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_truncated_files_are_bad(name: str, cut: int, options: dict[str, object]) -> None:
    """Never a half-gray image: OpenCV 4 gave one, which is why 5 is required."""
    data = jpeg(noise(120, 90), **options)
    with pytest.raises(BadImage):
        PREPROCESS[name].crop(data[:-cut])


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("data", [b"", b"<html></html>", b"\xff\xd8\xff", bytes(1000)])
def test_other_files_are_bad(name: str, data: bytes) -> None:
    with pytest.raises(BadImage):
        PREPROCESS[name].crop(data)


def one_pixel_wide(side: int, *, wide: bool = False) -> bytes:
    size = (side, 1) if wide else (1, side)
    return encoded(Image.new("L", size, 128), "PNG")


@pytest.mark.parametrize("name", ["torchvision", "paddle"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("side", [257, 65_000, 1_000_000])
def test_sizes_that_would_need_gigabytes_are_bad(name: str, side: int, wide: bool) -> None:
    """Known before anything is resized: a million pixels would become 200 GB."""
    sizes = (side, 1, 256 * side, 256) if wide else (1, side, 256, 256 * side)
    expected = "{:,} x {:,} pixels would be resized to {:,} x {:,}; the limit is 65,536".format(
        *sizes
    )
    with pytest.raises(BadImage, match=expected):
        PREPROCESS[name].crop(one_pixel_wide(side, wide=wide))


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("wide", [False, True])
def test_thin_images_within_the_limit(name: str, wide: bool) -> None:
    data = one_pixel_wide(256, wide=wide)
    assert np.array_equal(model_input(name, data), REFERENCE[name](data))


def test_squash_takes_any_aspect() -> None:
    assert PREPROCESS["squash"].crop(one_pixel_wide(1_000_000)).shape == (224, 224, 3)


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("error", [MemoryError(), cv2.error("out of memory")])
@pytest.mark.parametrize("step", ["decode", "resize"])
def test_a_lack_of_memory_is_a_bad_image(
    name: str, error: Exception, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    if name == "torchvision":
        owner, method = (
            (ImageFile.ImageFile, "load") if step == "decode" else (Image.Image, "resize")
        )
        monkeypatch.setattr(owner, method, fail)
    else:
        monkeypatch.setattr(cv2, "imdecode" if step == "decode" else "resize", fail)
    with pytest.raises(BadImage, match=r"too much memory|OpenCV"):
        PREPROCESS[name].crop(jpeg(noise(90, 120), progressive=True))


def opencv_settings() -> tuple[int, int]:
    return cv2.getNumThreads(), cv2.utils.logging.getLogLevel()


def test_importing_changes_no_setting_of_opencv() -> None:
    code = (
        "import cv2; get = lambda: (cv2.getNumThreads(), cv2.utils.logging.getLogLevel());"
        "cv2.setNumThreads(3); before = get(); import eval.images.preprocess, eval.images.cache;"
        "import eval.images.survey; print(before == get(), before[0])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "True 3\n"


def test_opencv_is_set_and_restored() -> None:
    threads, level = opencv_settings()
    logging = cv2.utils.logging
    try:
        cv2.setNumThreads(3)
        logging.setLogLevel(logging.LOG_LEVEL_ERROR)
        with exact_decoders():
            assert opencv_settings() == (1, logging.LOG_LEVEL_SILENT)
        assert opencv_settings() == (3, logging.LOG_LEVEL_ERROR)
        with pytest.raises(ZeroDivisionError), exact_decoders():
            raise ZeroDivisionError
        assert opencv_settings() == (3, logging.LOG_LEVEL_ERROR)
    finally:
        cv2.setNumThreads(threads)
        logging.setLogLevel(level)


def test_overlapping_uses_restore_at_the_last_end() -> None:
    """As of two evaluations in two threads."""
    before = opencv_settings()
    first, second = exact_decoders(), exact_decoders()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert opencv_settings() == (1, cv2.utils.logging.LOG_LEVEL_SILENT)
    second.__exit__(None, None, None)
    assert opencv_settings() == before


@pytest.mark.parametrize("name", ["torchvision", "paddle"])
def test_official_inputs_on_all_photos(name: str, shared: Path) -> None:
    """The bits of PaddleClas's own operators and of torchvision's own transforms."""
    with (shared / "oracle" / "input_sha256.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 400
    for row in rows:
        data = (shared / "imagenet-sample" / row["path"]).read_bytes()
        found = model_input(name, data)
        assert hashlib.sha256(found.tobytes()).hexdigest() == row[f"{name}_sha256"], row["path"]
        assert np.array_equal(found, REFERENCE[name](data)), row["path"]


def test_gpu_table_gives_the_same_bits() -> None:
    """The indexing that a GPU does, on the CPU."""
    preprocess = PREPROCESS["paddle"]
    crops = np.stack([noise(224, 224)])
    table = torch.from_numpy(preprocess.table)
    found = table[torch.from_numpy(crops).int(), torch.arange(3)]
    assert np.array_equal(found.numpy(), preprocess.normalize(crops))
