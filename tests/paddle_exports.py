"""Writes a PP-LCNetV2 as Paddle's exporter does, in the older format, too: ``.pdmodel``."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pplcnet import PPLCNetV2, _paddle_export
from pplcnet._paddle_export import Step as Step
from pplcnet._paddle_export import describe, number_field, varint


class Export(_paddle_export.Export):
    """As PaddleClas's exporter, unless told otherwise: branches merged, and softmax at the end."""

    def __init__(self, model: PPLCNetV2, *, merged: bool = True, softmax: bool = True) -> None:
        super().__init__(model, merged=merged, softmax=softmax)

    def save(self, folder: Path, name: str = "inference.json") -> Path:
        """Write the graph, by its name, and the parameters; the path of the graph."""
        graph = super().save(folder, name)
        if graph.suffix != ".json":
            graph.write_bytes(self.program())
        return graph

    def program(self) -> bytes:
        """``inference.pdmodel``."""
        block = number_field(1, 0) + number_field(2, 0)
        for name, kind in (("feed", 9), ("fetch", 10)):
            block += _bytes(3, _bytes(1, name.encode()) + _bytes(2, number_field(1, kind)) + _KEPT)
        for name, tensor in self.parameters.items():
            block += _variable(name, describe(tensor), _KEPT)
        for step in self.steps:
            block += _bytes(4, _operator(step))
            if step.kind != "fetch":
                sides = b"".join(number_field(2, side) for side in step.shape)
                block += _variable(step.output, number_field(1, 5) + sides)
        return _bytes(1, block) + _bytes(4, number_field(1, 2006002))


_KEPT = number_field(3, 1)  # persistable


def _variable(name: str, description: bytes, more: bytes = b"") -> bytes:
    kind = number_field(1, 7) + _bytes(3, _bytes(1, description))
    return _bytes(3, _bytes(1, name.encode()) + _bytes(2, kind) + more)


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
    inputs = dict(zip(_SLOTS.get(step.kind, ("X", "Y")), step.inputs, strict=False))
    outputs = {_OUTPUTS.get(step.kind, "Out"): step.output}
    attributes = dict(step.attributes)
    if step.kind == "data":
        inputs, attributes = {"X": "feed"}, {"col": 0}
    elif step.kind == "fetch":
        outputs = {"Out": "fetch"}
    elif step.kind == "batch_norm":
        outputs |= {"MeanOut": inputs["Mean"], "VarianceOut": inputs["Variance"]}
        attributes["data_layout"] = attributes.pop("data_format")
    elif step.kind in ("add", "multiply"):
        attributes["axis"] = -1
    message = b"".join(_slot(1, *item) for item in inputs.items())
    message += b"".join(_slot(2, *item) for item in outputs.items())
    message += _bytes(3, _OLD.get(step.kind, step.kind).encode())
    for key, value in attributes.items():
        message += _bytes(4, _bytes(1, _OLD_KEYS.get(key, key).encode()) + _old_value(value))
    return message


def _slot(field: int, slot: str, name: str) -> bytes:
    return _bytes(field, _bytes(1, slot.encode()) + _bytes(2, name.encode()))


def _old_value(value: Any) -> bytes:
    if isinstance(value, bool):
        return number_field(2, 6) + number_field(10, int(value))
    if isinstance(value, int):
        return number_field(2, 0) + number_field(3, value)
    if isinstance(value, float):
        return number_field(2, 1) + varint(4 << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, str):
        return number_field(2, 2) + _bytes(5, value.encode())
    return number_field(2, 3) + b"".join(number_field(6, item) for item in value)


def _bytes(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def probabilities(model: PPLCNetV2, images: Tensor) -> Tensor:
    """What an export with softmax gives."""
    with torch.inference_mode():
        return F.softmax(model(images), dim=1)
