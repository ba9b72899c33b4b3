"""Predictions that another device or runtime made, judged like our own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

from eval.backends.precision import UNKNOWN
from eval.config import Reference, Tolerance, VariantConfig, load_config, load_variant
from eval.errors import DataError, UsageError
from eval.images.classes import ClassList
from eval.images.labels import examples
from eval.images.lists import plain_code
from eval.images.preprocess import BadImage, Crop, Preprocess, table_of
from eval.images.sets import VAL
from eval.images.valset import ValSet
from eval.judge.result import SCORED
from eval.judge.verdict import JUDGED_PRECISION, Judgment, judge
from eval.measure.given import Answers, match, read_answers
from eval.measure.measurement import Measurement
from eval.measure.reading import hash_images
from eval.measure.setup import Computation, open_data
from eval.models import ModelFile, Subject, identify
from eval.progress import Observer, ignore
from eval.provenance import Provenance
from eval.recipe import Recipe, parse
from eval.request import DEFAULT_VARIANT, Request
from eval.results.evaluation import Evaluation
from eval.results.schema import PREDICTIONS_FILE


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What is scored, and what is stated about it.

    Attributes:
        predictions, names, array: their file; see `eval.measure.given.read_answers`.
        data, labels, image_set, folders: the images that they belong to.
        variant, config: the configuration to compare with; the default variant if both are None.
        preprocess, precision, device: of the device, as stated; `UNKNOWN` if not.
        weights: the model's file, for its hash.
        reference: another figure of the configuration to compare with.
        tolerance: images by which the counts may differ from it; it asks for the comparison.
        allow_missing: whether images may have no prediction.
    """

    predictions: Path
    data: Path
    labels: Path | None = None
    image_set: str | None = None
    folders: str | None = None
    names: Path | None = None
    array: str | None = None
    variant: str | None = None
    config: Path | None = None
    preprocess: str = UNKNOWN
    precision: str = UNKNOWN
    device: str = UNKNOWN
    weights: Path | None = None
    reference: str | None = None
    tolerance: int | None = None
    allow_missing: bool = False


def score(asked: Scoring, command: str, progress: Observer = ignore) -> Evaluation:
    """Match predictions with images, and judge them like our own runs.

    Args:
        asked: what is scored.
        command: the command line, for the reports.
        progress: called with every `eval.progress.Event`.

    Raises:
        EvalError: see `eval.errors`.
    """
    config = config_of(asked)
    files = _identify("--weights", asked.weights) if asked.weights else ()
    file = predictions_file(asked.predictions)
    predictions = _identify("PREDICTIONS", file)

    started = datetime.now(UTC)
    images = Request(
        data=asked.data, labels=asked.labels, image_set=asked.image_set, folders=asked.folders
    )
    valset = open_data(images, asked.data)
    if valset.image_set.classes is not None:
        raise UsageError(
            f"--data {asked.data} is {valset.image_set.name}, where only the classes of the set "
            "are ranked; predictions made elsewhere rank all 1000.\n"
            "Evaluate it with python -m eval.imagenet."
        )
    answers = read_answers(file, len(valset.classes), asked.names, asked.array)
    row_of = match(answers.names, valset.samples)
    measured = _measure(asked, valset, answers, row_of, progress)
    # A tolerance asks for the comparison, whatever the precision.
    precision = JUDGED_PRECISION if asked.tolerance is not None else asked.precision
    return Evaluation(
        subject=subject_of(asked, config, files),
        data=str(asked.data),
        setup=Computation(
            "external",
            asked.device,
            asked.precision,
            settings={
                "predictions": str(asked.predictions),
                "predictions_sha256": predictions[0].sha256,
                "answers": answers.description,
            },
        ),
        provenance=Provenance.of(
            f"{config.name}-{SCORED}", started, command, {k: str(v) for k, v in vars(asked).items()}
        ),
        measured=measured,
        judgment=_warned(
            _explain(asked, judge(measured, config, asked.preprocess, precision)),
            _other_labels(file, answers, valset, row_of),
        ),
    )


def predictions_file(path: Path) -> Path:
    """The file of predictions; of a result folder of ours, the one in it."""
    return path / PREDICTIONS_FILE if path.is_dir() else path


def _measure(
    asked: Scoring,
    valset: ValSet,
    answers: Answers,
    row_of: Mapping[int, int],
    progress: Observer,
) -> Measurement:
    """The scores of the predictions, in the order of the images."""
    valset = _answered(valset, row_of, asked.allow_missing)
    hashes = hash_images(valset, progress)
    rows = [row_of[i] for i in sorted(row_of)]
    return measurement(valset.doubted(hashes), answers, rows, hashes)


