"""A model as an ONNX file, and as OpenVINO IR, for deployment.

    export_onnx.py --variant base --output base.onnx
    export_onnx.py --weights F.pdparams --variant base --output base.onnx --openvino base.xml
    export_onnx.py --variant base --output base.onnx --int8 base-int8.onnx --calibrate PHOTOS

The file is checked with onnx, and its answers are compared with torch's, before it gets its name:
on the images of ``--images`` (a val set in any layout), or on noise where none are named.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.command import run_command
from eval.errors import ModelError, UsageError

WITHIN = 1e-3  # of the largest logit
COMPARED = 32  # images


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--variant", default="base_ssld", help="default %(default)s")
    add("--weights", default="auto", help="a file; default auto: the cache, else download")
    add("--form", choices=("reparameterized", "unfused"), default="reparameterized")
    add("--opset", type=int, default=18, help="default %(default)s: the exporter's own")
    add("--output", type=Path, required=True, metavar="F.onnx")
    add("--openvino", type=Path, metavar="F.xml", help="OpenVINO IR of the same graph, too")
    add("--int8", type=Path, metavar="F", help="int8, too: .onnx (ONNX Runtime) or .xml (NNCF)")
    add("--calibrate", type=Path, metavar="PATH", help="val set to calibrate int8 on")
    add("--calibration-images", type=int, default=300, help="default %(default)s")
    add("--images", type=Path, metavar="PATH", help="val set to compare the answers on")
    add("--preprocess", choices=("torchvision", "paddle", "squash"), default="torchvision")
    args = parser.parse_args(arguments)
    for path, ending in ((args.output, (".onnx",)), (args.openvino, (".xml",)),
                         (args.int8, (".onnx", ".xml"))):  # fmt: skip
        if path and path.suffix not in ending:
            raise UsageError(f"{path}: the name must end in {' or '.join(ending)}.")
    if (args.int8 is None) != (args.calibrate is None):
        raise UsageError("--int8 and --calibrate go together: int8 needs images to calibrate on.")
    return args


def crops_of(path: Path, count: int, preprocess: str) -> np.ndarray:
    """Crops of the first images of a val set's fixed shuffled order."""
    from eval.images.preprocess import PREPROCESS
    from eval.images.valset import open_valset

    valset = open_valset(path).limited(count)
    crop = PREPROCESS[preprocess].crop
    return np.stack([crop(valset.read(sample.path)) for sample in valset.samples])


def export(args: argparse.Namespace) -> None:
    """Make the files, each under its name only when it is whole and its answers are right."""
    import onnx
    import torch

    from eval.backends import create_predictor
    from eval.backends.onnx import export_onnx
    from eval.backends.quantize import batches, quantize_onnx, quantize_openvino
    from eval.imagenet import load_forms, parse_options
    from eval.images.preprocess import PREPROCESS

    words = ["--data", ".", "--variant", args.variant, "--weights", args.weights]
    loaded, models = load_forms(parse_options([*words, "--forms", args.form, "--quiet"]))
    model = models[args.form]
    graph = export_onnx(model, args.opset)
    proto = onnx.load_from_string(graph)
    onnx.checker.check_model(proto, full_check=True)

    if args.images:
        crops, what = crops_of(args.images, COMPARED, args.preprocess), f"of {args.images}"
    else:
        crops = np.random.default_rng(0).integers(0, 256, (COMPARED, 224, 224, 3), np.uint8)
        what = "of noise"
    preprocess, cpu = PREPROCESS[args.preprocess], torch.device("cpu")

    def answers(backend: str, what: torch.nn.Module | Path) -> np.ndarray:
        predictor = create_predictor(
            backend, {"": what}, preprocess, cpu, "fp32", batch_size=COMPARED, workers=1
        )
        return np.asarray(predictor(crops)[""])

    expected = answers("torch", model)

    def compare(path: Path, backend: str) -> None:
        found = answers(backend, path)
        difference = float(np.abs(found - expected).max() / np.abs(expected).max())
        same = int((found.argmax(1) == expected.argmax(1)).sum())
        if not difference < WITHIN or same < len(crops):
            raise ModelError(
                f"{path.name}: its answers in {backend} are not torch's: {len(crops) - same} of "
                f"{len(crops)} images {what} get another class, logits differ by {difference:.2g} "
                "of the largest.\nNothing was written; try another --opset."
            )
        print(
            f"{backend}: {len(crops)} images {what}, the same classes, logits within "
            f"{difference:.1e} of the largest"
        )

    for path in filter(None, (args.output, args.openvino, args.int8)):
        path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output.parent) as name:
        folder = Path(name)
        exported = folder / "model.onnx"
        exported.write_bytes(graph)
        compare(exported, "onnxruntime")
        made = [(exported, args.output)]
        if args.openvino:
            import openvino

            openvino.save_model(
                openvino.Core().read_model(exported), folder / "ir.xml", compress_to_fp16=False
            )
            compare(folder / "ir.xml", "openvino")
            made += [(folder / "ir.bin", args.openvino.with_suffix(".bin"))]
            made += [(folder / "ir.xml", args.openvino)]
        if args.int8:
            calibration = batches(
                crops_of(args.calibrate, args.calibration_images, args.preprocess), preprocess
            )
            quantize = quantize_onnx if args.int8.suffix == ".onnx" else quantize_openvino
            quantize(exported, folder / f"int8{args.int8.suffix}", calibration)
            if args.int8.suffix == ".xml":
                made += [(folder / "int8.bin", args.int8.with_suffix(".bin"))]
            made += [(folder / f"int8{args.int8.suffix}", args.int8)]
            print(f"int8 calibrated on {len(calibration)} images of {args.calibrate}")
        for source, target in made:
            source.replace(target)
            print(f"{target}: {target.stat().st_size:,} bytes")
    print(f"{loaded.source}, {args.form}, opset {proto.opset_import[0].version}, dynamic batch")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; exit codes as of ``python -m eval.imagenet``."""
    return run_command(_run, arguments)


def _run(arguments: Sequence[str]) -> int:
    export(parse(list(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
