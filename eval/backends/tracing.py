"""Record what a model does to a batch as a graph of torch's basic operations.

`torch.fx.symbolic_trace` stops at any Python branch on a shape; here the model really runs, so that
every model can be recorded whose operations do not depend on the values of the pixels. What is
recorded is the same for a module, a function or an operator: torch's own operations ("aten"),
without the in-place ones, so that rules about them need no knowledge of the model's classes.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

aten = torch.ops.aten


class CannotTrace(Exception):
    """The model does something that cannot be recorded; the message says what."""


@torch.no_grad()
def trace(model: nn.Module, batch: Tensor) -> tuple[fx.GraphModule, Tensor]:
    """The operations that a model applies to a batch of this shape, and its answer to the batch.

    Each node of the graph that stands for a tensor has ``meta["tensor"]``: its shape, strides and
    dtype, as an empty tensor on torch's ``meta`` device; and ``meta["storage"]``: the node whose
    memory it is a view of, itself if none.

    Args:
        model: in evaluation mode; one tensor in, one out.
        batch: what to call it with.

    Raises:
        CannotTrace: an operation depends on values, is random, or changes a tensor in a way that
            has no counterpart that is not in place.
    """
    recorder = _Recorder(batch)
    random_state = torch.get_rng_state()
    with recorder:
        answer = model(batch)
    if not torch.equal(random_state, torch.get_rng_state()):
        raise CannotTrace("it draws random numbers")
    if not isinstance(answer, Tensor):
        raise CannotTrace(f"it answers with a {type(answer).__name__}, not with one tensor")
    recorder.graph.output(recorder.node_of(answer))
    recorder.graph.eliminate_dead_code()
    return fx.GraphModule(recorder.constants, recorder.graph), answer


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own __init_subclass__
    """Sees every operation that runs while it is active."""

    def __init__(self, batch: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self.constants = nn.Module()
        # By id of the tensor. The tensor is kept, so that no other gets its id.
        self._known: dict[int, tuple[Tensor, fx.Node, int]] = {}
        self._changes: dict[int, int] = {}  # of a storage, by its address
        self._define(self.graph.placeholder("batch"), batch, [])

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch asks; for yes it would import its compiler, which takes seconds."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        recorded = _without_mutation(func)
        inputs: list[Tensor] = []
        tree_map_only(Tensor, inputs.append, (args, kwargs))
        node = self.graph.call_function(
            recorded,
            tree_map_only(Tensor, self.node_of, tuple(args)),
            tree_map_only(Tensor, self.node_of, dict(kwargs)),
        )
        result = func(*args, **kwargs)
        if recorded is not func:
            address = args[0].untyped_storage().data_ptr()
            self._changes[address] = self._changes.get(address, 0) + 1
            inputs = [] if not recorded.is_view else inputs
        if isinstance(result, Tensor):
            self._define(node, result, inputs)
        elif isinstance(result, tuple | list):
            for position, part in enumerate(result):
                if isinstance(part, Tensor):
                    item = self.graph.call_function(operator.getitem, (node, position))
                    self._define(item, part, inputs)
        else:
            raise CannotTrace(f"{func} reads a value")
        return result

    def node_of(self, tensor: Tensor) -> fx.Node:
        """The node that stands for a tensor; one that is not yet known is a constant."""
        if id(tensor) not in self._known:
            name = f"constant{len(self._known)}"
            self.constants.register_buffer(name, tensor.detach())
            self._define(self.graph.get_attr(name), tensor, [])
        _, node, version = self._known[id(tensor)]
        if version != self._version(tensor):
            raise CannotTrace(f"{node.target} is changed through a view of it")
        return node

    def _version(self, tensor: Tensor) -> int:
        return self._changes.get(tensor.untyped_storage().data_ptr(), 0)

    def _define(self, node: fx.Node, tensor: Tensor, inputs: Sequence[Tensor]) -> None:
        address = tensor.untyped_storage().data_ptr()
        node.meta["tensor"] = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
        )
        node.meta["storage"] = next(
            (
                self._known[id(other)][1].meta["storage"]
                for other in inputs
                if address and other.untyped_storage().data_ptr() == address
            ),
            node,
        )
        self._known[id(tensor)] = (tensor, node, self._version(tensor))


def _without_mutation(func: Any) -> Any:
    """The operation that gives a new tensor instead of changing its first argument."""
    if not func._schema.is_mutable:
        return func
    name, overload = func._schema.name.partition("::")[2], func._overloadname
    twin = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    if twin is None or overload not in twin.overloads():
        raise CannotTrace(f"{func} changes a tensor")
    return getattr(twin, overload)
