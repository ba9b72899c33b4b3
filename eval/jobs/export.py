"""A model as files for deployment, each compared with torch before it gets its name."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.backends import BACKENDS, check_installed
from eval.backends.formats import EXPORTS
from eval.backends.onnx import export_onnx
from eval.errors import UsageError
from eval.images.classes import read_classes
from eval.jobs.convert import Model, answers, compare, make, move, read_crops
from eval.jobs.int8 import Calibration, quantize
from eval.measure.settings import exact_settings
from eval.models import Subject, open_source
from eval.progress import ignore
from eval.request import Request

COMPARED = 32  # images


IMAGENET_CLASSES = 1000


def export(args: argparse.Namespace) -> None:
    """Make all files; see the module."""
    for name in args.format:
        check_installed(EXPORTS[name][0], converting=True)
    args.output.mkdir(parents=True, exist_ok=True)
    with exact_settings(), tempfile.TemporaryDirectory(dir=args.output, prefix=".export-") as name:
        folder = Path(name)
        subject, form = _subject(args)
        model = _with_images(args, subject, form)
        graph = _onnx_graph(model, args.opset)
        (folder / "graph.onnx").write_bytes(graph)
        files = {}
        for kind in args.format:
            files[kind] = make(kind, model, folder)
            compare(kind, files[kind], model)
        made = list(files.values())
        if args.int8:
            calibration = Calibration.read(args, model, folder)
            for kind, path in files.items():
                int8 = BACKENDS[EXPORTS[kind][0]].int8
                if not int8.methods:
                    print(f"{kind}: no int8 file: {int8.tool}")
                    continue
                made.append(quantize(kind, path, calibration))
        _name(made, args.output)
    print(f"{subject.weights}, {form}")


def _subject(args: argparse.Namespace) -> tuple[Subject, str]:
    """The model that was asked for, and its form."""
    request = Request(
        data=".",
        variant=args.variant,
        config=args.config,
        model=args.model,
        weights=args.weights,
        forms=(args.form,) if args.form else None,
        preprocess=args.preprocess,
    )
    source = open_source(request)
    classes = len(read_classes(args.classes)) if args.classes else IMAGENET_CLASSES
    subject = source.load(classes, ignore)
    form = "reparameterized" if "reparameterized" in subject.forms else next(iter(subject.forms))
    if isinstance(subject.forms[form], Path):
        raise UsageError(f"--weights {args.weights} is an exported file: name a checkpoint.")
    return subject, form


def _with_images(args: argparse.Namespace, subject: Subject, form: str) -> Model:
    """Torch's answers on the images to compare on."""
    model, preprocess = subject.forms[form], subject.preprocess
    assert not isinstance(model, Path)
    if args.images:
        crops, _ = read_crops(args.images, COMPARED, preprocess)
        shown = f"images of {args.images}"
    else:
        size = (COMPARED, preprocess.size, preprocess.size, 3)
        crops, shown = np.random.default_rng(0).integers(0, 256, size, np.uint8), "images of noise"
    return Model(model, preprocess, crops, shown, answers("torch", model, preprocess, crops))


def _onnx_graph(model: Model, opset: int) -> bytes:
    """The model as ONNX, checked."""
    import onnx

    graph = export_onnx(model.model, opset, model.preprocess.size)
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    return graph


def _name(made: Sequence[Path], output: Path) -> None:
    """Only now do the files get their names, all of them."""
    for path in made:
        move(path, output / path.name)
        print(output / path.name)
