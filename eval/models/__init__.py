"""What is evaluated: a subject, and where subjects come from.

A `Source` is asked for before torch is imported: it knows what is reported about the model and
refuses options that do not fit. `Source.load` reads the checkpoint and gives the `Subject`, which
is all that the rest of the evaluation knows about a model.

    variants.py     our own networks, from a checkpoint of Paddle's, timm's or ours
    timm.py         ``--model timm:NAME``
    torchvision.py  ``--model torchvision:NAME``
    exported.py     a file of another runtime, such as ``.onnx``
    demo.py         the embedded known-answer model

Another source is one more module and one more row of `SOURCES`.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from eval.config import VariantConfig
from eval.errors import ModelError, UsageError
from eval.measure.progress import Observer
from eval.request import Request

if TYPE_CHECKING:  # torch takes seconds to import: wrong options are refused without
    from torch import nn

    from eval.images.preprocess import Preprocess


@dataclass(frozen=True)
class ModelFile:
    """One file of a model.

    Attributes:
        path: where it is.
        size: in bytes.
        sha256: of its bytes, hexadecimal.
    """

    path: Path
    size: int
    sha256: str


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        name: what reports call it.
        title: what a person would call it.
        weights: where the weights are from.
        layout: how they are kept, in words.
        files: every file whose bytes the predictions depend on.
        forms: name of each form to its model, in evaluation mode, or to an exported file.
        preprocess: how its images are to be prepared.
        published: what is reported about it, and how far a run may be from that.
        params, macs: of each form, for one image; None where they are not known.
        precision: what an exported file computes in; None where that can be chosen.
        caution: a line that has to stand over every figure; empty for most.
    """

    name: str
    title: str
    weights: str
    layout: str
    files: tuple[ModelFile, ...]
    forms: Mapping[str, nn.Module | Path]
    preprocess: Preprocess
    published: VariantConfig
    params: Mapping[str, int | None]
    macs: Mapping[str, int | None]
    precision: str | None = None
    caution: str = ""

    @cached_property
    def sha256(self) -> str:
        """Of all files, see `combined_sha256`; "" where they are not known."""
        return combined_sha256(self.files) if self.files else ""

    def check_unchanged(self) -> None:
        """The files still are what they were when they were read.

        Raises:
            ModelError: one of them has changed, or is gone.
        """
        for file in self.files:
            if identify([file.path])[0].sha256 != file.sha256:
                raise ModelError(
                    f"{file.path} has changed while it was evaluated.\n"
                    "Nothing of this run can be trusted: start it again."
                )


class Source(Protocol):
    """A model that has been asked for and not been loaded yet.

    Attributes:
        request: what was asked for.
        name: what reports will call it.
        published: what is reported about it.
        preprocess: the name of its own preprocessing.
        backend: what computes it unless another one is asked for.
    """

    request: Request
    name: str
    published: VariantConfig
    preprocess: str
    backend: str

    def images(self, folder: Path, observer: Observer) -> Path:
        """The validation set to evaluate on; `folder` is where one may be made."""

    def own_preprocess(self) -> Preprocess:
        """How the model's images are prepared unless another way is asked for."""

    def load(self, classes: int, observer: Observer) -> Subject:
        """Read the model.

        Args:
            classes: how many it has to tell apart.
            observer: is told about downloads and other things that take long.

        Raises:
            ModelError: the weights are missing, damaged, refused or of another model.
            UsageError: the model does not have the form that was asked for.
        """


class Entry(NamedTuple):
    """One kind of source.

    Attributes:
        module: has ``open_source(request) -> Source``.
        is_meant: whether a request asks for this kind; the first row that says yes is taken.
    """

    module: str
    is_meant: Callable[[Request], bool]


def _is_exported(request: Request) -> bool:
    from eval.backends.exported import is_exported

    return is_exported(request.weights)


def _from_library(name: str) -> Callable[[Request], bool]:
    return lambda request: (request.library_model or "").startswith(f"{name}:")


SOURCES: tuple[Entry, ...] = (
    Entry("eval.models.demo", lambda request: request.demo),
    Entry("eval.models.exported", _is_exported),
    Entry("eval.models.timm", _from_library("timm")),
    Entry("eval.models.torchvision", _from_library("torchvision")),
    Entry("eval.models.variants", lambda request: request.library_model is None),
)


def open_source(request: Request) -> Source:
    """Find the model that a request asks for.

    Raises:
        UsageError: there is none of that name, or options do not fit it.
    """
    for entry in SOURCES:
        if entry.is_meant(request):
            source: Source = importlib.import_module(entry.module).open_source(request)
            return source
    raise UsageError(
        f"--model {request.library_model}: write timm:NAME or torchvision:NAME, such as "
        "timm:mobileone_s1."
    )


class RequestedImages:
    """What most sources have in common: they are evaluated on the images that were named."""

    backend = "torch"

    def __init__(self, request: Request) -> None:
        self.request = request

    def images(self, folder: Path, observer: Observer) -> Path:  # noqa: ARG002
        """The validation set of the request."""
        assert self.request.data is not None
        return Path(self.request.data)


def choose_preprocess(source: Source) -> Preprocess:
    """The preprocessing that was asked for, or the model's own.

    Raises:
        UsageError: it gives images of another size than the model takes.
    """
    from eval.images.preprocess import PREPROCESS

    own = source.own_preprocess()
    asked = source.request.preprocess
    chosen = own if asked is None else PREPROCESS[asked]
    if chosen.size != own.size:
        raise UsageError(
            f"--preprocess {asked} gives {chosen.size} pixels, {source.name} takes {own.size}.\n"
            "Leave --preprocess out: the model's own is used."
        )
    return chosen


def identify(paths: Sequence[Path]) -> tuple[ModelFile, ...]:
    """Hash the files of a model.

    Raises:
        ModelError: one cannot be read.
    """
    files = []
    for path in paths:
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                files.append(ModelFile(path, file.tell(), digest))
        except OSError as error:
            raise ModelError(
                f"{path} cannot be read: {error.strerror or error}.\nName a checkpoint with "
                "--weights FILE."
            ) from error
    return tuple(files)


def combined_sha256(files: Sequence[ModelFile]) -> str:
    """SHA-256 of a model's files: a single file's own; of several, of their sorted list."""
    if len(files) == 1:
        return files[0].sha256
    lines = sorted(f"{file.sha256}  {file.path.name}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def counts(forms: Mapping[str, nn.Module], size: int) -> dict[str, Any]:
    """Parameters and multiply-accumulates of each form of a library's model, for `Subject`.

    MACs are half the operations that torch's own counter finds in the convolutions, matrix
    products and attentions of one image; normalisation and activations are not counted.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pplcnet import count_parameters

    macs: dict[str, int | None] = {}
    for form, model in forms.items():
        try:
            with torch.inference_mode(), FlopCounterMode(display=False) as counter:
                model(torch.zeros(1, 3, size, size))
            macs[form] = counter.get_total_flops() // 2
        except Exception:  # a count is no reason to end an evaluation
            macs[form] = None
    return {"params": {f: count_parameters(m) for f, m in forms.items()}, "macs": macs}
