"""Parquet shards of ILSVRC/imagenet-1k as Hugging Face keeps them.

    data/validation-00000-of-00014.parquet    image: struct<bytes, path>, label: int64

An image can only be read with its whole row group (100 rows there, 11 MB). Groups are therefore
kept for a while, and samples are named by their place, so that neighbors are measured together.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from eval.errors import DataError, UnreadableImage, UsageError
from eval.images.classes import IMAGENET, ClassList
from eval.images.labels import examples, official_key, official_number, shown
from eval.images.layouts import Listing, check_regular

if TYPE_CHECKING:
    import pyarrow

_CACHE = 256 << 20  # bytes of row groups
_COLUMNS = ("image.bytes", "image.path", "label")
_MOST_ROWS = 2_000_000  # of a shard; ImageNet's training set has 1.3 million images
# Bytes of a column of a row group: images hardly shrink, so that many from few are a trap.
_LARGEST, _LARGE, _MOST_SHRUNK = 2 << 30, 64 << 20, 20
_LONGEST_NAME = 4096  # bytes
_AGAIN = "Download the shard again."
_SHARD = re.compile(r".*-([0-9]{5})-of-([0-9]{5})")
_OTHER_SPLITS = ("train", "test")


class _Place(NamedTuple):
    shard: Path
    group: int
    row: int  # in the group


def find_shards(folder: Path) -> list[Path]:
    """Shards of the validation split in a folder, or in its ``data``; empty if there are none."""
    for place in (folder, folder / "data"):
        shards = sorted(place.glob("*.parquet")) if place.is_dir() else []
        validation = [path for path in shards if path.name.startswith("val")]
        others = [path for path in shards if path.name.startswith(_OTHER_SPLITS)]
        if others and not validation:
            raise DataError(
                f"--data {folder} has the parquet shards {examples(p.name for p in others)}, but "
                "none of the validation split.\nDownload data/validation-*.parquet."
            )
        if shards:
            return validation or shards
    return []


def list_parquet(root: Path, shards: Sequence[Path], classes: ClassList) -> Listing:
    """The images of parquet shards, under ``<shard>/<row>/<official name>``.

    Raises:
        DataError: a shard is damaged, has other columns, no official names or no labels.
        UsageError: pyarrow is not installed, or the classes are not ImageNet's.
    """
    if classes != IMAGENET:
        raise UsageError(
            f"--data {root}: parquet shards are only supported with ImageNet's classes.\n"
            "Use folders of images with --classes, or omit --classes."
        )
    label_of: dict[str, int | None] = {}
    place_of: dict[str, _Place] = {}
    for shard in shards:
        check_regular(shard, shard.stat().st_mode)
        for number, (place, name, label) in enumerate(_rows(shard)):
            official = official_number(name) if name else None
            if official is None:
                raise DataError(
                    f"{shard}, row {number}: {shown(str(name))} is not the name of a validation "
                    "image (column image.path).\nUse the shards of ILSVRC/imagenet-1k."
                )
            if label is None or not 0 <= label < len(classes):
                raise DataError(
                    f"{shard}, row {number}: label {label} is not in 0..{len(classes) - 1}.\n"
                    "Is this the test split? Use the validation shards of ILSVRC/imagenet-1k."
                )
            path = f"{shard.name}/{number:06d}/{official_key(official)}.JPEG"
            label_of[path], place_of[path] = label, place
    if not label_of:
        raise DataError(f"--data {root}: its parquet shards have no rows.\nDownload them again.")
    return Listing(
        root,
        _words(shards),
        label_of,
        "label column",
        _RowGroups(place_of),
    )


def _words(shards: Sequence[Path]) -> str:
    """How many shards there are, and how many there should be."""
    matches = [_SHARD.fullmatch(shard.stem) for shard in shards]
    totals = {int(match[2]) for match in matches if match}
    total = max(totals, default=len(shards))
    missing = f" of {total}" if total > len(shards) else ""
    return f"{len(shards)}{missing} parquet shard{'s' if max(total, len(shards)) > 1 else ''}"


def _rows(shard: Path) -> Iterator[tuple[_Place, str | None, int | None]]:
    """Place, file name and label of each row."""
    with _opened(shard) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["image.path", "label"], use_threads=False)
            if table.column_names != ["image", "label"]:
                raise DataError(
                    f"{shard} has no columns image.path and label.\n"
                    "Use the shards of ILSVRC/imagenet-1k."
                )
            names = _texts(shard, table["image"].combine_chunks().field("path"))
            labels = table["label"].cast("int64").to_pylist()
            for row, (name, label) in enumerate(zip(names, labels, strict=True)):
                yield _Place(shard, group, row), name, label


def _texts(shard: Path, array: Any) -> list[str | None]:
    """The values of a column; each is as long as a name, however often it is repeated."""
    import pyarrow

    if not pyarrow.types.is_dictionary(array.type):
        return array.cast("string").to_pylist()  # type: ignore[no-any-return]
    if max(map(len, array.dictionary.to_pylist()), default=0) > _LONGEST_NAME:
        raise DataError(f"{shard} has names of more than {_LONGEST_NAME} bytes.\n{_AGAIN}")
    return array.cast("string").to_pylist()  # type: ignore[no-any-return]


class _RowGroups:
    """Reads images; row groups stay in memory until others need the space.

    Threads that need the same group wait for one of them to load it. At most `_CACHE` bytes are
    kept, or two groups where they are larger.
    """

    def __init__(self, place_of: Mapping[str, _Place]) -> None:
        self._place_of = place_of
        self._kept: OrderedDict[tuple[Path, int], pyarrow.Array] = OrderedDict()
        self._loading: dict[tuple[Path, int], threading.Lock] = {}
        self._lock = threading.Lock()

    def __call__(self, path: str) -> bytes:
        """Bytes of one image."""
        shard, group, row = self._place_of[path]
        with self._lock:
            loading = self._loading.setdefault((shard, group), threading.Lock())
        with loading:
            try:
                rows = self._get(shard, group)
            except DataError as error:
                raise UnreadableImage(str(error)) from error
        data = rows[row].as_py() if row < len(rows) else None
        if not isinstance(data, bytes):
            raise UnreadableImage(f"{shard} has no bytes of {path}.\nDownload the shard again.")
        return data

    def _get(self, shard: Path, group: int) -> Any:
        with self._lock:
            if (shard, group) in self._kept:
                self._kept.move_to_end((shard, group))
                return self._kept[shard, group]
        with _opened(shard) as file:
            table = file.read_row_group(group, columns=["image.bytes"], use_threads=False)
            rows = table["image"].combine_chunks().field("bytes")
        with self._lock:
            self._kept[shard, group] = rows
            while len(self._kept) > 2 and sum(kept.nbytes for kept in self._kept.values()) > _CACHE:
                self._kept.popitem(last=False)
        return rows


@contextmanager
def _opened(shard: Path) -> Iterator[Any]:
    """A shard whose columns are no larger than its file can hold.

    Values that are stored once and repeated stay so in memory.
    """
    with _parquet_errors(shard) as parquet:
        about = parquet.read_metadata(shard)
        if about.num_rows > _MOST_ROWS:
            raise DataError(f"{shard} has {about.num_rows:,} rows, over {_MOST_ROWS:,}.\n{_AGAIN}")
        for group in map(about.row_group, range(about.num_row_groups)):
            for column in map(group.column, range(group.num_columns)):
                size, stored = column.total_uncompressed_size, column.total_compressed_size
                shrunk = size > _LARGE and size > _MOST_SHRUNK * stored
                if column.path_in_schema in _COLUMNS and (size > _LARGEST or shrunk):
                    raise DataError(
                        f"{shard} makes {size >> 20:,} MiB of {stored:,} bytes "
                        f"({column.path_in_schema}), which images do not.\n{_AGAIN}"
                    )
        columns = {about.schema.column(place).path for place in range(about.num_columns)}
        texts = sorted(columns & {"image.bytes", "image.path"})
        with parquet.ParquetFile(shard, metadata=about, read_dictionary=texts) as file:
            yield file


@contextmanager
def _parquet_errors(shard: Path) -> Iterator[Any]:
    """pyarrow.parquet; its errors become ours."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise UsageError(f'{shard} needs pyarrow: pip install "pplcnet-eval[parquet]".') from None
    try:
        yield pyarrow.parquet
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise DataError(
            f"{shard} cannot be read as parquet: {shown(str(error).partition(chr(10))[0])}.\n"
            "Download the shard again."
        ) from error
