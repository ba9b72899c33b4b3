"""Parquet and Arrow files, opened so that they take no more memory than their bytes show.

Arrow's stream format, which `datasets` writes, and its file format, which is a stream with an
index behind it, are mapped into memory; a column of them is read where it lies. A column of
parquet is read for a whole row group.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from eval.errors import DataError, UsageError
from eval.files import is_inflated
from eval.flatbuffer import Damaged, Table
from eval.images.labels import shown
from eval.images.layouts.pages import DELTA_BYTE_ARRAY, pages_of

if TYPE_CHECKING:
    import pyarrow

PARQUET = b"PAR1"
ARROW_FILE = b"ARROW1"
ARROW_STREAM = b"\xff\xff\xff\xff"
IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")  # columns that may hold the images,
IDS = ("__key__", "image_id")  # their names,
FILE_NAMES = ("filename", "file_name")
LABELS = ("label", "labels", "cls", "class", "target", "synset", "wnid")  # and their labels
LONGEST_TEXT = 4096  # bytes of a name

_MOST_ROWS = 2_000_000  # of a shard; ImageNet's training set has 1.3 million images
_LARGEST = 2 << 30  # bytes of a column of a row group
_AGAIN = "Download the shard again."
_ERRORS = (OSError, ValueError, LookupError, TypeError, MemoryError, Damaged)
_END = ARROW_STREAM + bytes(4)  # of a stream


class Shard(Protocol):
    """An open file.

    Attributes:
        schema: the names and types of its columns, and what else the writer has noted.
        groups: how many parts can be read by themselves.
        is_mapped: whether its columns lie in the file, which stays open as long as they are used.
    """

    schema: pyarrow.Schema
    groups: int
    is_mapped: bool

    def rows(self, group: int) -> int:
        """How many rows a part has."""

    def column(self, group: int, name: str, field: str = "") -> pyarrow.Array:
        """A column of a part, or one field of it."""


def is_shard(start: bytes) -> bool:
    """Whether a file with these first bytes is one of parquet or Arrow."""
    return start.startswith((PARQUET, ARROW_FILE, ARROW_STREAM))


@contextmanager
def opened(path: Path, mapped: Shard | None = None) -> Iterator[Shard]:
    """A file of either kind, by its content.

    Args:
        path: of the file.
        mapped: what this gave for it before, if that is mapped.
    """
    if mapped:
        with _errors(path, "arrow"):
            yield mapped
        return
    with path.open("rb") as file:
        kind = "parquet" if file.read(len(PARQUET)) == PARQUET else "arrow"
    with _errors(path, kind) as parquet, (_parquet if parquet else _arrow)(path) as shard:
        yield shard


@contextmanager
def _errors(path: Path, kind: str, again: str = _AGAIN) -> Iterator[bool]:
    """Pyarrow's errors become ours."""
    try:
        import pyarrow
    except ImportError:
        raise UsageError(f'{path} needs pyarrow: pip install "pplcnet-eval[arrow]".') from None
    try:
        yield kind == "parquet"
    except (pyarrow.ArrowException, *_ERRORS) as error:
        raise DataError(
            f"{path} cannot be read as {kind}: {shown(str(error).partition(chr(10))[0])}.\n{again}"
        ) from error


def _check_rows(path: Path, rows: int) -> None:
    if rows > _MOST_ROWS:
        raise DataError(f"{path} has {rows:,} rows, over {_MOST_ROWS:,}.\n{_AGAIN}")


class _Parquet:
    is_mapped = False

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file
        self.schema = file.schema_arrow
        self.groups: int = file.num_row_groups

    def rows(self, group: int) -> int:
        return int(self._file.metadata.row_group(group).num_rows)

    def column(self, group: int, name: str, field: str = "") -> pyarrow.Array:
        wanted = f"{name}.{field}" if field else name
        about = self._file.metadata.row_group(group)
        check_pages(self._path, about, lambda each: f"{each}.".startswith(f"{wanted}."), _AGAIN)
        table = self._file.read_row_group(group, columns=[wanted], use_threads=False)
        column = table[name].combine_chunks()
        column.validate(full=True)  # indices and offsets are followed only where they are right
        return column.field(field) if field else column


@contextmanager
def _parquet(path: Path) -> Iterator[_Parquet]:
    """A shard whose columns are no larger than its file can hold."""
    with parquet_file(path, _is_known, _AGAIN) as file:
        _check_rows(path, file.metadata.num_rows)
        yield _Parquet(path, file)


