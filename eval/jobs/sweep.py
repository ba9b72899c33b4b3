"""Models, forms, backends, precisions and preprocessings: one evaluation each, and a table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eval.backends import BACKENDS, Task
from eval.backends.formats import RUNTIMES, is_exported, precision_of
from eval.cli import CRASHED
from eval.config import load_variant
from eval.errors import EvalError, UsageError
from eval.files import write_atomically
from eval.images.cache import CropCache
from eval.images.sets import ImageSet
from eval.jobs.evaluate import evaluate
from eval.measure.cores import choose_batch_size, choose_processes, choose_workers
from eval.measure.engine import Engine
from eval.measure.settings import exact_settings
from eval.measure.setup import open_data
from eval.models import choose_preprocess, open_source
from eval.models.exported import EXPORTED
from eval.progress import Event, Observer
from eval.request import Request
from eval.results.console import format_evaluation
from eval.results.drawing import Figure, save
from eval.results.evaluation import Evaluation
from eval.results.schema import CONSOLE_FILE

COLUMNS = (
    *("name", "variant", "weights", "form", "backend", "precision", "preprocess", "images"),
    *("top1_correct", "top5_correct", "top1", "top5", "flips", "images_per_second", "megabytes"),
    *("latency_ms", "verdict", "exit_code", "output"),
)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is compared; see `Request` for what is the same in all rows.

    Attributes:
        variants: built-in configurations, or ``LIBRARY:NAME``.
        weights: the variant that a file is of, or None, and the file or ``auto``.
        forms, backends, precisions, preprocesses: as on the command line.
        output: the folder for the table and the reports.
        cache: for the crops.
    """

    data: Path
    variants: Sequence[str]
    weights: Sequence[tuple[str | None, str]]
    forms: Sequence[str]
    backends: Sequence[str]
    precisions: Sequence[str]
    preprocesses: Sequence[str]
    output: Path
    cache: Path
    limit: int | None = None
    labels: Path | None = None
    image_set: str | None = None
    folders: str | None = None
    weights_entry: str | None = None
    output_name: str | None = None
    background_first: bool = False
    on_bad_image: str = "fail"
    latency: bool = False
    command: str = ""


@dataclass(frozen=True)
class Combination:
    """One row: a model, its form, and how it is computed.

    Attributes:
        model: what to call the weights among those of the sweep.
        variant: a built-in configuration, or ``LIBRARY:NAME``.
        weights: a file, or ``auto``.
        form: "" for an exported file.
        backend, precision, preprocess: as on the command line.
    """

    model: str
    variant: str
    weights: str
    form: str
    backend: str
    precision: str
    preprocess: str

    @property
    def words(self) -> tuple[str, ...]:
        """What tells it from others."""
        words = (self.model, self.form, self.backend, self.precision, self.preprocess)
        return tuple(word for word in words if word)

    @property
    def name(self) -> str:
        """Of its folder."""
        return "-".join(self.words).replace("/", "_").replace(":", "-")

    def request(self, asked: Sweep) -> Request:
        """The evaluation of this row."""
        library = ":" in self.variant
        exported = is_exported(self.weights)
        of_kind = (
            {"output_name": asked.output_name, "background_first": asked.background_first}
            if exported
            else {"weights_entry": asked.weights_entry}
        )
        return Request(
            data=asked.data,
            variant=None if library else self.variant,
            model=self.variant if library else None,
            weights=self.weights,
            forms=self.form or None,
            backend=self.backend,
            precision="fp32" if exported else self.precision,
            preprocess=self.preprocess,
            **of_kind,
            limit=asked.limit,
            labels=asked.labels,
            image_set=asked.image_set,
            folders=asked.folders,
            on_bad_image=asked.on_bad_image,
            cache=asked.cache,
            output=asked.output / self.name,
            latency=asked.latency,
            command=asked.command,
        )


