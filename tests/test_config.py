"""Configuration files: the built-in ones, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import pplcnet
from eval.config import builtin_variants, load_config, load_variant
from eval.errors import UsageError
from eval.images.sets import VAL


def test_every_variant_has_a_file_that_names_a_model() -> None:
    assert builtin_variants() == ["base", "base_ssld", "large", "small"]
    for name in builtin_variants():
        config = load_variant(name)
        assert config.name == name
        assert config.model in pplcnet.VARIANTS
        assert config.images == 50_000


@pytest.mark.parametrize(
    ("name", "top1", "top5", "gated"),
    [
        ("base", 77.04, 93.27, True),
        ("base_ssld", 80.07, 94.87, True),
        ("small", 73.97, None, False),
        ("large", 78.51, None, False),
    ],
)
def test_reported_figures(name: str, top1: float, top5: float | None, gated: bool) -> None:
    reference = load_variant(name).reference_for("paddle")
    assert reference is not None
    assert (reference.top1, reference.top5, reference.gated) == (top1, top5, gated)
    assert reference.source


def test_tolerances_have_reasons() -> None:
    for name in ("base", "base_ssld"):
        tolerance = load_variant(name).tolerance
        assert tolerance["paddle"].images == 10
        assert tolerance["torchvision"].images > 10
        assert "squash" not in tolerance
        assert all(row.reason for row in tolerance.values())


def test_others_are_shown() -> None:
    others = {row.name: (row.top1, row.top5) for row in load_variant("base").others_on(VAL)}
    assert others == {"Vast fp16": (76.482, 93.172), "Vast int8": (74.658, 92.2)}


def test_unknown_variant_suggests_a_near_one() -> None:
    with pytest.raises(UsageError, match="Did you mean 'large'"):
        load_variant("larg")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "cannot be read"),
        ('name = "x"', "'model' is missing"),
        ('name = "x"\nmodel = 3', "'model' is missing or no text"),
        ('name = "x"\nmodel = "base"\ntypo = 1', "unknown keys: typo"),
        ('name = "x"\nmodel = "base"\nimages = 0', "images = 0 is no number"),
        ('name = "x"\nmodel = "base"\n[reference]\ntop1 = 3', "source"),
        ('name = "x"\nmodel = "base"\n[reference]\ntop1 = "3"\nsource = "y"', "top1 = '3'"),
        ('name = "x"\nmodel = "base"\n[reference]\ntop2 = 3\nsource = "y"', "top2"),
        ('name = "x"\nmodel = "base"\ntolerance = 3', "tolerance"),
        ('name = "x"\nmodel = "base"\n[tolerance]\npaddle = 3', "no table"),
    ],
)
def test_what_is_refused_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such configuration file"):
        load_config(tmp_path / "own.toml")
