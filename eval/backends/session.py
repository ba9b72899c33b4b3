"""What all runtimes but torch have in common.

A runtime's module has

    load(source, how: Compute) -> Loaded     a file, or an ONNX graph as bytes
    sources(model, folder, batches, size)    a torch model as what `load` takes, by batch size
    export(model, graph, path, size)         writes a torch model, which is also there as ONNX
    convert(model, path, batch, size)        what `eval.backends.convert` calls in a child process
    quantize(work: Work)                     writes an int8 file, in a child process
    begins(head: bytes) -> bool              whether a file may be of its own kind
    companions(path) -> tuple[Path, ...]     the other files of a model, where there are any
    check(path)                              refuses a file, before any runtime is given it
    precision(path) -> str                   of a file, see `eval.backends.precision`
    side(path) -> int | None                 of the images of a file, where it says so
    SETTINGS                                 what it was told, for ``run.json``

(`convert`, `quantize` and `check` where they are used) and everything else is here: sessions that
are never used by two threads at once, batches of the size that a graph wants, and the check of
every answer.
"""

from __future__ import annotations

import contextlib
import queue
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from eval.backends import BACKENDS, Task, child
from eval.backends.child import quiet
from eval.backends.formats import check_file, name_of, precision_of
from eval.backends.signature import LAYOUTS, Feed, Port, check_signature, rows_of
from eval.backends.signature import name_of as output_name
from eval.errors import EvalError, ModelError
from eval.metrics import Kind

if TYPE_CHECKING:
    from eval.images.preprocess import Crop

# What a graph is given, by what it takes: a session quantizes images for int8 itself.
DTYPES = {"float": np.float32, "float16": np.float16, "double": np.float64, "uint8": np.uint8,
          "int8": np.float32}  # fmt: skip
PROBE_SECONDS = 600
_PROBED = 2  # images, which show a graph that answers once for a batch
_REPEATS = 3
_ALIKE = 1e-3  # of the largest logit
_COARSE = 2e-2  # the same below fp32, where one value that rounds to its neighbor shows
_TIMED = 3  # runs of each batch size, of which the fastest counts

Session = Callable[[NDArray[Any]], NDArray[Any]]


class Compute(NamedTuple):
    """How a runtime is to compute: in what, for how many callers, each with how many threads."""

    precision: str = "fp32"
    workers: int = 1
    threads: int = 1


class Loaded(Protocol):
    """A graph in a runtime.

    Attributes:
        inputs, outputs: type and shape of each.
        layout: in which it takes images whatever the graph's own is; None: the graph's.
    """

    inputs: Sequence[Port]
    outputs: Sequence[Port]
    layout: str | None

    def session(self, feed: Feed, batch: int) -> Session:
        """What answers a batch of that size; it is used by one thread at a time."""


class Converted(NamedTuple):
    """One form as what a runtime loads.

    Attributes:
        label: what to call it in messages.
        sources: batch size to what a runtime's ``load`` takes.
        feed: what it takes and gives, as was seen when it was tried; None where it was not.
        probed: its logits of `_noise` when it was tried, float32 (2, classes).
        within: how far others may be from them, as a fraction of the largest.
    """

    label: str
    sources: Mapping[int, Any]
    feed: Feed | None = None
    probed: NDArray[np.float32] | None = None
    within: float = _ALIKE


class _Candidates(NamedTuple):
    """One form: its graph, or the same for several batch sizes, of which the fastest is used."""

    name: str
    graphs: Sequence[Loaded]
    converted: Converted


class _Form(NamedTuple):
    """One form, ready to be asked."""

    name: str
    feed: Feed
    layout: str
    batch: int | None  # None: the size of what comes
    sessions: queue.LifoQueue[Session]


def create(task: Task) -> RuntimePredictor:
    """A predictor in one of the runtimes; see `eval.backends.create_predictor`."""
    module = BACKENDS[task.backend].load()
    how = Compute(task.precision, task.workers, task.threads)
    with converted(task) as ready:
        forms = []
        for name, form in ready.converted.items():
            with quiet():
                loaded = [module.load(source, how) for source in form.sources.values()]
            forms.append(_Candidates(name, loaded, form))
        settings = {**module.SETTINGS, f"{task.backend}.threads": task.threads}
        return RuntimePredictor(task, forms, settings)


@contextlib.contextmanager
def converted(task: Task) -> Iterator[Task]:
    """The task with its models converted; their files are removed when this ends."""
    if task.converted:
        yield task
        return
    entry, size = BACKENDS[task.backend], task.preprocess.size
    module = entry.load()
    sizes = sorted({1, task.batch_size}) if entry.fixed_batch else [1]
    with tempfile.TemporaryDirectory(prefix="pplcnet-eval-") as folder:
        ready = {}
        for number, (form, model) in enumerate(task.models.items()):
            if isinstance(model, Path):
                ready[form] = _tried(task, model)
            else:
                where = Path(folder) / str(number)
                where.mkdir()
                ready[form] = Converted(form, module.sources(model, where, sizes, size))
        yield replace(task, converted=ready)


