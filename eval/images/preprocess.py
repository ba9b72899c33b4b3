"""From the bytes of an image file to the model's input, exactly as the named pipeline does it.

Two steps: `Preprocess.crop` gives the uint8 center crop of one image, `Preprocess.normalize` turns
a batch of crops into float32. A crop value has 256 possible normalized values per channel, so
normalization is a table that is computed once, in the pipeline's own float32 arithmetic: the
result has the bits of the original on every device.

Code that decodes many images runs inside `exact_opencv`.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, UnidentifiedImageError

RESIZE = 256
CROP = 224
LONGEST = 65_536  # pixels, of a side after the resize; 256 x 65,536 x 3 bytes are 50 MB
MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet, RGB
STD = np.array([0.229, 0.224, 0.225], np.float32)

Crop = NDArray[np.uint8]


class BadImage(Exception):
    """An image that cannot be fully decoded or resized; the message says why."""


class _OpenCV:
    """OpenCV's global settings while any `exact_opencv` is active."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active = 0
        self._before = (0, 0)

    def enter(self) -> None:
        with self._lock:
            if self._active == 0:
                logging = cv2.utils.logging
                self._before = cv2.getNumThreads(), logging.getLogLevel()
                cv2.setNumThreads(1)
                logging.setLogLevel(logging.LOG_LEVEL_SILENT)
            self._active += 1

    def leave(self) -> None:
        with self._lock:
            self._active -= 1
            if self._active == 0:
                threads, level = self._before
                cv2.setNumThreads(threads)
                cv2.utils.logging.setLogLevel(level)


_opencv = _OpenCV()


@contextmanager
def exact_opencv() -> Iterator[None]:
    """Limit OpenCV to one thread and silence its log; both are restored afterwards.

    One image is one task of one worker: more threads would only wait for each other. Images that
    cannot be decoded are reported with their paths; OpenCV's own messages say less. The settings
    belong to the process: of several evaluations at once, the last to end restores them.
    """
    _opencv.enter()
    try:
        yield
    finally:
        _opencv.leave()


@contextmanager
def bad_image_errors() -> Iterator[None]:
    """Turn what libraries raise for an image that they cannot decode or resize into `BadImage`."""
    try:
        yield
    except MemoryError as error:
        raise BadImage("decoding or resizing it needs too much memory") from error
    except cv2.error as error:
        raise BadImage(f"OpenCV: {error.err}") from error
    except UnidentifiedImageError as error:  # its message contains a memory address
        raise BadImage("not an image that Pillow knows (damaged at its start, or empty)") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise BadImage(str(error) or type(error).__name__) from error


def check_resized(size: tuple[int, int], resized: tuple[int, int]) -> None:
    """Refuse an image whose resized form would need gigabytes or minutes.

    Args:
        size: width and height of the image, in pixels.
        resized: the same, of what it would be resized to.

    Raises:
        BadImage: a side of it would be longer than `LONGEST`.
    """
    if max(resized) > LONGEST:
        before, after = (f"{width:,} x {height:,}" for width, height in (size, resized))
        raise BadImage(
            f"{before} pixels would be resized to {after}; the limit is {LONGEST:,} a side"
        )


@dataclass(frozen=True)
class Preprocess:
    """A named pipeline.

    Attributes:
        name: as on the command line.
        description: the whole protocol in one line, for reports.
        crop: bytes of an image file to its uint8 RGB crop (size, size, 3); raises `BadImage`.
        table: float32 (256, 3), the normalized value of each level in each channel.
        size: of a side of the crop, in pixels.
    """

    name: str
    description: str
    crop: Callable[[bytes], Crop]
    table: NDArray[np.float32] = field(repr=False)
    size: int = CROP

    def normalize(self, crops: Crop) -> NDArray[np.float32]:
        """uint8 crops (B, size, size, 3) to float32, the same shape."""
        rows = crops.reshape(-1, self.size, 3)
        return cv2.LUT(rows, self.table[np.newaxis]).reshape(crops.shape)  # type: ignore[return-value]


