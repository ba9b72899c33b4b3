"""``python -m eval.score``: accuracy of predictions that another device or runtime has made.

They are scored by the same code, and leave the same files behind, as a run of our own, so that
they can be compared with the reported figures, with others' figures, and with each other.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from eval.config import (
    Reference,
    Tolerance,
    VariantConfig,
    builtin_variants,
    load_config,
    load_variant,
)
from eval.errors import DataError, EvalError, UsageError
from eval.images.sets import VAL
from eval.regression import CRASHED

if TYPE_CHECKING:  # torch takes seconds to import: --help and wrong options do without
    from eval.images.valset import ValSet
    from eval.judge.verdict import FormResult

FORM = "scored"
UNKNOWN = "unknown"
PREPROCESSES = (UNKNOWN, "torchvision", "paddle", "squash")

EPILOG = """
PREDICTIONS is one of:
  .csv         with a header: path or name; top1 to top5 or further (class numbers 0 to 999 in the
               order of the sorted synsets, best first), or classes (the same in one column, with
               blanks between); prob1, prob2, ... if known
  .npy, .npz   logits or probabilities (N x 1000), with --names FILE (a name per line), or with an
               array "names" or "path" in the .npz
  text         of VastModelZOO's tools: NAME: Relay top-0 id: 65, prob: 0.9, class name: ...

Images are matched by name, whatever the folder and suffix. An image that is answered twice or is
not in --data is an error, and so is one without an answer, unless --allow-missing.

The verdict compares with the reported accuracy if it is stated that --preprocess is what that
figure was measured with and --precision is fp32, or if --tolerance says how far it may be off.

Exit codes: 0 within tolerance or nothing to compare with; 1 outside; 2 usage; 3 data; 5 useless
answers; 70 a crash.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    try:
        return score(args, shlex.join(["python", "-m", "eval.score", *arguments]))
    except EvalError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception:  # a crash must not look like exit code 1, a measured difference
        traceback.print_exc()
        return CRASHED


def score(args: argparse.Namespace, command: str) -> int:
    """Match, score, report, and only then let a difference become an exit code.

    Raises:
        EvalError: see `eval.errors`.
    """
    config = _config(args)
    if args.weights and not args.weights.is_file():
        raise UsageError(f"--weights {args.weights}: there is no such file.")

    import numpy as np

    from eval.images.valset import open_valset
    from eval.judge.verdict import judge
    from eval.measure.engine import Measurement
    from eval.results.html import write_html_report
    from eval.results.predictions import match, read_answers
    from eval.results.write import RunFacts, format_results, write_reports

    started = datetime.now(UTC)
    valset = open_valset(args.data, args.labels)
    if valset.image_set.classes is not None:
        raise UsageError(
            f"--data {args.data} is {valset.image_set.name}, whose answers are taken among its own "
            "classes; predictions made elsewhere are scored among all 1000.\n"
            "Evaluate it with python -m eval.imagenet."
        )
    answers = read_answers(args.predictions, args.names, args.array)
    row_of = match(answers.names, valset.samples)
    valset = _answered(valset, row_of, args.allow_missing)
    rows = np.array([row_of[i] for i in sorted(row_of)])
    labels = np.array([sample.label for sample in valset.samples])
    measured = Measurement(
        valset=valset,
        scores={FORM: answers.scores(rows, labels)},
        logit_diff=np.full(len(rows), np.nan),
        largest_logit=None,
        digests=_digests(valset, quiet=args.quiet),
        seconds=0.0,  # of the images measured now, which are none
    )
    facts = RunFacts(
        run_id=f"{config.name}-{FORM}-{started:%Y%m%dT%H%M%SZ}",
        started_at=started.isoformat(timespec="seconds"),
        command=command,
        variant=config,
        preprocess=args.preprocess,
        preprocess_description=_describe(args.preprocess),
        backend="external",
        device=args.device,
        precision=args.precision,
        batch_size=None,
        workers=None,
        processes=None,
        weights=str(args.weights or UNKNOWN),
        weights_sha256=_sha256(args.weights) if args.weights else "",
        weights_layout=UNKNOWN,
        params={FORM: None},
        macs={FORM: None},
        data=str(args.data),
        layout=valset.layout,
        limit=None,
        settings={
            "predictions": str(args.predictions),
            "predictions_sha256": _sha256(args.predictions),
            "answers": answers.description,
        },
    )
    # Whoever states a tolerance has said that the comparison is meant, at whatever precision.
    precision = "fp32" if args.tolerance is not None else args.precision
    result = _explain(args, judge(measured, FORM, config, args.preprocess, precision))
    output = args.output or Path("results") / facts.run_id
    write_reports(output, facts, measured, [result])
    write_html_report(output, facts, measured, [result])
    print(format_results(facts, measured, [result]))
    print(f"{answers.description}\nReports: {output}")
    return result.verdict.exit_code


