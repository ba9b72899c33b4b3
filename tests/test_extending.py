"""CONTRIBUTING's promises: a source of models and a recipe are each one module and one row."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval import Request, evaluate, models
from eval.images.preprocess import crop_of
from eval.models import Entry
from eval.recipe import NAMED, Recipe

MakeVal = Callable[..., Path]

SOURCE = '''
import torch
from eval.config import VariantConfig
from eval.models import RequestedImages, Subject, choose_preprocess
from eval.recipe import NAMED


class MeanColor(torch.nn.Module):
    """Logit k is k times the mean of the image: the answer is always 0 or the last class."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = torch.nn.Parameter(torch.arange(classes, dtype=torch.float32))

    def forward(self, images):
        return images.mean((1, 2, 3))[:, None] * self.classes


class Source(RequestedImages):
    name = "mean-color"
    published = VariantConfig("mean-color", "mine:mean-color", 50_000, {}, {})
    preprocess = "torchvision"

    def own_preprocess(self):
        from eval.images.preprocess import Preprocess

        return Preprocess.of(NAMED["torchvision"])

    def load(self, classes, observer):
        model = MeanColor(classes).eval()
        return Subject(
            name=self.name, title="mean color", weights="none", layout="none", files=(),
            forms={"unfused": model}, preprocess=choose_preprocess(self),
            published=self.published, params={"unfused": 0}, macs={"unfused": 0},
        )


open_source = Source
'''


@pytest.fixture
def val(val_folder: MakeVal) -> Path:
    return val_folder({"n01440764": ["a.JPEG"], "n15075141": ["b.JPEG"]})


def test_add_a_source(val: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_source.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    row = Entry("my_source", lambda request: (request.library_model or "").startswith("mine:"))
    monkeypatch.setattr(models, "SOURCES", (row, *models.SOURCES))
    evaluation = evaluate(Request(data=val, model="mine:mean-color"))
    assert evaluation.subject.title == "mean color"
    top = evaluation.measured.scores["unfused"].top[:, 0]
    assert set(top.tolist()) <= {0, 999}
    sys.modules.pop("my_source")


def test_add_a_recipe(val: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirrored: Recipe = replace(NAMED["torchvision"], resize=230, channels="bgr")
    monkeypatch.setitem(NAMED, "mine", mirrored)  # type: ignore[arg-type]
    request = Request(
        data=val, variant="small", weights=weights, forms="reparameterized", preprocess="mine"
    )
    evaluation = evaluate(request)
    assert evaluation.summary["preprocess"].tolist() == ["mine"]
    again = evaluate(replace(request, preprocess="torchvision,resize=230,channels=bgr"))
    for one, other in zip(
        evaluation.measured.scores.values(), again.measured.scores.values(), strict=True
    ):
        assert np.array_equal(one.nll, other.nll)
    data = next(val.glob("*/*")).read_bytes()
    assert crop_of(mirrored, data).shape == (224, 224, 3)
