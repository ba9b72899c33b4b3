"""A lowered network whose early layers see one image at a time, and the late ones the whole batch.

Early layers make large results with few weights, late layers small results with many. One image's
results are still in a cache when the next layer reads them; a whole batch's are not. The weights of
the late layers are read once for a batch. The operations are the same, and so are their results,
but for the rounding that a kernel for another number of images may choose.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn

aten = torch.ops.aten


def imagewise(whole: fx.GraphModule, single: fx.GraphModule) -> fx.GraphModule:
    """The network for a batch, with its early layers image by image.

    Args:
        whole: lowered (`eval.backends.lowering.lower`) for batches (B, C, H, W).
        single: the same network, lowered for (1, C, H, W).

    Returns:
        A network that takes and gives what `whole` does; `whole` itself where there is nowhere to
        cut it, see `_cut`.
    """
    last = _cut(whole, single)
    if last is None:
        return whole
    graph = fx.Graph()
    images = graph.call_function(aten.split.Tensor, (graph.placeholder("batch"), 1))
    number = list(whole.graph.nodes).index(last)
    first, *early = list(single.graph.nodes)[: number + 1]
    results = []
    for image in range(len(last.meta["tensor"])):
        given = {first: graph.call_function(operator.getitem, (images, image))}
        results.append(_copy(graph, early, "early", given)[early[-1]])
    joined = {last: graph.call_function(aten.cat.default, (results,))}
    *late, output = list(whole.graph.nodes)[number + 1 :]
    read = (node for user in late for node in user.all_input_nodes if node.op == "get_attr")
    nodes = dict.fromkeys([*read, *late])  # constants may stand before the cut
    graph.output(_copy(graph, nodes, "late", joined)[output.args[0]])
    return fx.GraphModule(nn.ModuleDict({"early": single, "late": whole}), graph)


def _copy(
    graph: fx.Graph, nodes: Iterable[fx.Node], owner: str, known: dict[fx.Node, fx.Node]
) -> dict[fx.Node, fx.Node]:
    """Append nodes, whose modules and constants are found in `owner`; the copy of each node."""
    for node in nodes:
        copy = known[node] = graph.node_copy(node, known.__getitem__)
        if node.op in ("get_attr", "call_module"):
            copy.target = f"{owner}.{node.target}"
    return known


def _cut(whole: fx.GraphModule, single: fx.GraphModule) -> fx.Node | None:
    """The operation of `whole` after which images are put together; None: there is none.

    It is the last one before any writes less for an image than the weights that it reads. Nothing
    but its own result may be read later.
    """
    position = {node: number for number, node in enumerate(whole.graph.nodes)}
    last, read = None, 0
    for node, one in zip(whole.graph.nodes, single.graph.nodes, strict=False):
        if (node.op, node.target) != (one.op, one.target) or _bytes(one) < _weights(single, one):
            break
        if read <= position[node] and _joins(one, node):
            last = node
        if node.op != "get_attr":  # a constant can be read in both parts
            read = max(read, *(position[user] for user in node.users), 0)
    return last


def _bytes(node: fx.Node) -> int:
    """Of what an operation gives, one tensor or several."""
    parts = (user for user in node.users if user.target is operator.getitem)
    tensors = [_result(each) for each in (node, *parts)]
    return sum(_size(tensor) for tensor in tensors if tensor is not None)


def _weights(module: fx.GraphModule, node: fx.Node) -> int:
    """Bytes of the constants that an operation reads."""
    found = sum(
        _size(each.meta["tensor"]) for each in node.all_input_nodes if each.op == "get_attr"
    )
    if node.op == "call_module":
        for part in module.get_submodule(str(node.target)).modules():
            found += sum(_size(value) for value in vars(part).values() if isinstance(value, Tensor))
    return found


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _joins(one: fx.Node, node: fx.Node) -> bool:
    """Whether results of single images, one after another, are laid out as that of a batch."""
    single, batch = _result(one), _result(node)
    if single is None or batch is None or single.shape != (1, *batch.shape[1:]):
        return False
    kept = (torch.contiguous_format, torch.channels_last)  # when tensors are put together
    return any(
        single.is_contiguous(memory_format=layout) and batch.is_contiguous(memory_format=layout)
        for layout in kept
    )


def _result(node: fx.Node) -> Tensor | None:
    """The tensor that an operation gives; None, if it gives none, or is none."""
    tensor: Tensor | None = node.meta.get("tensor")
    return tensor if node.op in ("call_function", "call_module") else None
