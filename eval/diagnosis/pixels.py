"""How an image file becomes a crop, as a recipe whose single steps can be changed.

The pipelines of `eval.images.preprocess` are functions; here the same steps are written as data, so
that a diagnosis can change one of them. `recognize` finds the recipe of a pipeline by what it makes
of real images, which works for any pipeline, a library's own included.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from eval.images.preprocess import CROP, BadImage, Crop, open_rgb

SHORT = 256  # the side before the crop, for a crop of 224
SIDES = (224, 232, 235, 236, 248, 256, 257, 288)  # that models were trained or tested with
KERNELS = ("bilinear", "bicubic", "lanczos", "nearest")
TENSOR_KERNELS = ("bilinear", "bicubic", "nearest")  # that torchvision has for tensors

_ORIENTATION = 0x0112  # the EXIF tag
_PILLOW = {name: getattr(Image.Resampling, name.upper()) for name in KERNELS}
_OPENCV = {
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
    "nearest": cv2.INTER_NEAREST,
    "area": cv2.INTER_AREA,
}
_ROUND: dict[str, Callable[[float], int]] = {
    "rounded": round,  # half to even, as Python and numpy do
    "floored": math.floor,
    "ceiled": math.ceil,
}


@dataclass(frozen=True)
class Recipe:
    """The steps from an image file to a crop. The defaults are torchvision's pipeline.

    Attributes:
        decoder: ``pillow`` or ``opencv``.
        exif: whether an image is turned as its EXIF tag says.
        ink: what is made of a CMYK image: ``standard``, ``inverted`` or ``no-black``.
        resizer: ``pillow`` (antialiased), ``opencv`` or ``tensor`` (torchvision's on a tensor,
            without antialias).
        kernel: one of `KERNELS`; ``area`` with OpenCV.
        short: length of the shorter side after resizing.
        squash: resize to a square, whatever the aspect.
        long_side: ``truncated`` or ``rounded`` to a whole number.
        offset: ``rounded``, ``floored`` or ``ceiled``: the crop's place, where it is half a pixel.
        shift: pixels to the right and down, from there.
        is_reversed: whether the channels come as blue, green, red.
        size: of a side of the crop.
        is_exact: whether a pipeline does exactly this; a recognized one may be close to it only.
    """

    decoder: str = "pillow"
    exif: bool = False
    ink: str = "standard"
    resizer: str = "pillow"
    kernel: str = "bilinear"
    short: int = SHORT
    squash: bool = False
    long_side: str = "truncated"
    offset: str = "rounded"
    shift: tuple[int, int] = (0, 0)
    is_reversed: bool = False
    size: int = CROP
    is_exact: bool = True

    @property
    def words(self) -> str:
        """For a person."""
        shape = f"{self.short} x {self.short}" if self.squash else f"short side {self.short}"
        antialias = "antialiased " if self.resizer == "pillow" else ""
        turned = ", EXIF applied" if self.exif else ""
        close = "" if self.is_exact else "close to: "
        return (
            f"{close}{self.decoder} decode{turned}; {shape}, {antialias}{self.kernel} by "
            f"{self.resizer}; crop {self.size}"
        )


TORCHVISION = Recipe()
OPENCV = Recipe(
    decoder="opencv", exif=True, resizer="opencv", long_side="rounded", offset="floored"
)
SQUASH = replace(OPENCV, squash=True)


def scaled(side: int, size: int) -> int:
    """A side that is meant for a crop of 224, for a crop of `size`."""
    return side * size // CROP


class Kitchen:
    """Makes the crops of one image by several recipes; steps that they share are taken once.

    Args:
        data: bytes of the image file.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._made: dict[Hashable, Any] = {}

    def crop(self, recipe: Recipe) -> Crop:
        """The uint8 crop (size, size, 3).

        Raises:
            BadImage: the image cannot be decoded.
        """
        decoding = (recipe.decoder, recipe.exif, recipe.ink)
        image = self._once(("decoded", *decoding), lambda: _decode(self._data, *decoding))
        resizing = (recipe.resizer, recipe.kernel, *_target(image.shape[:2], recipe))
        resized = self._once(("resized", *decoding, *resizing), lambda: _resize(image, *resizing))
        top, left = (
            _ROUND[recipe.offset]((side - recipe.size) / 2) + shift
            for side, shift in zip(resized.shape[:2], reversed(recipe.shift), strict=True)
        )
        crop = _cut(resized, top, left, recipe.size)
        return crop[:, :, ::-1] if recipe.is_reversed else crop

    def _once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _cut(image: Crop, top: int, left: int, size: int) -> Crop:
    """A square of an image; what lies outside of it is black, as torchvision pads it."""
    height, width = image.shape[:2]
    above, before = max(0, -top), max(0, -left)
    below, behind = max(0, top + size - height), max(0, left + size - width)
    if above or below or before or behind:
        image = np.pad(image, [(above, below), (before, behind), (0, 0)])
        top, left = top + above, left + before
    return image[top : top + size, left : left + size]


