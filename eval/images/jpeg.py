"""The crop of an ordinary JPEG by Pillow's own decoder and resizer, without the Python around them.

For each file Pillow reads the header into lists that no crop needs, clears the memory that the
decoder then fills, and copies the crop twice: half of the time for which decoding and cropping hold
the interpreter's lock, which all threads of a process share. Here the same functions of Pillow's
are called with the same arguments.

*Ordinary* is a file of 8-bit color whose header has nothing but what `_ORDINARY` lists, and whose
first scan has all three colors: its pixels are decoded in one pass. For any other file, and
whenever this does not end with a complete image, the answer is None; the caller then goes Pillow's
public way, which says what is wrong. What is decoded here, the public way decodes to the same bits.
"""

from __future__ import annotations

import functools
import io
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_MARKER = 0xFF
_SCAN = 0xDA
_FRAMES = (0xC0, 0xC1)  # sequential; progressive ones take many passes
_FRAME_BYTES = 15  # of three colors
_TABLES = (0xC4, 0xDD)  # Huffman tables, restart interval: Pillow skips them
_QUANTIZATION, _QUANTIZATION_BYTES = 0xDB, 65  # a table of 8 bits
_COMMENT = 0xFE
# Applications' segments, by marker: what they start with, and how many bytes Pillow reads of it.
_EXIF, _PHOTOSHOP = b"Exif\0\0", b"Photoshop 3.0\0"
_ORDINARY = {
    0xE0: ((b"JFIF", 12),),
    0xE1: ((_EXIF, 0), (b"http://ns.adobe.com/xap/1.0/\0", 0)),
    0xE2: ((b"ICC_PROFILE\0", 14),),
    0xED: ((_PHOTOSHOP, 0),),
    0xEE: ((b"Adobe", 12),),
}

_KEPT_PIXELS = 1 << 19  # larger images get new memory each
_KEPT_IMAGES = 4  # sizes, for each thread

Size = tuple[int, int]  # width, height

_pillow: Any = Image.core  # type: ignore[attr-defined]  # its C functions


class _Kept(threading.local):
    """Memory to decode into, of a thread, by the size of the image."""

    def __init__(self) -> None:
        self.images: dict[Size, Any] = {}


_kept = _Kept()


def size_of_ordinary(data: bytes) -> Size | None:
    """Width and height in pixels if a file is an ordinary JPEG, by its header; else None."""
    if not data.startswith(b"\xff\xd8"):
        return None
    place = 2
    size: Size | None = None
    dpi, exif = False, False
    while place + 4 <= len(data) and data[place] == _MARKER:
        marker, length = data[place + 1], data[place + 2] << 8 | data[place + 3]
        start, place = place + 4, place + 2 + length
        if marker == _SCAN:
            # Without a resolution in the header, Pillow looks for one in the EXIF data.
            whole = size and data.startswith(b"\3", start) and (dpi or not exif)
            pixels = size[0] * size[1] if size and whole else 0
            return size if 0 < pixels <= (Image.MAX_IMAGE_PIXELS or 0) else None
        if length < 2 or place > len(data):
            return None
        if marker in _FRAMES:
            if size or place - start != _FRAME_BYTES or data[start] != 8 or data[start + 5] != 3:
                return None
            size = data[start + 3] << 8 | data[start + 4], data[start + 1] << 8 | data[start + 2]
        elif marker == _QUANTIZATION:
            tables = range(start, place, _QUANTIZATION_BYTES)
            if (place - start) % _QUANTIZATION_BYTES or any(data[each] > 15 for each in tables):
                return None
        elif marker in _ORDINARY:
            for begins, least in _ORDINARY[marker]:
                if data.startswith(begins, start, place) and place - start >= least:
                    break
            else:
                return None
            if begins == _PHOTOSHOP and data.endswith(b"8BIM", start, place - 2):
                return None  # Pillow would read on behind the segment's end
            exif |= begins == _EXIF
            dpi |= marker == 0xE0 and data[start + 7] in (1, 2)
        elif marker not in _TABLES and marker != _COMMENT:
            return None
    return None


def crop_ordinary(
    data: bytes, size: Size, resized: Size, resample: int, corner: tuple[int, int], side: int
) -> NDArray[np.uint8] | None:
    """The crop, uint8 (side, side, 3), of an ordinary JPEG; None if it is not intact.

    Args:
        data: the file.
        size: of its image, by `size_of_ordinary`.
        resized: what to resize it to.
        resample: Pillow's filter.
        corner: left and top of the crop, which lies within the resized image.
        side: of the crop, in pixels.
    """
    if not _is_same():
        return None
    try:
        picture = _decoded(data, size)
        if picture is None:
            return None
        if resized != size:
            picture = picture.resize(resized, resample, (0, 0, *size))
        return _packed(picture, *corner, side)
    except (OSError, ValueError, MemoryError):
        return None


def _decoded(data: bytes, size: Size) -> Any:
    """Pillow's memory of an image; None if the file is not intact."""
    kept = _kept.images
    picture = kept.pop(size, None)
    if picture is None:
        picture = _pillow.new("RGB", size)
    decoder = _pillow.jpeg_decoder("RGB", "RGB", "")
    try:
        decoder.setimage(picture, (0, 0, *size))
        read, error = decoder.decode(data)
    finally:
        decoder.cleanup()
    if read >= 0 or error < 0:
        return None
    if size[0] * size[1] <= _KEPT_PIXELS:
        if len(kept) >= _KEPT_IMAGES:
            del kept[next(iter(kept))]  # the one that was not used for longest
        kept[size] = picture
    return picture


def _packed(picture: Any, left: int, top: int, side: int) -> NDArray[np.uint8]:
    encoder = _pillow.raw_encoder("RGB", "RGB")
    encoder.setimage(picture, (left, top, left + side, top + side))
    _, _, packed = encoder.encode(3 * side * side)
    return np.frombuffer(packed, np.uint8).reshape(side, side, 3)


@functools.cache
def _is_same() -> bool:
    """Whether this Pillow has these functions, which are not public, and they do what they did."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 60, 3), np.uint8))
    file = io.BytesIO()
    picture.save(file, "JPEG")
    public = Image.open(file).resize((40, 30), Image.Resampling.BILINEAR).crop((5, 3, 25, 23))
    try:
        packed = _packed(
            _decoded(file.getvalue(), picture.size).resize((40, 30), 2, (0, 0, 60, 45)), 5, 3, 20
        )
        return np.array_equal(packed, np.asarray(public))
    except Exception:  # whatever another version answers, the public way remains
        return False
