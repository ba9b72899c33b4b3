"""The same network, faster on a CPU: weights laid out once, activations inside, fewer passes.

torch's eager mode reorders the weights of a convolution at every call, runs each activation as a
pass of its own over memory, and writes every result into fresh memory. The graph that is made here
avoids all three:

- Convolutions and matrix products use the operators that torch's own compiler emits for the CPU
  (torch/_inductor/fx_passes/mkldnn_fusion.py): oneDNN's layout of the weights, and the activation
  after it inside the same operator.
- Batch normalization is ``x * alpha + beta`` per channel, as in torch's own kernel, but in place
  and together with the activation after it.
- Sums of batch-normalized branches, and the activation after them, are one pass as well.
- Elementwise operations write into their first argument where nothing else reads it any more.

Nothing is folded or left out: the same convolutions, batch normalizations, sums and activations,
in the same order. The rules see torch's basic operations (`eval.backends.tracing`), not the
classes of a model, so that they are the same for every network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from eval.backends.tracing import trace

aten = torch.ops.aten

Activation = tuple[str, list[Any], str]  # name, numbers and algorithm, as oneDNN's operators ask


def usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build of torch, on this processor, has the operators for the type."""
    ops = torch.ops.mkldnn
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(ops, "_convolution_pointwise")
        and hasattr(ops, "_reorder_convolution_weight")
        and hasattr(ops, "_linear_pointwise")
        and hasattr(ops, "_reorder_linear_weight")
        and (
            dtype == torch.float32
            or (dtype == torch.bfloat16 and ops._is_mkldnn_bf16_supported())
        )
    )  # fmt: skip


class PackedConv2d(nn.Module):
    """A convolution, and the activation after it, with weights in the layout that oneDNN wants.

    Args:
        weight: (O, I / groups, k, k).
        bias: (O,).
        geometry: padding, stride, dilation (two numbers each), groups.
        input_size: (B, C, H, W) that it will see; other sizes work too, more slowly.

    Attributes:
        activation: see `Activation`.
        factor: (C,), where it does nothing but multiply each channel with its weight.
        kind: in words, for profiles.
        products: that each value of the result is the sum of.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        geometry: tuple[list[int], list[int], list[int], int],
        input_size: Sequence[int],
    ) -> None:
        super().__init__()
        self._bias = bias
        self._geometry = geometry
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight, *geometry, list(input_size)
        )
        self.activation: Activation = ("none", [], "")
        only_scales = ([0, 0], [1, 1], [1, 1], len(weight))
        plain = geometry == only_scales and weight.shape[1:] == (1, 1, 1) and bias is None
        self.factor = weight.flatten() if plain else None
        depthwise = "depthwise" if 1 < geometry[3] == len(weight) else "dense"
        self.kind = f"{depthwise} convolution {weight.shape[2]}x{weight.shape[3]}"
        self.products = weight[0].numel()
        self._run = torch.ops.mkldnn._convolution_pointwise.default

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to what the convolution and its activation give."""
        y: Tensor = self._run(x, self._weight, self._bias, *self._geometry, *self.activation)
        return y


class PackedLinear(nn.Module):
    """A matrix product, and the activation after it, with weights in oneDNN's layout.

    Args:
        weight: (O, I).
        bias: (O,).
        rows: of the matrices that it will see; others work too.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        super().__init__()
        self._bias = bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        self.activation: Activation = ("none", [], "")
        self._run = torch.ops.mkldnn._linear_pointwise.default

    def forward(self, x: Tensor) -> Tensor:
        """(B, I) to (B, O)."""
        y: Tensor = self._run(x, self._weight, self._bias, *self.activation)
        return y


class PackedPixel(PackedLinear):
    """A 1x1 convolution of an image of one pixel, which is a matrix product."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, 1, 1) to (B, O, 1, 1)."""
        y = super().forward(aten.flatten.using_ints(x, 1))
        pixel: Tensor = aten.unsqueeze.default(aten.unsqueeze.default(y, 2), 3)
        return pixel


