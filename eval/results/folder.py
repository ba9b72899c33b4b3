"""The folder that a command writes to: for one run at a time, never showing another's result."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from eval.errors import UsageError
from eval.files import Lock, own_folder, write_atomically
from eval.provenance import check_code
from eval.results.record import Record
from eval.results.schema import (
    BAD_IMAGES_FILE,
    CONFUSIONS_FILE,
    LATENCY_FILE,
    PAGE_FILE,
    PER_CLASS_FILE,
    PREDICTIONS_FILE,
    RESULT_FILES,
    RUN_FILE,
    SUMMARY_FILE,
    bad_images_table,
    confusions_table,
    latency_table,
    per_class_table,
    predictions_table,
    run_document,
    summary_table,
)
from eval.text import csv_cell

_LOCK = ".lock"
PREVIOUS = "previous"  # folder that the files of an earlier run are moved to


class OutputFolder:
    """Where a command writes its files: the one protocol of all that write into a folder.

    An existing folder is claimed at once, so that a run that fails does not leave an earlier
    run's files behind as its own; a new one is made when there is something to keep. It is used by
    one run at a time: before anything is written, its lock must still be the one that is held.

    Args:
        path: the folder; None if nothing is to be written.
        files: names of the files that the command writes there.
        is_first: whether this is the process that writes; the others write nothing.
    """

    def __init__(
        self, path: Path | None, files: Sequence[str] = RESULT_FILES, *, is_first: bool = True
    ) -> None:
        self.path = path
        self.note = ""
        self._files = files
        self._is_first = is_first
        self._lock: Lock | None = None

    def __enter__(self) -> OutputFolder:
        if self.path is not None and self.path.exists():
            try:
                self.claim()
            except BaseException:
                self._release()  # nobody calls __exit__ where __enter__ fails
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release(remove=True)
            self._lock = None

    def claim(self) -> None:
        """Lock the folder for this run, and move the files of an earlier one to ``previous/``."""
        if self.path is None or self._lock is not None or not self._is_first:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = Lock(self.path / _LOCK)
            if not lock.acquire():
                raise UsageError(
                    f"{self.path} is in use by another run ({lock.owner()}).\n"
                    "Wait for it, or name another folder with --output."
                )
            self._lock = lock
            blocked = [name for name in self._files if (self.path / name).is_dir()]
            if blocked:
                raise UsageError(
                    f"{self.path / blocked[0]} is a folder, but a report needs that name.\n"
                    "Move it away, or name another folder with --output."
                )
            if set_aside(self.path, self._files):
                self.note = f"{self.path}: moved the earlier result to {self.path / PREVIOUS}"
        except FileExistsError:
            raise UsageError(
                f"--output {self.path} is a file.\nName a folder; it need not exist yet."
            ) from None
        except OSError as error:
            raise unwritable(self.path, error) from error

    def check(self) -> None:
        """Check that the folder is still this run's, before something in it is changed."""
        if self._lock is not None and not self._lock.is_current():
            raise UsageError(
                f"{self.path} was removed or replaced during the run: nothing was written to it.\n"
                "Run again, with a folder of its own for each run."
            )

    def write(self, name: str, text: str) -> None:
        """Write a file."""
        self.claim()
        self.check()
        if self.path is not None and self._is_first:
            write_atomically(self.path / name, text)

    def save(self, evaluation: Record) -> None:
        """Write all files of a result."""
        self.claim()
        self.check()
        if self.path is not None and self._is_first:
            write_reports(self.path, evaluation)


def write_reports(folder: Path, evaluation: Record) -> None:
    """Write all files of a result."""
    from eval.results.html import html_report

    files = {
        PREDICTIONS_FILE: csv_text(predictions_table(evaluation), float_format="%.6g"),
        PER_CLASS_FILE: csv_text(per_class_table(evaluation)),
        CONFUSIONS_FILE: csv_text(confusions_table(evaluation)),
        PAGE_FILE: html_report(evaluation),
        RUN_FILE: run_json(evaluation),
        SUMMARY_FILE: csv_text(summary_table(evaluation)),
    }
    if evaluation.measured.bad:
        files = {BAD_IMAGES_FILE: csv_text(bad_images_table(evaluation)), **files}
    if evaluation.latency:
        files = {LATENCY_FILE: csv_text(latency_table(evaluation)), **files}
    check_code()  # these files are made by modules that were only imported now
    try:
        folder.mkdir(parents=True, exist_ok=True)
        set_aside(folder)
        _write_together(folder, files)
    except OSError as error:
        raise unwritable(folder, error) from error


def set_aside(folder: Path, files: Sequence[str] = RESULT_FILES) -> bool:
    """Move earlier files of these names to ``previous/``; whether there were any.

    A folder must not show the result of another run than the one that last used it.
    """
    found = [name for name in files if (folder / name).is_symlink() or (folder / name).is_file()]
    if not found:
        return False
    previous = own_folder(folder / PREVIOUS)
    for name in files:
        with contextlib.suppress(FileNotFoundError):
            (previous / name).unlink()
    for name in found:
        (folder / name).replace(previous / name)
    return True


def put_away(folder: Path | None) -> None:
    """Move an earlier result out of a folder that a run was to use, but never came to claim."""
    with OutputFolder(folder):
        pass


def record_exit_code(folder: Path, run_id: str, code: int) -> int:
    """Correct the exit code in ``run.json``, where the process ends with another one."""
    path = folder / RUN_FILE
    lock = Lock(folder / _LOCK)
    try:
        if not lock.acquire():
            return 0  # by now another run's
        document = json.loads(path.read_bytes())
        if document["run_id"] == run_id and document["exit_code"] != code:
            write_atomically(path, _json(document | {"exit_code": code}))
    except OSError as error:
        raise unwritable(path, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} was changed after the run: {error!r}.") from error
    finally:
        lock.release(remove=True)
    return 0


def run_json(evaluation: Record) -> str:
    """``run.json``."""
    return _json(run_document(evaluation))


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, default=str, allow_nan=False) + "\n"


def unwritable(path: Path, error: OSError) -> UsageError:
    """The error if a file or folder cannot be written."""
    return UsageError(
        f"{error.filename or path} cannot be written: {error.strerror or error}.\n"
        "Free some space, or name another folder with --output."
    )


def csv_text(table: Any, **options: Any) -> str:
    """A table as the text of a CSV file, whose text is no formula."""
    for name in table.columns:
        if pd.api.types.is_string_dtype(table[name].dtype):  # or objects of any kind
            cells = [csv_cell(v) if isinstance(v, str) else v for v in table[name]]
            table = table.assign(**{name: pd.Series(cells, dtype=object, index=table.index)})
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
