"""``python -m eval.score``: the accuracy of predictions that another device or runtime made.

They are scored by the same code as our own runs and leave the same files, so that they can be
compared with the reported accuracy, with third-party results, and with each other.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from eval.backends.precision import UNKNOWN
from eval.cli import leave, program, run_command
from eval.errors import UsageError
from eval.options import add_array_options, add_option, read
from eval.parser import Parser
from eval.progress import ProgressBar
from eval.recipe_files import recipe_of
from eval.values import Whole, file_or_word, path

EPILOG = """
PREDICTIONS is one of (docs/inputs.md has examples of all):
  a table      CSV, JSON, JSON lines or parquet: path or filename; top1 to top5
               or more (class indices 0 to 999 in the order of the sorted
               synsets, best first), or index, or classes (in one column); and
               prob1, prob2, ... if they are known
  arrays       .npy, .npz, .pt: logits or probabilities (N x 1000), with --names
               FILE (one name per line), or with names in the file
  text         as PaddleClas's and VastModelZOO's tools print it, and MLPerf's
               mlperf_log_accuracy.json, with --names FILE
  a result     a folder or predictions.csv of eval.imagenet; --array FORM

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
    args = read(_parser(), arguments)
    if args.config and args.variant:
        raise UsageError("--config and --variant both name a configuration: use one.")
    from eval.jobs.score import Scoring, score
    from eval.results.console import format_evaluation
    from eval.results.folder import OutputFolder

    asked = {field.name: getattr(args, field.name) for field in fields(Scoring)}
    command = f"{program('score')} {shlex.join(arguments)}"
    with OutputFolder(args.output) as folder:
        with ProgressBar(args.quiet) as progress:
            evaluation = score(Scoring(**asked), command, progress)
        folder.path = folder.path or Path("results") / evaluation.provenance.run_id
        folder.save(evaluation)

    print(format_evaluation(evaluation))
    print(f"{evaluation.setup.settings['answers']}\nReports: {folder.path}")
    return evaluation.exit_code


def _recipe(option: str, value: str) -> str:
    """The text of a recipe, as the reports name it; or that it is unknown."""
    asked = file_or_word(option, value)
    return UNKNOWN if asked == UNKNOWN else recipe_of(asked, where=option).text


def _parser() -> Parser:
    parser = Parser(
        "score", "Score predictions that another device or runtime made.", EPILOG, is_laid_out=True
    )
    add = parser.add
    add("predictions", path, metavar="PREDICTIONS", help="see below")
    add_option(parser, "data", required=True)
    add_option(parser, "labels")
    add_option(parser, "image_set")
    add_option(parser, "folders")
    add_array_options(parser)
    add_option(parser, "variant")
    add_option(parser, "config")
    add(
        "--preprocess",
        _recipe,
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
    add("--weights", path, metavar="FILE", help="the model file, for its SHA-256")
    add(
        "--reference",
        metavar="NAME",
        help="compare with another figure of the configuration, such as 'Vast int8'",
    )
    add(
        "--tolerance",
        Whole(0),
        metavar="N",
        help="compare with the reference; the counts may differ by N images",
    )
    parser.add_flag("--allow-missing", "score some of the images; the verdict is PARTIAL then")
    add("--output", path, metavar="DIR", help="default results/<variant>-scored-<time>")
    parser.add_flag("--quiet", "print only errors on stderr")
    return parser


if __name__ == "__main__":
    leave(main())
