"""Which tensors of a checkpoint are the model.

A training script keeps more than a model in a file: averaged weights, an optimizer, a teacher, the
loss's own tensors; and it keeps the model in an entry (``state_dict``), under a prefix
(``module.``), or both. `choose` finds the models by their tensors, whatever their entries are
called, and takes the only one, or the one that is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pplcnet._errors import SAVE_TENSORS, Refused, quoted

# A part of a larger module that is a whole model, whatever lies beside it.
_MODELS = frozenset(
    [
        "module",
        "_orig_mod",
        "model",
        "net",
        "student",
        "teacher",
        "Student",
        "Teacher",
        "timm_model",
        "ema",
        "ema_model",
        "model_ema",
    ]
)
# What Paddle's optimizers (``python/paddle/optimizer``) call theirs: ``conv2d_0.w_0_velocity_0``.
_OPTIMIZER = re.compile(
    r".+_(velocity|momentum|moment|moment1|moment2|inf_norm|beta[12]_pow_acc|mean_square|mean_grad|"
    r"_?avg_squared_(grad|update))_[0-9]+"
)
# What FSDP, activation checkpointing and torch.compile put around any part of a model.
_WRAPPERS = frozenset(["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"])
_COUNTS = frozenset(["total_ops", "total_params"])  # which thop leaves in every module
_HEADS = {"backbone", "head"}  # of one model: mmpretrain's, mmcls's
_SHOWN = 8  # names in a message
_DEEPEST = 4  # entries in entries


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a model, and where in its file they were.

    Attributes:
        tensors: by their names, the prefix removed.
        entry: where they were, ``state_dict.model``; "" for the file as a whole.
        prefix: what all their names began with, ``module.``; "" if nothing was removed.
        ignored: what else there is, by name.
        stored: the precision that the weights once had, where a file of ours says that it was lower
            than that of its tensors; else "".
    """

    tensors: Mapping[str, Tensor]
    entry: str = ""
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    stored: str = ""

    @property
    def note(self) -> str:
        """What was chosen, in words; "" if it is the whole file as it is."""
        parts = []
        if self.entry:
            parts.append(f"entry {self.entry}")
        if self.prefix:
            parts.append(f"prefix {self.prefix} removed")
        if self.ignored:
            parts.append(f"not used: {_listed(self.ignored)}")
        return "; ".join(parts)


def choose(content: object, wanted: str = "") -> Checkpoint:
    """The model in the content of a file.

    Args:
        content: dicts of tensors and of other values, which count as nothing.
        wanted: the entry to take, by its whole name (``state_dict.model``) or one part of it; ""
            for the only one.

    Raises:
        Refused: there is no model, or several and none of them is the wanted one.
    """
    if not isinstance(content, dict):
        kind = type(content).__name__.strip("_")
        raise Refused(f"it contains a {kind}, not a state dict", SAVE_TENSORS)
    if _is_optimizer(content):
        raise Refused(
            "it contains the state of an optimizer, not a model",
            "Give the weights that were saved with it, such as the .pdparams of the same name.",
        )
    models = list(_models(content))
    if not models:
        raise Refused("it contains no tensors", SAVE_TENSORS)
    named = [each for each in models if not wanted or wanted in _names(each)]
    found = [each for each in named if wanted and each.entry == wanted] or named
    if len(found) == 1:
        return found[0]
    entries = [each.entry or "the file as a whole" for each in found or models]
    if not found:
        raise Refused(
            f"it has no entry {quoted(wanted)} with a model; it has {_listed(entries)}",
            "Name one of them with --weights-entry.",
        )
    raise Refused(
        f"it contains {len(entries)} models: {_listed(entries)}",
        f"Name one of them: --weights-entry {_listed(entries[-1:])}, for example.",
    )


def _is_optimizer(content: dict[Any, Any]) -> bool:
    """Whether a file is one of Paddle's ``.pdopt``, or a torch optimizer's state dict."""
    names = [name for name, each in content.items() if isinstance(each, Tensor)]
    return content.keys() == {"state", "param_groups"} or (
        bool(names) and all(_OPTIMIZER.fullmatch(str(name)) for name in names)
    )


