"""``python -m eval.export``: a model as files for deployment.

Each file gets its name only when it is whole and its answers are those of torch: on the images of
``--images`` (a validation set in any layout), or on noise where none are named. int8 files are
compared by how many best classes agree; the way their ranges are found is chosen by measuring on
images that were held out from the calibration.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.backends import BACKENDS
from eval.backends.formats import EXPORTS
from eval.cli import program, run_command
from eval.errors import UsageError
from eval.options import add_preprocess_option, positive
from eval.request import FORMS


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
    add("--format", default="onnx", metavar="LIST", help=f"of {', '.join(EXPORTS)}; default onnx")
    add("--opset", type=positive, default=18, metavar="N", help="of ONNX (default %(default)s)")
    add_preprocess_option(parser)
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
    unknown = [name for name in args.format if name not in EXPORTS]
    if unknown:
        raise UsageError(f"--format {','.join(unknown)}: use {', '.join(EXPORTS)}.")
    if args.int8 != (args.calibrate is not None):
        raise UsageError("--int8 and --calibrate go together: int8 needs images to calibrate on.")
    args.max_drop = _points(args.max_drop)
    if not args.int8 and (args.max_drop is not None or args.method):
        raise UsageError("--max-drop and --method only apply to int8: add --int8.")
    if args.method:
        _check_method(args.method, args.format)
    return args


def _check_method(method: str, formats: Sequence[str]) -> None:
    """Refuse, before anything is converted, a method that a quantizer does not have.

    Raises:
        UsageError: there is one of these formats for which int8 can be made, but not so.
    """
    for kind in formats:
        methods = BACKENDS[EXPORTS[kind][0]].int8.methods
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; exit codes as of ``python -m eval.imagenet``."""
    return run_command(_main, argv)


def _main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    from eval.jobs.export import export

    export(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
