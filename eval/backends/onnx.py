"""ONNX: the exported graph, and ONNX Runtime.

The input is ``input``, float32 (batch, 3, size, size), normalized; the output ``logits``, float32
(batch, classes). The batch is dynamic.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.backends import missing_extra
from eval.backends.child import first_line
from eval.backends.session import Compute, Session
from eval.backends.signature import Feed, Port
from eval.errors import ModelError, UsageError
from eval.images.preprocess import CROP

if TYPE_CHECKING:
    from torch import nn

OPSET = 18  # what torch's exporter writes itself; every other one is a conversion of it
INPUT, OUTPUT = "input", "logits"
SETTINGS: dict[str, Any] = {"onnxruntime.providers": "CPUExecutionProvider"}


def export_onnx(model: nn.Module, opset: int = OPSET, size: int = CROP) -> bytes:
    """A model as ONNX.

    Args:
        model: any image classifier; it is not changed.
        opset: version of the operators.
        size: of a side of its images.

    Returns:
        The serialized ``ModelProto``, its weights included.

    Raises:
        UsageError: onnx or onnxscript is missing, or the exporter does not support this opset.
        ModelError: the exporter cannot do it.
    """
    try:
        import onnx  # noqa: F401 - named by the error
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_extra("onnxruntime", "onnx", error) from error
    import torch

    model = copy.deepcopy(model).cpu().float().eval()
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, 3, size, size)
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # the exporter's own troubles, with tracebacks
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
            raise ModelError(
                f"torch's ONNX exporter cannot export this {type(model).__name__} "
                f"({first_line(error)}).\nUse --backend torch or compile."
            ) from error
        finally:
            logging.disable(disabled)
    assert program is not None
    proto = program.model_proto
    written = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:
        raise UsageError(
            f"--opset {opset}: the exporter cannot convert this model to it and would write opset "
            f"{written}.\nLeave --opset out."
        )
    return proto.SerializeToString()  # type: ignore[no-any-return]


def sources(
    model: nn.Module, _folder: Path, _batches: Sequence[int], size: int
) -> dict[int, bytes]:
    """A torch model as one graph for every batch size."""
    return {0: export_onnx(model, size=size)}


def load(source: bytes | Path, how: Compute) -> OnnxGraph:
    """See `eval.backends.session`."""
    return OnnxGraph(source, how.threads)


class OnnxGraph:
    """A graph in ONNX Runtime on the CPU; it computes in the thread that calls."""

    layout = None

    def __init__(self, source: bytes | Path, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # its errors reach Python as exceptions
        self._session = onnxruntime.InferenceSession(
            str(source) if isinstance(source, Path) else source,
            options,
            providers=["CPUExecutionProvider"],
        )
        self.inputs = _ports(self._session.get_inputs())
        self.outputs = _ports(self._session.get_outputs())

    def session(self, _feed: Feed, _batch: int) -> Session:
        """One session serves all threads."""
        (entry,) = self._session.get_inputs()

        def run(images: NDArray[Any]) -> NDArray[Any]:
            return np.asarray(self._session.run(None, {entry.name: images})[0])

        return run


def _ports(values: Any) -> list[Port]:
    """Type and shape of each input or output."""
    return [(value.type.removeprefix("tensor(").rstrip(")"), list(value.shape)) for value in values]
