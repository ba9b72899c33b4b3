"""The pages of a parquet column, by what each says of itself: the index of the file may say less.

Sources: `PageHeader` in parquet-format's ``parquet.thrift``, and Thrift's compact protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap
from typing import Any, NamedTuple

DELTA_BYTE_ARRAY = 7  # a text as what differs from the one before: of few bytes, any size
_BYTE, _DOUBLE, _BINARY, _STRUCT = 3, 7, 8, 12  # kinds of fields; 1 and 2 are yes and no
_DEEPEST = 8


class Page(NamedTuple):
    """What a page says of itself.

    Attributes:
        size: bytes in memory.
        values: in it; 0 of a dictionary.
        encoding: its number.
    """

    size: int
    values: int
    encoding: int


def pages_of(data: mmap, column: Any) -> Iterator[Page]:
    """The pages of a column of a row group.

    Args:
        data: the file.
        column: `pyarrow.parquet.ColumnChunkMetaData`.

    Raises:
        ValueError, IndexError: one of them is no page.
    """
    at: int = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset:
        at = min(at, column.dictionary_page_offset)
    end: int = min(at + column.total_compressed_size, len(data))
    while at < end:
        header, at = _struct(data, at)
        kind = next((key for key in (5, 8, 7) if isinstance(header.get(key), dict)), None)
        about = header[kind] if kind else {}
        size, stored = _number(header, 2), _number(header, 3)
        values, encoding = _number(about, 1), _number(about, 4 if kind == 8 else 2)
        yield Page(size, 0 if kind == 7 else values, encoding)
        at += stored


def _number(fields: dict[int, Any], key: int) -> int:
    found = fields.get(key)
    if not isinstance(found, int) or found < 0:
        raise ValueError("a page without its sizes")
    return found


def _struct(data: mmap, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """The fields of a struct by their numbers, and where it ends; texts and lists are left out."""
    found: dict[int, Any] = {}
    number = 0
    while (byte := data[at]) != 0:
        at += 1
        if byte >> 4:
            number += byte >> 4
        else:
            number, at = _integer(data, at)
        kind = byte & 15
        if kind in (1, 2):  # the kind is the value
            continue
        found[number], at = _value(data, at, kind, depth)
    return found, at + 1


def _value(data: mmap, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if depth > _DEEPEST:
        raise ValueError("a page of too many parts")
    if kind == _BYTE:
        return None, at + 1
    if kind in (4, 5, 6):
        return _integer(data, at)
    if kind == _DOUBLE:
        return None, at + 8
    if kind == _BINARY:
        length, at = _varint(data, at)
        return None, at + length
    if kind == _STRUCT:
        return _struct(data, at, depth + 1)
    raise ValueError("a page with lists, which have no place in it")


def _integer(data: mmap, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at


def _varint(data: mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of too many bytes")
