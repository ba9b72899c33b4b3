"""``python -m eval.score``: the accuracy of predictions that another device or runtime made.

They are scored by the same code as our own runs and leave the same files, so that they can be
compared with the reported accuracy, with third-party results, and with each other.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from eval.cli import program
from eval.command import run_command
from eval.config import (
    Reference,
    Tolerance,
    VariantConfig,
    builtin_variants,
    load_config,
    load_variant,
)
from eval.errors import DataError, UsageError
from eval.evaluation import Evaluation, Provenance, Setup
from eval.images.sets import VAL
from eval.models import ModelFile, Subject, identify
from eval.options import add_array_options
from eval.results.folder import OutputFolder

if TYPE_CHECKING:  # --help and wrong options do without torch and the decoders
    from eval.images.preprocess import Preprocess
    from eval.images.valset import ValSet
    from eval.judge.verdict import Judgement
    from eval.measure.engine import Measurement
    from eval.results.predictions import Answers

FORM = "scored"
UNKNOWN = "unknown"
PREPROCESSES = (UNKNOWN, "torchvision", "paddle", "squash")

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
    evaluation = score(args, f"{program('score')} {shlex.join(arguments)}")
    output = args.output or Path("results") / evaluation.provenance.run_id
    with OutputFolder(output) as folder:
        folder.claim()
        evaluation.save(output)

    from eval.results.console import format_evaluation

    print(format_evaluation(evaluation))
    print(f"{evaluation.setup.settings['answers']}\nReports: {output}")
    return evaluation.exit_code


def score(args: argparse.Namespace, command: str) -> Evaluation:
    """Match predictions with images, and judge them like our own runs.

    Raises:
        EvalError: see `eval.errors`.
    """
    config = _config(args)
    files = _identify("--weights", args.weights) if args.weights else ()
    predictions = _identify("PREDICTIONS", args.predictions)

    from eval.images.valset import open_valset
    from eval.judge.verdict import judge
    from eval.results.predictions import read_answers

    started = datetime.now(UTC)
    valset = open_valset(args.data, args.labels)
    if valset.image_set.classes is not None:
        raise UsageError(
            f"--data {args.data} is {valset.image_set.name}, where only the classes of the set are "
            "ranked; predictions made elsewhere rank all 1000.\n"
            "Evaluate it with python -m eval.imagenet."
        )
    answers = read_answers(args.predictions, len(valset.classes), args.names, args.array)
    measured = _measure(args, valset, answers)
    # A tolerance asks for the comparison, whatever the precision.
    precision = "fp32" if args.tolerance is not None else args.precision
    return Evaluation(
        subject=_subject(args, config, files),
        data=str(args.data),
        setup=Setup(
            "external",
            args.device,
            args.precision,
            settings={
                "predictions": str(args.predictions),
                "predictions_sha256": predictions[0].sha256,
                "answers": answers.description,
            },
        ),
        provenance=Provenance.of(
            f"{config.name}-{FORM}", started, command, {k: str(v) for k, v in vars(args).items()}
        ),
        measured=measured,
        judgement=_explain(args, judge(measured, config, args.preprocess, precision)),
    )


def _measure(args: argparse.Namespace, valset: ValSet, answers: Answers) -> Measurement:
    """The scores of the predictions, in the order of the images."""
    import numpy as np

    from eval.measure.engine import Measurement
    from eval.results.predictions import match

    row_of = match(answers.names, valset.samples)
    valset = _answered(valset, row_of, args.allow_missing)
    rows = np.array([row_of[i] for i in sorted(row_of)])
    labels = np.array([sample.label for sample in valset.samples])
    return Measurement(
        valset=valset,
        scores={FORM: answers.scores(rows, labels)},
        logit_diff=np.full(len(rows), np.nan),
        largest_logit=None,
        digests=_digests(valset, quiet=args.quiet),
        seconds=0.0,  # of the images measured now, which are none
    )


def _subject(
    args: argparse.Namespace, config: VariantConfig, files: tuple[ModelFile, ...]
) -> Subject:
    """The model that made the predictions, as far as it was stated."""
    return Subject(
        name=config.name,
        title=f"{config.name}, predictions made elsewhere",
        weights=str(args.weights or UNKNOWN),
        layout=UNKNOWN,
        files=files,
        forms={},
        preprocess=_preprocess(args.preprocess),
        published=config,
        params={FORM: None},
        macs={FORM: None},
    )


def _preprocess(name: str) -> Preprocess:
    """The stated preprocessing; without a statement, one that refuses every image."""
    from eval.images.preprocess import PREPROCESS, BadImage, Crop, Preprocess

    if name in PREPROCESS:
        known = PREPROCESS[name]
        return replace(known, description=f"as stated: {known.description}")

    def unknown(_: bytes) -> Crop:
        raise BadImage("the preprocessing is unknown")

    return Preprocess(name, "not stated", unknown, next(iter(PREPROCESS.values())).table)


def _identify(option: str, path: Path) -> tuple[ModelFile, ...]:
    if not path.is_file():
        raise UsageError(f"{option} {path}: there is no such file.")
    return identify([path])


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
        # The built-in tolerances belong to the reported figures, not to third-party ones.
        return replace(config, reference=_for_all(reference), tolerance={})
    if reference is None:
        raise UsageError(f"--tolerance: {config.name} has no figure to compare with.")
    tolerance = Tolerance(args.tolerance, "given with --tolerance")
    reference = replace(reference, gated=True)
    return replace(config, reference=_for_all(reference), tolerance={args.preprocess: tolerance})


def _for_all(reference: Reference | None) -> Mapping[str, Reference]:
    return {"": reference} if reference else {}


def _answered(valset: ValSet, row_of: Mapping[int, int], allow_missing: bool) -> ValSet:
    """The images that have a prediction, in their order."""
    from eval.images.labels import examples

    missing = [s.path for i, s in enumerate(valset.samples) if i not in row_of]
    if missing and not allow_missing:
        raise DataError(
            f"No prediction for {examples(missing)}, of {len(valset.samples):,} images.\n"
            "Predict them, or add --allow-missing: the verdict is PARTIAL then."
        )
    samples = tuple(s for i, s in enumerate(valset.samples) if i in row_of)
    layout = f"{valset.layout}, without {len(missing):,} images that have no prediction"
    return replace(valset, samples=samples, layout=layout if missing else valset.layout)


def _digests(valset: ValSet, *, quiet: bool) -> list[str]:
    """SHA-256 of each image file: the images that the predictions are said to belong to."""
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


def _explain(args: argparse.Namespace, judgement: Judgement) -> Judgement:
    """Say what is missing for a comparison."""
    unknown = [
        f"--{name}" for name in ("preprocess", "precision") if getattr(args, name) == UNKNOWN
    ]
    if not unknown or args.tolerance is not None:
        return judgement
    reason = f"shown, not compared: {' and '.join(unknown)} not stated, and no --tolerance given"
    forms = tuple(
        replace(form, reason=reason) if form.verdict == "NO_REFERENCE" else form
        for form in judgement.forms
    )
    return replace(judgement, forms=forms)


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
        choices=PREPROCESSES,
        default=UNKNOWN,
        help="the preprocessing that the device used",
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
