"""Load weights of any known layout into a model, strictly: no tensor is silently ignored.

Three layouts are recognized by their keys:

- ``paddle``: PaddleClas ``pp_lcnet_v2.py`` (``_mean``, ``fc.weight`` as (in, out));
- ``timm``: ``timm/models/lcnetv2.py`` (``conv_head``, with the dropout factor of 0.8 folded in);
- ``pplcnet``: this package, unfused or reparameterized.

In the first two layouts, "reparameterized" only means that the depthwise branches are merged; batch
normalization is still separate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pplcnet._checkpoint import read_checkpoint
from pplcnet._errors import OTHER_WEIGHTS, WeightsError, name_classes
from pplcnet._model import STAGES, PPLCNetV2, RepDepthwise
from pplcnet._paddle_graph import find_graph
from pplcnet._reparam import is_reparameterized, reparameterize
from pplcnet._variants import VARIANTS

# Patterns for our names on the left, the layout's names on the right. Applied in order.
_SPLIT = "|".join(str(i) for i, stage in enumerate(STAGES) if stage.split_pw)
_COMMON = (
    (r"^stem\.2\.", "stem.1."),
    (r"\.dw_conv\.branches\.", ".dw_conv_list."),
)
_RENAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "paddle": (
        *_COMMON,
        (rf"^(stages\.(?:{_SPLIT})\.\d+)\.pw_conv\.0\.", r"\1.pw_conv_1."),
        (rf"^(stages\.(?:{_SPLIT})\.\d+)\.pw_conv\.1\.", r"\1.pw_conv_2."),
        (r"\.pw_conv\.0\.", ".pw_conv."),
        (r"\.se\.fc", ".se.conv"),
        (r"^last_conv\.conv\.", "last_conv."),
        (r"\.running_mean$", "._mean"),
        (r"\.running_var$", "._variance"),
    ),
    "timm": (
        *_COMMON,
        (rf"^(stages\.(?!{_SPLIT})\d+\.\d+|stem\.1)\.pw_conv\.0\.", r"\1.pw_conv."),
        (r"^last_conv\.conv\.", "conv_head."),
        (r"^fc\.", "classifier."),
    ),
    "pplcnet": (),
}
_LISTED = 8  # names shown in a message for each kind of difference


@dataclass(frozen=True)
class Weights:
    """The content of a checkpoint.

    Attributes:
        tensors: tensors by their names in the file.
        layout: ``paddle``, ``timm`` or ``pplcnet``.
        reparameterized: whether the depthwise branches are already merged; if so, the unfused form
            cannot be recovered from this file.
        source: the file, for messages.
        note: which tensors of the file these are, in words; "" for all.
        stored: a lower precision that they once had, see `pplcnet._entries.Checkpoint`; else "".
    """

    tensors: Mapping[str, Tensor]
    layout: str
    reparameterized: bool
    source: str
    note: str = ""
    stored: str = ""


def read_weights(path: Path | str, entry: str = "") -> Weights:
    """Read a checkpoint without running any code in it.

    Args:
        path: a ``.pdparams``, ``.safetensors``, ``.pth`` or ``.pt`` file (its content decides); a
            folder with one of them, or with shards; or Paddle's inference model: its folder,
            ``inference.json`` or ``inference.pdmodel``.
        entry: which model in a training checkpoint, such as ``state_dict_ema``; "" for the only
            one.

    Raises:
        WeightsError: the file is missing, damaged or refused, has several models or not the named
            one, or its layout is unknown.
    """
    path = Path(path)
    graph = find_graph(path)
    if graph is not None:
        from pplcnet._paddle_inference import read_inference_model  # which imports this module

        return read_inference_model(graph)
    found = read_checkpoint(path, entry)
    return replace(recognize(found.tensors, str(path)), note=found.note, stored=found.stored)


def recognize(tensors: Mapping[str, Tensor], source: str) -> Weights:
    """Recognize the layout of tensors by their names.

    Args:
        tensors: tensors by name.
        source: where they are from, for messages.

    Raises:
        WeightsError: the layout is unknown.
    """
    if "conv_head.weight" in tensors:
        layout = "timm"
    elif "last_conv.weight" in tensors and any(name.endswith("._mean") for name in tensors):
        layout = "paddle"
    elif "last_conv.conv.weight" in tensors or {"stem.0.weight", "last_conv.weight"} <= set(
        tensors
    ):
        layout = "pplcnet"
    else:
        seen = ", ".join(sorted(tensors)[:3]) or "nothing"
        raise WeightsError(
            f"{source} is not a PP-LCNetV2 checkpoint: the names of its {len(tensors)} tensors "
            f"({seen}, ...) match neither Paddle's layout nor timm's nor this package's.\n"
            "If it is of another network, name that: --model timm:NAME or torchvision:NAME."
        )
    merged = not any(".dw_conv_list." in name or ".branches." in name for name in tensors)
    return Weights(tensors, layout, merged, source)


def load_weights(model: PPLCNetV2, weights: Weights | Path | str) -> None:
    """Load weights into a model, in place.

    Unfused weights also fit a model in the deploy form: they are reparameterized first. The model
    is not changed unless everything fits.

    Args:
        model: from `create_model` or `reparameterize`; any device, dtype and number of classes.
        weights: a file, or the result of `read_weights`.

    Raises:
        WeightsError: the file cannot be read, holds values that are not finite or no floating-point
            numbers, is reparameterized although `model` is not, or has other names or shapes than
            `model`. In the last case the message lists the differences and the variant that the
            file does fit.
    """
    if not isinstance(weights, Weights):
        weights = read_weights(weights)
    if weights.reparameterized and not is_reparameterized(model):
        raise WeightsError(
            f"{weights.source} is already reparameterized and cannot be turned back into the "
            "unfused form.\nUse --forms reparameterized, or the original, unfused checkpoint."
        )
    twin = blank_model(model.scale, model.depths, model.num_classes, model.in_chans, weights)
    state = _matched_state(twin, weights)
    twin.load_state_dict(state)
    if is_reparameterized(model):
        twin = reparameterize(twin)
    model.load_state_dict(twin.state_dict())


def blank_model(
    scale: float, depths: tuple[int, ...], num_classes: int, in_chans: int, weights: Weights
) -> PPLCNetV2:
    """A model of the same size with arbitrary weights, folded as far as the file is.

    It is made on the CPU although its values do not matter: torch takes a second to set up its meta
    device, and a tenth of that to initialize the largest variant.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        twin = PPLCNetV2(scale, depths, num_classes, in_chans).eval()
        if weights.reparameterized and weights.layout == "pplcnet":
            return reparameterize(twin)
        if weights.reparameterized:
            for module in list(twin.modules()):
                if isinstance(getattr(module, "dw_conv", None), RepDepthwise):
                    module.dw_conv = module.dw_conv.fuse()  # type: ignore[operator,union-attr]
    return twin


