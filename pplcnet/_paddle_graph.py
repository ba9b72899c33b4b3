"""Read the files of a Paddle inference model, without Paddle and without running anything in them.

An inference model is a graph and its parameters, ``inference.pdiparams``. The graph is
``inference.json`` (Paddle 3, PIR) or ``inference.pdmodel`` (a protobuf message,
``paddle/fluid/framework/framework.proto``).

The ``.pdiparams`` file is a sequence of tensors without names, in the order of their names' bytes
(``python/paddle/static/io.py``, ``sorted(save_var_map)``); the graph says which there are. Each is

    u32 0 | u64 0 | u32 0 | i32 n | n bytes: TensorDesc {1: type, 2: dims ...} | data, in C order

(``paddle/phi/core/framework/dense_tensor_serialize.cc``, little-endian). Paddle does not notice a
file that ends early; here every size must be exact.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pplcnet._errors import Refused, WeightsError, one_line, quoted

GRAPHS = ("inference.json", "inference.pdmodel")  # in a folder, the first that there is
_EXPORT_AGAIN = "Export it again with PaddleClas's tools/export_model.py, or give a checkpoint."
_MAX_GRAPH = 64 << 20  # bytes; the largest PP-LCNetV2 takes 0.2 MB
_MAX_PARAMETERS = 4 << 30
_MAX_DIMS = 8

# framework.proto, VarType.Type; 22 is bfloat16
_DTYPES = {0: torch.bool, 1: torch.int16, 2: torch.int32, 3: torch.int64, 4: torch.float16,
           5: torch.float32, 6: torch.float64, 20: torch.uint8, 21: torch.int8,
           22: torch.bfloat16}  # fmt: skip
_PIR_DTYPES = {"t_bool": 0, "t_i16": 1, "t_i32": 2, "t_i64": 3, "t_f16": 4, "t_f32": 5, "t_f64": 6,
               "t_ui8": 20, "t_i8": 21, "t_bf16": 22}  # fmt: skip
_DENSE_TENSOR = 7  # VarType.Type, LOD_TENSOR
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError,
           struct.error, UnicodeDecodeError)  # fmt: skip


class Operator(NamedTuple):
    """One step of a graph.

    Attributes:
        kind: a name of `KINDS`, the same in both formats.
        inputs: names of values, parameters among them; "" where an optional one is absent.
        output: name of the value that it makes; "" for ``fetch``.
        attributes: as they are written, numbers of 32 bits as the decimal that they stand for.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Graph:
    """The graph of an inference model, with its parameters.

    Attributes:
        path: its file.
        operators: in the order of computation.
        parameters: tensors by their names in the graph, as they are stored.
    """

    path: Path
    operators: tuple[Operator, ...]
    parameters: Mapping[str, Tensor]


class _Declared(NamedTuple):
    """What a graph says of a parameter."""

    dtype: int  # a key of `_DTYPES`
    shape: tuple[int, ...]


# Paddle's name of an operator, without a trailing underscore, to ours, and the inputs that count,
# in the order of PIR. Whatever is not here is refused: an operator may write files.
KINDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "data": ("input", ()),
    "feed": ("input", ()),
    "conv2d": ("conv2d", ("Input", "Filter")),
    "depthwise_conv2d": ("conv2d", ("Input", "Filter")),
    "batch_norm": ("batch_norm", ("X", "Mean", "Variance", "Scale", "Bias")),
    "relu": ("relu", ("X",)),
    "sigmoid": ("sigmoid", ("X",)),
    "softmax": ("softmax", ("X",)),
    "add": ("add", ("X", "Y")),
    "elementwise_add": ("add", ("X", "Y")),
    "multiply": ("multiply", ("X", "Y")),
    "elementwise_mul": ("multiply", ("X", "Y")),
    "pool2d": ("pool2d", ("X",)),
    "full_int_array": ("constant", ()),
    "full": ("constant", ()),
    "reshape": ("reshape", ("X",)),
    "reshape2": ("reshape", ("X",)),
    "dropout": ("dropout", ("X",)),
    "flatten": ("flatten", ("X",)),
    "flatten_contiguous_range": ("flatten", ("X",)),
    "matmul": ("matmul", ("X", "Y")),
    "matmul_v2": ("matmul", ("X", "Y")),
    "scale": ("scale", ("X",)),
    "fetch": ("fetch", ("X",)),
}


def find_graph(path: Path) -> Path | None:
    """The graph of the inference model that a path names; None if it names something else.

    Args:
        path: a folder, or a file. A ``.json`` is one if it says that it is a PIR program.
    """
    if path.is_dir():
        return next((path / name for name in GRAPHS if (path / name).is_file()), None)
    if path.suffix == ".pdmodel":
        return path
    if path.suffix == ".json" and path.is_file():
        with path.open("rb") as file:
            head = file.read(4096)
        return path if b'"base_code"' in head and b'"pir"' in head else None
    return None


def files_of(graph: Path) -> tuple[Path, Path]:
    """The files of an inference model: the graph and the parameters."""
    return graph, graph.with_suffix(".pdiparams")


