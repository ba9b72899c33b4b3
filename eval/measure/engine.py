"""The measurement: each image is decoded once, run through every form, and scored.

One single-threaded worker per core decodes, crops and runs its own small batches, so that no pixels
are passed between processes and no thread waits for another. The workers can be threads because
decoding, resizing and convolution release the interpreter's lock; for many cores there are several
processes of a few threads each (`eval.measure.crew`).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eval.backends import BACKENDS, Predictor, Task, predictor_for, prepared
from eval.errors import UsageError
from eval.images.cache import CropCache
from eval.images.preprocess import Crop
from eval.images.valset import ValSet
from eval.measure.batch import BatchEvaluator, Plan, ShrinkOnOutOfMemory
from eval.measure.crew import Crew, Evaluator, Job, closed_on_error
from eval.measure.journal import Journal, NoJournal, Records
from eval.measure.measurement import Measurement, Part, assemble
from eval.measure.reading import read_crops, read_hashed, worker_threads
from eval.measure.settings import give_back_freed_memory
from eval.metrics import Kind, as_logits, kind_of, without_background
from eval.processes import Group
from eval.progress import Event, Observer, ignore

_ALONE = Group()
_LOOK = 0.005  # seconds between two looks at what the workers have done
_SHOWN = 8  # images, by which is seen what the outputs are


class Stopper(Protocol):
    """Ends a measurement as soon as its outcome is certain (eval/judge/early.py).

    Attributes:
        reason: why it ended; "" if it did not.
        bound: see `Measurement`.
    """

    reason: str
    bound: dict[str, Any]

    def begin(self, kept: Records, batches: int) -> bool:
        """Start with the records of an interrupted run; return whether to stop at once.

        Args:
            kept: the records.
            batches: how many batches of this process are left.
        """

    def after(self, records: Records) -> bool:
        """Add the records of a batch; return whether to stop."""

    def finish(self) -> None:
        """Called when this process has no batches left; others may still have some."""


class Engine:
    """A model in its runtime: every rank, and every logit, is computed here.

    Args:
        task: the model, and how it is computed.
        progress: called with every `eval.progress.Event`.
        processes: that measure, each with the threads of the task.

    Attributes:
        task: as given.

    Raises:
        UsageError, ModelError: see `eval.backends.create_predictor`.
    """

    def __init__(self, task: Task, progress: Observer = ignore, processes: int = 1) -> None:
        self.task, self._progress = task, progress
        self._crew = Crew(processes, task.workers, progress) if processes > 1 else None
        with closed_on_error(self._crew), prepared(task) as ready:
            # What this process finds out by timing, the others are told.
            timed = BACKENDS[task.backend].fixed_batch
            if self._crew and not timed:
                self._crew.take(ready)
            predictor = predictor_for(ready)
            if self._crew and timed:
                self._crew.take(replace(ready, chosen=getattr(predictor, "chosen", {})))
            self._predictor = ShrinkOnOutOfMemory(
                predictor, lambda message: progress(Event(message=message))
            )
            give_back_freed_memory()
            if self._crew:
                self._crew.ready(task, self._predictor.settings)

    def close(self) -> None:
        """End the other processes, if there are any; nothing can be measured afterwards."""
        if self._crew:
            self._crew.close()

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """What was set or chosen in the runtime, for ``run.json``."""
        outputs = {form: kind.words for form, kind in self.kinds.items() if kind.words}
        return {**self._predictor.settings, **({"outputs": outputs} if outputs else {})}

    @cached_property
    def kinds(self) -> Mapping[str, Kind]:
        """What the outputs of each form are, by its answers to images of noise."""
        known = self._predictor.kinds
        if known.keys() >= self.task.models.keys():
            return known
        size, rng = self.task.preprocess.size, np.random.default_rng(1)
        count = math.ceil(_SHOWN / self.task.batch_size) * self.task.batch_size
        crops = rng.integers(0, 256, (count, size, size, 3), np.uint8)
        crops[::2] = crops[::2, :1, :1]  # of one color
        return {
            form: known.get(form) or kind_of(rows) for form, rows in self._outputs(crops).items()
        }

    def measure(
        self,
        valset: ValSet,
        *,
        group: Group = _ALONE,
        record_bad: bool = False,
        journal: Journal | NoJournal | None = None,
        cache: CropCache | None = None,
        stopper: Stopper | None = None,
        stage: str = "evaluating",
        check: Callable[[], None] = lambda: None,
    ) -> Measurement:
        """Measure every image with every form.

        Args:
            valset: the images; predictions are restricted to the classes of their set.
            group: the processes that share the work; all of them receive the results.
            record_bad: see `Plan`.
            journal: see `measure`; None if nothing is to be kept.
            cache: see `measure`.
            stopper: see `measure`; the images are then measured in their shuffled order.
            stage: what is done, for the observer.
            check: called after this process's last image.

        Raises:
            DataError, UsageError, LogitsError: see `measure`; also those of another process.
        """
        if stopper and Kind.CLASSES in self.kinds.values():
            raise UsageError(
                "--stop-early: the file gives the predicted class alone, and nothing is known of "
                "its top-5.\nOmit --stop-early."
            )
        task, forms = self.task, tuple(self.task.models)
        plan = Plan(
            task.preprocess,
            forms,
            task.batch_size,
            task.workers,
            background_first=task.background_first,
            share=(group.number, group.count),
            record_bad=record_bad,
            order=np.array(valset.shuffled()) if stopper else None,
        )
        part = measure(
            valset,
            self._predictor,
            plan,
            kinds=self.kinds,
            journal=journal or NoJournal(forms),
            cache=cache,
            progress=self._counter(stage, len(valset.samples) // group.count, group),
            stopper=stopper,
            crew=self._crew,
        )
        check()
        if self._crew:
            self._crew.check()
        stopped, bound = (stopper.reason, stopper.bound) if stopper else ("", {})
        measured = assemble(valset, group.gather(part), forms, stopped, bound)
        for form in forms:
            if self.kinds[form] is Kind.CLASSES:
                measured.scores[form].known = 1
        return measured

    def _counter(self, stage: str, total: int, group: Group) -> Callable[[int, int], None]:
        """What is called with the number of new images, and of those that are predicted correctly.

        It tells the observer, and learns whether another process has failed.
        """
        done = correct = 0

        def count(images: int, right: int) -> None:
            nonlocal done, correct
            done, correct = done + images, correct + right
            group.look()
            self._progress(Event(stage, done, total, correct if self.task.models else None))

        return count

    def logits(self, crops: Crop) -> Mapping[str, NDArray[np.float32]]:
        """Logits (N, classes) of crops (N, size, size, 3), by form; they may be of no use."""
        found = {}
        for form, rows in self._outputs(crops).items():
            kind = self.kinds[form]
            if self.task.background_first:
                rows = without_background(rows, kind)
            found[form] = as_logits(rows, kind)
        return found

    def _outputs(self, crops: Crop) -> Mapping[str, NDArray[np.float32]]:
        """What the forms give for crops (N, size, size, 3), whatever it means."""
        size = self.task.batch_size

        def compute(start: int) -> Mapping[str, NDArray[Any]]:
            part = crops[start : start + size]
            # Always a whole batch: some runtimes take no other.
            batch = np.zeros((size, *crops.shape[1:]), np.uint8)
            batch[: len(part)] = part
            return {form: rows[: len(part)] for form, rows in self._predictor(batch).items()}

        with worker_threads(self.task.workers) as pool:
            parts = list(pool.map(compute, range(0, len(crops), size)))
        return {form: np.concatenate([part[form] for part in parts]) for form in self.task.models}

    def logits_of(self, valset: ValSet) -> Mapping[str, NDArray[np.float32]]:
        """Logits of all images, each of which must be decodable; see `read_crops`."""
        return self.logits(read_crops(valset, self.task.preprocess, self.task.workers))


def measure(
    valset: ValSet,
    predictor: Predictor,
    plan: Plan,
    *,
    journal: Journal | NoJournal,
    kinds: Mapping[str, Kind] | None = None,
    cache: CropCache | None = None,
    progress: Callable[[int, int], None] | None = None,
    stopper: Stopper | None = None,
    crew: Crew | None = None,
) -> Part:
    """Measure the images that are not in the journal yet, in batches.

    Args:
        valset: the images.
        predictor: computes the logits of exactly the forms of the plan; of none, where images are
            only to be decoded for a cache.
        plan: how to measure them.
        journal: provides the records of an interrupted run, and keeps each new batch.
        kinds: what the outputs of each form are; None: logits.
        cache: crops of earlier runs; new crops are added.
        progress: called with the number of new images and how many of them the last form predicts
            correctly.
        stopper: asked after each batch whether the outcome is certain.
        crew: other processes that evaluate batches as well.

    Raises:
        EvalError: another process has ended.
        DataError: an image cannot be read or decoded, and bad images are not recorded.
        UsageError: an image has changed since it was measured.
        LogitsError: logits are not finite, or the same for every class.
    """
    evaluate: Evaluator = BatchEvaluator(valset, predictor, plan, cache, kinds or {})
    old, todo = _remaining(plan, journal.read(len(valset.samples)), len(valset.samples))
    results = [old]

    def keep(records: Records) -> None:
        journal.append(records)
        if progress:
            progress(len(records), _correct(records, plan.forms))

    threads = plan.workers * (crew.processes if crew else 1)
    with worker_threads(threads) as pool, closed_on_error(crew):
        for _ in pool.map(lambda record: _check_unchanged(valset, record), old):
            pass
        if progress and len(old):
            progress(len(old), _correct(old, plan.forms))
        if crew:
            job = Job(valset, plan, cache.root if cache else None, kinds or {})
            evaluate = crew.sharing(evaluate, job, cache)
        started = time.perf_counter()
        if stopper is None:
            results += _in_order(pool, evaluate, todo, keep)
        elif not stopper.begin(old, len(todo)):
            results += _until_certain(_in_order(pool, evaluate, todo), keep, stopper)
    seconds = time.perf_counter() - started
    from_cache = (cache.used if cache else 0) + (crew.from_cache if crew else 0)
    measured_now = sum(len(records) for records in results[1:])
    return Part(np.concatenate(results), measured_now, seconds, from_cache)


def _until_certain(
    batches: Iterator[Records], keep: Callable[[Records], None], stopper: Stopper
) -> Iterator[Records]:
    """The records that a decision is made from; nothing else is kept, and nothing out of order."""
    for records in batches:
        keep(records)
        yield records
        if stopper.after(records):
            return
    stopper.finish()


def _in_order(
    pool: ThreadPoolExecutor,
    evaluate: Evaluator,
    batches: Sequence[NDArray[np.int64]],
    keep: Callable[[Records], None] = lambda _: None,
) -> Iterator[Records]:
    """The records of each batch, as ``pool.map`` gives them.

    That would wait for each batch, and be woken by the worker that has done it: this takes the
    worker as long as hundreds of lines of Python, and the interpreter's lock meanwhile.

    Args:
        pool: the workers.
        evaluate: a batch.
        batches: in the order in which they are begun.
        keep: called with the records of each batch soon after it is done, although an earlier one
            may be held up.
    """
    done: deque[Records] = deque()

    def evaluated(batch: NDArray[np.int64]) -> Records:
        records = evaluate(batch)
        done.append(records)
        return records

    def keep_all() -> None:
        while done:
            keep(done.popleft())

    for future in [pool.submit(evaluated, batch) for batch in batches]:
        while not future.done():
            keep_all()
            time.sleep(_LOOK)
        keep_all()
        yield future.result()


def _remaining(plan: Plan, kept: Records, images: int) -> tuple[Records, list[NDArray[np.int64]]]:
    """What an interrupted run has left to do.

    A batch is either kept or measured as a whole: a partial one would have another composition.

    Returns:
        The records of the batches that are complete, and the indices of the others.
    """
    done = np.zeros(images, dtype=bool)
    done[kept["index"]] = True
    number, count = plan.share
    order = np.arange(images) if plan.order is None else plan.order
    batches = list(_batches(order, plan.batch_size))[number::count]
    old = np.concatenate([np.empty(0, np.int64), *(b for b in batches if done[b].all())])
    return kept[np.isin(kept["index"], old)], [b for b in batches if not done[b].all()]


def _check_unchanged(valset: ValSet, record: np.void) -> None:
    path = valset.samples[record["index"]].path
    could_be_read = record["sha256"].any()
    if could_be_read and read_hashed(valset, path)[1] != record["sha256"].tobytes():
        raise UsageError(
            f"{valset.root / path} has changed since it was measured.\n"
            "Use another --output to start over."
        )


def _batches(order: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _correct(records: Records, forms: Sequence[str]) -> int:
    """How many the last form predicts correctly; 0 without any."""
    return int((records[forms[-1]]["rank"] == 0).sum()) if forms else 0
