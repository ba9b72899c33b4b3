"""ncnn on the CPU: one image at a time.

Unless told otherwise, ncnn keeps weights and activations in half precision. That is off here.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.backends.convert import export_in_child, in_child
from eval.backends.precision import UNKNOWN, describe
from eval.backends.session import Compute, Session
from eval.backends.signature import Feed, side_of
from eval.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

SUFFIX = ".ncnn.param"
_OFF = (
    *("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"),
    *("use_bf16_packed", "use_bf16_storage"),
)
SETTINGS: dict[str, Any] = {f"ncnn.{name}": False for name in _OFF}


def convert(model: nn.Module, path: Path, batch: int, size: int) -> None:
    """Write a torch model as ``NAME.ncnn.param`` and ``NAME.ncnn.bin``."""
    import pnnx
    import torch

    assert batch == 1
    stem = path.name.removesuffix(SUFFIX)
    with contextlib.chdir(path.parent):  # pnnx leaves files of its own
        traced = f"{stem}.pt"
        pnnx.export(model, traced, (torch.zeros(1, 3, size, size),), fp16=False)
        names = [traced, f"{stem}_ncnn.py", f"{stem}_pnnx.py"]
        for extra in [*map(Path, names), *Path().glob(f"{stem}.pnnx.*")]:
            extra.unlink(missing_ok=True)
    if not path.exists():
        raise ModelError(f"pnnx cannot convert this {type(model).__name__}: it wrote no file.")


sources = functools.partial(in_child, "ncnn")
export = functools.partial(export_in_child, "ncnn")


def begins(head: bytes) -> bool:
    """Whether a file is a ``.param``; see `eval.backends.session`."""
    return head.split(maxsplit=1)[:1] == [b"7767517"]


def companions(path: Path) -> tuple[Path, ...]:
    """The weights; see `eval.backends.session`."""
    return (path.with_suffix(".bin"),)


def side(path: Path) -> int | None:
    """Height and width of a graph's image, where it says them; see `eval.backends.session`."""
    try:
        inputs = [
            dict(word.split("=", 1) for word in words[4 + int(words[2]) + int(words[3]) :])
            for line in path.read_text("utf-8").splitlines()[2:]
            if (words := line.split())[:1] == ["Input"]
        ]
        shapes = [[1, *(int(given.get(key, 0)) for key in ("2", "1", "0"))] for given in inputs]
    except (ValueError, IndexError):
        return None
    return side_of(shapes)


_TAGS = {0x01306B47: "fp16", 0x000D4B38: "int8", 0x0002C056: "fp32"}
_CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise")


def precision(path: Path) -> str:
    """From the tag of every layer's weights; see `eval.backends.session`.

    Only a layer's parameters say how long its weights are, so that both files are read in step.
    """
    try:
        reader = _Weights(path.with_suffix(".bin").read_bytes())
        for line in path.read_text("utf-8").splitlines()[2:]:
            if words := line.split():
                given = words[4 + int(words[2]) + int(words[3]) :]
                pairs = [word.partition("=") for word in given]
                reader.read(words[0], {int(key): value for key, _, value in pairs})
    except (ValueError, LookupError, OSError):  # damaged, or a layer that is not known here
        return UNKNOWN
    return reader.precision


class _Weights:
    """Walks through a ``.bin``, as ``load_model`` of each layer in ncnn's ``src/layer`` does."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._computed: set[str] = set()
        self._stored: set[str] = set()

    @property
    def precision(self) -> str:
        """Unknown where the end was not reached: a layer has weights that were not expected."""
        if self._at != len(self._data):
            return UNKNOWN
        return describe(self._computed, self._stored)

    def read(self, kind: str, values: Mapping[int, str]) -> None:
        """Go on behind the weights of a layer."""

        def number(key: int, default: int = 0) -> int:
            return int(values.get(key, default))

        if kind in (*_CONVOLUTIONS, "InnerProduct"):
            is_linear = kind == "InnerProduct"
            if not is_linear and (number(19) or number(28)):  # the weights are computed
                return
            outputs, scales = number(0), number(8)
            self._tagged(number(2 if is_linear else 6))
            self._floats(outputs if number(1 if is_linear else 5) else 0)
            if scales:  # of each filter, of the input, and above 100 of the output
                self._computed.add("int8")
                if kind == "ConvolutionDepthWise":
                    outputs = number(7) if scales % 100 == 1 else 1
                self._floats(outputs + 1 + (scales > 100))
        elif kind == "BatchNorm":
            self._floats(4 * number(0))
        elif kind in ("Scale", "Bias", "PReLU"):
            size = max(number(0), 0)  # below 0: from another layer
            self._floats(size * (2 if kind == "Scale" and number(1) else 1))
        elif kind in ("LayerNorm", "InstanceNorm"):
            self._floats(2 * number(0) if number(2, 1) else 0)
        elif kind == "GroupNorm":
            self._floats(2 * number(1) if number(3, 1) else 0)
        elif kind == "MemoryData":
            size = math.prod(max(number(key), 1) for key in (0, 1, 2, 11))
            (self._floats if number(21, 1) else self._tagged)(size)
        elif kind == "MultiHeadAttention":
            width, size = number(0), number(2)
            into = size // width
            for inputs, outputs in ((into, width), (number(3, width), width),
                                    (number(4, width), width), (width, into)):  # fmt: skip
                self._tagged(inputs * outputs)
                self._floats(outputs)

    def _tagged(self, count: int) -> None:
        """Numbers whose format the four bytes before them tell."""
        tag = int.from_bytes(self._data[self._at : self._at + 4], "little")
        found = "fp32" if tag == 0 else _TAGS.get(tag, "")
        size = {"fp32": 4, "fp16": 2}.get(found, 1) * count
        self._at += 4 + -(-size // 4) * 4
        if not found:  # places in a table of 256 numbers
            self._at += 1024
        self._stored.add(found or "int8")

    def _floats(self, count: int) -> None:
        self._at += 4 * count


def load(source: Path, how: Compute) -> NcnnGraph:
    """See `eval.backends.session`."""
    return NcnnGraph(source, how.threads)


class NcnnGraph:
    """A ``.param`` file and its ``.bin``."""

    layout = "NCHW"

    def __init__(self, source: Path, threads: int = 1) -> None:
        import ncnn

        self._net = net = ncnn.Net()
        net.opt.num_threads = threads
        for name in _OFF:
            setattr(net.opt, name, False)
        binary = source.with_suffix(".bin")
        for read, path in ((net.load_param, source), (net.load_model, binary)):
            # After a failure its own functions crash: nothing may be asked of it any more.
            if read(os.fspath(path)) != 0:
                raise ModelError(
                    f"{path}: ncnn cannot load it.\n"
                    "Get an intact copy of the .param and of the .bin that belongs to it."
                )
        # It knows no shapes: one image is tried before a file is used.
        self.inputs = [("float", [1, 3, None, None]) for _ in net.input_names()]
        self.outputs = [("float", [1, None], name) for name in net.output_names()]

    def session(self, feed: Feed, _batch: int) -> Session:
        """An extractor for each image."""
        import ncnn

        (entry,), answer = self._net.input_names(), self._net.output_names()[feed.output]

        def run(images: NDArray[Any]) -> NDArray[Any]:
            (image,) = images
            extractor = self._net.create_extractor()
            extractor.input(entry, ncnn.Mat(image))
            code, logits = extractor.extract(answer)
            if code != 0:
                raise RuntimeError(f"code {code}")
            return np.array(logits).reshape(1, -1)

        return run