def own_state(weights: Weights, names: Iterable[str]) -> dict[str, Tensor]:
    """Those of the named tensors that the file has, as float32, unchecked.

    Args:
        weights: a checkpoint.
        names: this package's names.

    Returns:
        Tensors by this package's names, in its shapes.
    """
    return {
        ours: _converted(ours, weights.tensors[theirs], weights.layout)
        for ours, theirs in names_in(names, weights.layout).items()
        if theirs in weights.tensors
    }


def names_in(names_of_ours: Iterable[str], layout: str) -> dict[str, str]:
    """Map our names to the names in a file, for every tensor that a file must contain."""
    names = {}
    for ours in names_of_ours:
        if ours.endswith(".num_batches_tracked"):  # counts training steps; unused in inference
            continue
        theirs = ours
        for pattern, replacement in _RENAMES[layout]:
            theirs = re.sub(pattern, replacement, theirs)
        names[ours] = theirs
    return names


def _matched_state(model: PPLCNetV2, weights: Weights) -> dict[str, Tensor]:
    """The complete state dict of `model` from the file, float32."""
    differences = _differences(model, weights)
    if differences:
        classes, channels = _classes_and_channels(weights)
        as_it_is = blank_model(model.scale, model.depths, classes, channels, weights)
        if channels == model.in_chans and not _differences(as_it_is, weights):
            raise WeightsError(
                f"{weights.source} has a head of {classes} classes, not of {model.num_classes}.\n"
                f"{name_classes(classes, model.num_classes)}"
            )
        hint = _fitting_variants(weights)
        raise WeightsError(
            f"{weights.source} does not fit the model: {'; '.join(differences)}.\n{hint}"
        )
    _check_floating(weights, names_in(model.state_dict(), weights.layout).values())
    state = own_state(weights, model.state_dict())
    for ours, value in state.items():
        if not value.isfinite().all():
            raise WeightsError(
                f"{weights.source}: {ours} contains NaN or infinite values.\n{OTHER_WEIGHTS}"
            )
    for ours, value in model.state_dict().items():
        if ours.endswith(".num_batches_tracked"):
            state[ours] = torch.zeros_like(value, device="cpu")
    return state


