"""Reparameterization: turn the unfused (training) form into the deploy form.

Idea: RepVGG (arXiv 2101.03697), section 3.3. The arithmetic is float64, rounded once at the end.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def reparameterize(model: Model) -> Model:
    """Make the deploy form of a model.

    Depthwise branches are merged into one convolution, batch normalization is folded into each
    convolution, and the dropout factor of 0.8 before the classifier is folded into the convolution
    before it.

    Args:
        model: any module; children with a ``fuse`` method are replaced by its result. Not changed.

    Returns:
        A new model in evaluation mode, with the device and dtype of `model`. Reparameterizing a
        deploy form again returns a copy of it.
    """
    deploy = copy.deepcopy(model).eval()
    _fuse_children(deploy)
    return deploy


def is_reparameterized(model: nn.Module) -> bool:
    """Whether a model is in the deploy form, with nothing left to fold."""
    return not any(hasattr(module, "fuse") for module in model.modules())


def _fuse_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        # The method is called `fuse` because timm's `reparameterize_model` looks for that name.
        fuse = getattr(child, "fuse", None)
        if fuse is not None:
            setattr(module, name, fuse())
        else:
            _fuse_children(child)


def fold_bn(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Fold batch normalization into a convolution.

    Args:
        conv: without a bias.
        bn: with running statistics; it follows `conv`.

    Returns:
        Weight, float64 (O, I, k, k), and bias, float64 (O,), of one convolution that gives the same
        result in inference as `conv` followed by `bn`.
    """
    assert conv.bias is None
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
    weight = conv.weight.double() * scale.reshape(-1, 1, 1, 1)
    return weight, bn.bias.double() - bn.running_mean.double() * scale


def sum_kernels(kernels: Sequence[Tensor]) -> Tensor:
    """The kernel of one convolution that equals a sum of parallel "same"-padded convolutions.

    Args:
        kernels: (O, I, k, k) each, with odd k, the largest k first.

    Returns:
        (O, I, k, k) with the largest k, in the dtype of the first kernel.
    """
    total = kernels[0].clone()
    for kernel in kernels[1:]:
        total += F.pad(kernel, [(total.shape[-1] - kernel.shape[-1]) // 2] * 4)
    return total


@torch.no_grad()
def conv_with(like: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    """A new convolution with the geometry, dtype and device of `like` and the given values."""
    conv = copy.deepcopy(like)
    conv.weight.copy_(weight)
    if bias is not None:
        conv.bias = nn.Parameter(bias.to(like.weight))
    return conv
