"""OpenVINO on the CPU: one stream per worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from eval.backends.onnx import sources
from eval.backends.session import Compute, Session
from eval.backends.signature import Feed, Port
from eval.errors import ModelError, UsageError

__all__ = ["SETTINGS", "load", "sources"]

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
SETTINGS: dict[str, Any] = {"openvino.streams": "one per worker"}
_TYPES = {"f32": "float", "f16": "float16", "u8": "uint8", "i8": "int8"}


def load(source: bytes | Path, how: Compute) -> OpenVinoGraph:
    """See `eval.backends.session`."""
    return OpenVinoGraph(source, how)


class OpenVinoGraph:
    """A graph in OpenVINO.

    Args:
        source: a serialized ONNX model, or an ``.onnx`` or ``.xml`` file.
        how: precision, callers, and threads of each.

    Raises:
        ModelError: it cannot be read.
    """

    layout = "NHWC"  # the crops are channels last already: no copy is made for the graph's order

    def __init__(self, source: bytes | Path, how: Compute) -> None:
        import openvino

        self._core = openvino.Core()
        self._how = how
        try:
            self._model = self._core.read_model(source)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip()
            name = source if isinstance(source, Path) else "the exported model"
            raise ModelError(
                f"{name}: OpenVINO cannot load it ({reason}).\n"
                "Export it again, or get an intact copy; an .xml needs its .bin beside it."
            ) from error
        self.inputs = _ports(self._model.inputs)
        self.outputs = _ports(self._model.outputs)
        self._compiled: dict[int, Any] = {}

    def session(self, feed: Feed, batch: int) -> Session:
        """A request of its own, in the graph compiled for the batch size."""
        if batch not in self._compiled:
            self._compiled[batch] = self._compile(feed, batch)
        request = self._compiled[batch].create_infer_request()
        filler: dict[int, NDArray[Any]] = {}

        def run(images: NDArray[Any]) -> NDArray[Any]:
            count = len(images)
            if count < batch:
                filled = filler.setdefault(0, _zeros(images, batch))
                filled[:count] = images
                images = filled
            answer: NDArray[Any] = request.infer([images], share_inputs=True)[0]
            return answer[:count] if len(answer) == batch else answer

        return run

    def _compile(self, feed: Feed, batch: int) -> Any:
        import openvino

        model = self._model.clone()
        if feed.batch is None:
            shape = self._model.inputs[0].partial_shape
            channels = 1 if feed.layout == "NCHW" else 3
            sizes = [batch, *(d.get_length() if d.is_static else 0 for d in list(shape)[1:])]
            sizes[channels] = 3
            side = next((s for i, s in enumerate(sizes) if i not in (0, channels) and s), 0)
            if side:
                model.reshape([s or side for s in sizes])
        if feed.layout == "NCHW":
            steps = openvino.preprocess.PrePostProcessor(model)
            steps.input().tensor().set_layout(openvino.Layout("NHWC"))
            steps.input().model().set_layout(openvino.Layout("NCHW"))
            model = steps.build()
        compiled = self._core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_NUM_THREADS": self._how.workers * self._how.threads,
                "NUM_STREAMS": self._how.workers,
                "INFERENCE_PRECISION_HINT": PRECISIONS[self._how.precision],
            },
        )
        _check_precision(compiled, self._how.precision)
        return compiled


def _zeros(images: NDArray[Any], batch: int) -> NDArray[Any]:
    import numpy as np

    return np.zeros((batch, *images.shape[1:]), images.dtype)


def _check_precision(compiled: Any, precision: str) -> None:
    """Refuse a precision that the plugin has replaced, as it does without a word."""
    used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if used != PRECISIONS[precision]:
        raise UsageError(
            f"--backend openvino --precision {precision}: OpenVINO does not support it on this "
            f"processor and would compute in {used}. Use another precision, or --backend torch."
        )


def _ports(ports: Any) -> list[Port]:
    """Type and shape of each input or output; None for a dynamic size."""
    return [
        (
            _TYPES.get(port.element_type.get_type_name(), port.element_type.get_type_name()),
            [None if size.is_dynamic else size.get_length() for size in port.partial_shape],
        )
        for port in ports
    ]
