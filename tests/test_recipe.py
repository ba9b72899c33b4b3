"""Recipes: their texts, and their pixels against the libraries that they are from."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from eval.errors import UsageError
from eval.images.preprocess import LONGEST, BadImage, Preprocess, crop_of, table_of, target_size
from eval.recipe import (
    CMYK,
    DECODERS,
    INTERPOLATIONS,
    KEYS,
    NAMED,
    OFFSETS,
    RESIZERS,
    ROUNDINGS,
    Recipe,
    parse,
    split_list,
)

numbers = st.floats(-1000, 1000, allow_subnormal=False) | st.integers(-300, 300).map(float)
positive = st.floats(1e-6, 1000) | st.integers(1, 300).map(float)


def triples(values: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[float, float, float]]:
    return st.tuples(values, values, values) | values.map(lambda value: (value,) * 3)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Any recipe at all; most steps as in one of the named ones."""
    resizer = draw(st.sampled_from(RESIZERS))
    every = {
        "decode": st.sampled_from(DECODERS),
        "exif": st.booleans(),
        "cmyk": st.sampled_from(CMYK),
        "resize": st.none() | st.integers(1, 4096),
        "square": st.booleans(),
        "rounding": st.sampled_from(ROUNDINGS),
        "antialias": st.booleans(),
        "size": st.integers(1, 2048),
        "offset": st.sampled_from(OFFSETS),
        "shift": st.tuples(st.integers(-99, 99), st.integers(-99, 99)),
        "channels": st.sampled_from(["rgb", "bgr"]),
        "scale": st.sampled_from([255.0, 127.5, 1.0, 1 / 255, 0.00392157]) | positive,
        "mean": triples(numbers),
        "std": triples(positive),
    }
    chosen = draw(st.sets(st.sampled_from(sorted(every))))
    changes = {name: draw(every[name]) for name in sorted(chosen)}
    changes["interpolation"] = draw(st.sampled_from(INTERPOLATIONS[resizer]))
    base = NAMED[draw(st.sampled_from(sorted(NAMED)))]
    return replace(base, resizer=resizer, **changes)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(recipes())
def test_the_text_of_a_recipe_makes_it_again(recipe: Recipe) -> None:
    assert parse(recipe.text) == recipe


@settings(max_examples=100, deadline=None, derandomize=True)
@given(recipes(), st.sampled_from(sorted(NAMED)))
def test_no_other_text_is_shorter(recipe: Recipe, name: str) -> None:
    """Than what a person would write, who states every step."""
    stated = ",".join(
        [name, *(f"{k}={row.show(recipe)}" for k, row in KEYS.items() if row.show is not None)]
    )
    if not recipe.has_antialias:
        stated = stated.replace(",antialias=on", "").replace(",antialias=off", "")
    assert parse(stated) == recipe
    assert len(recipe.text) <= len(stated)


def test_every_step_has_a_key() -> None:
    assert {name for row in KEYS.values() for name in row.names} == {f.name for f in fields(Recipe)}