def measurement(
    valset: ValSet, answers: Answers, rows: Sequence[int], hashes: list[str]
) -> Measurement:
    """Predictions as what we would have measured.

    Args:
        valset: the images.
        answers: predictions of these, and perhaps of others.
        rows: that of each image, in their order.
        hashes: of each image's file.
    """
    labels = np.array([sample.label for sample in valset.samples])
    return Measurement(
        valset=valset,
        scores={SCORED: answers.scores(np.array(rows), labels)},
        logit_diff=np.full(len(rows), np.nan),
        largest_logit=None,
        digests=hashes,
        seconds=0.0,  # of the images measured now, which are none
    )


def subject_of(asked: Scoring, config: VariantConfig, files: tuple[ModelFile, ...]) -> Subject:
    """The model that made the predictions, as far as it was stated."""
    return Subject(
        name=config.name,
        title=f"{config.name}, predictions made elsewhere",
        weights=str(asked.weights or UNKNOWN),
        layout=UNKNOWN,
        files=files,
        forms={},
        preprocess=_preprocess(asked.preprocess),
        published=config,
        params={SCORED: None},
        macs={SCORED: None},
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


def config_of(asked: Scoring) -> VariantConfig:
    """The variant, with the reference and the tolerance that were asked for."""
    if asked.config:
        config = load_config(asked.config)
    else:
        config = load_variant(asked.variant or DEFAULT_VARIANT)
    reference = config.reference_for(asked.preprocess)
    if asked.reference is not None:
        others = {other.name: other for other in config.others_on(VAL.name)}
        if asked.reference not in others:
            known = ", ".join(map(repr, others)) or "none"
            raise UsageError(
                f"--reference {asked.reference}: {config.name} has no such figure; it has {known}."
            )
        other = others[asked.reference]
        reference = Reference(f"{other.name}: {other.source}", other.top1, other.top5)
    if asked.tolerance is None:
        if asked.reference is None:
            return config
        # The built-in tolerances belong to the reported figures, not to third-party ones.
        return replace(config, reference=_for_all(reference), tolerance={})
    if reference is None:
        raise UsageError(f"--tolerance: {config.name} has no figure to compare with.")
    tolerance = Tolerance(asked.tolerance, "given with --tolerance")
    reference = msgspec.structs.replace(reference, gated=True)
    return replace(config, reference=_for_all(reference), tolerance={asked.preprocess: tolerance})


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
    if not missing:
        return valset
    layout = f"{valset.layout}, without {len(missing):,} images that have no prediction"
    return replace(valset.part(sorted(row_of)), layout=layout)


def _warned(judgment: Judgment, lines: Iterable[str]) -> Judgment:
    return replace(judgment, warnings=(*judgment.warnings, *lines))


def _other_labels(
    file: Path, answers: Answers, valset: ValSet, row_of: Mapping[int, int]
) -> Iterator[str]:
    """Columns of true labels in the predictions that contradict those of the images."""
    for column, cells in answers.stated.items():
        said = {i: _label(cells[answers.names[row]], valset.classes) for i, row in row_of.items()}
        known = {i: label for i, label in said.items() if label is not None}
        differ = sum(label != valset.samples[i].label for i, label in known.items())
        if differ:
            yield (
                f"The column {column} of {file} contradicts the labels of --data for {differ:,} of "
                f"{len(known):,} images: are the predictions of other images, or other classes?"
            )


def _label(cell: str, classes: ClassList) -> int | None:
    """What a true label means: an index, or the name of a class; None if neither."""
    code = plain_code(cell)
    if code.isdecimal():
        return int(code)
    meant = classes.meant_by(code)
    return meant[0] if len(meant) == 1 else None


def _explain(asked: Scoring, judgment: Judgment) -> Judgment:
    """Say what is missing for a comparison."""
    unknown = [
        f"--{name}" for name in ("preprocess", "precision") if getattr(asked, name) == UNKNOWN
    ]
    if not unknown or asked.tolerance is not None:
        return judgment
    reason = f"shown, not compared: {' and '.join(unknown)} not stated, and no --tolerance given"
    forms = tuple(
        replace(form, reason=reason) if form.verdict == "NO_REFERENCE" else form
        for form in judgment.forms
    )
    return replace(judgment, forms=forms)
