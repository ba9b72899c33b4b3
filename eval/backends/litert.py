"""LiteRT (TensorFlow Lite) on the CPU, through its XNNPACK delegate."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.backends.convert import export_in_child, in_child
from eval.backends.precision import UNKNOWN, describe
from eval.backends.quantize import Work
from eval.backends.session import Compute, Session
from eval.backends.signature import Feed, Port, side_of
from eval.flatbuffer import Damaged, Table

if TYPE_CHECKING:
    from torch import nn

SETTINGS = {"litert.delegate": "XNNPACK"}
_TYPES = {"float32": "float"}


def convert(model: nn.Module, path: Path, batch: int, size: int) -> None:
    """Write a torch model as a file of one batch size; it takes NCHW, as the model does."""
    import litert_torch
    import torch

    litert_torch.convert(model, (torch.zeros(batch, 3, size, size),)).export(str(path))


sources = functools.partial(in_child, "litert")
export = functools.partial(export_in_child, "litert")


def load(source: Path, how: Compute) -> LiteRtGraph:
    """See `eval.backends.session`."""
    return LiteRtGraph(source, how.threads)


class LiteRtGraph:
    """A file in LiteRT."""

    layout = None

    def __init__(self, source: Path, threads: int = 1) -> None:
        self._threads = threads
        self._content = source.read_bytes()
        interpreter = self._interpreter()
        entries = interpreter.get_input_details()
        self.inputs = [_input_port(entry) for entry in entries]
        self.settings = {"litert.input": _taken(entries[0])} if entries else {}
        self.outputs = [_port(entry) for entry in interpreter.get_output_details()]

    def _interpreter(self) -> Any:
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter(model_content=self._content, num_threads=self._threads)

    def session(self, feed: Feed, batch: int) -> Session:
        """An interpreter of its own: none may be used by two threads at once."""
        interpreter = self._interpreter()
        (entry,) = interpreter.get_input_details()
        answer = interpreter.get_output_details()[feed.output]
        if entry["shape"][0] != batch:
            interpreter.resize_tensor_input(entry["index"], [batch, *entry["shape"][1:]])
        interpreter.allocate_tensors()

        def run(images: NDArray[Any]) -> NDArray[Any]:
            if len(images) != batch:
                raise ValueError(f"{len(images)} images instead of {batch}")
            interpreter.set_tensor(entry["index"], _quantized(images, entry))
            interpreter.invoke()
            return _real(interpreter.get_tensor(answer["index"]), answer)

        return run


def _port(entry: dict[str, Any]) -> Port:
    kind = np.dtype(entry["dtype"]).name
    shape = [None if size == -1 else int(size) for size in entry["shape_signature"]]
    return _TYPES.get(kind, kind), shape, str(entry["name"])


def _input_port(entry: dict[str, Any]) -> Port:
    """As `_port`; a float where normalized images are quantized by the graph's own scale."""
    kind, shape, *_ = _port(entry)
    return ("float" if kind == "uint8" and not _takes_pixels(entry) else kind), shape


# Scale and zero point by which a pixel, 0 to 255, stands for itself, for 0 to 1, and for -1 to 1:
# it is the quantized number already.
_PIXELS = ((0, 0), (1, 0), (1 / 255, 0), (1 / 127.5, 127), (1 / 127.5, 128), (1 / 128, 128))


def _takes_pixels(entry: dict[str, Any]) -> bool:
    scale, zero = entry["quantization"]
    return any(abs(scale - each) <= 1e-3 * each and zero == level for each, level in _PIXELS)


def _taken(entry: dict[str, Any]) -> str:
    """What a graph is given, for ``run.json``."""
    if np.dtype(entry["dtype"]).kind == "f":
        return "normalized"
    scale, zero = entry["quantization"]
    pixels = np.dtype(entry["dtype"]) == np.uint8 and _takes_pixels(entry)
    kind = "pixels as they are" if pixels else "normalized, then quantized"
    return f"{kind} (scale {scale:.6g}, zero point {zero})"


def _quantized(images: NDArray[Any], entry: dict[str, Any]) -> NDArray[Any]:
    """What an integer input wants of a normalized image; everything else as it is."""
    scale, zero = entry["quantization"]
    if images.dtype.kind != "f" or np.dtype(entry["dtype"]).kind == "f" or not scale:
        return images
    limits = np.iinfo(entry["dtype"])
    whole = np.clip(np.rint(images / scale) + zero, limits.min, limits.max)
    return np.asarray(whole, entry["dtype"])


