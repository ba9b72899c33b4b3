"""From the bytes of an image file to the model's input, exactly as a recipe says.

Two steps: `Preprocess.crop` gives the uint8 crop of one image, `Preprocess.normalize` turns a batch
of crops into float32. A crop value has 256 possible normalized values per channel, so normalization
is a table that is computed once, in the library's own float32 arithmetic: the result has the bits
of the original on every device.

Code that decodes many images runs inside `eval.images.decoders.exact_decoders`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from eval.images.jpeg import crop_ordinary, size_of_ordinary
from eval.recipe import NAMED, Recipe

CROP = 224
MOST_SCANS = 100  # of a JPEG: progressive ones have about ten; each one takes a pass over the image
LONGEST = 65_536  # pixels, of a side after the resize; 256 x 65,536 x 3 bytes are 50 MB

Crop = NDArray[np.uint8]
Table = NDArray[np.float32]  # (256, 3): the value of each level in each channel
Picture = Image.Image | Crop  # RGB of Pillow's, or an array with OpenCV's blue, green, red


_Bomb = Image.DecompressionBombError


class BadImage(Exception):
    """An image that cannot be fully decoded or resized; the message says why."""


class bad_image_errors:  # noqa: N801  # a context, of which each image enters several
    """Turn what libraries raise for an image that they cannot decode or resize into `BadImage`."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: object, error: BaseException | None, traceback: object
    ) -> Literal[False]:
        match error:
            case None:
                return False
            case MemoryError():
                reason = "decoding or resizing it needs too much memory"
            case cv2.error():
                reason = f"OpenCV: {error.err}"
            case UnidentifiedImageError():  # its message contains a memory address
                reason = "not an image that Pillow knows (damaged at its start, or empty)"
            case OSError() | SyntaxError() | ValueError() | EOFError() | _Bomb():
                reason = str(error) or type(error).__name__
            case _:
                return False
        raise BadImage(reason) from error


