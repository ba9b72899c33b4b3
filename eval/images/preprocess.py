"""From the bytes of an image file to the model's input, exactly as the named pipeline does it.

Two steps: `Preprocess.crop` gives the uint8 centre crop of one image, `Preprocess.normalize` turns
a batch of crops into float32. A crop value has 256 possible normalised values per channel, so
normalisation is a table that is computed once, in the pipeline's own float32 arithmetic: the
result has the bits of the original on every device.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, UnidentifiedImageError

RESIZE = 256
CROP = 224
MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet, RGB
STD = np.array([0.229, 0.224, 0.225], np.float32)

Crop = NDArray[np.uint8]

# One image is one task of a worker; threads inside of it would only wait for each other.
cv2.setNumThreads(1)
# What cannot be decoded is reported with its path; lines of OpenCV's own would only come between.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class BadImage(Exception):
    """The bytes cannot be decoded in full; the message says why."""


@dataclass(frozen=True)
class Preprocess:
    """A named pipeline.

    Attributes:
        name: as on the command line.
        description: the whole protocol in one line, for reports.
        crop: bytes of an image file to its uint8 RGB crop (size, size, 3); raises `BadImage`.
        table: float32 (256, 3), the normalised value of each level in each channel.
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
    """Decode with Pillow, as ``torchvision.datasets.folder.pil_loader`` does: no EXIF rotation."""
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except UnidentifiedImageError as error:  # its message has an address of memory, never the same
        raise BadImage("no image that Pillow knows (damaged from its start, or empty)") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise BadImage(str(error) or type(error).__name__) from error
    except Image.DecompressionBombError as error:
        raise BadImage(str(error)) from error


def _decode_bgr(data: bytes) -> Crop:
    """Decode with OpenCV, as PaddleClas does: EXIF rotation applied, grey and CMYK made colour."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error as error:
        raise BadImage(f"OpenCV: {error.err}") from error
    if image is None:
        raise BadImage("OpenCV cannot decode it (damaged, truncated or no image)")
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
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (int(round((side - CROP) / 2.0)) for side in size)
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
    return _crop_to_rgb(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR))


def crop_squash(data: bytes) -> Crop:
    """256x256 whatever the aspect, then the centre: what the Vast build of this model does."""
    image = _decode_bgr(data)
    return _crop_to_rgb(cv2.resize(image, (RESIZE, RESIZE), interpolation=cv2.INTER_LINEAR))


def _crop_to_rgb(image: cv2.typing.MatLike) -> Crop:
    """The floored centre of a BGR image, as RGB."""
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
