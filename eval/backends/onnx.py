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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from eval.backends import missing_extra
from eval.preprocess import CROP, Crop, Preprocess

OPSET = 18  # what torch's exporter writes itself; every newer one is a conversion of it
INPUT, OUTPUT = "input", "logits"


def export_onnx(model: nn.Module, opset: int = OPSET) -> bytes:
    """A model as ONNX.

    Args:
        model: any image classifier with input (B, 3, 224, 224); it is not changed.
        opset: version of the operators.

    Returns:
        The serialised ``ModelProto``, its weights included.

    Raises:
        UsageError: onnx or onnxscript is not installed.
    """
    try:
        import onnx  # noqa: F401 - named by the error
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_extra("onnxruntime", "onnx", error) from error
    model = copy.deepcopy(model).cpu().float().eval()
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, 3, CROP, CROP)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the exporter's own workings
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
    assert program is not None
    return program.model_proto.SerializeToString()  # type: ignore[no-any-return]


class OnnxRuntimePredictor:
    """Graphs in ONNX Runtime on the CPU, one thread per call.

    Args:
        graphs: form name to a serialised model.
        preprocess: whose normalised input the models take.

    Raises:
        UsageError: ONNX Runtime is not installed.
    """

    def __init__(self, graphs: Mapping[str, bytes], preprocess: Preprocess) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_extra("onnxruntime", "onnx", error) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        self._normalize = preprocess.normalize
        self._sessions = {
            form: onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            for form, graph in graphs.items()
        }

    def __call__(self, crops: Crop) -> dict[str, NDArray[Any]]:
        """uint8 crops (B, 224, 224, 3) to float32 logits (B, classes) of each form."""
        batch = np.ascontiguousarray(self._normalize(crops).transpose(0, 3, 1, 2))
        return {
            form: session.run(None, {session.get_inputs()[0].name: batch})[0]
            for form, session in self._sessions.items()
        }
