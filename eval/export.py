"""``python -m eval.export``: a model as files for deployment.

Each file gets its name only when it is whole and its answers are those of torch: on the images of
``--images`` (a validation set in any layout), or on noise where none are named. int8 files are
compared by how many best classes agree; the way their ranges are found is chosen by measuring on
images that were held out from the calibration.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eval.cli import program
from eval.command import run_command
from eval.errors import ModelError, UsageError
from eval.options import positive
from eval.request import FORMS, PREPROCESSES, Request

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from eval.images.preprocess import Crop, Preprocess
    from eval.models import Subject

# What can be written: its backend, and the ending of the file.
FORMATS = {
    "onnx": ("onnxruntime", ".onnx"),
    "openvino": ("openvino", ".xml"),
    "litert": ("litert", ".tflite"),
    "ncnn": ("ncnn", ".ncnn.param"),
    "mnn": ("mnn", ".mnn"),
    "executorch": ("executorch", ".pte"),
}
WITHIN = 1e-3  # of the largest logit
COMPARED = 32  # images
IMAGENET_CLASSES = 1000
HELD_OUT = 0.25  # share of the calibration images that is kept for choosing


@dataclass(frozen=True)
class Model:
    """What is exported, and the images that it is compared on.

    Attributes:
        model: the torch model.
        preprocess: its own.
        crops: uint8 (B, size, size, 3).
        shown: what the images are, for messages.
        expected: torch's logits of them.
    """

    model: nn.Module
    preprocess: Preprocess
    crops: Crop
    shown: str
    expected: NDArray[np.float32]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line.

    Raises:
        UsageError: options that do not go together.
    """
    parser = argparse.ArgumentParser(
        prog=program("export"),
        description="Export a model for deployment, and compare each file with torch.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--variant", metavar="NAME", help="a built-in configuration; default base_ssld")
    add("--config", type=Path, metavar="FILE", help="a configuration file instead")
    add("--model", metavar="LIBRARY:NAME", help="timm:NAME or torchvision:NAME instead")
    add("--weights", default="auto", metavar="FILE", help="default auto: the cache, else download")
    add("--classes", type=Path, metavar="FILE", help="its classes, if not ImageNet's 1000")
    add("--form", choices=FORMS, help="default: reparameterized, where the model has it")
    add("--format", default="onnx", metavar="LIST", help=f"of {', '.join(FORMATS)}; default onnx")
    add("--opset", type=positive, default=18, metavar="N", help="of ONNX (default %(default)s)")
    add("--preprocess", choices=PREPROCESSES, help="default: the model's own")
    add("--images", type=Path, metavar="PATH", help="images to compare on; default noise")
    add("--int8", action="store_true", help="also write int8 files")
    add("--calibrate", type=Path, metavar="PATH", help="validation set to calibrate int8 on")
    add(
        "--calibration-images",
        type=positive,
        default=300,
        metavar="N",
        help="how many of them to use (default %(default)s)",
    )
    add("--method", metavar="NAME", help="how int8 ranges are found; default: the best is measured")
    add("--max-drop", metavar="PP", help="largest loss of top-1 by int8, such as 0.5pp")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the files")
    args = parser.parse_args(arguments)
    args.format = args.format.split(",")
    unknown = [name for name in args.format if name not in FORMATS]
    if unknown:
        raise UsageError(f"--format {','.join(unknown)}: use {', '.join(FORMATS)}.")
    if args.int8 != (args.calibrate is not None):
        raise UsageError("--int8 and --calibrate go together: int8 needs images to calibrate on.")
    args.max_drop = _points(args.max_drop)
    if not args.int8 and (args.max_drop is not None or args.method):
        raise UsageError("--max-drop and --method only apply to int8: add --int8.")
    if args.method:
        _check_method(args.method, args.format)
    return args


def _check_method(method: str, formats: Sequence[str]) -> None:
    """Refuse, before anything is converted, a method that a quantiser does not have.

    Raises:
        UsageError: there is one of these formats for which int8 can be made, but not so.
    """
    from eval.backends.quantize import QUANTISERS

    for kind in formats:
        methods = QUANTISERS[FORMATS[kind][0]].methods
        if methods and method not in methods:
            raise UsageError(f"--method {method}: {kind} has {', '.join(methods)}.")


def _points(text: str | None) -> float | None:
    """``0.5pp`` as a share."""
    if text is None:
        return None
    try:
        points = float(text.removesuffix("pp"))
    except ValueError:
        points = -1.0
    if not 0 <= points <= 100:
        raise UsageError(f"--max-drop {text}: write percentage points, such as 0.5pp.")
    return points / 100