def _real(logits: NDArray[Any], entry: dict[str, Any]) -> NDArray[Any]:
    scale, zero = entry["quantization"]
    if logits.dtype.kind == "f" or not scale:
        return logits
    return np.asarray((logits.astype(np.float32) - zero) * np.float32(scale))


def begins(head: bytes) -> bool:
    """Whether a file is one of LiteRT; see `eval.backends.session`."""
    return head[4:8] == b"TFL3"


def side(path: Path) -> int | None:
    """Height and width of a graph's image, where they are fixed; see `eval.backends.session`."""
    try:
        graph = next(Table.root(path.read_bytes()).tables(2))
        tensors = list(graph.tables(0))
        inputs = [tensors[number] for number in graph.numbers(1, "i").tolist()]
        # The second one has -1 for the sizes that may change.
        shapes = [each.numbers(7 if each.length(7) else 0, "i").tolist() for each in inputs]
    except (Damaged, IndexError, StopIteration):
        return None
    return side_of(shapes)


# From LiteRT's schema.fbs: its numbers of the types that stand for real numbers, and of operators.
_KINDS = {0: "fp32", 1: "fp16", 3: "int8", 7: "int16", 9: "int8", 10: "fp32", 16: "int16",
          17: "int4", 18: "bf16", 19: "int2", 20: "int4",
          **dict.fromkeys((2, 4, 5, 6, 12, 15), "")}  # fmt: skip  # these count, index and name
_DEQUANTIZE, _CAST, _CUSTOM = 6, 53, 32


def precision(path: Path) -> str:
    """From the types of its tensors; see `eval.backends.session`.

    Constants count as weights where they are only converted to floats. A whole number that does not
    come from a constant is what is computed in, unless it is only cast: a pixel.
    """
    computed: set[str] = set()
    stored: set[str] = set()
    try:
        model = Table.root(path.read_bytes())
        buffers = [bool(each.length(0) or each.number(1, "Q")) for each in model.tables(4)]
        # One number for the first 127, one for all.
        codes = [max(code.number(0, "b"), code.number(3, "i")) for code in model.tables(1)]
        for graph in model.tables(2):
            uses: dict[int, set[int]] = {}
            for operator in graph.tables(3):
                code = codes[operator.number(0, "I")]
                if code == _CUSTOM:
                    computed.add(UNKNOWN)
                for tensor in operator.numbers(1, "i").tolist():
                    uses.setdefault(tensor, set()).add(code)
            for number, tensor in enumerate(graph.tables(0)):
                kind = _KINDS.get(tensor.number(1, "b"), UNKNOWN)
                used = uses.get(number, set())
                if buffers[tensor.number(2, "I")]:
                    (stored if used <= {_DEQUANTIZE} else computed).add(kind)
                elif not (kind.startswith("int") and used == {_CAST}):
                    computed.add(kind)
    except (Damaged, IndexError):  # the runtime says so
        return UNKNOWN
    return describe(computed, stored)


def quantize(work: Work) -> None:
    """An int8 LiteRT file: int8 weights and activations, float input and output.

    `work.method`: ``mse`` chooses the ranges of the weights; ``minmax`` takes the extremes of the
    activations over all images, the other two the tool's own moving average.
    """
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    algorithm = {"mse": AlgorithmName.MSE}.get(work.method, AlgorithmName.MIN_MAX_UNIFORM_QUANT)
    runner = quantizer.Quantizer(work.source)
    runner.load_quantization_recipe(recipe.static_wi8_ai8(algorithm_key=algorithm))
    ((signature, ports),) = Interpreter(work.source).get_signature_list().items()
    (name,) = ports["inputs"]
    inputs = ({name: image} for image in work.images())
    if work.method == "minmax":
        ranges = _extremes(runner.calibrate({signature: [image]}) for image in inputs)
    else:  # the tool's own moving average over the images
        ranges = runner.calibrate({signature: list(inputs)})
    runner.quantize(ranges).export_model(work.target)


def _extremes(found: Iterator[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The range of each tensor over all images, from its ranges in each of them."""
    ranges: dict[str, dict[str, Any]] = {}
    for one in found:
        for tensor, new in one.items():
            known = ranges.setdefault(tensor, new)
            if "min" in new:
                low = np.minimum(known["min"], new["min"])
                high = np.maximum(known["max"], new["max"])
                ranges[tensor] = {**known, "min": low, "max": high}
    return ranges
