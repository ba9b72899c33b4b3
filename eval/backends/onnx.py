"""ONNX: the exported graph, and ONNX Runtime.

The input is ``input``, float32 (batch, 3, size, size), normalized; the output ``logits``, float32
(batch, classes). The batch is dynamic.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import logging
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.backends import missing_extra
from eval.backends.child import first_line
from eval.backends.precision import UNKNOWN, describe
from eval.backends.quantize import Batch, Work
from eval.backends.session import Compute, Session
from eval.backends.signature import Feed, Port, side_of
from eval.errors import ModelError, UsageError
from eval.images.preprocess import CROP

if TYPE_CHECKING:
    from torch import nn

OPSET = 18  # what torch's exporter writes itself; every other one is a conversion of it
INPUT, OUTPUT = "input", "logits"
SETTINGS: dict[str, Any] = {"onnxruntime.providers": "CPUExecutionProvider"}


def export_onnx(model: nn.Module, opset: int = OPSET, size: int = CROP) -> bytes:
    """A model as ONNX.

    Args:
        model: any image classifier; it is not changed.
        opset: version of the operators.
        size: of a side of its images.

    Returns:
        The serialized ``ModelProto``, its weights included.

    Raises:
        UsageError: onnx or onnxscript is missing, or the exporter does not support this opset.
        ModelError: the exporter cannot do it.
    """
    try:
        import onnx  # noqa: F401 - named by the error
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_extra("onnxruntime", "onnx", error) from error
    import torch

    model = copy.deepcopy(model).cpu().float().eval()
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, 3, size, size)
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # the exporter's own troubles, with tracebacks
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the exporter's own workings
        try:
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        except Exception as error:
            raise ModelError(
                f"torch's ONNX exporter cannot export this {type(model).__name__} "
                f"({first_line(error)}).\nUse --backend torch or compile."
            ) from error
        finally:
            logging.disable(disabled)
    assert program is not None
    proto = program.model_proto
    written = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if written != opset:
        raise UsageError(
            f"--opset {opset}: the exporter cannot convert this model to it and would write opset "
            f"{written}.\nLeave --opset out."
        )
    return proto.SerializeToString()  # type: ignore[no-any-return]


def sources(
    model: nn.Module, _folder: Path, _batches: Sequence[int], size: int
) -> dict[int, bytes]:
    """A torch model as one graph for every batch size."""
    return {0: export_onnx(model, size=size)}


def export(_model: nn.Module, graph: Path, path: Path, _size: int) -> None:
    """Write a model's file; see `eval.backends.session`."""
    shutil.copy(graph, path)


def load(source: bytes | Path, how: Compute) -> OnnxGraph:
    """See `eval.backends.session`."""
    return OnnxGraph(source, how.threads)


class OnnxGraph:
    """A graph in ONNX Runtime on the CPU; it computes in the thread that calls."""

    layout = None

    def __init__(self, source: bytes | Path, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # its errors reach Python as exceptions
        self._session = onnxruntime.InferenceSession(
            str(source) if isinstance(source, Path) else source,
            options,
            providers=["CPUExecutionProvider"],
        )
        self.inputs = _ports(self._session.get_inputs())
        self.outputs = _ports(self._session.get_outputs())

    def session(self, feed: Feed, _batch: int) -> Session:
        """One session serves all threads."""
        (entry,) = self._session.get_inputs()
        answer = self._session.get_outputs()[feed.output]

        def run(images: NDArray[Any]) -> NDArray[Any]:
            return np.asarray(self._session.run([answer.name], {entry.name: images})[0])

        return run


def _ports(values: Any) -> list[Port]:
    """Type, shape and name of each input or output."""
    return [
        (value.type.removeprefix("tensor(").rstrip(")"), list(value.shape or ()), value.name)
        for value in values
    ]


def side(path: Path) -> int | None:
    """Height and width of a graph's image, where they are fixed; see `eval.backends.session`."""
    model = _read(path.read_bytes())
    if model is None:
        return None
    constants = {tensor.name for tensor in model.graph.initializer}
    shapes = [
        [size.dim_value for size in entry.type.tensor_type.shape.dim]
        for entry in model.graph.input
        if entry.name not in constants
    ]
    return side_of(shapes)


def begins(head: bytes) -> bool:
    """Whether a file may be a ``ModelProto``; see `eval.backends.session`."""
    return head[:1] in b"\x08\x12\x1a"


def companions(path: Path) -> tuple[Path, ...]:
    """The files that tensors of the graph are kept in: it names them."""
    data = path.read_bytes()
    if b"location" not in data:  # the key under which a file is named
        return ()
    try:
        from onnx.external_data_helper import ExternalDataInfo, uses_external_data
    except ImportError as error:
        raise missing_extra("onnxruntime", "onnx", error) from error
    model = _read(data)
    if model is None:
        return ()
    tensors = [tensor for graph in _graphs(model) for tensor in _tensors(graph).values()]
    names = {ExternalDataInfo(t).location for t in tensors if uses_external_data(t)}
    return tuple(path.parent / name for name in sorted(names))


def _read(data: bytes) -> Any | None:
    """A ``ModelProto``; None where it is damaged: the runtime says so."""
    import onnx

    try:
        return onnx.load_model_from_string(data)
    except Exception:  # protobuf's own; it has several implementations
        return None


def _graphs(model: Any) -> Iterator[Any]:
    """The graph, the functions of the model, and the bodies of loops and branches in them."""
    waiting = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]


