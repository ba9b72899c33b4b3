"""``python -m eval.score``: the accuracy of predictions that another device or runtime made.

They are scored by the same code as our own runs and leave the same files, so that they can be
compared with the reported accuracy, with third-party results, and with each other.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.backends.precision import UNKNOWN
from eval.cli import program, run_command
from eval.config import (
    builtin_variants,
)
from eval.options import add_array_options
from eval.recipe_files import recipe_of

EPILOG = """
PREDICTIONS is one of:
  .csv         with a header: path or name; top1 to top5 or more (class indices
               0 to 999 in the order of the sorted synsets, best first), or
               classes (the same in one column, separated by spaces); and
               prob1, prob2, ... if they are known
  .npy, .npz   logits or probabilities (N x 1000), with --names FILE (one name
               per line), or with an array "names" or "path" in the .npz
  text         as VastModelZOO's tools print it:
               NAME: Relay top-0 id: 65, prob: 0.9, class name: ...

Images are matched by name; folder and suffix do not matter. It is an error if
an image is predicted twice or is not in --data, or if one has no prediction
(unless --allow-missing).

The result is compared with the reported accuracy if --preprocess is what that
figure was measured with and --precision is fp32, or if --tolerance gives the
number of images by which it may be off.

Exit codes: 0 within tolerance, or nothing to compare with; 1 outside the
tolerance; 2 wrong options; 3 data; 5 predictions that are not finite; 70 a bug
in this package.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code."""
    return run_command(_main, argv)


def _main(arguments: Sequence[str]) -> int:
    args = _parser().parse_args(arguments)
    from eval.jobs.score import score
    from eval.results.console import format_evaluation
    from eval.results.folder import OutputFolder

    with OutputFolder(args.output) as folder:
        evaluation = score(args, f"{program('score')} {shlex.join(arguments)}")
        folder.path = folder.path or Path("results") / evaluation.provenance.run_id
        folder.save(evaluation)

    print(format_evaluation(evaluation))
    print(f"{evaluation.setup.settings['answers']}\nReports: {folder.path}")
    return evaluation.exit_code


def _recipe(text: str) -> str:
    """The text of a recipe, as the reports name it."""
    return text if text == UNKNOWN else recipe_of(text).text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("score"),
        description="Score predictions that another device or runtime made.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("predictions", type=Path, metavar="PREDICTIONS", help="see below")
    add("--data", type=Path, required=True, metavar="PATH", help="the validation set")
    add("--labels", type=Path, metavar="FILE", help="its labels, if folders do not give them")
    add_array_options(parser)
    add("--variant", metavar="NAME", help=f"{', '.join(builtin_variants())} (default base_ssld)")
    add("--config", type=Path, metavar="FILE", help="your own configuration file instead")
    add(
        "--preprocess",
        type=_recipe,
        default=UNKNOWN,
        metavar="RECIPE",
        help="the preprocessing that the device used: torchvision, paddle, ... "
        "(docs/preprocessing.md)",
    )
    add(
        "--precision",
        default=UNKNOWN,
        metavar="TEXT",
        help="its precision, such as fp32, fp16 or int8",
    )
    add(
        "--device",
        default=UNKNOWN,
        metavar="TEXT",
        help="what made the predictions, for the report",
    )
    add("--weights", type=Path, metavar="FILE", help="the model file, for its SHA-256")
    add(
        "--reference",
        metavar="NAME",
        help="compare with another figure of the configuration, such as 'Vast int8'",
    )
    add(
        "--tolerance",
        type=_natural,
        metavar="N",
        help="compare with the reference; the counts may differ by N images",
    )
    add(
        "--allow-missing",
        action="store_true",
        help="score some of the images; the verdict is PARTIAL then",
    )
    add("--output", type=Path, metavar="DIR", help="default results/<variant>-scored-<time>")
    add("--quiet", action="store_true", help="print only errors on stderr")
    return parser


def _natural(value: str) -> int:
    if not value.isascii() or not value.isdigit():
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of images")
    return int(value)


if __name__ == "__main__":
    sys.exit(main())
