"""A recipe: how the bytes of an image file become the input of a model, as a value with a text.

The text is ``NAME[,key=value,...]``, as of ``--preprocess``: one of the `NAMED` recipes and what
differs from it. `Recipe.text` is the shortest text that makes a recipe again; `KEYS` has the keys.
`eval.images.preprocess` makes the pixels, `eval.recipe_files` reads the files of other programs.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from eval.errors import UsageError

OWN = "own"  # the model's own recipe
MEAN = (0.485, 0.456, 0.406)  # ImageNet: red, green, blue
STD = (0.229, 0.224, 0.225)
LARGEST_CROP, LARGEST_RESIZE = 2048, 4096  # pixels of a side

DECODERS = ("pillow", "opencv")
RESIZERS = ("pillow", "opencv", "tensor")
INTERPOLATIONS: Mapping[str, tuple[str, ...]] = {
    "pillow": ("bilinear", "bicubic", "lanczos", "nearest", "area"),  # area: Pillow's BOX
    "opencv": ("bilinear", "bicubic", "lanczos", "nearest", "area"),
    "tensor": ("bilinear", "bicubic", "nearest"),
}
ROUNDINGS = ("truncated", "rounded")
OFFSETS = ("rounded", "floored", "ceiled")
CMYK = ("standard", "inverted", "no-black")

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Recipe:
    """The steps in their order. The defaults are torchvision's pipeline.

    Two recipes are equal if all steps are: what a library cannot do otherwise (Pillow always
    antialiases, OpenCV never does; only Pillow leaves CMYK to us) is set to what it does.

    Attributes:
        decode: ``pillow`` or ``opencv``.
        exif: whether an image is turned as its EXIF tag says.
        cmyk: what is made of a CMYK image: ``standard``, ``inverted`` or ``no-black``.
        resize: length of the shorter side, in pixels; None: not resized.
        square: resize both sides to this length, whatever the aspect.
        rounding: of the longer side to whole pixels: ``truncated``, or ``rounded`` (half to even).
        resizer: ``pillow``, ``opencv``, or ``tensor`` (torchvision's on a uint8 tensor).
        interpolation: one of `INTERPOLATIONS`.
        antialias: whether shrinking averages all pixels; only ``tensor`` has the choice.
        size: of a side of the crop, in pixels. What lies outside of the image is black.
        offset: of the crop, where the margin is odd: ``rounded`` (half to even), ``floored`` or
            ``ceiled``.
        shift: pixels to the right and down, from there.
        channels: ``rgb`` or ``bgr``.
        scale: levels are divided by it; if it is less than 1, they are multiplied with it.
        mean, std: of each channel, in the order of `channels`; subtracted, then divided by.

    Raises:
        ValueError: the resizer has no such interpolation.
    """

    decode: str = "pillow"
    exif: bool = False
    cmyk: str = "standard"
    resize: int | None = 256
    square: bool = False
    rounding: str = "truncated"
    resizer: str = "pillow"
    interpolation: str = "bilinear"
    antialias: bool = True
    size: int = 224
    offset: str = "rounded"
    shift: tuple[int, int] = (0, 0)
    channels: str = "rgb"
    scale: float = 255.0
    mean: Triple = MEAN
    std: Triple = STD

    def __post_init__(self) -> None:
        known = INTERPOLATIONS[self.resizer]
        if self.interpolation not in known:
            what = f"resizer={self.resizer} has no {self.interpolation}"
            raise ValueError(f"{what}.\nUse one of {', '.join(known)}.")
        if not self.has_antialias:
            object.__setattr__(self, "antialias", self.resizer == "pillow")
        if self.decode == "opencv":
            object.__setattr__(self, "cmyk", "standard")
        if self.resize is None:
            object.__setattr__(self, "square", False)

    @property
    def has_antialias(self) -> bool:
        """Whether there is a choice."""
        return self.resizer == "tensor" and self.interpolation != "nearest"

    @property
    def pixels(self) -> Recipe:
        """The steps up to an RGB crop; the rest as in ``torchvision``."""
        plain = NAMED["torchvision"]
        return replace(self, **{name: getattr(plain, name) for name in _AFTER_CROP})

    def at(self, size: int) -> Recipe:
        """The same for crops of another size: with the same share of the resized image.

        Rounded down as by timm (``timm/data/transforms_factory.py``, ``crop_pct``).
        """
        resize = None if self.resize is None else self.resize * size // self.size
        return replace(self, size=size, resize=resize)

    def normalized_as(self, other: Recipe) -> Recipe:
        """The same pixels, but channels, scale, mean and std of another recipe."""
        return replace(self, **{name: getattr(other, name) for name in _AFTER_CROP})

    @property
    def text(self) -> str:
        """The shortest text that makes this recipe again."""
        texts = []
        for name, base in NAMED.items():
            pairs = (
                f"{key}={row.show(self)}"
                for key, row in KEYS.items()
                if row.show is not None and row.differs(self, base)
            )
            texts.append(",".join([name, *pairs]))
        return min(texts, key=len)

    @property
    def words(self) -> str:
        """The whole protocol in one line, for a person."""
        libraries = {"pillow": "PIL", "opencv": "OpenCV", "tensor": "torchvision, on a tensor"}
        parts = [f"{libraries[self.decode]} decode"]
        if self.exif:
            parts[0] += ", EXIF applied"
        if self.cmyk != "standard":
            parts[0] += f", CMYK {self.cmyk}"
        if self.resize is None:
            parts.append("not resized")
        else:
            side = f"{self.resize}x{self.resize}" if self.square else f"short side {self.resize}"
            how = "antialiased " if self.antialias and self.interpolation != "nearest" else ""
            parts.append(f"{side}, {how}{self.interpolation} by {libraries[self.resizer]}")
        shifted = "" if self.shift == (0, 0) else f" shifted by {_joined(self.shift, ', ')}"
        parts.append(f"crop {self.size}{shifted}")
        if self.channels == "bgr":
            parts.append("BGR")
        if self.scale != 1:
            shown = _scale_text(self.scale)
            parts.append(f"/{shown}" if self.scale > 1 else f"*{shown}")
        if (self.mean, self.std) != ((0, 0, 0), (1, 1, 1)):
            parts.append(f"mean {_joined(self.mean, ' ')}, std {_joined(self.std, ' ')}")
        return "; ".join(parts)


_AFTER_CROP = ("channels", "scale", "mean", "std")
_PADDLE = Recipe(
    decode="opencv",
    exif=True,
    resizer="opencv",
    rounding="rounded",
    offset="floored",
    scale=1 / 255,
)
NAMED: Mapping[str, Recipe] = {
    "torchvision": Recipe(),
    "paddle": _PADDLE,
    "squash": replace(_PADDLE, square=True),
    "raw": Recipe(scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
}


class Key(NamedTuple):
    """A key of the text.

    Attributes:
        expects: its values, in words.
        read: gives the fields that a value sets; None for what is no value.
        show: the value of a recipe; None for a key that is only read.
        names: of the fields.
    """

    expects: str
    read: Callable[[str], Mapping[str, Any] | None]
    show: Callable[[Recipe], str] | None
    names: tuple[str, ...]

    def differs(self, recipe: Recipe, other: Recipe) -> bool:
        """Whether it has to be said, so that `other` becomes `recipe`."""
        if self.names == ("antialias",) and not recipe.has_antialias:
            return False
        return any(getattr(recipe, name) != getattr(other, name) for name in self.names)


def _choice(name: str, values: Iterable[str]) -> Key:
    known = tuple(values)
    return Key(
        f"{', '.join(known[:-1])} or {known[-1]}",
        lambda text: {name: text} if text in known else None,
        lambda recipe: str(getattr(recipe, name)),
        (name,),
    )


def _switch(name: str) -> Key:
    return Key(
        "on or off",
        lambda text: {name: text == "on"} if text in ("on", "off") else None,
        lambda recipe: "on" if getattr(recipe, name) else "off",
        (name,),
    )


def _number(text: str) -> float | None:
    """A finite decimal number, or a fraction of two."""
    top, slash, bottom = text.partition("/")
    try:
        value = float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        return None
    plain = re.fullmatch(r"[0-9eE+./-]+", text)
    return value if plain and math.isfinite(value) else None


def _shown(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _joined(values: Iterable[float], separator: str) -> str:
    return separator.join(_shown(value) for value in values)


def _scale_text(scale: float) -> str:
    whole = round(1 / scale)
    return f"1/{whole}" if scale < 1 and 1 / whole == scale else _shown(scale)


def _read_scale(text: str) -> Mapping[str, Any] | None:
    value = _number(text)
    return None if value is None or not 1e-6 <= value <= 1e6 else {"scale": value}


def _per_channel(name: str, lowest: float) -> Key:
    def read(text: str) -> Mapping[str, Any] | None:
        values = [_number(part) for part in text.split("/")]
        found = [v for v in values if v is not None and lowest <= v <= 1e6]
        if len(found) != len(values) or len(found) not in (1, 3):
            return None
        return {name: tuple(found * 3)[:3]}

    def show(recipe: Recipe) -> str:
        values = getattr(recipe, name)
        return _joined(values[:1] if len(set(values)) == 1 else values, "/")

    words = "one number, or three with / between them"
    return Key(words + (", above 0" if lowest > 0 else ""), read, show, (name,))


def _pixels(text: str, largest: int) -> int | None:
    value = int(text) if re.fullmatch(r"[0-9]{1,5}", text) else 0
    return value if 1 <= value <= largest else None


def _read_resize(text: str) -> Mapping[str, Any] | None:
    if text == "none":
        return {"resize": None, "square": False}
    first, times, second = text.partition("x")
    side = _pixels(first, LARGEST_RESIZE)
    if side is None or (times and second != first):
        return None
    return {"resize": side, "square": bool(times)}


def _show_resize(recipe: Recipe) -> str:
    return f"{recipe.resize}x{recipe.resize}" if recipe.square else str(recipe.resize or "none")


def _read_crop(text: str) -> Mapping[str, Any] | None:
    size = _pixels(text, LARGEST_CROP)
    return None if size is None else {"size": size}


def _read_percent(text: str) -> Mapping[str, Any] | None:
    value = _number(text)
    return None if value is None or not 0.1 <= value <= 10 else {"crop-pct": value}


def _read_shift(text: str) -> Mapping[str, Any] | None:
    found = re.fullmatch(r"(-?[0-9]{1,4})/(-?[0-9]{1,4})", text)
    return {"shift": (int(found[1]), int(found[2]))} if found else None


KEYS: Mapping[str, Key] = {
    "decode": _choice("decode", DECODERS),
    "exif": _switch("exif"),
    "cmyk": _choice("cmyk", CMYK),
    "resize": Key(
        f"the short side in pixels, both sides as NxN (at most {LARGEST_RESIZE}), or none",
        _read_resize,
        _show_resize,
        ("resize", "square"),
    ),
    "rounding": _choice("rounding", ROUNDINGS),
    "resizer": _choice("resizer", RESIZERS),
    "interpolation": _choice("interpolation", INTERPOLATIONS["pillow"]),
    "antialias": _switch("antialias"),
    "crop": Key(
        f"pixels of a side, at most {LARGEST_CROP}", _read_crop, lambda r: str(r.size), ("size",)
    ),
    "crop-pct": Key("the crop as a share of the resized side, such as 0.875", _read_percent, None,
                    ("resize",)),
    "offset": _choice("offset", OFFSETS),
    "shift": Key(
        "pixels to the right and down, such as 1/0",
        _read_shift,
        lambda recipe: _joined(recipe.shift, "/"),
        ("shift",),
    ),
    "channels": _choice("channels", ("rgb", "bgr")),
    "scale": Key(
        "255, 127.5 or 1 (levels are divided by it), or a fraction such as 1/255 (multiplied)",
        _read_scale,
        lambda recipe: _scale_text(recipe.scale),
        ("scale",),
    ),
    "mean": _per_channel("mean", -1e6),
    "std": _per_channel("std", 1e-6),
}  # fmt: skip


def parse(text: str, own: Recipe | None = None, where: str = "--preprocess") -> Recipe:
    """The recipe of a text.

    Args:
        text: ``NAME[,key=value,...]``.
        own: what the name ``own`` stands for; None: the name is refused.
        where: the option or the file, for messages.
    """
    name, *pairs = text.split(",")
    named = {**NAMED, OWN: own} if own is not None else NAMED
    base = named.get(name)
    if base is None:
        known = [*named]
        words = text.replace(" ", ",").split(",")
        if any(words[0] in names for names in INTERPOLATIONS.values()):
            words[0] = f"interpolation={words[0]}"
        if words[0].partition("=")[0] in KEYS:
            words.insert(0, next(iter(NAMED)))
        if words[0] in known and len(words) > 1:
            raise UsageError(
                f"{where} {text}: there is no preprocessing {name!r}.\n"
                f"Did you mean {','.join(words)}?"
            )
        raise UsageError(
            f"{where} {text}: there is no preprocessing {name!r}.{_hint(name, known)}\n"
            f"Use one of {', '.join(known)}, or a file: .toml, .json or .yml."
        )
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key in values:
            problem = "given twice" if equals else "no key=value"
            split = next(iter(reversed(values)), "") if not equals else ""
            way = f"{split}={values[split]}/{pair}/..." if split in ("mean", "std") else "key=value"
            raise UsageError(f"{where} {text}: {pair!r} is {problem}.\nWrite {name},{way},...")
        values[key] = value
    return changed(base, values, f"{where} {text}")


def changed(base: Recipe, values: Mapping[str, str], where: str) -> Recipe:
    """A recipe with the steps changed that keys name."""
    changes: dict[str, Any] = {}
    for key, value in values.items():
        row = KEYS.get(key)
        if row is None:
            raise UsageError(
                f"{where}: there is no key {key!r}.{_hint(key, KEYS)}\n"
                f"Use one of {', '.join(KEYS)}."
            )
        found = row.read(value)
        if found is None:
            raise UsageError(f"{where}: {key}={value} cannot be read.\nWrite {row.expects}.")
        if key == "crop-pct" and "resize" in values:
            raise UsageError(f"{where}: resize and crop-pct both set the size.\nUse one of them.")
        changes.update(found)
    percent = changes.pop("crop-pct", None)
    if percent is not None:
        side = math.floor(changes.get("size", base.size) / percent)
        changes["resize"] = max(1, min(side, LARGEST_RESIZE))
    try:
        recipe = replace(base, **changes)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    for name, library, remedy in (
        ("antialias", f"resizer={recipe.resizer}", "resizer=tensor"),
        ("cmyk", f"decode={recipe.decode}", "decode=pillow"),
    ):
        if changes.get(name, getattr(recipe, name)) != getattr(recipe, name):
            raise UsageError(
                f"{where}: {library} cannot have {name}={values[name]}.\nAdd {remedy}, or omit it."
            )
    return recipe


def split_list(text: str) -> list[str]:
    """Split a list of texts at commas: what contains ``=`` belongs to the name before it."""
    parts: list[str] = []
    for part in text.split(","):
        if parts and "=" in part:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return parts


def _hint(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""