def _tried(task: Task, path: Path) -> Converted:
    """A file, once it has answered as it will be asked."""
    check_file(path)
    if BACKENDS[task.backend].own_process:
        return Converted(name_of(path), {0: path})
    exact = task.precision == "fp32" and precision_of(path) == "fp32"
    within = _ALIKE if exact else _COARSE
    feed, probed = probe(task, path, within)
    return Converted(name_of(path), {0: path}, feed, probed, within)


class RuntimePredictor:
    """Graphs in a runtime on the CPU, one thread for each call.

    Attributes:
        settings: those, and the batch size of each form where one was chosen.
        kinds: what a form's outputs are, where the graph itself shows it.
        chosen: see `eval.backends.Task`.
    """

    def __init__(
        self, task: Task, forms: Sequence[_Candidates], settings: Mapping[str, Any]
    ) -> None:
        self.settings: dict[str, Any] = dict(settings)
        self._title = BACKENDS[task.backend].title
        self._preprocess = task.preprocess
        self._classes = task.classes
        self.kinds: dict[str, Kind] = {}
        self.chosen: dict[str, int] = {}
        self._forms = {form.name: self._prepared(task, form) for form in forms}
        if any(form.batch for form in self._forms.values()):
            self.settings["batch"] = {name: form.batch for name, form in self._forms.items()}

    def _prepared(self, task: Task, candidates: _Candidates) -> _Form:
        """The faster batch size, and a session for each worker."""
        options: list[tuple[Loaded, Feed, str, int | None]] = []
        label, known = candidates.converted.label, candidates.converted
        for loaded in candidates.graphs:
            feed = known.feed or check_signature(
                label,
                loaded.inputs,
                loaded.outputs,
                task.preprocess.size,
                task.classes,
                task.output,
            )
            layout = loaded.layout or feed.layout
            batches = self._batches(task, feed)
            options.extend((loaded, feed, layout, batch) for batch in batches)
        if len(options) > 1:
            chosen = task.chosen.get(candidates.name)
            if chosen is None:
                seconds = [self._seconds(label, *option) for option in options]
                chosen = seconds.index(min(seconds))
            self.chosen[candidates.name] = chosen
        loaded, feed, layout, batch = options[self.chosen.get(candidates.name, 0)]
        self.settings.update(getattr(loaded, "settings", {}))
        if len(loaded.outputs) > 1:
            self.settings["output"] = output_name(loaded.outputs[feed.output], feed.output)
        if feed.predicts:
            self.kinds[candidates.name] = Kind.CLASSES
        form = _Form(label, feed, layout, batch, queue.LifoQueue())
        with quiet():
            size = batch or task.batch_size
            sessions = [loaded.session(feed, size) for _ in range(task.workers)]
        self._check_sessions(form, sessions, size, known)
        for session in sessions:
            form.sessions.put(session)
        return form

    def _check_sessions(
        self, form: _Form, sessions: Sequence[Session], batch: int, known: Converted
    ) -> None:
        """Each session, at work at the same time as the others, answers `_noise` as it should.

        That is as the graph did when it was probed. Where it was not, as a model that was just
        converted, they must agree with each other.
        """
        images = _noise(form.feed, form.layout, self._preprocess.size, batch)

        def ask(session: Session) -> NDArray[np.float32]:
            return self._ask(form, session, images)

        # First alone: OpenVINO's module deadlocks where two threads enter it for the first time
        # (one waits for the interpreter's lock, the other for the module's).
        alone = ask(sessions[0])
        expected = alone if known.probed is None else known.probed
        if not _agree(ask, sessions, expected, known.within):
            raise _unsteady(form.name, self._title, len(sessions), batch)

    def _batches(self, task: Task, feed: Feed) -> list[int | None]:
        """The batch sizes that a graph can be used with."""
        if feed.batch is not None:
            return [feed.batch]
        if not BACKENDS[task.backend].fixed_batch:
            return [None]
        return [*sorted({1, task.batch_size})]

    def _seconds(
        self, label: str, loaded: Loaded, feed: Feed, layout: str, batch: int | None
    ) -> float:
        """Seconds for an image."""
        size = self._preprocess.size
        with quiet():
            session = loaded.session(feed, batch or 1)
        form = _Form(label, feed, layout, batch, queue.LifoQueue())
        form.sessions.put(session)
        crops = np.zeros((batch or 1, size, size, 3), np.uint8)
        inputs = self._inputs(form, crops, {})
        times = []
        for _ in range(_TIMED + 1):
            start = time.perf_counter()
            self._run(form, inputs)
            times.append(time.perf_counter() - start)
        return min(times[1:]) / len(crops)

    def __call__(self, crops: Crop) -> dict[str, NDArray[Any]]:
        """uint8 crops (B, size, size, 3) to float32 logits (B, classes) of each form."""
        made: dict[tuple[str, str], NDArray[Any]] = {}
        return {
            name: self._run(form, self._inputs(form, crops, made))
            for name, form in self._forms.items()
        }

    def _inputs(
        self, form: _Form, crops: Crop, made: dict[tuple[str, str], NDArray[Any]]
    ) -> NDArray[Any]:
        """A batch as a graph wants it; `made` keeps it for the next form."""
        key = (form.layout, form.feed.type)
        if key not in made:
            raw = form.feed.type == "uint8"
            batch = crops if raw else self._preprocess.normalize(crops)
            if form.layout == "NCHW":
                batch = batch.transpose(0, 3, 1, 2)
            made[key] = np.ascontiguousarray(batch, dtype=DTYPES[form.feed.type])
        return made[key]

    def _run(self, form: _Form, images: NDArray[Any]) -> NDArray[np.float32]:
        """Float32 logits; where the batch is fixed, in parts, the last one filled up."""
        session = form.sessions.get()
        try:
            return self._ask(form, session, images)
        finally:
            form.sessions.put(session)

    def _ask(self, form: _Form, session: Session, images: NDArray[Any]) -> NDArray[np.float32]:
        count = form.batch or len(images)
        parts = []
        try:
            for start in range(0, len(images), count):
                part = images[start : start + count]
                asked = part
                if len(part) < count:
                    asked = np.zeros((count, *part.shape[1:]), part.dtype)
                    asked[: len(part)] = part
                answer = rows_of(np.asarray(session(asked)), form.feed)
                _check_rows(form.name, answer, count, self._classes or form.feed.classes)
                parts.append(answer[: len(part)])
        except (EvalError, MemoryError):
            raise
        except Exception as error:
            raise ModelError(
                f"{form.name}: {self._title} fails on an image ({child.first_line(error)}).\n"
                "Export the model again, or try another backend."
            ) from error
        outputs = np.concatenate(parts)
        if outputs.dtype == np.float64:  # rounded to float32, some could be equal
            return outputs
        return outputs.astype(np.float32, copy=len(parts) == 1)


