"""What computes the logits; each module is one runtime behind the same interface.

    pytorch.py   torch eager mode and torch.compile
    lowering.py  a network made faster for torch on a CPU
    tracing.py   a network as a graph of torch's basic operations
    onnx.py      export, and ONNX Runtime
    openvino.py  OpenVINO
    exported.py  what an exported file must be
    quantize.py  post-training int8
    device.py    which device, and exact float32

Modules of a runtime are imported when it is asked for: each is an extra of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from eval.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from eval.images.preprocess import Crop, Preprocess

BACKENDS = ("torch", "onnxruntime", "openvino", "compile")


class Predictor(Protocol):
    """A backend: uint8 crops (B, size, size, 3) to logits (B, classes) of each form, float32.

    It is called by several threads at once, mostly with batches of the size it was made for.
    """

    def __call__(self, crops: Crop) -> Mapping[str, NDArray[Any]]:
        """Answer a batch."""


def create_predictor(
    backend: str,
    models: Mapping[str, nn.Module | Path],
    preprocess: Preprocess,
    device: torch.device,
    precision: str,
    *,
    batch_size: int,
    workers: int,
) -> Predictor:
    """The forms of a model in a runtime.

    Args:
        backend: one of `BACKENDS`.
        models: form name to model, or to an exported file.
        preprocess: whose normalised input the models take.
        device: where to compute.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        batch_size: images in a batch.
        workers: threads that will call it.

    Raises:
        UsageError: the backend is not installed, or has no such device or precision.
        ModelError: an exported file cannot be used.
    """
    if backend in ("onnxruntime", "openvino") and device.type != "cpu":
        raise UsageError(f"--backend {backend} computes on the CPU here: use --device cpu.")
    if backend in ("torch", "compile"):
        from eval.backends.pytorch import CompilePredictor, TorchPredictor

        kind = TorchPredictor if backend == "torch" else CompilePredictor
        modules = {form: model for form, model in models.items() if not isinstance(model, Path)}
        return kind(modules, preprocess, device, precision, batch_size)
    if backend == "onnxruntime":
        if precision != "fp32":
            raise UsageError(
                f"--backend onnxruntime --precision {precision}: on a CPU it has fp32 only. "
                "Use --backend openvino or torch."
            )
        from eval.backends.onnx import OnnxRuntimePredictor

        return OnnxRuntimePredictor(_graphs(models, preprocess.size), preprocess)
    from eval.backends.openvino import OpenVinoPredictor

    return OpenVinoPredictor(
        _graphs(models, preprocess.size),
        preprocess,
        precision,
        batch_size=batch_size,
        workers=workers,
    )


def _graphs(models: Mapping[str, nn.Module | Path], size: int) -> dict[str, bytes | Path]:
    """Models exported; files as they are."""
    from eval.backends.onnx import export_onnx

    return {
        form: model if isinstance(model, Path) else export_onnx(model, size=size)
        for form, model in models.items()
    }


def missing_extra(backend: str, extra: str, error: ImportError) -> UsageError:
    """The error where a runtime is not installed."""
    return UsageError(
        f"--backend {backend} needs {error.name}, which is not installed: "
        f"pip install 'pplcnet-eval[{extra}]' (in a checkout: pip install -e '.[{extra}]')."
    )