def combinations(asked: Sweep) -> tuple[list[Combination], list[str]]:
    """All that were asked for and exist, in the order of the options, and what does not exist.

    The official runtime comes first among the rows of a recipe: what differs from it is counted.
    """
    planned, left_out = [], []
    for preprocess, (owner, weights) in itertools.product(asked.preprocesses, asked.weights):
        for variant in [owner] if owner else asked.variants:
            model = _model_name(asked, variant, weights)
            if is_exported(weights):
                for backend in RUNTIMES[Path(weights).suffix.lower()]:
                    if backend in asked.backends:
                        precision = precision_of(Path(weights))
                        row = (model, variant, weights, "", backend, precision, preprocess)
                        planned.append(Combination(*row))
                continue
            for form, backend, precision in itertools.product(
                asked.forms, asked.backends, asked.precisions
            ):
                if precision in BACKENDS[backend].precisions:
                    row = (model, variant, weights, form, backend, precision, preprocess)
                    planned.append(Combination(*row))
                else:
                    left_out.append(f"{backend} has no {precision} here")
    if not planned:
        raise UsageError(
            f"Nothing is left to run: {'; '.join(left_out) or 'no backend runs these files'}."
        )
    planned.sort(  # by recipe they are in order already
        key=lambda row: (
            asked.preprocesses.index(row.preprocess),
            not BACKENDS[row.backend].official,
        )
    )
    if len({row.name for row in planned}) < len(planned):
        raise UsageError("--weights: two files have the same name. Rename one of them.")
    return planned, left_out


def _model_name(asked: Sweep, variant: str, weights: str) -> str:
    """As short as it can be without being another's: the variant, the file, or both."""
    alike = [
        file
        for owner, file in asked.weights
        if is_exported(file) == is_exported(weights) and owner in (None, variant)
    ]
    if is_exported(weights):
        names = [variant, Path(weights).name] if len(asked.variants) > 1 else [Path(weights).name]
    else:
        names = [variant, Path(weights).name] if len(alike) > 1 else [variant]
    return "-".join(names)


Row = tuple[dict[str, Any], str]  # of the table, and the error that ended it


def start(
    asked: Sweep, planned: Sequence[Combination], progress: Observer
) -> tuple[ImageSet, Iterator[Row]]:
    """Fill the cache, then evaluate each combination; one that fails does not end the others.

    Returns:
        Which set the images are of; and the rows, as they are measured. ``sweep.csv`` is written
        after the last one.
    """
    requests = [row.request(asked) for row in planned]
    return fill_cache(requests, progress), _rows(planned, requests, progress)


def fill_cache(requests: Sequence[Request], progress: Observer) -> ImageSet:
    """Decode each image once for each preprocessing; which set they are of.

    What is bad is left to the runs.
    """
    first = requests[0]
    assert first.data is not None
    valset = open_data(first, Path(first.data))
    if first.limit is not None:
        valset = valset.limited(first.limit)
    pipelines = {}
    for request in requests:
        preprocess = choose_preprocess(open_source(request))
        pipelines[preprocess.name, preprocess.description] = preprocess
    cpu = torch.device("cpu")
    processes = choose_processes(len(valset.samples), cpu)
    workers = choose_workers(processes)
    with exact_settings():
        for preprocess in pipelines.values():
            # A run without a model.
            task = Task("torch", {}, preprocess, cpu, "fp32", choose_batch_size(cpu), workers)
            with (
                CropCache(Path(str(first.cache)), valset, preprocess) as cache,
                closing(Engine(task, progress, processes)) as engine,
            ):
                stage = f"decoding, {preprocess.name}"
                engine.measure(valset, record_bad=True, cache=cache, stage=stage)
    return valset.image_set


def row_of(combination: Combination, output: Path, evaluation: Evaluation) -> dict[str, Any]:
    """A row of the table."""
    (result,) = evaluation.judgment.forms
    return {
        **_asked(combination, output),
        "images": result.images,
        "top1_correct": result.correct[1],
        "top5_correct": result.correct[5],
        "top1": result.accuracy(1),
        "top5": result.accuracy(5),
        "images_per_second": evaluation.measured.images_per_second,
        "megabytes": sum(file.size for file in evaluation.subject.files) / 1e6,
        "latency_ms": _latency(evaluation),
        "verdict": result.verdict.value,
        "exit_code": evaluation.exit_code,
    }


def _latency(evaluation: Evaluation) -> float | None:
    """Median milliseconds of one image, the model alone on one thread; None if not measured."""
    rows = [r for r in evaluation.latency if r.threads == 1 and r.stage == "model"]
    return rows[0].median_ms if rows else None


def _asked(combination: Combination, output: Path) -> dict[str, Any]:
    named = {"name": combination.name, "form": combination.form or EXPORTED}
    return {**vars(combination), **named, "output": str(output)}


