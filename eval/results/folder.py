"""The output folder of a run: used by one run at a time, and never showing another run's result."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from eval.errors import UsageError
from eval.results.record import Record
from eval.results.schema import (
    BAD_IMAGES_FILE,
    LATENCY_FILE,
    PAGE_FILE,
    PER_CLASS_FILE,
    PREDICTIONS_FILE,
    RUN_FILE,
    SUMMARY_FILE,
    bad_images_table,
    latency_table,
    per_class_table,
    predictions_table,
    run_document,
    summary_table,
)

_LOCK = ".lock"
_OWNER = ".lock-owner"


class OutputFolder:
    """Where a run keeps its journal and writes its reports.

    An existing folder is claimed at once, so that a run that fails does not leave an earlier
    run's verdict behind as its own; a new one is made when there is something to keep.

    Args:
        path: the folder; None if nothing is to be written.
        is_first: whether this is the process that writes; the others write nothing.
    """

    def __init__(self, path: Path | None, *, is_first: bool = True) -> None:
        self.path = path
        self.note = ""
        self._is_first = is_first
        self._lock: FileLock | None = None

    def __enter__(self) -> OutputFolder:
        if self.path is not None and self.path.exists():
            try:
                self.claim()
            except BaseException:
                self._release()  # nobody calls __exit__ where __enter__ fails
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._release()

    def _release(self) -> None:
        if self._lock is not None and self.path is not None:
            for name in (_OWNER, _LOCK):
                with contextlib.suppress(OSError):
                    (self.path / name).unlink()
            self._lock.release()
            self._lock = None

    def claim(self) -> None:
        """Lock the folder for this run, and move the files of an earlier one to ``previous/``.

        Raises:
            UsageError: another run is using it, or it cannot be written to.
        """
        if self.path is None or self._lock is not None or not self._is_first:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / _LOCK)
            lock.acquire(timeout=0)
            self._lock = lock
            owner = f"process {os.getpid()} on {socket.gethostname()}"
            (self.path / _OWNER).write_text(owner, encoding="utf-8")
            blocked = [name for name in REPORTS if (self.path / name).is_dir()]
            if blocked:
                raise UsageError(
                    f"{self.path / blocked[0]} is a folder, but a report needs that name.\n"
                    "Move it away, or name another folder with --output."
                )
            if set_aside(self.path):
                self.note = f"{self.path}: moved the earlier result to {self.path / PREVIOUS}"
        except FileExistsError:
            raise UsageError(
                f"--output {self.path} is a file.\nName a folder; it need not exist yet."
            ) from None
        except Timeout:
            raise UsageError(
                f"{self.path} is in use by another run ({self._owner()}).\n"
                "Wait for it, or name another folder with --output."
            ) from None
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _owner(self) -> str:
        assert self.path is not None
        try:
            return (self.path / _OWNER).read_text(encoding="utf-8")[:100]
        except (OSError, UnicodeDecodeError):
            return "process unknown"


PREVIOUS = "previous"  # folder that the files of an earlier run are moved to


# What makes a result, the summary first: without it, the others claim nothing.
REPORTS = (
    SUMMARY_FILE,
    RUN_FILE,
    PAGE_FILE,
    PREDICTIONS_FILE,
    PER_CLASS_FILE,
    BAD_IMAGES_FILE,
    LATENCY_FILE,
    "regression.md",
    "regression.csv",
    "regression_flips.csv",
    "regression_classes.csv",
    "junit.xml",
)


def write_reports(folder: Path, evaluation: Record) -> None:
    """Write all files of a result.

    Raises:
        UsageError: the folder cannot be written to, or the disk is full.
    """
    from eval.results.html import html_report

    files = {
        PREDICTIONS_FILE: _csv(predictions_table(evaluation), float_format="%.6g"),
        PER_CLASS_FILE: _csv(per_class_table(evaluation)),
        PAGE_FILE: html_report(evaluation),
        RUN_FILE: run_json(evaluation),
        SUMMARY_FILE: _csv(summary_table(evaluation)),
    }
    if evaluation.measured.bad:
        files = {BAD_IMAGES_FILE: _csv(bad_images_table(evaluation)), **files}
    if evaluation.latency:
        files = {LATENCY_FILE: _csv(latency_table(evaluation)), **files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        set_aside(folder)
        _write_together(folder, files)
    except OSError as error:
        raise unwritable(folder, error) from error


def set_aside(folder: Path) -> bool:
    """Move the files of an earlier result in a folder to ``previous/``; whether there were any.

    A folder must not show the result of another run than the one that last used it.

    Raises:
        OSError: a file cannot be moved.
    """
    found = [name for name in REPORTS if (folder / name).is_file()]
    if not found:
        return False
    previous = folder / PREVIOUS
    previous.mkdir(exist_ok=True)
    for name in REPORTS:
        with contextlib.suppress(FileNotFoundError):
            (previous / name).unlink()
    for name in found:
        (folder / name).replace(previous / name)
    return True


def run_json(evaluation: Record) -> str:
    """``run.json``."""
    document = run_document(evaluation)
    return json.dumps(document, indent=2, default=str, allow_nan=False) + "\n"


def unwritable(path: Path, error: OSError) -> UsageError:
    """The error if a file or folder cannot be written."""
    return UsageError(
        f"{error.filename or path} cannot be written: {error.strerror or error}.\n"
        "Free some space, or name another folder with --output."
    )


def _csv(table: Any, **options: Any) -> str:
    return str(table.to_csv(index=False, lineterminator="\n", **options))


def _write_together(folder: Path, files: Mapping[str, str]) -> None:
    """Write files in the order in which they are to appear, or none of them."""
    blocked = [name for name in files if (folder / name).is_dir()]
    if blocked:
        raise IsADirectoryError(0, "it is a folder", str(folder / blocked[0]))
    with tempfile.TemporaryDirectory(prefix=".reports-", dir=folder) as name:
        staging = Path(name)
        for file, text in files.items():
            with (staging / file).open("wb") as handle:
                # Names of files may hold bytes that are not text.
                handle.write(text.encode("utf-8", "backslashreplace"))
                handle.flush()
                os.fsync(handle.fileno())
        done: list[str] = []
        try:
            for file in files:
                (staging / file).replace(folder / file)
                done.append(file)
        except BaseException:
            for file in done:
                with contextlib.suppress(OSError):
                    (folder / file).unlink()
            raise
