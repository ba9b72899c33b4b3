"""A request for an evaluation: the options of ``python -m eval.imagenet``, by the same names.

Options take precedence over the configuration file. There are no environment variables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from eval.config import VariantConfig, load_config, load_variant
from eval.errors import UsageError
from eval.recipe import Recipe
from eval.recipe_files import recipe_of

DEFAULT_VARIANT = "base_ssld"
FORMS = ("unfused", "reparameterized")
PRECISIONS = ("fp32", "bf16", "fp16")
ON_BAD_IMAGE = ("fail", "record")
LARGEST_BATCH = 4096  # images; of each worker, 600 MB as uint8 crops of 224 pixels

_PATHS = (
    "data",
    "config",
    "labels",
    "classes",
    "timm_results",
    "cache",
    "output",
    "history",
    "model_card",
)


class Benchmark(NamedTuple):
    """A leaderboard on the Hub: a task of a benchmark data set."""

    dataset: str  # such as ORG/NAME
    task: str  # as in the data set's eval.yaml

    @classmethod
    def parse(cls, text: str) -> Benchmark:
        """From ``ORG/NAME:TASK``.

        Raises:
            UsageError: it is not of that form.
        """
        part = r"[A-Za-z0-9][\w.-]*"
        if not re.fullmatch(rf"{part}/{part}:{part}", text, re.ASCII):
            raise UsageError(
                f"{text} does not name a benchmark: use ORG/NAME:TASK, with the data set's id on "
                "the Hub and the task's id in its eval.yaml."
            )
        return cls(*text.split(":"))


@dataclass(frozen=True, kw_only=True)
class Request:
    """One evaluation. An option that is None is chosen to suit the model or the machine.

    Attributes:
        data: the validation set, in any layout; None with `demo`.
        demo: evaluate the embedded known-answer model on the images that belong to it.
        variant: a built-in configuration; ``base_ssld`` unless another model is named.
        config: a configuration file instead.
        model: a classifier of a library instead: ``timm:NAME`` or ``torchvision:NAME``.
        weights: a checkpoint or an exported file; ``auto``: the cache, else a download.
        forms: ``unfused``, ``reparameterized`` or both (a list, or a string with a comma).
        preprocess: the text of a recipe, ``NAME[,key=value,...]`` (see `eval.recipe`), or a file
            that says one; None, or ``own``: the model's own.
        backend: what computes the logits; None: torch, or the exported file's own runtime.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        batch_size: images in a batch.
        workers: threads.
        limit: only the first N images of a fixed shuffled order.
        classes: a file with one class per line, in index order, instead of ImageNet's 1000.
        labels: a file of labels, for images that are not in class folders.
        on_bad_image: ``fail``, or ``record``: list it and count it as wrong.
        real_labels: also score against the ReaL labels.
        timm_results: timm's table of results, of which the model's row is shown.
        cache: a folder for the decoded crops.
        output: a folder for the reports; an interrupted run continues there. With None, nothing
            is written: `eval.Evaluation.save` does it on demand.
        history: a CSV file to which the summary is appended.
        baseline: an earlier result to compare with at the end.
        model_card: a file for the result as metadata of a Hugging Face model card.
        hub_benchmark: ``ORG/NAME:TASK``, a benchmark on the Hugging Face Hub: with `model_card`,
            the result is also written to ``.eval_results`` beside that file.
        stop_early: end as soon as it is certain that the full set would FAIL.
        latency: also measure the time per image.
        command: the command line, for the reports.

    Raises:
        UsageError: options that do not go together, or a value that is not one of those listed.
    """

    data: Path | str | None = None
    demo: bool = False
    variant: str | None = None
    config: Path | str | None = None
    model: str | None = None
    weights: Path | str = "auto"
    forms: Sequence[str] | str | None = None
    preprocess: Path | str | None = None
    backend: str | None = None
    device: str = "auto"
    precision: str = "fp32"
    batch_size: int | None = None
    workers: int | None = None
    limit: int | None = None
    classes: Path | str | None = None
    labels: Path | str | None = None
    on_bad_image: str = "fail"
    real_labels: bool = False
    timm_results: Path | str | None = None
    cache: Path | str | None = None
    output: Path | str | None = None
    history: Path | str | None = None
    baseline: Path | str | None = None
    model_card: Path | str | None = None
    hub_benchmark: str | None = None
    stop_early: bool = False
    latency: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        for name in _PATHS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, Path(value))
        object.__setattr__(self, "forms", _forms(self.forms))
        self._check_what()
        self._check_values()

    def _check_what(self) -> None:
        """Exactly one model and one set of images."""
        if self.demo == (self.data is not None):
            raise UsageError("Name a validation set with --data PATH, or use --demo (not both).")
        if self.demo and (self.variant or self.config or self.model or self.weights != "auto"):
            raise UsageError(
                "--demo brings its own model: omit --variant, --config, --model and --weights."
            )
        if self.demo and (self.classes or self.labels):
            raise UsageError("--demo brings its own labels: omit --classes and --labels.")
        if self.config and self.variant:
            raise UsageError("--config and --variant both name a configuration: use one.")
        if self.model and self.variant:
            raise UsageError("--model and --variant both name a model: use one.")
        if self.timm_results and not (self.model or "").startswith("timm:"):
            raise UsageError("--timm-results only applies to timm models: add --model timm:NAME.")
        if self.classes and self.real_labels:
            raise UsageError(
                "--real-labels only applies to ImageNet's own classes: omit it, or omit --classes."
            )
        if self.hub_benchmark is not None:
            Benchmark.parse(self.hub_benchmark)
            if self.model_card is None:
                raise UsageError("--hub-benchmark writes beside --model-card FILE: name one.")

    def _check_values(self) -> None:
        for name, known in {"precision": PRECISIONS, "on_bad_image": ON_BAD_IMAGE}.items():
            value = getattr(self, name)
            if value not in known:
                listed = ", ".join(known)
                raise UsageError(f"--{name.replace('_', '-')} {value}: use one of {listed}.")
        if self.preprocess is not None:
            recipe_of(self.preprocess, own=Recipe())
        for name in ("batch_size", "workers", "limit"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or value < 1):
                raise UsageError(f"--{name.replace('_', '-')} {value}: use a positive number.")
        if self.batch_size is not None and self.batch_size > LARGEST_BATCH:
            raise UsageError(
                f"--batch-size {self.batch_size}: use at most {LARGEST_BATCH}; larger batches only "
                "take more memory."
            )
        if self.stop_early and self.limit is not None:
            raise UsageError("--stop-early is for runs of the whole set: omit --limit.")

    @cached_property
    def published(self) -> VariantConfig | None:
        """The configuration that was named: what is reported about the model.

        Raises:
            UsageError: there is none of that name, or it cannot be read.
        """
        if self.config:
            return load_config(Path(self.config))
        if self.variant:
            return load_variant(self.variant)
        return None if self.model or self.demo else load_variant(DEFAULT_VARIANT)

    @property
    def library_model(self) -> str | None:
        """``LIBRARY:NAME``, from the options or the configuration; None for our own networks."""
        if self.model:
            return self.model
        if self.published and ":" in self.published.model:
            return self.published.model
        return None

    def as_dict(self) -> dict[str, Any]:
        """The options as plain values, for ``run.json``."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


def _forms(asked: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """In their fixed order."""
    if asked is None:
        return None
    forms = asked.split(",") if isinstance(asked, str) else list(asked)
    if not forms or len(set(forms)) != len(forms) or not set(forms) <= set(FORMS):
        raise UsageError(f"--forms {','.join(forms)}: use unfused, reparameterized, or both.")
    return tuple(form for form in FORMS if form in forms)
