"""The subject of an evaluation, and the sources that subjects come from.

A `Source` is opened before torch is imported: it knows the model's published accuracy and refuses
options that do not fit. `Source.load` then reads the checkpoint and returns the `Subject`. The rest
of the evaluation knows the model only through its `Subject`.

    variants.py     PP-LCNetV2, from a checkpoint in Paddle's, timm's or our own layout
    timm.py         ``--model timm:NAME``
    hub.py          a folder of the Hugging Face hub, which says itself what it is
    torchvision.py  ``--model torchvision:NAME``
    exported.py     a file exported for another runtime, such as ``.onnx``
    demo.py         the embedded known-answer model

To add a source, write one module and add one row to `SOURCES`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from eval.backends import backend_name
from eval.config import Reference, Tolerance, VariantConfig, meant_variant
from eval.errors import ModelError, UsageError
from eval.progress import Observer
from eval.recipe import OWN
from eval.recipe_files import recipe_of
from eval.request import Request
from eval.text import printable

if TYPE_CHECKING:  # torch takes seconds to import, and wrong options are refused without it
    from torch import nn

    from eval.backends.formats import Copy
    from eval.images.preprocess import Preprocess
    from eval.images.sets import ImageSet


@dataclass(frozen=True)
class ModelFile:
    """One file of a model: its size in bytes, and its hash, hexadecimal."""

    path: Path
    size: int
    sha256: str


@dataclass(frozen=True)
class Subject:
    """A loaded model, with everything that an evaluation needs to know about it.

    Attributes:
        name: its name in the reports.
        title: its name as people would write it.
        weights: the checkpoint, or a description of where the weights are from.
        layout: the layout of the checkpoint, in words.
        files: all files that the predictions depend on.
        forms: the model of each form, in evaluation mode, or the path of its exported file.
        preprocess: the preprocessing of its images.
        published: its published accuracy, and the tolerance.
        params, macs: number of parameters, and of multiply-accumulates for one image, by form;
            None where unknown.
        precision: of an exported file, or of a checkpoint whose weights are stored in less than
            fp32; None if it can be chosen.
        caution: a warning that must stand above every figure; empty for most subjects.
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
        """Hash of all files (see `combined_sha256`), hexadecimal; "" if they are unknown."""
        return combined_sha256(self.files) if self.files else ""

    def check_unchanged(self) -> None:
        """Check that no file has changed since it was read."""
        for file in self.files:
            if identify([file.path])[0].sha256 != file.sha256:
                raise ModelError(
                    f"{file.path} changed during the evaluation, so the results cannot be "
                    "trusted.\nRun the evaluation again."
                )


class Source(Protocol):
    """A model that was requested but is not loaded yet.

    Attributes:
        backend: the backend used by default.
        image_set: what its own images are; None for those of the request.
    """

    request: Request
    name: str
    published: VariantConfig
    backend: str

    @property
    def image_set(self) -> ImageSet | None:
        """See the attributes."""

    def images(self, folder: Path, observer: Observer) -> Path:
        """The validation set to evaluate on.

        Args:
            folder: where a source may create its own images.
            observer: receives progress events.
        """

    def own_preprocess(self) -> Preprocess:
        """The model's own preprocessing, used by default."""

    def load(self, classes: int, observer: Observer) -> Subject:
        """Load the model.

        Args:
            classes: number of classes, which is the number of logits.
            observer: receives events about downloads and other slow steps.

        Raises:
            ModelError: the weights are missing, damaged, refused, or belong to another model.
            UsageError: the model does not have the requested form.
        """


class Entry(NamedTuple):
    """One kind of source.

    Attributes:
        module: a module with ``open_source(request) -> Source``.
        is_meant: whether a request is for this kind of source; the first match is used.
    """

    module: str
    is_meant: Callable[[Request], bool]


def _is_exported(request: Request) -> bool:
    from eval.backends.formats import is_exported

    return is_exported(request.weights)


def _is_hub_folder(request: Request) -> bool:
    named = request.model or request.variant or request.config
    return not named and (Path(request.weights) / "config.json").is_file()


def _from_library(name: str) -> Callable[[Request], bool]:
    return lambda request: (request.library_model or "").startswith(f"{name}:")


SOURCES: tuple[Entry, ...] = (
    Entry("eval.models.demo", lambda request: request.demo),
    Entry("eval.models.exported", _is_exported),
    Entry("eval.models.hub", _is_hub_folder),
    Entry("eval.models.timm", _from_library("timm")),
    Entry("eval.models.torchvision", _from_library("torchvision")),
    Entry("eval.models.variants", lambda request: request.library_model is None),
)


