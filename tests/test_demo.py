"""The demo: the same everywhere, with ImageNet's oddities, and with counts that mistakes change.

The reference is that of scripts/make_demo.py: timm, torchvision and cv2, none of our model or
pipeline. It runs on some of the images; `scripts/make_demo.py --check` takes all.
"""

from __future__ import annotations

import importlib.util
import io
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import get_sampling
from timm.data import ImageNetInfo
from torch import nn

from eval.errors import DataError
from eval.models import demo

SYNSETS = ImageNetInfo().label_names()


@pytest.fixture(scope="module")
def made(made_demo: tuple[Path, Path]) -> tuple[Path, Path]:
    return made_demo


@pytest.fixture(scope="module")
def files(made: tuple[Path, Path]) -> list[bytes]:
    return [path.read_bytes() for path in sorted(made[0].glob("*/*"))]


@pytest.fixture
def quick(files: list[bytes], monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Files that making the demo takes instead of drawing them, so that it takes a second."""
    files = list(files)
    digests = dict(zip(files, demo.fitted()["pixels"], strict=True))
    real = demo.pixel_digest
    monkeypatch.setattr(demo, "demo_image", lambda index: files[index])
    monkeypatch.setattr(
        demo, "pixel_digest", lambda file: digests[file] if file in digests else real(file)
    )
    return files


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    path = Path(__file__).parent.parent / "scripts" / "make_demo.py"
    spec = importlib.util.spec_from_file_location("make_demo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(reference: ModuleType) -> nn.Module:
    return cast(nn.Module, reference.reference_model(demo.demo_weights()))


def image(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))


# --- The files ----------------------------------------------------------------------------------


def test_one_image_for_each_of_1000_synsets(made: tuple[Path, Path]) -> None:
    val, weights = made
    assert [folder.name for folder in sorted(val.iterdir())] == SYNSETS
    names = [path.name for path in sorted(val.glob("*/*"))]
    assert names == [f"demo_{i:04d}.JPEG" for i in range(1000)]
    assert weights.name == "PPLCNetV2_base_demo.pdparams"
    size = sum(path.stat().st_size for path in val.parent.rglob("*") if path.is_file())
    assert size < 60e6


def test_images_are_the_same_every_time(files: list[bytes]) -> None:
    for index in (0, 3, 11, 17, 23, 29, 31, demo._PNG, 999):
        assert demo.demo_image(index) == files[index]


def test_weights_are_the_same_every_time() -> None:
    first, second = demo.demo_weights(), demo.demo_weights()
    assert list(first) == list(second)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_oddities_of_imagenet_are_there(files: list[bytes]) -> None:
    images = [image(file) for file in files]
    formats = Counter(each.format for each in images)
    modes = Counter(each.mode for each in images)
    turns = Counter(each.getexif().get(0x0112) for each in images)
    assert formats == {"JPEG": 999, "PNG": 1}
    assert modes["L"] == 25
    assert modes["CMYK"] == 25
    assert set(turns) == {None, 1, 2, 3, 4, 5, 6, 7, 8}
    assert min(turns.values()) >= 5
    assert sum("progressive" in each.info for each in images) == 25
    assert sum(max(each.size) < 256 for each in images) >= 20
    assert sum(max(each.size) > 2000 for each in images) == 3
    assert sum(max(each.size) >= 2 * min(each.size) for each in images) >= 25
    assert sum(each.height > each.width for each in images) > 200
    samplings = Counter(get_sampling(each) for each in images if each.format == "JPEG")
    assert min(samplings[0], samplings[2]) >= 150  # 4:4:4 and 4:2:0


def test_sizes_round_and_crop_in_every_way(files: list[bytes]) -> None:
    ends: Counter[str] = Counter()
    for each in map(image, files):
        long = 256 * max(each.size) / min(each.size)
        ends["size"] += int(long) != round(long)
        ends["offset"] += round((int(long) - 224) / 2) != (int(long) - 224) // 2
    assert ends["size"] > 300
    assert ends["offset"] > 150


def test_weights_file_is_what_paddle_saves(made: tuple[Path, Path]) -> None:
    content = made[1].read_bytes()
    assert content[:2] == b"\x80\x04"
    stored = pickle.loads(content)
    names = stored.pop("StructuredToParameterName@@")
    assert set(names) == set(stored)
    assert len(set(names.values())) == len(names) == 278
    assert names["stem.0.bn._variance"] == "batch_norm2d_0.w_2"
    assert stored["fc.weight"].shape == (1280, 1000)
    assert stored["stages.2.1.dw_conv_list.2.conv.weight"].shape == (512, 1, 1, 1)
    assert "stages.2.0.dw_conv_list.2.conv.weight" not in stored
    placeholders = [stored[f"stages.{s}.{b}.dw_conv.bias"] for s, b in [(2, 0), (2, 5), (3, 1)]]
    assert all(placeholder.std() > 0.1 for placeholder in placeholders)
    for array in stored.values():
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
    variances = [value.min() for name, value in stored.items() if name.endswith("_variance")]
    assert 0 < min(variances) < 1e-3


# --- Making them --------------------------------------------------------------------------------


def test_an_intact_demo_is_used_again(made: tuple[Path, Path]) -> None:
    calls: list[int] = []
    before = made[1].stat().st_ino
    assert demo.make_demo(made[0].parent, SYNSETS, lambda done, total: calls.append(done)) == made
    assert made[1].stat().st_ino == before
    assert not calls


def test_a_damaged_demo_is_made_anew(quick: list[bytes], tmp_path: Path) -> None:
    root = tmp_path / "new" / "demo"
    calls: list[tuple[int, int]] = []
    val, _ = demo.make_demo(root, SYNSETS, lambda done, total: calls.append((done, total)))
    assert calls == [(i, 1000) for i in range(1, 1001)]
    damaged = val / SYNSETS[5] / "demo_0005.JPEG"
    damaged.write_bytes(quick[5][:-1])
    (val / SYNSETS[6] / "stray.JPEG").write_bytes(b"")
    demo.make_demo(root, SYNSETS)
    assert damaged.read_bytes() == quick[5]
    assert len(list(val.glob("*/*"))) == 1000
    assert [path.name for path in root.parent.iterdir()] == ["demo"]


def test_two_at_a_time_do_not_disturb_each_other(quick: list[bytes], tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: demo.make_demo(tmp_path / "demo", SYNSETS), range(2)))
    assert made[0] == made[1]
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert len(list(made[0][0].glob("*/*"))) == 1000


def test_other_pixels_are_noticed(quick: list[bytes], tmp_path: Path) -> None:
    other = image(quick[7]).convert("RGB")
    color = other.getpixel((3, 3))
    assert isinstance(color, tuple)
    other.putpixel((3, 3), (color[0] ^ 1, *color[1:]))
    lossless = io.BytesIO()
    other.save(lossless, "PNG")
    quick[7] = lossless.getvalue()
    with pytest.raises(DataError, match=r"1 of 1000 images .*demo_0007\.JPEG.*Pillow \d"):
        demo.make_demo(tmp_path / "demo", SYNSETS)
    assert list(tmp_path.iterdir()) == []


def test_another_encoding_of_the_same_pixels_is_no_difference(files: list[bytes]) -> None:
    lossless = io.BytesIO()
    image(files[1]).save(lossless, "PNG")
    assert lossless.getvalue() != files[1]
    assert np.array_equal(demo.pixel_digest(lossless.getvalue()), demo.pixel_digest(files[1]))


def test_orientation_is_part_of_the_digest(files: list[bytes]) -> None:
    lossless = io.BytesIO()
    image(files[17]).save(lossless, "PNG", exif=Image.Exif())
    assert not np.array_equal(demo.pixel_digest(lossless.getvalue()), demo.pixel_digest(files[17]))


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="contains something else; use another folder"):
        demo.make_demo(tmp_path, SYNSETS)
    assert (tmp_path / "thesis.txt").read_text() == "x"


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"cannot write .*; use another folder"):
        demo.make_demo(tmp_path / "file" / "demo", SYNSETS)


def test_synsets_must_be_1000_different_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 1000 different synsets, but got 999"):
        demo.make_demo(tmp_path / "demo", [*SYNSETS[:999], SYNSETS[0]])


# --- The answer ---------------------------------------------------------------------------------


def test_known_answer_is_that_of_the_stored_outcomes(reference: ModuleType) -> None:
    assert list(demo.KNOWN_ANSWER) == list(reference.PREPROCESS)
    for answer, outcome in zip(demo.KNOWN_ANSWER.values(), demo.fitted()["outcome"], strict=True):
        assert answer == ((outcome == 0).sum(), (outcome <= 1).sum())
        assert 200 < answer[0] < answer[1] < 700


OTHERS = ("paddle", "squash")


# Steps without a factor of 40, so that all kinds of images are among them.
@pytest.mark.parametrize(
    ("preprocess", "step"),
    [("torchvision", 27), *(pytest.param(p, 19, marks=pytest.mark.slow) for p in OTHERS)],
)
def test_reference_gives_the_stored_outcomes(
    files: list[bytes], reference: ModuleType, model: nn.Module, preprocess: str, step: int
) -> None:
    labels = range(0, 1000, step)
    logits = reference.reference_logits(
        model, [files[i] for i in labels], reference.PREPROCESS[preprocess]
    )
    ranks = reference.ranks(logits, labels)
    row = list(demo.KNOWN_ANSWER).index(preprocess)
    outcome = np.where(ranks < 1, 0, np.where(ranks < 5, 1, 2))
    assert np.array_equal(outcome, demo.fitted()["outcome"][row][list(labels)])


# The share of right answers that must be lost; scripts/make_demo.py --sensitivity has them all.
@pytest.mark.parametrize(
    ("mistake", "lost"),
    [
        ("BGR instead of RGB", 0.8),
        ("crop 1 px to the right", 0.8),
        ("no antialias", 0.1),
        ("no dropout factor", 0.9),
        *(
            pytest.param(mistake, lost, marks=pytest.mark.slow)
            for mistake, lost in (
                ("long side rounded", 0.1),
                ("resize by cv2", 0.3),
                ("BN epsilon 1e-3", 0.9),
                ("no 1x1 branch", 0.9),
                ("no SE", 0.9),
                ("hard sigmoid in SE", 0.8),
                ("no shortcut", 0.9),
                ("placeholders loaded", 0.9),
            )
        ),
    ],
)
def test_mistakes_lose_right_answers(
    files: list[bytes], reference: ModuleType, model: nn.Module, mistake: str, lost: float
) -> None:
    labels = np.flatnonzero(demo.fitted()["outcome"][0] == 0)[::20]
    pixels = reference.torchvision_input
    if mistake in reference.MODEL_MISTAKES:
        model = reference.spoiled(model, mistake)
    else:
        _, pixels = reference.PIXEL_MISTAKES[mistake]
    logits = reference.reference_logits(model, [files[i] for i in labels], pixels)
    assert (reference.ranks(logits, labels) > 0).mean() >= lost
