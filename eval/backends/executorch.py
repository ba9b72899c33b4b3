"""ExecuTorch on the CPU, through its XNNPACK delegate."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from eval.backends.convert import export_in_child, in_child
from eval.backends.precision import UNKNOWN
from eval.backends.quantize import Work
from eval.backends.session import Compute, Session
from eval.backends.signature import Feed, Port

if TYPE_CHECKING:
    from torch import nn

SETTINGS = {"executorch.delegate": "XNNPACK"}
_TYPES = {6: "float", 5: "float16", 0: "uint8", 1: "int8"}  # torch's own numbers of its types


def convert(model: nn.Module, path: Path, batch: int, size: int) -> None:
    """Write a torch model as a program of one batch size."""
    import torch

    write(torch.export.export(model, (torch.zeros(batch, 3, size, size),)), path)


_MARK = re.compile(rb"pplcnet-eval-(fp32|int8)-([0-9a-f]{64})")


def write(program: Any, path: Path, precision: str = "fp32") -> None:
    """Lower an exported program to XNNPACK and write it, with a mark of what it computes in.

    The mark has a hash of the file, so that it says nothing once anything in it is changed.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(
        program,
        partitioner=[XnnpackPartitioner()],
        constant_methods={f"pplcnet-eval-{precision}-{'0' * 64}": 1},
    )
    path.write_bytes(_marked(lowered.to_executorch().buffer))


def _marked(data: bytes) -> bytes:
    """A file with the hash of its bytes, without the hash itself, in its mark."""
    empty = _MARK.sub(rb"pplcnet-eval-\1-" + b"0" * 64, data)
    digest = hashlib.sha256(empty).hexdigest().encode()
    return _MARK.sub(rb"pplcnet-eval-\1-" + digest, empty)


sources = functools.partial(in_child, "executorch")
export = functools.partial(export_in_child, "executorch")


def begins(head: bytes) -> bool:
    """Whether a file is an ExecuTorch program; see `eval.backends.session`."""
    return re.match(rb"ET\d\d", head[4:8]) is not None


def precision(path: Path) -> str:
    """What our own mark says, where it is whole: nothing else in the format does."""
    data = path.read_bytes()
    found = {each[1].decode() for each in _MARK.finditer(data)}
    return found.pop() if len(found) == 1 and _marked(data) == data else UNKNOWN


def load(source: Path, how: Compute) -> ExecuTorchGraph:
    """See `eval.backends.session`."""
    return ExecuTorchGraph(source, how.threads)


class ExecuTorchGraph:
    """A program in ExecuTorch."""

    layout = None

    def __init__(self, source: Path, threads: int = 1) -> None:
        from executorch.extension.pybindings import _C
        from executorch.runtime import Runtime

        _C._unsafe_reset_threadpool(threads)  # one for the process, of all cores otherwise
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

    def session(self, feed: Feed, _batch: int) -> Session:
        """A method of its own: none may be used by two threads at once."""
        import torch

        program, method = self._method()

        def run(images: NDArray[Any]) -> NDArray[Any]:
            assert program is not None  # kept as long as this function is
            logits = method.execute([torch.from_numpy(images)])[feed.output]
            return logits.clone().numpy()  # type: ignore[no-any-return]

        return run


def _port(info: Any) -> Port:
    return _TYPES.get(info.dtype(), f"type {info.dtype()}"), list(info.sizes())


def quantize(work: Work) -> None:
    """An int8 ExecuTorch program for XNNPACK."""
    from dataclasses import replace

    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    class Quantizer(XNNPACKQuantizer):  # type: ignore[misc]
        """Takes ReLU6 as it takes ReLU: as a part of the convolution before it.

        XNNPACK's kernels clamp as they write, but the quantizer knows only ReLU. The output before
        the clamp would be quantized, whose range can be ten times as wide.
        """

        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            aten = torch.ops.aten
            clamps = (aten.hardtanh, aten.hardtanh_, aten.relu6, aten.relu6_)
            targets = [operator.default for operator in clamps]
            found = [(node, node.target) for node in model.graph.nodes if node.target in targets]
            for node, _ in found:
                node.target = aten.relu.default
            super().annotate(model)
            for node, target in found:
                node.target = target
            return model

    config = get_symmetric_quantization_config(is_per_channel=True)
    if work.method == "minmax":  # the default is a histogram with the least squared error
        observer = MinMaxObserver.with_args(eps=2**-12)
        spec = replace(config.input_activation, observer_or_fake_quant_ctr=observer)
        config = replace(config, input_activation=spec, output_activation=spec)
    model = torch.load(work.pickled, weights_only=False).cpu().float().eval()
    example = (torch.zeros(next(work.images()).shape),)  # numpy's own strides can be 0
    prepared = prepare_pt2e(
        torch.export.export(model, example).module(), Quantizer().set_global(config)
    )
    with torch.no_grad():
        for image in work.images():
            prepared(torch.from_numpy(image))
    write(torch.export.export(convert_pt2e(prepared), example), Path(work.target), "int8")
