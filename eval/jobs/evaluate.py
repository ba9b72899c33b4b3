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

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eval.errors import DataError, EvalError, UsageError
from eval.files import write_atomically
from eval.images.cache import CropCache
from eval.images.labelset import real, score
from eval.images.valset import ValSet
from eval.jobs.compare import check_baseline, compare_results
from eval.judge.early import SequentialStopper, stopper_for
from eval.judge.gate import Asked
from eval.judge.verdict import judge
from eval.measure.engine import Engine
from eval.measure.identity import Identity, agree, identity_of
from eval.measure.journal import Journal
from eval.measure.latency import LatencyRow, measure_latency
from eval.measure.measurement import Measurement
from eval.measure.settings import check_settings, exact_settings, precision_in_effect
from eval.measure.setup import Computation, choose_computation, open_images, outputs_of, task_of
from eval.models import Source, Subject, choose_preprocess, open_source
from eval.processes import Group, process_group
from eval.progress import Event, Observer, ignore
from eval.provenance import Provenance, check_code
from eval.request import Benchmark, Request
from eval.results.evaluation import Evaluation
from eval.results.folder import OutputFolder, run_json
from eval.results.history import append_history, check_history
from eval.results.model_card import eval_results, model_card
from eval.results.read import read_result
from eval.results.record import LabelResult
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
    with process_group() as group, ExitStack() as stack:
        # Until all have the records of all, an error of one process is one of all.
        together = group.together
        together(lambda: check_folders(request))
        output = group.gather(_path(request.output))[0]  # its name may hold the time
        folder = together(
            lambda: stack.enter_context(OutputFolder(output, is_first=group.is_first))
        )
        workspace = stack.enter_context(_workspace(folder.path))
        if folder.note:
            progress(Event(message=folder.note))
        source = together(lambda: _open_source(request))
        run = Run(request, source, group, folder, progress, stack)
        valset = together(lambda: _open_images(run, workspace))

        with exact_settings() as settings:
            prepared = together(lambda: _prepare(run, valset, settings))
            subject, setup = prepared.subject, prepared.setup
            agree(group, prepared.identity, subject, setup)
            with ExitStack() as held:
                journal = together(lambda: held.enter_context(_open_journal(run, prepared)))
                measured = together(lambda: _measure(run, prepared, valset, journal))
                evaluation = Evaluation(
                    subject=subject,
                    data=str(request.data or valset.root),
                    setup=setup,
                    provenance=_provenance(request, prepared, started),
                    measured=measured,
                    judgment=judge(
                        measured, subject.published, subject.preprocess.name, setup.precision
                    ),
                    by_other_labels=_by_other_labels(request, measured),
                    latency=_latency(run, prepared, valset),
                )
                if journal and folder.path is not None and group.is_first:
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
    held: ExitStack  # what ends with the run


def check_folders(request: Request) -> None:
    """Check, before the output folder is claimed, that it is there and no other's."""
    if request.output is None and (request.history or request.baseline):
        raise UsageError("--history and --baseline need the reports: name an --output folder.")
    if request.output is not None and request.baseline:
        baseline = Path(request.baseline)
        places = {baseline.resolve(), baseline.parent.resolve() if baseline.is_file() else None}
        if Path(request.output).resolve() in places:
            raise UsageError("--baseline and --output are the same folder: name another one.")


@dataclass(frozen=True)
class Prepared:
    """What is ready to be measured.

    Attributes:
        setup: how, with what the engine has chosen.
    """

    subject: Subject
    engine: Engine
    setup: Computation
    identity: Identity


def _open_source(request: Request) -> Source:
    """The source of the model, with all that can be checked before anything is loaded."""
    source = open_source(request)
    check_follow_ups(request, source)
    return source


def check_follow_ups(request: Request, source: Source) -> None:
    """Check, before hours are spent, that the history and the baseline can be used."""
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
    """Write the model card, and the files of ``.eval_results`` beside it."""
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
    """The images to evaluate."""
    request = run.request
    valset = open_images(run.source, workspace, run.group, run.progress)
    whole = len(valset.samples)
    expected = run.source.published.images
    if valset.image_set.is_judged and whole > expected:
        raise DataError(
            f"--data {request.data}: {whole:,} images, but the reported figures are for "
            f"{expected:,}.\n"
            "Were images copied twice, or is `images` in the configuration wrong?"
        )
    if request.real_labels:
        real(valset)  # fails now rather than after hours
    return valset if request.limit is None else valset.limited(request.limit)


