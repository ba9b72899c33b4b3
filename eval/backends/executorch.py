"""ExecuTorch on the CPU, through its XNNPACK delegate."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from eval.backends.convert import in_child
from eval.backends.session import Compute, Session
from eval.backends.signature import Feed, Port

if TYPE_CHECKING:
    from torch import nn

SUFFIX = ".pte"
SETTINGS = {"executorch.delegate": "XNNPACK"}
_TYPES = {6: "float", 5: "float16", 0: "uint8", 1: "int8"}  # torch's own numbers of its types


def convert(model: nn.Module, path: Path, batch: int, size: int) -> None:
    """Write a torch model as a program of one batch size."""
    import torch

    write(torch.export.export(model, (torch.zeros(batch, 3, size, size),)), path)


def write(program: Any, path: Path, precision: str = "fp32") -> None:
    """Lower an exported program to XNNPACK and write it, with a mark of what it computes in."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(
        program,
        partitioner=[XnnpackPartitioner()],
        constant_methods={f"pplcnet-eval-{precision}": 1},
    )
    path.write_bytes(lowered.to_executorch().buffer)


sources = functools.partial(in_child, "executorch", SUFFIX)


def load(source: Path, how: Compute) -> ExecuTorchGraph:
    """See `eval.backends.session`."""
    return ExecuTorchGraph(source, how.threads)


class ExecuTorchGraph:
    """A program in ExecuTorch."""

    layout = None

    def __init__(self, source: Path, threads: int = 1) -> None:
        from executorch.extension.pybindings import _C
        from executorch.runtime import Runtime

        _C._unsafe_reset_threadpool(
            threads
        )  # one pool for the process; it takes all cores otherwise
        self._content = source.read_bytes()
        self._runtime = Runtime.get()
        _program, method = self._method()
        meta = method.metadata
        self.inputs = [_port(meta.input_tensor_meta(n)) for n in range(meta.num_inputs())]
        self.outputs = [_port(meta.output_tensor_meta(n)) for n in range(meta.num_outputs())]

    def _method(self) -> tuple[Any, Any]:
        """A program and its method, which crashes once the program is gone."""
        program = self._runtime.load_program(self._content)
        method = program.load_method("forward")
        if method is None:
            raise ValueError(f"no method called forward, only {sorted(program.method_names)}")
        return program, method

    def session(self, _feed: Feed, _batch: int) -> Session:
        """A method of its own: none may be used by two threads at once."""
        import torch

        program, method = self._method()

        def run(images: NDArray[Any]) -> NDArray[Any]:
            assert program is not None  # kept as long as this function is
            (logits,) = method.execute([torch.from_numpy(images)])
            return logits.clone().numpy()  # type: ignore[no-any-return]

        return run


def _port(info: Any) -> Port:
    return _TYPES.get(info.dtype(), f"type {info.dtype()}"), list(info.sizes())
