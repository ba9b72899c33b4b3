"""OpenVINO on the CPU: one stream per worker."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from eval.backends.onnx import sources as sources
from eval.backends.precision import UNKNOWN, describe
from eval.backends.quantize import Work
from eval.backends.session import Compute, Session
from eval.backends.signature import Feed, Port, side_of
from eval.errors import ModelError, UsageError

if TYPE_CHECKING:
    from torch import nn

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
SETTINGS: dict[str, Any] = {"openvino.streams": "one per worker"}
_TYPES = {"f32": "float", "f16": "float16", "f64": "double", "u8": "uint8", "i8": "int8",
          "i64": "int64", "i32": "int32"}  # fmt: skip


def export(_model: nn.Module, graph: Path, path: Path, _size: int) -> None:
    """Write a model's file; see `eval.backends.session`."""
    import openvino

    openvino.save_model(openvino.Core().read_model(graph), path, compress_to_fp16=False)


def load(source: bytes | Path, how: Compute) -> OpenVinoGraph:
    """See `eval.backends.session`."""
    return OpenVinoGraph(source, how)


class OpenVinoGraph:
    """A graph in OpenVINO.

    Args:
        source: a serialized ONNX model, or an ``.onnx`` or ``.xml`` file.
        how: precision, callers, and threads of each.
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
                filled = filler.setdefault(0, np.zeros((batch, *images.shape[1:]), images.dtype))
                filled[:count] = images
                images = filled
            answer: NDArray[Any] = request.infer([images], share_inputs=True)[feed.output]
            return answer[:count] if len(answer) == batch else answer

        return run

    def _compile(self, feed: Feed, batch: int) -> Any:
        import openvino

        model = self._model.clone()
        if feed.batch is None and self._model.inputs[0].partial_shape.rank.is_static:
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


def _check_precision(compiled: Any, precision: str) -> None:
    """Refuse a precision that the plugin has replaced, as it does without a word."""
    used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if used != PRECISIONS[precision]:
        raise UsageError(
            f"--backend openvino --precision {precision}: OpenVINO does not support it on this "
            f"processor and would compute in {used}. Use another precision, or --backend torch."
        )


def _ports(ports: Any) -> list[Port]:
    """Type, shape and name of each input or output; None for a dynamic size."""
    return [
        (
            _TYPES.get(port.element_type.get_type_name(), port.element_type.get_type_name()),
            []
            if port.partial_shape.rank.is_dynamic
            else [None if size.is_dynamic else size.get_length() for size in port.partial_shape],
            next(iter(sorted(port.names)), str(number)),
        )
        for number, port in enumerate(ports)
    ]


def side(path: Path) -> int | None:
    """Height and width of a graph's image, where they are fixed; see `eval.backends.session`."""
    try:
        net = ElementTree.parse(path).getroot()  # noqa: S314 - as for the precision
        shapes = [
            [int(size) if size.isdigit() else None for size in data.get("shape", "").split(",")]
            for layer in net.iterfind("layers/layer")
            if layer.get("type") == "Parameter" and (data := layer.find("data")) is not None
        ]
    except (ElementTree.ParseError, ValueError):
        return None
    return side_of(shapes)


def begins(head: bytes) -> bool:
    """Whether a file may be a network in XML; see `eval.backends.session`."""
    return (
        re.match(rb"(\xef\xbb\xbf)?\s*(<\?[^>]*>\s*|<!--.*)*(<net\b|$)", head, re.DOTALL)
        is not None
    )


def companions(path: Path) -> tuple[Path, ...]:
    """The weights; see `eval.backends.session`."""
    return (path.with_suffix(".bin"),)