def _prepare(run: Run, valset: ValSet, settings: Mapping[str, Any]) -> Prepared:
    """The model, in its runtime, and what this run is."""
    outputs = outputs_of(run.request, len(valset.classes))
    subject = run.source.load(outputs, run.progress)
    setup = choose_computation(run.source, subject, len(valset.samples), settings, run.group)
    run.folder.claim()
    run.progress(Event(message=_headline(run.request, subject, setup, valset)))
    task = task_of(run.request, subject, setup, len(valset.classes))
    engine = run.held.enter_context(closing(Engine(task, run.progress, setup.processes_here)))
    precision, reason = precision_in_effect(setup.precision)
    if reason:
        run.progress(Event(message=f"{reason}: fp32 may be computed as {precision}"))
    setup = replace(setup, precision=precision)
    identity = identity_of(run.request, subject, valset, setup)
    check_code()
    chosen = replace(setup, settings={**setup.settings, **engine.settings})
    return Prepared(subject, engine, chosen, identity)


@contextmanager
def _open_journal(run: Run, prepared: Prepared) -> Iterator[Journal | None]:
    """The records of an interrupted run, if it was exactly this run; None without a folder."""
    if run.folder.path is None:
        yield None
        return
    forms = list(prepared.subject.forms)
    with Journal(run.folder.path, prepared.identity, forms, run.group.number) as journal:
        yield journal


def _measure(run: Run, prepared: Prepared, valset: ValSet, journal: Journal | None) -> Measurement:
    """Every image through every form, by what is still the same after the last one."""
    subject = prepared.subject
    stopper = _stopper(run, subject, valset, prepared.setup)
    cache = _path(run.request.cache)

    def check() -> None:
        subject.check_unchanged()
        check_settings()
        check_code()

    with CropCache(cache, valset, subject.preprocess) if cache else nullcontext() as crops:
        return prepared.engine.measure(
            valset,
            group=run.group,
            record_bad=run.request.on_bad_image == "record",
            journal=journal,
            cache=crops,
            stopper=stopper,
            check=check,
        )


def _stopper(
    run: Run, subject: Subject, valset: ValSet, setup: Computation
) -> SequentialStopper | None:
    """What ends the run early, if that was asked for."""
    if not run.request.stop_early:
        return None
    baseline = read_result(run.request.baseline) if run.request.baseline else None
    return stopper_for(run.group, subject, valset, baseline, setup.precision)


def _headline(request: Request, subject: Subject, setup: Computation, valset: ValSet) -> str:
    """What is about to be measured."""
    processes = f"{setup.processes} processes of " if setup.processes != 1 else ""
    return (
        f"{request.data or valset.root}: {valset.layout}, {len(valset.samples):,} images\n"
        f"{subject.weights}: {subject.layout}\n"
        f"{setup.backend} on {setup.device}, {subject.preprocess.name} preprocessing; "
        f"{processes}{setup.workers} workers, batches of {setup.batch_size}"
    )


def _by_other_labels(request: Request, measured: Measurement) -> tuple[LabelResult, ...]:
    """The accuracies by other labels than the set's own, where they were asked for."""
    if not request.real_labels:
        return ()
    label_set = real(measured.valset)
    return tuple(
        LabelResult(form, score(label_set, scores.top)) for form, scores in measured.scores.items()
    )


def _latency(run: Run, prepared: Prepared, valset: ValSet) -> tuple[LatencyRow, ...]:
    """The time of one image, where that was asked for."""
    if not run.request.latency or not run.group.is_first:
        return ()
    run.progress(Event(message="measuring the latency of single images"))
    return tuple(measure_latency(prepared.engine.task, valset))


def _provenance(request: Request, prepared: Prepared, started: datetime) -> Provenance:
    command = request.command or f"evaluate({request!r})"
    return replace(
        Provenance.of(prepared.subject.name, started, command, request.as_dict()),
        versions=prepared.identity["versions"],
        identity=prepared.identity,
    )
