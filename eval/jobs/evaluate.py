"""The whole path, from a request to a verdict.

request   what is asked for                             eval/request.py
source    finds the model, refuses wrong options        eval/models/
images    opens the validation set, checks its labels   eval/images/valset.py
subject   the model, its files and its preprocessing    eval/models/
measure   every image decoded once, every form asked    eval/measure/engine.py
judge     counts against the reported figures           eval/judge/verdict.py
save      CSV, JSON and HTML reports                    eval/results/
follow up the history, and the gate against a baseline  eval/history.py, eval/regression.py
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from eval.backends import Task, create_predictor
from eval.backends.device import choose_device, int8_note
from eval.errors import DataError, EvalError, UsageError
from eval.files import write_atomically
from eval.images.cache import CropCache
from eval.images.classes import read_classes
from eval.images.labelset import real, score
from eval.images.valset import ValSet, image_list_sha256, open_valset
from eval.jobs.compare import check_baseline, compare_results
from eval.judge.early import Stopper, stopper_for
from eval.judge.gate import Asked
from eval.judge.verdict import judge
from eval.measure import engine
from eval.measure.engine import Measurement, choose_batch_size, choose_workers
from eval.measure.journal import Journal, NoJournal
from eval.measure.latency import LatencyRow, measure_latency
from eval.measure.settings import exact_settings
from eval.models import Source, Subject, choose_preprocess, open_source
from eval.processes import Group, process_group
from eval.progress import Event, Observer, ignore
from eval.provenance import Provenance, code_sha256, versions
from eval.request import Benchmark, Request
from eval.results.evaluation import Evaluation
from eval.results.folder import OutputFolder, run_json
from eval.results.history import append_history, check_history
from eval.results.model_card import eval_results, model_card
from eval.results.read import read_result
from eval.results.record import Computation, LabelResult
from eval.results.schema import RUN_FILE


def evaluate(request: Request, progress: Observer = ignore) -> Evaluation:
    """Measure a model on a validation set, and judge whether it has the reported accuracy.

    Nothing is printed, no signal handler is installed, and every global setting is put back.

    Args:
        request: what is asked for.
        progress: called with every `eval.progress.Event`, in this thread.

    Returns:
        The evaluation, whatever its verdict. With ``request.output``, its reports are written.

    Raises:
        UsageError: options that do not go together, or a folder that cannot be written to.
        DataError: the validation set is missing, mislabeled or unreadable.
        ModelError: the checkpoint is missing, damaged, refused or of another model.
        LogitsError: a prediction is not finite, or the same for every class.
    """
    started = datetime.now(UTC)
    check_folders(request)
    with (
        process_group() as group,
        OutputFolder(_path(request.output), is_first=group.is_first) as folder,
        _workspace(folder.path) as workspace,
    ):
        if folder.note:
            progress(Event(message=folder.note))
        source = open_source(request)
        check_follow_ups(request, source)
        run = Run(request, source, group, folder, progress)
        valset = _open_images(run, workspace)

        with exact_settings() as settings:
            subject = source.load(len(valset.classes), progress)
            setup = _choose_setup(run, subject, valset, settings)
            with _open_journal(run, subject, setup, valset) as journal:
                measured, setup = _measure(run, subject, setup, valset, journal)
                subject.check_unchanged()
                evaluation = Evaluation(
                    subject=subject,
                    data=str(request.data or valset.root),
                    setup=setup,
                    provenance=_provenance(request, subject, started),
                    measured=measured,
                    judgment=judge(
                        measured, subject.published, subject.preprocess.name, setup.precision
                    ),
                    by_other_labels=_by_other_labels(request, measured),
                    latency=_latency(run, subject, setup, valset),
                )
                if folder.path is not None and group.is_first:
                    folder.save(evaluation)
                    journal.remove()
        return follow_up(evaluation, request, folder) if group.is_first else evaluation


@dataclass(frozen=True)
class Run:
    """What the steps of one evaluation have in common."""

    request: Request
    source: Source
    group: Group
    folder: OutputFolder
    progress: Observer


def check_folders(request: Request) -> None:
    """Check, before the output folder is claimed, that it is there and no other's.

    Raises:
        UsageError: what follows the run needs an output folder, or another one.
    """
    if request.output is None and (request.history or request.baseline):
        raise UsageError("--history and --baseline need the reports: name an --output folder.")
    if request.output is not None and request.baseline:
        baseline = Path(request.baseline)
        places = {baseline.resolve(), baseline.parent.resolve() if baseline.is_file() else None}
        if Path(request.output).resolve() in places:
            raise UsageError("--baseline and --output are the same folder: name another one.")


def check_follow_ups(request: Request, source: Source) -> None:
    """Check, before hours are spent, that the history and the baseline can be used.

    Raises:
        UsageError: one of them cannot.
    """
    if request.history:
        check_history(Path(request.history))
    if request.baseline:
        check_baseline(request.baseline, source.name, choose_preprocess(source).name)


def follow_up(evaluation: Evaluation, request: Request, folder: OutputFolder) -> Evaluation:
    """Add the summary to the history, and compare with the baseline.

    A failure here neither changes nor hides the verdict: it is added to `problems`.
    """
    comparisons, problems = evaluation.comparisons, list(evaluation.problems)
    if request.history and request.output:
        try:
            append_history(Path(request.history), Path(request.output))
        except EvalError as error:
            problems.append(error)
    if request.model_card:
        try:
            _write_model_card(evaluation, Path(request.model_card), request.hub_benchmark)
        except EvalError as error:
            problems.append(error)
    if request.baseline and request.output and not evaluation.measured.stopped:
        forms = list(evaluation.measured.scores)
        asked = Asked(form=forms[0]) if len(forms) == 1 else Asked()
        try:
            comparisons = tuple(
                compare_results(request.baseline, request.output, asked, output=folder)
            )
        except EvalError as error:
            problems.append(error)
    followed = replace(evaluation, comparisons=comparisons, problems=tuple(problems))
    if followed.exit_code != evaluation.exit_code:
        folder.write(RUN_FILE, run_json(followed))
    return followed


def _write_model_card(evaluation: Evaluation, path: Path, hub_benchmark: str | None) -> None:
    """Write the model card, and the files of ``.eval_results`` beside it.

    Raises:
        UsageError: the result does not belong there, or a file cannot be written.
    """
    rows: list[Any] = evaluation.summary.to_dict("records")
    write_atomically(path, model_card(rows, model_name=evaluation.subject.name))
    if hub_benchmark is None:
        return
    for name, text in eval_results(rows, benchmark=Benchmark.parse(hub_benchmark)).items():
        write_atomically(path.parent / ".eval_results" / name, text)


def _path(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path)


@contextmanager
def _workspace(output: Path | None) -> Iterator[Path]:
    """A folder for files that a run needs: the output folder, or a temporary one."""
    if output is not None:
        yield output
        return
    with TemporaryDirectory(prefix="pplcnet-eval-") as folder:
        yield Path(folder)


def _open_images(run: Run, workspace: Path) -> ValSet:
    """The images to evaluate.

    Raises:
        DataError: there is no validation set, it cannot be what it should be, or it has more
            images than the reported figures are of.
    """
    request, group = run.request, run.group
    root = None
    if group.is_first:
        root = run.source.images(workspace, run.progress)
    group.wait()
    root = root or run.source.images(workspace, run.progress)  # made by the first process
    classes = read_classes(Path(request.classes)) if request.classes else None
    valset = open_valset(root, _path(request.labels), classes, run.source.image_set)
    whole = len(valset.samples)
    expected = run.source.published.images
    if valset.image_set.is_judged and whole > expected:
        raise DataError(
            f"--data {root}: {whole:,} images, but the reported figures are for {expected:,}.\n"
            "Were images copied twice, or is `images` in the configuration wrong?"
        )
    if request.real_labels:
        real(valset)  # fails now rather than after hours
    return valset if request.limit is None else valset.limited(request.limit)


def _choose_setup(
    run: Run, subject: Subject, valset: ValSet, settings: dict[str, Any]
) -> Computation:
    """How to compute: as requested, else to suit the machine."""
    request = run.request
    device = choose_device(request.device, run.group.local_number)
    batch_size = request.batch_size or choose_batch_size(device)
    if subject.precision == "int8":
        settings = {**settings, "int8": int8_note()}
    return Computation(
        backend=request.backend or run.source.backend,
        device=str(device),
        precision=subject.precision or request.precision,
        batch_size=min(batch_size, len(valset.samples)),
        workers=request.workers or choose_workers(),
        processes=run.group.count,
        settings=settings,
    )


def _open_journal(
    run: Run, subject: Subject, setup: Computation, valset: ValSet
) -> Journal | NoJournal:
    """The records of an interrupted run, if it was exactly this run."""
    forms = list(subject.forms)
    if run.folder.path is None:
        return NoJournal(forms)
    run.folder.claim()
    run.group.wait()
    identity = {
        "subject": subject.name,
        "files": {file.path.name: file.sha256 for file in subject.files},
        "forms": forms,
        "preprocess": subject.preprocess.name,
        "preprocess_description": subject.preprocess.description,
        "backend": setup.backend,
        "device": setup.device.partition(":")[0],
        "precision": setup.precision,
        "on_bad_image": run.request.on_bad_image,
        "order": "shuffled" if run.request.stop_early else "as it is",
        "images": len(valset.samples),
        "image_list_sha256": image_list_sha256(valset),
        "image_set": valset.image_set.title,
        "classes": len(valset.classes),
        "code_sha256": code_sha256(),
        "versions": versions(),
    }
    return Journal(run.folder.path, identity, forms, run.group.number)


def _measure(
    run: Run, subject: Subject, setup: Computation, valset: ValSet, journal: Journal | NoJournal
) -> tuple[Measurement, Computation]:
    """Every image through every form."""
    request, group, preprocess = run.request, run.group, subject.preprocess
    assert setup.batch_size is not None
    assert setup.workers is not None
    run.progress(Event(message=_headline(request, subject, setup, valset)))
    predictor = create_predictor(
        setup.backend,
        subject.forms,
        preprocess,
        torch.device(setup.device),
        request.precision,
        batch_size=setup.batch_size,
        workers=setup.workers,
        classes=len(valset.classes),
    )
    plan = engine.Plan(
        preprocess,
        tuple(subject.forms),
        setup.batch_size,
        setup.workers,
        share=(group.number, group.count),
        record_bad=request.on_bad_image == "record",
    )
    counter = _Counter(run.progress, len(valset.samples) // group.count)
    stopper = _stopper(run, subject, valset, setup)
    if stopper:
        plan = replace(plan, order=np.array(valset.shuffled()))
    cache = _path(request.cache)
    with CropCache(cache, valset, preprocess) if cache else nullcontext() as crops:
        part = engine.measure(
            valset,
            engine.ShrinkOnOutOfMemory(predictor, counter.tell),
            plan,
            journal=journal,
            cache=crops,
            progress=counter.add,
            stopper=stopper,
        )
    setup = replace(setup, settings={**setup.settings, **getattr(predictor, "settings", {})})
    stopped, bound = (stopper.reason, stopper.bound) if stopper else ("", {})
    return engine.assemble(valset, group.gather(part), plan.forms, stopped, bound), setup


def _stopper(run: Run, subject: Subject, valset: ValSet, setup: Computation) -> Stopper | None:
    """What ends the run early, if that was asked for."""
    if not run.request.stop_early:
        return None
    baseline = read_result(run.request.baseline) if run.request.baseline else None
    return stopper_for(run.group, subject, valset, baseline, setup.precision)


class _Counter:
    """Adds up batches for an observer."""

    def __init__(self, observer: Observer, total: int) -> None:
        self._observer, self._total = observer, total
        self._done = self._correct = 0

    def add(self, images: int, correct: int) -> None:
        """A batch is done."""
        self._done += images
        self._correct += correct
        self._observer(Event("evaluating", self._done, self._total, self._correct))

    def tell(self, message: str) -> None:
        """Something a person should know."""
        self._observer(Event(message=message))


def _headline(request: Request, subject: Subject, setup: Computation, valset: ValSet) -> str:
    """What is about to be measured."""
    return (
        f"{request.data or valset.root}: {valset.layout}, {len(valset.samples):,} images\n"
        f"{subject.weights}: {subject.layout}\n"
        f"{setup.backend} on {setup.device}, {subject.preprocess.name} preprocessing; "
        f"{setup.workers} workers, batches of {setup.batch_size}"
    )


def _by_other_labels(request: Request, measured: Measurement) -> tuple[LabelResult, ...]:
    """The accuracies by other labels than the set's own, where they were asked for."""
    if not request.real_labels:
        return ()
    label_set = real(measured.valset)
    return tuple(
        LabelResult(form, score(label_set, scores.top)) for form, scores in measured.scores.items()
    )


def _latency(
    run: Run, subject: Subject, setup: Computation, valset: ValSet
) -> tuple[LatencyRow, ...]:
    """The time of one image, where that was asked for."""
    if not run.request.latency or not run.group.is_first:
        return ()
    run.progress(Event(message="measuring the latency of single images"))
    task = Task(
        setup.backend,
        subject.forms,
        subject.preprocess,
        torch.device(setup.device),
        run.request.precision,
        batch_size=1,
        workers=1,
        classes=len(valset.classes),
    )
    return tuple(measure_latency(task, valset))


def _provenance(request: Request, subject: Subject, started: datetime) -> Provenance:
    command = request.command or f"evaluate({request!r})"
    return Provenance.of(subject.name, started, command, request.as_dict())