def export(args: argparse.Namespace) -> None:
    """Make all files; see the module."""
    from eval.backends import check_installed
    from eval.measure.settings import exact_settings

    for name in args.format:
        check_installed(FORMATS[name][0], converting=True)
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
            from eval.backends.quantize import QUANTISERS
            from eval.int8 import Calibration, quantize

            calibration = Calibration.read(args, model, folder)
            for kind, path in files.items():
                tool = QUANTISERS[FORMATS[kind][0]]
                if not tool.function:
                    print(f"{kind}: no int8 file: {tool.tool}")
                    continue
                made.append(quantize(kind, path, calibration))
        _name(made, args.output)
    print(f"{subject.weights}, {form}")


def _subject(args: argparse.Namespace) -> tuple[Subject, str]:
    """The model that was asked for, and its form."""
    from eval.images.classes import read_classes
    from eval.measure.progress import ignore
    from eval.models import open_source

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
    import numpy as np

    model, preprocess = subject.forms[form], subject.preprocess
    assert not isinstance(model, Path)
    if args.images:
        crops, _ = read_crops(args.images, COMPARED, preprocess)
        shown = f"images of {args.images}"
    else:
        size = (COMPARED, preprocess.size, preprocess.size, 3)
        crops, shown = np.random.default_rng(0).integers(0, 256, size, np.uint8), "images of noise"
    return Model(model, preprocess, crops, shown, answers("torch", model, preprocess, crops))


def read_crops(path: Path, count: int, preprocess: Preprocess) -> tuple[Crop, list[int]]:
    """Crops and labels of the first images of a validation set's fixed shuffled order."""
    import numpy as np

    from eval.images.valset import open_valset

    valset = open_valset(path)
    if count < len(valset.samples):
        valset = valset.limited(count)
    crops = np.stack([preprocess.crop(valset.read(sample.path)) for sample in valset.samples])
    return crops, [sample.label for sample in valset.samples]


def answers(
    backend: str, model: nn.Module | Path, preprocess: Preprocess, crops: Crop
) -> NDArray[np.float32]:
    """Logits of a model or of a file."""
    import numpy as np
    import torch

    from eval.backends import create_predictor

    cpu, size = torch.device("cpu"), 8
    predictor = create_predictor(
        backend, {"": model}, preprocess, cpu, "fp32", batch_size=size, workers=1
    )
    parts = [predictor(crops[start : start + size])[""] for start in range(0, len(crops), size)]
    return np.concatenate(parts)


def _onnx_graph(model: Model, opset: int) -> bytes:
    """The model as ONNX, checked."""
    import onnx

    from eval.backends.onnx import export_onnx

    graph = export_onnx(model.model, opset, model.preprocess.size)
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    return graph


def make(kind: str, model: Model, folder: Path) -> Path:
    """Write the fp32 file of a format: ``model`` and its ending, in `folder`."""
    import importlib

    from eval.backends import BACKENDS, child

    backend, ending = FORMATS[kind]
    graph, path = folder / "graph.onnx", folder / f"model{ending}"
    if kind == "onnx":
        shutil.copy(graph, path)
    elif kind == "openvino":
        import openvino

        openvino.save_model(openvino.Core().read_model(graph), path, compress_to_fp16=False)
    elif kind == "mnn":
        child.call(
            "MNN's converter",
            "eval.backends.mnn:convert_file",
            source=str(graph),
            target=str(path),
        )
    else:
        module = importlib.import_module(BACKENDS[backend].module)
        work = folder / f"{kind}-parts"
        work.mkdir()
        (made,) = module.sources(model.model, work, [1], model.preprocess.size).values()
        move(made, path)
    return path


def compare(kind: str, path: Path, model: Model) -> None:
    """Print how near a file's answers are to torch's.

    Raises:
        ModelError: they differ by more than rounding.
    """
    import numpy as np

    from eval.models.exported import size_of

    backend, _ = FORMATS[kind]
    found = answers(backend, path, model.preprocess, model.crops)
    largest = float(np.abs(model.expected).max())
    difference = float(np.abs(found - model.expected).max()) / largest
    other = int((found.argmax(1) != model.expected.argmax(1)).sum())
    if not difference < WITHIN or other:
        raise ModelError(
            f"{path.name}: its answers in {backend} are not torch's: {other} of {len(found)} "
            f"{model.shown} get another class, logits differ by {difference:.2g} of the largest.\n"
            "Nothing was written; try another format."
        )
    print(
        f"{path.name}: {size_of(path):,} bytes; {len(found)} {model.shown}: the same classes in "
        f"{backend}, logits within {difference:.1e} of the largest"
    )


def move(path: Path, target: Path) -> None:
    """A model's files to their place; the one that names the others last."""
    from eval.models.exported import companions

    for beside in companions(path):
        beside.replace(target.with_suffix(beside.suffix))
    path.replace(target)


def _name(made: Sequence[Path], output: Path) -> None:
    """Only now do the files get their names, all of them."""
    for path in made:
        move(path, output / path.name)
        print(output / path.name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; exit codes as of ``python -m eval.imagenet``."""
    return run_command(_main, argv)


def _main(arguments: Sequence[str]) -> int:
    export(parse(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
