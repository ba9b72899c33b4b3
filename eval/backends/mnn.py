"""MNN on the CPU.

Unless told otherwise, MNN may compute in half precision where the processor can. That is off here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.backends import child
from eval.backends.session import Compute, Session
from eval.backends.signature import Feed, Port
from eval.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

SUFFIX = ".mnn"
_CONFIG = {"backend": "CPU", "precision": "high"}
SETTINGS = {f"mnn.{name}": value for name, value in _CONFIG.items()}


def sources(model: nn.Module, folder: Path, _batches: Sequence[int], size: int) -> dict[int, Path]:
    """A torch model as one file for every batch size, by way of ONNX."""
    from eval.backends.onnx import export_onnx

    graph, path = folder / "model.onnx", folder / f"model{SUFFIX}"
    graph.write_bytes(export_onnx(model, size=size))
    child.call(
        "MNN's converter", "eval.backends.mnn:convert_file", source=str(graph), target=str(path)
    )
    return {0: path}


def convert_file(source: str, target: str) -> None:
    """What `sources` does in the child process: ONNX to MNN."""
    to_mnn("ONNX", source, target, "fp32")


def to_mnn(kind: str, source: str, target: str, precision: str, *options: str) -> None:
    """Convert a file, with a mark of what it computes in.

    `kind` is ``ONNX`` or ``MNN``, and `options` are more of the converter's.

    Raises:
        ModelError: the converter wrote no file.
    """
    import _tools  # the converter itself, without the usage log of MNN.tools.mnnconvert
    import MNN  # noqa: F401 - loads the libraries of the tools

    words = ["mnnconvert", "-f", kind, "--modelFile", source, "--MNNModel", target]
    _tools.mnnconvert([*words, "--bizCode", f"pplcnet-eval-{precision}", *options])
    if not Path(target).exists():
        raise ModelError("MNN's converter cannot convert this model: it wrote no file.")


def load(source: Path, how: Compute) -> MnnGraph:
    """See `eval.backends.session`."""
    return MnnGraph(source, how.threads)


class MnnGraph:
    """A file in MNN.

    Raises:
        ModelError: it cannot be read.
    """

    layout = None

    def __init__(self, source: Path, threads: int = 1) -> None:
        self._threads = threads
        self._path = str(source)
        try:
            names = self._module([], []).get_info()
            self._names = names["inputNames"], names["outputNames"]
            entries = self._module(*self._names).get_info()["inputs"]
        except (SystemError, RuntimeError, TypeError) as error:
            raise ModelError(
                f"{source}: MNN cannot load it.\nExport it again, or get an intact copy."
            ) from error
        self._formats = [entry.data_format for entry in entries]
        self.inputs = [_port(entry) for entry in entries]
        self.outputs = [("float", [None, None]) for _ in self._names[1]]  # it does not say

    def _module(self, inputs: list[str], outputs: list[str]) -> Any:
        from MNN import nn

        manager = nn.create_runtime_manager(({**_CONFIG, "numThread": self._threads},))
        return nn.load_module_from_file(self._path, inputs, outputs, runtime_manager=manager)

    def session(self, _feed: Feed, _batch: int) -> Session:
        """A module of its own: none may be used by two threads at once."""
        from MNN import expr

        module = self._module(*self._names)
        (order,) = self._formats

        def run(images: NDArray[Any]) -> NDArray[Any]:
            entry = expr.placeholder(list(images.shape), order)
            entry.write(images)
            answer = expr.convert(module.forward(entry), expr.NCHW).read()
            return np.array(answer)

        return run


def _port(entry: Any) -> Port:
    """The converter writes 1 for a batch that may be any."""
    kind = str(entry.dtype).removeprefix("dtype.")
    return kind, [None, *(size if size > 0 else None for size in entry.shape[1:])]
