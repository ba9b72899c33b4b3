"""What a graph takes and gives, and whether an image classifier can be evaluated through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval.errors import ModelError, UsageError
from pplcnet._errors import name_classes

# Type, shape and, where the file has one, name. A size that is no int is dynamic; a shape without
# sizes is not known.
Port = tuple[str, Sequence[Any]] | tuple[str, Sequence[Any], str]
FLOATS = ("float", "float16", "double")
WHOLE = ("uint8", "int8")
INDICES = ("int64", "int32")
LAYOUTS = ("NCHW", "NHWC")


class Feed(NamedTuple):
    """How a graph wants its images, and which of its outputs counts.

    Attributes:
        layout: ``NCHW`` or ``NHWC``; "" where the file does not say.
        type: ``float``, ``float16``, ``double``, ``uint8`` or ``int8``. ``uint8`` takes the pixels
            as they are, all others normalized ones; where a file says how its whole numbers were
            quantized, the session does that.
        batch: images in a batch; None: any number.
        classes: how many logits it gives; None where the file does not say.
        output: which of its outputs has them.
        predicts: whether that output is nothing but the index of the predicted class.
    """

    layout: str
    type: str
    batch: int | None
    classes: int | None
    output: int = 0
    predicts: bool = False


def check_signature(
    name: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    size: int = 224,
    classes: int | None = None,
    wanted: str | None = None,
) -> Feed:
    """Refuse a graph that does not map images to logits."""
    expected = (
        f"A model must take one tensor (batch, 3, {size}, {size}) or (batch, {size}, {size}, 3), "
        f"float or uint8, and give one (batch, {classes or 'classes'}): export the classifier "
        "alone."
    )
    if len(inputs) != 1:
        raise ModelError(f"{name} has {len(inputs)} inputs instead of one.\n{expected}")
    input_type, input_shape, *_ = inputs[0]
    sizes = {"NCHW": (3, size, size), "NHWC": (size, size, 3)}
    layout = next((key for key in LAYOUTS if _fits(input_shape, sizes[key])), None)
    if layout is None or input_type not in (*FLOATS, *WHOLE):
        raise ModelError(f"{name} takes {_shown(inputs[0])}.\n{expected}")
    number = _choose(name, outputs, classes, wanted, expected)
    given_type, given = outputs[number][0], trimmed(outputs[number][1])
    if given_type in (*FLOATS, *WHOLE) and _fits(given, (classes,)):
        width = given[1] if given else None
        predicts = False
    elif given_type in INDICES and _is_index(outputs[number]) and classes is not None:
        width, predicts = classes, True
    else:
        raise ModelError(_other(name, outputs[number], classes, expected))
    batch = input_shape[0] if input_shape else None
    return Feed(
        layout if input_shape else "",
        input_type,
        batch if isinstance(batch, int) else None,
        width if isinstance(width, int) else None,
        number,
        predicts,
    )


def _choose(
    name: str, outputs: Sequence[Port], classes: int | None, wanted: str | None, expected: str
) -> int:
    """The output that counts."""
    names = [name_of(port, number) for number, port in enumerate(outputs)]
    if wanted is not None:
        if wanted not in names:
            raise UsageError(
                f"--output-name {wanted}: {name} has no such output.\nIt has "
                f"{'; '.join(map(_shown, outputs))}."
            )
        return names.index(wanted)
    if len(outputs) == 1:
        return 0
    fitting = [
        number
        for number, (kind, shape, *_) in enumerate(outputs)
        if kind in (*FLOATS, *WHOLE)
        and len(trimmed(shape)) == 2
        and trimmed(shape)[1] == classes
        and classes is not None
    ]
    if len(fitting) == 1:
        return fitting[0]
    listed = "; ".join(f"{n} {_shown(port[:2])}" for n, port in zip(names, outputs, strict=True))
    if not outputs or len(set(names)) < len(names):
        raise ModelError(f"{name} has {len(outputs)} outputs instead of one.\n{expected}")
    possible = [n for n in range(len(outputs)) if _fits(trimmed(outputs[n][1]), (classes,))]
    if not possible:
        wide = f"of {classes} classes" if classes else "of all classes"
        raise ModelError(
            f"{name} has {len(outputs)} outputs, none of them the logits {wide}: {listed}.\n"
            "Export the classifier alone."
        )
    raise ModelError(
        f"{name} has {len(outputs)} outputs: {listed}.\n"
        f"Name the one with the logits, such as --output-name {names[(fitting or possible)[0]]}."
    )


def name_of(port: Port, number: int) -> str:
    """What an output is called: its number where the file has no name for it."""
    return port[2] if len(port) > 2 else str(number)


def _other(name: str, output: Port, classes: int | None, expected: str) -> str:
    """Why an output is not what was asked for."""
    shape = trimmed(output[1])
    if classes is not None and len(shape) == 2 and shape[1] == classes + 1:
        return (
            f"{name} gives {classes + 1} outputs for {classes} classes.\n"
            "If the first is a background class, as in TensorFlow's models, add --background-first."
        )
    if classes is not None and len(shape) == 2 and shape[1] == classes - 1:
        return (
            f"{name} gives {classes - 1} outputs, without a background class.\n"
            "Omit --background-first, or give the list of its classes with --classes FILE."
        )
    if classes is not None and len(shape) == 2 and isinstance(shape[1], int):
        advice = name_classes(shape[1], classes)
        return f"{name} gives {shape[1]} outputs for {classes} classes.\n{advice}"
    return f"{name} gives {_shown(output[:2])}.\n{expected}"


def trimmed(shape: Sequence[Any]) -> list[Any]:
    """A shape without the ones behind the first two sizes: (N, 1000, 1, 1) is (N, 1000)."""
    sizes = list(shape)
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes.pop()
    return sizes


def _is_index(port: Port) -> bool:
    """Whether an output is one number for each image."""
    return len(port[1]) >= 1 and trimmed(port[1])[1:] in ([], [1])


def side_of(shapes: Sequence[Sequence[Any]]) -> int | None:
    """Height and width of the images of the only input, where both are fixed and equal."""
    if len(shapes) != 1 or len(shapes[0]) != 4:
        return None
    for sizes in (shapes[0][2:], shapes[0][1:3]):
        if isinstance(sizes[0], int) and 3 < sizes[0] == sizes[1]:
            return int(sizes[0])
    return None


def rows_of(answer: NDArray[Any], feed: Feed) -> NDArray[Any]:
    """What a graph gives as (B, classes); of a predicted class, 1 for that and 0 for others."""
    if not feed.predicts:
        return answer.reshape(trimmed(answer.shape))
    indices = answer.reshape(-1)
    if len(indices) != len(answer) or feed.classes is None:
        return answer
    if len(indices) and not 0 <= indices.min() <= indices.max() < feed.classes:
        raise ModelError(
            f"The graph predicts class {int(indices.max())} of {feed.classes}.\n"
            "If the first is a background class, add --background-first."
        )
    found: NDArray[Any] = np.eye(feed.classes, dtype=np.float32)[indices]
    return found


def _shown(port: Port | tuple[Any, ...]) -> str:
    kind, shape, *name = port
    sizes = ", ".join(str(s) if isinstance(s, int) else "any" for s in shape)
    return " ".join([*name, f"{kind} ({sizes})"])


def _fits(shape: Sequence[Any], expected: tuple[int | None, ...]) -> bool:
    """Any batch, then the expected sizes, where they are fixed; or a shape that is not known."""
    return not shape or (
        len(shape) == len(expected) + 1
        and all(
            wanted is None or not isinstance(size, int) or size == wanted
            for size, wanted in zip(shape[1:], expected, strict=True)
        )
    )