def open_source(request: Request) -> Source:
    """Open the source of the model in a request."""
    if request.backend is not None:
        backend_name("--backend", request.backend)
    named = request.published
    if named and request.model and request.model != named.model:
        raise UsageError(
            f"--config {request.config} is of {named.model}, not of {request.model}: its figures "
            "are another model's.\nOmit --model, or name the configuration of this model."
        )
    if request.output_name and not _is_exported(request):
        raise UsageError(
            "--output-name is of an exported file: name that with --weights, or omit --output-name."
        )
    for entry in SOURCES:
        if entry.is_meant(request):
            source: Source = importlib.import_module(entry.module).open_source(request)
            return source
    name = request.library_model or ""
    variant = meant_variant(name)
    library = "torchvision" if name.startswith("torchvision") else "timm"
    plain = re.sub(r".*[/:]|torchvision\.models\.", "", name) or "mobileone_s1"
    meant = f"--variant {variant}" if variant else f"--model {library}:{plain.lower()}"
    if Path(name).exists():
        meant = f"--weights {printable(name)}"
    raise UsageError(f"--model {name}: write timm:NAME or torchvision:NAME.\nDid you mean {meant}?")


class RequestedImages:
    """Base class of the sources that are evaluated on the validation set of the request."""

    backend = "torch"
    image_set: ImageSet | None = None

    def __init__(self, request: Request) -> None:
        self.request = request

    def images(self, folder: Path, observer: Observer) -> Path:  # noqa: ARG002
        """The validation set of the request."""
        assert self.request.data is not None
        return Path(self.request.data)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The names of a library's models that are like a word, for the end of a message."""
    close = difflib.get_close_matches(word, known, n=3)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def published_of(source: Source) -> VariantConfig:
    """What is reported, with the model's own recipe under the name that it has in the reports."""
    return source.published.with_own(source.own_preprocess().name)


def judged_by(
    published: VariantConfig, reference: Reference | None, request: Request
) -> VariantConfig:
    """A library's model, judged by its published figures where the request asks for that."""
    if request.tolerance is None:
        return published
    if reference is None:
        raise UsageError(
            f"--tolerance: no published accuracy of {published.name} is known.\nOmit it; for a "
            "timm model, give timm's table with --timm-results."
        )
    tolerance = Tolerance(request.tolerance, "given with --tolerance")
    gated = msgspec.structs.replace(reference, gated=True)
    return replace(published, reference={OWN: gated}, tolerance={OWN: tolerance}, others=())


def choose_preprocess(source: Source) -> Preprocess:
    """The preprocessing of the request, or else the model's own."""
    from eval.images.preprocess import Preprocess

    own = source.own_preprocess()
    asked = source.request.preprocess
    if asked is None or asked == OWN:
        return own
    if own.recipe is None and str(asked).partition(",")[0] == OWN:
        raise UsageError(
            f"--preprocess {asked}: the own preprocessing of {source.name} is {own.description}; "
            "no step of it can be changed.\nName another recipe."
        )
    chosen = Preprocess.of(recipe_of(asked, own.recipe))
    if chosen.size != own.size:
        raise UsageError(
            f"--preprocess {asked} makes {chosen.size}x{chosen.size} crops, {source.name} takes "
            f"{own.size}x{own.size}.\nOmit --preprocess to use the model's own."
        )
    return chosen


def identify(paths: Sequence[Path]) -> tuple[ModelFile, ...]:
    """Hash the files of a model."""
    files = []
    for path in paths:
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                files.append(ModelFile(path, file.tell(), digest))
        except OSError as error:
            raise ModelError(
                f"{path} cannot be read: {error.strerror or error}.\n"
                "Give another file with --weights FILE."
            ) from error
    return tuple(files)


def identify_copy(copy: Copy) -> tuple[ModelFile, ...]:
    """Hash a private copy of an exported model, as the files that it was made of."""
    from eval.backends.formats import files_of

    beside = copy.original.parent
    return tuple(
        replace(file, path=beside / file.path.relative_to(copy.parent))
        for file in identify(files_of(copy))
    )


def combined_sha256(files: Sequence[ModelFile]) -> str:
    """SHA-256 of a model's files, hexadecimal.

    For a single file, it is the file's own hash; for several, the hash of their sorted
    ``<sha256>  <name>`` lines.
    """
    if len(files) == 1:
        return files[0].sha256
    lines = sorted(f"{file.sha256}  {file.path.name}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def counts(forms: Mapping[str, nn.Module], size: int) -> dict[str, Any]:
    """Count the parameters and multiply-accumulates (MACs) of a library's model.

    MACs are half the operations that torch's own counter finds in convolutions, matrix products
    and attention for one image; normalization and activations are not counted.

    Returns:
        The arguments ``params`` and ``macs`` of `Subject`; a MAC count is None if the model cannot
        be counted.
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
        except Exception:  # a missing count must not end the evaluation
            macs[form] = None
    return {"params": {f: count_parameters(m) for f, m in forms.items()}, "macs": macs}