PIECE = 2**19  # bytes of a tensor that are worked through at a time: all that is needed is cached


class _InPieces(nn.Module):
    """What works through tensors (B, C, ...) of one shape and layout in small parts.

    Attributes:
        activation: changes its argument, or None.
        in_place: whether the result overwrites the first argument.
    """

    def __init__(self) -> None:
        super().__init__()
        self.activation: Callable[[Tensor], Any] | None = None
        self.in_place = False
        self._channels: int | None = None  # where the tensors can be seen as rows of so many values
        self._rows = self._count = self._last = 1  # of a piece; pieces; rows of the last piece

    def expect(self, tensor: Tensor) -> None:
        """Choose the pieces for tensors like this one."""
        last = tensor.movedim(1, -1)
        if last.is_contiguous():
            self._channels = last.shape[-1]
            last = last.view(-1, self._channels)
        size = max(1, last.numel() * last.element_size())
        self._rows = max(1, PIECE * len(last) // size)
        self._count = max(1, -(-len(last) // self._rows))
        self._last = len(last) - self._rows * (self._count - 1)

    def _pieces(self, tensor: Tensor) -> list[Tensor]:
        """The parts of a tensor, with the channels last."""
        last = aten.movedim.int(tensor, 1, -1)
        if self._channels is not None:
            last = aten.view.default(last, [-1, self._channels])
        parts = aten.split.Tensor(last, self._rows)
        return [parts[number] for number in range(self._count)]

    def _target(self, x: Tensor) -> Tensor:
        """Where the result goes."""
        return x if self.in_place else aten.empty_like.default(x)


class ScaleShift(_InPieces):
    """Batch normalization in inference: ``x * alpha + beta`` per channel, and what follows it.

    The two constants are computed as torch's CPU kernel does
    (aten/src/ATen/native/cpu/batch_norm_kernel.cpp). The values are worked through in pieces, so
    that the activation finds them in the cache.

    Args:
        weight, bias, mean, variance: (C,) each.
        eps: added to the variance.
    """

    def __init__(
        self, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float
    ) -> None:
        super().__init__()
        inverse = 1 / torch.sqrt(variance + eps)
        self._alpha = inverse if weight is None else inverse * weight
        shift = mean * self._alpha
        self._beta = -shift if bias is None else bias - shift

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) to the same shape."""
        y = self._target(x)
        for source, target in zip(self._pieces(x), self._pieces(y), strict=True):
            self.apply_to(source, target)
            if self.activation:
                self.activation(target)
        return y

    def apply_to(self, source: Tensor, target: Tensor) -> Tensor:
        """Normalize values whose last axis is the channels; returns the target."""
        y: Tensor = aten.addcmul.out(self._beta, source, self._alpha, out=target)
        return y


class ChannelScale(nn.Module):
    """A depthwise 1x1 convolution without a bias: each channel times its weight, (C,)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._weight = weight

    def apply_to(self, source: Tensor, target: Tensor) -> Tensor:
        """As `ScaleShift.apply_to`."""
        y: Tensor = aten.mul.out(source, self._weight, out=target)
        return y


class Branch(nn.Module):
    """A term of a sum: a tensor, perhaps scaled, then perhaps normalized."""

    def __init__(self, steps: Sequence[ChannelScale | ScaleShift]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self._calls = [step.apply_to for step in steps]

    def forward(self, piece: Tensor, target: Tensor) -> Tensor:
        """The values of the term; in `target`, unless they are those of the piece itself."""
        for call in self._calls:
            piece = call(piece, target)
        return piece


class BranchSum(_InPieces):
    """The sum of branches, and the activation after it, in one pass over memory.

    The same operations in the same order as in passes of their own, and so the same bits. The first
    branch has at least one step.
    """

    def __init__(self, branches: Sequence[Branch]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, *sources: Tensor) -> Tensor:
        """The tensor of each branch, (B, C, ...), to the same shape."""
        y = self._target(sources[0])
        first, *others = self.branches
        targets, starts, *rest = map(self._pieces, (y, *sources))
        scratch = aten.empty_like.default(targets[0])
        for number, (target, start, *pieces) in enumerate(
            zip(targets, starts, *rest, strict=True), 1
        ):
            if number == self._count:
                scratch = aten.narrow.default(scratch, 0, 0, self._last)
            first(start, target)
            for branch, piece in zip(others, pieces, strict=True):
                aten.add_.Tensor(target, branch(piece, scratch))
            if self.activation:
                self.activation(target)
        return y


@torch.no_grad()
def lower(model: nn.Module, batch: Tensor) -> tuple[fx.GraphModule, Tensor]:
    """The same model for batches of one shape, faster; and the model's own answer to the batch.

    Args:
        model: in evaluation mode, on the CPU; it is not changed.
        batch: (B, C, H, W), as the batches will be in shape, strides and dtype.

    Raises:
        CannotTrace: the model does something that cannot be recorded.
    """
    module, answer = trace(model, batch)
    _replace_batch_norms(module)
    _replace_convolutions(module)
    _replace_linears(module)
    _merge_sums(module)
    _work_in_place(module)
    module.graph.eliminate_dead_code()
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in module.named_buffers(recurse=False) if name not in used]:
        delattr(module, name)
    module.recompile()
    return module, answer


def _replace_batch_norms(module: fx.GraphModule) -> None:
    graph = module.graph
    for node in graph.find_nodes(op="call_function", target=aten.native_batch_norm.default):
        x, *statistics, training, _momentum, eps = node.args
        result = _only_user(node)  # not those of the batch
        if result is None or result.args[1] != 0:
            continue
        if training or not _constant(statistics) or _meta(x).dtype != torch.float32:
            continue
        weight, bias, mean, variance = (_value(module, each) for each in statistics)
        norm = ScaleShift(weight, bias, mean, variance, eps)
        _follow_up(_put_module(module, result, "batch_norm", norm, x), norm)


def _follow_up(node: fx.Node, module: ScaleShift | BranchSum) -> None:
    """Let `module`, which the node calls, do the activation after it as well."""
    after = _only_user(node)
    if after is not None and after.target in ACTIVATIONS:
        module.activation = partial(_apply, _in_place_twin(after), after.args[1:], after.kwargs)
        _merge_into(node, after)


def _apply(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any], x: Tensor) -> None:
    operator(x, *args, **kwargs)


def _replace_convolutions(module: fx.GraphModule) -> None:
    graph = module.graph
    for node in graph.find_nodes(op="call_function", target=aten.convolution.default):
        x, weight, bias, stride, padding, dilation, transposed, _output_padding, groups = node.args
        if transposed or not _constant([weight, bias]) or _meta(x).dim() != 4:
            continue
        kernel, constant = _value(module, weight), _value(module, bias)
        if kernel.shape[2:] == _meta(x).shape[2:] == _meta(node).shape[2:] == (1, 1) == (groups, 1):
            conv: PackedConv2d | PackedLinear = PackedPixel(
                kernel.flatten(1), constant, _meta(x).shape[0]
            )
        else:
            geometry = (list(padding), list(stride), list(dilation), groups)
            conv = PackedConv2d(kernel, constant, geometry, _meta(x).shape)
        _absorb_activation(_put_module(module, node, "conv", conv, x), conv)


def _replace_linears(module: fx.GraphModule) -> None:
    for node in module.graph.find_nodes(op="call_function", target=aten.addmm.default):
        bias, x, transposed = node.args
        weight = transposed.args[0] if transposed.target is aten.t.default else transposed
        if node.kwargs or weight is transposed or not _constant([weight, bias]):
            continue
        kernel, constant = _value(module, weight), _value(module, bias)
        if constant.dim() != 1 or kernel.dtype != _meta(x).dtype:
            continue
        linear = PackedLinear(kernel, constant, _meta(x).shape[0])
        _absorb_activation(_put_module(module, node, "linear", linear, x), linear)


def _merge_sums(module: fx.GraphModule) -> None:
    """Sums with a normalized term, the outermost first."""
    module.graph.eliminate_dead_code()  # what was replaced is no reader any more
    for node in reversed(list(module.graph.nodes)):
        if node.target is not aten.add.Tensor or node.kwargs or not node.users:
            continue
        terms = _terms(node)
        if not all(isinstance(term, fx.Node) and _same_layout(term, node) for term in terms):
            continue
        branches = [_branch(module, term) for term in terms]
        if not branches[0][1]:  # a + b is b + a, to the bit
            terms[:2], branches[:2] = terms[1::-1], branches[1::-1]
        sources = [source for source, _ in branches]
        if not branches[0][1] or not all(_same_layout(source, node) for source in sources):
            continue
        total = BranchSum([Branch(steps) for _, steps in branches])
        _follow_up(_put_module(module, node, "sum", total, *sources), total)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()


def _terms(node: fx.Node) -> list[Any]:
    """The terms of a sum, from the innermost on."""
    first, second = node.args[:2]
    for inner, other in ((first, second), (second, first)):
        if not isinstance(inner, fx.Node) or inner.target is not aten.add.Tensor or inner.kwargs:
            continue
        if _only_user(inner) and _same_layout(inner, node):
            return [*_terms(inner), other]
    return [first, second]


def _branch(module: fx.GraphModule, term: Any) -> tuple[Any, list[ChannelScale | ScaleShift]]:
    """What a term is made of, as far as it can be done while it is added."""
    steps: list[ChannelScale | ScaleShift] = []
    norm = _called(module, term)
    if isinstance(norm, ScaleShift) and norm.activation is None and _only_user(term):
        term, steps = term.args[0], [norm]
        conv = _called(module, term)
        if isinstance(conv, PackedConv2d) and conv.factor is not None and _only_user(term):
            term, steps = term.args[0], [ChannelScale(conv.factor), norm]
    return term, steps


def _called(module: fx.GraphModule, node: Any) -> nn.Module | None:
    """The module that a node calls."""
    is_call = isinstance(node, fx.Node) and node.op == "call_module"
    return module.get_submodule(str(node.target)) if is_call else None


def _absorb_activation(node: fx.Node, packed: PackedConv2d | PackedLinear) -> None:
    """Apply the activation that alone reads the result together with it."""
    after = _only_user(node)
    activation = ACTIVATIONS.get(after.target) if after is not None else None
    if after is not None and activation is not None:
        packed.activation = activation(after)
        _merge_into(node, after)


def _named(name: str) -> Callable[[fx.Node], Activation]:
    return lambda _node: (name, [], "")


# The activations that oneDNN can apply to a result before it is written, by torch's operation.
ACTIVATIONS: dict[Any, Callable[[fx.Node], Activation]] = {
    aten.relu.default: _named("relu"),
    aten.sigmoid.default: _named("sigmoid"),
    aten.tanh.default: _named("tanh"),
    aten.hardswish.default: _named("hardswish"),
    aten.hardsigmoid.default: _named("hardsigmoid"),
    aten.silu.default: _named("swish"),
    aten.hardtanh.default: lambda node: ("hardtanh", [float(str(v)) for v in node.args[1:]], ""),
    aten.gelu.default: lambda node: ("gelu", [], str(node.kwargs.get("approximate", "none"))),
}


def _work_in_place(root: fx.GraphModule) -> None:
    """Let elementwise operations overwrite their first argument where it is not needed any more."""
    graph = root.graph
    position = {node: number for number, node in enumerate(graph.nodes)}
    views: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if "storage" in node.meta:
            views.setdefault(node.meta["storage"], []).append(node)

    def free(x: Any, node: fx.Node) -> bool:
        """Whether `node` is the last to read the memory of `x`, and may have it."""
        if not isinstance(x, fx.Node) or "storage" not in x.meta:
            return False
        owner = x.meta["storage"]
        if owner.op in ("placeholder", "get_attr") or not _same_layout(x, node):
            return False
        readers = {user for view in views[owner] for user in view.users}
        return all(position[reader] < position[node] for reader in readers - {node})

    def shares(x: fx.Node, others: Sequence[Any]) -> bool:
        """Whether one of the others is in the memory of `x`, too."""
        nodes = [other for other in others if isinstance(other, fx.Node)]
        return any(other.meta.get("storage") is x.meta.get("storage") for other in nodes)

    def take(x: fx.Node, node: fx.Node) -> None:
        """The result is now in the memory of `x`."""
        owner = x.meta["storage"]
        for view in views.pop(node, []):
            view.meta["storage"] = owner
            views[owner].append(view)

    for node in graph.nodes:
        module = _called(root, node)
        if isinstance(module, ScaleShift | BranchSum):
            if free(node.args[0], node) and not shares(node.args[0], node.args[1:]):
                module.in_place = True
                take(node.args[0], node)
            continue
        twin = _in_place_twin(node)
        if twin is None:
            continue
        for x, *others in _orders(node):
            if free(x, node) and not shares(x, [o for o in others if o is not x]):
                node.target, node.args = twin, (x, *others)
                take(x, node)
                break


def _orders(node: fx.Node) -> list[tuple[Any, ...]]:
    """The orders of an operation's arguments that give the same bits."""
    symmetric = node.target in (aten.add.Tensor, aten.mul.Tensor) and not node.kwargs
    if symmetric and isinstance(node.args[1], fx.Node):
        return [node.args, node.args[::-1]]
    return [node.args]


def _in_place_twin(node: fx.Node) -> Any:
    """The operator that overwrites its first argument, of an elementwise operation."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    elementwise = torch.Tag.pointwise in node.target.tags or node.target in ACTIVATIONS
    if not elementwise or node.target._schema.is_mutable:
        return None
    packet = getattr(aten, f"{node.target._schema.name.partition('::')[2]}_", None)
    overload = node.target._overloadname
    return getattr(packet, overload) if packet and overload in packet.overloads() else None


def _same_layout(a: fx.Node, b: fx.Node) -> bool:
    first, second = _meta(a), _meta(b)
    return (first.shape, first.stride(), first.dtype) == (
        second.shape,
        second.stride(),
        second.dtype,
    )


def _put_module(
    module: fx.GraphModule, node: fx.Node, kind: str, new: nn.Module, *arguments: fx.Node
) -> fx.Node:
    """A call of `new` in place of `node`."""
    number = sum(1 for name, _ in module.named_children() if name.startswith(kind))
    name = f"{kind}{number}"
    module.add_submodule(name, new)
    with module.graph.inserting_before(node):
        call = module.graph.call_module(name, arguments)
    call.meta = {"tensor": _meta(node), "storage": call}
    if isinstance(new, _InPieces):
        new.expect(_meta(node))
    node.replace_all_uses_with(call)
    _move_views(module.graph, node, call)
    module.graph.erase_node(node)
    return call


def _merge_into(node: fx.Node, after: fx.Node) -> None:
    """`node` does what `after` did, too."""
    after.replace_all_uses_with(node)
    _move_views(node.graph, after, node)
    node.graph.erase_node(after)


def _move_views(graph: fx.Graph, old: fx.Node, new: fx.Node) -> None:
    for node in graph.nodes:
        if node.meta.get("storage") is old:
            node.meta["storage"] = new


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _meta(node: Any) -> Tensor:
    tensor: Tensor = node.meta["tensor"]
    return tensor


def _constant(nodes: Sequence[Any]) -> bool:
    return all(node is None or node.op == "get_attr" for node in nodes)


def _value(module: fx.GraphModule, node: fx.Node | None) -> Any:
    return None if node is None else module.get_buffer(str(node.target))
