"""The recipe of every pretrained ImageNet classifier of timm, against timm's own transform."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import timm
import timm.data
from PIL import Image
from timm.models import get_pretrained_cfg

from eval.images.preprocess import Preprocess, crop_of
from eval.models.timm import preprocess_of, recipe_of
from eval.recipe import OWN, Recipe, parse


@cache
def configurations() -> Mapping[str, dict[str, Any]]:
    """Of every pretrained model with 1000 classes: what timm's validate.py resolves."""
    found = {}
    for name in timm.list_models(pretrained=True):
        cfg = get_pretrained_cfg(name)
        if cfg is not None and cfg.num_classes == 1000:
            found[name] = timm.data.resolve_data_config(
                {}, pretrained_cfg=cfg.to_dict(), use_test_size=True
            )
    return found


@cache
def distinct() -> list[tuple[str, dict[str, Any]]]:
    """The first model of each configuration."""
    first = {repr(config): (name, config) for name, config in reversed(configurations().items())}
    return list(first.values())


def photo(height: int, width: int) -> bytes:
    rng = np.random.RandomState(height * 10007 + width)
    image = Image.fromarray(rng.randint(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    file = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


PHOTOS = [photo(*size) for size in ((375, 500), (181, 97), (333, 251))]


def assert_pixels_are_timms(config: dict[str, Any], data: bytes) -> None:
    recipe = recipe_of(config)
    assert recipe is not None
    preprocess = Preprocess.of(recipe)
    ours = preprocess.normalize(preprocess.crop(data)[np.newaxis])[0]
    transform = timm.data.create_transform(**config, is_training=False)
    theirs = transform(Image.open(io.BytesIO(data)).convert("RGB")).permute(1, 2, 0).numpy()
    assert np.array_equal(ours, theirs), config


def test_there_are_so_many() -> None:
    assert len(configurations()) >= 1321  # in timm 1.0.31
    assert 139 <= len(distinct()) <= 200


@pytest.mark.parametrize("part", range(4))
def test_pixels_of_every_configuration_are_timms(part: int) -> None:
    for place, (_, config) in enumerate(distinct()[part::4]):
        for data in PHOTOS[place % 3 :][:1]:
            assert_pixels_are_timms(config, data)


@pytest.mark.slow
def test_pixels_of_every_configuration_on_every_photo() -> None:
    for _, config in distinct():
        for data in PHOTOS:
            assert_pixels_are_timms(config, data)


def test_every_name_has_the_recipe_of_its_configuration() -> None:
    by_text: dict[str, set[str]] = defaultdict(set)
    for name, config in configurations().items():
        preprocess = preprocess_of(name)
        assert preprocess.recipe == recipe_of(config), name
        assert preprocess.name == preprocess.recipe.text
        by_text[preprocess.name].add(repr(config))
    assert len(by_text) == len(distinct())
    assert all(parse(text).text == text for text in by_text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("resnet50.a1_in1k", "torchvision,resize=288,interpolation=bicubic,crop=288"),
        ("resnet18.tv_in1k", "torchvision"),
        ("mobileone_s1.apple_in1k", "torchvision,resize=248"),
        ("vit_base_patch16_224.augreg_in1k",
         "torchvision,resize=248,interpolation=bicubic,mean=0.5,std=0.5"),
    ],
)  # fmt: skip
def test_at_the_test_size(name: str, text: str) -> None:
    """As ``timm/models/resnet.py`` and others have them: 224 / 0.9 is 248.9."""
    assert preprocess_of(name).name == text


CONFIG = {
    "input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.875,
    "crop_mode": "center", "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 1.0),
}  # fmt: skip


def test_other_kernels() -> None:
    for name in ("nearest", "lanczos", "box"):
        assert_pixels_are_timms({**CONFIG, "interpolation": name}, PHOTOS[1])
    assert recipe_of({**CONFIG, "interpolation": "hamming"}) is None


def test_a_transform_that_no_recipe_can_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken as it is, and said to be."""
    config = {**CONFIG, "crop_mode": "border"}
    assert recipe_of(config) is None
    monkeypatch.setattr(timm.data, "resolve_data_config", lambda *_, **__: config)
    preprocess = preprocess_of("resnet18.tv_in1k")
    assert (preprocess.name, preprocess.recipe, preprocess.size) == (OWN, None, 224)
    assert "a transform of timm" in preprocess.description
    assert "that no recipe can say: Compose( ResizeKeepRatio(size=(256, 256)" in (
        preprocess.description
    )
    transform = timm.data.create_transform(**config, is_training=False)
    for data in PHOTOS:
        theirs = transform(Image.open(io.BytesIO(data)).convert("RGB")).permute(1, 2, 0).numpy()
        ours = preprocess.normalize(preprocess.crop(data)[np.newaxis])[0]
        assert np.array_equal(ours, theirs)
        center = Recipe(interpolation="bicubic", mean=CONFIG["mean"], std=CONFIG["std"])
        assert not np.array_equal(preprocess.crop(data), crop_of(center, data))
