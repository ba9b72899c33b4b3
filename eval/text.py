"""Text from users and for users: small text files, and names fit for a message."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from eval.errors import DataError

_LARGEST_FILE = 64 << 20  # bytes; the largest real one, Kaggle's list of labels, has 2 MB


def shown(text: str) -> str:
    """`text` fit for a line of a message: printable, and not endless."""
    text = text if len(text) <= 120 else f"{text[:117]}..."
    return text if text.isprintable() else ascii(text)


def examples(rows: Iterable[str]) -> str:
    """The first three, for a message, and how many there are in all if more."""
    rows = list(rows)
    more = f", ... ({len(rows):,} in all)" if len(rows) > 3 else ""
    return ", ".join(shown(row) for row in rows[:3]) + more


def is_utf8(text: str) -> bool:
    """Whether a name that the file system gave can be written to a UTF-8 file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_path(option: str, path: Path) -> None:
    """Refuse a path that no report could contain.

    Raises:
        DataError: it is not valid UTF-8.
    """
    if not is_utf8(str(path)):
        raise DataError(
            f"{option} {shown(str(path))}: the path is not valid UTF-8.\n"
            "Rename it; if its name is correct, check the locale (LANG, LC_ALL)."
        )


def timm_info(file: str) -> str:
    """A file of timm's ``data/_info``, without importing timm, which takes seconds."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "data" / "_info" / file
    return path.read_text(encoding="utf-8")


def read_text(path: Path, what: str, rows: str) -> str:
    """Read a small UTF-8 file, with or without a byte order mark.

    Args:
        path: the file.
        what: what it should be, such as ``list of labels``.
        rows: what such a file contains, as a sentence; ends the message.

    Raises:
        DataError: it cannot be read, is too large, or is not text.
    """
    try:
        size = path.stat().st_size
        if size > _LARGEST_FILE:
            raise DataError(f"{path} is too large for a {what} ({size >> 20} MiB).\n{rows}")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a UTF-8 text file.\n{rows}") from None
    except OSError as error:
        raise DataError(
            f"{shown(str(path))} cannot be read: {error.strerror or error}.\nGive a {what}."
        ) from error


def printable(text: str) -> str:
    """`text` fit for a line of a terminal: what moves its cursor or has no sign is escaped."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii")
        for sign in text
    )