def read_graph(path: Path) -> Graph:
    """Read an inference model.

    Args:
        path: its graph, see `find_graph`.

    Raises:
        WeightsError: a file is missing, damaged or incomplete, has an operator that no classifier
            of this kind has, more than one block, or values that are not finite.
    """
    graph, parameters = files_of(path)
    at = graph
    try:
        data = _content(graph, _MAX_GRAPH)
        operators, declared = _from_json(data) if graph.suffix == ".json" else _from_pdmodel(data)
        at = parameters
        tensors = _named(declared, _read_tensors(_content(parameters, _MAX_PARAMETERS)))
    except Refused as refusal:
        raise WeightsError(f"{at}: {refusal.found}.\n{refusal.advice}") from refusal
    except DAMAGE as error:
        raise WeightsError(
            f"{at} is damaged, or not of a Paddle inference model ({one_line(error)}).\n"
            f"{_EXPORT_AGAIN}"
        ) from error
    return Graph(path, tuple(operators), tensors)


def _content(path: Path, most: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > most:
            raise Refused(f"{size:,} bytes are too many for PP-LCNetV2", _EXPORT_AGAIN)
        return path.read_bytes()
    except FileNotFoundError:
        raise Refused(
            "there is no such file",
            f"An inference model is {' or '.join(GRAPHS)} with its .pdiparams beside it.",
        ) from None
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror or error}", _EXPORT_AGAIN) from error


# ---------------------------------------------------------------- parameters


def _read_tensors(data: bytes) -> Iterator[Tensor]:
    """The tensors of a ``.pdiparams`` file, in its order."""
    at = 0
    while at < len(data):
        version, levels, inner, size = struct.unpack_from("<IQIi", data, at)
        at += 20
        if version or levels or inner or not 0 < size <= 4096:
            raise ValueError("a tensor does not begin as one")
        description = _fields(data[at : at + size])
        dims = tuple(map(_signed, _all(description, 2)))
        at += size
        dtype = _DTYPES[_first(description)[1]]
        if len(dims) > _MAX_DIMS or any(n < 0 for n in dims):
            raise ValueError(f"a tensor of shape {list(dims)[:_MAX_DIMS]}")
        length = math.prod(dims) * dtype.itemsize
        if at + length > len(data):
            raise Refused("ends in the middle of a tensor", _EXPORT_AGAIN)
        tensor = torch.frombuffer(bytearray(data[at : at + length]), dtype=dtype) if length else (
            torch.empty(0, dtype=dtype))  # fmt: skip
        yield tensor.reshape(dims)
        at += length


