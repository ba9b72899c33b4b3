"""A lowered network as one call, during which the interpreter's lock is free.

An `fx.GraphModule` is a Python function: it comes back to the interpreter for each of its hundreds
of operations, and while the interpreter runs one thread, it runs no other. Here the same
operations, in the same order and with the same arguments, become a graph of TorchScript, whose own
interpreter needs neither Python nor its lock. Nothing is optimized on the way, so that the results
are the same to the bit. The graph is built operator by operator: no Python source is parsed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

_TENSORS = torch._C.ListType(torch._C.TensorType.get())


class CannotConvert(Exception):
    """The network does something that is not one of torch's operators; the message says what."""


class OneCall:
    """What a network does to a batch, without the interpreter's lock.

    Args:
        module: which calls nothing but operators (`torch.ops`), with one tensor in and one out.

    Attributes:
        module: as given.

    Raises:
        CannotConvert: it calls something else.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        recorder = _Recorder()
        answer = module(recorder.batch)
        recorder.graph.registerOutput(answer.value)
        self._constants = torch._C.ScriptList(recorder.constants)  # not read again at every call
        self._run = torch._C._create_function_from_graph("forward", recorder.graph)

    def __call__(self, batch: Tensor) -> Tensor:
        """What the module gives for a batch of the kind that it was lowered for."""
        before = torch._C._get_graph_executor_optimize()
        torch._C._set_graph_executor_optimize(False)  # of this thread
        try:
            answer: Tensor = self._run(batch, self._constants)
        finally:
            torch._C._set_graph_executor_optimize(before)
        return answer


def in_one_call(module: fx.GraphModule) -> OneCall | fx.GraphModule:
    """The module as one call; itself where that cannot be made: the same results, with the lock."""
    try:
        return OneCall(module)
    except Exception:  # these are private parts of torch: another version may lack them
        return module


class _Recorder:
    """A graph that grows by what is done to its values.

    The constants of the network are an input, a list: oneDNN's layouts of weights cannot be
    constants of a graph.
    """

    def __init__(self) -> None:
        self.graph: Any = torch._C.Graph()
        self.batch = _Value(self, self.graph.addInput("batch"))
        self._listed = self.graph.addInput("constants")
        self._listed.setType(_TENSORS)
        self.constants: list[Tensor] = []
        self._value_of: dict[int, Any] = {}  # by id of a constant

    def add(self, operator: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Add an operator: its result, or the list of its results.

        Raises:
            CannotConvert: it is none, or it would change a constant.
        """
        if not isinstance(operator, torch._ops.OpOverload):
            raise CannotConvert(f"{getattr(operator, '__name__', operator)} is not an operator")
        schema = operator._schema
        named = {**dict(zip((a.name for a in schema.arguments), given, strict=False)), **named}
        inputs = []
        for argument in schema.arguments:
            value = named.get(argument.name, argument.default_value)
            if (
                isinstance(value, Tensor)
                and argument.alias_info is not None
                and argument.alias_info.is_write
            ):
                raise CannotConvert(f"{operator} changes a constant")
            inputs.append(self._input(value, argument.type))
        results = self._insert(schema.name, inputs, len(schema.returns))
        for result, declared in zip(results, schema.returns, strict=True):
            result.setType(declared.type)
        values = [_Value(self, result) for result in results]
        return values[0] if len(values) == 1 else values

    def item(self, listed: Any, number: int) -> Any:
        """One tensor of a list."""
        return self._insert("aten::__getitem__", [listed, self.graph.insertConstant(number)], 1)[0]

    def _insert(self, name: str, inputs: list[Any], results: int) -> list[Any]:
        return list(self.graph.insertNode(self.graph.create(name, inputs, results)).outputs())

    def _input(self, argument: Any, kind: Any) -> Any:
        """An argument of an operator, of the kind that its schema names, as a value."""
        if isinstance(argument, _Value):
            return argument.value
        if isinstance(argument, Tensor):
            return self._constant(argument)
        if isinstance(argument, list | tuple):
            kind = kind.getElementType() if isinstance(kind, torch._C.OptionalType) else kind
            parts = [self._input(each, kind.getElementType()) for each in argument]
            (made,) = self._insert("prim::ListConstruct", parts, 1)
            made.setType(kind)
            return made
        return self.graph.insertConstant(argument)

    def _constant(self, tensor: Tensor) -> Any:
        if id(tensor) not in self._value_of:
            self._value_of[id(tensor)] = self.item(self._listed, len(self.constants))
            self.constants.append(tensor)
        return self._value_of[id(tensor)]


class _Value:
    """Stands for a tensor, or a list of tensors, while a network is recorded."""

    def __init__(self, recorder: _Recorder, value: Any) -> None:
        self.recorder, self.value = recorder, value

    def __getitem__(self, number: int) -> _Value:
        if not isinstance(self.value.type(), torch._C.ListType):
            raise CannotConvert("a tensor is indexed")
        return _Value(self.recorder, self.recorder.item(self.value, number))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch calls in place of an operator that is given one of these."""
        found = (each for each in tree_leaves((args, kwargs)) if isinstance(each, _Value))
        return next(found).recorder.add(func, args, kwargs or {})
