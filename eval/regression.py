"""``python -m eval.regression``: is one result worse than another? The gate for CI.

`check_regression` is the whole path: read, compare, print, write, exit code. `eval.judge.gate`
compares, and `eval.results.regression_report` puts the result into words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.cli import leave, run_command
from eval.errors import UsageError
from eval.parser import Parser
from eval.values import Whole, file_or_word, path

if TYPE_CHECKING:  # numpy is needed to compare, and --help does without
    from eval.judge.gate import Limit

EPILOG = """
A and B are each one of:
  DIR            a result folder of eval.imagenet or eval.score; if both have
                 a predictions.csv, they are compared image by image
  FILE           a summary.csv, or a history: the latest row of each variant
                 and form (other than those of the candidate's own run)
  FILE#RUN_ID    one run of a history; python -m eval.history FILE lists them

Not comparable (exit 2): results with a different variant, preprocessing, list
of classes, number of images or dataset_sha256 (names, labels and contents of
the images); and different or unknown weights, unless --allow-other-weights.

Verdicts count. A baseline whose verdict is DISAGREE or INCOMPLETE is refused
(exit 2), and so is one with FAIL, unless --allow-failed-baseline. A candidate
with one of these verdicts is compared, and fails: exit 5, 3 or 1. A FAIL only
passes if the baseline has it, too. A verdict that contradicts the figures
beside it is refused.

Limits are in images (5) or percentage points (0.05pp). An improvement is never
a failure.
  default             same weights   other weights
  --max-drop-top1          5            0.1pp
  --max-drop-top5          5            0.1pp
  --max-flips              5            not checked
With the same weights, only float rounding and the build of the JPEG decoder can
differ, which changes single images. Other weights change thousands of
predictions; trainings that differ only in the seed scatter by 0.1 points.

Exit codes: 0 not worse; 1 regressed, or the candidate's verdict is FAIL; 2 not
comparable, damaged, or wrong options; 3 its verdict is INCOMPLETE; 5 it is
DISAGREE; 70 a bug in this package; 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code."""
    return run_command(_run, argv)


def _run(arguments: Sequence[str]) -> int:
    args = _parser().read(arguments)
    from eval.jobs.compare import accept, compare_results

    if args.accept:
        accept(args.candidate, Path(args.baseline))
        print(f"{args.baseline} now holds {args.candidate}. Review the change, and commit it.")
        return 0
    from eval.judge.gate import Asked
    from eval.results.folder import OutputFolder
    from eval.results.regression_report import text
    from eval.results.schema import COMPARISON_FILES

    with OutputFolder(args.output, COMPARISON_FILES) as output:
        asked = Asked(
            form=args.form,
            top1=_limit("--max-drop-top1", args.max_drop_top1),
            top5=_limit("--max-drop-top5", args.max_drop_top5),
            flips=args.max_flips,
            allow_other_weights=args.allow_other_weights,
            allow_failed_baseline=args.allow_failed_baseline,
        )
        comparisons = compare_results(args.baseline, args.candidate, asked, output=output)
    print(text(comparisons, (args.baseline, args.candidate)))
    return max(row.exit_code for row in comparisons)


def _limit(option: str, value: str | None) -> Limit | None:
    from eval.judge.gate import Limit

    try:
        return None if value is None else Limit.parse(value)
    except ValueError as error:
        raise UsageError(f"{option}: {error}.") from None


def _parser() -> Parser:
    parser = Parser(
        "regression",
        "Compare two results on the same images, and fail if the second is worse.",
        EPILOG,
        is_laid_out=True,
    )
    add = parser.add
    add("--baseline", file_or_word, required=True, metavar="A", help="the result to compare with")
    add("--candidate", file_or_word, required=True, metavar="B", help="the result to judge")
    add("--form", metavar="F", help="only this form; F:G is F of the baseline with G of B")
    add("--max-drop-top1", metavar="LIMIT", help="in images (5) or percentage points (0.05pp)")
    add("--max-drop-top5", metavar="LIMIT", help="the same for top-5")
    add(
        "--max-flips",
        Whole(0),
        metavar="N",
        help="how many predictions may change, other than from wrong to correct",
    )
    parser.add_flag("--allow-other-weights", "compare even if the weights differ or are unknown")
    parser.add_flag(
        "--allow-failed-baseline",
        "accept a baseline with the verdict FAIL: the model is known to miss its figure",
    )
    add(
        "--output",
        path,
        metavar="DIR",
        help="folder for regression.md, regression.csv, regression_flips.csv, "
        "regression_classes.csv and junit.xml",
    )
    parser.add_flag("--accept", "do not compare, but make B the baseline, in folder A")
    return parser


if __name__ == "__main__":
    leave(main())
