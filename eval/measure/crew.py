"""More processes for one run: ``--processes``.

One interpreter runs Python code in one thread at a time, however many cores there are. So a run on
many cores has several processes, each with a model and threads of its own. The first of them keeps
all there is to decide: it gives batches away, gets their records back, and it alone writes the
journal and reports progress, as if all threads were its own. So results, an interruption and the
run after it do not depend on the number of processes.

Here is what the first process does; `eval.measure.member` is what the others do. Their models have
the first one's weights, in one file that all of them map into memory. They end with the first
process, however it ends: the system ends them (Linux), or else their connections to it are closed.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from eval import errors
from eval.backends import BACKENDS, Task
from eval.errors import EvalError, UsageError
from eval.images import decoders
from eval.images.cache import CropCache
from eval.images.valset import ValSet
from eval.measure.journal import Records, record_dtype
from eval.measure.settings import freed_memory_kept, in_effect
from eval.metrics import Kind
from eval.processes import difference
from eval.progress import Event, Observer
from eval.provenance import code_sha256, versions

Evaluator = Callable[[NDArray[np.int64]], Records]
SECONDS = 10  # that a process gets to end by itself
# All else takes seconds to import, in which the first process may end.
_PROGRAM = """
import sys
from eval.processes import end_with
end_with(int(sys.argv[1]))
from eval.measure.member import main
main()
"""
_ALIGNED = 64  # bytes


class Failure(NamedTuple):
    """What ended a step of another process.

    Attributes:
        kind: the class of `eval.errors`; "" for any other error.
        message: of it.
    """

    kind: str
    message: str

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """That of an error."""
        if isinstance(error, EvalError):
            return cls(type(error).__name__, str(error))
        return cls("", f"{type(error).__name__}: {error}")

    def error(self, number: int) -> EvalError:
        """The error for the first process."""
        if self.kind:
            found: EvalError = getattr(errors, self.kind)(self.message)
            return found
        return EvalError(f"Process {number} of this run failed: {self.message}")


class Job(NamedTuple):
    """What the processes of a crew measure: the arguments of `eval.measure.engine.measure`."""

    valset: ValSet
    plan: Any  # `eval.measure.batch.Plan`
    cache: Path | None  # the folder of all caches
    kinds: Mapping[str, Kind]


class Answer(NamedTuple):
    """What another process gives for a batch.

    Attributes:
        records: of its images, as bytes: pickled, they would take longer than all else here.
        from_cache: how many crops the process has had from a cache so far.
        kept: what the first process enters into the index of the cache: images and their records.
    """

    records: bytes
    from_cache: int
    kept: Sequence[tuple[int, bytes]]


def facts(task: Task, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a process computes with; it must be the same for all of a run.

    Args:
        task: what it computes.
        settings: what the runtime has set or chosen.
    """
    return {
        "settings": {**in_effect(), **settings},
        "code_sha256": code_sha256(),
        "versions": versions(BACKENDS[task.backend].needs),
        "decoders": decoders.versions(),
    }


