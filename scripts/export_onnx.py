"""The old name of ``python -m eval.export``, for one more release.

export_onnx.py --variant base --output base.onnx
export_onnx.py --weights F.pdparams --variant base --output base.onnx --openvino base.xml
export_onnx.py --variant base --output base.onnx --int8 base-int8.onnx --calibrate PHOTOS
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval import export
from eval.cli import run_command
from eval.errors import UsageError
from eval.jobs.convert import move
from eval.jobs.export import export as make

_SAME = ("variant", "weights", "form", "opset", "images", "preprocess")
_INT8 = {".onnx": ("onnx", "minmax"), ".xml": ("openvino", "default")}  # as it always was


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="The old name of python -m eval.export.", allow_abbrev=False
    )
    add = parser.add_argument
    add("--variant", default="base_ssld", help="default %(default)s")
    add("--weights", default="auto", help="a file; default auto: the cache, else download")
    add("--form", choices=("reparameterized", "unfused"), default="reparameterized")
    add("--opset", type=int, default=18, help="default %(default)s: the exporter's own")
    add("--output", type=Path, required=True, metavar="F.onnx")
    add("--openvino", type=Path, metavar="F.xml", help="OpenVINO IR of the same graph, too")
    add("--int8", type=Path, metavar="F", help="int8, too: .onnx (ONNX Runtime) or .xml (NNCF)")
    add("--calibrate", type=Path, metavar="PATH", help="images to calibrate int8 on")
    add("--calibration-images", type=int, default=300, help="default %(default)s")
    add("--images", type=Path, metavar="PATH", help="images to compare the answers on")
    add("--preprocess", metavar="RECIPE", help="as of python -m eval.imagenet")
    args = parser.parse_args(arguments)
    for path, ending in ((args.output, (".onnx",)), (args.openvino, (".xml",)),
                         (args.int8, (".onnx", ".xml"))):  # fmt: skip
        if path and path.suffix not in ending:
            raise UsageError(f"{path}: the name must end in {' or '.join(ending)}.")
    if (args.int8 is None) != (args.calibrate is None):
        raise UsageError("--int8 and --calibrate go together: int8 needs images to calibrate on.")
    return args


def _run(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    print("scripts/export_onnx.py is deprecated: use python -m eval.export", file=sys.stderr)
    words = []
    for name in _SAME:
        value = getattr(args, name)
        if value is not None:
            words += [f"--{name}", str(value)]
    plain = ["--format", "onnx,openvino" if args.openvino else "onnx"]
    _export([*words, *plain], {".onnx": args.output, ".xml": args.openvino}, "model")
    if args.int8:
        kind, method = _INT8[args.int8.suffix]
        words += ["--format", kind, "--int8", "--method", method]
        words += ["--calibrate", str(args.calibrate)]
        words += ["--calibration-images", str(args.calibration_images)]
        _export(words, {args.int8.suffix: args.int8}, "model-int8")
    return 0


def _export(words: Sequence[str], targets: Mapping[str, Path | None], stem: str) -> None:
    """Export into a folder, and give its files the names that were asked for."""
    wanted = {suffix: path for suffix, path in targets.items() if path}
    for path in wanted.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    beside = next(iter(wanted.values())).parent
    with tempfile.TemporaryDirectory(dir=beside, prefix=".export-") as folder:
        make(export.parse([*words, "--output", folder]), export.show)
        for suffix, path in wanted.items():
            move(Path(folder) / f"{stem}{suffix}", path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; exit codes as of ``python -m eval.imagenet``."""
    return run_command(_run, arguments)


if __name__ == "__main__":
    sys.exit(main())