def _check_rows(name: str, answer: NDArray[Any], count: int, classes: int | None) -> None:
    """One row for each image, as wide as it should be."""
    if answer.ndim != 2 or len(answer) != count or (classes and answer.shape[1] != classes):
        raise ModelError(
            f"{name} gives {answer.shape} for {count} images instead of "
            f"({count}, {classes or 'classes'}).\nExport the classifier with a batch dimension."
        )


def probe(task: Task, path: Path, within: float) -> tuple[Feed, NDArray[np.float32]]:
    """Load a file and run it, in a child process, so that nothing it does can end this one.

    It must give the same images the same logits every time, and by as many workers at once, in
    batches as large as the task has, as alone. A file that does not say whether its batch is fixed
    may crash or answer wrongly at another size: where two images fail, or get other logits together
    than alone, a batch of one is tried.

    Args:
        task: how it will be used.
        path: an exported file, whoever made it.
        within: how far logits may differ between workers, as a fraction of the largest.

    Returns:
        What the file takes and gives, and its logits of two images of `_noise`.

    Raises:
        ModelError: it cannot be loaded or run, or is not an image classifier.
        UsageError: the runtime does not have the precision here.
    """
    entry, name = BACKENDS[task.backend], name_of(path)
    options = {
        "size": task.preprocess.size,
        "classes": task.classes,
        "precision": task.precision,
        "workers": task.workers,
        "batch": task.batch_size,
        "within": within,
        "output": task.output,
    }
    failed: list[ModelError] = []
    for count in (_PROBED, 1) if entry.silent_batch else (_PROBED,):
        try:
            answer: dict[str, Any] = child.call(
                f"{name}: {entry.title}",
                "eval.backends.session:probe_here",
                seconds=PROBE_SECONDS,
                backend=task.backend,
                path=str(path.absolute()),
                name=name,
                options={**options, "count": count},
            )
        except ModelError as error:
            failed.append(error)
        else:
            return Feed(**answer["feed"]), np.array(answer["logits"], np.float32)
    message = str(failed[0]).replace(str(path.absolute()), name)
    if "\n" not in message:
        message = f"{message}\nExport the model again, or get an intact copy."
    raise ModelError(message)