def _decode(data: bytes, decoder: str, exif: bool, ink: str) -> Crop:
    """RGB uint8 (H, W, 3)."""
    if decoder == "opencv":
        flags = cv2.IMREAD_COLOR | (0 if exif else cv2.IMREAD_IGNORE_ORIENTATION)
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
        except cv2.error as error:
            raise BadImage(f"OpenCV: {error.err}") from error
        if image is None:
            raise BadImage("OpenCV cannot decode it (damaged, truncated or no image)")
        return np.ascontiguousarray(image[:, :, ::-1], np.uint8)
    if not exif and ink == "standard":
        return np.asarray(open_rgb(data))
    open_rgb(data)  # what is wrong with the file is said by the one that knows
    with Image.open(io.BytesIO(data)) as opened:
        picture: Image.Image = opened
        if picture.mode == "CMYK" and ink != "standard":
            picture = _inked(picture, ink)
            picture.info = dict(opened.info)
        if exif:
            picture = ImageOps.exif_transpose(picture)
        return np.asarray(picture.convert("RGB"))


def _inked(picture: Image.Image, ink: str) -> Image.Image:
    """A CMYK image as a careless reader takes it: the other way round, or without black."""
    values = np.asarray(picture)
    changed = 255 - values if ink == "inverted" else values * np.array([1, 1, 1, 0], np.uint8)
    return Image.frombytes("CMYK", picture.size, changed.tobytes())


def _target(shape: tuple[int, int], recipe: Recipe) -> tuple[int, int]:
    """(height, width) after resizing."""
    height, width = shape
    if recipe.squash:
        return recipe.short, recipe.short
    if recipe.long_side == "rounded":
        percent = float(recipe.short) / min(height, width)
        return round(height * percent), round(width * percent)
    if width <= height:
        return int(recipe.short * height / width), recipe.short
    return recipe.short, int(recipe.short * width / height)


def _resize(image: Crop, resizer: str, kernel: str, height: int, width: int) -> Crop:
    """uint8 (height, width, 3)."""
    if image.shape[:2] == (height, width):
        return image
    if resizer == "pillow":
        return np.asarray(Image.fromarray(image).resize((width, height), _PILLOW[kernel]))
    if resizer == "opencv":
        return cv2.resize(image, (width, height), interpolation=_OPENCV[kernel])  # type: ignore[return-value]
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transforms

    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
    mode = InterpolationMode(kernel)
    resized = transforms.resize(tensor, [height, width], mode, antialias=False)
    pixels: NDArray[np.uint8] = resized.permute(1, 2, 0).numpy()
    return pixels


def recognize(crop: Callable[[bytes], Crop], images: Sequence[bytes], size: int = CROP) -> Recipe:
    """The recipe of a pipeline, by what it makes of images.

    Args:
        crop: the pipeline.
        images: some image files; the more differ in shape, the surer it is.
        size: of a side of its crop.

    Returns:
        The first recipe that gives the same crop of every image. If none does, the one that comes
        closest, marked as not exact.
    """
    wanted = [crop(data) for data in images]
    kitchens = [Kitchen(data) for data in images]

    def distance(recipe: Recipe) -> float:
        """Mean difference of a level; infinite as soon as one image shows that it is another."""
        total = 0.0
        for kitchen, pixels in zip(kitchens[:_SURE], wanted[:_SURE], strict=True):
            made = kitchen.crop(recipe).astype(np.int16)
            total += float(np.abs(made - pixels.astype(np.int16)).mean())
        return total / len(kitchens[:_SURE])

    def is_same(recipe: Recipe) -> bool:
        return all(
            np.array_equal(kitchen.crop(recipe), pixels)
            for kitchen, pixels in zip(kitchens, wanted, strict=True)
        )

    usual = list(_usual(size))
    for recipe in usual:
        if is_same(recipe):
            return recipe
    closest = sorted(usual, key=distance)[:_CLOSE]
    for near in dict.fromkeys([*closest, *usual[:_CLOSE]]):
        for recipe in _variations(near):
            if is_same(recipe):
                return recipe
    return replace(closest[0], is_exact=False)


_SURE = 3  # images that tell how close a recipe comes
_CLOSE = 4  # recipes that are close enough to look for a single step that differs


def _usual(size: int) -> Iterator[Recipe]:
    """Pipelines that people use, the most usual first."""
    short = scaled(SHORT, size)
    bases = [replace(base, size=size, short=short) for base in (TORCHVISION, OPENCV, SQUASH)]
    yield from bases
    sides = list(dict.fromkeys([short, *(scaled(side, size) for side in SIDES)]))
    for kernel in KERNELS:
        for side in sides:
            yield replace(bases[0], kernel=kernel, short=side)
    yield from (replace(bases[0], kernel=kernel, squash=True) for kernel in KERNELS)
    yield from (replace(bases[0], kernel=k, short=size, squash=True) for k in KERNELS)
    yield replace(bases[0], resizer="tensor")
    yield replace(bases[1], decoder="pillow", exif=False)
    for base in bases[1:]:
        yield from (replace(base, kernel=kernel) for kernel in _OPENCV if kernel != base.kernel)
        yield from (replace(base, short=side) for side in sides if side != short)


def _variations(recipe: Recipe) -> Iterator[Recipe]:
    """One step done in another way."""
    yield replace(recipe, is_reversed=True)
    yield replace(recipe, exif=not recipe.exif)
    for offset in _ROUND:
        yield replace(recipe, offset=offset)
    for long_side in ("truncated", "rounded"):
        yield replace(recipe, long_side=long_side)
    for shift in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        yield replace(recipe, shift=shift)
    for ink in ("inverted", "no-black"):
        yield replace(recipe, ink=ink)
