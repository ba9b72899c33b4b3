"""Make torch's CPU convolutions as fast as oneDNN can: weights laid out once, ReLU inside.

Eager mode reorders each convolution's weights at every call and runs the ReLU as a second pass over
the activations. Both are avoided with the operators that torch's own compiler emits for the CPU
(torch/_inductor/fx_passes/mkldnn_fusion.py). Nothing is folded or left out: the same convolutions,
the same batch normalisations, the same ReLUs, in the same order.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from eval.images.preprocess import CROP


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build of torch, on this processor, has the operators for the type."""
    ops = torch.ops.mkldnn
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(ops, "_convolution_pointwise")
        and hasattr(ops, "_reorder_convolution_weight")
        and (
            dtype == torch.float32
            or (dtype == torch.bfloat16 and ops._is_mkldnn_bf16_supported())
        )
    )  # fmt: skip


class PackedConv2d(nn.Module):
    """A convolution, and the ReLU after it, with weights in the layout that oneDNN wants.

    Args:
        conv: the convolution.
        relu: whether a ReLU follows.
        input_size: (B, C, H, W) that it will see; other sizes work too, more slowly.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool, input_size: tuple[int, ...]) -> None:
        super().__init__()
        assert isinstance(conv.padding, tuple)
        self.bias = conv.bias
        self._activation = "relu" if relu else "none"
        self._geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            conv.weight.detach(), *self._geometry, list(input_size)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to what the convolution and its ReLU give."""
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, self.bias, *self._geometry, self._activation, [], ""
        )
        return y


@torch.no_grad()
def lower(model: nn.Module, batch_size: int) -> fx.GraphModule:
    """The same model with its convolutions packed; the model itself is not touched.

    Args:
        model: in evaluation mode, on the CPU; traceable by `torch.fx`.
        batch_size: B of the batches it will see.
    """
    graph = fx.symbolic_trace(copy.deepcopy(model))
    like = next(model.parameters())
    batch = torch.zeros(batch_size, 3, CROP, CROP, dtype=like.dtype)
    ShapeProp(graph).propagate(batch.to(memory_format=torch.channels_last))
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        conv = modules.get(node.target) if node.op == "call_module" else None
        if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros":
            continue
        users = list(node.users)
        relu = len(users) == 1 and _is_relu(users[0], modules)
        if relu:
            users[0].replace_all_uses_with(node)
            graph.graph.erase_node(users[0])
        size = tuple(node.args[0].meta["tensor_meta"].shape)
        parent, _, name = node.target.rpartition(".")
        setattr(graph.get_submodule(parent), name, PackedConv2d(conv, relu, size))
    graph.recompile()
    return graph


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.ReLU)
    return node.op == "call_function" and node.target in (F.relu, torch.relu)
