"""Files that are written completely or not at all, and locks that say who holds them."""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from eval.errors import UsageError

_SEEKING = threading.Lock()  # the place in a file is one for all threads
PATIENCE = 60.0  # seconds to wait for a lock
NOTICE = 2.0  # seconds until a wait is mentioned

_LARGE, _MOST_SHRUNK = 64 << 20, 20  # bytes; images, names and logits shrink much less
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF}
_OWNER = re.compile(r"process ([0-9]{1,10}) on (\S{1,100})\n")


def is_inflated(size: int, stored: int) -> bool:
    """Whether so few bytes of a file stand for so many in memory that it is a trap."""
    return size > _LARGE and size > _MOST_SHRUNK * stored


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
                if path.exists():  # such as one that a group may write
                    temporary.chmod(stat.S_IMODE(path.stat().st_mode))
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
    """Make sure that the names in a folder outlast a loss of power, where the system can."""
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
    """Remove a file, if it is there."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path} cannot be removed: {error.strerror or error}.") from error


class Lock:
    """A lock file in a folder that exists; it says who holds it, and ends with that process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path, thread_local=False)

    def acquire(self, patience: float = 0.0) -> bool:
        """Take the lock, within `patience` seconds; whether that was possible."""
        if self.path.is_symlink():
            raise OSError(errno.ELOOP, "it is a link", str(self.path))
        deadline = time.monotonic() + patience
        while True:
            try:
                self._lock.acquire(timeout=max(0.0, deadline - time.monotonic()))
            except Timeout:
                return False
            if self.is_current():
                break
            self._lock.release()  # its last holder removed it meanwhile
        self._sign(f"process {os.getpid()} on {socket.gethostname()}\n")
        return True

    def is_current(self) -> bool:
        """Whether the lock that is held is that of the file which now has its path."""
        handle = self._lock._context.lock_file_fd
        if handle is None:
            return self._lock.is_locked  # on a file system without such locks
        try:
            there = os.stat(self.path, follow_symlinks=False)  # noqa: PTH116 - 3.11's takes no file
            return os.path.samestat(there, os.fstat(handle))
        except OSError:
            return False

    def release(self, *, remove: bool = False) -> None:
        """Give the lock back, if it is held, and remove its file, if that is still its own."""
        if not self._lock.is_locked:
            return
        try:
            self._sign("")
            if remove and self.is_current():
                with suppress(OSError):
                    self.path.unlink()
        finally:
            self._lock.release()

    def owner(self) -> str:
        """Who holds the lock, in words, as far as its file says."""
        deadline = time.monotonic() + 0.2  # a new owner may be about to sign
        while time.monotonic() < deadline:
            with suppress(OSError, UnicodeDecodeError):
                content = self.path.read_text(encoding="utf-8")
                if _OWNER.fullmatch(content):
                    return content.strip()
            time.sleep(0.05)
        return "another process"

    def _sign(self, text: str) -> None:
        """Say in the file who holds it, unless it is something else; only a help."""
        handle = self._lock._context.lock_file_fd
        with suppress(OSError, UnicodeDecodeError):
            assert handle is not None
            os.lseek(handle, 0, os.SEEK_SET)
            content = os.read(handle, 200).decode()
            if not content or _OWNER.fullmatch(content):
                os.ftruncate(handle, 0)
                os.lseek(handle, 0, os.SEEK_SET)
                os.write(handle, text.encode())


@contextmanager
def locked(path: Path, advice: str = "") -> Iterator[None]:
    """Hold the lock ``PATH.lock``.

    After `NOTICE` seconds of waiting, stderr shows who holds it.

    Args:
        path: what is locked; its folder must exist.
        advice: what to do if the lock is not released; one line.

    Raises:
        UsageError: another process has held it for `PATIENCE` seconds.
        OSError: the lock file cannot be written.
    """
    lock = Lock(Path(f"{path}.lock"))
    if not lock.acquire(NOTICE):
        print(
            f"{path} is locked by {lock.owner()}: waiting up to {PATIENCE:g} s",
            file=sys.stderr,
            flush=True,
        )
        if not lock.acquire(max(0.0, PATIENCE - NOTICE)):
            raise UsageError(
                f"{path} has been locked by {lock.owner()} for {PATIENCE:g} s."
                + (f"\n{advice}" if advice else "")
            )
    try:
        yield
    finally:
        lock.release()


def open_own(path: Path) -> int:
    """Open a file of ours to be read and written in place, or make it; never through a link."""
    there = ("O_NOFOLLOW", "O_BINARY")  # neither is there on every system
    flags = os.O_RDWR | os.O_CREAT | sum(getattr(os, name, 0) for name in there)
    if not hasattr(os, "O_NOFOLLOW") and path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link", str(path))
    handle = os.open(path, flags, 0o644)
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(handle)
        raise OSError(errno.EMLINK, "it is a link or not a regular file", str(path))
    return handle


def read_at(handle: int, size: int, offset: int) -> bytes:
    """`size` bytes from `offset` of a file of `open_own`, or what there is; in any thread."""
    if hasattr(os, "pread"):
        return os.pread(handle, size, offset)
    with _SEEKING:
        os.lseek(handle, offset, os.SEEK_SET)
        return os.read(handle, size)


def write_at(handle: int, data: bytes, offset: int) -> None:
    """All of `data` at `offset`: a single call may write less, on a disk that is nearly full."""
    while data:
        if hasattr(os, "pwrite"):
            written = os.pwrite(handle, data, offset)
        else:
            with _SEEKING:
                os.lseek(handle, offset, os.SEEK_SET)
                written = os.write(handle, data)
        data, offset = data[written:], offset + written


def own_folder(path: Path) -> Path:
    """A folder of ours, which is made if it is missing; never a link to another one."""
    path.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        raise OSError(errno.ELOOP, "it is a link", str(path))
    return path
