"""From the form that is trained to the one that is deployed: fold what inference can fold.

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
    """The deploy form of a model: a new one, in evaluation mode; the original is not touched.

    Depthwise branches become one convolution, every convolution absorbs its batch normalisation,
    and the classifier's input factor of 0.8 goes into the convolution before it. Reparameterizing
    a deploy model gives a copy of it.
    """
    deploy = copy.deepcopy(model).eval()
    _fuse_children(deploy)
    return deploy


def is_reparameterized(model: nn.Module) -> bool:
    """Whether nothing is left to fold."""
    return not any(hasattr(module, "fuse") for module in model.modules())


def _fuse_children(module: nn.Module) -> None:
    for name, child in module.named_children():
        # The name of the method is the one that timm's own `reparameterize_model` looks for.
        fuse = getattr(child, "fuse", None)
        if fuse is not None:
            setattr(module, name, fuse())
        else:
            _fuse_children(child)


def fold_bn(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the convolution that equals bias-free `conv` and then `bn` in inference.

    Returns:
        float64 weight (O, I, k, k) and bias (O,).
    """
    assert conv.bias is None
    assert bn.running_mean is not None
    assert bn.running_var is not None
    scale = bn.weight.double() / torch.sqrt(bn.running_var.double() + bn.eps)
    weight = conv.weight.double() * scale.reshape(-1, 1, 1, 1)
    return weight, bn.bias.double() - bn.running_mean.double() * scale


def sum_kernels(kernels: Sequence[Tensor]) -> Tensor:
    """The kernel of the sum of parallel "same"-padded convolutions with odd kernels.

    Args:
        kernels: (O, I, k, k) each, the largest k first.
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
