"""One word for the precision of a model, from the number formats of its tensors."""

from __future__ import annotations

from collections.abc import Iterable

UNKNOWN = "unknown"  # precision of a file that does not say

# The formats below fp32, the coarsest first.
_COARSE = (
    *("int1", "int2", "int3", "int4", "fp4", "int6", "fp6", "int8", "fp8", "int16", "bf16"),
    "fp16",
)


def computed_in(precision: str) -> str:
    """What a model of that precision computes in: weights that are stored in less become fp32."""
    return "fp32" if precision.endswith(" weights") else precision


def describe(computed: Iterable[str], stored: Iterable[str]) -> str:
    """The precision of a model as the reports name it.

    Args:
        computed: the formats of everything that depends on the image.
        stored: those of its constants; integers only where they stand for real numbers.

    Returns:
        The coarsest format that is computed in, such as ``int8``; or, where that is fp32, the
        coarsest that is stored, as ``int8 weights``; ``fp32`` if there is neither; and `UNKNOWN` if
        any of them is `UNKNOWN`.
    """
    computed, stored = set(computed), set(stored)
    if UNKNOWN in computed | stored:
        return UNKNOWN
    for name in _COARSE:
        if name in computed:
            return name
    for name in _COARSE:
        if name in stored:
            return f"{name} weights"
    return "fp32"
