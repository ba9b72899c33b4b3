"""Whole files or none, whatever fails on the way."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.errors import UsageError
from eval.files import remove, sync_folder, write_atomically


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.csv"
    write_atomically(path, "a\r\nb\nä\n")
    assert path.read_bytes() == b"a\r\nb\n\xc3\xa4\n"
    write_atomically(path, "shorter")
    assert path.read_bytes() == b"shorter"
    assert names_in(path.parent) == ["file.csv"]


def test_a_name_that_is_not_utf8_does_not_stop_a_report(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.JPEG")
    write_atomically(tmp_path / "x", f"{name}\n")
    assert (tmp_path / "x").read_text(encoding="utf-8") == "caf\\udce9.JPEG\n"


def test_long_names_can_be_written(tmp_path: Path) -> None:
    name = "x" * 250
    write_atomically(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"
    assert names_in(tmp_path) == [name]


@pytest.mark.skipif(sys.platform == "win32", reason="umask is of POSIX")
def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "x", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_a_folder_in_the_way_is_explained(tmp_path: Path) -> None:
    (tmp_path / "bad_images.csv").mkdir()
    with pytest.raises(UsageError, match=r"bad_images\.csv is a folder, but a file of that name"):
        write_atomically(tmp_path / "bad_images.csv", "text")
    with pytest.raises(UsageError, match=r"bad_images.csv cannot be removed: "):
        remove(tmp_path / "bad_images.csv")
    assert names_in(tmp_path) == ["bad_images.csv"]


def test_a_file_where_the_folder_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file/x cannot be written: "):
        write_atomically(tmp_path / "file" / "x", "text")
    remove(tmp_path / "nothing")


CALLS = ("open", "write", "flush", "fsync", "replace", "folder")


def fail(monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException) -> None:
    """Make one step of `write_atomically` raise, after it has done its work or before."""

    def failing(*_: object, **__: object) -> Any:
        raise error

    class File:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> File:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return failing if name == call else getattr(self.file, name)

    original: Callable[..., Any] = Path.open

    def opened(self: Path, *args: Any, **options: Any) -> Any:
        file = original(self, *args, **options)
        if call == "open":
            file.close()
            raise error  # the file is there already
        return File(file)

    syncs = iter([call == "fsync", call == "folder"])
    fsync = os.fsync
    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(os, "fsync", lambda handle: failing() if next(syncs) else fsync(handle))
    if call == "replace":
        monkeypatch.setattr(Path, "replace", failing)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left"), OSError(errno.EIO, "I/O error"), KeyboardInterrupt()],
    ids=["ENOSPC", "EIO", "interrupt"],
)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("old", [None, "old"])
def test_whatever_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    error: BaseException,
    old: str | None,
) -> None:
    path = tmp_path / "file.csv"
    if old is not None:
        path.write_text(old)
    with monkeypatch.context() as patch:
        fail(patch, call, error)
        kind = UsageError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(kind) as caught:
            write_atomically(path, "new")
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path} cannot be written: {error.strerror}."
    expected = "new" if call == "folder" else old  # by then it has its name
    assert (path.read_text() if path.exists() else None) == expected
    assert names_in(tmp_path) == ([] if expected is None else ["file.csv"])


def test_a_file_system_that_cannot_sync_folders_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = iter([errno.EINVAL, errno.ENOTSUP, errno.EIO])

    def fsync(_: int) -> None:
        code = next(codes)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fsync)
    sync_folder(tmp_path)
    sync_folder(tmp_path)
    with pytest.raises(OSError, match="Input/output error"):
        sync_folder(tmp_path)


def test_the_name_is_made_durable_after_the_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the bytes, then the name, then the folder that holds it."""
    steps = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        steps.append(kind)
        fsync(handle)

    def replaced(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    write_atomically(tmp_path / "x", "text")
    assert steps == ["file", "rename", "folder"]
