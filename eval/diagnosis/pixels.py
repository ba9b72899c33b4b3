"""The pixels of many recipes from one image, and which recipe a library's transform is close to."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from eval.images.preprocess import (
    CROP,
    Crop,
    Picture,
    Preprocess,
    Table,
    cut,
    decoded,
    resized,
    size_of,
    table_of,
    target_size,
)
from eval.recipe import CMYK, INTERPOLATIONS, NAMED, OFFSETS, ROUNDINGS, Recipe, Triple

SHORT = 256  # the side before the crop, for a crop of 224
SIDES = (224, 232, 235, 236, 248, 256, 257, 288)  # that models were trained or tested with
KERNELS = ("bilinear", "bicubic", "lanczos", "nearest")

TORCHVISION, OPENCV, SQUASH = (NAMED[name] for name in ("torchvision", "paddle", "squash"))


def scaled(side: int, size: int) -> int:
    """A side that is meant for a crop of 224, for a crop of `size`."""
    return side * size // CROP


def in_library(recipe: Recipe, pipeline: Recipe) -> Recipe:
    """The same recipe as another library does it: all that is not a choice of the model's."""
    kernel, is_usual = recipe.interpolation, recipe.scale in (TORCHVISION.scale, OPENCV.scale)
    return replace(
        recipe,
        decode=pipeline.decode,
        exif=pipeline.exif,
        cmyk=pipeline.cmyk,
        rounding=pipeline.rounding,
        resizer=pipeline.resizer,
        interpolation=kernel if kernel in INTERPOLATIONS[pipeline.resizer] else KERNELS[0],
        antialias=pipeline.antialias,
        offset=pipeline.offset,
        scale=pipeline.scale if is_usual else recipe.scale,
    )


def in_other_library(recipe: Recipe) -> Recipe:
    """In OpenCV's in place of Pillow's, in Pillow's in place of every other."""
    return in_library(recipe, OPENCV if recipe.resizer == "pillow" else TORCHVISION)


class CropMaker:
    """Makes the crops of an image file by several recipes; steps that they share are taken once."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._made: dict[Hashable, Any] = {}

    def crop(self, recipe: Recipe) -> Crop:
        """The uint8 crop (size, size, 3)."""
        decoding = (recipe.decode, recipe.exif, recipe.cmyk)
        picture: Picture = self._once(decoding, lambda: decoded(self._data, recipe))
        target = target_size(size_of(picture), recipe)
        resizing = (recipe.resizer, recipe.interpolation, recipe.antialias, target)
        return cut(self._once((*decoding, *resizing), lambda: resized(picture, recipe)), recipe)

    def _once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def recognize(preprocess: Preprocess, images: Sequence[bytes]) -> tuple[Recipe, bool]:
    """The recipe of a preprocessing; where it has none, the one that comes closest.

    Args:
        preprocess: the preprocessing.
        images: some image files, of which the pixels are compared; the more differ in shape, the
            surer it is.

    Returns:
        The recipe, and whether it gives the same input for every one of the images.
    """
    if preprocess.recipe is not None:
        return preprocess.recipe, True
    found, is_same = _recognize_crop(preprocess, images)
    scale, mean, std = normalization_of(preprocess.table)
    recipe = replace(found, scale=scale, mean=mean, std=std)
    return recipe, is_same and np.array_equal(table_of(recipe), preprocess.table)


def normalization_of(table: Table) -> tuple[float, Triple, Triple]:
    """Scale, mean and std that come closest to a table of normalized levels."""
    for recipe in NAMED.values():
        if np.array_equal(table_of(recipe), table):
            return recipe.scale, recipe.mean, recipe.std
    first, last = table[0].astype(float), table[-1].astype(float)
    spread = np.where(last == first, 1.0, last - first)
    std, mean = 1 / np.abs(spread), -first / spread
    return 255.0, _triple(mean), _triple(std)


def _triple(values: Any) -> Triple:
    first, second, third = (float(value) for value in values)
    return first, second, third


def _recognize_crop(preprocess: Preprocess, images: Sequence[bytes]) -> tuple[Recipe, bool]:
    wanted = [preprocess.crop(data) for data in images]
    makers = [CropMaker(data) for data in images]

    def distance(recipe: Recipe) -> float:
        """Mean difference of a level, in the first images."""
        pairs = list(zip(makers, wanted, strict=True))[:_SURE]
        differences = (np.abs(m.crop(recipe).astype(np.int16) - crop).mean() for m, crop in pairs)
        return float(sum(differences)) / len(pairs)

    def is_same(recipe: Recipe) -> bool:
        """For every image; ends at the first that shows that it is another."""
        pairs = zip(makers, wanted, strict=True)
        return all(np.array_equal(maker.crop(recipe), crop) for maker, crop in pairs)

    usual = list(_usual(preprocess.size))
    for recipe in usual:
        if is_same(recipe):
            return recipe, True
    closest = sorted(usual, key=distance)[:_CLOSE]
    for near in dict.fromkeys([*closest, *usual[:_CLOSE]]):
        for recipe in _variations(near):
            if is_same(recipe):
                return recipe, True
    return closest[0], False


_SURE = 3  # images that tell how close a recipe comes
_CLOSE = 4  # recipes that are close enough to look for a single step that differs


def _usual(size: int) -> Iterator[Recipe]:
    """Pipelines that people use, the most usual first."""
    short = scaled(SHORT, size)
    bases = [replace(base, size=size, resize=short) for base in (TORCHVISION, OPENCV, SQUASH)]
    yield from bases
    sides = list(dict.fromkeys([short, *(scaled(side, size) for side in SIDES)]))
    for kernel in KERNELS:
        for side in sides:
            yield replace(bases[0], interpolation=kernel, resize=side)
    for side in (short, size):
        for kernel in KERNELS:
            yield replace(bases[0], interpolation=kernel, resize=side, square=True)
    yield replace(bases[0], resizer="tensor", antialias=False)
    yield replace(bases[1], decode="pillow", exif=False)
    for base in bases[1:]:
        for kernel in INTERPOLATIONS["opencv"]:
            yield replace(base, interpolation=kernel)
        yield from (replace(base, resize=side) for side in sides)


def _variations(recipe: Recipe) -> Iterator[Recipe]:
    """One step done in another way."""
    yield replace(recipe, channels="bgr")
    yield replace(recipe, exif=not recipe.exif)
    yield from (replace(recipe, offset=offset) for offset in OFFSETS)
    yield from (replace(recipe, rounding=rounding) for rounding in ROUNDINGS)
    for shift in ((1, 0), (0, 1), (-1, 0), (0, -1)):
        yield replace(recipe, shift=shift)
    yield from (replace(recipe, cmyk=cmyk) for cmyk in CMYK)