TEXTS = {
    "torchvision": Recipe(),
    "paddle": Recipe(
        decode="opencv", exif=True, resizer="opencv", antialias=False, rounding="rounded",
        offset="floored", scale=1 / 255,
    ),
    "squash": replace(NAMED["paddle"], square=True),
    "raw": Recipe(scale=1, mean=(0, 0, 0), std=(1, 1, 1)),
    "torchvision,resize=235": Recipe(resize=235),
    "torchvision,resize=256x256": Recipe(square=True),
    "torchvision,resize=none": Recipe(resize=None),
    "torchvision,resize=288,interpolation=bicubic,crop=288": Recipe(
        resize=288, size=288, interpolation="bicubic"
    ),
    "torchvision,mean=0.5,std=0.5": Recipe(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "raw,scale=127.5,mean=1": Recipe(scale=127.5, mean=(1, 1, 1), std=(1, 1, 1)),
    "raw,channels=bgr,mean=103.939/116.779/123.68": Recipe(
        channels="bgr", scale=1, mean=(103.939, 116.779, 123.68), std=(1, 1, 1)
    ),
    "torchvision,scale=1/255": Recipe(scale=1 / 255),
    "paddle,scale=0.00392157": replace(NAMED["paddle"], scale=0.00392157),
    "torchvision,resizer=tensor,antialias=off": Recipe(resizer="tensor", antialias=False),
    "torchvision,resizer=tensor": Recipe(resizer="tensor"),
    "paddle,interpolation=area": replace(NAMED["paddle"], interpolation="area"),
    "torchvision,exif=on,shift=1/0": Recipe(exif=True, shift=(1, 0)),
    "torchvision,cmyk=no-black,rounding=rounded,offset=ceiled": Recipe(
        cmyk="no-black", rounding="rounded", offset="ceiled"
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_texts(text: str) -> None:
    assert parse(text) == TEXTS[text]
    assert TEXTS[text].text == text


@pytest.mark.parametrize(
    ("text", "shortest"),
    [
        ("torchvision,resize=256", "torchvision"),
        ("torchvision,std=0.229/0.224/0.225,exif=off", "torchvision"),
        ("paddle,resize=256x256", "squash"),
        ("torchvision,crop=288,crop-pct=1.0", "torchvision,resize=288,crop=288"),
        ("torchvision,crop-pct=0.9", "torchvision,resize=248"),  # floor(224 / 0.9)
        ("torchvision,crop-pct=0.95,crop=224", "torchvision,resize=235"),
        ("squash,crop-pct=1", "paddle,resize=224x224"),
        ("torchvision,scale=127.5,mean=1,std=1", "raw,scale=127.5,mean=1"),
        ("paddle,resizer=pillow,antialias=on", "paddle,resizer=pillow"),
    ],
)
def test_other_texts_of_the_same(text: str, shortest: str) -> None:
    assert parse(text).text == shortest


def test_own_is_what_it_is_told_to_be() -> None:
    own = Recipe(size=288, resize=288)
    assert parse("own", own) == own
    assert parse("own,channels=bgr", own) == replace(own, channels="bgr")
    with pytest.raises(UsageError, match="no preprocessing 'own'"):
        parse("own")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("padle", "--preprocess padle: there is no preprocessing 'padle'. Did you mean paddle?"),
        ("", "--preprocess : there is no preprocessing ''.\nUse one of torchvision, paddle, squ"),
        ("paddle,resiz=3", "there is no key 'resiz'. Did you mean resize?\nUse one of decode, "),
        ("paddle,resize", "'resize' is no key=value.\nWrite paddle,key=value,..."),
        ("paddle,exif=on,exif=on", "'exif=on' is given twice."),
        ("paddle,resize=0", "resize=0 cannot be read.\nWrite the short side in pixels, both"),
        ("paddle,resize=256x224", "resize=256x224 cannot be read."),
        ("paddle,resize=99999", "resize=99999 cannot be read."),
        ("paddle,crop=224x224", "crop=224x224 cannot be read.\nWrite pixels of a side, at most"),
        ("paddle,crop-pct=0", "crop-pct=0 cannot be read."),
        ("paddle,crop-pct=1,resize=8", "resize and crop-pct both set the size.\nUse one of them."),
        ("paddle,exif=yes", "exif=yes cannot be read.\nWrite on or off."),
        ("paddle,decode=cv2", "decode=cv2 cannot be read.\nWrite pillow or opencv."),
        ("paddle,mean=1/2", "mean=1/2 cannot be read.\nWrite one number, or three with / between"),
        ("paddle,mean=nan", "mean=nan cannot be read."),
        ("paddle,std=0", "std=0 cannot be read."),
        ("paddle,scale=0", "scale=0 cannot be read."),
        ("paddle,scale=1/0", "scale=1/0 cannot be read."),
        ("paddle,shift=1", "shift=1 cannot be read."),
        ("torchvision,resizer=tensor,interpolation=lanczos",
         "resizer=tensor has no lanczos.\nUse one of bilinear, bicubic, nearest."),
        ("torchvision,antialias=off",
         "resizer=pillow cannot have antialias=off.\nAdd resizer=tensor, or omit it."),
        ("paddle,cmyk=inverted",
         "decode=opencv cannot have cmyk=inverted.\nAdd decode=pillow, or omit it."),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == 1


def test_lists() -> None:
    assert split_list("torchvision,resize=235,exif=on,paddle,own") == [
        "torchvision,resize=235,exif=on",
        "paddle",
        "own",
    ]
    assert split_list("a") == ["a"]


def test_words() -> None:
    assert Recipe().words == (
        "PIL decode; short side 256, antialiased bilinear by PIL; crop 224; /255; "
        "mean 0.485 0.456 0.406, std 0.229 0.224 0.225"
    )
    assert NAMED["squash"].words == (
        "OpenCV decode, EXIF applied; 256x256, bilinear by OpenCV; crop 224; *1/255; "
        "mean 0.485 0.456 0.406, std 0.229 0.224 0.225"
    )
    assert replace(NAMED["raw"], channels="bgr", shift=(1, -2), cmyk="inverted").words == (
        "PIL decode, CMYK inverted; short side 256, antialiased bilinear by PIL; "
        "crop 224 shifted by 1, -2; BGR"
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(recipes(), recipes())
def test_recipes_that_differ_have_different_texts(first: Recipe, second: Recipe) -> None:
    assert (first == second) == (first.text == second.text)


# --- Pixels ---------------------------------------------------------------------------------------


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.RandomState(height * 10007 + width).randint(
        0, 256, (height, width, channels), dtype=np.uint8
    )


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(noise(90, 121)), exif=exif)


def palette_with_alpha() -> bytes:
    image = Image.fromarray(noise(75, 130)).quantize(32)
    return encoded(image, "PNG", transparency=bytes(range(0, 256, 8)))


KINDS: dict[str, Callable[[], bytes]] = {
    "greyscale": lambda: encoded(Image.fromarray(noise(90, 120)).convert("L")),
    "CMYK": lambda: encoded(Image.fromarray(noise(91, 120)).convert("CMYK")),
    "progressive": lambda: encoded(Image.fromarray(noise(333, 500)), progressive=True),
    "turned": lambda: turned(6),
    "mirrored": lambda: turned(2),
    "16 bit": lambda: encoded(
        Image.fromarray(noise(80, 120)[..., 0].astype(np.uint16) * 257), "PNG"
    ),
    "palette with alpha": palette_with_alpha,
    "alpha": lambda: encoded(Image.fromarray(noise(77, 130, 4), "RGBA"), "PNG"),
    "one column": lambda: encoded(Image.fromarray(noise(40, 1)), "PNG"),
    "one row": lambda: encoded(Image.fromarray(noise(1, 40)), "PNG"),
    "one pixel": lambda: encoded(Image.fromarray(noise(1, 1)), "PNG"),
}


def pil_loader(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def of_torchvision(data: bytes, recipe: Recipe) -> np.ndarray:
    """torchvision's own transforms: float32 (size, size, 3)."""
    mode = InterpolationMode("box" if recipe.interpolation == "area" else recipe.interpolation)
    assert recipe.resize is not None
    size = (recipe.resize, recipe.resize) if recipe.square else recipe.resize
    antialias = None if recipe.resizer == "pillow" else recipe.antialias
    steps = [
        transforms.Resize(size, mode, antialias=antialias),
        transforms.CenterCrop(recipe.size),
        transforms.ConvertImageDtype(torch.float32),
        transforms.Normalize(recipe.mean, recipe.std),
    ]
    if recipe.resizer == "tensor":
        steps.insert(0, transforms.PILToTensor())
    else:
        steps.insert(2, transforms.PILToTensor())
    return transforms.Compose(steps)(pil_loader(data)).permute(1, 2, 0).numpy()


def of_opencv(data: bytes, recipe: Recipe) -> np.ndarray:
    """PaddleClas's operators, written out: float32 (size, size, 3)."""
    image = cv2.imdecode(np.frombuffer(data, "uint8"), 1)
    image = np.ascontiguousarray(image[:, :, ::-1])
    h, w = image.shape[:2]
    short = recipe.resize
    percent = float(short) / min(w, h)
    target = (short, short) if recipe.square else (round(w * percent), round(h * percent))
    flag = {
        "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA,
        "lanczos": cv2.INTER_LANCZOS4, "nearest": cv2.INTER_NEAREST,
    }[recipe.interpolation]  # fmt: skip
    image = cv2.resize(image, target, interpolation=flag)
    x, y = ((side - recipe.size) // 2 for side in target)
    image = image[y : y + recipe.size, x : x + recipe.size].astype("float32")
    mean, std = np.array(recipe.mean, "float32"), np.array(recipe.std, "float32")
    return (image * np.float32(recipe.scale) - mean) / std


def made(data: bytes, recipe: Recipe) -> np.ndarray:
    preprocess = Preprocess.of(recipe)
    return preprocess.normalize(preprocess.crop(data)[np.newaxis])[0]


def assert_same(recipe: Recipe, data: bytes) -> None:
    reference = of_opencv if recipe.resizer == "opencv" else of_torchvision
    if max(target_size(Image.open(io.BytesIO(data)).size, recipe)) > LONGEST:
        with pytest.raises(BadImage, match=f"the limit is {LONGEST:,} a side"):
            made(data, recipe)
    else:
        assert np.array_equal(made(data, recipe), reference(data, recipe))


HALF = (0.5, 0.5, 0.5)
OTHERS = [
    Recipe(interpolation="bicubic", resize=288, size=288, mean=HALF, std=HALF),
    Recipe(interpolation="lanczos", resize=235),
    Recipe(interpolation="nearest", resize=232),
    Recipe(interpolation="area"),
    Recipe(square=True, resize=224),
    Recipe(square=True, interpolation="bicubic", resize=257),
    Recipe(resize=201),  # smaller than the crop
    Recipe(resize=117, size=224, interpolation="bicubic"),
    Recipe(resizer="tensor", antialias=False),
    Recipe(resizer="tensor", antialias=False, interpolation="bicubic"),
    Recipe(resizer="tensor", interpolation="bicubic"),
    Recipe(resizer="tensor", interpolation="nearest", square=True),
    *(
        replace(NAMED["paddle"], interpolation=kernel, resize=side, size=size)
        for kernel in INTERPOLATIONS["opencv"]
        for side, size in ((256, 224), (321, 320))
    ),
    replace(NAMED["paddle"], scale=0.00392157),
    replace(NAMED["squash"], interpolation="area", resize=300, size=299),
]


@pytest.mark.parametrize("recipe", OTHERS, ids=[recipe.text for recipe in OTHERS])
@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(1, 420), st.integers(1, 420))
def test_any_size(recipe: Recipe, height: int, width: int) -> None:
    if recipe.resizer == "tensor" and not recipe.square:  # 65,536 x 256 float32: seconds
        height, width = max(height, width // 8), max(width, height // 8)
    assert_same(recipe, encoded(Image.fromarray(noise(height, width))))


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("kind", KINDS)
def test_any_kind(kind: str) -> None:
    data = KINDS[kind]()
    thin = kind in ("one column", "one row")
    for recipe in (*NAMED.values(), *OTHERS):
        if recipe.scale != 1 and not (thin and recipe.resizer == "tensor"):
            assert_same(recipe, data)


def test_not_resized() -> None:
    image = noise(300, 231)
    found = crop_of(Recipe(resize=None, size=200), encoded(Image.fromarray(image), "PNG"))
    assert np.array_equal(found, image[50:250, 16:216])  # 15.5 is rounded to even


@pytest.mark.parametrize(
    ("offset", "left"), [("rounded", 2), ("floored", 1), ("ceiled", 2)]
)  # fmt: skip
def test_offsets_by_hand(offset: str, left: int) -> None:
    image = noise(7, 7)
    for recipe in (
        Recipe(resize=None, size=4, offset=offset),
        replace(NAMED["paddle"], resize=None, size=4, offset=offset),
    ):
        found = crop_of(recipe, encoded(Image.fromarray(image), "PNG"))
        assert np.array_equal(found, image[left : left + 4, left : left + 4])


@pytest.mark.parametrize("decode", DECODERS)
def test_shifted_out_of_the_image_is_black(decode: str) -> None:
    image = noise(6, 6) | 1
    recipe = Recipe(decode=decode, resize=None, size=4, shift=(2, -2))
    found = crop_of(recipe, encoded(Image.fromarray(image), "PNG"))
    assert np.array_equal(found[1:, :3], image[:3, 3:])
    assert not found[0].any()
    assert not found[:, 3].any()


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif(decode: str, orientation: int) -> None:
    data = turned(orientation)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    recipe = Recipe(decode=decode, resize=None, size=200)
    other = replace(recipe, exif=True)
    expected = {False: pil_loader(data), True: upright}
    for each in (recipe, other):
        picture = transforms.functional.center_crop(expected[each.exif], [200, 200])
        difference = crop_of(each, data).astype(int) - np.asarray(picture)
        assert np.abs(difference).max() <= (0 if decode == "pillow" else 3)


def test_cmyk_by_hand() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (10, 20, 30, 40)), "TIFF")
    recipe = Recipe(resize=None, size=8)
    shown = {name: crop_of(replace(recipe, cmyk=name), data)[0, 0].tolist() for name in CMYK}
    # Pillow: (255 - ink) x (255 - black) / 255, rounded
    assert shown == {
        "standard": [207, 198, 190],
        "inverted": [2, 3, 5],
        "no-black": [245, 235, 225],
    }


@pytest.mark.parametrize("name", NAMED)
def test_bgr(name: str) -> None:
    data = KINDS["progressive"]()
    recipe = NAMED[name]
    swapped = replace(recipe, channels="bgr")
    assert np.array_equal(crop_of(swapped, data), crop_of(recipe, data)[:, :, ::-1])
    assert np.array_equal(table_of(swapped), table_of(recipe))  # mean and std by place
    assert swapped.pixels == recipe.pixels


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (NAMED["raw"], lambda levels: levels),
        (
            Recipe(scale=127.5, mean=(1, 1, 1), std=(1, 1, 1)),
            lambda levels: levels / np.float32(127.5) - np.float32(1),
        ),
        (
            Recipe(scale=1, mean=(103.939, 116.779, 123.68), std=(1, 1, 1)),
            lambda levels: levels - np.array([103.939, 116.779, 123.68], np.float32),
        ),
        (
            replace(NAMED["paddle"], scale=0.00392157, mean=HALF, std=HALF),
            lambda levels: (levels * np.float32(0.00392157) - np.float32(0.5)) / np.float32(0.5),
        ),
    ],
)
def test_normalized_levels(recipe: Recipe, expected: Callable[[np.ndarray], np.ndarray]) -> None:
    levels = np.repeat(np.arange(256, dtype=np.float32)[:, np.newaxis], 3, axis=1)
    assert np.array_equal(table_of(recipe), expected(levels))


def test_dividing_and_multiplying_are_two_recipes() -> None:
    divided, multiplied = table_of(Recipe()), table_of(Recipe(scale=1 / 255))
    assert (divided != multiplied).any()
    assert np.allclose(divided, multiplied, atol=1e-6)