def check_scans(data: bytes) -> None:
    """Refuse a JPEG that would take minutes to decode.

    A marker occurs in compressed data as itself only: what is counted are scans, and perhaps those
    of a thumbnail.

    Raises:
        BadImage: it has more than `MOST_SCANS`.
    """
    if not data.startswith(b"\xff\xd8"):
        return
    # As numbers of two bytes: `bytes.count` takes ten times as long, with the interpreter's lock.
    even, odd = (np.frombuffer(data, "<u2", (len(data) - start) // 2, start) for start in (0, 1))
    scans = sum(np.count_nonzero(pairs == 0xDAFF) for pairs in (even, odd))
    if scans > MOST_SCANS:
        raise BadImage(f"a JPEG of {scans:,} scans; the limit is {MOST_SCANS}")


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
    """What makes the input of a model.

    Attributes:
        name: as in the reports: the text of its recipe, or ``own`` where a library's transform does
            what no recipe can say.
        description: the whole protocol in one line, for reports.
        crop: bytes of an image file to its uint8 crop (size, size, 3); raises `BadImage`.
        table: float32 (256, 3), the normalized value of each level in each channel.
        size: of a side of the crop, in pixels.
        recipe: what it does; None if no recipe says that.
    """

    name: str
    description: str
    crop: Callable[[bytes], Crop]
    table: Table = field(repr=False)
    size: int = CROP
    recipe: Recipe | None = None

    def normalize(self, crops: Crop) -> NDArray[np.float32]:
        """uint8 crops (B, size, size, 3) to float32, the same shape."""
        rows = crops.reshape(-1, self.size, 3)
        return cv2.LUT(rows, self.table[np.newaxis]).reshape(crops.shape)  # type: ignore[return-value]

    @classmethod
    def of(cls, recipe: Recipe) -> Preprocess:
        """What follows a recipe, bit for bit as the library that it is from."""
        crop, table = partial(crop_of, recipe), table_of(recipe)
        return cls(recipe.text, recipe.words, crop, table, recipe.size, recipe)


def table_of(recipe: Recipe) -> Table:
    """Normalized levels, in the order of operations that all libraries share."""
    levels = np.arange(256, dtype=np.float32)[:, np.newaxis]
    scale = np.float32(recipe.scale)
    # ToTensor of torchvision divides by 255; NormalizeImage of PaddleClas multiplies with 1 / 255.
    scaled = levels / scale if recipe.scale >= 1 else levels * scale
    mean, std = (np.asarray(values, np.float32) for values in (recipe.mean, recipe.std))
    table: Table = (scaled - mean) / std
    return table


def crop_of(recipe: Recipe, data: bytes) -> Crop:
    """The uint8 crop (size, size, 3) of an image file.

    Raises:
        BadImage: the image cannot be decoded or resized.
    """
    crop = _crop_of_ordinary(recipe, data)
    return cut(resized(decoded(data, recipe), recipe), recipe) if crop is None else crop


def _crop_of_ordinary(recipe: Recipe, data: bytes) -> Crop | None:
    """The same in fewer steps, where Pillow does all of it and nothing is to be padded; or None."""
    if recipe.decode != "pillow" or recipe.resizer != "pillow" or recipe.exif:
        return None
    size = size_of_ordinary(data)
    if size is None:
        return None
    target = target_size(size, recipe)
    left, top = _corner(target, recipe)
    if min(left, top, target[0] - left - recipe.size, target[1] - top - recipe.size) < 0:
        return None
    if max(target) > LONGEST:
        return None
    crop = crop_ordinary(
        data, size, target, _PILLOW[recipe.interpolation], (left, top), recipe.size
    )
    return crop[:, :, ::-1] if crop is not None and recipe.channels == "bgr" else crop


# --- Decode ---------------------------------------------------------------------------------------


def decoded(data: bytes, recipe: Recipe) -> Picture:
    """An image file as a picture.

    Raises:
        BadImage: the decoder cannot decode it.
    """
    if recipe.decode == "opencv":
        return _decode_bgr(data, recipe.exif)
    picture = open_rgb(data)  # what is wrong with the file is said by this
    if not recipe.exif and recipe.cmyk == "standard":
        return picture
    with bad_image_errors(), Image.open(io.BytesIO(data)) as opened:
        found: Image.Image = opened
        if opened.mode == "CMYK" and recipe.cmyk != "standard":
            found = _changed_cmyk(opened, recipe.cmyk)
            found.info = dict(opened.info)
        return (ImageOps.exif_transpose(found) if recipe.exif else found).convert("RGB")


def open_rgb(data: bytes) -> Image.Image:
    """Decode with Pillow, as ``torchvision.datasets.folder.pil_loader`` does: no EXIF rotation.

    Raises:
        BadImage: Pillow cannot decode it.
    """
    check_scans(data)
    with bad_image_errors():
        opened: Image.Image = Image.open(io.BytesIO(data))
        opened.load()
        return opened if opened.mode == "RGB" else opened.convert("RGB")  # which would only copy it


def _decode_bgr(data: bytes, exif: bool) -> Crop:
    """Decode with OpenCV, as PaddleClas does: gray and CMYK made color."""
    flags = cv2.IMREAD_COLOR | (0 if exif else cv2.IMREAD_IGNORE_ORIENTATION)
    check_scans(data)
    with bad_image_errors():
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if image is None:
        raise BadImage("OpenCV cannot decode it (damaged, truncated or not an image)")
    return image  # type: ignore[return-value]


def _changed_cmyk(picture: Image.Image, cmyk: str) -> Image.Image:
    """A CMYK image as a careless reader takes it: the other way round, or without black."""
    values = np.asarray(picture)
    changed = 255 - values if cmyk == "inverted" else values * np.array([1, 1, 1, 0], np.uint8)
    return Image.frombytes("CMYK", picture.size, changed.tobytes())


# --- Resize ---------------------------------------------------------------------------------------

_PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
    "area": Image.Resampling.BOX,
}
_OPENCV = {
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
    "nearest": cv2.INTER_NEAREST,
    "area": cv2.INTER_AREA,
}


def resized(picture: Picture, recipe: Recipe) -> Picture:
    """The picture in the size that the recipe resizes it to.

    Raises:
        BadImage: see `check_resized`; or there is not enough memory.
    """
    size = size_of(picture)
    target = target_size(size, recipe)
    if target == size:
        return picture
    check_resized(size, target)
    with bad_image_errors():
        if recipe.resizer == "pillow":
            return _as_image(picture).resize(target, _PILLOW[recipe.interpolation])
        if recipe.resizer == "opencv":
            kernel = _OPENCV[recipe.interpolation]
            return cv2.resize(_as_array(picture), target, interpolation=kernel)  # type: ignore[return-value]
        return _resized_tensor(_as_array(picture), target, recipe)


def target_size(size: tuple[int, int], recipe: Recipe) -> tuple[int, int]:
    """Width and height after resizing, of those before.

    torchvision truncates the long side (``_compute_resized_output_size``), PaddleClas rounds both
    (ppcls/data/preprocess/ops/operators.py).
    """
    width, height = size
    short = recipe.resize
    if short is None:
        return size
    if recipe.square:
        return short, short
    if recipe.rounding == "rounded":
        percent = float(short) / min(width, height)
        return round(width * percent), round(height * percent)
    if width <= height:
        return short, int(short * height / width)
    return int(short * width / height), short


def _resized_tensor(image: Crop, target: tuple[int, int], recipe: Recipe) -> Crop:
    """``torchvision.transforms`` on a uint8 tensor."""
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transforms

    tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    mode = InterpolationMode(recipe.interpolation)
    made = transforms.resize(tensor, [target[1], target[0]], mode, antialias=recipe.antialias)
    pixels: Crop = made.permute(1, 2, 0).numpy()
    return pixels


def size_of(picture: Picture) -> tuple[int, int]:
    """Width and height."""
    if isinstance(picture, Image.Image):
        return picture.size
    return picture.shape[1], picture.shape[0]


def _as_image(picture: Picture) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    return Image.fromarray(np.ascontiguousarray(picture[:, :, ::-1]))


def _as_array(picture: Picture) -> Crop:
    if isinstance(picture, Image.Image):
        return np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])
    return picture


