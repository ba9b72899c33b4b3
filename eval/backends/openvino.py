"""OpenVINO on the CPU: one stream per worker."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.backends import missing_extra
from eval.backends.exported import check_signature
from eval.errors import ModelError, UsageError
from eval.images.preprocess import Crop, Preprocess

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVinoPredictor:
    """Graphs in OpenVINO, with a request of its own for each thread that calls.

    Args:
        graphs: form name to a serialised ONNX model, or to an ``.onnx`` or ``.xml`` file.
        preprocess: whose normalised input the models take.
        precision: what the CPU plugin computes in.
        batch_size: of every batch.
        workers: threads that will call it.

    Raises:
        UsageError: OpenVINO is not installed, or has not this precision here.
        ModelError: a graph cannot be loaded, or is no image classifier of 1000 classes.
    """

    def __init__(
        self,
        graphs: Mapping[str, bytes | Path],
        preprocess: Preprocess,
        precision: str,
        *,
        batch_size: int,
        workers: int,
    ) -> None:
        try:
            import openvino
        except ImportError as error:
            raise missing_extra("openvino", "openvino", error) from error
        core = openvino.Core()
        self._normalize = preprocess.normalize
        self._threads = threading.local()
        self._compiled = {}
        for form, graph in graphs.items():
            model = _read(core, graph, form, preprocess.size)
            model.reshape([batch_size, 3, preprocess.size, preprocess.size])
            # The crops are channels last already: no copy is made for the model's own order.
            steps = openvino.preprocess.PrePostProcessor(model)
            steps.input().tensor().set_layout(openvino.Layout("NHWC"))
            steps.input().model().set_layout(openvino.Layout("NCHW"))
            self._compiled[form] = core.compile_model(
                steps.build(),
                "CPU",
                {
                    "INFERENCE_NUM_THREADS": workers,
                    "NUM_STREAMS": workers,
                    "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
                },
            )
            _check_precision(self._compiled[form], precision)
        self._batch_size = batch_size

    def __call__(self, crops: Crop) -> dict[str, NDArray[Any]]:
        """uint8 crops (B, size, size, 3) to float32 logits (B, classes) of each form."""
        batch = np.zeros((self._batch_size, *crops.shape[1:]), np.float32)
        batch[: len(crops)] = self._normalize(crops)
        requests = self._requests()
        return {
            form: request.infer([batch], share_inputs=True)[0][: len(crops)].astype(np.float32)
            for form, request in requests.items()
        }

    def _requests(self) -> dict[str, Any]:
        if not hasattr(self._threads, "requests"):
            self._threads.requests = {
                form: compiled.create_infer_request() for form, compiled in self._compiled.items()
            }
        requests: dict[str, Any] = self._threads.requests
        return requests


def _check_precision(compiled: Any, precision: str) -> None:
    """Refuse a precision that the plugin has replaced, as it does without a word."""
    used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if used != PRECISIONS[precision]:
        raise UsageError(
            f"--backend openvino --precision {precision}: OpenVINO has it not on this processor "
            f"and would compute in {used}. Use another precision, or --backend torch."
        )


def _read(core: Any, graph: bytes | Path, form: str, size: int) -> Any:
    """A model that takes one batch of images and gives 1000 logits."""
    name = str(graph) if isinstance(graph, Path) else form
    try:
        model = core.read_model(graph)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ModelError(
            f"{name}: OpenVINO cannot load it ({reason}).\n"
            "Export it again, or get an intact copy; an .xml needs its .bin beside it."
        ) from error
    check_signature(name, _signature(model.inputs), _signature(model.outputs), size)
    return model


def _signature(ports: Any) -> list[tuple[str, list[Any]]]:
    """Type and shape of each input or output; None for a dynamic size."""
    types = {"f32": "float", "f16": "float16"}
    return [
        (
            types.get(port.element_type.get_type_name(), port.element_type.get_type_name()),
            [None if size.is_dynamic else size.get_length() for size in port.partial_shape],
        )
        for port in ports
    ]
