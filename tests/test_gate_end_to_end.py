"""The gate does fail: preprocessing, weights and labels broken on purpose, on the demo's images."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.imagenet import main
from eval.images.preprocess import PREPROCESS, Crop
from eval.regression import main as regression

LIMIT = "48"


@pytest.fixture(scope="module")
def made(made_demo: tuple[Path, Path]) -> tuple[Path, Path]:
    return made_demo


def evaluate(data: Path, weights: Path, output: Path) -> Path:
    words = {"--data": data, "--weights": weights, "--output": output, "--limit": LIMIT}
    fixed = ["--variant", "base", "--forms", "reparameterized", "--quiet"]
    assert main([str(w) for pair in words.items() for w in pair] + fixed) == 0
    return output


@pytest.fixture(scope="module")
def baseline(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluate(*made, tmp_path_factory.mktemp("baseline") / "out")


def gate(baseline: Path, candidate: Path, *more: str) -> int:
    return regression(["--baseline", str(baseline), "--candidate", str(candidate), *more])


def test_the_same_again_passes(made: tuple[Path, Path], baseline: Path, tmp_path: Path) -> None:
    assert gate(baseline, evaluate(*made, tmp_path / "out"), "--max-drop-top1", "0") == 0


# test_regression has more of them, with a smaller network.
@pytest.mark.parametrize(
    "mistake", [pytest.param("channels", marks=pytest.mark.slow), "one pixel off"]
)
def test_broken_preprocessing_is_caught(
    mistake: str, made: tuple[Path, Path], baseline: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    right = PREPROCESS["torchvision"]

    def wrong(data: bytes) -> Crop:
        crop = right.crop(data)
        return crop[..., ::-1] if mistake == "channels" else np.roll(crop, 1, axis=0)

    monkeypatch.setitem(PREPROCESS, "torchvision", replace(right, crop=wrong))
    assert gate(baseline, evaluate(*made, tmp_path / "out")) == 1


def test_broken_weights_are_caught(made: tuple[Path, Path], baseline: Path, tmp_path: Path) -> None:
    data, weights = made
    tensors = pickle.loads(weights.read_bytes())  # made by ourselves just now
    tensors["stages.3.1.dw_conv_list.2.bn.bias"] = tensors[
        "stages.3.1.dw_conv_list.2.bn.bias"
    ] + np.float32(0.5)
    broken = tmp_path / "broken.pdparams"
    broken.write_bytes(pickle.dumps(tensors, protocol=4))
    candidate = evaluate(data, broken, tmp_path / "out")
    assert gate(baseline, candidate) == 2, "other weights are not compared unasked"
    assert gate(baseline, candidate, "--allow-other-weights", "--max-drop-top1", "5") == 1


def test_broken_labels_are_caught(made: tuple[Path, Path], baseline: Path, tmp_path: Path) -> None:
    """Each folder's image in the next folder: another set, and next to nothing is right."""
    data, weights = made
    folders = sorted(data.iterdir())
    for folder, after in zip(folders, folders[1:] + folders[:1], strict=True):
        (image,) = folder.iterdir()
        (tmp_path / "val" / after.name).mkdir(parents=True)
        shutil.copyfile(image, tmp_path / "val" / after.name / image.name)
    assert gate(baseline, evaluate(tmp_path / "val", weights, tmp_path / "out")) == 2
