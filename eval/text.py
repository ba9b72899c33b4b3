"""Text from users and for users: small text files, and names fit for a message."""

from __future__ import annotations

import csv
import html
import importlib.util
import io
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from eval.errors import DataError, EvalError

_LARGEST_FILE = 64 << 20  # bytes; the largest real one, Kaggle's list of labels, has 2 MB
_MOST_COLUMNS = 8192  # a ranked list of 1000 classes with probabilities has 2001
_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks
_MOST_LINES = 2_000_000  # of a list of images or classes
_MOST_ROWS = 5_000_000  # ImageNet's training set has 1.3 million images


def printable(text: str) -> str:
    """`text` made harmless for a line of a terminal, Markdown, XML or HTML.

    What moves a cursor, ends a line, changes the direction of writing or has no sign is escaped.
    """
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii")
        for sign in text
    )


def shown(text: str) -> str:
    """`text` fit for a line of a message: printable, and not endless."""
    return printable(text if len(text) <= 120 else f"{text[:117]}...")


def short(value: object) -> str:
    """A value for a message: in ASCII, at most 60 characters."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def printable_lines(text: str) -> str:
    """Lines of our own that may name what a stranger has named; they stay lines."""
    return "\n".join(map(printable, text.split("\n")))


def markdown_text(text: str) -> str:
    """`text` that stays text in a Markdown table, whatever a file is called."""
    safe = html.escape(printable(re.sub(r"\s", " ", text)), quote=False)
    return re.sub(r"([\\`*_|\[\]~#@])", r"\\\1", safe)


_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")


def csv_cell(text: str) -> str:
    """`text` for a cell of a CSV file: no formula for a spreadsheet, by a quotation mark before it.

    `from_csv_cell` takes the mark away again.
    """
    if _FORMULA.match(text) and not _NUMBER.fullmatch(text):
        return f"'{text}"
    return text


def from_csv_cell(cell: str) -> str:
    """The text of a cell that `csv_cell` made; others, such as numbers, are themselves."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


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
    """Refuse a path that no report could contain."""
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


def decoded(data: bytes) -> str:
    """Text in UTF-8, or in UTF-16 with a byte order mark, as some editors of Windows write it.

    Raises:
        UnicodeDecodeError: it is neither.
    """
    return data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")


def read_text(path: Path, what: str, rows: str) -> str:
    """Read a small text file: UTF-8, or UTF-16 with a byte order mark.

    Args:
        path: the file.
        what: what it should be, such as ``list of labels``.
        rows: what such a file contains, as a sentence; ends the message.
    """
    try:
        size = path.stat().st_size
        if size > _LARGEST_FILE:
            raise DataError(f"{path} is too large for a {what} ({size >> 20} MiB).\n{rows}")
        data = path.read_bytes()
        text = decoded(data)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a UTF-8 text file.\n{rows}") from None
    except OSError as error:
        raise DataError(
            f"{shown(str(path))} cannot be read: {error.strerror or error}.\nGive a {what}."
        ) from error
    if (lines := text.count("\n")) > _MOST_LINES:
        raise DataError(f"{path} has {lines:,} lines, too many for a {what}.\n{rows}")
    return text


def table(
    name: object, text: str, error: type[EvalError], delimiter: str = ","
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file; blank lines are left out, and all rows have all columns.

    Args:
        name: of the file, for messages.
        text: its content.
        error: what to raise.
        delimiter: what separates the columns.
    """
    again = "The file is damaged or was edited: write it again."
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    rows: list[list[str]] = []
    try:
        header = next((row for row in reader if row), [])
        if not header:
            raise error(f"{name} is empty: a header and rows are needed.")
        if len(header) > _MOST_COLUMNS:
            raise error(f"{name} has {len(header):,} columns, over {_MOST_COLUMNS:,}.\n{again}")
        if twice := [column for column, n in Counter(header).items() if n > 1]:
            raise error(f"{name} has more than one column {examples(twice)}.\n{again}")
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise error(
                    f"{name}, row {len(rows) + 1} has {len(row):,} of {len(header)} columns.\n"
                    "Quote cells that contain a comma; or the file is damaged or was edited."
                )
            if len(rows) == _MOST_ROWS:
                raise error(f"{name} has more than {_MOST_ROWS:,} rows.\n{again}")
            rows.append(row)
    except csv.Error as found:
        where = f"{name} cannot be read: line {reader.line_num}"
        raise error(f"{where} is not CSV ({found}).\n{again}") from found
    return header, rows