def _config(args: argparse.Namespace) -> VariantConfig:
    """The variant, with the reference and the tolerance that were asked for.

    Raises:
        UsageError: there is no such variant or reference.
    """
    if args.config and args.variant:
        raise UsageError("--config and --variant both name a configuration: use one.")
    config = load_config(args.config) if args.config else load_variant(args.variant or "base_ssld")
    reference = config.reference_for(args.preprocess)
    if args.reference is not None:
        others = {other.name: other for other in config.others_on(VAL)}
        if args.reference not in others:
            known = ", ".join(map(repr, others)) or "none"
            raise UsageError(
                f"--reference {args.reference}: {config.name} has no such figure; it has {known}."
            )
        other = others[args.reference]
        reference = Reference(f"{other.name}: {other.source}", other.top1, other.top5)
    if args.tolerance is None:
        if args.reference is None:
            return config
        # The built-in tolerances are about the reported figures, and not about others'.
        return replace(config, reference=_for_all(reference), tolerance={})
    if reference is None:
        raise UsageError(f"--tolerance: {config.name} has no figure to compare with.")
    tolerance = Tolerance(args.tolerance, "given with --tolerance")
    reference = replace(reference, gated=True)
    return replace(config, reference=_for_all(reference), tolerance={args.preprocess: tolerance})


def _for_all(reference: Reference | None) -> Mapping[str, Reference]:
    return {"": reference} if reference else {}


def _answered(valset: ValSet, row_of: Mapping[int, int], allow_missing: bool) -> ValSet:
    """The images that have an answer, in their order."""
    from eval.images.labels import examples

    missing = [s.path for i, s in enumerate(valset.samples) if i not in row_of]
    if missing and not allow_missing:
        raise DataError(
            f"No answer for {examples(missing)}, of {len(valset.samples):,} images.\n"
            "Predict them, or add --allow-missing: the verdict is PARTIAL then."
        )
    samples = tuple(s for i, s in enumerate(valset.samples) if i in row_of)
    layout = f"{valset.layout}, without {len(missing):,} unanswered images"
    return replace(valset, samples=samples, layout=layout if missing else valset.layout)


def _digests(valset: ValSet, *, quiet: bool) -> list[str]:
    """SHA-256 of each image file: the images that the answers are said to be about."""
    from tqdm import tqdm

    def digest(path: str) -> str:
        try:
            return hashlib.sha256(valset.read(path)).hexdigest()
        except OSError as error:
            raise DataError(f"{valset.root / path} cannot be read: {error.strerror}.") from error

    paths = [sample.path for sample in valset.samples]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(digest, paths)
        return list(tqdm(found, "hashing images", len(paths), unit="img", disable=quiet))


def _explain(args: argparse.Namespace, result: FormResult) -> FormResult:
    """Say what is missing for a comparison."""
    from eval.judge.verdict import Verdict

    unknown = [
        f"--{name}" for name in ("preprocess", "precision") if getattr(args, name) == UNKNOWN
    ]
    if result.verdict is not Verdict.NO_REFERENCE or not unknown or args.tolerance is not None:
        return result
    return replace(
        result,
        reason=f"shown, not compared: {' and '.join(unknown)} not stated, and no --tolerance given",
    )


def _describe(preprocess: str) -> str:
    from eval.images.preprocess import PREPROCESS

    known = PREPROCESS.get(preprocess)
    return f"as stated: {known.description}" if known else "not stated"


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval.score",
        description="Score predictions that some other device or runtime made.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("predictions", type=Path, metavar="PREDICTIONS", help="see below")
    add("--data", type=Path, required=True, metavar="PATH", help="the val set that was predicted")
    add("--labels", type=Path, metavar="FILE", help="its labels, where folders do not give them")
    add("--names", type=Path, metavar="FILE", help="for arrays: a name of an image per line")
    add("--array", metavar="NAME", help="for .npz: which array, if there are several")
    add("--variant", metavar="NAME", help=f"{', '.join(builtin_variants())} (default base_ssld)")
    add("--config", type=Path, metavar="FILE", help="a configuration of your own instead")
    add("--preprocess", choices=PREPROCESSES, default=UNKNOWN, help="what the device did")
    add("--precision", default=UNKNOWN, metavar="TEXT", help="such as fp32, fp16 or int8")
    add("--device", default=UNKNOWN, metavar="TEXT", help="what made them, for the report")
    add("--weights", type=Path, metavar="FILE", help="the model file, for its SHA-256")
    add(
        "--reference",
        metavar="NAME",
        help="compare with another figure of the configuration, such as 'Vast int8'",
    )
    add("--tolerance", type=_natural, metavar="N", help="compare; N images may differ")
    add("--allow-missing", action="store_true", help="score a subset; the verdict is PARTIAL")
    add("--output", type=Path, metavar="DIR", help="default results/<variant>-scored-<time>")
    add("--quiet", action="store_true", help="no progress on stderr")
    return parser


def _natural(value: str) -> int:
    if not value.isascii() or not value.isdigit():
        raise argparse.ArgumentTypeError(f"{value!r} is no number of images")
    return int(value)


if __name__ == "__main__":
    sys.exit(main())