def table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """What a person reads; `names` are short ones, for each row."""
    width = max(len(name) for name in names)
    header = f"{'':{width}} {'top-1':>7} {'correct':>7} {'top-5':>7} {'correct':>7} {'flips':>5} "
    lines = [f"{header}{'img/s':>6} {'ms':>6} {'MB':>5} verdict"]
    for name, row in zip(names, rows, strict=True):
        if "top1" not in row:
            lines.append(f"{name:{width}} failed with exit code {row['exit_code']}")
            continue
        rate = "" if row["images_per_second"] is None else f"{row['images_per_second']:.1f}"
        latency = "" if row["latency_ms"] is None else f"{row['latency_ms']:.2f}"
        lines.append(
            f"{name:{width}} {row['top1']:7.3f} {row['top1_correct']:7,} {row['top5']:7.3f} "
            f"{row['top5_correct']:7,} {row['flips']:5,} {rate:>6} {latency:>6} "
            f"{row['megabytes']:5.1f} {row['verdict']}"
        )
    return "\n".join(lines)


def short_names(planned: Sequence[Combination]) -> list[str]:
    """The words in which the rows of a table differ."""
    columns = [
        [getattr(row, field) for row in planned]
        for field in ("model", "form", "backend", "precision", "preprocess")
    ]
    differing = [column for column in columns if len(set(column)) > 1] or columns[:1]
    return [" ".join(word for word in words if word) for words in zip(*differing, strict=True)]


def reported(variants: Sequence[str], image_set: ImageSet) -> Iterator[str]:
    """What was reported of the built-in variants on a set, and third-party results."""
    for variant in (load_variant(name) for name in variants if ":" not in name):
        reference = variant.reference_for("") if image_set.is_judged else None
        others = variant.others_on(image_set.name)
        rows = [(row.name, row.top1, row.top5, row.source) for row in others]
        if reference and reference.top1 is not None:
            rows.insert(0, ("reported", reference.top1, reference.top5, reference.source))
        for name, top1, top5, source in rows:
            yield f"{variant.name}, {name}: {top1} / {'-' if top5 is None else top5} ({source})"


MARKERS = "osD^v<>PX*ph"


def plot(rows: Sequence[Mapping[str, Any]], names: Sequence[str], path: Path) -> None:
    """Draw accuracy against latency, a point for each row that has both."""
    points = [(n, r) for n, r in zip(names, rows, strict=True) if r.get("latency_ms") is not None]
    if not points:
        raise UsageError("--plot: there is nothing to draw, as no row was measured.")
    figure = Figure(figsize=(8, 4.5 + 0.12 * len(points)), layout="constrained")
    axes = figure.subplots()
    for number, (name, row) in enumerate(points):  # names stand below: points lie close together
        axes.plot(
            row["latency_ms"],
            row["top1"],
            linestyle="",
            marker=MARKERS[number % len(MARKERS)],
            color=f"C{number % 10}",
            alpha=0.8,
            label=name.replace("$", r"\$"),
        )
    axes.set_xlim(left=0)
    axes.margins(y=0.15)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    axes.set(xlabel="median latency of one image on one thread, ms", ylabel="top-1 accuracy, %")
    axes.grid(alpha=0.3)
    save(figure, path)


def _rows(
    planned: Sequence[Combination], requests: Sequence[Request], progress: Observer
) -> Iterator[Row]:
    """Evaluate each combination."""
    first: dict[tuple[str, str], Any] = {}
    for number, (combination, request) in enumerate(zip(planned, requests, strict=True), 1):
        progress(Event(message=f"{number} of {len(planned)}: {combination.name}"))
        yield _row(combination, request, first)


def _row(combination: Combination, request: Request, first: dict[tuple[str, str], Any]) -> Row:
    """Evaluate one combination; `first` has the predictions of the first row of each pixels."""
    output = Path(str(request.output))
    try:
        evaluation = evaluate(request)
    except EvalError as error:
        return {**_asked(combination, output), "exit_code": error.exit_code}, str(error)
    except Exception as error:  # a runtime that crashes must not take the other rows along
        told = f"{type(error).__name__}: {error}"
        return {**_asked(combination, output), "exit_code": CRASHED}, told
    write_atomically(output / CONSOLE_FILE, format_evaluation(evaluation) + "\n")
    (scores,) = evaluation.measured.scores.values()
    best = scores.top[:, 0]
    pixels = combination.variant, evaluation.subject.preprocess.description
    flips = int((best != first.setdefault(pixels, best)).sum())
    return {**row_of(combination, output, evaluation), "flips": flips}, ""
