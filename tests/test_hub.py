"""A folder of the Hugging Face hub as ``--weights``: what it says of itself counts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import FILES, MakeVal
from timm.models import save_for_hf

from eval import Request, evaluate
from eval.errors import ModelError, UsageError
from eval.models import open_source
from eval.models.hub import HubSource

NAME = "test_resnet"  # timm's: 160 pixels, crop_pct 0.95, mean and deviation 0.5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    save_for_hf(timm.create_model(NAME), str(tmp_path / "hub"), safe_serialization=True)
    return tmp_path / "hub"


def changed(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_as_timm_writes_it(folder: Path, val_folder: MakeVal) -> None:
    val = val_folder(FILES)
    by_name = Request(data=val, model=f"timm:{NAME}", weights=folder / "model.safetensors")
    expected, found = evaluate(by_name), evaluate(Request(data=val, weights=folder))
    assert found.summary["preprocess"].tolist() == expected.summary["preprocess"].tolist()
    ours, theirs = found.measured.scores["unfused"], expected.measured.scores["unfused"]
    np.testing.assert_array_equal(ours.prob, theirs.prob)
    assert {file.path.name for file in found.subject.files} == {"model.safetensors", "config.json"}


def test_its_own_preprocessing(folder: Path) -> None:
    stated = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    changed(folder, pretrained_cfg=stated | {"mean": [0.1, 0.2, 0.3], "input_size": [3, 192, 192]})
    request = Request(data=".", weights=folder)
    own = open_source(request).own_preprocess()
    # floor(192 / 0.95)
    assert own.name == "torchvision,resize=202,crop=192,mean=0.1/0.2/0.3,std=0.5"
    tested = stated | {"test_input_size": [3, 208, 208], "test_crop_pct": 1.0}
    changed(folder, pretrained_cfg=tested)
    at_test_size = open_source(request).own_preprocess()
    assert at_test_size.name.startswith("torchvision,resize=208,crop=208,")
    processor = {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "resample": 2,
        "size": {"height": 160, "width": 160}, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    source = open_source(request)
    assert isinstance(source, HubSource)
    assert "resize=160x160" in source.own_preprocess().name
    assert [path.name for path in source.beside] == ["config.json", "preprocessor_config.json"]


def test_its_own_classes(folder: Path, val_folder: MakeVal) -> None:
    val = val_folder({"cat": ["a.JPEG"], "dog": ["b.JPEG"], "owl": ["c.JPEG"]})
    names = ["owl", "cat", "dog", "fox", "hen", "ant", "bee"]
    save_for_hf(timm.create_model(NAME, num_classes=7), str(folder), safe_serialization=True)
    changed(folder, id2label={str(index): name for index, name in enumerate(names)})
    found = evaluate(Request(data=val, weights=folder))
    assert found.measured.labels.tolist() == [1, 2, 0]


def test_a_head_of_other_classes_names_the_option(folder: Path, val_folder: MakeVal) -> None:
    save_for_hf(timm.create_model(NAME, num_classes=7), str(folder), safe_serialization=True)
    with pytest.raises(ModelError, match=r"head of 7 classes, not of 1000\.\nName.*--classes FILE"):
        evaluate(Request(data=val_folder(FILES), weights=folder))


def test_a_named_model_counts_first(folder: Path) -> None:
    source = open_source(Request(data=".", variant="base", weights=folder))
    assert source.name == "base"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "resnet", "architectures": ["ResNetForImageClassification"]},
            "a ResNetForImageClassification of Hugging Face's transformers.*\n.*optimum-cli export",
        ),
        ({"model_type": "vit"}, "a vit of Hugging Face's transformers"),
        ({"architecture": "nothing_like_it"}, "'nothing_like_it', which timm .* does not have"),
        ([1], "config.json cannot be read: not an object"),
    ],
)
def test_what_it_is_not(tmp_path: Path, config: object, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        open_source(Request(data=".", weights=tmp_path))


@pytest.mark.parametrize(
    ("tag", "name"), [("a2_in1k", "resnet50.a2_in1k"), ("my_own", "resnet50.a1_in1k")]
)
def test_the_tag_of_its_weights(tag: str, name: str, tmp_path: Path) -> None:
    """By which timm's figures are found; one that timm does not know means nothing."""
    config = {"architecture": "resnet50", "pretrained_cfg": {"tag": tag}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_source(Request(data=".", weights=tmp_path)).name == name


def test_preprocessing_that_cannot_be_said(folder: Path) -> None:
    changed(folder, pretrained_cfg={"mean": "gray"})
    with pytest.raises(UsageError, match=r"no recipe can say.*\nName one with --preprocess"):
        open_source(Request(data=".", weights=folder)).own_preprocess()


def test_a_network_of_this_package(tmp_path: Path) -> None:
    model = timm.create_model("pplcnetv2_small")
    save_for_hf(model, str(tmp_path / "hub"), safe_serialization=True)
    source = open_source(Request(data=".", weights=os.fspath(tmp_path / "hub")))
    assert source.name == "pplcnetv2_small.paddle_in1k"
