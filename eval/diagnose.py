"""``python -m eval.diagnose``: why is this accuracy wrong?

It takes what `eval.imagenet` takes, measures a sample as configured, and tries the known mistakes
on it (eval/diagnosis/hypotheses.py), one change at a time and then pairs.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from eval.cli import program
from eval.command import run_command
from eval.errors import EvalError, ModelError, UsageError
from eval.measure.progress import Event, Observer, ProgressBar, ignore
from eval.models import open_source
from eval.options import (
    add_array_options,
    add_compute_options,
    add_message_options,
    add_subject_options,
    positive,
)
from eval.request import Request

if TYPE_CHECKING:
    from eval.diagnosis.report import Diagnosis, Expected
    from eval.evaluation import Evaluation
    from eval.images.valset import ValSet
    from eval.models import Source, Subject

IMAGES = 500
POINTS = 2.0  # percentage points below the reference that suggest a diagnosis
LOWEST = 1.0  # percent

EPILOG = """
Exit codes: 0 healthy; 1 explained or unexplained; 2 wrong options; 3 data; 4 checkpoint;
5 useless predictions; 70 a bug in this package; 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code."""
    return run_command(_main, argv)


def _main(arguments: Sequence[str]) -> int:
    args = _parser().parse_args(arguments)
    options = {name: value for name, value in vars(args).items() if name in _REQUESTED}
    request = Request(**options, command=shlex.join(["python", "-m", "eval.diagnose", *arguments]))
    with ProgressBar(args.quiet) as progress:
        if args.predictions:
            found = diagnose_predictions(request, args.predictions, args.names, args.array)
        else:
            found = diagnose(request, args.images, progress)
    report(found, args.json, args.html)
    return found.exit_code


def report(diagnosis: Diagnosis, json_file: Path | None, html_file: Path | None) -> None:
    """Print a diagnosis, and write it to the files that were named.

    Raises:
        UsageError: a file cannot be written.
    """
    import json

    from eval.diagnosis.report import text
    from eval.results.files import write_atomically

    print(text(diagnosis))
    if json_file:
        write_atomically(json_file, json.dumps(diagnosis.as_json(), indent=1) + "\n")
    if html_file:
        from eval.diagnosis.page import html_page

        write_atomically(html_file, html_page(diagnosis))


def diagnose(request: Request, images: int = IMAGES, progress: Observer = ignore) -> Diagnosis:
    """Try the known mistakes on a sample, and name the one that explains the accuracy.

    Nothing is printed, and every global setting is put back.

    Args:
        request: what is to be diagnosed, as it was evaluated; its `limit` and its reports are
            ignored.
        images: size of the sample, the first images of the fixed shuffled order.
        progress: called with every `eval.measure.progress.Event`.

    Raises:
        UsageError: options that do not go together.
        DataError: the validation set is missing, mislabelled or unreadable.
        ModelError: the checkpoint is missing, damaged, refused or of another model.
    """
    from eval.images.classes import read_classes
    from eval.images.valset import open_valset
    from eval.measure.settings import exact_settings

    source = open_source(request)
    with TemporaryDirectory(prefix="pplcnet-eval-") as workspace:
        root = source.images(Path(workspace), progress)
        classes = read_classes(Path(request.classes)) if request.classes else None
        valset = open_valset(root, Path(request.labels) if request.labels else None, classes)
        with exact_settings():
            subject = _load(source, len(valset.classes), progress)
            return diagnose_subject(subject, valset, source, images, progress)


def diagnose_subject(
    subject: Subject, valset: ValSet, source: Source, images: int, progress: Observer = ignore
) -> Diagnosis:
    """Diagnose a model that has been loaded; see `diagnose`.

    Args:
        subject: the model, as configured.
        valset: the whole validation set.
        source: where the model is from; its request says how to compute.
        images: size of the sample.
        progress: see `diagnose`.
    """
    import torch

    from eval.backends.device import choose_device
    from eval.diagnosis.bench import Machine, ModelBench
    from eval.diagnosis.report import Diagnosis
    from eval.diagnosis.search import search
    from eval.measure.engine import choose_batch_size, choose_workers

    request = source.request
    device: torch.device = choose_device(request.device)
    machine = Machine(
        backend=request.backend or source.backend,
        precision=subject.precision or request.precision,
        device=device,
        batch_size=min(request.batch_size or choose_batch_size(device), len(valset.samples)),
        workers=request.workers or choose_workers(),
        own_table=source.own_preprocess().table,
    )
    bench = ModelBench(subject, valset, machine, images, progress)
    findings = search(bench)
    return Diagnosis(
        subject=subject.title,
        data=f"{valset.root} ({valset.layout})",
        findings=findings,
        expected=_expected(subject, valset),
        notes=_notes(subject, findings.as_is.form),
        caution=subject.caution,
    )


def diagnose_predictions(
    request: Request, predictions: Path, names: Path | None = None, array: str | None = None
) -> Diagnosis:
    """Try the possible orders of the classes on predictions that were made elsewhere.

    Args:
        request: the images that they belong to.
        predictions: logits or ranked classes, see `eval.score`.
        names: see `eval.results.predictions.read_answers`.
        array: the same.

    Raises:
        UsageError: there is no such file, or options do not fit it.
        DataError: the validation set or the predictions cannot be used.
        LogitsError: predictions that are not finite.
    """
    import numpy as np

    from eval.diagnosis.bench import AnswersBench, in_order
    from eval.diagnosis.hypotheses import TABLE
    from eval.diagnosis.report import Diagnosis
    from eval.diagnosis.search import search
    from eval.images.classes import read_classes
    from eval.images.valset import open_valset
    from eval.results.predictions import match, read_answers

    if request.data is None:
        raise UsageError("--predictions needs the validation set: name it with --data.")
    classes = read_classes(Path(request.classes)) if request.classes else None
    labels = Path(request.labels) if request.labels else None
    valset = open_valset(Path(request.data), labels, classes)
    outputs = len(valset.classes)
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
    )


def _load(source: Source, classes: int, progress: Observer) -> Subject:
    """The model, even if it has one output more than there are classes.

    Raises:
        ModelError: see `eval.models.Source.load`.
    """
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
    from eval.diagnosis.report import Expected

    reference = subject.published.reference_for(subject.preprocess.name)
    if reference is None or reference.top1 is None or not reference.gated:
        return None
    return Expected(reference.top1, reference.source) if valset.image_set.is_judged else None


def _notes(subject: Subject, form: str) -> tuple[str, ...]:
    """Signs that the model was never trained."""
    from eval.diagnosis.edits import suspicious

    found = suspicious(subject.forms[form])
    return tuple(f"{what}. Was the checkpoint saved before it was trained?" for what in found)


def suggests_diagnosis(evaluation: Evaluation) -> bool:
    """Whether an accuracy is so low that a known mistake is likely.

    That is a FAIL whose top-1 is more than 2 points below the reference, or below 1 %.
    """
    from eval.judge.verdict import Verdict

    for result in evaluation.judgement.forms:
        delta = result.delta(1)
        is_low = result.accuracy(1) < LOWEST or (delta is not None and delta < -POINTS)
        if result.verdict is Verdict.FAIL and is_low:
            return True
    return False


def diagnose_command(request: Request) -> str:
    """The command line that diagnoses what a request evaluates."""
    words = ["python", "-m", "eval.diagnose"]
    for name in _COMMAND:
        value = getattr(request, name)
        if value is True:
            words.append(_option(name))
        elif value != Request.__dataclass_fields__[name].default:
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            words += [_option(name), text]
    return shlex.join(words)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


_COMMAND = (
    *("data", "demo", "variant", "config", "model", "weights", "forms", "preprocess"),
    *("classes", "labels", "backend", "device", "precision", "batch_size", "workers"),
)
_REQUESTED = frozenset(field.name for field in fields(Request)) - {"command"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("diagnose"),
        description="Explain a wrong accuracy: try the known mistakes on a sample of the images, "
        "and name the one that restores it.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    add_subject_options(parser)
    add_compute_options(parser)
    add = parser.add_argument
    add(
        "--images",
        type=positive,
        default=IMAGES,
        metavar="N",
        help="size of the sample (default %(default)s)",
    )
    add(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="predictions made elsewhere, instead of a model; only the order of their classes "
        "is tried",
    )
    add_array_options(parser)
    add("--json", type=Path, metavar="FILE", help="write the diagnosis to this file, for programs")
    add("--html", type=Path, metavar="FILE", help="write it to this file as a page")
    add_message_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
