"""The official Paddle implementation's own answers on 400 real photos (not part of the project)."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import pplcnet
from eval.backends.pytorch import TorchPredictor
from eval.imagenet import main
from eval.images.preprocess import PREPROCESS
from eval.images.valset import open_valset
from eval.measure import engine
from eval.metrics import rank_of_label

FORMS = ("unfused", "reparameterized")
STEP = 4  # every fourth photo; `test_the_command` has others, in the slow tests all of them
# Each once: `test_the_command` has both forms, and other tests that they are the same.
CASES = [
    ("torchvision", "reparameterized"),
    ("paddle", "unfused"),
    pytest.param("torchvision", "unfused", marks=pytest.mark.slow),
    pytest.param("paddle", "reparameterized", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def model(shared: Path) -> pplcnet.PPLCNetV2:
    model = pplcnet.create_model("base")
    pplcnet.load_weights(model, shared / "oracle" / "base.pdparams")
    return model.eval()


@pytest.fixture(scope="module")
def oracle(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "oracle" / "base_logits.npz") as file:
        return dict(file)


@pytest.mark.parametrize(("preprocess", "form"), CASES)
def test_logits_and_ranks(
    preprocess: str,
    form: str,
    model: pplcnet.PPLCNetV2,
    oracle: dict[str, np.ndarray],
    shared: Path,
) -> None:
    used = model if form == "unfused" else pplcnet.reparameterize(model)
    crop = PREPROCESS[preprocess]
    predictor = TorchPredictor({form: used}, crop, torch.device("cpu"))
    valset = open_valset(shared / "imagenet-sample" / "val")
    batches = []
    for batch in engine._batches(np.arange(0, len(valset.samples), STEP), 8):
        crops = [crop.crop(valset.read(valset.samples[i].path)) for i in batch]
        batches.append(predictor(np.stack(crops))[form])
    found = np.concatenate(batches)
    expected = oracle[preprocess][::STEP]  # (100, 1000), sorted by path
    assert np.abs(found - expected).max() < 2e-3
    assert np.array_equal(found.argmax(axis=1), expected.argmax(axis=1))
    labels = oracle["label"][::STEP]
    assert np.array_equal(rank_of_label(found, labels), rank_of_label(expected, labels))


def test_without_the_dropout_factor_the_logits_are_wrong(
    model: pplcnet.PPLCNetV2, oracle: dict[str, np.ndarray], shared: Path
) -> None:
    preprocess = PREPROCESS["paddle"]
    crops = np.stack(
        [preprocess.crop((shared / "imagenet-sample" / p).read_bytes()) for p in oracle["path"][:4]]
    )
    predictor = TorchPredictor({"unfused": model}, preprocess, torch.device("cpu"))
    assert np.abs(predictor(crops)["unfused"] - oracle["paddle"][:4]).max() < 2e-3
    without = copy.deepcopy(model)
    without.last_conv.p = 0.0
    predictor = TorchPredictor({"unfused": without}, preprocess, torch.device("cpu"))
    assert np.abs(predictor(crops)["unfused"] - oracle["paddle"][:4]).max() > 0.1


@pytest.mark.parametrize("images", [60, pytest.param(400, marks=pytest.mark.slow)])
def test_the_command(
    images: int,
    oracle: dict[str, np.ndarray],
    shared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The job as a user runs it, both forms at once."""
    words = {
        "--data": shared / "imagenet-sample" / "val",
        "--variant": "base",
        "--weights": shared / "oracle" / "base.pdparams",
        "--preprocess": "paddle",
        "--output": tmp_path / "out",
        "--limit": images,
    }
    code = main([str(word) for pair in words.items() for word in pair] + ["--quiet"])
    assert code == 0
    with (tmp_path / "out" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    official = dict(zip(oracle["path"], oracle["paddle"], strict=True))
    labels = dict(zip(oracle["path"], oracle["label"][:, np.newaxis], strict=True))
    with (tmp_path / "out" / "predictions.csv").open() as file:
        predictions = list(csv.DictReader(file))
    assert len(predictions) == images
    ranks = []
    for prediction in predictions:
        path = f"val/{prediction['path']}"
        ranks += rank_of_label(official[path][np.newaxis], labels[path]).tolist()
        for form in FORMS:
            assert int(prediction[f"{form}_top1"]) == official[path].argmax()
    top1, top5 = (sum(rank < k for rank in ranks) for k in (1, 5))
    if images == 400:
        counts = json.loads((shared / "oracle" / "counts.json").read_text())["paddle"]
        assert (top1, top5) == (counts["top1_correct"], counts["top5_correct"])
    assert [row["form"] for row in rows] == list(FORMS)
    for row in rows:
        assert (int(row["top1_correct"]), int(row["top5_correct"])) == (top1, top5)
        # Photos of ImageNet's classes, not its own.
        assert row["verdict"] == ("NO_REFERENCE" if images == 400 else "PARTIAL")
        assert row["prediction_flips"] == "0"
    assert "unidentified images" in capsys.readouterr().out
