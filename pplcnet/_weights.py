"""Weights of any known layout into a model, strictly: every value used or explained.

Three layouts are recognised by their keys:

- ``paddle``: PaddleClas ``pp_lcnet_v2.py`` (``_mean``, ``fc.weight`` as (in, out));
- ``timm``: ``timm/models/lcnetv2.py`` (``conv_head``, which has absorbed the factor of 0.8);
- ``pplcnet``: this package, unfused or reparameterized.

In the first two, a reparameterized file has its depthwise branches merged and the rest unfused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pplcnet._checkpoint import read_checkpoint
from pplcnet._errors import WeightsError
from pplcnet._model import STAGES, PPLCNetV2, RepDepthwise
from pplcnet._reparam import is_reparameterized, reparameterize
from pplcnet._variants import VARIANTS

# Our names on the left, as patterns; theirs on the right. Applied in order.
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
_LISTED = 8  # names shown of each kind of difference


@dataclass(frozen=True)
class Weights:
    """What a weights file holds.

    Attributes:
        tensors: name in the file to value.
        layout: ``paddle``, ``timm`` or ``pplcnet``.
        reparameterized: whether the depthwise branches are merged already, so that the form that
            was trained cannot be had from this file.
        source: the file, for messages.
    """

    tensors: Mapping[str, Tensor]
    layout: str
    reparameterized: bool
    source: str


def read_weights(path: Path | str) -> Weights:
    """Read ``.pdparams``, ``.safetensors``, ``.pth`` or ``.pt`` without executing anything in it.

    Raises:
        WeightsError: missing, damaged, refused, or of no known layout.
    """
    path = Path(path)
    return recognise(read_checkpoint(path), str(path))


def recognise(tensors: Mapping[str, Tensor], source: str) -> Weights:
    """Tell the layout of named tensors by their names.

    Raises:
        WeightsError: it is none of the known ones.
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
            f"{source} does not hold a PP-LCNetV2: its {len(tensors)} tensors ({seen}, ...) have "
            "the names of neither Paddle's, timm's nor this package's."
        )
    merged = not any(".dw_conv_list." in name or ".branches." in name for name in tensors)
    return Weights(tensors, layout, merged, source)


def load_weights(model: PPLCNetV2, weights: Weights | Path | str) -> None:
    """Fill a model, in place.

    A deploy model takes unfused files too (they are folded on the way). Nothing is changed unless
    everything fits.

    Args:
        model: of `create_model` or `reparameterize`; any device, dtype and number of classes.
        weights: a file, or one that was read before.

    Raises:
        WeightsError: the file cannot be read, or its names or shapes are not those of `model`;
            the message names the differences, and the variant that the file does fit.
    """
    if not isinstance(weights, Weights):
        weights = read_weights(weights)
    if weights.reparameterized and not is_reparameterized(model):
        raise WeightsError(
            f"{weights.source} is reparameterized already: the unfused form cannot be had from it. "
            "Evaluate it with --forms reparameterized, or use the weights as they were trained."
        )
    twin = _twin(model.scale, model.depths, model.num_classes, model.in_chans, weights)
    state = _matched_state(twin, weights)
    twin.load_state_dict(state)
    if is_reparameterized(model):
        twin = reparameterize(twin)
    model.load_state_dict(twin.state_dict())


def _twin(
    scale: float, depths: tuple[int, ...], num_classes: int, in_chans: int, weights: Weights
) -> PPLCNetV2:
    """A model of the same size, folded as far as the file is.

    It is made on the CPU although its values do not matter: torch needs a second to prepare its
    meta device, and a tenth of that to fill the largest of these models.
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
    """The tensors that are there under our names, float32, without any check."""
    return {
        ours: _converted(ours, weights.tensors[theirs], weights.layout)
        for ours, theirs in _names(names, weights.layout).items()
        if theirs in weights.tensors
    }


def _names(names_of_ours: Iterable[str], layout: str) -> dict[str, str]:
    """Our name to the file's, for all that a file must hold."""
    names = {}
    for ours in names_of_ours:
        if ours.endswith(".num_batches_tracked"):  # counts training steps; no use in inference
            continue
        theirs = ours
        for pattern, replacement in _RENAMES[layout]:
            theirs = re.sub(pattern, replacement, theirs)
        names[ours] = theirs
    return names


