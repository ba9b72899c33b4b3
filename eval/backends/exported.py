"""Exported files: ``.onnx`` and ``.xml``, whoever made them.

A file is a form of its own, ``exported``: whether batch normalisation was folded before or by the
exporter cannot be told from outside.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from eval.errors import ModelError

FORM = "exported"
RUNTIMES = {".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",)}  # the default first
CLASSES = 1000


def is_exported(path: str | Path) -> bool:
    """Whether a weights file is a graph of its own."""
    return Path(path).suffix.lower() in RUNTIMES


def check_signature(
    name: str,
    inputs: list[tuple[str, list[Any]]],
    outputs: list[tuple[str, list[Any]]],
    size: int = 224,
) -> None:
    """Refuse a graph that does not map normalised images to 1000 logits.

    Args:
        name: for messages.
        inputs: type and shape of each; a size that is no int is dynamic.
        outputs: the same.
        size: of a side of the images.

    Raises:
        ModelError: it has another number, type or shape of inputs or outputs.
    """
    expected = (
        f"A model must take one float tensor (batch, 3, {size}, {size}), normalised, and give one "
        f"(batch, {CLASSES}): export the classifier alone."
    )
    shown = {"input": inputs, "output": outputs}
    for kind, found in shown.items():
        if len(found) != 1:
            raise ModelError(f"{name} has {len(found)} {kind}s instead of one.\n{expected}")
    (input_type, input_shape), (output_type, output_shape) = inputs[0], outputs[0]
    if not _fits(input_shape, (3, size, size)) or not input_type.startswith("float"):
        raise ModelError(f"{name} takes {input_type} {input_shape}.\n{expected}")
    if not _fits(output_shape, (CLASSES,)) or not output_type.startswith("float"):
        raise ModelError(f"{name} gives {output_type} {output_shape}.\n{expected}")


def _fits(shape: list[Any], expected: tuple[int, ...]) -> bool:
    """Any batch, then the expected sizes, where they are fixed."""
    return len(shape) == len(expected) + 1 and all(
        not isinstance(size, int) or size == wanted
        for size, wanted in zip(shape[1:], expected, strict=True)
    )


def precision_of(path: Path) -> str:
    """``int8`` for a quantised graph, ``fp16`` for one whose weights are halves, else ``fp32``.

    It looks for the operators and types that quantisers leave in a file.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"--weights {path} cannot be read: {error.strerror or error}.\nName an exported file."
        ) from error
    if path.suffix.lower() == ".xml":
        if b'type="FakeQuantize"' in data or b'element_type="i8"' in data:
            return "int8"
        return "fp16" if re.search(rb'element_type="f16"', data) else "fp32"
    return "int8" if b"QuantizeLinear" in data else "fp32"


def companions(path: Path) -> tuple[Path, ...]:
    """The other files of an exported model: all that its runtime reads besides `path`.

    OpenVINO keeps weights in a ``.bin`` of the same name, ONNX in the files that the graph names.
    """
    if path.suffix.lower() == ".xml":
        return (path.with_suffix(".bin"),)
    data = path.with_suffix(".onnx.data")
    return (data,) if data.exists() else ()


def size_of(path: Path) -> int:
    """Bytes that are shipped: the file, and the weights beside it where a format keeps them."""
    beside = (
        path.with_suffix(".bin")
        if path.suffix.lower() == ".xml"
        else path.with_suffix(".onnx.data")
    )
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)
