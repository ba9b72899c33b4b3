"""The measurement: each image is decoded once, run through every form, and scored.

One single-threaded worker per core decodes, crops and runs its own small batches, so that no pixels
are passed between processes and no thread waits for another. The workers can be threads because
decoding, resizing and convolution release the interpreter's lock; for many cores there are several
processes of a few threads each (`eval.measure.crew`).
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from eval.backends import BACKENDS, Predictor, Task, predictor_for, prepared
from eval.errors import DataError, UnreadableImage, UsageError
from eval.images.cache import CropCache
from eval.images.preprocess import BadImage, Crop, Preprocess
from eval.images.valset import ValSet, fingerprint
from eval.measure.crew import Crew, Evaluator, Job, closed_on_error
from eval.measure.journal import REASON_BYTES, Journal, NoJournal, Records, record_dtype
from eval.measure.settings import enter_worker, give_back_freed_memory
from eval.metrics import Kind, Scores, as_logits, check_logits, kind_of, without_background
from eval.processes import Group, own_place, usable_cores
from eval.progress import Event, Observer, ignore

CPU_BATCH = 8  # one part (eval/backends/pytorch.py): more would only use more memory
GPU_BATCH = 64
# A thread holds the interpreter's lock for 3 to 12 % of its time, by form, backend and cache
# (docs/performance.md): of so many, each waits for it hardly at all.
MOST_THREADS = 4
# Another process takes some seconds of a core until it measures; these are as much.
LEAST_IMAGES = 1000
GPU_BYTES = 2 << 30  # of a GPU for each process: torch's own, the model and its batches
_ALONE = Group()
_LOOK = 0.005  # seconds between two looks at what the workers have done
_SHOWN = 8  # images, by which is seen what the outputs are
_INTACT = "Get an intact copy: python -m eval.data lists all that are damaged."
_RECORD = "Replace the file (images are never skipped), or use --on-bad-image record."


@dataclass
class Measurement:
    """The results of a run for every image, in image order.

    Attributes:
        valset: the images.
        scores: the scores of all images, by form; a bad image has rank -1.
        logit_diff: float64 (N,), the largest absolute difference of a logit between the two forms;
            NaN if there is only one form or the image is bad.
        largest_logit: the largest absolute logit of any form and image; None if unknown.
        digests: SHA-256 of each image file, hexadecimal.
        seconds: wall time of the images measured in this run.
        measured_now: number of images measured in this run; the others are from an interrupted run.
        from_cache: how many of these had their crops from a cache.
        bad: the reason for each image that could not be decoded, by index.
        stopped: why the run ended early, if it did.
        bound: the statistics behind that decision, for ``run.json``.
    """

    valset: ValSet
    scores: dict[str, Scores]
    logit_diff: NDArray[np.float64]
    largest_logit: float | None
    digests: list[str]
    seconds: float
    measured_now: int = 0
    from_cache: int = 0
    bad: dict[int, str] = field(default_factory=dict)
    stopped: str = ""
    bound: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The class of each image, int64 (N,)."""
        return np.array([sample.label for sample in self.valset.samples])

    @cached_property
    def dataset_sha256(self) -> str:
        """SHA-256 over the names, labels and contents of the measured images, hexadecimal."""
        return fingerprint(self.valset.samples, self.digests)

    @cached_property
    def flips(self) -> NDArray[np.int64]:
        """Indices of the images with different top-1 predictions of the forms, int64 (F,)."""
        first, *others = [scores.top[:, 0] for scores in self.scores.values()]
        differs = np.zeros(len(first), dtype=bool)
        for other in others:
            differs |= first != other
        return np.flatnonzero(differs)

    @property
    def max_logit_diff(self) -> float | None:
        """Largest absolute difference of a logit between the forms; None with one form."""
        seen = self.logit_diff[np.isfinite(self.logit_diff)]
        return float(seen.max()) if len(seen) else None

    @property
    def where_logits_differ(self) -> str:
        """Path of the image with the largest difference of a logit; "" with one form."""
        if self.max_logit_diff is None:
            return ""
        return self.valset.samples[int(np.nanargmax(self.logit_diff))].path

    @property
    def images_per_second(self) -> float | None:
        """Rate of the images measured in this run; None if there were none."""
        return self.measured_now / self.seconds if self.measured_now and self.seconds else None


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


