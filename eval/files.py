"""Files that are written completely or not at all, and locks that say who holds them."""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from eval.errors import UsageError

PATIENCE = 60.0  # seconds to wait for a lock
NOTICE = 2.0  # seconds until a wait is mentioned

_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF}
_OWNER = re.compile(r"process ([0-9]{1,10}) on ([\w.-]{1,100})\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a whole UTF-8 file or nothing; folders are made as needed.

    Whatever fails or interrupts this, `path` is what it was before or has all of `text`, and no
    temporary file is left. Bytes of a file name that are not UTF-8 are written as escapes.

    Raises:
        UsageError: `path` is a folder, its folder cannot be written to, or the disk is full.
    """
    # The name is known before the file is made, so that no interrupt can come between the two.
    temporary = path.with_name(f".{path.name[:60]}.{secrets.token_hex(6)}")
    try:
        if path.is_dir():
            raise UsageError(
                f"{path} is a folder, but a file of that name must be written.\n"
                "Move it away, or name another folder for the output."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("x", encoding="utf-8", errors="backslashreplace", newline="") as (
                file
            ):
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error


def sync_folder(folder: Path) -> None:
    """Make sure that the names in a folder outlast a loss of power, where the system can.

    Raises:
        OSError: the disk has failed.
    """
    if os.name == "nt":  # folders cannot be opened there
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:  # network file systems may not offer it
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        UsageError: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path} cannot be removed: {error.strerror or error}.") from error


@contextmanager
def locked(path: Path, advice: str = "") -> Iterator[None]:
    """Hold the lock ``PATH.lock``, which ends with the process that holds it.

    After `NOTICE` seconds of waiting, stderr shows who holds it.

    Args:
        path: what is locked; its folder must exist.
        advice: what to do if the lock is not released; one line.

    Raises:
        UsageError: another process has held it for `PATIENCE` seconds.
        OSError: the lock file cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=NOTICE)
    except Timeout:
        print(
            f"{path} is locked by {lock_owner(path)}: waiting up to {PATIENCE:g} s",
            file=sys.stderr,
            flush=True,
        )
        try:
            lock.acquire(timeout=max(0.0, PATIENCE - NOTICE))
        except Timeout:
            raise UsageError(
                f"{path} has been locked by {lock_owner(path)} for {PATIENCE:g} s."
                + (f"\n{advice}" if advice else "")
            ) from None
    try:
        _sign(Path(lock.lock_file), f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        try:
            _sign(Path(lock.lock_file), "")
        finally:
            lock.release()


def _sign(lock_file: Path, text: str) -> None:
    """Say in the lock file who holds the lock, unless the file is something else; only a help."""
    with suppress(OSError, UnicodeDecodeError):
        content = lock_file.read_text(encoding="utf-8")
        if not content or _OWNER.fullmatch(content):
            lock_file.write_text(text, encoding="utf-8")


def lock_owner(path: Path) -> str:
    """Who holds the lock of `path`, in words, as far as the lock file says."""
    deadline = time.monotonic() + 0.2  # a new owner may be about to sign
    while time.monotonic() < deadline:
        with suppress(OSError, UnicodeDecodeError):
            content = Path(f"{path}.lock").read_text(encoding="utf-8")
            if _OWNER.fullmatch(content):
                return content.strip()
        time.sleep(0.05)
    return "another process"