_KINDS = {
    **dict.fromkeys(("f64", "f32"), "fp32"),
    **dict.fromkeys(("f8e4m3", "f8e5m2", "f8e8m0"), "fp8"),
    **dict.fromkeys(("nf4", "f4e2m1"), "fp4"),
    "f16": "fp16",
    "bf16": "bf16",
    **{f"{sign}{bits}": f"int{bits}" for sign in "iu" for bits in (1, 2, 3, 4, 6, 8, 16)},
    **dict.fromkeys(("i32", "i64", "u32", "u64", "boolean", "string"), ""),  # these count and index
}
_PORTS = {"FP16": "fp16", "BF16": "bf16", "F8E4M3": "fp8", "F8E5M2": "fp8"}


def precision(path: Path) -> str:
    """From the types of its tensors and its operators; see `eval.backends.session`."""
    computed: set[str] = set()
    stored: set[str] = set()
    try:
        # Expat itself limits what entities can become.
        for net in ElementTree.parse(path).iter():  # noqa: S314
            for layer, is_constant in _layers(net):
                data = layer.find("data")
                found = stored if is_constant else computed
                found.add(_made(layer.get("type"), {} if data is None else data.attrib))
                if not is_constant:
                    ports = layer.iterfind("output/port")
                    computed |= {_PORTS.get(port.get("precision", ""), "") for port in ports}
    except (ElementTree.ParseError, LookupError, ValueError):  # damaged: the runtime says so
        return UNKNOWN
    return describe(computed, stored)


def _made(kind: str | None, values: Mapping[str, str]) -> str:
    """The number format that a layer brings in, as `describe` calls it; mostly ""."""
    if kind == "Const":
        return _KINDS.get(values["element_type"], UNKNOWN)
    if kind == "FakeQuantize":
        levels = int(values["levels"])
        return f"int{4 if levels <= 16 else 8 if levels <= 256 else 16}"
    return "fp8" if kind == "FakeConvert" else ""


def _layers(net: ElementTree.Element) -> Iterator[tuple[ElementTree.Element, bool]]:
    """The layers of a graph or of the body of a loop, each with whether no input reaches it."""
    sources: dict[str | None, list[str | None]] = {}
    for edge in net.iterfind("edges/edge"):
        sources.setdefault(edge.get("to-layer"), []).append(edge.get("from-layer"))
    constant: set[str | None] = set()
    for layer in net.iterfind("layers/layer"):
        inputs = sources.get(layer.get("id"), [])
        if layer.get("type") == "Const" or (inputs and constant.issuperset(inputs)):
            constant.add(layer.get("id"))
        yield layer, layer.get("id") in constant


def quantize(work: Work) -> None:
    """An int8 OpenVINO file (``.xml``, with its ``.bin``); with `max_drop`, within that."""
    import nncf
    import openvino
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet as Ranges

    nncf.set_log_level(logging.ERROR)
    ranges = {
        "default": None,  # NNCF's own choice for each layer
        "minmax": Ranges.MINMAX,
        "percentile": Ranges.MEAN_QUANTILE,
        "mse": Ranges.HISTOGRAM,
    }[work.method]
    advanced = AdvancedQuantizationParameters(activations_range_estimator_params=ranges)
    source = openvino.Core().read_model(work.onnx)
    calibration = list(work.images())
    options = {"subset_size": len(calibration), "advanced_parameters": advanced}
    if work.max_drop is None:
        model = nncf.quantize(source, nncf.Dataset(calibration), **options)
    else:

        def top1(compiled: Any, images: Any) -> float:
            answers = [np.argmax(compiled(image)[0]) for image, _ in images]
            return float(np.mean(np.array(answers) == [label for _, label in images]))

        held_out = list(zip(work.images("held_out"), work.labels.tolist(), strict=True))
        model = nncf.quantize_with_accuracy_control(
            source,
            nncf.Dataset(calibration),
            nncf.Dataset(held_out, lambda item: item[0]),
            lambda compiled, _: top1(compiled, held_out),
            max_drop=work.max_drop,
            drop_type=nncf.DropType.ABSOLUTE,
            subset_size=len(calibration),
            advanced_quantization_parameters=advanced,
        )
    openvino.save_model(model, work.target, compress_to_fp16=False)