def _names(model: Checkpoint) -> set[str]:
    """What a model may be called: its entry, and each part of that and of its prefix."""
    return {model.entry, *f"{model.entry}.{model.prefix}".split(".")} - {""}


def _models(content: dict[Any, Any]) -> Iterator[Checkpoint]:
    """Every model in the content of a file."""
    states = list(_states(content, (), set()))
    # An optimizer's tensors have no weight among them.
    weights = [(path, state) for path, state in states if any(map(_is_weight, state))]
    for path, state in weights or states:
        own = path[:1] or state.keys()
        beside = [k for k in content if isinstance(k, str) and k not in own and k[-2:] != "@@"]
        for part in _parts(state):
            entry = ".".join((*path, part.entry)) if part.entry else ".".join(path)
            ignored = dict.fromkeys((*part.ignored, *beside))
            yield replace(part, entry=entry, ignored=tuple(ignored))


def _states(
    content: dict[Any, Any], path: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dict that holds tensors by name, and where it is; not what is inside of a model's."""
    if id(content) in seen or len(path) > _DEEPEST:
        return
    seen.add(id(content))
    tensors = {
        key: each
        for key, each in content.items()
        if isinstance(key, str) and isinstance(each, Tensor)
    }
    if tensors:
        yield path, tensors
    if any(map(_is_weight, tensors)):
        return
    for key, each in content.items():
        if isinstance(key, str) and isinstance(each, dict):
            yield from _states(each, (*path, key), seen)


def _is_weight(name: str) -> bool:
    return name.rpartition(".")[2] == "weight"


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[Checkpoint]:
    """The models in one state dict: without a prefix, under one, or several under one each."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        word, dot, rest = name.partition(".")
        groups.setdefault(word if dot else "", {})[rest if dot else name] = tensor
    dotted = [word for word in groups if word]
    models = [word for word in dotted if word in _MODELS]
    if set(dotted) == _HEADS and not groups["backbone"].keys() & groups["head"].keys():
        joined = {name: tensor for word in dotted for name, tensor in groups[word].items()}
        yield Checkpoint(joined, "", "backbone. and head.", tuple(groups.get("", ())))
        return
    if not models and len(dotted) == 1 and not _is_layer(groups[dotted[0]]):
        models = dotted
    if not models:
        yield _plain(tensors)
        return
    beside = (*groups.get("", ()), *(f"{word}.*" for word in dotted if word not in models))
    for word in models:
        others = tuple(f"{other}.*" for other in models if other != word)
        for part in _parts(groups[word]):
            entry = ".".join(filter(None, [word if len(models) > 1 else "", part.entry]))
            prefix = f"{word}.{part.prefix}" if len(models) == 1 else part.prefix
            yield Checkpoint(part.tensors, entry, prefix, (*part.ignored, *beside, *others))


def _plain(tensors: Mapping[str, Tensor]) -> Checkpoint:
    """One model, without the names of wrappers around its parts and the counts of a profiler."""
    counts = [name for name in tensors if name.rpartition(".")[2] in _COUNTS]
    rest = {name: tensor for name, tensor in tensors.items() if name not in counts}
    renamed = {".".join(w for w in n.split(".") if w not in _WRAPPERS): t for n, t in rest.items()}
    found = {word for name in rest for word in name.split(".") if word in _WRAPPERS}
    if not found or len(renamed) < len(rest):
        return Checkpoint(rest if rest else tensors, ignored=tuple(counts if rest else ()))
    inner = " and ".join(f"*.{word}." for word in sorted(found))
    return Checkpoint(renamed, prefix=inner, ignored=tuple(counts))


def _is_layer(names: Mapping[str, Tensor]) -> bool:
    """Whether names are what remains of a layer's or a sequence's own: ``weight``, ``0.weight``."""
    return any("." not in name or name[0].isdigit() for name in names)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(quoted(name)[1:-1] for name in names[:_SHOWN]) + more
