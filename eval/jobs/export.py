"""A model as files for deployment, each compared with torch before it gets its name."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eval.backends import BACKENDS, check_installed
from eval.backends.formats import EXPORTS
from eval.backends.onnx import export_onnx
from eval.errors import ModelError, UsageError
from eval.images.classes import read_classes
from eval.jobs.convert import Model, answers, compare_with_torch, make, move, sample_of
from eval.jobs.int8 import Calibration, quantize
from eval.measure.settings import exact_settings
from eval.models import Subject, open_source
from eval.progress import Event, Observer, ignore
from eval.request import Request

COMPARED = 32  # images


IMAGENET_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Export:
    """What is exported.

    Attributes:
        output: the folder for the files.
        formats: of `EXPORTS`.
        variant, config, model, weights, weights_entry, preprocess, classes: as of
            `eval.request.Request`.
        form: None: reparameterized, where the model has it.
        opset: of ONNX.
        images: a validation set to compare on; None: noise.
        calibrate: a validation set; with it, int8 files are made, too.
        calibration_images: how many of it are used.
        method: how int8 is calibrated; None: the best is measured.
        max_drop: the largest allowed top-1 drop of int8, as a share; None: any.
    """

    output: Path
    formats: Sequence[str] = ("onnx",)
    variant: str | None = None
    config: Path | None = None
    model: str | None = None
    weights: str | Path = "auto"
    weights_entry: str | None = None
    classes: Path | None = None
    preprocess: str | Path | None = None
    form: str | None = None
    opset: int = 18
    images: Path | None = None
    calibrate: Path | None = None
    calibration_images: int = 300
    method: str | None = None
    max_drop: float | None = None


def export(asked: Export, progress: Observer = ignore) -> None:
    """Make all files; see the module."""
    for name in asked.formats:
        check_installed(EXPORTS[name][0], converting=True)
    asked.output.mkdir(parents=True, exist_ok=True)
    with exact_settings(), tempfile.TemporaryDirectory(dir=asked.output, prefix=".export-") as name:
        folder = Path(name)
        subject, form = _subject(asked)
        model = _with_images(asked, subject, form)
        calibration = _calibration(asked, model, folder, progress)  # refused before minutes of work
        graph = _onnx_graph(model, asked.opset)
        (folder / "graph.onnx").write_bytes(graph)
        files = {}
        for kind in asked.formats:
            files[kind] = make(kind, model, folder)
            compare_with_torch(kind, files[kind], model, progress)
        made = list(files.values())
        if calibration:
            for kind, path in files.items():
                int8 = BACKENDS[EXPORTS[kind][0]].int8
                if not int8.methods:
                    progress(Event(message=f"{kind}: no int8 file: {int8.tool}"))
                    continue
                made.append(quantize(kind, path, calibration))
        for path in made:  # only now do the files get their names, all of them
            move(path, asked.output / path.name)
            progress(Event(message=str(asked.output / path.name)))
    progress(Event(message=f"{subject.weights}, {form}"))


def _subject(asked: Export) -> tuple[Subject, str]:
    """The model that was asked for, and its form."""
    request = Request(
        data=".",
        variant=asked.variant,
        config=asked.config,
        model=asked.model,
        weights=asked.weights,
        weights_entry=asked.weights_entry,
        forms=(asked.form,) if asked.form else None,
        preprocess=asked.preprocess,
    )
    source = open_source(request)
    classes = len(read_classes(asked.classes)) if asked.classes else IMAGENET_CLASSES
    subject = source.load(classes, ignore)
    form = "reparameterized" if "reparameterized" in subject.forms else next(iter(subject.forms))
    if isinstance(subject.forms[form], Path):
        raise UsageError(f"--weights {asked.weights} is an exported file: name a checkpoint.")
    if subject.precision is not None:
        raise ModelError(
            f"{subject.weights} has {subject.precision}; exported files would hold the rounded "
            "values as fp32, and nothing would show it.\nExport the fp32 checkpoint."
        )
    return subject, form


def _with_images(asked: Export, subject: Subject, form: str) -> Model:
    """Torch's answers on the images to compare on."""
    model, preprocess = subject.forms[form], subject.preprocess
    assert not isinstance(model, Path)
    if asked.images:
        crops, _ = sample_of(asked.images, COMPARED, preprocess)
        shown = f"images of {asked.images}"
    else:
        size = (COMPARED, preprocess.size, preprocess.size, 3)
        crops, shown = np.random.default_rng(0).integers(0, 256, size, np.uint8), "images of noise"
    return Model(model, preprocess, crops, shown, answers("torch", model, preprocess, crops))


def _calibration(
    asked: Export, model: Model, folder: Path, progress: Observer
) -> Calibration | None:
    if not asked.calibrate:
        return None
    return Calibration.read(
        model,
        folder,
        asked.calibrate,
        images=asked.calibration_images,
        method=asked.method,
        max_drop=asked.max_drop,
        progress=progress,
    )


def _onnx_graph(model: Model, opset: int) -> bytes:
    """The model as ONNX, checked."""
    import onnx

    graph = export_onnx(model.model, opset, model.preprocess.size)
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    return graph