class Crew:
    """The other processes of a run, as the first one sees them.

    They start at once, and import what they need while the first process builds its own model.

    Args:
        processes: of the run, the first one included.
        workers: threads of each.
        progress: called with every `eval.progress.Event`.

    Attributes:
        processes: as given.
    """

    def __init__(self, processes: int, workers: int, progress: Observer) -> None:
        self.processes = processes
        self._progress, self._workers = progress, workers
        self._store = tempfile.TemporaryFile(prefix="pplcnet-eval-")  # noqa: SIM115  # no name, no /dev/shm
        self._members: list[_Member] = []
        self._ended = weakref.finalize(self, _end, self._members, self._store)
        try:
            with closed_on_error(self), _interrupts_blocked():
                for number in range(1, processes):
                    self._members.append(_Member(number, workers, self._store.fileno()))
        except OSError as error:
            raise UsageError(
                f"--processes {processes}: process {len(self._members) + 1} cannot be started: "
                f"{error.strerror or error}.\nUse fewer, or raise the limit (ulimit -n, ulimit -u)."
            ) from error
        self._from_cache: dict[int, int] = {}
        self._cache: CropCache | None = None

    def take(self, task: Task) -> None:
        """Let all of them make the model; the first process goes on meanwhile.

        Raises:
            EvalError: one of them has ended.
            UsageError: the task cannot be given to another process.
        """
        length = _write(self._store, task)
        for member in self._members:
            member.send(member.control, pickle.dumps(("task", length, bool(freed_memory_kept()))))

    def ready(self, task: Task, settings: Mapping[str, Any]) -> None:
        """Wait until all have made the model, as the first process did.

        Raises:
            EvalError: one of them failed or has ended.
            UsageError: one of them does not compute with the same.
        """
        mine = facts(task, settings)
        for member in self._members:
            theirs = member.answer(member.control, self._progress)
            different = [key for key in mine if theirs[key] != mine[key]]
            if different:
                listed = "; ".join(difference(k, mine[k], theirs[k]) for k in different)
                raise UsageError(
                    f"Process {member.number} does not compute as process 0 does: {listed}.\n"
                    "Leave the installation alone during a run, and start it again."
                )

    def sharing(self, own: Evaluator, job: Job, cache: CropCache | None) -> Evaluator:
        """What evaluates a batch in any of the processes; for as many threads as they have in all.

        Args:
            own: evaluates a batch in this process.
            job: what the others evaluate batches of.
            cache: that of the job, if it has one.

        Raises:
            EvalError: one of them failed or has ended.
            UsageError: the images cannot be given to another process.
        """
        self._from_cache, self._cache = {}, cache
        self._dtype = record_dtype(job.plan.forms)
        data = _pickled(job, pickle.dumps)
        for member in self._members:
            member.send(member.control, data)
        for member in self._members:
            member.answer(member.control, self._progress)
        seats: queue.SimpleQueue[Evaluator] = queue.SimpleQueue()
        for place in range(self._workers):
            for member in self._members:  # by turns, so that a few batches are for many processes
                seats.put(_Seat(self, member, member.seats[place]))
            seats.put(own)

        def evaluate(indices: NDArray[np.int64]) -> Records:
            seat = seats.get()
            try:
                return seat(indices)
            finally:
                seats.put(seat)

        return evaluate

    def ask(self, member: _Member, connection: Connection, indices: NDArray[np.int64]) -> Records:
        """The records of a batch, from one of the others."""
        member.send(connection, indices.tobytes())
        answer: Answer = member.answer(connection, self._progress)
        for index, record in answer.kept:
            assert self._cache
            self._cache.enter(index, record)
        self._from_cache[member.number] = max(
            answer.from_cache, self._from_cache.get(member.number, 0)
        )
        return np.frombuffer(answer.records, self._dtype)

    @property
    def from_cache(self) -> int:
        """Crops that the others had from a cache."""
        return sum(self._from_cache.values())

    def check(self) -> None:
        """Let all of them check, after the last image, that nothing has changed.

        Raises:
            EvalError: something has, or one of them has ended.
        """
        for member in self._members:
            member.send(member.control, pickle.dumps(("check",)))
        for member in self._members:
            member.answer(member.control, self._progress)

    def close(self) -> None:
        """End all of them, whatever they are doing."""
        self._ended()


@contextmanager
def closed_on_error(crew: Crew | None) -> Iterator[None]:
    """End the other processes if there is an error, so that nothing waits for them."""
    try:
        yield
    except BaseException:
        if crew:
            crew.close()
        raise


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Keep Ctrl-C and SIGTERM from what is started meanwhile, from its first moment and for good.

    They reach all processes of a terminal or a container, and the first one alone decides how the
    run ends. Here, they come as soon as this ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass
class _Seat:
    """A thread of another process, as a function of this one."""

    crew: Crew
    member: _Member
    connection: Connection

    def __call__(self, indices: NDArray[np.int64]) -> Records:
        return self.crew.ask(self.member, self.connection, indices)