def _named(declared: Mapping[str, _Declared], tensors: Iterator[Tensor]) -> dict[str, Tensor]:
    """The tensors by name, once they are those that the graph declares."""
    found = list(tensors)
    names = sorted(declared, key=str.encode)
    if len(found) != len(names):
        raise Refused(
            f"{len(found)} tensors, but the graph has {len(names)} parameters",
            "Give the graph and the parameters of one export.",
        )
    for name, tensor in zip(names, found, strict=True):
        expected = declared[name]
        if tuple(tensor.shape) != expected.shape or tensor.dtype != _DTYPES[expected.dtype]:
            raise Refused(
                f"a tensor {list(tensor.shape)} ({_short(tensor.dtype)}) where the graph has "
                f"{quoted(name)} {list(expected.shape)} ({_short(_DTYPES[expected.dtype])})",
                "Give the graph and the parameters of one export.",
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise Refused(f"{quoted(name)} contains NaN or infinity", _EXPORT_AGAIN)
    return dict(zip(names, found, strict=True))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# ---------------------------------------------------------------- inference.json


def _from_json(data: bytes) -> tuple[list[Operator], dict[str, _Declared]]:
    top = json.loads(data)
    if top["base_code"]["magic"] != "pir":
        raise ValueError("not a PIR program")
    regions = top["program"]["regions"]
    blocks = [block for region in regions for block in region["blocks"]]
    _one_block(len(blocks))
    operators: list[Operator] = []
    declared: dict[str, _Declared] = {}
    name_of: dict[int, str] = {}

    def name(value: Mapping[str, int]) -> str:
        return name_of.get(value["%"], f"%{value['%']}") if value["%"] else ""

    for row in blocks[0]["ops"]:
        if row["#"] == "p":
            parameter = row["A"][3]
            kind, shape = row["O"]["TT"]["D"][:2]
            if parameter in declared:
                raise ValueError(f"{quoted(parameter)} is declared twice")
            declared[parameter] = _Declared(_PIR_DTYPES[kind["#"].partition(".")[2]], tuple(shape))
            name_of[row["O"]["%"]] = parameter
            continue
        kind, _ = _known(row["#"].partition(".")[2])
        attributes = {entry["N"]: _pir_value(entry["AT"]) for entry in row["A"]}
        inputs = tuple(map(name, row["I"]))
        operators.append(Operator(kind, inputs, name(row["O"][0]), attributes))
    return operators, declared


def _pir_value(attribute: Any) -> Any:
    """The plain value of an attribute; arrays are tuples."""
    kind, value = attribute["#"].partition(".")[2], attribute["D"]
    if isinstance(value, list):
        return tuple(_pir_value(item) if isinstance(item, dict) else item for item in value)
    return _decimal(value) if kind in ("a_f32", "a_f64") else value


# ---------------------------------------------------------------- inference.pdmodel


# Optional inputs, in place of attributes.
_NEVER_GIVEN = ("ShapeTensor", "Shape", "Seed", "ScaleTensor", "ResidualData")


def _from_pdmodel(data: bytes) -> tuple[list[Operator], dict[str, _Declared]]:
    blocks = _all(_fields(data), 1)
    _one_block(len(blocks))
    block = _fields(blocks[0])
    declared: dict[str, _Declared] = {}
    for variable in map(_fields, _all(block, 3)):
        found = _first(variable)
        type_ = _first(_fields(found[2]))
        if found.get(3) and type_[1] == _DENSE_TENSOR:  # feed and fetch are persistable, too
            description = _fields(_first(_fields(type_[3]))[1])
            shape = tuple(map(_signed, _all(description, 2)))
            if found[1].decode() in declared:
                raise ValueError(f"{quoted(found[1])} is declared twice")
            declared[found[1].decode()] = _Declared(_first(description)[1], shape)
    operators = []
    for row in map(_fields, _all(block, 4)):
        kind, inputs = _known(_first(row)[3].decode())
        given, made = _slots(_all(row, 1)), _slots(_all(row, 2))
        names = [given.get(slot, ()) for slot in inputs]
        if any(len(each) > 1 for each in names) or any(map(given.get, _NEVER_GIVEN)):
            raise ValueError(f"an input of {kind} that no export has")
        output = next((made[slot] for slot in ("Output", "Y", "Out") if made.get(slot)), ("",))
        attributes = dict(map(_attribute, _all(row, 4)))
        operators.append(
            Operator(kind, tuple(each[0] if each else "" for each in names), output[0], attributes)
        )
    return operators, declared


def _slots(messages: Sequence[bytes]) -> dict[str, tuple[str, ...]]:
    """OpDesc.Var: parameter (1), arguments (2)."""
    rows = [_fields(message) for message in messages]
    return {_first(row)[1].decode(): tuple(name.decode() for name in _all(row, 2)) for row in rows}


# OpDesc.Attr: 1 name, 2 type; of each type, the field and what is made of it.
_ATTRIBUTES: Mapping[int, tuple[int, bool, Callable[[Any], Any]]] = {
    0: (3, False, lambda v: _signed(v)),  # INT
    1: (4, False, lambda v: _decimal(struct.unpack("<f", v)[0])),  # FLOAT
    2: (5, False, lambda v: v.decode()),  # STRING
    3: (6, True, lambda v: _signed(v)),  # INTS
    6: (10, False, bool),  # BOOLEAN
    9: (13, False, lambda v: _signed(v)),  # LONG
    11: (15, True, lambda v: _signed(v)),  # LONGS
}


def _attribute(message: bytes) -> tuple[str, Any]:
    row = _fields(message)
    found = _first(row)
    name = found[1].decode()
    if found[2] not in _ATTRIBUTES:
        return name, None
    field, many, value = _ATTRIBUTES[found[2]]
    values = tuple(map(value, _all(row, field)))
    return name, values if many else values[0]


def _fields(data: bytes) -> list[tuple[int, Any]]:
    """The fields of a protobuf message: number and value, a whole number or bytes."""
    at, found = 0, []
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind in (1, 2, 5):
            length, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = data[at : at + length], at + length  # type: ignore[assignment]
        else:
            raise ValueError(f"a field of wire type {kind}")
        if at > len(data):
            raise ValueError("a message ends early")
        found.append((number, value))
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A whole number of at most 64 bits, and where the next field begins."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number of more than 64 bits")


def _all(fields: Sequence[tuple[int, Any]], number: int) -> list[Any]:
    return [value for key, value in fields if key == number]


def _first(fields: Sequence[tuple[int, Any]]) -> dict[int, Any]:
    return dict(reversed(fields))


# ---------------------------------------------------------------- both formats


def _signed(value: int) -> int:
    """A number of 64 bits as protobuf writes negative ones."""
    return value - (1 << 64) if value >> 63 else value


def _decimal(value: float) -> float:
    """The shortest decimal of a float32: 0.2 for 0.20000000298."""
    return float(str(np.float32(value)))


def _one_block(count: int) -> None:
    if count != 1:
        raise Refused(
            f"a graph of {count} blocks: control flow, which no PP-LCNetV2 has", _EXPORT_AGAIN
        )


def _known(operator: str) -> tuple[str, tuple[str, ...]]:
    """Our kind of an operator, and the inputs that count."""
    found = KINDS.get(operator.removesuffix("_"))
    if found is None and "quantize" in operator:
        raise Refused(
            f"the operator {quoted(operator)} is of an int8 model, which is not read here",
            "Give the fp32 model that it was made from.",
        )
    if found is None:
        raise Refused(
            f"the operator {quoted(operator)} is not one of PP-LCNetV2's, and is not run",
            _EXPORT_AGAIN,
        )
    return found