def _matched_state(model: PPLCNetV2, weights: Weights) -> dict[str, Tensor]:
    """The state dict of `model`, float32, from the file."""
    differences = _differences(model, weights)
    if differences:
        hint = _fitting_variants(weights)
        raise WeightsError(
            f"{weights.source} does not fit the model: {'; '.join(differences)}.\n{hint}"
        )
    state = own_state(weights, model.state_dict())
    for ours, value in state.items():
        if not value.isfinite().all():
            raise WeightsError(f"{weights.source}: {ours} holds NaN or infinite values.")
    for ours, value in model.state_dict().items():
        if ours.endswith(".num_batches_tracked"):
            state[ours] = torch.zeros_like(value, device="cpu")
    return state


def _converted(ours: str, value: Tensor, layout: str) -> Tensor:
    if layout == "paddle" and ours == "fc.weight":
        value = value.T
    if layout == "timm" and ours == "last_conv.conv.weight":
        value = value.double() / (1 - PPLCNetV2.DROP_RATE)
    return value.float().contiguous()


def _differences(model: PPLCNetV2, weights: Weights) -> list[str]:
    """What is missing, left over, or of another shape; empty when the file fits."""
    names = _names(model.state_dict(), weights.layout)
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
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    return [f"{len(found)} {kind} ({_listed(found)})" for kind, found in kinds.items() if found]


def _listed(names: list[str]) -> str:
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _explained(name: str, weights: Weights) -> bool:
    """Whether a file may hold this without our using it."""
    if name.endswith(".num_batches_tracked"):
        return True
    # Paddle allocates the merged convolution beside the branches that are trained, and stores
    # it with whatever it held: never to be loaded.
    block, placeholder, _ = name.partition(".dw_conv.")
    branches = f"{block}.dw_conv_list.0.conv.weight"
    return bool(placeholder) and weights.layout == "paddle" and branches in weights.tensors


def model_for(weights: Weights) -> PPLCNetV2:
    """A new model of the size, classes and channels of the weights, in their form, filled.

    Raises:
        WeightsError: they fit no variant.
    """
    for variant in VARIANTS.values():
        twin = _twin(variant.scale, variant.depths, *_classes_and_channels(weights), weights)
        if not _differences(twin, weights):
            model = PPLCNetV2(variant.scale, variant.depths, *_classes_and_channels(weights)).eval()
            if weights.reparameterized:
                model = reparameterize(model)
            load_weights(model, weights)
            return model
    raise WeightsError(
        f"{weights.source} fits none of {', '.join(VARIANTS)}: "
        "load it into the variant that it should be, to see the differences."
    )


def _fitting_variants(weights: Weights) -> str:
    """One sentence: which network the file does belong to."""
    classes, channels = _classes_and_channels(weights)
    fitting = [
        variant.name
        for variant in VARIANTS.values()
        if not _differences(
            _twin(variant.scale, variant.depths, classes, channels, weights), weights
        )
    ]
    if not fitting:
        return "It fits no other variant either: is the file complete?"
    return f"It fits {' or '.join(fitting)}, with {classes} classes and {channels} channels."


def _classes_and_channels(weights: Weights) -> tuple[int, int]:
    """As the first and the last layer have them; the usual 1000 and 3 where those are missing."""
    last = weights.tensors.get("classifier.bias", weights.tensors.get("fc.bias"))
    stem = weights.tensors.get("stem.0.conv.weight", weights.tensors.get("stem.0.weight"))
    classes = len(last) if last is not None and last.ndim == 1 else 1000
    channels = stem.shape[1] if stem is not None and stem.ndim == 4 else 3
    return classes, channels
