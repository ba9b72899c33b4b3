"""Configuration files: the built-in ones, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

import pplcnet
from eval.config import (
    OtherResult,
    Reference,
    Tolerance,
    VariantConfig,
    builtin_variants,
    load_config,
    load_variant,
)
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
    others = {row.name: (row.top1, row.top5) for row in load_variant("base").others_on(VAL.name)}
    assert others == {"Vast fp16": (76.482, 93.172), "Vast int8": (74.658, 92.2)}


def test_unknown_variant_suggests_a_near_one() -> None:
    with pytest.raises(UsageError, match="Did you mean 'large'"):
        load_variant("larg")


TOP = 'name = "x"\nmodel = "base"\n'
REFERENCE = TOP + '[reference]\nsource = "y"\n'
TOLERANCE = TOP + '[tolerance.paddle]\nreason = "y"\n'
OTHER = TOP + '[[others]]\nname = "n"\nsource = "y"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    """The message of a refused file, without the file's name, which it must begin with."""
    with pytest.raises(UsageError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert len(message.splitlines()) <= 2
    assert message.endswith(".")
    return message.removeprefix(str(path)).lstrip(": ")


def test_everything_that_a_file_may_say(tmp_path: Path) -> None:
    text = (
        'name = "my-model_1.0"\nmodel = "small"\nimages = 1000\n'
        '[reference]\nsource = "paper"\ntop1 = 70\ntop5 = 90.5\ngated = true\n'
        '[tolerance.squash]\nimages = 1000\nreason = "why"\n'
        '[[others]]\nname = "n"\nsource = "s"\ntop1 = 0\ntop5 = 100\nset = "ImageNet-R"\n'
    )
    assert load_config(written(tmp_path, text)) == VariantConfig(
        "my-model_1.0",
        "small",
        1000,
        {"": Reference("paper", 70.0, 90.5, gated=True)},
        {"squash": Tolerance(1000, "why")},
        (OtherResult("n", "s", 0.0, 100.0, "ImageNet-R"),),
    )


def test_what_is_left_out(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, TOP)) == VariantConfig("x", "base", 50_000, {}, {}, ())
    reference = load_config(written(tmp_path, REFERENCE + "top1 = 3")).reference_for("paddle")
    assert reference == Reference("y", 3.0, None, gated=True)