def _tensors(graph: Any) -> dict[str, Any]:
    """Every constant of a graph, by its name: initializers and ``Constant`` nodes."""
    found = {tensor.name: tensor for tensor in getattr(graph, "initializer", ())}
    sparse = [(each.values.name, each.values) for each in getattr(graph, "sparse_initializer", ())]
    for number, node in enumerate(graph.node):
        for attribute in node.attribute:
            # What is no Constant uses its tensor itself; a name that no other has stands for it.
            is_named = node.op_type == "Constant" and node.output
            name = node.output[0] if is_named else f"/{number}/{attribute.name}"
            if attribute.HasField("t"):
                found[name] = attribute.t
            if attribute.HasField("sparse_tensor"):
                sparse.append((name, attribute.sparse_tensor.values))
            found.update({f"{name}/{n}": each for n, each in enumerate(attribute.tensors)})
    return {**found, **dict(sparse)}


_WEIGHTS_OF = re.compile(r"NBits|Bnb4|FpQ4|BlockQuantized|QMoE")  # computed in floats
_INTEGERS = re.compile(r"Quantize|^Q[A-Z]|Integer")
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc")


def precision(path: Path) -> str:
    """From the types of its tensors and its operators; see `eval.backends.session`."""
    try:
        import onnx
    except ImportError:
        return UNKNOWN
    model = _read(path.read_bytes())
    return UNKNOWN if model is None else _Types(model, onnx.TensorProto.DataType).precision


class _Types:
    """What a graph computes in, and what its constants are stored in."""

    def __init__(self, model: Any, numbers: Any) -> None:
        self._kinds = {numbers.Value(key): _kind(key) for key in numbers.keys()}  # noqa: SIM118
        self._functions = {(each.domain, each.name) for each in model.functions}
        self._computed: set[str] = set()
        self._stored: set[str] = set()
        graphs = list(_graphs(model))
        used = {name for graph in graphs for node in graph.node for name in node.input}
        # The outputs of a function are names already.
        used |= {getattr(output, "name", output) for graph in graphs for output in graph.output}
        self._tensors = {name: t for graph in graphs for name, t in _tensors(graph).items()}
        self._constant = set(self._tensors) | {""}  # "" stands for an input that is left out
        self._stored |= {
            self._real(tensor.data_type, whole=True)
            for name, tensor in self._tensors.items()
            if name in used or "/" in name
        }
        for entry in model.graph.input:
            if entry.name not in self._tensors:
                self._computed.add(self._real(entry.type.tensor_type.elem_type))
        for graph in graphs:
            for node in graph.node:
                self._add(node)

    @property
    def precision(self) -> str:
        return describe(self._computed, self._stored)

    def _real(self, number: int, *, whole: bool = False) -> str:
        """The name of a type of real numbers, and where it is small, of whole ones; else ""."""
        kind = self._kinds.get(number, UNKNOWN)
        return kind if whole or not kind.startswith("int") else ""

    def _add(self, node: Any) -> None:
        is_constant = set(node.input) <= self._constant and node.op_type != "RandomNormal"
        if is_constant:
            self._constant.update(node.output)
        found = self._stored if is_constant else self._computed
        values = {attribute.name: attribute for attribute in node.attribute}
        name = node.op_type
        if name == "Cast":
            found.add(self._real(values["to"].i) if "to" in values else UNKNOWN)
        elif name in ("QuantizeLinear", "CastLike"):
            like = self._tensors.get(node.input[-1]) if len(node.input) in (2, 3) else None
            kind = self._real(like.data_type, whole=True) if like is not None else ""
            if name == "QuantizeLinear" and (len(node.input) < 3 or not kind):
                kind = "int8"
            found.add(kind)
        elif _WEIGHTS_OF.search(name):
            self._stored.add(f"int{values['bits'].i}" if "bits" in values else "int4")
        elif _INTEGERS.search(name):
            found.add("int8")
        elif (
            node.domain not in _DOMAINS and (node.domain, name) not in self._functions
        ) or name == "EPContext":
            self._computed.add(UNKNOWN)  # what it computes is not in the graph


