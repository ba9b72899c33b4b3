"""A run over several processes, started by ``torchrun``; a plain run is a group of one process.

And the cores that they may use.

Each process measures every n-th batch. They share nothing meanwhile, but the word that one of them
has failed. At the end, all of them receive all records, and the first one writes the reports.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from eval.errors import EvalError, UsageError

T = TypeVar("T")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Group:
    """The processes of the run, as seen by one of them."""

    number: int = 0  # of this process
    count: int = 1  # of processes
    local_number: int = 0  # of this process on its machine; selects its GPU
    local_count: int = 1  # of processes on this machine
    store: Any = field(default=None, repr=False, compare=False)  # torch's, of what all can see

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reports."""
        return self.number == 0

    def wait(self) -> None:
        """Wait until every process has called this."""
        self.gather(None)

    def gather(self, value: T) -> list[T]:
        """Collect the values of all processes, in every process, in order of their numbers.

        Raises:
            EvalError: another process has failed (see `together`), or has ended without a word.
        """
        if self.count == 1:
            return [value]
        values = self._exchange(value)
        for number, found in enumerate(values):
            if isinstance(found, _Failure):
                raise found.error(number)
        return values

    def together(self, step: Callable[[], T]) -> T:
        """Do a step that all processes do; an error of one is told to all.

        They end with it at their next `look`, `gather` or `wait`: one of these must follow.
        """
        try:
            return step()
        except Exception as error:
            if self.count > 1 and not getattr(error, _TOLD, False):
                with suppress(EvalError, RuntimeError):  # this one's error is what is said
                    if self.store is not None:
                        self.store.set(_FAILED, "")
                    self._exchange(_Failure.of(error))
            raise

    def look(self) -> None:
        """End with the error of another process that has failed; does not wait for any."""
        if self.store is not None:
            with _lost_connections():
                failed = self.store.check([_FAILED])
            if failed:
                self.gather(None)

    def _exchange(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        with _lost_connections():
            dist.all_gather_object(values, value)
        return values


_TOLD = "_told_by_another_process"
_FAILED = "pplcnet-eval/failed"  # a key of the store


@contextmanager
def _lost_connections() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's word for one
        raise EvalError(
            "Another process of this run has ended.\nIts own message says why."
        ) from error


class _Failure(NamedTuple):
    """What ended one process, as it is told to the others."""

    kind: type[EvalError]
    message: str

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        """That of an error; anything but our own kinds is a failure of the run."""
        if isinstance(error, EvalError):
            return cls(type(error), str(error))
        return cls(EvalError, f"{type(error).__name__}: {error}")

    def error(self, number: int) -> EvalError:
        """The error for the other processes, of the same kind."""
        error = self.kind(f"Process {number}: {self.message}")
        setattr(error, _TOLD, True)
        return error


def own_place(environment: Mapping[str, str] = os.environ) -> Group:
    """Which process of the run this is: the only place that decides who is first.

    torchrun sets ``WORLD_SIZE``; without it, or where it is 1, this is a plain run of one process,
    whatever ``RANK`` a cluster has left in the environment.
    """
    local_count = _number(environment, "LOCAL_WORLD_SIZE", 1, least=1)
    if "WORLD_SIZE" not in environment:
        return Group()
    count = _number(environment, "WORLD_SIZE", None, least=1)
    number = _number(environment, "RANK", None if count > 1 else 0, most=count - 1)
    if count == 1:
        return Group()
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not environment.get(name):
            raise _unclear(f"WORLD_SIZE={count}, but {name} is not set")
    known = "LOCAL_WORLD_SIZE" in environment
    local_number = _number(environment, "LOCAL_RANK", 0, most=(local_count if known else count) - 1)
    return Group(number, count, local_number, local_count)


def _number(
    environment: Mapping[str, str],
    name: str,
    default: int | None,
    *,
    least: int = 0,
    most: int = 1_000_000,
) -> int:
    """A variable as a number."""
    text = environment.get(name)
    if text is None:
        if default is None:
            raise _unclear(f"WORLD_SIZE={environment['WORLD_SIZE']}, but {name} is not set")
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= most):
        raise _unclear(f"{name}={text[:40]!r}: not a whole number from {least} to {most:,}")
    return int(text)


def _unclear(what: str) -> UsageError:
    return UsageError(
        f"The environment does not say which process of the run this is: {what}.\n"
        "Start a run over several processes with torchrun; for one process: unset WORLD_SIZE RANK "
        "LOCAL_WORLD_SIZE."
    )


@contextmanager
def process_group() -> Iterator[Group]:
    """Join the process group, if the run has several processes."""
    place = own_place()
    if place.count == 1:
        yield place
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    # The timeout is long because a process may have to wait for one with larger images; torchrun
    # ends all of them if one dies.
    timeout = timedelta(days=1)
    store, *_ = next(rendezvous("env://", timeout=timeout))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        store=store,
        rank=place.number,
        world_size=place.count,
        timeout=timeout,
    )
    try:
        yield replace(place, store=store)
    finally:
        dist.destroy_process_group()


def difference(key: str, first: Any, other: Any) -> str:
    """One difference in words; of a table, only what differs."""
    if isinstance(first, dict) and isinstance(other, dict):
        keys = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        return "; ".join(difference(f"{key} {n}", first.get(n), other.get(n)) for n in keys)
    return f"{key} is {other}, not {first}"


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: by its affinity, and by the quota of its control groups.

    A container of two CPUs on a machine of 64 (``docker --cpus 2``) sees 64, and is stopped for the
    rest of each tenth of a second once all of them have used what two could.

    Args:
        root: below which ``/proc`` and ``/sys`` are.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([affinity or 1, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """The CPUs that each control group of this process allows, version 1 or 2, where it is limited.

    A group is limited by those above it as well. In a container, what ``/proc`` names may be out of
    sight: its own group is then the root of what is mounted.
    """
    mounted = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        for place in (mounted / "cpu", mounted / "cpu,cpuacct") if controllers else (mounted,):
            if controllers and "cpu" not in controllers.split(","):
                continue
            group = place / path.lstrip("/")
            for folder in (place, *(f for f in (group, *group.parents) if place in f.parents)):
                limit = _text(folder / "cpu.max").split() or [
                    _text(folder / "cpu.cfs_quota_us").strip(),
                    _text(folder / "cpu.cfs_period_us").strip(),
                ]
                if len(limit) == 2 and all(number.isdigit() for number in limit) and int(limit[1]):
                    yield int(limit[0]) / int(limit[1])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def end_with(parent: int) -> None:
    """Let the system end this process with its parent, where it can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(0)