# --- Crop -----------------------------------------------------------------------------------------


def cut(picture: Picture, recipe: Recipe) -> Crop:
    """The crop, uint8 (size, size, 3); what lies outside of the picture is black."""
    size = recipe.size
    left, top = _corner(size_of(picture), recipe)
    with bad_image_errors():
        if isinstance(picture, Image.Image):
            data = picture.crop((left, top, left + size, top + size)).tobytes()
            crop = np.frombuffer(data, np.uint8).reshape(size, size, 3)
            return crop[:, :, ::-1] if recipe.channels == "bgr" else crop
        crop = _cut_array(picture, top, left, size)
        return crop if recipe.channels == "bgr" else crop[:, :, ::-1]


def _corner(size: tuple[int, int], recipe: Recipe) -> tuple[int, int]:
    """Left and top of the crop of a picture of this width and height; negative outside of it."""
    offset, side, (right, down) = _OFFSET[recipe.offset], recipe.size, recipe.shift
    return offset(size[0] - side) + right, offset(size[1] - side) + down


def _rounded(margin: int) -> int:
    """``center_crop`` of torchvision/transforms/functional.py; a smaller image is padded first."""
    return round(margin / 2) if margin >= 0 else -(-margin // 2)


_OFFSET: dict[str, Callable[[int], int]] = {
    "rounded": _rounded,
    "floored": lambda margin: margin // 2,
    "ceiled": lambda margin: math.ceil(margin / 2),
}


def _cut_array(image: Crop, top: int, left: int, size: int) -> Crop:
    height, width = image.shape[:2]
    above, before = max(0, -top), max(0, -left)
    below, behind = max(0, top + size - height), max(0, left + size - width)
    if above or below or before or behind:
        image = np.pad(image, [(above, below), (before, behind), (0, 0)])
        top, left = top + above, left + before
    return image[top : top + size, left : left + size]


PREPROCESS: dict[str, Preprocess] = {name: Preprocess.of(recipe) for name, recipe in NAMED.items()}
