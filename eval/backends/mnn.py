"""MNN on the CPU.

Unless told otherwise, MNN may compute in half precision where the processor can. That is off here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.backends import child
from eval.backends.precision import UNKNOWN, describe
from eval.backends.quantize import Work
from eval.backends.session import Compute, Session
from eval.backends.signature import Feed, Port, side_of
from eval.errors import ModelError
from eval.flatbuffer import Damaged, Table

if TYPE_CHECKING:
    from torch import nn

_BATCH = 4  # images that a moving average takes together
_CONFIG = {"backend": "CPU", "precision": "high"}
SETTINGS = {f"mnn.{name}": value for name, value in _CONFIG.items()}


def sources(model: nn.Module, folder: Path, _batches: Sequence[int], size: int) -> dict[int, Path]:
    """A torch model as one file for every batch size, by way of ONNX."""
    from eval.backends.onnx import export_onnx

    graph, path = folder / "model.onnx", folder / "model.mnn"
    graph.write_bytes(export_onnx(model, size=size))
    export(model, graph, path, size)
    return {0: path}


def export(_model: nn.Module, graph: Path, path: Path, _size: int) -> None:
    """Write a model's file; see `eval.backends.session`."""
    child.call(
        "MNN's converter", "eval.backends.mnn:convert_file", source=str(graph), target=str(path)
    )


def convert_file(source: str, target: str) -> None:
    """What `export` does in the child process: ONNX to MNN."""
    to_mnn("ONNX", source, target)


def to_mnn(kind: str, source: str, target: str, *options: str) -> None:
    """Convert a file.

    `kind` is ``ONNX`` or ``MNN``, and `options` are more of the converter's.
    """
    import _tools  # the converter itself, without the usage log of MNN.tools.mnnconvert
    import MNN  # noqa: F401 - loads the libraries of the tools

    words = ["mnnconvert", "-f", kind, "--modelFile", source, "--MNNModel", target]
    _tools.mnnconvert([*words, "--bizCode", "pplcnet-eval", *options])
    if not Path(target).exists():
        raise ModelError("MNN's converter cannot convert this model: it wrote no file.")


def begins(head: bytes) -> bool:
    """Whether a file may be one of MNN; see `eval.backends.session`."""
    return 8 <= int.from_bytes(head[:4], "little") < 1 << 31


# From MNN's schema, MNN.fbs: its numbers of the tables that an operator may have ...
_BLOB, _CAST, _CONVOLUTION, _INNER_PRODUCT, _INPUT, _LAST = 7, 8, 9, 20, 21, 98
_QUANTIZED = (1, 12, *range(35, 47), 53, 54, 67, 74, 76)
_CUSTOM = (30, 78)
_HALVES = 3  # ... of a way to store weights; all others are whole numbers; ...
_KINDS = {0: "fp32", 1: "fp32", 2: "fp32", 4: "int8", 5: "int16", 6: "int8", 11: "int8",
          12: "int8", 14: "bf16", 15: "int16", 16: "int16", 17: "int16", 19: "fp16",
          **dict.fromkeys((3, 7, 9, 10, 13), "")}  # ... and of types  # fmt: skip


def _operators(net: Table) -> Iterator[Table]:
    yield from net.tables(3)
    for graph in net.tables(10):
        yield from graph.tables(4)


def companions(path: Path) -> tuple[Path, ...]:
    """The weights, where the converter was told to keep them apart."""
    apart = {_BLOB: 9, _CONVOLUTION: 6}  # the field that says where in that file
    try:
        for operator in _operators(Table.root(path.read_bytes())):
            main, field = operator.table(2), apart.get(operator.number(1, "B"))
            if operator.length(7) or (main and field and main.length(field)):
                return (path.with_name(f"{path.name}.weight"),)
    except Damaged:  # the runtime says so
        pass
    return ()


def side(path: Path) -> int | None:
    """Height and width of a graph's image, where they are fixed; see `eval.backends.session`."""
    try:
        operators = list(Table.root(path.read_bytes()).tables(3))
        given = [each.table(2) for each in operators if each.number(1, "B") == _INPUT]
        shapes = [table.numbers(0, "i").tolist() for table in given if table]
    except Damaged:
        return None
    return side_of(shapes)


