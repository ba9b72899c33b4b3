"""ReaL labels: found by the official name, with a denominator of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import jpeg
from safetensors.torch import save_file
from timm.data.real_labels import RealLabelsImagenet

import pplcnet
from eval.errors import DataError
from eval.imagenet import main
from eval.images.real import labels_of, real_labels, score_real
from eval.images.valset import ValSet, open_valset
from eval.measure import engine
from eval.measure.metrics import Scores

MakeVal = Callable[..., Path]
NUMBERS = (1, 2, 3, 20, 41, 50000)


@pytest.fixture
def valset(tmp_path: Path) -> ValSet:
    (tmp_path / "val").mkdir()
    for number in NUMBERS:
        name = f"ILSVRC2012_val_{number:08}.JPEG"
        (tmp_path / "val" / name).write_bytes(jpeg(np.zeros((8, 8, 3), np.uint8)))
    return open_valset(tmp_path / "val")


def answered(valset: ValSet, tops: np.ndarray) -> engine.Measurement:
    """A measurement of given best five."""
    count = len(tops)
    scores = Scores(np.zeros(count, np.int64), tops, np.zeros((count, 5)), np.zeros(count))
    return engine.Measurement(
        valset, {"a": scores}, np.full(count, np.nan), None, [""] * count, 1.0
    )


def test_labels_are_those_of_the_file_names(valset: ValSet) -> None:
    found = labels_of(valset)
    assert found == [real_labels()[number - 1] for number in NUMBERS]
    assert len(real_labels()) == 50_000


def test_scores_are_timms(valset: ValSet) -> None:
    rng = np.random.default_rng(0)
    tops = np.array([rng.permutation(1000)[:5] for _ in NUMBERS])
    labelled = [row for row, number in enumerate(NUMBERS) if real_labels()[number - 1]]
    assert 2 < len(labelled) < len(NUMBERS)
    tops[labelled[0], 3] = min(real_labels()[NUMBERS[labelled[0]] - 1])  # among the five only
    for row in labelled[1:3]:
        tops[row, 0] = max(real_labels()[NUMBERS[row] - 1])

    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in NUMBERS]
    theirs = RealLabelsImagenet([""] * 50_000)
    hits = {1: 0, 5: 0}
    images = 0
    for name, top in zip(names, tops.tolist(), strict=True):
        known = theirs.real_labels[name]
        images += bool(known)
        for k in hits:
            hits[k] += any(answer in known for answer in top[:k])
    score = score_real(answered(valset, tops))["a"]
    assert (score.images, score.top1_correct, score.top5_correct) == (images, hits[1], hits[5])
    assert score.top1_correct < score.top5_correct
    assert score.top1 == 100 * hits[1] / images


def test_a_bad_image_counts_as_wrong(valset: ValSet) -> None:
    tops = np.full((len(NUMBERS), 5), -1)
    score = score_real(answered(valset, tops))["a"]
    assert score.images > 0
    assert score.top5_correct == 0


def test_names_that_are_not_official_are_refused(val_folder: MakeVal) -> None:
    with pytest.raises(DataError, match=r"a\.JPEG has no official name"):
        labels_of(open_valset(val_folder({"n01440764": ["a.JPEG"]})))


def test_a_run_shows_them_beside_the_official_ones(
    valset: ValSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(6)
    save_file(pplcnet.create_model("small").state_dict(), tmp_path / "w.safetensors")
    output = tmp_path / "out"
    words = ["--data", str(valset.root), "--variant", "small", "--real-labels", "--quiet"]
    words += ["--weights", str(tmp_path / "w.safetensors"), "--output", str(output)]
    assert main([*words, "--forms", "reparameterized"]) == 0
    images = sum(map(bool, labels_of(valset)))
    assert f"ReaL, {images} images\n" in capsys.readouterr().out
    (real,) = json.loads((output / "run.json").read_text())["real"].values()
    assert real["images"] == images
    assert "reparameterized, ReaL labels" in (output / "report.html").read_text()
