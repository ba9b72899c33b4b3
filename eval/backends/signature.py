"""What a graph takes and gives, and whether an image classifier can be evaluated through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from eval.errors import ModelError

Port = tuple[str, Sequence[Any]]  # type and shape; a size that is no int is dynamic
FLOATS = ("float", "float16")
WHOLE = ("uint8", "int8")


class Feed(NamedTuple):
    """How a graph wants its images.

    Attributes:
        layout: ``NCHW`` or ``NHWC``.
        type: ``float``, ``float16``, ``uint8`` or ``int8``. ``uint8`` takes the pixels as they are,
            all others normalized ones; where a file says how its whole numbers were quantized, the
            session does that.
        batch: images in a batch; None: any number.
        classes: how many logits it gives; None where the file does not say.
    """

    layout: str
    type: str
    batch: int | None
    classes: int | None


def check_signature(
    name: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    size: int = 224,
    classes: int | None = None,
) -> Feed:
    """Refuse a graph that does not map images to logits.

    Args:
        name: for messages.
        inputs: type and shape of each.
        outputs: the same.
        size: of a side of the images.
        classes: how many logits there must be; None: any number.

    Raises:
        ModelError: it has another number, type or shape of inputs or outputs.
    """
    wanted = "classes" if classes is None else str(classes)
    expected = (
        f"A model must take one tensor (batch, 3, {size}, {size}) or (batch, {size}, {size}, 3), "
        f"float or uint8, and give one (batch, {wanted}): export the classifier alone."
    )
    for kind, found in (("input", inputs), ("output", outputs)):
        if len(found) != 1:
            raise ModelError(f"{name} has {len(found)} {kind}s instead of one.\n{expected}")
    (input_type, input_shape), (output_type, output_shape) = inputs[0], outputs[0]
    layouts = {"NCHW": (3, size, size), "NHWC": (size, size, 3)}
    layout = next((key for key, sizes in layouts.items() if _fits(input_shape, sizes)), None)
    if layout is None or input_type not in (*FLOATS, *WHOLE):
        raise ModelError(f"{name} takes {input_type} {_shown(input_shape)}.\n{expected}")
    if not _fits(output_shape, (classes,)) or output_type not in (*FLOATS, *WHOLE):
        raise ModelError(f"{name} gives {output_type} {_shown(output_shape)}.\n{expected}")
    batch, given = input_shape[0], output_shape[1]
    return Feed(
        layout,
        input_type,
        batch if isinstance(batch, int) else None,
        given if isinstance(given, int) else None,
    )


def _shown(shape: Sequence[Any]) -> str:
    return f"({', '.join(str(s) if isinstance(s, int) else 'any' for s in shape)})"


def _fits(shape: Sequence[Any], expected: tuple[int | None, ...]) -> bool:
    """Any batch, then the expected sizes, where they are fixed."""
    return len(shape) == len(expected) + 1 and all(
        wanted is None or not isinstance(size, int) or size == wanted
        for size, wanted in zip(shape[1:], expected, strict=True)
    )
