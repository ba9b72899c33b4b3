"""Ordinary JPEGs take a shorter way: the same bits as Pillow's public one, or none at all."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision import transforms

from eval.images import jpeg
from eval.images.decoders import exact_decoders
from eval.images.preprocess import BadImage, crop_of, cut, decoded, resized
from eval.recipe import NAMED, Recipe

TORCHVISION = NAMED["torchvision"]
COLOR = np.random.default_rng(0).integers(0, 256, (260, 330, 3), np.uint8)


@pytest.fixture(autouse=True)
def decoders() -> Iterator[None]:
    """As in a run."""
    with exact_decoders():
        yield


def saved(
    mode: str = "RGB", pixels: NDArray[np.uint8] = COLOR, kind: str = "JPEG", **options: Any
) -> bytes:
    """A JPEG that Pillow writes."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    """A segment of a JPEG's header."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_segments(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with these behind its JFIF segment."""
    end = 4 + struct.unpack(">H", data[4:6])[0]
    return data[:end] + b"".join(segments) + data[end:]


def public(data: bytes, recipe: Recipe = TORCHVISION) -> NDArray[np.uint8]:
    """The crop by Pillow's public functions."""
    return cut(resized(decoded(data, recipe), recipe), recipe)


EXIF, DPI = segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"), {"dpi": (72, 72)}
JFIF = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
ORDINARY = {
    "plain": saved(),
    "fine colors": saved(quality=100, subsampling=0),
    "coarse colors": saved(quality=5, subsampling=2),
    "own Huffman tables": saved(optimize=True),
    "restarts": saved(restart_marker_blocks=3),
    "a comment with a scan's marker": saved(comment=b"\xff\xda"),
    "an ICC profile": saved(icc_profile=bytes(200)),
    "RGB without YCbCr": saved(keep_rgb=True),
    "XMP": saved(xmp=b"<x/>"),
    "EXIF, and a resolution": with_segments(saved(**DPI), EXIF),
    "Photoshop's": with_segments(
        saved(), segment(0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\0\0\0\0")
    ),
    "something behind it": saved() + b"\xff\xd8 another",
    "a low image": saved(pixels=COLOR[:40]),
    "of the right size": saved(pixels=COLOR[:256, :256]),
}
OTHERS = {
    "progressive": saved(progressive=True),
    "gray": saved("L"),
    "CMYK": saved("CMYK"),
    "EXIF alone": with_segments(saved(), EXIF),
    "several pictures": saved(
        kind="MPO", save_all=True, append_images=[Image.fromarray(COLOR[::-1].copy())]
    ),
    "16-bit quantization": saved(qtables=[[1] * 64, [300] * 64]),
    "an unknown segment": with_segments(saved(), segment(0xE5, b"what")),
    "a filled-up marker": with_segments(saved(), b"\xff"),
}
REFUSED = {
    "half of it": saved()[: len(saved()) // 2],
    "the header alone": saved()[:600],
    "a short JFIF segment": with_segments(saved(), segment(0xE0, b"JFIF\0\1")),
    "a short ICC profile": with_segments(saved(), segment(0xE2, b"ICC_PROFILE\0\1")),
    "Photoshop's, cut": with_segments(saved(), segment(0xED, b"Photoshop 3.0\x008BIM\3\xed")),
    "no pixels": saved().replace(struct.pack(">HH", 260, 330), bytes(4)),
    "a table cut": with_segments(saved(), segment(0xDB, bytes(60))),
}


@pytest.mark.parametrize("data", ORDINARY.values(), ids=ORDINARY)
def test_ordinary_files_have_the_bits_of_the_public_way(data: bytes) -> None:
    assert jpeg.size_of_ordinary(data)
    with Image.open(io.BytesIO(data)) as opened:
        theirs = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(
            opened.convert("RGB")
        )
    assert np.array_equal(crop_of(TORCHVISION, data), np.asarray(theirs))


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS)
def test_other_files_go_the_public_way(data: bytes) -> None:
    assert jpeg.size_of_ordinary(data) is None
    assert np.array_equal(crop_of(TORCHVISION, data), public(data))


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_what_pillow_refuses_is_refused(data: bytes) -> None:
    with pytest.raises(BadImage):
        crop_of(TORCHVISION, data)


def test_an_image_of_several_scans_is_not_ordinary() -> None:
    """Their number is limited elsewhere."""
    scan = b"\xff\xda\0\x0c\3"
    assert jpeg.size_of_ordinary(saved().replace(scan, scan[:-1] + b"\1")) is None


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos", "nearest", "area"])
def test_every_filter(interpolation: str) -> None:
    recipe = Recipe(
        interpolation=interpolation, resize=180, size=160, channels="bgr", shift=(3, -2)
    )
    assert np.array_equal(crop_of(recipe, saved()), public(saved(), recipe))


@given(st.data())
def test_a_damaged_file_has_the_same_bits_or_takes_the_public_way(draw: st.DataObject) -> None:
    files = [*ORDINARY.values(), *OTHERS.values()]
    data = bytearray(draw.draw(st.sampled_from(files)))
    end = draw.draw(st.sampled_from([30, 700, len(data)]))
    for _ in range(draw.draw(st.integers(1, 3))):
        place, length = draw.draw(st.integers(2, min(end, len(data)))), draw.draw(st.integers(0, 3))
        data[place : place + length] = draw.draw(st.binary(max_size=4))
    size = jpeg.size_of_ordinary(bytes(data))
    if size and min(size) >= 224:
        crop = jpeg.crop_ordinary(bytes(data), size, size, 2, (0, 0), 224)
        if crop is not None:
            assert np.array_equal(
                crop,
                public(
                    bytes(data),
                    Recipe(
                        resize=None,
                        shift=(-round((size[0] - 224) / 2), -round((size[1] - 224) / 2)),
                    ),
                ),
            )


def test_memory_that_is_used_again_keeps_nothing() -> None:
    first, second = saved(), saved(pixels=COLOR[::-1, ::-1].copy())
    expected = [public(first), public(second)]
    for _ in range(3):
        assert np.array_equal(crop_of(TORCHVISION, first), expected[0])
        with pytest.raises(BadImage, match="truncated"):
            crop_of(TORCHVISION, second[: len(second) // 2])
        assert np.array_equal(crop_of(TORCHVISION, second), expected[1])


def test_threads_do_not_share_it() -> None:
    files = [saved(pixels=np.roll(COLOR, shift, 0)) for shift in range(8)]
    expected = [public(data) for data in files]
    with ThreadPoolExecutor(4) as pool:
        crops = list(pool.map(lambda data: crop_of(TORCHVISION, data), files * 8))
    assert all(np.array_equal(crop, expected[n % 8]) for n, crop in enumerate(crops))


def test_little_memory_is_kept() -> None:
    def kept() -> dict[Any, Any]:
        for width in range(300, 310):
            crop_of(TORCHVISION, saved(pixels=COLOR[:, : width - 60]))
        crop_of(TORCHVISION, saved(pixels=np.zeros((800, 800, 3), np.uint8)))
        return jpeg._kept.images

    with ThreadPoolExecutor(1) as pool:
        assert list(pool.submit(kept).result()) == [(width - 60, 260) for width in range(306, 310)]


def test_a_lack_of_memory_is_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(jpeg, "_packed", fail)
    monkeypatch.setattr(Image.Image, "crop", fail)
    with pytest.raises(BadImage, match="too much memory"):
        crop_of(TORCHVISION, saved())


@pytest.mark.parametrize("other", [object(), Image.core])
def test_another_pillow_goes_the_public_way(other: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "_pillow", other)
    if other is Image.core:  # its functions do something else
        monkeypatch.setattr(jpeg, "_packed", lambda *_: np.zeros((20, 20, 3), np.uint8))
    jpeg._is_same.cache_clear()
    try:
        assert not jpeg._is_same()
        assert np.array_equal(crop_of(TORCHVISION, saved()), public(saved()))
    finally:
        monkeypatch.undo()
        jpeg._is_same.cache_clear()
    assert jpeg._is_same()
