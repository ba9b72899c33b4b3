"""The journal: the records measured so far, on disk, so that an interrupted run can continue.

``<output>/journal/`` contains ``run.json``, which identifies the run, and one file of fixed-size
records per process. There is one record per image. Records are only ever appended; the checksum of
a truncated or damaged record fails, and its image is measured again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.errors import UsageError
from eval.files import open_own, own_folder, write_atomically
from eval.metrics import TOP

Records = NDArray[np.void]

REASON_BYTES = 160


def record_dtype(forms: Iterable[str]) -> np.dtype[np.void]:
    """Layout of a record: the image, why it is bad (empty if not), and each form's scores."""
    answer = np.dtype(
        [
            ("rank", "<i8"),
            ("top", "<i8", TOP),
            ("prob", "<f8", TOP),
            ("nll", "<f8"),
            ("tied", "?"),
        ]
    )
    return np.dtype(
        [
            ("index", "<i8"),
            ("sha256", "u1", 32),
            ("reason", f"S{REASON_BYTES}"),
            ("logit_diff", "<f8"),
            ("largest_logit", "<f8"),
            *((form, answer) for form in forms),
        ]
    )


def _with_checksum(dtype: np.dtype[np.void]) -> np.dtype[np.void]:
    return np.dtype([("record", dtype), ("crc32", "<u4")])


class Journal:
    """The journal in an output folder, opened by one process.

    Args:
        output: the output folder of the run.
        identity: the settings that must be the same to continue a run, by name.
        forms: names of the forms, for the layout of a record.
        process: number of this process; each process appends to its own file.

    Raises:
        UsageError: the folder contains an unfinished run with other settings, or cannot be written.
    """

    def __init__(
        self, output: Path, identity: Mapping[str, Any], forms: Iterable[str], process: int = 0
    ) -> None:
        self._folder = output / "journal"
        self._path = self._folder / f"{process}.bin"
        self._dtype = _with_checksum(record_dtype(forms))
        self._seed = zlib.crc32(_digest(dict(identity)))
        try:
            own_folder(self._folder)
        except OSError as error:
            raise UsageError(f"{self._folder} cannot be used: {error.strerror}.") from error
        self._check_identity(output, dict(identity))
        try:
            self._file = open_own(self._path)
            # A truncated record would shift all records after it.
            size = os.fstat(self._file).st_size
            os.ftruncate(self._file, size - size % self._dtype.itemsize)
            os.lseek(self._file, 0, os.SEEK_END)
        except OSError as error:
            raise UsageError(f"{self._path} cannot be written: {error.strerror}.") from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def _check_identity(self, output: Path, identity: dict[str, Any]) -> None:
        path = self._folder / "run.json"
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            # Records without run.json could be from any run; their checksums, seeded with the
            # identity, fail then.
            write_atomically(path, json.dumps(identity, indent=2) + "\n")
            return
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{path} cannot be read ({error}).\nDelete {self._folder} to start over."
            ) from error
        if not isinstance(before, dict):
            before = {}
        identity = json.loads(json.dumps(identity))
        different = [key for key in identity if before.get(key) != identity[key]]
        if different and not self._has_records():
            # It failed before its first image, say because its model was damaged: nothing is lost.
            write_atomically(path, json.dumps(identity, indent=2) + "\n")
        elif different:
            changes = "; ".join(f"{k} was {before.get(k)}, is {identity[k]}" for k in different)
            raise UsageError(
                f"{output} contains an unfinished run with other settings: {changes}.\n"
                f"Use another --output, or delete {self._folder} to start over."
            )

    def _has_records(self) -> bool:
        """Whether any process has kept anything in the folder."""
        return any(path.stat().st_size for path in self._folder.glob("*.bin"))

    def read(self, images: int) -> Records:
        """Read all intact records of all processes.

        Args:
            images: size of the validation set; records of other indices are ignored.

        Returns:
            The records, sorted by index, at most one per image.

        Raises:
            UsageError: a file of the journal cannot be read.
        """
        found = []
        for path in sorted(self._folder.glob("*.bin")):
            try:
                data = path.read_bytes()
            except OSError as error:
                raise UsageError(
                    f"{path} cannot be read: {error.strerror or error}.\n"
                    f"Delete {self._folder} to start over."
                ) from error
            data = data[: len(data) - len(data) % self._dtype.itemsize]
            rows = np.frombuffer(data, self._dtype)
            intact = [self._checksum(row["record"]) == row["crc32"] for row in rows]
            found.append(rows["record"][np.array(intact, dtype=bool)])
        records = np.concatenate(found) if found else np.empty(0, self._dtype["record"])
        records = records[(records["index"] >= 0) & (records["index"] < images)]
        _, first = np.unique(records["index"], return_index=True)
        return records[first]

    def append(self, records: Records) -> None:
        """Write the records of a batch.

        Raises:
            UsageError: they cannot be written, for example because the disk is full.
        """
        rows = np.empty(len(records), self._dtype)
        rows["record"] = records
        rows["crc32"] = [self._checksum(record) for record in rows["record"]]
        data = memoryview(rows.tobytes())
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            raise UsageError(
                f"{self._path} cannot be written: {error.strerror}.\n"
                "Free some space and run the same command again: it continues this run."
            ) from error

    def remove(self) -> None:
        """Delete the journal, after the reports were written.

        Raises:
            UsageError: the folder cannot be removed.
        """
        try:
            shutil.rmtree(self._folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UsageError(
                f"{self._folder} cannot be removed: {error.strerror or error}.\n"
                "Delete it; the reports of the run are complete."
            ) from error

    def _checksum(self, record: np.void) -> int:
        return zlib.crc32(record.tobytes(), self._seed)


class NoJournal:
    """The journal of a run without an output folder: it stores nothing."""

    def __init__(self, forms: Iterable[str]) -> None:
        self._dtype = record_dtype(forms)

    def __enter__(self) -> NoJournal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def read(self, images: int) -> Records:  # noqa: ARG002
        """No records."""
        return np.empty(0, self._dtype)

    def append(self, records: Records) -> None:
        """Do nothing."""

    def remove(self) -> None:
        """Do nothing."""


def _digest(identity: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).digest()
