"""Fault injection: make every file operation of a run fail once (open, write, sync, ...).

Modeled on SQLite's fault tests. A short run (both forms, cache, history, baseline) is repeated.
For every k, the k-th operation on its files raises ENOSPC, then EIO, then KeyboardInterrupt. Each
time, the exit code must be a documented one, ``summary.csv`` may only exist together with all other
files of its run, and running the same command again must give the files of an undisturbed run.

Used by ``scripts/endurance.py faults`` and by the tests.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
_CALLS = ("write", "pwrite", "fsync", "ftruncate")
SAME = ("predictions.csv", "per_class.csv")
REPORTS = ("summary.csv", *SAME, "run.json", "report.html")

KINDS: dict[str, Callable[[], BaseException]] = {
    "ENOSPC": lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "EIO": lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
    "interrupt": KeyboardInterrupt,
}


class Faults:
    """Counts the file operations below a folder, and makes one of them fail.

    Args:
        root: the folder; operations elsewhere are not counted.
        fail_at: number of the operation that fails, from 1; 0 for none.
        error: makes the exception to raise.
    """

    def __init__(self, root: Path, fail_at: int = 0, error: Callable[[], BaseException] = OSError):
        self.root, self.fail_at, self.error = f"{root}{os.sep}", fail_at, error
        self.count = 0
        self.what = ""
        self._lock = threading.Lock()

    def hit(self, operation: str, target: object) -> None:
        """Count an operation that is about to happen, and raise if it is the one to fail.

        Args:
            operation: its name.
            target: a path or a file descriptor; anything else is ignored.
        """
        if isinstance(target, int):
            try:
                target = Path(f"/proc/self/fd/{target}").readlink()
            except OSError:
                return
        if not isinstance(target, str | bytes | os.PathLike):
            return
        path = os.fsdecode(target)
        if not path.startswith(self.root):
            return
        with self._lock:
            self.count += 1
            number = self.count
        if number == self.fail_at:
            self.what = f"{operation} {path.removeprefix(self.root)}"
            raise self.error()


_current: list[Faults] = []
_installed: list[bool] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _current and event in _EVENTS and arguments:
        _current[0].hit(event, arguments[0])


class _FaultyFile:
    """Wraps a file and counts its writes."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: Any) -> Any:
        if _current:
            _current[0].hit("write", self._file.fileno())
        return self._file.write(data)

    def __enter__(self) -> _FaultyFile:
        self._file.__enter__()
        return self

    def __exit__(self, *arguments: object) -> Any:
        return self._file.__exit__(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def injected(faults: Faults) -> Iterator[None]:
    """Count file operations, and make one fail, until the context ends."""
    if not _installed:
        sys.addaudithook(_audit)
        _installed.append(True)
    opened = builtins.open
    calls = {name: getattr(os, name) for name in _CALLS}

    def open_counted(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        found = opened(file, mode, *rest, **options)
        return _FaultyFile(found) if set(mode) & set("wax+") else found

    def counted(name: str) -> Callable[..., Any]:
        def call(handle: int, *arguments: Any) -> Any:
            faults.hit(name, handle)
            return calls[name](handle, *arguments)

        return call

    builtins.open = io.open = open_counted  # type: ignore[assignment]
    for name in _CALLS:
        setattr(os, name, counted(name))
    _current.append(faults)
    try:
        yield
    finally:
        _current.clear()
        builtins.open = io.open = opened  # type: ignore[assignment]
        for name, call in calls.items():
            setattr(os, name, call)


def sweep(
    run: Callable[[], int], folder: Path, kept: tuple[str, ...], *, step: int = 1, first: int = 1
) -> tuple[int, list[str]]:
    """Make every operation of a run fail once, with every kind of error.

    Args:
        run: a command that works below `folder`, writes its result to ``<folder>/out`` and returns
            an exit code; if nothing fails, that must be 0.
        folder: contains everything that the run reads and writes.
        kept: names in `folder` that exist before the run.
        step: try only every step-th operation.
        first: number of the first operation to try.

    Returns:
        The number of injected failures, and the problems found.
    """
    counting = Faults(folder)
    with injected(counting):
        code = run()
    expected = {name: (folder / "out" / name).read_bytes() for name in SAME}
    problems = [] if code == 0 else [f"the undisturbed run exits with {code}"]
    tried = 0
    for name, error in KINDS.items():
        for number in range(first, counting.count + 1, step):
            _clean(folder, kept)
            faults = Faults(folder, number, error)
            with injected(faults):
                code = run()
            if not faults.what:
                continue
            tried += 1
            problems += [
                f"{name} at {number} ({faults.what}): {problem}"
                for problem in _problems(name, code, folder / "out", expected, run)
            ]
    return tried, problems


def _problems(
    name: str, code: int, output: Path, expected: dict[str, bytes], run: Callable[[], int]
) -> Iterator[str]:
    allowed = {130} if name == "interrupt" else {0, 2, 3, 4}
    if code not in allowed:
        yield f"exit code {code}"
    if (output / "summary.csv").exists():
        missing = [report for report in REPORTS if not (output / report).is_file()]
        if missing:
            yield f"summary.csv without {', '.join(missing)}"
        elif any((output / report).read_bytes() != expected[report] for report in SAME):
            yield "summary.csv with different predictions"
    elif code == 0:
        yield "exit code 0 without summary.csv"
    if (again := run()) != 0:
        yield f"running again exits with {again}"
    elif any((output / report).read_bytes() != expected[report] for report in SAME):
        yield "running again gives different files"


def _clean(folder: Path, kept: tuple[str, ...]) -> None:
    for path in folder.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
