"""Changes to a model: what an implementation may do otherwise than the one that trained it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

    Edit = Callable[["nn.Module", NDArray[np.float32]], bool]

CALIBRATION = 16  # images that batch statistics are taken from


def edited(model: nn.Module, names: tuple[str, ...], images: NDArray[np.float32]) -> nn.Module:
    """A copy with the edits made.

    Args:
        model: in evaluation mode.
        names: of `EDITS`.
        images: normalized float32 (N, 3, size, size), for what is measured on images.
    """
    changed = copy.deepcopy(model)
    for name in names:
        EDITS[name](changed, images)
    return changed.eval()


def possible_edits(model: nn.Module | Path) -> frozenset[str]:
    """Names of the edits that change something; none for an exported file."""
    if isinstance(model, Path):
        return frozenset()
    nothing = np.zeros((0, 3, 1, 1), np.float32)
    return frozenset(name for name in EDITS if EDITS[name](copy.deepcopy(model), nothing))


def _norms(model: nn.Module) -> list[nn.Module]:
    from torch.nn.modules.batchnorm import _BatchNorm

    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _eps(value: float) -> Edit:
    def edit(model: nn.Module, _: NDArray[np.float32]) -> bool:
        changes = False
        for norm in _norms(model):
            changes |= bool(norm.eps != value)
            norm.eps = value  # type: ignore[assignment]
        return changes

    return edit


def _dropout_factor(change: Callable[[float], float]) -> Edit:
    """Another factor than 1 - p in inference; only Paddle's kind of dropout has one."""

    def edit(model: nn.Module, _: NDArray[np.float32]) -> bool:
        from pplcnet._model import ConvDropout

        dropouts = [module for module in model.modules() if isinstance(module, ConvDropout)]
        for dropout in dropouts:
            dropout.p = change(dropout.p)
        return bool(dropouts)

    return edit


def _transpose_classifier(model: nn.Module, _: NDArray[np.float32]) -> bool:
    from torch import nn

    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear or linear[-1].in_features != linear[-1].out_features:
        return False
    linear[-1].weight = nn.Parameter(linear[-1].weight.detach().T.contiguous())
    return True


def _batch_statistics(model: nn.Module, images: NDArray[np.float32]) -> bool:
    """The statistics of these images in place of the stored ones, as in training mode."""
    import torch

    norms = _norms(model)
    if not len(images) or not norms:
        return bool(norms)
    for norm in norms:
        norm.reset_running_stats()  # type: ignore[operator]
        norm.momentum = None  # type: ignore[assignment] # the plain mean over batches
        norm.train()
    with torch.no_grad():
        model(torch.from_numpy(images))
    return True


EDITS: Mapping[str, Edit] = {
    "bn-eps-1e-3": _eps(1e-3),
    "bn-eps-1e-5": _eps(1e-5),
    "bn-eps-1e-6": _eps(1e-6),
    "no-dropout-factor": _dropout_factor(lambda _: 0.0),
    "dropout-factor-twice": _dropout_factor(lambda p: 1 - (1 - p) ** 2),
    "transposed-classifier": _transpose_classifier,
    "batch-statistics": _batch_statistics,
}


def suspicious(model: nn.Module | Path) -> list[str]:
    """What no trained model looks like: layers that still have their initial values, in words."""
    if isinstance(model, Path):
        return []
    found = []
    norms = _norms(model)
    for name, value, words in (
        ("running_mean", 0.0, "means"),
        ("running_var", 1.0, "variances"),
        ("weight", 1.0, "scales"),
        ("bias", 0.0, "offsets"),
    ):
        tensors = [getattr(norm, name) for norm in norms]
        tensors = [tensor for tensor in tensors if tensor is not None]
        if tensors and all(bool((tensor == value).all()) for tensor in tensors):
            found.append(f"all {words} of the batch normalizations are {value:g} (`{name}`)")
    classifier = [(n, m) for n, m in model.named_modules() if hasattr(m, "out_features")]
    if classifier:
        name, last = classifier[-1]
        bias = getattr(last, "bias", None)
        if bias is not None and bool((bias == 0).all()):
            found.append(f"the bias of the classifier `{name}` is 0")
    return found