def _check_floating(weights: Weights, used: Iterable[str]) -> None:
    """Refuse whole numbers: converted to float32, they would silently be other weights."""
    found = [name for name in used if not weights.tensors[name].is_floating_point()]
    if found:
        kinds = {str(weights.tensors[name].dtype).removeprefix("torch.") for name in found}
        raise WeightsError(
            f"{weights.source}: {' and '.join(sorted(kinds))} instead of floating-point numbers in "
            f"{len(found)} tensors ({_listed(found)}).\n"
            "Quantized weights have no scales here: give a float32 checkpoint."
        )


def _converted(ours: str, value: Tensor, layout: str) -> Tensor:
    if layout == "paddle" and ours == "fc.weight":
        value = value.T
    if layout == "timm" and ours == "last_conv.conv.weight":
        value = value.double() / (1 - PPLCNetV2.DROP_RATE)
    return value.float().contiguous()


def _differences(model: PPLCNetV2, weights: Weights) -> list[str]:
    """Missing tensors, unexpected ones and those of another shape; empty if the file fits."""
    names = names_in(model.state_dict(), weights.layout)
    missing = [theirs for theirs in names.values() if theirs not in weights.tensors]
    used = set(names.values())
    unexpected = [n for n in weights.tensors if n not in used and not _explained(n, weights)]
    reshaped = []
    state = model.state_dict()
    for ours, theirs in names.items():
        if theirs in weights.tensors:
            expected = list(state[ours].shape)
            if weights.layout == "paddle" and ours == "fc.weight":
                expected.reverse()
            found = list(weights.tensors[theirs].shape)
            if found != expected:
                reshaped.append(f"{theirs} {found} instead of {expected}")
    kinds = {"missing": missing, "unexpected": unexpected, "with a different shape": reshaped}
    return [f"{len(found)} {kind} ({_listed(found)})" for kind, found in kinds.items() if found]


def _listed(names: list[str]) -> str:
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _explained(name: str, weights: Weights) -> bool:
    """Whether an unused tensor in a file is expected there."""
    if name.endswith(".num_batches_tracked"):
        return True
    # Paddle allocates the merged convolution next to the branches, never sets it in training, and
    # stores it with arbitrary values. It must not be loaded.
    block, placeholder, _ = name.partition(".dw_conv.")
    branches = f"{block}.dw_conv_list.0.conv.weight"
    return bool(placeholder) and weights.layout == "paddle" and branches in weights.tensors


def model_for(weights: Weights) -> PPLCNetV2:
    """Create the model that a checkpoint fits, in the checkpoint's form, and load the weights.

    Raises:
        WeightsError: the checkpoint fits no variant, or holds values that are not finite.
    """
    for variant in VARIANTS.values():
        twin = blank_model(variant.scale, variant.depths, *_classes_and_channels(weights), weights)
        if not _differences(twin, weights):
            model = PPLCNetV2(variant.scale, variant.depths, *_classes_and_channels(weights)).eval()
            if weights.reparameterized:
                model = reparameterize(model)
            load_weights(model, weights)
            return model
    raise WeightsError(
        f"{weights.source} does not fit {', '.join(VARIANTS)}.\n"
        "To see the differences, load it as the variant that it should be (--variant NAME)."
    )


def _fitting_variants(weights: Weights) -> str:
    """A sentence that says which variant the file does fit."""
    classes, channels = _classes_and_channels(weights)
    fitting = [
        variant.name
        for variant in VARIANTS.values()
        if not _differences(
            blank_model(variant.scale, variant.depths, classes, channels, weights), weights
        )
    ]
    if not fitting:
        return "It does not fit any other variant either. Check that the file is complete."
    return f"It fits {' or '.join(fitting)}, with {classes} classes and {channels} channels."


def _classes_and_channels(weights: Weights) -> tuple[int, int]:
    """Read from the first and the last layer; 1000 and 3 if those are missing."""
    last = weights.tensors.get("classifier.bias", weights.tensors.get("fc.bias"))
    stem = weights.tensors.get("stem.0.conv.weight", weights.tensors.get("stem.0.weight"))
    classes = len(last) if last is not None and last.ndim == 1 else 1000
    channels = stem.shape[1] if stem is not None and stem.ndim == 4 else 3
    return classes, channels
