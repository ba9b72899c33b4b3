"""Write a PP-LCNetV2 as an inference model that Paddle runs: a graph, and its parameters.

Operators and attributes are those that Paddle 3's own exporter writes (``paddle.jit.save``); the
formats are described in `pplcnet._paddle_graph`. No Paddle is needed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pplcnet._model import ConvBN, ConvDropout, DepthwiseSeparable, PPLCNetV2, RepDepthwise

# VarType.Type of framework.proto, and PIR's name.
TYPES = {torch.float32: (5, "t_f32"), torch.float16: (4, "t_f16"), torch.int8: (21, "t_i8")}
_ANY = -1  # a size that is known at run time: the batch's


class Step(NamedTuple):
    """An operator.

    Attributes:
        kind: PIR's name.
        inputs: names of values, parameters among them.
        output: name of the value that it makes.
        shape: of that.
        attributes: of the operator; what PIR keeps in an operator of its own is among them.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    shape: tuple[int, ...]
    attributes: dict[str, Any]


class Export:
    """The steps of a network, and its parameters under names as Paddle counts them.

    Args:
        model: in either form; what it computes in evaluation mode is written, in float32.
        merged: merge the depthwise branches and keep batch normalization, as PaddleClas's own
            exporter does.
        softmax: append it, as PaddleClas's own exporter does.
        size: of a side of the images, in pixels.
    """

    def __init__(
        self, model: PPLCNetV2, *, merged: bool = False, softmax: bool = False, size: int = 224
    ) -> None:
        self.steps: list[Step] = []
        self.parameters: dict[str, Tensor] = {}
        self._merged = merged
        self._shapes: dict[str, tuple[int, ...]] = {}
        with torch.no_grad():
            images = (_ANY, model.in_chans, size, size)
            value = self._step("data", (), images, name="x", shape=images)
            value = self._relu(self._layer(value, model.stem[0]))
            stages = [block for stage in model.stages.children() for block in stage.children()]
            for block in (model.stem[2], *stages):
                assert isinstance(block, DepthwiseSeparable)
                value = self._block(value, block)
            value = self._layer(self._pool(value), model.last_conv)
            width = self._shapes[value][1]
            value = self._step("flatten", (value,), (_ANY, width), start_axis=1, stop_axis=3)
            assert isinstance(model.fc, nn.Linear)
            answer = (_ANY, model.fc.out_features)
            weight = self._parameter(model.fc.weight.T, "linear_0.w_0")
            no = {"transpose_x": False, "transpose_y": False}
            value = self._step("matmul", (value, weight), answer, **no)
            bias = self._parameter(model.fc.bias, "linear_0.b_0")
            value = self._step("add", (value, bias), answer)
            if softmax:
                value = self._step("softmax", (value,), answer, axis=-1)
            self._step("fetch", (value,), answer, name="fetch_name_0", col=0)

    def _step(
        self, kind: str, inputs: tuple[str, ...], shape: tuple[int, ...], /, **attributes: Any
    ) -> str:
        output = f"v{len(self.steps) + 1}"
        self.steps.append(Step(kind, inputs, output, shape, attributes))
        self._shapes[output] = shape
        return output

    def _parameter(self, tensor: Tensor, name: str) -> str:
        # As Paddle's counters, the numbers say nothing about the order of computation.
        name = f"{name}_deepcopy_{(7919 * len(self.parameters)) % 1009}"
        self.parameters[name] = tensor.detach().cpu().float().clone().contiguous()
        return name

    def _same(self, kind: str, /, *inputs: str, **attributes: Any) -> str:
        """An operator whose output has the shape of its first input."""
        return self._step(kind, inputs, self._shapes[inputs[0]], **attributes)

    def _relu(self, value: str) -> str:
        return self._same("relu", value)

    def _pool(self, value: str) -> str:
        return self._step(
            "pool2d", (value,), (*self._shapes[value][:2], 1, 1), ksize=[1, 1], strides=[1, 1],
            paddings=[0, 0], ceil_mode=False, exclusive=True, data_format="NCHW",
            pooling_type="avg", global_pooling=False, adaptive=True, padding_algorithm="EXPLICIT",
        )  # fmt: skip

    def _layer(self, value: str, module: nn.Module) -> str:
        """A convolution, and what belongs to it."""
        if isinstance(module, RepDepthwise) and not self._merged:
            first, *others = [self._layer(value, branch) for branch in module.branches]
            for other in others:
                first = self._same("add", first, other)
            return first
        if isinstance(module, RepDepthwise):
            return self._conv(value, module.fuse())
        if isinstance(module, ConvBN):
            return self._batch_norm(self._conv(value, module.conv), module.bn)
        if isinstance(module, ConvDropout):  # ReLU and a positive factor: the order is Paddle's
            value = self._relu(self._conv(value, module.conv))
            return self._same(
                "dropout", value, p=module.p, mode="downgrade_in_infer", is_test=True, seed=0,
                fix_seed=False,
            )  # fmt: skip
        assert isinstance(module, nn.Conv2d)
        value = self._conv(value, module)
        return self._relu(value) if module.bias is None else value  # the last one, folded

    def _conv(self, value: str, conv: nn.Conv2d) -> str:
        kind = "depthwise_conv2d" if conv.groups > 1 else "conv2d"
        weight = self._parameter(conv.weight, "conv2d.w_0")
        sides = [-(-side // conv.stride[0]) for side in self._shapes[value][2:]]
        value = self._step(
            kind, (value, weight), (_ANY, conv.out_channels, *sides), strides=list(conv.stride),
            paddings=[int(pad) for pad in conv.padding], padding_algorithm="EXPLICIT",
            dilations=[1, 1], groups=conv.groups, data_format="NCHW",
        )  # fmt: skip
        if conv.bias is None:
            return value
        bias, channels = self._parameter(conv.bias, "conv2d.b_0"), conv.out_channels
        bias = self._step("reshape", (bias,), (1, channels, 1, 1), shape=[1, -1, 1, 1])
        return self._same("add", value, bias)

    def _batch_norm(self, value: str, bn: nn.BatchNorm2d) -> str:
        assert bn.running_mean is not None
        assert bn.running_var is not None
        names = ("w_1", "w_2", "w_0", "b_0")
        tensors = (bn.running_mean, bn.running_var, bn.weight, bn.bias)
        parameters = [
            self._parameter(tensor, f"batch_norm2d.{name}")
            for name, tensor in zip(names, tensors, strict=True)
        ]
        return self._same(
            "batch_norm", value, *parameters, is_test=True, momentum=0.9, epsilon=bn.eps,
            data_format="NCHW", use_global_stats=True, trainable_statistics=False,
        )  # fmt: skip

    def _block(self, value: str, block: DepthwiseSeparable) -> str:
        entered = value
        value = self._relu(self._layer(value, block.dw_conv))
        if not isinstance(block.se, nn.Identity):
            gate = self._relu(self._layer(self._pool(value), block.se.fc1))  # type: ignore[arg-type]
            gate = self._same("sigmoid", self._layer(gate, block.se.fc2))  # type: ignore[arg-type]
            value = self._same("multiply", value, gate)
        for each in block.pw_conv:
            value = self._relu(self._layer(value, each))
        return self._same("add", value, entered) if block.has_shortcut else value

    def save(self, folder: Path, name: str = "inference.json") -> Path:
        """Write the graph and the parameters; the path of the graph."""
        folder.mkdir(parents=True, exist_ok=True)
        graph = folder / name
        graph.write_text(json.dumps(self.pir()), encoding="utf-8")
        graph.with_suffix(".pdiparams").write_bytes(self.tensors())
        return graph

    def tensors(self) -> bytes:
        """``inference.pdiparams``."""
        parts = []
        for _, tensor in sorted(self.parameters.items(), key=lambda item: item[0].encode()):
            described = describe(tensor)
            parts += [struct.pack("<IQIi", 0, 0, 0, len(described)), described]
            parts.append(tensor.numpy().tobytes())
        return b"".join(parts)

    def pir(self) -> dict[str, Any]:
        """``inference.json``."""
        numbers = {name: number for number, name in enumerate(self.parameters, 1)}
        rows: list[dict[str, Any]] = [
            {"#": "p", "A": [0, 1, 1, name], "DA": [], "OA": [1, 0, 1], "QA": [],
             "O": _value(numbers[name], TYPES[tensor.dtype][1], tensor.shape)}
            for name, tensor in self.parameters.items()
        ]  # fmt: skip

        def number(name: str) -> int:
            return numbers.setdefault(name, len(numbers) + 1)

        def constant(kind: str, name: str, type_: str, value: Mapping[str, Any], size: int) -> int:
            values = {
                **({"shape": _attribute("1.a_intarray", [1])} if kind == "full" else {}),
                "value": value,
                "dtype": _attribute("1.a_dtype", type_),
                "place": _attribute("1.a_place", [1, 0, ""]),
            }
            short = {"int64": "t_i64", "float32": "t_f32"}[type_]
            rows.append(_row(kind, [], [_value(number(name), short, [size])], values, still=True))
            return number(name)

        for step in self.steps:
            attributes = dict(step.attributes)
            inputs = [number(name) for name in step.inputs]
            outputs = [_value(number(step.output), "t_f32", step.shape)]
            if step.kind in ("pool2d", "reshape"):
                sides = attributes.pop("ksize" if step.kind == "pool2d" else "shape")
                value = _pir_value(sides, "0.a_i64")
                name = f"{step.output}.sides"
                inputs.append(constant("full_int_array", name, "int64", value, len(sides)))
            elif step.kind == "dropout":
                p = _attribute("0.a_f64", _float32(attributes.pop("p")))
                name = f"{step.output}.p"
                inputs += [0, constant("full", name, "float32", p, 1)]  # 0: no seed
                outputs.append(_value(number(f"{step.output}.mask"), "t_ui8", step.shape))
            elif step.kind == "batch_norm":
                for extra, type_, shape in (
                    *((str(n), "t_f32", step.shape[1:2]) for n in range(4)),
                    ("reserved", "t_ui8", [-1]),
                ):
                    outputs.append(_value(number(f"{step.output}.{extra}"), type_, shape))
            whole = "0.a_i64" if step.kind == "pool2d" else "0.a_i32"
            values = {key: _pir_value(value, whole) for key, value in attributes.items()}
            if step.kind == "data":
                values |= {
                    "shape": _attribute("1.a_intarray", list(step.shape)),
                    "dtype": _attribute("1.a_dtype", "float32"),
                    "place": _attribute("1.a_place", [0, 0, ""]),
                }
            kind = {"batch_norm": "batch_norm_"}.get(step.kind, step.kind)
            rows.append(_row(kind, inputs, outputs, values, last=step.kind == "fetch"))
        blocks = [{"#": "block_0", "args": [], "ops": rows}]
        return {
            "base_code": {"magic": "pir", "trainable": True, "version": 4},
            "program": {"regions": [{"#": "region_0", "blocks": blocks}]},
        }


def _value(number: int, type_: str, shape: Sequence[int]) -> dict[str, Any]:
    dense = {"#": "0.t_dtensor", "D": [{"#": f"0.{type_}"}, list(shape), "NCHW", [], 0]}
    return {"%": number, "TT": dense}


def _row(
    kind: str,
    inputs: Sequence[int],
    outputs: Sequence[Any],
    values: Mapping[str, Any],
    *,
    still: bool = False,
    last: bool = False,
) -> dict[str, Any]:
    """An operator; `still`: no gradient flows through its outputs; `last`: they are kept."""
    flags = {"persistable": True} if last else {}
    flags["stop_gradient"] = still
    return {
        "#": f"1.{kind}",
        "A": [{"AT": value, "N": key} for key, value in values.items()],
        "I": [{"%": number} for number in inputs],
        "O": list(outputs),
        "OA": [{"AT": _pir_value([flag] * len(outputs)), "N": key} for key, flag in flags.items()],
    }


def _attribute(kind: str, value: Any) -> dict[str, Any]:
    return {"#": kind, "D": value}


def _pir_value(value: Any, whole: str = "0.a_i32") -> dict[str, Any]:
    if isinstance(value, bool):
        return _attribute("0.a_bool", value)
    if isinstance(value, int):
        return _attribute(whole, value)
    if isinstance(value, float):
        return _attribute("0.a_f32", _float32(value))
    if isinstance(value, str):
        return _attribute("0.a_str", value)
    return _attribute("0.a_array", [_pir_value(item, whole) for item in value])


def _float32(value: float) -> float:
    """As Paddle writes a float32: the nearest one, in decimals."""
    nearest: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return nearest


def describe(tensor: Tensor) -> bytes:
    """A TensorDesc."""
    return number_field(1, TYPES[tensor.dtype][0]) + b"".join(
        number_field(2, side) for side in tensor.shape
    )


def number_field(field: int, value: int) -> bytes:
    """A field of a protobuf message that is a whole number."""
    return varint(field << 3) + varint(value)


def varint(value: int) -> bytes:
    """A whole number as protobuf writes it."""
    value &= (1 << 64) - 1
    data = b""
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])