def precision(path: Path) -> str:
    """From the types of its tensors; see `eval.backends.session`."""
    computed: set[str] = set()
    stored: set[str] = set()
    try:
        net = Table.root(path.read_bytes())
        graphs = net.tables(10)
        for described in (*net.tables(1), *(each for graph in graphs for each in graph.tables(5))):
            if described.table(4):  # a scale: what this tensor holds are whole numbers
                computed.add("int8")
        for operator in _operators(net):
            kind, main = operator.number(1, "B"), operator.table(2)
            if kind in _QUANTIZED:
                computed.add("int8")
            elif kind in _CUSTOM or kind > _LAST:
                computed.add(UNKNOWN)
            elif main and kind == _BLOB:
                stored.add(_KINDS.get(main.number(2, "i"), UNKNOWN))
            elif main and kind in (_CAST, _INPUT):
                given = _KINDS.get(main.number(1, "i"), UNKNOWN)
                computed.add("" if given.startswith("int") else given)  # pixels
            elif main and kind in (_CONVOLUTION, _INNER_PRODUCT):
                packed = main.table(3 if kind == _CONVOLUTION else 7)
                stored.add(_packed(packed) if packed else "fp32")
                if packed and kind == _CONVOLUTION and main.table(4):  # ranges of its output
                    computed.add("int8")
    except Damaged:  # the runtime says so
        return UNKNOWN
    return describe(computed, stored)


def _packed(weights: Table) -> str:
    """How the weights of a layer are stored that are not floats."""
    if weights.number(2, "i") == _HALVES:
        return "fp16"
    bits = weights.number(7, "i")  # older files have the largest number here, or nothing
    return f"int{bits if 1 <= bits <= 8 else 8}"


def load(source: Path, how: Compute) -> MnnGraph:
    """See `eval.backends.session`."""
    return MnnGraph(source, how.threads)


class MnnGraph:
    """A file in MNN."""

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
        # It does not say the shapes.
        self.outputs = [("float", [None, None], name) for name in self._names[1]]

    def _module(self, inputs: list[str], outputs: list[str]) -> Any:
        from MNN import nn

        manager = nn.create_runtime_manager(({**_CONFIG, "numThread": self._threads},))
        return nn.load_module_from_file(self._path, inputs, outputs, runtime_manager=manager)

    def session(self, feed: Feed, _batch: int) -> Session:
        """A module of its own: none may be used by two threads at once."""
        from MNN import expr

        inputs, outputs = self._names
        module = self._module(inputs, [outputs[feed.output]])
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


def quantize(work: Work) -> None:
    """An int8 MNN file, for a batch of one; the classifier keeps float activations.

    By MNN's training of quantized networks, where nothing is trained: forward passes alone set the
    ranges, as in MNN's ``tools/MNNPythonOfflineQuant``. Its other tool, ``mnnquant``, aborts with
    ``std::length_error`` in the wheel 3.6.1 (alibaba/MNN issue 2849). That wheel's kernels leave
    some outputs of an int8 classifier of 1000 classes unset (seen on x86 with AVX-512): its
    weights are int8 and its arithmetic is not.
    """
    import MNN
    from MNN import expr, nn

    if hasattr(os, "sched_setaffinity"):  # MNN's threads spin: on a busy machine, for minutes
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    graph = expr.load_as_dict(work.source)
    names = nn.load_module_from_file(work.source, [], []).get_info()
    (entry,), (answer,) = names["inputNames"], names["outputNames"]
    features = graph[answer]
    while features.op_type != "Convolution" and features.inputs:
        features = features.inputs[0]
    if not features.inputs:
        raise ModelError("MNN: int8 is made only for a network whose classifier is linear.")
    features = features.inputs[0]
    body = nn.load_module([graph[entry]], [features], True)
    head = nn.load_module([features], [graph[answer]], True)
    optimizer = MNN.optim.SGD(body, 0.0)
    methods = nn.compress.Scale_Update_Method
    method = {"average": methods.MOVING_AVERAGE, "minmax": methods.MAXIMUM}[work.method]
    nn.compress.train_quant(body, quant_bits=8, scale_update_method=method)
    body.train(True)
    images = list(work.images())
    for start in range(0, len(images), _BATCH):
        batch = np.concatenate(images[start : start + _BATCH])
        given = expr.placeholder(list(batch.shape), expr.NCHW)
        given.write(batch)
        found = body.forward(given)
        optimizer.step(expr.const(np.zeros(1, np.float32), [1]))  # or no range is kept
        found.read()
    body.train(False)
    head.train(False)
    given = expr.placeholder(list(images[0].shape), expr.NCHW)
    given.name = entry
    logits = head.forward(body.forward(given))
    logits.name = answer
    raw = Path(work.target).with_suffix(".raw.mnn")
    expr.save([logits], str(raw))
    to_mnn("MNN", str(raw), work.target, "--weightQuantBits", "8")
    raw.unlink()
