"""Writing a result: all of its files, or none of them.

The files are written under temporary names first and renamed at the end, ``summary.csv`` last:
where it stands, all other files of its run stand beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.errors import UsageError
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
    run_document,
)

if TYPE_CHECKING:
    from eval.evaluation import Evaluation

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


def write_reports(folder: Path, evaluation: Evaluation) -> None:
    """Write all files of a result.

    Raises:
        UsageError: the folder cannot be written to, or the disk is full.
    """
    from eval.results.html import html_report

    files = {
        PREDICTIONS_FILE: _csv(evaluation.predictions, float_format="%.6g"),
        PER_CLASS_FILE: _csv(evaluation.per_class),
        PAGE_FILE: html_report(evaluation),
        RUN_FILE: run_json(evaluation),
        SUMMARY_FILE: _csv(evaluation.summary),
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


def run_json(evaluation: Evaluation) -> str:
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