def test_tolerances_go_by_recipes_however_they_are_written(tmp_path: Path) -> None:
    table = '[tolerance."{}"]\nimages = {}\nreason = "z"\n'
    written = ("own", "torchvision,exif=off,resize=235", "paddle,resize=256x256", "raw")
    path = tmp_path / "x.toml"
    path.write_text(TOP + "".join(table.format(name, i) for i, name in enumerate(written)))
    assert {name: row.images for name, row in load_config(path).tolerance.items()} == {
        "own": 0, "torchvision,resize=235": 1, "squash": 2, "raw": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm", "tolerance: timm = {'images': 1, 'reason': 'z'}: unknown key. Available: torchv"),
        ("paddle,resize", "tolerance: paddle,resize = {'images': 1, 'reason': 'z'}: unknown key."),
        ("torchvision,resize=256", "there are two for the recipe torchvision."),
    ],
)
def test_tolerances_of_no_recipe_or_of_two(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / "x.toml"
    table = '[tolerance."{}"]\nimages = 1\nreason = "z"\n'
    path.write_text(TOP + table.format("torchvision") + table.format(name))
    with pytest.raises(UsageError) as caught:
        load_config(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # no configuration at all
        ("name = ", "cannot be read: Invalid value"),
        ("x = " + "[" * 100_000, "cannot be read: it is nested too deeply."),
        ("x = " + "9" * 5_000, "cannot be read: Exceeds the limit"),
        # keys
        ('name = "x"', "'model' is missing."),
        (TOP + "image = 1", "image = 1: unknown key. Did you mean 'images'? Available: name,"),
        (TOP + "qqq = 1", "qqq = 1: unknown key. Available: name, model, images,"),
        (TOP + '"\\n\\u001b" = 1', "'\\n\\x1b' = 1: unknown key."),
        (TOP + '"a` - at `$.b" = 1', "'Object contains unknown field `a` - at `$.b`'."),
        (REFERENCE + "top2 = 3", "reference: top2 = 3: unknown key. Did you mean 'top5'?"),
        (TOLERANCE + "images = 3\nx = 1", "tolerance.paddle: x = 1: unknown key. Available: imag"),
        (OTHER + "Top1 = 3", "others[0]: Top1 = 3: unknown key. Did you mean 'top1'?"),
        (OTHER, "others[0]: 'top1' is missing."),
        (TOP + "[reference]\ntop1 = 3", "reference: 'source' is missing."),
        (
            TOP + "[tolerance.padle]\nimages = 3",
            "tolerance: padle = {'images': 3}: unknown key. Di",
        ),
        # types
        ('name = "x"\nmodel = 3', "model = 3: expected text."),
        (TOP + "images = true", "images = True: expected a whole number."),
        (TOP + "images = 1.5", "images = 1.5: expected a whole number."),
        (TOP + "reference = 3", "reference = 3: expected a table."),
        (TOP + "tolerance = 3", "tolerance = 3: expected a table."),
        (TOP + "[tolerance]\npaddle = 3", "tolerance.paddle = 3: expected a table."),
        (TOP + "others = 3", "others = 3: expected a list of tables."),
        (REFERENCE + 'top1 = "3"', "reference.top1 = '3': expected a number."),
        (REFERENCE + "top1 = true", "reference.top1 = True: expected a number."),
        (REFERENCE + "top1 = 3\ngated = 1", "reference.gated = 1: expected true or false."),
        (TOP + '[reference]\nsource = ""', "reference.source = '': expected text of length >= 1."),
        # figures
        (REFERENCE + "top1 = nan", "reference.top1 = nan: expected a number"),
        (REFERENCE + "top1 = inf", "reference.top1 = inf: expected a number <= 100.0."),
        (REFERENCE + "top1 = 1e308", "reference.top1 = 1e+308: expected a number <= 100.0."),
        (REFERENCE + "top1 = 770.4", "reference.top1 = 770.4: expected a number <= 100.0."),
        (REFERENCE + "top5 = -5.0", "reference.top5 = -5.0: expected a number >= 0.0."),
        (REFERENCE + "top1 = 9\ntop5 = 8.5", "reference: top5 = 8.5: less than top1 = 9."),
        (OTHER + "top1 = nan", "others[0].top1 = nan: expected a number"),
        (OTHER + "top1 = 9\ntop5 = 8", "others[0]: top5 = 8: less than top1 = 9."),
        (REFERENCE, "reference: neither top1 nor top5: a source alone is not a reference."),
        (REFERENCE + "gated = false", "reference: neither top1 nor top5"),
        # counts
        (TOP + "images = 0", "images = 0: expected a whole number >= 1."),
        (TOP + "images = 10_000_001", "images = 10000001: expected a whole number <= 10000000."),
        (TOLERANCE + "images = -5", "tolerance.paddle.images = -5: expected a whole number >= 0."),
        (
            TOLERANCE + "images = 50001",
            "tolerance.paddle.images = 50001: more than images = 50000.",
        ),
        (TOLERANCE + "images = " + "7" * 23, "tolerance.paddle.images = 77777777777777777777777:"),
        # names
        ('name = "x"\nmodel = "bse"', "model = 'bse': unknown. Did you mean 'base'? Available: "),
        (OTHER + 'top1 = 3\nset = "ImageNet V2"', "others[0]: set = 'ImageNet V2': unknown. Did"),
        ('model = "base"\nname = "demo"', "name = 'demo': reserved for --demo."),
        ('model = "base"\nname = "Demo"', "name = 'Demo': reserved for --demo."),
    ],
)
def test_what_is_refused_is_named(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(written(tmp_path, text)).startswith(message)


@pytest.mark.parametrize(
    "name",
    ["", "a/../../b", "a..b", "..", ".a", "-a", "a b", "a\n", "\x1b[0m", "é", "a\\b", 65 * "a"],
)
def test_names_that_are_no_file_names(tmp_path: Path, name: str) -> None:
    text = f'name = {json.dumps(name)}\nmodel = "base"'
    assert refusal(written(tmp_path, text)).startswith(f"name = {ascii(name)[:50]}")


@pytest.mark.parametrize("name", ["a", "A-1", "resnet50.a1_in1k", "_x", "7", 64 * "a", "demo2"])
def test_names_that_are(tmp_path: Path, name: str) -> None:
    assert load_config(written(tmp_path, f'name = "{name}"\nmodel = "base"')).name == name


def toml(value: object) -> str:
    """A value as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value)


SCALARS = (
    st.booleans()
    | st.integers(-(10**24), 10**24)
    | st.floats(allow_subnormal=False)  # see tests/test_calibration.py
    | st.text(st.characters(codec="utf-8", exclude_characters="\x7f"))  # JSON leaves it, TOML not
)
KEYS = st.sampled_from(
    ["name", "model", "images", "reference", "tolerance", "others", "source", "reason", "top1",
     "top5", "gated", "set", "paddle", "squash", "demo", "a` - at `$.name", "a` - at `$.others[3]"]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
)


@settings(max_examples=300)
@given(changes=st.dictionaries(KEYS, VALUES, max_size=4))
def test_whatever_a_file_says_it_is_refused_or_means_something(changes: dict[str, object]) -> None:
    rows = {"name": "x", "model": "base"} | changes
    text = "".join(f"{json.dumps(key)} = {toml(value)}\n" for key, value in rows.items())
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), text)
        try:
            config = load_config(path)
        except UsageError:
            assert refusal(path).isprintable()
            return
    assert config.model in pplcnet.VARIANTS
    assert 1 <= config.images <= 10_000_000
    assert all(0 <= row.images <= config.images for row in config.tolerance.values())
    for row in [*config.reference.values(), *config.others]:
        figures = [figure for figure in (row.top1, row.top5) if figure is not None]
        assert figures == sorted(figures)
        assert all(0 <= figure <= 100 for figure in figures)
        assert figures


@given(
    top1=st.floats(0, 100, allow_subnormal=False),
    top5=st.floats(0, 100, allow_subnormal=False),
    images=st.integers(1, 10_000_000),
)
def test_figures_that_make_sense_are_taken_as_they_are(
    top1: float, top5: float, images: int
) -> None:
    top1, top5 = sorted([top1, top5])
    text = f"images = {images}\n{REFERENCE}top1 = {top1!r}\ntop5 = {top5!r}\n"
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(written(Path(folder), text))
    assert config.images == images
    assert config.reference == {"": Reference("y", top1, top5)}


def test_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "own.toml") == "there is no such configuration file."


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read: Is a directory." in refusal(tmp_path)
    path = tmp_path / "own.toml"
    path.write_bytes(b"name = '\xff'")
    assert "cannot be read: 'utf-8' codec" in refusal(path)


def test_a_configuration_is_checked_without_torch(tmp_path: Path) -> None:
    script = "import sys, eval.config as c; c.load_variant('base'); print('torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout == "False\n"


def test_a_configuration_of_a_library_s_model(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(
        'name = "flowers"\nmodel = "timm:resnet10t"\nimages = 102\n'
        '[reference]\nsource = "ours"\ntop1 = 90.0\n'
        '[tolerance.own]\nimages = 2\nreason = "x"\n'
        '[tolerance.paddle]\nimages = 3\nreason = "y"\n'
    )
    config = load_config(path)
    assert config.model == "timm:resnet10t"
    assert {name: row.images for name, row in config.tolerance.items()} == {
        "own": 2,
        "paddle": 3,
    }
    named = config.with_own("torchvision,resize=248")
    assert {name: row.images for name, row in named.tolerance.items()} == {
        "torchvision,resize=248": 2,
        "paddle": 3,
    }
    assert config.with_own("paddle").tolerance["paddle"].images == 3  # what is named counts
