"""A library's checkpoint: read, checked, and the precision that its weights are stored in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from eval.backends.precision import describe
from eval.errors import ModelError
from eval.images.labels import examples
from pplcnet import WeightsError
from pplcnet._checkpoint import read_checkpoint

_KINDS = {torch.float32: "fp32", torch.float64: "fp32", torch.float16: "fp16",
          torch.bfloat16: "bf16"}  # fmt: skip
_LEARNED = ("weight", "bias", "running_mean", "running_var")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name.

    Raises:
        ModelError: it cannot be read, or is not finite.
    """
    try:
        tensors = read_checkpoint(path)
    except WeightsError as error:
        raise ModelError(str(error)) from error
    floats = {key: value for key, value in tensors.items() if value.is_floating_point()}
    bad = [key for key, value in floats.items() if not value.float().isfinite().all()]
    if bad:
        raise ModelError(f"{path}: {examples(bad)}: NaN or infinite values.")
    return tensors


def check_types(path: Path, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuse whole numbers where a model has real ones: torch would convert them silently.

    Args:
        path: for messages.
        tensors: of the checkpoint.
        model: they were loaded into it. Where it has another name for a tensor, the last word of
            that decides.

    Raises:
        ModelError: there is one.
    """
    state = model.state_dict()
    whole = {
        key: str(value.dtype).removeprefix("torch.")
        for key, value in tensors.items()
        if not value.is_floating_point()
        and (state[key].is_floating_point() if key in state else key.endswith(_LEARNED))
    }
    if whole:
        kinds = " and ".join(sorted(set(whole.values())))
        raise ModelError(
            f"{path}: {examples(list(whole))}: {kinds} instead of floating-point numbers.\n"
            "Quantized weights have no scales here; give a float32 checkpoint."
        )


def stored_precision(tensors: Iterable[Tensor]) -> str:
    """``fp32``, or for example ``fp16 weights`` where a tensor is stored in less than that."""
    return describe(
        (), (_KINDS.get(each.dtype, "fp8") for each in tensors if each.is_floating_point())
    )


def in_what(asked: str, stored: str) -> str | None:
    """`eval.models.Subject.precision` of a checkpoint.

    Args:
        asked: the precision of the request; below fp32, it says more than `stored`.
        stored: see `stored_precision`.
    """
    return stored if asked == "fp32" and stored != "fp32" else None
