"""A request for an evaluation: the options of ``python -m eval.imagenet``, by the same names.

Each option is declared once, as a field of `Request`. Command lines, checks, the class's own
documentation and ``run.json`` are made from that. Options take precedence over the configuration
file; no environment variables are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from eval.config import (
    IMAGENET_VAL_IMAGES,
    VariantConfig,
    builtin_variants,
    load_config,
    load_variant,
)
from eval.errors import UsageError
from eval.recipe import NAMED, OWN, Recipe
from eval.recipe_files import recipe_of
from eval.values import Kind, ListOf, OneOf, Whole, file_or_word, flag, path, positive, text

DEFAULT_VARIANT = "base_ssld"
FORMS = ("unfused", "reparameterized")
PRECISIONS = ("fp32", "bf16", "fp16")
IMAGE_SETS = ("val",)
FOLDERS = ("index", "ilsvrc-id")  # what the number of a numbered folder may mean
ON_BAD_IMAGE = ("fail", "record")
MOST_PROCESSES = 1024
LARGEST_BATCH = 4096  # images; of each worker, 600 MB as uint8 crops of 224 pixels

PRECISION = OneOf(
    PRECISIONS,
    {
        **dict.fromkeys(("float32", "float", "single", "f32", "32", "full"), "fp32"),
        **dict.fromkeys(("float16", "half", "f16", "16", "amp"), "fp16"),
        **dict.fromkeys(("bfloat16", "bfp16", "amp_bf16"), "bf16"),
    },
)


def read_preprocess(option: str, value: Any) -> str | Path:
    """The text of a recipe, or a file that says one."""
    asked = file_or_word(option, value)
    recipe_of(asked, own=Recipe(), where=option)
    return asked


def read_forms(option: str, value: Any) -> tuple[str, ...]:
    """Forms of the model, in their fixed order."""
    asked = ListOf(all_words={"both": FORMS, "all": FORMS})(option, value)
    if len(set(asked)) != len(asked) or not set(asked) <= set(FORMS):
        fused = {"fused", "deploy", "rep", "reparam", "inference"} & set(asked)
        hint = f"\nDid you mean {option} reparameterized?" if fused else ""
        raise UsageError(
            f"{option} {','.join(asked)}: use unfused, reparameterized, or both.{hint}"
        )
    return tuple(form for form in FORMS if form in asked)


def read_limit(option: str, value: Any) -> int:
    """A number of images."""
    share = (
        re.fullmatch(r"([0-9]{1,3}(\.[0-9]{1,9})?) ?%", value) if isinstance(value, str) else None
    )
    if share:
        images = round(float(share[1]) / 100 * IMAGENET_VAL_IMAGES)
        raise UsageError(
            f"{option} {value}: use a number of images.\n"
            f"Did you mean {option} {images}, of {IMAGENET_VAL_IMAGES:,}?"
        )
    return positive(option, value)


def read_device(option: str, value: Any) -> str:
    """A device."""
    word = text(option, value)
    if re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", word):
        return word
    number = re.fullmatch(r"(?:gpu|nvidia)?:?([0-9]{1,4})", word.lower())
    gpu = (
        "cuda" if word.lower() in ("gpu", "nvidia") else f"cuda:{int(number[1])}" if number else ""
    )
    hint = f"\nDid you mean {option} {gpu}?" if gpu else ""
    raise UsageError(f"{option} {word}: use auto, cpu, cuda or cuda:N.{hint}")


class Benchmark(NamedTuple):
    """A leaderboard on the Hub: a task of a benchmark data set."""

    dataset: str  # such as ORG/NAME
    task: str  # as in the data set's eval.yaml

    @classmethod
    def parse(cls, text: str) -> Benchmark:
        """From ``ORG/NAME:TASK``."""
        part = r"[A-Za-z0-9][\w.-]*"
        if not re.fullmatch(rf"{part}/{part}:{part}", text, re.ASCII):
            raise UsageError(
                f"{text} does not name a benchmark: use ORG/NAME:TASK, with the data set's id on "
                "the Hub and the task's id in its eval.yaml."
            )
        return cls(*text.split(":"))


class Option(NamedTuple):
    """How a field of `Request` is given.

    Attributes:
        about: what it is, for helps.
        kind: what its value may be.
        metavar: what stands for the value in a help; None: its name, or its choices.
        group: ``subject`` (which model on which images), ``compute`` (how the logits are computed)
            or ``run`` (all else).
        default: of the field.
    """

    about: str
    kind: Kind
    metavar: str | None
    group: str
    default: Any


def _option(
    group: str, about: str, kind: Kind = text, metavar: str | None = None, default: Any = None
) -> Any:
    option = Option(about, kind, metavar, group, default)
    return field(default=default, metadata={"option": option})


_subject, _compute, _run = (partial(_option, group) for group in ("subject", "compute", "run"))


@dataclass(frozen=True, kw_only=True)
class Request:
    """One evaluation. An option that is None is chosen to suit the model or the machine.

    Without `output`, nothing is written: `eval.Evaluation.save` does it on demand. `forms` may also
    be a list. `command` is the command line, for the reports.

    Raises:
        UsageError: options that do not go together, or a value that is none of its kind.
    """

    data: Path | str | None = _subject(
        "the validation set: class folders, flat files, a tar or zip, Hugging Face's or "
        "WebDataset's shards, Kaggle's tree (docs/inputs.md)",
        path,
        "PATH",
    )
    demo: bool = _subject(
        "run the whole job on an embedded model with known answers; no ImageNet needed",
        flag,
        default=False,
    )
    variant: str | None = _subject(
        f"{', '.join(builtin_variants())} (default {DEFAULT_VARIANT})", metavar="NAME"
    )
    config: Path | str | None = _subject("your own configuration file instead", path, "FILE")
    model: str | None = _subject(
        "a classifier from a library instead: timm:NAME or torchvision:NAME", metavar="LIBRARY:NAME"
    )
    weights: Path | str = _subject(
        "a checkpoint (.pdparams, .safetensors, .pth, .pt) or an exported file (.onnx, .xml, "
        "...); default auto: from the cache, else downloaded",
        file_or_word,
        "FILE",
        default="auto",
    )
    weights_entry: str | None = _subject(
        "which of the models in a training checkpoint: state_dict_ema, model_ema, Student, ...",
        metavar="NAME",
    )
    output_name: str | None = _subject(
        "which output of an exported file has the logits (default the only one of the right shape)",
        metavar="NAME",
    )
    background_first: bool = _subject(
        "the first output is of a background class, as in TensorFlow's models: leave it out",
        flag,
        default=False,
    )
    forms: Sequence[str] | str | None = _subject(
        "unfused, reparameterized or both (default both, if the model has them)", read_forms, "LIST"
    )
    preprocess: Path | str | None = _subject(
        f"{', '.join(NAMED)} or {OWN} (the model's own; the default), with single steps as in "
        "torchvision,resize=235,interpolation=bicubic; or a file: preprocessor_config.json, "
        "inference.yml, or the same keys in .toml (docs/preprocessing.md)",
        read_preprocess,
        "RECIPE",
    )
    labels: Path | str | None = _subject(
        "a list of images and their classes: lines of `name index`, CSV or JSON", path, "FILE"
    )
    classes: Path | str | None = _subject(
        "classes other than ImageNet's 1000: a file with one class per line, in index order, "
        "the name of its folder first",
        path,
        "FILE",
    )
    image_set: str | None = _subject(
        "val: these images are the ILSVRC2012 validation set, although their names do not show it",
        OneOf(IMAGE_SETS, dict.fromkeys(("validation", "ilsvrc2012", "imagenet"), "val")),
    )
    folders: str | None = _subject(
        "what the numbers of numbered folders are: index (in the list of classes) or ilsvrc-id "
        "(of the devkit, from 1)",
        OneOf(FOLDERS),
    )
    timm_results: Path | str | None = _subject(
        "timm's table of results: show the row of the model", path, "FILE"
    )
    backend: str | None = _compute(
        "what computes the logits (default torch, or the exported file's own runtime)",
        metavar="NAME",
    )
    device: str = _compute("auto, cpu, cuda or cuda:N (default auto)", read_device, default="auto")
    precision: str = _compute("of the computation (default fp32)", PRECISION, default="fp32")
    batch_size: int | None = _compute(
        "batch size per worker",
        Whole(1, LARGEST_BATCH, "larger batches only take more memory"),
        "N",
    )
    processes: int | None = _compute(
        "processes, each with --workers threads (default 1; more with many cores and images)",
        Whole(1, MOST_PROCESSES, "each is a model of its own"),
        "N",
    )
    workers: int | None = _compute(
        "threads of each process (default one per core in all)", positive, "N"
    )
    limit: int | None = _run("only the first N images of a fixed shuffled order", read_limit, "N")
    tolerance: int | None = _run(
        "judge a timm or torchvision model by its published figures (of timm: --timm-results); "
        "the counts may differ by N images",
        Whole(0),
        "N",
    )
    on_bad_image: str = _run(
        "record: list it and count it as wrong; the verdict is INCOMPLETE then",
        OneOf(ON_BAD_IMAGE),
        default="fail",
    )
    cache: Path | str | None = _run("keep the decoded crops for later runs", path, "DIR")
    real_labels: bool = _run("also score against the ReaL labels", flag, default=False)
    output: Path | str | None = _run(
        "folder for the reports (default results/<variant>-<time>); name the same folder again "
        "to continue an interrupted run",
        path,
        "DIR",
    )
    stop_early: bool = _run(
        "end the run as soon as it is certain that the whole set would FAIL", flag, default=False
    )
    latency: bool = _run("also measure the time per image", flag, default=False)
    history: Path | str | None = _run("also append the summary to this CSV file", path, "FILE")
    model_card: Path | str | None = _run(
        "also write a complete result as the metadata of a Hugging Face model card", path, "FILE"
    )
    hub_benchmark: str | None = _run(
        "with --model-card: also write .eval_results/*.yaml beside FILE, for this benchmark on "
        "the Hugging Face Hub",
        metavar="ORG/NAME:TASK",
    )
    baseline: Path | str | None = _run(
        "at the end, compare with an earlier result", file_or_word, "PATH"
    )
    command: str = ""

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            value = getattr(self, name)
            if value is not None or option.default is not None:
                object.__setattr__(self, name, option.kind(option_name(name), value))
        self._check_together()

    def _check_together(self) -> None:
        """Exactly one model and one set of images, and what goes with them."""
        if self.demo == (self.data is not None):
            raise UsageError("Name a validation set with --data PATH, or use --demo (not both).")
        if self.demo and (self.variant or self.config or self.model or self.weights != "auto"):
            raise UsageError(
                "--demo brings its own model: omit --variant, --config, --model and --weights."
            )
        if self.demo and (self.output_name or self.background_first):
            raise UsageError(
                "--demo brings its own model: omit --output-name and --background-first."
            )
        if self.demo and (self.classes or self.labels):
            raise UsageError("--demo brings its own labels: omit --classes and --labels.")
        if self.image_set and (self.demo or self.classes):
            raise UsageError("--image-set is for ImageNet: omit it, or omit --demo and --classes.")
        if self.folders and self.demo:
            raise UsageError("--demo brings its own folders: omit --folders.")
        if self.folders == "ilsvrc-id" and self.classes:
            raise UsageError(
                "--folders ilsvrc-id is for ImageNet's classes: use --folders index, or omit "
                "--classes."
            )
        if self.config and self.variant:
            raise UsageError("--config and --variant both name a configuration: use one.")
        if self.model and self.variant:
            raise UsageError("--model and --variant both name a model: use one.")
        if self.weights_entry and self.weights == "auto":
            raise UsageError("--weights-entry is of a checkpoint: name that with --weights FILE.")
        if self.timm_results and not (self.model or "").startswith("timm:"):
            raise UsageError("--timm-results only applies to timm models: add --model timm:NAME.")
        if self.tolerance is not None and (not self.model or self.config):
            raise UsageError(
                "--tolerance is for --model timm:NAME or torchvision:NAME; a configuration has its "
                "own.\nOmit it, or write it under [tolerance] in a file for --config."
            )
        if self.classes and self.real_labels:
            raise UsageError(
                "--real-labels only applies to ImageNet's own classes: omit it, or omit --classes."
            )
        if self.hub_benchmark is not None:
            Benchmark.parse(self.hub_benchmark)
            if self.model_card is None:
                raise UsageError("--hub-benchmark writes beside --model-card FILE: name one.")
        if self.stop_early and self.limit is not None:
            raise UsageError("--stop-early is for runs of the whole set: omit --limit.")

    @cached_property
    def published(self) -> VariantConfig | None:
        """The configuration that was named: what is reported about the model."""
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

    def words(self, *groups: str) -> list[str]:
        """The words of a command line that give the options of some groups again."""
        found = []
        for name, option in options_of(*groups).items():
            value = getattr(self, name)
            if value is True:
                found.append(option_name(name))
            elif value != option.default:
                shown = ",".join(value) if isinstance(value, tuple) else str(value)
                found += [option_name(name), shown]
        return found

    def as_dict(self) -> dict[str, Any]:
        """The options as plain values, for ``run.json``."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


OPTIONS: Mapping[str, Option] = {
    row.name: row.metadata["option"] for row in fields(Request) if row.metadata
}


def option_name(name: str) -> str:
    """What a field is called on a command line."""
    return f"--{name.replace('_', '-')}"


def options_of(*groups: str) -> dict[str, Option]:
    """The options of some groups, in their order."""
    return {name: option for name, option in OPTIONS.items() if option.group in groups}


_ATTRIBUTES = "\n".join(f"        {name}: {option.about}." for name, option in OPTIONS.items())
Request.__doc__ = f"{Request.__doc__}\n    Attributes:\n{_ATTRIBUTES}\n"
