"""Recipes from files: our TOML, Hugging Face's ``preprocessor_config.json``, PaddleClas's YAML.

A file says what its program does, so whatever a recipe cannot say is refused by name. What a file
leaves out is as in its program: Hugging Face's processors get images from Pillow, not turned by
EXIF, PaddleClas reads them with OpenCV, which turns them.

Hugging Face has its processors once with Pillow and once, as ``...Fast``, on tensors, which rounds
levels otherwise. Both are read as Pillow's.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from eval.errors import UsageError
from eval.recipe import LARGEST_CROP, LARGEST_RESIZE, NAMED, Recipe, Triple, changed, parse
from eval.text import short

LARGEST_FILE = 1 << 20  # bytes
_NOTHING: tuple[Triple, Triple] = (NAMED["raw"].mean, NAMED["raw"].std)


class Unreadable(Exception):
    """A value that no recipe can say; the message names it."""


def recipe_of(asked: str | Path, own: Recipe | None = None, where: str = "--preprocess") -> Recipe:
    """The recipe that an option asks for: by its text, or by a file.

    Args:
        asked: a text, see `eval.recipe.parse`, or a path that ends as one of `READERS`.
        own: see `eval.recipe.parse`.
        where: the option, for messages.
    """
    path = Path(asked)
    if path.suffix.lower() not in READERS:
        return parse(str(asked), own, where)
    said = f"{where} {path}"
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UsageError(f"{said} has more than {LARGEST_FILE:,} bytes.\nName a recipe's file.")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{said}: there is no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{said} cannot be read: {error}.") from error
    try:
        return READERS[path.suffix.lower()](text, said)
    except Unreadable as error:
        raise UsageError(
            f"{said}: {error}, which no recipe can say.\n"
            "Write the steps as NAME,key=value,... (docs/preprocessing.md)."
        ) from error
    except RecursionError:
        raise UsageError(f"{said} cannot be read: it is nested too deeply.") from None
    except ValueError as error:  # not JSON or TOML, or a side of 0
        raise UsageError(f"{said} cannot be read: {' '.join(str(error).split())}.") from error


# --- Our own --------------------------------------------------------------------------------------


def _from_toml(text: str, said: str) -> Recipe:
    """``recipe = "torchvision"`` and the keys of the text."""
    values = {key: _as_text(value) for key, value in tomllib.loads(text).items()}
    base = parse(values.pop("recipe", "torchvision"), where=f"{said}, recipe =")
    return changed(base, values, said)


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)


# --- Hugging Face ---------------------------------------------------------------------------------


class _Processor(NamedTuple):
    """What a class of Hugging Face does where its file does not say.

    Attributes:
        resample: Pillow's number.
        square: whether a single number is both sides, not the shorter one.
        crops: whether it crops.
        normalizes: whether it subtracts a mean.
    """

    resample: int
    square: bool
    crops: bool
    normalizes: bool = True


_PROCESSORS = {
    "ViT": _Processor(2, square=True, crops=False),
    "DeiT": _Processor(3, square=True, crops=True),
    "Beit": _Processor(3, square=True, crops=False),
    "Pvt": _Processor(3, square=True, crops=False),
    "Siglip": _Processor(3, square=True, crops=False),
    "CLIP": _Processor(3, square=False, crops=True),
    "Bit": _Processor(3, square=False, crops=True),
    "MobileNetV1": _Processor(2, square=False, crops=True),
    "MobileNetV2": _Processor(2, square=False, crops=True),
    "MobileViT": _Processor(3, square=False, crops=True, normalizes=False),
    "ConvNext": _Processor(3, square=False, crops=False),  # and see `_convnext`
}
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "area"}
_SILENT = frozenset(  # of keys: they do not concern the pixels of an RGB image
    {"image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb"}
    | {"data_format", "input_data_format", "return_tensors", "device", "disable_grouping"}
    | {"default_to_square", "_valid_processor_keys"}
)
_WARPED = 384  # pixels: from here on, ConvNeXT resizes to a square and does not crop


def _from_hugging_face(text: str, said: str) -> Recipe:  # noqa: ARG001
    config = json.loads(text)
    if not isinstance(config, dict):
        raise ValueError("not a JSON object")
    name = config.get("image_processor_type", config.get("feature_extractor_type"))
    found = re.fullmatch(r"(\w+?)(ImageProcessor|FeatureExtractor)(Fast|Pil)?", str(name))
    processor = _PROCESSORS.get(found[1]) if found else None
    if found is None or processor is None:
        raise Unreadable(f"image_processor_type is {name}")
    left = dict(config)
    recipe = _resized_as(left, processor, is_convnext=found[1] == "ConvNext")
    recipe = _normalized_as(left, recipe, processor)
    if left.pop("do_flip_channel_order", found[1] == "MobileViT"):
        recipe = replace(recipe, channels="bgr")
    for key, value in left.items():
        if key not in _SILENT and value not in (None, False, [], {}):
            raise Unreadable(f"it has {key} = {short(value)}")
    return recipe


def _resized_as(left: dict[str, Any], processor: _Processor, *, is_convnext: bool) -> Recipe:
    recipe = replace(NAMED["torchvision"], offset="floored", resize=None)
    size, percent = left.pop("size", None), left.pop("crop_pct", None)
    resample = left.pop("resample", processor.resample)
    crops, crop = left.pop("do_center_crop", processor.crops), left.pop("crop_size", None)
    if left.pop("do_resize", True):
        if resample not in _RESAMPLE or isinstance(resample, bool):
            raise Unreadable(f"resample = {short(resample)}")
        side, is_square = _size(size, processor.square)
        recipe = replace(recipe, resize=side, square=is_square, interpolation=_RESAMPLE[resample])
        if is_convnext:
            return _convnext(recipe, side, 224 / 256 if percent is None else percent)
    if percent is not None:
        raise Unreadable(f"it has crop_pct = {short(percent)}")
    if crops:
        return replace(recipe, size=_size(crop, True)[0])
    return _uncropped(recipe)


def _convnext(recipe: Recipe, side: int, percent: Any) -> Recipe:
    if side >= _WARPED:
        return replace(recipe, square=True, size=_whole(side, LARGEST_CROP))
    return replace(recipe, square=False, resize=int(side / _number(percent)), size=side)


def _normalized_as(left: dict[str, Any], recipe: Recipe, processor: _Processor) -> Recipe:
    factor = left.pop("rescale_factor", 1 / 255)
    scale, (mean, std) = 1.0, _NOTHING
    if left.pop("do_rescale", True):  # in float64: the nearest float32 of level / scale
        scale = round(2 / _number(factor)) / 2
        if scale < 1 or abs(1 / scale - _number(factor)) > 1e-9:
            raise Unreadable(f"it has rescale_factor = {short(factor)}")
    given = left.pop("image_mean", None), left.pop("image_std", None)
    if left.pop("do_normalize", processor.normalizes):
        mean, std = (_three(values, "image_mean and image_std") for values in given)
    return replace(recipe, scale=scale, mean=mean, std=std)


def _size(value: Any, square: bool) -> tuple[int, bool]:
    """A side, and whether it is of a square."""
    if isinstance(value, Mapping):
        sides = {key: side for key, side in value.items() if side is not None}
        if sides.keys() == {"shortest_edge"}:
            return _whole(sides["shortest_edge"], LARGEST_RESIZE), False
        if sides.keys() == {"height", "width"} and sides["height"] == sides["width"]:
            return _whole(sides["height"], LARGEST_RESIZE), True
        raise Unreadable(f"it has the size {short(value)}")
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        return _whole(value[0], LARGEST_RESIZE), True
    return _whole(value, LARGEST_RESIZE), square


# --- PaddleClas -----------------------------------------------------------------------------------


def _from_paddle(text: str, said: str) -> Recipe:  # noqa: ARG001
    import yaml

    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(error) from error
    steps = config.get("PreProcess") if isinstance(config, dict) else None
    if isinstance(steps, dict):
        steps = steps.get("transform_ops")
    if not isinstance(steps, list) or not steps:
        raise ValueError("it has no PreProcess: transform_ops")
    recipe = replace(NAMED["paddle"], resize=None, scale=1.0, mean=_NOTHING[0], std=_NOTHING[1])
    place = -1
    for step in steps:
        if not isinstance(step, dict) or len(step) != 1:
            raise ValueError(f"not a step: {short(step)}")
        ((name, arguments),) = step.items()
        order = [*_PADDLE].index(name) if name in _PADDLE else -1
        if order <= place:
            raise Unreadable(f"it has {name}" + (" after a later step" if order >= 0 else ""))
        place, left = order, dict(arguments or {})
        recipe = _PADDLE[name](recipe, left)
        for key, value in left.items():
            raise Unreadable(f"its {name} has {key} = {short(value)}")
    return recipe if any("CropImage" in step for step in steps) else _uncropped(recipe)


def _decode(recipe: Recipe, left: dict[str, Any]) -> Recipe:
    left.pop("to_np", None)
    if left.pop("channel_first", False):
        raise Unreadable("its DecodeImage has channel_first")
    if left.pop("backend", "cv2") != "cv2":
        raise Unreadable("its DecodeImage has a backend other than cv2")
    return recipe if left.pop("to_rgb", True) else replace(recipe, channels="bgr")


def _resize(recipe: Recipe, left: dict[str, Any]) -> Recipe:
    short, size = left.pop("resize_short", None), left.pop("size", None)
    left.pop("return_numpy", None)
    backend = str(left.pop("backend", "cv2")).lower()
    kernel = left.pop("interpolation", None)
    if kernel is None and backend == "pil":  # bilinear in deploy, Pillow's bicubic in ppcls
        raise Unreadable("its ResizeImage has backend pil without interpolation")
    kernel = "bilinear" if kernel is None else str(kernel).lower()
    resizer = {"cv2": "opencv", "pil": "pillow"}.get(backend)
    kernels = {"opencv": "area", "pillow": "box"}
    known = ("nearest", "bilinear", "bicubic", "lanczos")
    if resizer is None or kernel not in (*known, kernels[resizer]):
        raise Unreadable(f"its ResizeImage has interpolation {kernel} of {backend}")
    side, square = (_whole(short, LARGEST_RESIZE), False) if short else _size(size, True)
    kernel = "area" if kernel == "box" else kernel
    return replace(recipe, resize=side, square=square, resizer=resizer, interpolation=kernel)


def _crop(recipe: Recipe, left: dict[str, Any]) -> Recipe:
    return replace(recipe, size=_whole(_size(left.pop("size", None), True)[0], LARGEST_CROP))


def _normalize(recipe: Recipe, left: dict[str, Any]) -> Recipe:
    if left.pop("output_fp16", False):
        raise Unreadable("its NormalizeImage has output_fp16")
    if left.pop("channel_num", 3) != 3:
        raise Unreadable("its NormalizeImage has channel_num other than 3")
    left.pop("order", None)  # of the axes: the arithmetic is the same
    scale, mean, std = (left.pop(key, None) for key in ("scale", "mean", "std"))
    recipe = replace(
        recipe,
        scale=1 / 255 if scale is None else _number(scale),
        mean=NAMED["paddle"].mean if mean is None else _three(mean, "mean"),
        std=NAMED["paddle"].std if std is None else _three(std, "std"),
    )
    if recipe.scale > 1:
        raise Unreadable(f"its NormalizeImage has scale = {short(scale)}")
    return recipe


def _as_it_is(recipe: Recipe, left: dict[str, Any]) -> Recipe:
    left.clear()
    return recipe


# In their order.
_PADDLE: Mapping[str, Callable[[Recipe, dict[str, Any]], Recipe]] = {
    "DecodeImage": _decode,
    "ResizeImage": _resize,
    "CropImage": _crop,
    "NormalizeImage": _normalize,
    "ToCHWImage": _as_it_is,
}


# --- Values ---------------------------------------------------------------------------------------


def _uncropped(recipe: Recipe) -> Recipe:
    if not recipe.square or recipe.resize is None:
        raise Unreadable("images keep their aspect and are not cropped")
    return replace(recipe, size=_whole(recipe.resize, LARGEST_CROP))


def _whole(value: Any, largest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise ValueError(f"a side is {short(value)}, not 1 to {largest} pixels")
    return value


def _number(value: Any) -> float:
    """A number, or PaddleClas's text of one: ``1.0/255.0``."""
    top, slash, bottom = str(value).partition("/")
    try:
        number = float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        number = 0.0
    if isinstance(value, bool) or not 1e-6 <= number <= 1e6:
        raise ValueError(f"{short(value)} is not a number above 0")
    return number


def _three(values: Any, what: str) -> Triple:
    values = [values] * 3 if isinstance(values, (int, float)) else values
    if (
        not isinstance(values, list)
        or len(values) != 3
        or not all(isinstance(v, (int, float)) and abs(v) <= 1e6 for v in values)
        or (what != "mean" and 0 in values)
    ):
        raise ValueError(f"{what}: {short(values)} are not three numbers")
    red, green, blue = (float(value) for value in values)
    return red, green, blue


READERS: Mapping[str, Callable[[str, str], Recipe]] = {
    ".toml": _from_toml,
    ".json": _from_hugging_face,
    ".yml": _from_paddle,
    ".yaml": _from_paddle,
}
