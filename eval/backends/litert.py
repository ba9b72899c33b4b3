"""LiteRT (TensorFlow Lite) on the CPU, through its XNNPACK delegate."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.backends.convert import in_child
from eval.backends.session import Compute, Session
from eval.backends.signature import Feed, Port

if TYPE_CHECKING:
    from torch import nn

SUFFIX = ".tflite"
SETTINGS = {"litert.delegate": "XNNPACK"}
_TYPES = {"float32": "float"}


def convert(model: nn.Module, path: Path, batch: int, size: int) -> None:
    """Write a torch model as a file of one batch size; it takes NCHW, as the model does."""
    import litert_torch
    import torch

    litert_torch.convert(model, (torch.zeros(batch, 3, size, size),)).export(str(path))


sources = functools.partial(in_child, "litert", SUFFIX)


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
        self.inputs = [_port(entry) for entry in interpreter.get_input_details()]
        self.outputs = [_port(entry) for entry in interpreter.get_output_details()]

    def _interpreter(self) -> Any:
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter(model_content=self._content, num_threads=self._threads)

    def session(self, _feed: Feed, batch: int) -> Session:
        """An interpreter of its own: none may be used by two threads at once."""
        interpreter = self._interpreter()
        (entry,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
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

    @property
    def precision(self) -> str:
        """What it computes in: ``int8`` where the activations are, or the weights alone."""
        types = {np.dtype(t["dtype"]).name for t in self._interpreter().get_tensor_details()}
        return "int8" if "int8" in types else "fp16" if "float16" in types else "fp32"


def _port(entry: dict[str, Any]) -> Port:
    kind = np.dtype(entry["dtype"]).name
    shape = [None if size == -1 else int(size) for size in entry["shape_signature"]]
    return _TYPES.get(kind, kind), shape


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
