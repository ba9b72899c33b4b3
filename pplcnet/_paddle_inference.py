"""A Paddle inference model as a checkpoint of PP-LCNetV2.

PaddleClas's exporter (``ppcls/engine/engine.py``, ``Engine.export``) merges the depthwise branches,
keeps batch normalization apart and appends softmax. The names of its parameters are counters, which
change with whatever was built before: each tensor is known by its role in the graph alone.

The network is run once to see its layers in the order of computation; the layers of the graph must
be the same ones, one by one. Then **both are run on the same images, in float64**: strides, groups,
epsilons, activations, the dropout factor and every connection must agree, whatever their names are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pplcnet._errors import WeightsError
from pplcnet._model import PPLCNetV2
from pplcnet._paddle_graph import DAMAGE, Graph, Operator, read_graph
from pplcnet._variants import VARIANTS
from pplcnet._weights import Weights, blank_model, names_in

_MOST = 16  # pixels, of a stride or a padding
_SIDE = 64  # pixels, of the images that both are run on
_AGREES = 1e-9  # of the largest logit, in float64; other connections or attributes differ by more

_BATCH_NORM = (
    "running_mean",
    "running_var",
    "weight",
    "bias",
)  # in the order of the graph's inputs


class _Layer(NamedTuple):
    """A layer with parameters: of the network, or of the graph.

    Attributes:
        kind: ``conv2d``, ``batch_norm`` or ``matmul``.
        tensors: by role: ``weight``, ``bias``, ...; names of parameters.
    """

    kind: str
    tensors: Mapping[str, str]


def read_inference_model(path: Path) -> Weights:
    """Read an inference model as a checkpoint in Paddle's layout.

    Args:
        path: its graph, ``inference.json`` or ``inference.pdmodel``.

    Returns:
        The weights, reparameterized where the exporter has merged the branches. Softmax at the end
        is left out: the network gives logits.

    Raises:
        WeightsError: see `read_graph`; or it is not PP-LCNetV2.
    """
    graph = read_graph(path)
    layers = list(_layers(graph))
    for variant in VARIANTS.values():
        for merged in (True, False):
            weights = _weights(graph, layers, variant.scale, variant.depths, merged)
            if weights is not None:
                return weights
    raise WeightsError(
        f"{path} is a Paddle inference model, but not PP-LCNetV2: its {len(layers)} layers with "
        f"parameters are not those of {', '.join(VARIANTS)}.\nGive a model of PaddleClas's "
        "PPLCNetV2 configurations."
    )


def _weights(
    graph: Graph, layers: Sequence[_Layer], scale: float, depths: tuple[int, ...], merged: bool
) -> Weights | None:
    """The weights, if the graph is this network; None if its layers are others.

    Raises:
        WeightsError: the layers are the same, but not what is computed.
    """
    last = graph.parameters[layers[-1].tensors["weight"]] if layers else torch.empty(0)
    if last.ndim != 2:
        return None
    blank = Weights({}, "paddle", merged, str(graph.path))
    twin = blank_model(scale, depths, last.shape[1], 3, blank)
    wanted = list(_executed(twin))
    if [layer.kind for layer in wanted] != [layer.kind for layer in layers]:
        return None
    state = twin.state_dict()
    theirs = names_in(state, "paddle")
    tensors: dict[str, Tensor] = {}
    for ours, found in zip(wanted, layers, strict=True):
        if ours.tensors.keys() != found.tensors.keys():
            return None
        for role, name in ours.tensors.items():
            tensor = graph.parameters[found.tensors[role]]
            tensors[theirs[name]] = tensor
            if found.kind == "matmul" and tensor.ndim == 2:  # Paddle keeps it as (in, out)
                tensor = tensor.T
            if tensor.shape != state[name].shape:
                return None
            state[name] = tensor
    unused = graph.parameters.keys() - {n for layer in layers for n in layer.tensors.values()}
    if unused:
        raise WeightsError(
            f"{graph.path}: {len(unused)} parameters belong to no layer of the network.\n"
            "Export it again with PaddleClas's tools/export_model.py."
        )
    twin.load_state_dict(state)
    _check_same(graph, twin.double())
    return Weights(tensors, "paddle", merged, str(graph.path))


def _executed(model: PPLCNetV2) -> Iterator[_Layer]:
    """The layers with parameters of a network, in the order in which they are computed."""
    names = {module: name for name, module in model.named_modules()}
    order: list[nn.Module] = []
    kinds = {nn.Conv2d: "conv2d", nn.BatchNorm2d: "batch_norm", nn.Linear: "matmul"}
    hooks = [
        module.register_forward_hook(lambda module, *_: order.append(module))
        for module in names
        if type(module) in kinds
    ]
    with torch.inference_mode():
        model(torch.zeros(1, model.in_chans, 32, 32))
    for hook in hooks:
        hook.remove()
    for module in order:
        roles = _BATCH_NORM if isinstance(module, nn.BatchNorm2d) else ("weight", "bias")
        present = [role for role in roles if getattr(module, role) is not None]
        yield _Layer(kinds[type(module)], {role: f"{names[module]}.{role}" for role in present})


def _layers(graph: Graph) -> Iterator[_Layer]:
    """The layers with parameters of a graph; a bias belongs to the layer that it is added to."""
    made_by = {operator.output: operator for operator in graph.operators}

    def parameter(value: str) -> str:
        """The parameter that a value is, whatever its shape; else ""."""
        while value not in graph.parameters and value in made_by:
            if made_by[value].kind != "reshape":
                return ""
            value = made_by[value].inputs[0]
        return value if value in graph.parameters else ""

    bias_of = {
        operator.inputs[0]: parameter(operator.inputs[1])
        for operator in graph.operators
        if operator.kind == "add" and parameter(operator.inputs[1])
    }
    for operator in graph.operators:
        if operator.kind in ("conv2d", "matmul"):
            tensors = {"weight": parameter(operator.inputs[1])}
            if operator.output in bias_of:
                tensors["bias"] = bias_of[operator.output]
        elif operator.kind == "batch_norm":
            tensors = dict(zip(_BATCH_NORM, map(parameter, operator.inputs[1:]), strict=True))
        else:
            continue
        if not all(tensors.values()):
            raise WeightsError(
                f"{graph.path}: a {operator.kind} without parameters of its own: not PP-LCNetV2.\n"
                "Give a model of PaddleClas's PPLCNetV2 configurations."
            )
        yield _Layer(operator.kind, tensors)


def _check_same(graph: Graph, twin: PPLCNetV2) -> None:
    """Refuse a graph that computes something else than the network with its weights.

    Raises:
        WeightsError: see above.
    """
    images = torch.rand(2, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0)).double()
    try:
        found = run(graph, images)
    except (_Unsupported, RuntimeError, MemoryError, *DAMAGE) as error:
        raise WeightsError(
            f"{graph.path} cannot be run as PP-LCNetV2 ({' '.join(str(error).split())[:120]}).\n"
            "Export it again with PaddleClas's tools/export_model.py."
        ) from error
    with torch.inference_mode():
        expected = twin(images)
    difference = float((found - expected).abs().max()) if found.shape == expected.shape else 1.0
    if not difference <= _AGREES * max(1.0, float(expected.abs().max())):
        raise WeightsError(
            f"{graph.path} has the layers of PP-LCNetV2, but computes something else: its logits "
            f"differ by {difference:.2g}.\nA stride, an epsilon, an activation, a factor or a "
            "connection is another one: export it again from PaddleClas's own network."
        )


class _Unsupported(Exception):
    """An operator is used in a way that PP-LCNetV2 does not use it."""


@torch.inference_mode()
def run(graph: Graph, images: Tensor) -> Tensor:
    """Compute a graph, operator by operator.

    Args:
        graph: of an inference model.
        images: normalized, (B, 3, H, W); float64 for an exact comparison.

    Returns:
        Logits (B, classes): what goes into the softmax, where the graph ends in one.
    """
    values: dict[str, Any] = {n: t.to(images.dtype) for n, t in graph.parameters.items()}
    probabilities: dict[str, Tensor] = {}
    result: list[Tensor] = []
    for operator in graph.operators:
        given = [values.get(name) for name in operator.inputs]
        if operator.kind == "input":
            value: Any = images
        elif operator.kind == "fetch":
            result.append(probabilities.get(operator.inputs[0], given[0]))  # type: ignore[arg-type]
            continue
        else:
            value = _COMPUTE[operator.kind](operator, given)
        if operator.kind == "softmax":
            assert isinstance(given[0], Tensor)
            probabilities[operator.output] = given[0]
        elif operator.kind == "scale" and operator.inputs[0] in probabilities:
            probabilities[operator.output] = probabilities[operator.inputs[0]]
        values[operator.output] = value
    if len(result) != 1:
        raise _Unsupported(f"{len(result)} outputs")
    return result[0]


def _conv2d(operator: Operator, given: Sequence[Any]) -> Tensor:
    at = operator.attributes
    _require(at["padding_algorithm"] == "EXPLICIT" and at["data_format"] in ("NCHW", "AnyLayout"),
             operator)  # fmt: skip
    stride, padding, dilation = (list(at[name]) for name in ("strides", "paddings", "dilations"))
    # Larger ones would only take memory before they are found to be wrong.
    _require(all(0 <= n <= _MOST for n in (*stride, *padding, *dilation)), operator)
    return F.conv2d(given[0], given[1], None, stride, padding, dilation, at["groups"])


def _batch_norm(operator: Operator, given: Sequence[Any]) -> Tensor:
    at = operator.attributes
    _require(
        at.get("data_format", at.get("data_layout")) == "NCHW" and not at["trainable_statistics"],
        operator,
    )
    image, mean, variance, scale, bias = given
    return F.batch_norm(image, mean, variance, scale, bias, False, 0.0, at["epsilon"])


def _softmax(operator: Operator, given: Sequence[Any]) -> Tensor:
    _require(operator.attributes["axis"] in (-1, given[0].ndim - 1), operator)
    result: Tensor = given[0].softmax(-1)
    return result


def _add(operator: Operator, given: Sequence[Any]) -> Tensor:
    one, other = given[:2]
    axis = operator.attributes.get("axis", -1)
    if axis == 1 and other.ndim == 1:  # the old format adds a bias along the channels so
        other = other.reshape(-1, *(1,) * (one.ndim - 2))
    else:
        _require(axis == -1, operator)
    result: Tensor = one + other
    return result


def _multiply(operator: Operator, given: Sequence[Any]) -> Tensor:
    _require(operator.attributes.get("axis", -1) == -1, operator)
    result: Tensor = given[0] * given[1]
    return result


def _pool2d(operator: Operator, given: Sequence[Any]) -> Tensor:
    at = operator.attributes
    size = at["ksize"] if "ksize" in at else given[1]
    _require(at["adaptive"] and at["pooling_type"] == "avg" and tuple(size) == (1, 1), operator)
    return F.adaptive_avg_pool2d(given[0], 1)


def _constant(operator: Operator, _: Sequence[Any]) -> Any:
    return operator.attributes["value"]


def _reshape(operator: Operator, given: Sequence[Any]) -> Tensor:
    shape = given[1] if len(given) > 1 else operator.attributes["shape"]
    result: Tensor = given[0].reshape([int(side) for side in shape])
    return result


def _dropout(operator: Operator, given: Sequence[Any]) -> Tensor:
    """``downgrade_in_infer`` multiplies by 1 - p; ``upscale_in_train`` does nothing here."""
    at = operator.attributes
    p = at["dropout_prob"] if "dropout_prob" in at else given[2]
    mode = at["mode"] if "mode" in at else at["dropout_implementation"]
    _require(mode in ("downgrade_in_infer", "upscale_in_train") and at["is_test"], operator)
    result: Tensor = given[0] * (1 - p) if mode == "downgrade_in_infer" else given[0]
    return result


def _flatten(operator: Operator, given: Sequence[Any]) -> Tensor:
    at = operator.attributes
    result: Tensor = given[0].flatten(at["start_axis"], at["stop_axis"])
    return result


def _matmul(operator: Operator, given: Sequence[Any]) -> Tensor:
    at = operator.attributes
    transposed = [at.get(f"transpose_{side}", at.get(f"trans_{side}")) for side in "xy"]
    _require(transposed == [False, False], operator)
    result: Tensor = given[0] @ given[1]
    return result


def _scale(operator: Operator, given: Sequence[Any]) -> Tensor:
    at = operator.attributes
    _require(at["scale"] == 1 and at["bias"] == 0, operator)  # the old format's last operator
    result: Tensor = given[0]
    return result


_COMPUTE: Mapping[str, Callable[[Operator, Sequence[Any]], Any]] = {
    "conv2d": _conv2d,
    "batch_norm": _batch_norm,
    "relu": lambda _, given: given[0].relu(),
    "sigmoid": lambda _, given: given[0].sigmoid(),
    "softmax": _softmax,
    "add": _add,
    "multiply": _multiply,
    "pool2d": _pool2d,
    "constant": _constant,
    "reshape": _reshape,
    "dropout": _dropout,
    "flatten": _flatten,
    "matmul": _matmul,
    "scale": _scale,
}


def _require(is_so: bool, operator: Operator) -> None:
    if not is_so:
        raise _Unsupported(f"{operator.kind} with {dict(operator.attributes)}")