def probe_here(backend: str, path: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What `probe` does in the child process: a `Feed` and the logits."""
    entry, size, classes = BACKENDS[backend], options["size"], options["classes"]
    try:
        loaded: Loaded = entry.load().load(Path(path), Compute(options["precision"]))
    except (EvalError, ImportError):
        raise
    except Exception as error:
        reason = child.first_line(error)
        is_newer = "IR version" in reason or "till opset" in reason
        raise ModelError(
            f"{name}: {entry.title} cannot load it ({reason.rstrip('.')}).\n"
            + (
                f"Upgrade {entry.title}, or export the model with an older version."
                if is_newer
                else "Export the model again, or get an intact copy with all of its files."
            )
        ) from error
    feed = check_signature(
        name, loaded.inputs, loaded.outputs, size, classes, options.get("output")
    )
    count = feed.batch or options["count"]
    feed, images, answer = _first_answer(name, loaded, feed, size, count)
    _check_rows(name, answer, count, classes)

    def ask(session: Session, images: NDArray[Any] = images) -> NDArray[Any]:
        return rows_of(np.asarray(session(images)), feed)

    again = [ask(loaded.session(feed, count)) for _ in range(_REPEATS)]
    if not all(_alike(answer, other) for other in again):  # memory that a kernel never wrote
        raise ModelError(
            f"{name} gives the same images different logits each time.\n"
            f"{entry.title} computes this model wrongly here: use another backend or format."
        )
    if entry.silent_batch and count > 1:
        alone = ask(loaded.session(feed, 1), images[-1:])
        if not _alike(answer[-1:], alone):
            raise ModelError(
                f"{name} gives an image different logits in a batch than alone.\n"
                "Export the model again, or try another backend."
            )
    feed = feed._replace(batch=feed.batch or (1 if count == 1 else None), classes=answer.shape[1])
    workers, batch = options["workers"], feed.batch or options["batch"]
    loaded = entry.load().load(Path(path), Compute(options["precision"], workers))
    images = _noise(feed, loaded.layout or feed.layout, size, batch)
    sessions = [loaded.session(feed, batch) for _ in range(workers)]
    if not _agree(lambda each: ask(each, images), sessions, answer, options["within"]):
        raise _unsteady(name, entry.title, workers, batch)
    return {"feed": feed._asdict(), "logits": answer[:_PROBED].astype(float).tolist()}


def _first_answer(
    name: str, loaded: Loaded, feed: Feed, size: int, count: int
) -> tuple[Feed, NDArray[Any], NDArray[Any]]:
    """What a graph answers to noise; where it does not say in which layout, that is tried."""
    failed: list[Exception] = []
    for layout in (feed.layout,) if feed.layout else LAYOUTS:
        asked = feed._replace(layout=layout)
        images = _noise(asked, loaded.layout or layout, size, count)
        try:
            answer = rows_of(np.asarray(loaded.session(asked, count)(images)), asked)
        except EvalError:
            raise
        except Exception as error:
            failed.append(error)
        else:
            return asked, images, answer
    raise ModelError(
        f"{name}: it fails on an image ({child.first_line(failed[0])}).\n"
        "Export the model again, or try another backend."
    ) from failed[0]


def _agree(
    ask: Callable[[Session], NDArray[Any]],
    sessions: Sequence[Session],
    expected: NDArray[Any],
    within: float,
) -> bool:
    """Whether sessions that compute at the same time all answer `_noise` as expected."""
    with ThreadPoolExecutor(len(sessions)) as pool:
        answers = list(pool.map(ask, sessions))
    rows = min(_PROBED, len(expected))
    return all(_alike(expected[np.arange(len(a)) % rows], a, within) for a in answers)


def _unsteady(name: str, title: str, workers: int, batch: int) -> ModelError:
    return ModelError(
        f"{name} gives the same images other logits with {workers} workers and batches of {batch}."
        f"\n{title} computes this model wrongly here: use --workers 1, another backend or another "
        "format."
    )


def _noise(feed: Feed, layout: str, size: int, count: int) -> NDArray[Any]:
    """Images as a graph wants them; the first two are given again and again."""
    shape = (3, size, size) if layout == "NCHW" else (size, size, 3)
    levels = 255 if feed.type == "uint8" else 1  # pixels as they are, or as a model normalizes them
    images = (levels * np.random.default_rng(0).random((_PROBED, *shape))).astype(DTYPES[feed.type])
    return np.ascontiguousarray(images[np.arange(count) % _PROBED])


def _alike(one: NDArray[Any], other: NDArray[Any], within: float = _ALIKE) -> bool:
    """Whether logits (N, classes) are the same but for rounding.

    NaN equals NaN here: a run refuses logits that are not finite, and says so.
    """
    first, second = np.nan_to_num(one.astype(float)), np.nan_to_num(other.astype(float))
    return bool(np.abs(first - second).max() <= within * np.abs(first).max())
