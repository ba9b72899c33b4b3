"""``python -m eval.export``: a model as files for deployment.

Each file gets its name only when it is whole and its answers are those of torch: on the images of
``--images`` (a validation set in any layout), or on noise where none are named. int8 files are
compared by how many top-1 predictions agree; the calibration method is chosen by measuring on
images that were held out from the calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from eval.backends import BACKENDS
from eval.backends.formats import EXPORTS
from eval.cli import leave, run_command
from eval.errors import UsageError
from eval.options import add_option
from eval.parser import Parser
from eval.progress import Event
from eval.request import FORMS
from eval.values import ListOf, OneOf, path, positive, text

if TYPE_CHECKING:  # torch takes seconds to import, and wrong options are refused without it
    from eval.jobs.export import Export


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; exit codes as of ``python -m eval.imagenet``."""
    return run_command(_main, argv)


def _main(arguments: Sequence[str]) -> int:
    asked = parse(arguments)
    from eval.jobs.export import export

    export(asked, show)
    return 0


def show(event: Event) -> None:
    """Print what an export tells: its result."""
    if event.message:
        print(event.message)


def parse(arguments: Sequence[str]) -> Export:
    """What a command line asks for."""
    args = _parser().read(arguments)
    if args.int8 != (args.calibrate is not None):
        raise UsageError("--int8 and --calibrate go together: int8 needs images to calibrate on.")
    if not args.int8 and (args.max_drop is not None or args.method):
        raise UsageError("--max-drop and --method only apply to int8: add --int8.")
    if args.method:
        _check_method(args.method, args.formats)
    from eval.jobs.export import Export

    return Export(**{field.name: getattr(args, field.name) for field in fields(Export)})


def _parser() -> Parser:
    parser = Parser("export", "Export a model for deployment, and compare each file with torch.")
    add = parser.add
    for name in ("variant", "config", "model", "weights", "weights_entry", "classes"):
        add_option(parser, name)
    add("--form", OneOf(FORMS), help="default: reparameterized, where the model has it")
    add(
        "--format",
        ListOf(OneOf(EXPORTS, {"tflite": "litert", "onnxruntime": "onnx"})),
        dest="formats",
        default=("onnx",),
        metavar="LIST",
        help=f"of {', '.join(EXPORTS)}; default onnx",
    )
    add("--opset", positive, default=18, metavar="N", help="of ONNX (default %(default)s)")
    add_option(parser, "preprocess")
    add("--images", path, metavar="PATH", help="images to compare on; default noise")
    parser.add_flag("--int8", "also write int8 files")
    add("--calibrate", path, metavar="PATH", help="validation set to calibrate int8 on")
    add(
        "--calibration-images",
        positive,
        default=300,
        metavar="N",
        help="how many of them to use (default %(default)s)",
    )
    add("--method", metavar="NAME", help="calibration method; default: the best is measured")
    add(
        "--max-drop",
        _points,
        metavar="PP",
        help="largest allowed top-1 drop of int8, in percentage points, such as 0.5pp",
    )
    add("--output", path, required=True, metavar="DIR", help="folder for the files")
    return parser


def _check_method(method: str, formats: Sequence[str]) -> None:
    """Refuse, before anything is converted, a method that a quantizer does not have."""
    for kind in formats:
        methods = BACKENDS[EXPORTS[kind][0]].int8.methods
        if methods and method not in methods:
            raise UsageError(f"--method {method}: {kind} has {', '.join(methods)}.")


def _points(option: str, value: str) -> float:
    """``0.5pp`` as a share."""
    try:
        points = float(text(option, value).removesuffix("pp"))
    except ValueError:
        points = -1.0
    if not 0 <= points <= 100:
        raise UsageError(f"{option} {value}: write percentage points, such as 0.5pp.")
    return points / 100


if __name__ == "__main__":
    leave(main())
