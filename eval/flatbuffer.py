"""A reader of flatbuffers, the tables of LiteRT's and MNN's graphs and of Arrow's messages.

Only what is read from them: scalars, strings, tables and vectors, by the number of a field
in its schema. See https://flatbuffers.dev/internals.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a validation set is opened without it
    import numpy as np
    from numpy.typing import NDArray

_NUMBERS = {"b": 1, "B": 1, "h": 2, "H": 2, "i": 4, "I": 4, "q": 8, "Q": 8, "f": 4}


class Damaged(Exception):
    """A file that is no flatbuffer of this kind."""


class Table:
    """One table of a file.

    Args:
        data: the whole file.
        position: of the table, in bytes.
        budget: how many more tables may be read from this file: offsets can point to one table a
            million times.

    Every method raises `Damaged` where the file ends before what it names.
    """

    def __init__(self, data: bytes, position: int, budget: list[int]) -> None:
        budget[0] -= 1
        if budget[0] < 0:
            raise Damaged("more tables than bytes")
        self._data, self._position, self._budget = data, position, budget
        self._fields = position - self._read("i", position)
        self._count = (self._read("H", self._fields) - 4) // 2

    @classmethod
    def root(cls, data: bytes) -> Table:
        """The table that a file begins with."""
        return cls(data, cls._number(data, "I", 0), [len(data)])

    @staticmethod
    def _number(data: bytes, kind: str, position: int) -> int:
        if not 0 <= position <= len(data) - _NUMBERS[kind]:
            raise Damaged("an offset beyond the end")
        return int(struct.unpack_from(f"<{kind}", data, position)[0])

    def _read(self, kind: str, position: int) -> int:
        return self._number(self._data, kind, position)

    def _at(self, field: int) -> int:
        """Where a field is; 0 if it is not set."""
        if field >= self._count:
            return 0
        offset = self._read("H", self._fields + 4 + 2 * field)
        return self._position + offset if offset else 0

    def number(self, field: int, kind: str) -> int:
        """A scalar, 0 if it is not set; `kind` as in `struct`."""
        position = self._at(field)
        return self._read(kind, position) if position else 0

    def table(self, field: int) -> Table | None:
        """A table; None if it is not set."""
        position = self._at(field)
        if not position:
            return None
        return Table(self._data, position + self._read("I", position), self._budget)

    def _vector(self, field: int, width: int) -> tuple[int, int]:
        """Where a vector begins, and how many items it has."""
        position = self._at(field)
        if not position:
            return 0, 0
        start = position + self._read("I", position)
        count = self._read("I", start)
        if start + 4 + width * count > len(self._data):
            raise Damaged("a vector beyond the end")
        return start + 4, count

    def length(self, field: int) -> int:
        """How many items a vector has."""
        return self._vector(field, 1)[1]

    def numbers(self, field: int, kind: str) -> NDArray[np.generic]:
        """A vector of scalars."""
        import numpy as np

        start, count = self._vector(field, _NUMBERS[kind])
        return np.frombuffer(self._data, np.dtype(f"<{kind}"), count, start)

    def tables(self, field: int) -> Iterator[Table]:
        """A vector of tables."""
        start, count = self._vector(field, 4)
        for position in range(start, start + 4 * count, 4):
            yield Table(self._data, position + self._read("I", position), self._budget)