def _kind(key: str) -> str:
    """ONNX's name of a type as `describe` calls it; "" for whole numbers that count or index."""
    small = re.fullmatch(r"U?INT(\d|16)", key)
    if small:
        return f"int{small[1]}"
    tiny = re.match(r"FLOAT([468])E", key)
    if tiny:
        return f"fp{tiny[1]}"
    return {"FLOAT": "fp32", "DOUBLE": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}.get(key, "")


def _prepare(source: str, target: Path) -> None:
    """Write a graph with the shapes of all its tensors, as quantizers need it."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(source, str(target), skip_symbolic_shape=True)


def _reader(graph: Path, images: Iterable[Batch]) -> Any:
    """Images as quantizers ask for them."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader

    name = onnx.load(str(graph), load_external_data=False).graph.input[0].name
    inputs = ({name: batch} for batch in images)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Batch] | None:
            return next(inputs, None)

    return Reader()


def quantize(work: Work) -> None:
    """An int8 ONNX file (QDQ format)."""
    import onnxruntime.quantization as ort

    methods = ort.CalibrationMethod
    prepared = Path(work.target).with_suffix(".prepared.onnx")
    _prepare(work.onnx, prepared)
    ort.quantize_static(
        str(prepared),
        work.target,
        _reader(prepared, work.images()),
        quant_format=ort.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=False,
        activation_type=ort.QuantType.QUInt8,
        weight_type=ort.QuantType.QInt8,
        nodes_to_exclude=list(work.exclude),
        calibrate_method={
            "minmax": methods.MinMax,
            "percentile": methods.Percentile,
            "entropy": methods.Entropy,
        }[work.method],
    )
    prepared.unlink()


def layer_errors(onnx_file: str, int8: str, data: str, images: int = 16) -> list[list[Any]]:
    """How much each layer loses by quantization: [node, error], the largest first.

    The error is the noise of the layer's output relative to its signal, both as energies, with the
    errors of the layers before it: what ONNX Runtime's debugger compares tensor by tensor.
    """
    import onnx
    import onnxruntime.quantization.qdq_loss_debug as debug

    work = Work(onnx_file, "", "", int8, data, "")
    folder = Path(int8).parent
    prepared = folder / "layers.onnx"
    _prepare(onnx_file, prepared)
    found = []
    for source in (str(prepared), int8):
        augmented = folder / f"augmented-{Path(source).name}"
        debug.modify_model_output_intermediate_tensors(source, str(augmented))
        reader = _reader(prepared, itertools.islice(work.images(), images))
        found.append(debug.collect_activations(str(augmented), reader))
        augmented.unlink()
    matching = debug.create_activation_matching(found[1], found[0])
    rows = []
    for node in onnx.load(str(prepared)).graph.node:
        pair = matching.get(node.output[0])
        if node.op_type not in ("Conv", "Gemm", "MatMul") or not pair or not pair.get("float"):
            continue
        signal = np.concatenate([np.ravel(x) for x in pair["float"]]).astype(np.float64)
        noise = np.concatenate([np.ravel(x) for x in pair["post_qdq"]]).astype(np.float64) - signal
        rows.append([node.name, float((noise**2).sum() / max((signal**2).sum(), 1e-30))])
    prepared.unlink()
    return sorted(rows, key=lambda row: -row[1])
