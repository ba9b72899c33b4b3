"""Writes a PP-LCNetV2 as Paddle's exporter does: a graph in either format, and its parameters."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pplcnet import PPLCNetV2
from pplcnet._model import ConvBN, RepDepthwise

TYPES = {torch.float32: (5, "t_f32"), torch.float16: (4, "t_f16"), torch.int8: (21, "t_i8")}


class Step(NamedTuple):
    """An operator of the export."""

    kind: str  # PIR's name
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]


class Export:
    """The steps of a network, and its parameters under names as Paddle counts them.

    Args:
        model: in evaluation mode; its depthwise branches are merged if `merged`.
        merged: as PaddleClas's exporter does.
        softmax: append it, as PaddleClas's exporter does.
    """

    def __init__(self, model: PPLCNetV2, *, merged: bool = True, softmax: bool = True) -> None:
        self.steps: list[Step] = []
        self.parameters: dict[str, Tensor] = {}
        self._count = 0
        with torch.no_grad():
            value = self._step("data", (), name="x", shape=[-1, 3, 224, 224])
            value = self._relu(self._conv_bn(value, model.stem[0]))
            value = self._block(value, model.stem[2], merged)
            for stage in model.stages:
                for block in stage:
                    value = self._block(value, block, merged)
            value = self._pool(value)
            value = self._relu(self._conv(value, model.last_conv.conv))
            value = self._dropout(value, model.last_conv.p)
            value = self._step("flatten", (value,), start_axis=1, stop_axis=3)
            assert isinstance(model.fc, nn.Linear)
            weight = self._parameter(model.fc.weight.T.contiguous(), "linear_0.w_0")
            value = self._step("matmul", (value, weight), transpose_x=False, transpose_y=False)
            value = self._step("add", (value, self._parameter(model.fc.bias, "linear_0.b_0")))
            if softmax:
                value = self._step("softmax", (value,), axis=-1)
            self._step("fetch", (value,), name="fetch_name_0", col=0)

    def _step(self, kind: str, inputs: tuple[str, ...], **attributes: Any) -> str:
        self._count += 1
        self.steps.append(Step(kind, inputs, f"v{self._count}", attributes))
        return f"v{self._count}"

    def _parameter(self, tensor: Tensor, name: str) -> str:
        # Paddle's counters say nothing about the order of computation.
        name = f"{name}_deepcopy_{(7919 * len(self.parameters)) % 1009}"
        self.parameters[name] = tensor.detach().clone().contiguous()
        return name

    def _relu(self, value: str) -> str:
        return self._step("relu", (value,))

    def _pool(self, value: str) -> str:
        return self._step("pool2d", (value,), ksize=[1, 1], adaptive=True, pooling_type="avg")

    def _dropout(self, value: str, p: float) -> str:
        return self._step("dropout", (value,), p=p, mode="downgrade_in_infer", is_test=True)

    def _conv(self, value: str, conv: nn.Conv2d) -> str:
        kind = "depthwise_conv2d" if conv.groups > 1 else "conv2d"
        weight = self._parameter(conv.weight, "conv2d.w_0")
        value = self._step(
            kind, (value, weight), strides=list(conv.stride), paddings=list(conv.padding),
            padding_algorithm="EXPLICIT", dilations=[1, 1], groups=conv.groups, data_format="NCHW",
        )  # fmt: skip
        if conv.bias is None:
            return value
        bias = self._parameter(conv.bias, "conv2d.b_0")
        bias = self._step("reshape", (bias,), shape=[1, -1, 1, 1])
        return self._step("add", (value, bias))

    def _conv_bn(self, value: str, module: ConvBN) -> str:
        value, bn = self._conv(value, module.conv), module.bn
        assert bn.running_mean is not None
        assert bn.running_var is not None
        names = ("w_1", "w_2", "w_0", "b_0")
        tensors = (bn.running_mean, bn.running_var, bn.weight, bn.bias)
        parameters = [
            self._parameter(tensor, f"batch_norm2d.{name}")
            for name, tensor in zip(names, tensors, strict=True)
        ]
        return self._step(
            "batch_norm", (value, *parameters), is_test=True, epsilon=bn.eps,
            data_format="NCHW", trainable_statistics=False,
        )  # fmt: skip

    def _block(self, value: str, block: Any, merged: bool) -> str:
        entered = value
        if isinstance(block.dw_conv, RepDepthwise) and merged:
            value = self._conv(value, block.dw_conv.fuse())
        elif isinstance(block.dw_conv, RepDepthwise):
            first, *others = [self._conv_bn(entered, each) for each in block.dw_conv.branches]
            for other in others:
                first = self._step("add", (first, other))
            value = first
        else:
            value = self._conv_bn(value, block.dw_conv)
        value = self._relu(value)
        if hasattr(block.se, "fc1"):
            gate = self._relu(self._conv(self._pool(value), block.se.fc1))
            gate = self._step("sigmoid", (self._conv(gate, block.se.fc2),))
            value = self._step("multiply", (value, gate))
        for each in block.pw_conv:
            value = self._relu(self._conv_bn(value, each))
        return self._step("add", (value, entered)) if block.has_shortcut else value

    def save(self, folder: Path, name: str = "inference.json") -> Path:
        """Write the graph, by its name, and the parameters; the path of the graph."""
        folder.mkdir(parents=True, exist_ok=True)
        graph = folder / name
        if graph.suffix == ".json":
            graph.write_text(json.dumps(self.pir()))
        else:
            graph.write_bytes(self.program())
        graph.with_suffix(".pdiparams").write_bytes(self.tensors())
        return graph

    def tensors(self) -> bytes:
        """``inference.pdiparams``."""
        data = b""
        for _, tensor in sorted(self.parameters.items(), key=lambda item: item[0].encode()):
            described = _describe(tensor)
            data += struct.pack("<IQIi", 0, 0, 0, len(described)) + described
            data += tensor.numpy().tobytes()
        return data

    def pir(self) -> dict[str, Any]:
        """``inference.json``."""
        numbers = {name: number for number, name in enumerate(self.parameters, 1)}
        operators: list[dict[str, Any]] = [
            {
                "#": "p", "A": [0, 1, 1, name], "DA": [], "OA": [1, 0, 1], "QA": [],
                "O": {"%": numbers[name], "TT": {"#": "0.t_dtensor", "D": [
                    {"#": f"0.{TYPES[tensor.dtype][1]}"}, list(tensor.shape), "NCHW", [], 0]}},
            }
            for name, tensor in self.parameters.items()
        ]  # fmt: skip

        def number(name: str) -> int:
            return numbers.setdefault(name, len(numbers) + 1)

        def operator(kind: str, inputs: Sequence[int], output: int, **values: Any) -> None:
            operators.append({
                "#": f"1.{kind}", "I": [{"%": n} for n in inputs], "O": [{"%": output}], "OA": [],
                "A": [{"N": key, "AT": _pir_value(value)} for key, value in values.items()],
            })  # fmt: skip

        for step in self.steps:
            kind = {"batch_norm": "batch_norm_"}.get(step.kind, step.kind)
            inputs, attributes = [number(name) for name in step.inputs], dict(step.attributes)
            for key, made in (
                ("ksize", "full_int_array"),
                ("shape", "full_int_array"),
                ("p", "full"),
            ):
                if key in attributes and step.kind in ("pool2d", "reshape", "dropout"):
                    extra = number(f"{step.output}.{key}")
                    operator(made, [], extra, value=attributes.pop(key))
                    inputs += [0, extra] if key == "p" else [extra]  # dropout: no seed
            operator(kind, inputs, number(step.output), **attributes)
        blocks = [{"#": "block_0", "args": [], "ops": operators}]
        return {
            "base_code": {"magic": "pir", "trainable": True, "version": 4},
            "program": {"regions": [{"#": "region_0", "blocks": blocks}]},
        }

    def program(self) -> bytes:
        """``inference.pdmodel``."""
        block = _number(1, 0) + _number(2, 0)
        for name, tensor in self.parameters.items():
            dense = _bytes(1, _describe(tensor))
            kind = _number(1, 7) + _bytes(3, dense)
            block += _bytes(3, _bytes(1, name.encode()) + _bytes(2, kind) + _number(3, 1))
        for step in self.steps:
            block += _bytes(4, _operator(step))
        return _bytes(1, block) + _bytes(4, _number(1, 2006002))


_OLD = {
    "data": "feed",
    "add": "elementwise_add",
    "multiply": "elementwise_mul",
    "flatten": "flatten_contiguous_range",
    "matmul": "matmul_v2",
    "reshape": "reshape2",
}
_OLD_KEYS = {"p": "dropout_prob", "mode": "dropout_implementation", "transpose_x": "trans_x",
             "transpose_y": "trans_y"}  # fmt: skip
_SLOTS = {"batch_norm": ("X", "Mean", "Variance", "Scale", "Bias"), "conv2d": ("Input", "Filter"),
          "depthwise_conv2d": ("Input", "Filter")}  # fmt: skip
_OUTPUTS = {"batch_norm": "Y", "conv2d": "Output", "depthwise_conv2d": "Output"}


def _operator(step: Step) -> bytes:
    slots = _SLOTS.get(step.kind, ("X", "Y"))
    message = b""
    for slot, name in zip(slots, step.inputs, strict=False):
        message += _bytes(1, _bytes(1, slot.encode()) + _bytes(2, name.encode()))
    output = _OUTPUTS.get(step.kind, "Out")
    message += _bytes(2, _bytes(1, output.encode()) + _bytes(2, step.output.encode()))
    message += _bytes(3, _OLD.get(step.kind, step.kind).encode())
    for key, value in step.attributes.items():
        name = _OLD_KEYS.get(key, key)
        if step.kind == "batch_norm" and key == "data_format":
            name = "data_layout"
        message += _bytes(4, _bytes(1, name.encode()) + _old_value(value))
    return message


def _old_value(value: Any) -> bytes:
    if isinstance(value, bool):
        return _number(2, 6) + _number(10, int(value))
    if isinstance(value, int):
        return _number(2, 0) + _number(3, value)
    if isinstance(value, float):
        return _number(2, 1) + _varint(4 << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, str):
        return _number(2, 2) + _bytes(5, value.encode())
    return _number(2, 3) + b"".join(_number(6, item) for item in value)


def _pir_value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"#": "0.a_bool", "D": value}
    if isinstance(value, int):
        return {"#": "0.a_i32", "D": value}
    if isinstance(value, float):  # as a float32 is written
        return {"#": "0.a_f32", "D": struct.unpack("<f", struct.pack("<f", value))[0]}
    if isinstance(value, str):
        return {"#": "0.a_str", "D": value}
    return {"#": "0.a_array", "D": [_pir_value(item) for item in value]}


def _describe(tensor: Tensor) -> bytes:
    """A TensorDesc."""
    dims = b"".join(_number(2, side) for side in tensor.shape)
    return _number(1, TYPES[tensor.dtype][0]) + dims


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    data = b""
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def probabilities(model: PPLCNetV2, images: Tensor) -> Tensor:
    """What an export with softmax gives."""
    with torch.inference_mode():
        return F.softmax(model(images), dim=1)
