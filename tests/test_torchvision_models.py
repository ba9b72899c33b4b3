"""``--model torchvision:NAME``: torchvision's own pixels and answers, counted our way."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import FILES, ROOT, MakeVal, jpeg, rows_of
from PIL import Image
from torchvision import models

from eval.errors import ModelError, UsageError
from eval.imagenet import main
from eval.models import open_source, published_of
from eval.models.torchvision import find_weights, load_model, preprocess_of, published
from eval.request import Request

ENTRIES = [
    models.ResNet18_Weights.IMAGENET1K_V1,  # 256, 224, bilinear
    models.ResNet50_Weights.IMAGENET1K_V2,  # 232, 224
    models.EfficientNet_B0_Weights.IMAGENET1K_V1,  # bicubic
    models.EfficientNet_B1_Weights.IMAGENET1K_V2,  # 255, 240
    models.Inception_V3_Weights.IMAGENET1K_V1,  # 342, 299
]


def synthetic() -> list[bytes]:
    """Photos are not part of the project: wide, tall, tiny, gray, CMYK and rotated images."""
    rng = np.random.RandomState(5)
    shapes = ((300, 500), (500, 300), (40, 60), (256, 256), (257, 511), (1000, 260))
    files = [jpeg(rng.randint(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]
    for mode in ("L", "CMYK"):
        file = io.BytesIO()
        Image.open(io.BytesIO(files[0])).convert(mode).save(file, "JPEG")
        files.append(file.getvalue())
    return files


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    folder = Path(os.environ.get("PPLCNET_SHARED", ROOT.parent / "shared")) / "imagenet-sample"
    real = sorted((folder / "val").rglob("*.JPEG"))[::40] if folder.is_dir() else []
    return [path.read_bytes() for path in real] + synthetic()


# The same pixels


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry))
def test_pixels_are_those_of_torchvisions_own_transform(
    entry: models.WeightsEnum, photos: list[bytes]
) -> None:
    preprocess = preprocess_of(entry)
    transform = entry.transforms(antialias=True)
    for data in photos:
        crop = preprocess.crop(data)
        theirs = transform(Image.open(io.BytesIO(data)).convert("RGB")).permute(1, 2, 0).numpy()
        assert crop.dtype == np.uint8
        assert crop.shape == (preprocess.size, preprocess.size, 3) == theirs.shape
        # Bit for bit up to uint8: their floats, put back, are whole numbers, and these.
        back = (theirs * np.array(transform.std) + np.array(transform.mean)) * 255
        assert np.abs(back - back.round()).max() < 1e-3
        assert np.array_equal(back.round().astype(np.uint8), crop)
        ours = preprocess.normalize(crop[np.newaxis])[0]
        assert np.array_equal(ours, theirs)


def test_what_is_done_is_said(photos: list[bytes]) -> None:
    words = preprocess_of(models.EfficientNet_B1_Weights.IMAGENET1K_V2).description
    for part in ("short side 255, antialiased bilinear", "crop 240", "mean 0.485 0.456 0.406"):
        assert part in words
    assert "bicubic" in preprocess_of(models.EfficientNet_B0_Weights.IMAGENET1K_V1).description


def test_a_transform_of_another_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="is not torchvision's ImageClassification preset"):
        preprocess_of(torchvision.models.optical_flow.Raft_Small_Weights.DEFAULT)


# Names


@pytest.mark.parametrize(
    ("name", "model", "entry"),
    [
        ("resnet50", "resnet50", models.ResNet50_Weights.DEFAULT),
        ("resnet50.IMAGENET1K_V1", "resnet50", models.ResNet50_Weights.IMAGENET1K_V1),
        ("ResNet50_Weights.IMAGENET1K_V1", "resnet50", models.ResNet50_Weights.IMAGENET1K_V1),
        ("ViT_B_16_Weights.DEFAULT", "vit_b_16", models.ViT_B_16_Weights.IMAGENET1K_V1),
    ],
)
def test_names_of_models_and_of_weights(name: str, model: str, entry: models.WeightsEnum) -> None:
    assert find_weights(name) == (model, entry)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet51", "Did you mean resnet"),
        ("resnet50.IMAGENET1K_V9", "It has IMAGENET1K_V1, IMAGENET1K_V2"),
        ("", "has no such classifier"),
        ("raft_small", "has no such classifier"),
        ("fcn_resnet50", "has no such classifier"),
    ],
)
def test_wrong_names(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", "x", "--model", f"torchvision:{name}", "--output", "x"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) <= 2


# Checkpoints


def test_other_classes_are_refused(tmp_path: Path) -> None:
    torch.save(models.resnet18(num_classes=10).state_dict(), tmp_path / "ten.pth")
    with pytest.raises(ModelError, match=r"a head of 10 classes, not of 1000\.\nName.* --classes"):
        load_model("resnet18", tmp_path / "ten.pth", 1000)
    with pytest.raises(ModelError, match=r"of 10 classes, not of 9\.\n.*add --background-first"):
        load_model("resnet18", tmp_path / "ten.pth", 9)
    assert load_model("resnet18", tmp_path / "ten.pth", 10).model.fc.out_features == 10  # type: ignore[union-attr]


def test_checkpoints_that_cannot_be_used(tmp_path: Path) -> None:
    state = models.resnet18().state_dict()
    state["fc.bias"][3] = float("inf")
    torch.save(state, tmp_path / "inf.pth")
    with pytest.raises(ModelError, match=r"fc\.bias: NaN or infinite"):
        load_model("resnet18", tmp_path / "inf.pth", 1000)
    torch.save(models.resnet18(), tmp_path / "code.pth")  # a pickled module would be executed
    with pytest.raises(ModelError):
        load_model("resnet18", tmp_path / "code.pth", 1000)
    with pytest.raises(ModelError, match=r"does not fit torchvision's resnet34") as caught:
        load_model("resnet34", _saved(tmp_path), 1000)
    first, second = str(caught.value).splitlines()
    assert re.search(r"classes: 80 missing \(layer1\.2\.conv1\.weight, .*\)", first)  # 8 blocks
    assert "Error(s)" not in first
    assert second == "Use a checkpoint of this model."


def _saved(folder: Path) -> Path:
    torch.manual_seed(1)
    path = folder / "resnet18.pth"
    torch.save(models.resnet18().state_dict(), path)
    return path


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_models_with_auxiliary_heads_keep_their_input_transform(name: str, tmp_path: Path) -> None:
    """As torchvision builds them for its weights (`_ovewrite_named_param` in models/*.py)."""
    made = models.get_model(name, aux_logits=True, transform_input=True, init_weights=False)
    torch.save(made.state_dict(), tmp_path / "w.pth")
    loaded = load_model(name, tmp_path / "w.pth", 1000).model
    assert loaded.transform_input is True
    assert not loaded.training


# A run


@pytest.fixture
def output(val_folder: MakeVal, tmp_path: Path) -> Path:
    words = ["--data", str(val_folder(FILES)), "--model", "torchvision:resnet18"]
    words += ["--weights", str(_saved(tmp_path)), "--output", str(tmp_path / "out"), "--quiet"]
    words += ["--image-set", "val"]
    assert main(words) == 0
    return tmp_path / "out"


def test_predictions_are_torchvisions(output: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = models.resnet18().eval()
    transform = models.ResNet18_Weights.DEFAULT.transforms()
    rows = rows_of(output / "predictions.csv")
    for row in rows:
        image = Image.open(tmp_path / "val" / row["path"])
        with torch.inference_mode():
            logits = model(transform(image)[np.newaxis])[0]
        assert int(row["unfused_top1"]) == int(logits.argmax())
        assert float(row["unfused_prob1"]) == pytest.approx(float(logits.softmax(0).max()), 1e-3)
    (summary,) = rows_of(output / "summary.csv")
    assert summary["params"] == "11689512"  # torchvision's own figure, in the meta of the weights
    assert models.ResNet18_Weights.DEFAULT.meta["num_params"] == 11689512
    # torchvision's documentation: 1.81 GFLOPS, which are multiply-accumulates.
    assert float(summary["macs"]) / 1e9 == pytest.approx(1.814, abs=0.002)
    assert summary["preprocess"] == "torchvision"


def test_published_accuracies_are_shown_and_not_gated(output: Path) -> None:
    (summary,) = rows_of(output / "summary.csv")
    assert (summary["reference_top1"], summary["reference_top5"]) == ("69.758", "89.078")
    assert summary["reference_source"] == "torchvision, ResNet18_Weights.IMAGENET1K_V1"
    assert summary["tolerance"] == ""
    run = json.loads((output / "run.json").read_text())
    (reference,) = run["published"]["reference"].values()
    assert reference["gated"] is False
    assert run["published"]["tolerance"] == {}
    page = (output / "report.html").read_text()
    assert "69.758" in page
    assert "<img " in page, "a library's model has thumbnails, too"


def test_a_whole_set_has_no_verdict() -> None:
    """Random answers on all of 50,000 images would fail a gated figure."""
    from small_evaluations import counted

    from eval.judge.verdict import Verdict, judge

    entry = models.ResNet18_Weights.DEFAULT
    own = published("resnet18.IMAGENET1K_V1", "resnet18", entry).with_own("torchvision")
    (result,) = judge(counted(50, 250), own, "torchvision", "fp32").forms
    assert result.verdict == Verdict.NO_REFERENCE
    assert "for information only" in result.reason
    assert own.images == 50_000


@pytest.mark.parametrize(("asked", "verdict"), [(4, "PASS"), (3, "FAIL"), (None, "NO_REFERENCE")])
def test_a_tolerance_judges_by_the_published_figures(asked: int | None, verdict: str) -> None:
    """69.758 and 89.078 % are 34,879 and 44,539 of 50,000; four more are found."""
    from small_evaluations import counted

    from eval.judge.verdict import judge

    request = Request(data="x", model="torchvision:resnet18", tolerance=asked)
    own = published_of(open_source(request))
    measured = counted(34_883, 44_539)
    (result,) = judge(measured, own, "torchvision", "fp32").forms
    assert (result.verdict, result.tolerance) == (verdict, asked)
    # The figures are of the model's own recipe.
    (result,) = judge(measured, own, "squash", "fp32").forms
    assert result.verdict == "NO_REFERENCE"


def test_torchvision_has_no_other_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", "x", "--model", "torchvision:resnet18", "--output", str(tmp_path / "out")]
    assert main([*words, "--forms", "reparameterized"]) == 2
    assert "has no reparameterized forms" in capsys.readouterr().err


def test_old_checkpoints_of_densenet_have_other_names(tmp_path: Path) -> None:
    model = torchvision.models.densenet121()
    state = model.state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", name): value
        for name, value in state.items()
    }
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "old.pth")
    loaded = load_model("densenet121", tmp_path / "old.pth", 1000).model
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