@contextmanager
def parquet_file(
    path: Path, is_read: Callable[[str], bool], again: str
) -> Iterator[pyarrow.parquet.ParquetFile]:
    """A parquet file; values that it stores once and repeats stay so in memory.

    Args:
        path: of the file.
        is_read: whether a column will be read, by its path in the schema.
        again: what to do about a damaged file.
    """
    with _errors(path, "parquet", again):
        import pyarrow.parquet

        about = pyarrow.parquet.read_metadata(path)
        for group in map(about.row_group, range(about.num_row_groups)):
            for column in _columns(group):
                size, stored = column.total_uncompressed_size, column.total_compressed_size
                name = column.path_in_schema
                if is_read(name) and (size > _LARGEST or is_inflated(size, stored)):
                    raise DataError(
                        f"{path} makes {size >> 20:,} MiB of {stored:,} bytes ({name}), which no "
                        f"real file does.\n{again}"
                    )
        columns = map(about.schema.column, range(about.num_columns))
        texts = [c.path for c in columns if is_read(c.path) and c.physical_type == "BYTE_ARRAY"]
        with pyarrow.parquet.ParquetFile(path, metadata=about, read_dictionary=texts) as file:
            yield file


def check_pages(path: Path, about: Any, is_read: Callable[[str], bool], again: str) -> None:
    """Check that the pages of a row group are what the index of the file says of them.

    Args:
        path: of the file.
        about: `pyarrow.parquet.RowGroupMetaData`.
        is_read: see `parquet_file`.
        again: the same.
    """
    if not about.num_rows:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for column in filter(lambda each: is_read(each.path_in_schema), _columns(about)):
            size = values = 0
            for page in pages_of(data, column):
                size, values = size + page.size, values + page.values
                if page.encoding == DELTA_BYTE_ARRAY:
                    raise DataError(
                        f"{path} has {column.path_in_schema} as DELTA_BYTE_ARRAY, whose size "
                        "cannot be known.\nWrite it again in parquet's default encodings."
                    )
            if size > column.total_uncompressed_size or values != column.num_values:
                raise DataError(
                    f"{path}: the pages of {column.path_in_schema} are not what the file says of "
                    f"them.\n{again}"
                )


def _columns(about: Any) -> Iterator[Any]:
    return map(about.column, range(about.num_columns))


def _is_known(column: str) -> bool:
    return column.partition(".")[0] in (*IMAGES, *IDS, *FILE_NAMES, *LABELS)


class _Arrow:
    is_mapped = True

    def __init__(self, path: Path, schema: pyarrow.Schema, messages: list[Any]) -> None:
        self._path, self._messages = path, messages
        self.schema = schema
        self.groups = len(messages)

    def rows(self, group: int) -> int:
        return _header(self._messages[group])[0]

    def column(self, group: int, name: str, field: str = "") -> pyarrow.Array:
        import pyarrow

        batch = pyarrow.ipc.read_record_batch(self._messages[group], self.schema)
        column = batch.column(self.schema.get_field_index(name))
        column.validate(full=True)
        return column.field(field) if field else column


def _header(message: Any) -> tuple[int, bool]:
    """How many rows a batch has, and whether its buffers are compressed.

    pyarrow decompresses all of them at once, without a limit, and does not say whether they are.
    Source: tables `Message` and `RecordBatch` of Arrow's format/Message.fbs.
    """
    batch = Table.root(message.metadata.to_pybytes()).table(2)
    if batch is None:
        raise Damaged("a message without a batch")
    return batch.number(0, "q"), batch.table(3) is not None


@contextmanager
def _arrow(path: Path) -> Iterator[_Arrow]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as file:
        if file.read(len(ARROW_FILE)) == ARROW_FILE:
            file.seek(len(ARROW_FILE) + 2)
        else:
            file.seek(0)
        reader = pyarrow.ipc.MessageReader.open_stream(file)
        first, *messages = reader
        file.seek(file.tell() - len(_END))
        if file.read(len(_END)) != _END:
            raise DataError(f"{path} is truncated after {len(messages)} batches.\n{_AGAIN}")
        schema = pyarrow.ipc.read_schema(first)
        for message in messages:
            is_batch = message.type == "record batch"
            rows, compressed = _header(message) if is_batch else (0, False)
            _check_rows(path, rows)
            if compressed or not is_batch:
                kind = "compressed" if compressed else message.type
                raise DataError(
                    f"{path} has {kind} data, which `datasets` does not write.\n"
                    "Write it again with save_to_disk."
                )
        yield _Arrow(path, schema, messages)
