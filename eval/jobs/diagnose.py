"""Why is an accuracy wrong? The known mistakes, tried on a sample of the images."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from eval.diagnosis import IMAGES
from eval.diagnosis.bench import AnswersBench, Machine, ModelBench, in_order
from eval.diagnosis.edits import suspicious
from eval.diagnosis.hypotheses import TABLE
from eval.diagnosis.page import html_page
from eval.diagnosis.report import Diagnosis, Expected
from eval.diagnosis.search import search
from eval.errors import EvalError, ModelError, UsageError
from eval.files import write_atomically
from eval.images.valset import ValSet
from eval.jobs.score import predictions_file
from eval.judge.verdict import Verdict
from eval.measure.given import match, read_answers
from eval.measure.settings import exact_settings
from eval.measure.setup import choose_computation, open_data, open_images, outputs_of
from eval.models import Source, Subject, open_source
from eval.progress import Event, Observer, ignore
from eval.request import Request
from eval.results.evaluation import Evaluation

POINTS = 2.0  # percentage points below the reference that suggest a diagnosis


LOWEST = 1.0  # percent


def diagnose(request: Request, images: int = IMAGES, progress: Observer = ignore) -> Diagnosis:
    """Try the known mistakes on a sample, and name the one that explains the accuracy.

    Nothing is printed, and every global setting is put back.

    Args:
        request: what is to be diagnosed, as it was evaluated; its `limit` and its reports are
            ignored.
        images: size of the sample, the first images of the fixed shuffled order.
        progress: called with every `eval.progress.Event`.

    Raises:
        UsageError: options that do not go together.
        DataError: the validation set is missing, mislabeled or unreadable.
        ModelError: the checkpoint is missing, damaged, refused or of another model.
    """
    source = open_source(request)
    with TemporaryDirectory(prefix="pplcnet-eval-") as workspace:
        valset = open_images(source, Path(workspace), progress=progress)
        with exact_settings():
            subject = _load(source, outputs_of(request, len(valset.classes)), progress)
            return diagnose_subject(subject, valset, source, images, progress)


def diagnose_subject(
    subject: Subject, valset: ValSet, source: Source, images: int, progress: Observer = ignore
) -> Diagnosis:
    """Diagnose a model that has been loaded; see `diagnose`."""
    setup = choose_computation(source, subject, min(images, len(valset.samples)), {})
    assert setup.batch_size is not None
    assert setup.workers is not None
    machine = Machine(
        backend=setup.backend,
        precision=source.request.precision,
        device=torch.device(setup.device),
        batch_size=setup.batch_size,
        workers=setup.workers * setup.processes_here,  # one process: each try has another model
        own=source.own_preprocess(),
        output=source.request.output_name,
        background_first=source.request.background_first,
    )
    bench = ModelBench(subject, valset, machine, images, progress)
    findings = search(bench)
    found = findings.best.setup if findings.best else findings.as_is
    among = valset.image_set.classes
    return Diagnosis(
        subject=subject.title,
        data=f"{valset.root} ({valset.layout})",
        findings=findings,
        expected=_expected(subject, valset),
        notes=_notes(subject, findings.as_is.form),
        caution=subject.caution,
        classes=len(valset.classes if among is None else among),
        preprocess=bench.argument(found),
        described=subject.preprocess.description,
    )


def diagnose_predictions(
    request: Request, predictions: Path, names: Path | None = None, array: str | None = None
) -> Diagnosis:
    """Try the possible orders of the classes on predictions that were made elsewhere.

    Args:
        request: the images that they belong to.
        predictions: logits or ranked classes, see `eval.score`.
        names: see `eval.measure.given.read_answers`.
        array: the same.

    Raises:
        UsageError: there is no such file, or options do not fit it.
        DataError: the validation set or the predictions cannot be used.
        LogitsError: predictions that are not finite.
    """
    if request.data is None:
        raise UsageError("--predictions needs the validation set: name it with --data.")
    valset = open_data(request, Path(request.data))
    outputs = len(valset.classes)
    predictions = predictions_file(predictions)
    try:
        answers = read_answers(predictions, outputs, names, array)
    except EvalError:  # with one class more, the first may be the background
        answers = read_answers(predictions, outputs + 1, names, array)
        outputs += 1
    row_of = match(answers.names, valset.samples)
    bench = AnswersBench(
        in_order(answers, np.array([row_of[i] for i in sorted(row_of)])),
        valset,
        sorted(row_of),
        outputs,
    )
    return Diagnosis(
        subject=str(predictions),
        data=f"{valset.root} ({valset.layout})",
        findings=search(bench, [row for row in TABLE if row.is_about_labels]),
        classes=len(valset.classes),
    )


def _load(source: Source, classes: int, progress: Observer) -> Subject:
    """The model, even if it has one output more than there are classes."""
    try:
        return source.load(classes, progress)
    except ModelError:
        with suppress(EvalError):
            subject = source.load(classes + 1, progress)
            progress(Event(message=f"{subject.weights} has {classes + 1} outputs"))
            return subject
        raise


def _expected(subject: Subject, valset: ValSet) -> Expected | None:
    """The reported accuracy, where a run is compared with it."""
    reference = subject.published.reference_for(subject.preprocess.name)
    if reference is None or reference.top1 is None or not reference.gated:
        return None
    return Expected(reference.top1, reference.source) if valset.image_set.is_judged else None


def _notes(subject: Subject, form: str) -> tuple[str, ...]:
    """Signs that the model was never trained."""
    found = suspicious(subject.forms[form])
    return tuple(f"{what}. Was the checkpoint saved before it was trained?" for what in found)


def suggests_diagnosis(evaluation: Evaluation) -> bool:
    """Whether an accuracy is so low that a known mistake is likely.

    That is a FAIL whose top-1 is more than 2 points below the reference, or below 1 %.
    """
    for result in evaluation.judgment.forms:
        delta = result.delta(1)
        is_low = result.accuracy(1) < LOWEST or (delta is not None and delta < -POINTS)
        if result.verdict is Verdict.FAIL and is_low:
            return True
    return False


def save(diagnosis: Diagnosis, json_file: Path | None, html_file: Path | None) -> None:
    """Write a diagnosis to the files that were named."""
    if json_file:
        write_atomically(json_file, json.dumps(diagnosis.as_json(), indent=1) + "\n")
    if html_file:
        write_atomically(html_file, html_page(diagnosis))


def diagnose_command(request: Request) -> str:
    """The command line that diagnoses what a request evaluates."""
    return shlex.join(["python", "-m", "eval.diagnose", *request.words("subject", "compute")])
