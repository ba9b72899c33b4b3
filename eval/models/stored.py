"""A library's checkpoint: read, checked, and the precision that its weights are stored in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eval.backends.precision import UNKNOWN, describe
from eval.errors import ModelError
from eval.images.labels import examples, shown
from eval.models import ModelFile, Source, Subject, choose_preprocess, counts, published_of
from pplcnet import WeightsError
from pplcnet._checkpoint import read_checkpoint
from pplcnet._entries import Checkpoint
from pplcnet._errors import OTHER_WEIGHTS, name_classes
from pplcnet._folder import hashed_files_of as checkpoint_files
from pplcnet._paddle_graph import files_of as graph_files
from pplcnet._paddle_graph import find_graph

_KINDS = {torch.float32: "fp32", torch.float64: "fp32", torch.float16: "fp16",
          torch.bfloat16: "bf16"}  # fmt: skip
_LEARNED = ("weight", "bias", "running_mean", "running_var")


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that the tensors of a checkpoint or of an inference model depend on."""
    try:
        graph = find_graph(path)
        return graph_files(graph) if graph else checkpoint_files(path)
    except WeightsError as error:
        raise ModelError(str(error)) from error


def read_tensors(path: Path, entry: str) -> Checkpoint:
    """The tensors of a library's checkpoint, by name."""
    try:
        found = read_checkpoint(path, entry)
    except WeightsError as error:
        raise ModelError(str(error)) from error
    floats = {key: value for key, value in found.tensors.items() if value.is_floating_point()}
    bad = [key for key, value in floats.items() if not value.float().isfinite().all()]
    if bad:
        raise ModelError(f"{path}: {examples(bad)}: NaN or infinite values.\n{OTHER_WEIGHTS}")
    return found


class Loaded(NamedTuple):
    """A library's model in its unfused form, and the checkpoint that it was loaded from."""

    library: str
    name: str
    model: nn.Module
    found: Checkpoint

    @property
    def stored(self) -> str:
        """The precision that its weights are stored in."""
        return stored_precision(self.found.tensors.values(), self.found.stored)


def subject_of(
    source: Source,
    path: Path,
    files: tuple[ModelFile, ...],
    loaded: Loaded,
    forms: Mapping[str, nn.Module],
) -> Subject:
    """A library's model as the subject of an evaluation."""
    preprocess = choose_preprocess(source)
    subject = Subject(
        name=source.name,
        title=f"{loaded.library}'s {loaded.name}",
        weights=str(path),
        layout="; ".join(filter(None, [loaded.library, loaded.found.note])),
        files=files,
        forms=forms,
        preprocess=preprocess,
        published=published_of(source),
        precision=in_what(source.request.precision, loaded.stored),
        **counts(forms, preprocess.size),
    )
    subject.check_unchanged()  # the hash must be that of the bytes that were read
    return subject


_KEYS = re.compile(r"(Missing|Unexpected) key\(s\) in state_dict: (.*?)\.?\s*$", re.MULTILINE)
_SHAPES = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\((\[.*?\])\) from "
    r"checkpoint, the shape in current model is torch\.Size\((\[.*?\])\)"
)


def misfit(path: Path, what: str, classes: int, error: Exception, advice: str) -> ModelError:
    """The error where a library does not load a checkpoint of a model such as ``timm's resnet18``.

    `advice` is what to do, unless the head alone is another one.
    """
    text = str(error)
    keys = {kind: re.findall(r'"([^"]*)"', names) for kind, names in _KEYS.findall(text)}
    shapes = _SHAPES.findall(text)
    rows = {int(found[1:-1].split(",")[0] or 0) for _, found, _ in shapes if len(found) > 2}
    wanted = {int(model[1:-1].split(",")[0] or 0) for *_, model in shapes if len(model) > 2}
    if not keys and len(rows) == 1 and wanted == {classes}:
        (found,) = rows
        return ModelError(
            f"{path} has a head of {found} classes, not of {classes}.\n"
            f"{name_classes(found, classes)}"
        )
    reasons = [f"{len(names)} {kind.lower()} ({examples(names)})" for kind, names in keys.items()]
    if shapes:
        listed = [f"{name} {found} instead of {model}" for name, found, model in shapes]
        reasons.append(f"{len(listed)} with a different shape ({examples(listed)})")
    reason = "; ".join(reasons) or f"{type(error).__name__}: {shown(' '.join(text.split()))}"
    return ModelError(f"{path} does not fit {what} with {classes} classes: {reason}.\n{advice}")


def check_types(path: Path, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuse whole numbers where a model has real ones: torch would convert them silently.

    Args:
        path: for messages.
        tensors: of the checkpoint.
        model: they were loaded into it. Where it has another name for a tensor, the last word of
            that decides.
    """
    state = model.state_dict()
    whole = {
        key: str(value.dtype).removeprefix("torch.")
        for key, value in tensors.items()
        if not value.is_floating_point()
        and (state[key].is_floating_point() if key in state else key.endswith(_LEARNED))
    }
    if whole:
        kinds = " and ".join(sorted(set(whole.values())))
        raise ModelError(
            f"{path}: {examples(list(whole))}: {kinds} instead of floating-point numbers.\n"
            "Quantized weights have no scales here; give a float32 checkpoint."
        )


def stored_precision(tensors: Iterable[Tensor], once: str = "") -> str:
    """``fp32``, or for example ``fp16 weights`` where a tensor is stored in less than that.

    Args:
        tensors: of the checkpoint.
        once: what a file of ours says that the weights were stored in before; it only counts where
            that was less.
    """
    found = describe(
        (), (_KINDS.get(each.dtype, "fp8") for each in tensors if each.is_floating_point())
    )
    if not once or found != "fp32":
        return found
    return once if re.fullmatch(r"(bf|fp|int)[0-9]{1,2} weights", once) else UNKNOWN


def in_what(asked: str, stored: str) -> str | None:
    """`eval.models.Subject.precision` of a checkpoint.

    Args:
        asked: the precision of the request; below fp32, it says more than `stored`.
        stored: see `stored_precision`.
    """
    return stored if asked == "fp32" and stored != "fp32" else None
