"""Predictions that another device or runtime made, judged like our own."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
from tqdm import tqdm

from eval.backends.precision import UNKNOWN
from eval.config import (
    Reference,
    Tolerance,
    VariantConfig,
    load_config,
    load_variant,
)
from eval.errors import DataError, UsageError
from eval.images.labels import examples
from eval.images.preprocess import BadImage, Crop, Preprocess, table_of
from eval.images.sets import VAL
from eval.images.valset import ValSet, open_valset
from eval.judge.result import SCORED
from eval.judge.verdict import JUDGED_PRECISION, Judgment, judge
from eval.measure.engine import Measurement
from eval.measure.given import Answers, match, read_answers
from eval.models import ModelFile, Subject, identify
from eval.provenance import Provenance
from eval.recipe import Recipe, parse
from eval.results.evaluation import Evaluation
from eval.results.record import Computation

FORM = SCORED


def score(args: argparse.Namespace, command: str) -> Evaluation:
    """Match predictions with images, and judge them like our own runs.

    Raises:
        EvalError: see `eval.errors`.
    """
    config = _config(args)
    files = _identify("--weights", args.weights) if args.weights else ()
    predictions = _identify("PREDICTIONS", args.predictions)

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
    precision = JUDGED_PRECISION if args.tolerance is not None else args.precision
    return Evaluation(
        subject=_subject(args, config, files),
        data=str(args.data),
        setup=Computation(
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
        judgment=_explain(args, judge(measured, config, args.preprocess, precision)),
    )


def _measure(args: argparse.Namespace, valset: ValSet, answers: Answers) -> Measurement:
    """The scores of the predictions, in the order of the images."""
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
    if name != UNKNOWN:
        stated = Preprocess.of(parse(name))
        return replace(stated, description=f"as stated: {stated.description}")

    def unknown(_: bytes) -> Crop:
        raise BadImage("the preprocessing is unknown")

    return Preprocess(name, "not stated", unknown, table_of(Recipe()))


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
        others = {other.name: other for other in config.others_on(VAL.name)}
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
    reference = msgspec.structs.replace(reference, gated=True)
    return replace(config, reference=_for_all(reference), tolerance={args.preprocess: tolerance})


def _for_all(reference: Reference | None) -> Mapping[str, Reference]:
    return {"": reference} if reference else {}


def _answered(valset: ValSet, row_of: Mapping[int, int], allow_missing: bool) -> ValSet:
    """The images that have a prediction, in their order."""
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

    def digest(path: str) -> str:
        try:
            return hashlib.sha256(valset.read(path)).hexdigest()
        except OSError as error:
            raise DataError(f"{valset.root / path} cannot be read: {error.strerror}.") from error

    paths = [sample.path for sample in valset.samples]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(digest, paths)
        return list(tqdm(found, "hashing images", len(paths), unit="img", disable=quiet))


def _explain(args: argparse.Namespace, judgment: Judgment) -> Judgment:
    """Say what is missing for a comparison."""
    unknown = [
        f"--{name}" for name in ("preprocess", "precision") if getattr(args, name) == UNKNOWN
    ]
    if not unknown or args.tolerance is not None:
        return judgment
    reason = f"shown, not compared: {' and '.join(unknown)} not stated, and no --tolerance given"
    forms = tuple(
        replace(form, reason=reason) if form.verdict == "NO_REFERENCE" else form
        for form in judgment.forms
    )
    return replace(judgment, forms=forms)
