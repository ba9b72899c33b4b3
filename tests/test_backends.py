"""Every runtime answers as plain torch does, and says so when it cannot."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import randomize_bn
from torch import nn

import pplcnet
from eval.backends import create_predictor
from eval.errors import UsageError
from eval.images.preprocess import PREPROCESS, Crop

PREPROCESSING = PREPROCESS["torchvision"]
CPU = torch.device("cpu")
BATCH = 3


@pytest.fixture(scope="module")
def forms() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    model = pplcnet.create_model("small").eval()
    randomize_bn(model)
    return {"unfused": model, "reparameterized": pplcnet.reparameterize(model)}


@pytest.fixture(scope="module")
def crops() -> Crop:
    return np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), dtype=np.uint8)


def plain(model: nn.Module, crops: Crop) -> np.ndarray:
    """Torch as a textbook has it: NCHW float32, nothing prepared."""
    pixels = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    with torch.no_grad():
        return model((pixels - mean) / std).numpy()


def assert_agrees(found: np.ndarray, expected: np.ndarray, within: float = 1e-3) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < within * np.abs(expected).max()
    assert (found.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_answers_are_those_of_plain_torch(
    backend: str, forms: dict[str, nn.Module], crops: Crop
) -> None:
    if backend != "torch":  # each form is converted by a process of its own, for seconds
        forms = {"reparameterized": forms["reparameterized"]}
    predictor = create_predictor(
        backend, forms, PREPROCESSING, CPU, "fp32", batch_size=BATCH, workers=1
    )
    for batch in (crops, crops[:1]):  # a batch that had to be split is answered, too
        answers = predictor(batch)
        assert answers.keys() == forms.keys()
        for form, logits in answers.items():
            assert_agrees(logits, plain(forms[form], batch), within=1e-4)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("network", ["pooled", pytest.param("whole", marks=pytest.mark.slow)])
def test_compiled_answers_are_those_of_plain_torch(
    network: str, forms: dict[str, nn.Module], crops: Crop
) -> None:
    pooled = nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(147, 10)).eval()
    deploy = {"reparameterized": forms["reparameterized"] if network == "whole" else pooled}
    predictor = create_predictor(
        "compile", deploy, PREPROCESSING, CPU, "fp32", batch_size=BATCH, workers=1
    )
    expected = plain(deploy["reparameterized"], crops)
    assert_agrees(predictor(crops)["reparameterized"], expected, within=1e-4)


@pytest.mark.parametrize("backend", ["torch", pytest.param("openvino", marks=pytest.mark.slow)])
def test_bf16_is_near(backend: str, forms: dict[str, nn.Module], crops: Crop) -> None:
    deploy = {"reparameterized": forms["reparameterized"]}
    try:
        predictor = create_predictor(
            backend, deploy, PREPROCESSING, CPU, "bf16", batch_size=BATCH, workers=1
        )
    except UsageError as error:
        if "OpenVINO does not support it on this processor" not in str(error):
            raise
        pytest.skip("this processor has no bf16 for OpenVINO")
    for form, logits in predictor(crops).items():
        expected = plain(forms[form], crops)
        assert logits.dtype == np.float32
        difference = np.abs(logits - expected).max() / np.abs(expected).max()
        assert difference < 0.2, (form, difference)


@pytest.mark.parametrize(
    ("backend", "module", "extra"),
    [
        ("onnxruntime", "onnxruntime", "onnx"),
        ("onnxruntime", "onnxscript", "onnx"),
        ("openvino", "openvino", "openvino"),
    ],
)
def test_a_missing_runtime_is_named_with_its_extra(
    backend: str,
    module: str,
    extra: str,
    forms: dict[str, nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    absent: dict[str, ModuleType | None] = {module: None}
    for name, value in absent.items():
        monkeypatch.setitem(sys.modules, name, value)  # type: ignore[arg-type]
    deploy = {"reparameterized": forms["reparameterized"]}
    with pytest.raises(UsageError, match=rf"needs {module}.*\[{extra}\]"):
        create_predictor(backend, deploy, PREPROCESSING, CPU, "fp32", batch_size=1, workers=1)


@pytest.mark.parametrize(
    ("backend", "device", "precision", "words"),
    [
        ("onnxruntime", "cpu", "bf16", "fp32 only"),
        ("openvino", "cuda:0", "fp32", "--device cpu"),
    ],
)
def test_what_a_backend_cannot_do_is_refused(
    backend: str, device: str, precision: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        create_predictor(
            backend, {}, PREPROCESSING, torch.device(device), precision, batch_size=1, workers=1
        )


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "compile"])
@pytest.mark.slow
def test_on_real_photos_all_agree(backend: str, shared: Path) -> None:
    paths = sorted((shared / "imagenet-sample/val").rglob("*.JPEG"))
    assert len(paths) == 400
    model = pplcnet.create_model("base").eval()
    pplcnet.load_weights(model, shared / "oracle/base.pdparams")
    both = {"unfused": model, "reparameterized": pplcnet.reparameterize(model)}
    predictors = [
        create_predictor(name, both, PREPROCESSING, CPU, "fp32", batch_size=8, workers=1)
        for name in ("torch", backend)
    ]
    for start in range(0, len(paths), 8):
        crops = np.stack([PREPROCESSING.crop(p.read_bytes()) for p in paths[start : start + 8]])
        expected, found = (predictor(crops) for predictor in predictors)
        for form in both:
            assert_agrees(found[form], expected[form])