class Part(NamedTuple):
    """The results of one process."""

    records: Records  # of its share of the images, kept and new ones
    measured_now: int  # number of new records
    seconds: float  # wall time of the new records
    from_cache: int = 0  # crops of them that a cache had


@dataclass(frozen=True)
class Plan:
    """How the images are measured.

    Attributes:
        preprocess: how images are decoded and cropped.
        forms: names of the forms that the predictor computes.
        batch_size: images per batch; every batch is computed at this size.
        workers: number of threads.
        share: (number, count): this process measures every count-th batch, beginning with number.
        record_bad: whether an image that cannot be decoded is recorded; if not, it ends the run.
        background_first: whether the first output of a model is left out.
        order: indices of the images in the order of measurement, int64; None for the order of the
            validation set.
    """

    preprocess: Preprocess
    forms: tuple[str, ...]
    batch_size: int
    workers: int
    share: tuple[int, int] = (0, 1)
    record_bad: bool = False
    background_first: bool = False
    order: NDArray[np.int64] | None = None


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
        task = self.task
        forms = tuple(task.models)
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
        if stopper and Kind.CLASSES in self.kinds.values():
            raise UsageError(
                "--stop-early: the file gives the predicted class alone, and nothing is known of "
                "its top-5.\nOmit --stop-early."
            )
        total = len(valset.samples) // group.count
        done = correct = 0

        def count(images: int, right: int) -> None:
            nonlocal done, correct
            done, correct = done + images, correct + right
            group.look()
            self._progress(Event(stage, done, total, correct if forms else None))

        part = measure(
            valset,
            self._predictor,
            plan,
            kinds=self.kinds,
            journal=journal or NoJournal(forms),
            cache=cache,
            progress=count,
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


def read_hashed(valset: ValSet, path: str) -> tuple[bytes, bytes]:
    """The bytes of an image file, and their SHA-256."""
    data = valset.read(path)
    return data, hashlib.sha256(data).digest()


def hash_images(valset: ValSet, progress: Observer = ignore) -> list[str]:
    """SHA-256 of each image file, hexadecimal: what predictions made elsewhere are said to be of.

    Raises:
        DataError: an image cannot be read.
    """
    found: list[str] = []
    paths = [sample.path for sample in valset.samples]
    with worker_threads(choose_workers()) as pool:
        for _, digest in pool.map(lambda path: read_hashed(valset, path), paths):
            found.append(digest.hex())
            progress(Event("hashing images", len(found), len(paths)))
    return found


def read_crops(valset: ValSet, preprocess: Preprocess, threads: int) -> Crop:
    """The crops of all images, uint8 (N, size, size, 3).

    Raises:
        DataError: an image cannot be read or decoded.
    """
    crops = np.zeros((len(valset.samples), preprocess.size, preprocess.size, 3), np.uint8)

    def fill(row: int) -> None:
        path = valset.samples[row].path
        with decoding(valset, path):
            crops[row] = preprocess.crop(valset.read(path))

    with worker_threads(threads) as pool:
        for _ in pool.map(fill, range(len(crops))):
            pass
    return crops


@contextmanager
def decoding(valset: ValSet, path: str, advice: str = _INTACT) -> Iterator[None]:
    """Name the image that cannot be decoded, and what to do.

    Raises:
        DataError: instead of `BadImage`.
    """
    try:
        yield
    except BadImage as error:
        raise DataError(f"{valset.root / path} cannot be decoded: {error}.\n{advice}") from error


@contextmanager
def worker_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that compute on one core each; what has not begun when one fails is left out."""
    with ThreadPoolExecutor(count, initializer=enter_worker) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


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
        certain = stopper.begin(old, len(todo)) if stopper else False
        todo = [] if certain else todo
        if not stopper:
            results += _in_order(pool, evaluate, todo, keep)
        else:
            # What is kept is what the decision was made from: nothing out of order.
            for records in _in_order(pool, evaluate, todo):
                keep(records)
                results.append(records)
                if stopper.after(records):
                    break
            else:
                if not certain:
                    stopper.finish()
    seconds = time.perf_counter() - started
    from_cache = (cache.used if cache else 0) + (crew.from_cache if crew else 0)
    measured_now = sum(len(records) for records in results[1:])
    return Part(np.concatenate(results), measured_now, seconds, from_cache)


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


class BatchEvaluator:
    """Evaluates a batch: read, decode and crop its images, run every form, score the logits.

    Several threads call it at once.
    """

    def __init__(
        self,
        valset: ValSet,
        predictor: Predictor,
        plan: Plan,
        cache: CropCache | None,
        kinds: Mapping[str, Kind],
    ) -> None:
        self._kinds = {form: kinds.get(form, Kind.LOGITS) for form in plan.forms}
        self._valset, self._predictor, self._plan, self._cache = valset, predictor, plan, cache
        self._labels = np.array([sample.label for sample in valset.samples])
        self._among = None if valset.among is None else np.array(valset.among)
        self._dtype = record_dtype(plan.forms)
        self._part = getattr(predictor, "part", plan.batch_size)

    def __call__(self, indices: NDArray[np.int64]) -> Records:
        """Measure the images with the given indices, int64 (B,), and return their records (B,)."""
        records = np.zeros(len(indices), self._dtype)
        records["index"] = indices
        size = self._plan.preprocess.size
        # Whole parts, so that the last images are computed like all others.
        whole = math.ceil(len(indices) / self._part) * self._part
        crops = np.zeros((whole, size, size, 3), np.uint8)
        read = [self._read_image(index, crops[row]) for row, index in enumerate(indices.tolist())]
        digests = b"".join(digest for digest, _ in read)
        records["sha256"] = np.frombuffer(digests, np.uint8).reshape(-1, 32)
        records["reason"] = [reason for _, reason in read]
        good = np.flatnonzero(records["reason"] == b"")
        logits = {form: rows[good] for form, rows in self._predictor(crops).items()}
        names = [self._valset.samples[i].path for i in indices[good]]
        for form, rows in logits.items():
            check_logits(rows, names, self._kinds[form])
            if self._plan.background_first:
                rows = logits[form] = without_background(rows, self._kinds[form])
            labels = self._labels[indices[good]]
            scores = Scores.of(rows, labels, self._among, self._kinds[form])
            _store(records, form, good, scores)
        logits = {form: as_logits(rows, self._kinds[form]) for form, rows in logits.items()}
        records["logit_diff"] = np.nan
        if len(logits) > 1:
            records["logit_diff"][good] = _largest_difference(*logits.values())
        for rows in logits.values():
            largest = np.abs(rows).max(axis=1, initial=0.0)
            records["largest_logit"][good] = np.maximum(records["largest_logit"][good], largest)
        return records

    def _read_image(self, index: int, crop: Crop) -> tuple[bytes, bytes]:
        """Fill in a crop (size, size, 3).

        Returns:
            SHA-256 of the file, zeros if it cannot be read; and the reason why the image is bad.
        """
        cache, digest = self._cache, bytes(32)
        path = self._valset.samples[index].path
        try:
            data, digest = read_hashed(self._valset, path)
            cached = cache.get(index, digest) if cache else None
            crop[:] = self._plan.preprocess.crop(data) if cached is None else cached
            if cache and cached is None:
                cache.put(index, digest, crop)
        except (BadImage, UnreadableImage) as error:
            if not self._plan.record_bad:
                with decoding(self._valset, path, _RECORD):
                    raise
            reason = str(error).partition("\n")[0] or type(error).__name__
            return digest, reason.encode()[:REASON_BYTES]
        return digest, b""


def assemble(
    valset: ValSet,
    parts: Sequence[Part],
    forms: Sequence[str],
    stopped: str = "",
    bound: dict[str, Any] | None = None,
) -> Measurement:
    """Merge the results of all processes.

    Args:
        valset: the images.
        parts: the results of each process.
        forms: names of the forms.
        stopped: why the run ended early, if it did; the result then has only the measured images.
        bound: see `Measurement`.

    Raises:
        DataError: an image is missing, or was measured more than once.
    """
    records = np.concatenate([part.records for part in parts])
    records = records[np.argsort(records["index"], kind="stable")]
    if len(records) >= len(valset.samples):
        stopped, bound = "", None  # after the last image, the counts decide
    if stopped and len(np.unique(records["index"])) == len(records):
        valset = valset.part(records["index"])
        records["index"] = np.arange(len(records))
    if not np.array_equal(records["index"], np.arange(len(valset.samples))):
        counts = np.bincount(records["index"], minlength=len(valset.samples))
        raise DataError(
            f"{int((counts == 0).sum())} images were not measured and "
            f"{int((counts > 1).sum())} more than once: the processes saw different files.\n"
            "Start over with another --output."
        )
    bad = np.flatnonzero(records["reason"] != b"")
    digests = [row.tobytes().hex() for row in records["sha256"]]
    known = [digest for digest in digests if digest.strip("0")]
    return Measurement(
        valset=valset.doubted(known),
        scores={form: _scores(records, form) for form in forms},
        logit_diff=records["logit_diff"],
        largest_logit=float(records["largest_logit"].max(initial=0.0)),
        digests=digests,
        seconds=max(part.seconds for part in parts),
        measured_now=sum(part.measured_now for part in parts),
        from_cache=sum(part.from_cache for part in parts),
        bad={int(i): records["reason"][i].decode(errors="replace") for i in bad},
        stopped=stopped,
        bound=bound or {},
    )


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


_KEPT = ("rank", "top", "prob", "nll", "tied")


def _store(records: Records, form: str, rows: NDArray[np.int64], scores: Scores) -> None:
    """Store scores (len(rows),) in the given rows; the other rows have no prediction."""
    answers = records[form]
    answers["rank"], answers["top"] = -1, -1
    answers["prob"], answers["nll"], answers["tied"] = np.nan, np.nan, False
    for name in _KEPT:
        answers[name][rows] = getattr(scores, name)


def _scores(records: Records, form: str) -> Scores:
    answers = records[form]
    return Scores(*(np.ascontiguousarray(answers[name]) for name in _KEPT))


def _correct(records: Records, forms: Sequence[str]) -> int:
    """How many the last form predicts correctly; 0 without any."""
    return int((records[forms[-1]]["rank"] == 0).sum()) if forms else 0


def _largest_difference(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Largest absolute difference between two forms' logits, (B,)."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    difference: NDArray[np.float64] = np.abs(first - second).max(axis=1)
    return difference


class ShrinkOnOutOfMemory:
    """A predictor that splits a batch into smaller parts when it runs out of memory.

    Other errors are passed on. Later batches are split in the same way.

    Args:
        predictor: computes the parts.
        notify: called with a message when the size is reduced.
    """

    def __init__(self, predictor: Predictor, notify: Callable[[str], None]) -> None:
        self._predictor = predictor
        self._notify = notify
        if hasattr(predictor, "part"):
            self.part = predictor.part
        self._limit = sys.maxsize

    @property
    def settings(self) -> Mapping[str, Any]:
        """Those of the predictor."""
        found: Mapping[str, Any] = getattr(self._predictor, "settings", {})
        return found

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """Those that the predictor knows."""
        found: Mapping[str, Kind] = getattr(self._predictor, "kinds", {})
        return found

    def __call__(self, crops: Crop) -> Mapping[str, NDArray[Any]]:
        """Compute a batch, uint8 (B, size, size, 3), in parts: logits (B, C) by form."""
        parts: list[Mapping[str, NDArray[Any]]] = []
        start = 0
        while start < len(crops):
            size = min(self._limit, len(crops) - start)
            try:
                parts.append(self._predictor(crops[start : start + size]))
                start += size
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error) or size == 1:
                    raise
                self._limit = size // 2
                self._notify(f"Out of memory: batches of {self._limit} from now on")
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        return {form: np.concatenate([part[form] for part in parts]) for form in parts[0]}


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU allocator raises a plain RuntimeError (c10/core/impl/alloc_cpu.cpp).
    return "DefaultCPUAllocator: can't allocate memory" in str(error)


def choose_workers(processes: int = 1) -> int:
    """Threads of each process: one per core that may be used, in all that share a machine."""
    return -(-_cores() // processes)


def choose_processes(images: int, device: torch.device, backend: str = "torch") -> int:
    """Processes for so many images: few enough threads in each, enough images and memory for each.

    Args:
        images: how many there are.
        device: that all of them share.
        backend: that computes in each.
    """
    if os.name != "posix":
        return 1
    threads = 1 if BACKENDS[backend].keeps_lock else MOST_THREADS
    most = min(-(-_cores() // threads), images // LEAST_IMAGES)
    if device.type == "cuda":
        most = min(most, torch.cuda.mem_get_info(device)[0] // GPU_BYTES)
    return max(1, most)


def _cores() -> int:
    return max(1, usable_cores() // own_place().local_count)


def choose_batch_size(device: torch.device) -> int:
    """Images per batch for a device."""
    return CPU_BATCH if device.type == "cpu" else GPU_BATCH
