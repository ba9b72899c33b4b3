"""The output folder of a run: used by one run at a time, and never showing another run's result."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from eval.errors import UsageError
from eval.results.write import PREVIOUS, REPORTS, set_aside, unwritable

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