def open_rgb(data: bytes) -> Image.Image:
    """Decode with Pillow, as ``torchvision.datasets.folder.pil_loader`` does: no EXIF rotation.

    Raises:
        BadImage: Pillow cannot decode it.
    """
    with bad_image_errors():
        return Image.open(io.BytesIO(data)).convert("RGB")


def _decode_bgr(data: bytes) -> Crop:
    """Decode with OpenCV, as PaddleClas does: EXIF rotation applied, gray and CMYK made color."""
    with bad_image_errors():
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise BadImage("OpenCV cannot decode it (damaged, truncated or not an image)")
    return image  # type: ignore[return-value]


def crop_torchvision(data: bytes) -> Crop:
    """Resize(256), CenterCrop(224) of torchvision on a Pillow image: antialiased bilinear.

    The long side is truncated (``_compute_resized_output_size``) and the offsets are rounded half
    to even (``center_crop``), torchvision/transforms/functional.py.
    """
    image = open_rgb(data)
    width, height = image.size
    if width <= height:
        size = (RESIZE, int(RESIZE * height / width))
    else:
        size = (int(RESIZE * width / height), RESIZE)
    check_resized(image.size, size)
    left, top = (int(round((side - CROP) / 2.0)) for side in size)
    with bad_image_errors():
        if size != image.size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(image.crop((left, top, left + CROP, top + CROP)))


def crop_paddle(data: bytes) -> Crop:
    """ResizeImage(resize_short=256), CropImage(224) of PaddleClas: bilinear without antialias.

    Both sides are rounded half to even and the offsets are floored,
    ppcls/data/preprocess/ops/operators.py.
    """
    image = _decode_bgr(data)
    height, width = image.shape[:2]
    percent = float(RESIZE) / min(width, height)
    size = (int(round(width * percent)), int(round(height * percent)))
    check_resized((width, height), size)
    with bad_image_errors():
        return _crop_to_rgb(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR))


def crop_squash(data: bytes) -> Crop:
    """256x256 whatever the aspect, then the center: what the Vast build of this model does."""
    image = _decode_bgr(data)
    with bad_image_errors():
        return _crop_to_rgb(cv2.resize(image, (RESIZE, RESIZE), interpolation=cv2.INTER_LINEAR))


def _crop_to_rgb(image: cv2.typing.MatLike) -> Crop:
    """The floored center of a BGR image, as RGB."""
    top, left = ((side - CROP) // 2 for side in image.shape[:2])
    return image[top : top + CROP, left : left + CROP, ::-1]  # type: ignore[return-value]


def _levels() -> NDArray[np.float32]:
    return np.arange(256, dtype=np.float32)[:, np.newaxis]


def torchvision_table(mean: ArrayLike = MEAN, std: ArrayLike = STD) -> NDArray[np.float32]:
    """ToTensor divides by 255; Normalize subtracts and divides. float32 (256, 3)."""
    levels = _levels() / np.float32(255)
    by_channel = [np.asarray(values, np.float32) for values in (mean, std)]
    table: NDArray[np.float32] = (levels - by_channel[0]) / by_channel[1]
    return table


def _paddle_table() -> NDArray[np.float32]:
    """NormalizeImage multiplies with float32(1/255) instead."""
    return (_levels() * np.float32(1.0 / 255.0) - MEAN) / STD


PREPROCESS: dict[str, Preprocess] = {
    row.name: row
    for row in (
        Preprocess(
            "torchvision",
            "PIL decode; Resize(256, bilinear, antialias); CenterCrop(224); /255; mean/std",
            crop_torchvision,
            torchvision_table(),
        ),
        Preprocess(
            "paddle",
            "cv2 decode, EXIF applied; short side 256, INTER_LINEAR; crop 224; *1/255; mean/std",
            crop_paddle,
            _paddle_table(),
        ),
        Preprocess(
            "squash",
            "cv2 decode, EXIF applied; 256x256, INTER_LINEAR; crop 224; *1/255; mean/std",
            crop_squash,
            _paddle_table(),
        ),
    )
}
