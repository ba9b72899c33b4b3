"""ONNX: the exported graph, and ONNX Runtime.

The input is ``input``, float32 (batch, 3, 224, 224), normalised; the output ``logits``, float32
(batch, classes). The batch is dynamic.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from eval.backends import missing_extra
from eval.backends.exported import check_signature
from eval.errors import ModelError
from eval.images.preprocess import CROP, Crop, Preprocess

OPSET = 18  # what torch's exporter writes itself; every newer one is a conversion of it
INPUT, OUTPUT = "input", "logits"


def export_onnx(model: nn.Module, opset: int = OPSET, size: int = CROP) -> bytes:
    """A model as ONNX.

    Args:
        model: any image classifier; it is not changed.
        opset: version of the operators.
        size: of a side of its images.

    Returns:
        The serialised ``ModelProto``, its weights included.

    Raises:
        UsageError: onnx or onnxscript is not installed.
        ModelError: the exporter cannot do it.
    """
    try:
        import onnx  # noqa: F401 - named by the error
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_extra("onnxruntime", "onnx", error) from error
    model = copy.deepcopy(model).cpu().float().eval()
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, 3, size, size)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the exporter's own workings
        try:
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise ModelError(
                f"torch's ONNX exporter cannot export this {type(model).__name__} "
                f"({type(error).__name__}: {reason}).\nUse --backend torch or compile."
            ) from error
    assert program is not None
    return program.model_proto.SerializeToString()  # type: ignore[no-any-return]


class OnnxRuntimePredictor:
    """Graphs in ONNX Runtime on the CPU, one thread per call.

    Args:
        graphs: form name to a serialised model, or to its file.
        preprocess: whose normalised input the models take.

    Raises:
        UsageError: ONNX Runtime is not installed.
        ModelError: a graph cannot be loaded, or is no image classifier of 1000 classes.
    """

    def __init__(self, graphs: Mapping[str, bytes | Path], preprocess: Preprocess) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_extra("onnxruntime", "onnx", error) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        self._normalize = preprocess.normalize
        self._sessions = {}
        for form, graph in graphs.items():
            name = str(graph) if isinstance(graph, Path) else form
            try:
                session = onnxruntime.InferenceSession(
                    str(graph) if isinstance(graph, Path) else graph,
                    options,
                    providers=["CPUExecutionProvider"],
                )
            except Exception as error:
                raise ModelError(
                    f"{name}: ONNX Runtime cannot load it ({str(error).partition(chr(10))[0]}).\n"
                    "Export it again, or get an intact copy."
                ) from error
            check_signature(
                name,
                _signature(session.get_inputs()),
                _signature(session.get_outputs()),
                preprocess.size,
            )
            self._sessions[form] = session

    def __call__(self, crops: Crop) -> dict[str, NDArray[Any]]:
        """uint8 crops (B, size, size, 3) to float32 logits (B, classes) of each form."""
        batch = np.ascontiguousarray(self._normalize(crops).transpose(0, 3, 1, 2))
        return {form: _run(session, batch) for form, session in self._sessions.items()}


def _signature(values: Any) -> list[tuple[str, list[Any]]]:
    """Type and shape of each input or output."""
    return [(value.type.removeprefix("tensor(").rstrip(")"), list(value.shape)) for value in values]


def _run(session: Any, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Float32 logits; where the graph's batch is fixed, in parts, the last one filled up."""
    (entry,) = session.get_inputs()
    values = batch.astype(np.float16) if entry.type == "tensor(float16)" else batch
    fixed = entry.shape[0] if isinstance(entry.shape[0], int) else len(values)
    parts = []
    for start in range(0, len(values), fixed):
        part = values[start : start + fixed]
        whole = np.zeros((fixed, *part.shape[1:]), part.dtype)
        whole[: len(part)] = part
        parts.append(session.run(None, {entry.name: whole})[0][: len(part)])
    return np.concatenate(parts).astype(np.float32)