@dataclass
class _Member:
    """One of the other processes."""

    number: int
    workers: int
    store: int  # file descriptor
    control: Connection = field(init=False)
    seats: list[Connection] = field(init=False)
    process: subprocess.Popen[bytes] = field(init=False)
    stderr: IO[bytes] = field(init=False)

    def __post_init__(self) -> None:
        pairs = [Pipe() for _ in range(1 + self.workers)]
        self.control, *self.seats = (mine for mine, _ in pairs)
        self.stderr = tempfile.TemporaryFile(prefix="pplcnet-eval-")  # noqa: SIM115
        handles = [theirs.fileno() for _, theirs in pairs]
        # What can be imported here can be imported there.
        paths = [
            str(Path(errors.__file__).parents[1]),
            *(path or str(Path.cwd()) for path in sys.path),
        ]
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM]
                + [str(number) for number in (os.getpid(), self.store, *handles)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.stderr,
                pass_fds=(self.store, *handles),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
            )
        except OSError:
            self.stderr.close()
            raise
        finally:
            for _, theirs in pairs:
                theirs.close()

    def send(self, connection: Connection, message: bytes) -> None:
        """Send it a message.

        Raises:
            EvalError: it has ended.
        """
        try:
            connection.send_bytes(message)
        except OSError as error:
            raise self._lost() from error

    def answer(self, connection: Connection, progress: Observer) -> Any:
        """Wait for its answer; lines for the user may come before it.

        Raises:
            EvalError: it failed, or has ended.
        """
        while True:
            try:
                found = connection.recv()
            except (EOFError, OSError) as error:
                raise self._lost() from error
            if isinstance(found, Failure):
                raise found.error(self.number)
            if not isinstance(found, Event):
                return found
            progress(found)

    def _lost(self) -> EvalError:
        try:
            code = self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            how = "does not answer"
        else:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else self._last_words()
        return EvalError(
            f"Process {self.number} of this run {how}.\n"
            "The same command continues what was kept; with fewer --processes it needs less memory."
        )

    def _last_words(self) -> str:
        self.stderr.seek(0)
        lines = self.stderr.read().decode(errors="replace").strip().splitlines()
        return f"ended: {lines[-1][:200]}" if lines else f"ended with {self.process.returncode}"


def _end(members: Sequence[_Member], store: IO[bytes]) -> None:
    """Kill them: what they have not answered yet is measured again."""
    for member in members:
        member.process.kill()  # a stopped process, too
    for member in members:
        member.process.wait()
        member.stderr.close()
        for connection in (member.control, *member.seats):
            connection.close()
    store.close()


def _pickled(value: Any, dump: Callable[[Any], Any]) -> Any:
    try:
        return dump(value)
    except Exception as error:  # whatever a model or a transform of somebody's has in it
        raise UsageError(
            f"--processes: this run cannot be given to other processes ({error}).\n"
            "Use --processes 1."
        ) from error


def _write(store: IO[bytes], task: Task) -> int:
    """Write a task at the end of the store, after the tensors of its models.

    Returns:
        How many bytes the task itself has; the tensors are somewhere before it.
    """
    store.seek(0, os.SEEK_END)

    def kept(value: Any) -> Any:
        plain = type(value) is torch.Tensor and value.layout is torch.strided
        if not plain or value.device.type != "cpu" or not value.is_contiguous():
            return None
        offset = -(-store.tell() // _ALIGNED) * _ALIGNED
        store.seek(offset)
        if value.numel():
            store.write(memoryview(value.detach().flatten().view(torch.uint8).numpy()))
        return offset, value.numel(), value.dtype, tuple(value.shape)

    def dump(value: Any) -> bytes:
        written = io.BytesIO()
        pickler = pickle.Pickler(written)
        pickler.persistent_id = kept  # type: ignore[method-assign]
        pickler.dump(value)
        return written.getvalue()

    data = _pickled(task, dump)
    store.write(data)
    store.flush()
    return len(data)


def read_task(store: int, length: int) -> Task:
    """What `_write` has written; tensors are in memory that all processes share until one writes.

    Args:
        store: its file descriptor.
        length: as `_write` gave it.
    """
    memory = mmap.mmap(store, 0, access=mmap.ACCESS_COPY)

    def load(place: tuple[int, int, torch.dtype, tuple[int, ...]]) -> torch.Tensor:
        offset, count, dtype, shape = place
        if not count:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(shape)

    unpickler = pickle.Unpickler(io.BytesIO(memory[len(memory) - length :]))  # noqa: S301  # our own
    unpickler.persistent_load = load  # type: ignore[method-assign]
    task: Task = unpickler.load()
    return task
