"""Parquet and Arrow files of images and labels, as Hugging Face's `datasets` and Hub keep them.

    the Hub, to_parquet    data/validation-00000-of-00014.parquet
    the cache              imagenet-1k-validation-00000-of-00013.arrow
    save_to_disk           data-00000-of-00002.arrow; in one folder for each split
    columns                image: struct<bytes, path> or bytes; label: int64, a ClassLabel or not

An image can only be read with its whole row group (100 rows in ILSVRC/imagenet-1k, 11 MB). Groups
are therefore kept for a while, and samples are named by their place, so that neighbors are measured
together.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from eval.errors import DataError, UnreadableImage
from eval.images.classes import IMAGENET, ClassList
from eval.images.labels import examples, is_image, shown
from eval.images.layouts import Listing, check_regular, read_regular
from eval.images.layouts.shards import FILE_NAMES, IDS, IMAGES, LABELS, LONGEST_TEXT, Shard, opened
from eval.text import printable

if TYPE_CHECKING:
    import pyarrow

_CACHE = 256 << 20  # bytes of row groups
_LONGEST_NAME = 255  # characters, as file systems have it
_NUMBER = re.compile(r".*-([0-9]{5})-of-([0-9]{5})")
_VALIDATION = re.compile(r"(.*[-_.])?(val|valid|validation)([-_.0-9].*)?", re.IGNORECASE)
_OTHER_SPLIT = re.compile(r"(.*[-_.])?(train|test)([-_.0-9].*)?", re.IGNORECASE)
_DERIVED = "cache-"  # files of `Dataset.map` and its like, beside those that they were made from
_SPLITS, _STATE = "dataset_dict.json", "state.json"
NOTES = ("dataset_info.json", _STATE, _SPLITS, "README.md")  # of `datasets` itself


class _Place(NamedTuple):
    shard: Path
    group: int
    row: int  # in the group
    path: str  # of a file that has the image, where the shard only names it


def of_validation(paths: Sequence[Path]) -> list[Path]:
    """Those whose names say that they are of the validation split; all if none is."""
    return [path for path in paths if _VALIDATION.fullmatch(path.name)] or list(paths)


def find_shards(folder: Path) -> list[Path]:
    """Shards of a folder, or parquet ones in its ``data``; empty if there are none.

    They are those of the validation split, or of the only one, which `datasets` calls ``train``.
    """
    for place in (folder, folder / "data"):
        if shards := sorted(place.glob("*.parquet")) if place.is_dir() else []:
            return _one_split(folder, shards)
    if (saved := _saved(folder)) is not None:
        return saved
    arrow = [path for path in folder.glob("*.arrow") if not path.name.startswith(_DERIVED)]
    return _one_split(folder, sorted(arrow))


def _one_split(folder: Path, shards: Sequence[Path]) -> list[Path]:
    shards = of_validation(shards)
    matches = [_OTHER_SPLIT.fullmatch(path.name) for path in shards]
    if len({match and match[2].lower() for match in matches}) > 1:
        raise DataError(
            f"--data {folder} has shards of several splits, none of them for validation alone: "
            f"{examples(path.name for path in shards)}.\n"
            "Give those of one: a file, or a range such as 'x-{00000..00013}-of-00014.parquet'."
        )
    return shards


def _saved(folder: Path) -> list[Path] | None:
    """The files of a `Dataset` on disk, by its own note; None if it has none.

    Shards of an earlier one may have been left in the folder.
    """
    try:
        document = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        names = [Path(str(file["filename"])).name for file in document["_data_files"]]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    paths = [folder / name for name in names]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise DataError(
            f"--data {folder}: {examples(missing)}, which its {_STATE} names, are missing.\n"
            "Complete the copy, or write the set again with save_to_disk."
        )
    return paths or None


def split_folder(root: Path) -> Path | None:
    """The validation split of a `DatasetDict` on disk, or its only one; None if it is none."""
    if not (root / _SPLITS).is_file():
        return None
    folders = [
        path
        for path in sorted(root.iterdir())
        if (path / _STATE).is_file() and not (path / _SPLITS).exists()
    ]
    chosen = of_validation(folders)
    if len(chosen) != 1:
        listed = " or ".join(printable(str(path)) for path in chosen) or "the folder of one split"
        raise DataError(
            f"--data {root} has {len(folders)} splits, none of them for validation alone.\n"
            f"Did you mean --data {listed}?"
        )
    return chosen[0]


def list_shards(root: Path, shards: Sequence[Path], classes: ClassList) -> Listing:
    """The images of parquet or Arrow shards, under ``<shard>/<row>/<name of the file>``."""
    label_of: dict[str, int | None] = {}
    place_of: dict[str, _Place] = {}
    for shard in shards:
        check_regular(shard, shard.stat().st_mode)
        for number, (place, name, label) in enumerate(_rows(shard, classes)):
            if len(name) > _LONGEST_NAME:
                raise DataError(
                    f"{shard}, row {number}: a name of {len(name):,} characters.\nName the images "
                    f"with {_LONGEST_NAME} at most."
                )
            path = f"{shard.name}/{number:06d}{name and '/'}{name}"
            label_of[path], place_of[path] = label, place
    if not label_of:
        raise DataError(f"--data {root}: its shards have no rows.\nDownload them again.")
    others = [
        path.relative_to(root).as_posix()
        for path in sorted(shards[0].parent.iterdir() if root.is_dir() else ())
        if path not in shards and path.is_file() and path.name[0] != "." and path.name not in NOTES
    ]
    return Listing(
        root, _words(shards), label_of, "label column", _RowGroups(place_of), others=others
    )


def _words(shards: Sequence[Path]) -> str:
    """How many shards there are, and how many there should be."""
    matches = [_NUMBER.fullmatch(shard.stem) for shard in shards]
    totals = {int(match[2]) for match in matches if match}
    total = max(totals, default=len(shards))
    missing = f" of {total}" if total > len(shards) else ""
    kind = shards[0].suffix.removeprefix(".") or "arrow"
    return f"{len(shards)}{missing} {kind} shard{'s' if max(total, len(shards)) > 1 else ''}"


def _rows(shard: Path, classes: ClassList) -> Iterator[tuple[_Place, str, int]]:
    """Place, name of the file, and label of each row."""
    number = 0
    with opened(shard) as file:
        columns = _columns_of(shard, file, classes)
        for group in range(file.groups):
            paths = columns.paths(group)
            labels = [column.read(group) for column in columns.labels]
            for row, path in enumerate(paths):
                folder, _, name = path.replace("\\", "/").rpartition("/")
                claims = {c.name: c.label(number, c_rows[row]) for c, c_rows in
                          zip(columns.labels, labels, strict=True)}  # fmt: skip
                own = classes.index_of.get(folder.rpartition("/")[2])
                if own is not None:
                    claims["path"] = own
                if len(set(claims.values())) > 1:
                    said = ", ".join(
                        f"{classes.rows[label].folder} ({label}) by its {who}"
                        for who, label in claims.items()
                    )
                    raise DataError(
                        f"{shard}, row {number} ({shown(name)}) is {said}.\n"
                        "The labels were edited, or are of other classes: list those with "
                        "--classes FILE."
                    )
                yield _Place(shard, group, row, path), name, next(iter(claims.values()))
                number += 1


@dataclass(frozen=True)
class _LabelColumn:
    """A column of labels: indices, or names of classes.

    Attributes:
        name: of the column.
        read: its values in a group.
        label: of the value in a row, whose number is for messages.
    """

    name: str
    read: Callable[[int], list[Any]]
    label: Callable[[int, Any], int]


@dataclass(frozen=True)
class _Columns:
    """What the columns of a shard hold.

    Attributes:
        paths: names of the files of the rows of a group, "" where there is none.
        labels: at least one.
    """

    paths: Callable[[int], list[str]]
    labels: Sequence[_LabelColumn]


def _columns_of(shard: Path, file: Shard, classes: ClassList) -> _Columns:
    schema = file.schema
    labels = [name for name in LABELS if name in schema.names]
    if not labels:
        raise DataError(
            f"{shard} has no column of labels, but {examples(schema.names)}.\nName it {LABELS[0]}."
        )
    image, image_field = image_column(shard, schema)
    field = schema.field(image).type.get_field_index("path") if image_field else -1
    own = [(image, "path")] if field >= 0 else []
    ids, files = (
        [(name, "") for name in names if name in schema.names] for names in (IDS, FILE_NAMES)
    )
    named = [*ids, *own, *files]  # the last one that a row has is its name

    def paths(group: int) -> list[str]:
        found = [""] * file.rows(group)
        for where in named:
            texts = _texts(shard, file.column(group, *where))
            found = [name or before for before, name in zip(found, texts, strict=True)]
        return found

    return _Columns(paths, [_label_column(shard, file, name, classes) for name in labels])


def image_column(shard: Path, schema: pyarrow.Schema) -> tuple[str, str]:
    """The column of the images, and its field that holds their bytes, if it has fields."""
    import pyarrow.types as kinds

    found = [name for name in IMAGES if name in schema.names]
    if len(found) == 1:
        kind = schema.field(found[0]).type
        kind = kind.value_type if kinds.is_dictionary(kind) else kind
        if kinds.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            path = kind.get_field_index("path")
            is_named = path < 0 or _is_text(kind.field(path).type)
            if is_named and _is_bytes(kind.field("bytes").type):
                return found[0], "bytes"
        elif _is_bytes(kind):
            return found[0], ""
        reason = f"the column {found[0]} holds {shown(str(kind))}"
    else:
        reason = f"{' and '.join(found) or 'no column'} of {examples(schema.names)}"
    raise DataError(
        f"{shard} has no column of image files ({reason}).\n"
        f"Name it {IMAGES[0]}; it holds their bytes, or `datasets`' Image."
    )


def _is_bytes(kind: pyarrow.DataType) -> bool:
    """Whether values of a type are bytes, each of which is stored once."""
    import pyarrow.types as kinds

    kind = kind.value_type if kinds.is_dictionary(kind) else kind
    return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind) or kinds.is_null(kind))


def _is_text(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as kinds

    value = kind.value_type if kinds.is_dictionary(kind) else kind
    return bool(kinds.is_string(value) or kinds.is_large_string(value) or _is_bytes(value))


def _label_column(shard: Path, file: Shard, name: str, classes: ClassList) -> _LabelColumn:
    import pyarrow.types as kinds

    kind = file.schema.field(name).type
    is_text = _is_text(kind)
    if not (is_text or kinds.is_integer(kind) or kinds.is_floating(kind)):
        raise DataError(
            f"{shard}: the column {name} holds {shown(str(kind))} instead of labels.\n"
            "Write the index of the class, or the name of its folder."
        )
    positions = _positions(shard, _class_names(file.schema, name), classes)

    def read(group: int) -> list[Any]:
        column = file.column(group, name)
        return _texts(shard, column) if is_text else column.cast("int64").to_pylist()

    def label(row: int, value: Any) -> int:
        if is_text and str(value).isdecimal():
            # `datasets` writes a column of text so that was one of numbers
            place = int(value)
            index = positions[place] if place < len(positions) else place
            classes.check_number(f"{shard}, row {row}: the column {name}", str(value), index)
            value = place
        elif is_text:
            meant = classes.meant_by(str(value))
            if len(meant) == 1:
                return meant[0]
            raise DataError(
                f"{shard}, row {row}: the column {name} holds text: {shown(str(value))}, which "
                f"is {'no class' if not meant else 'the name of several classes'} of "
                f"{classes.name}.\nWrite the index of the class, or the name of its folder."
            )
        if isinstance(value, int) and 0 <= value < len(positions):
            return positions[value]
        raise DataError(
            f"{shard}, row {row}: {name} {value} is not in 0..{len(positions) - 1}.\n"
            "Is this the test split? Use the validation shards; list other classes with --classes "
            "FILE."
        )

    return _LabelColumn(name, read, label)


def _class_names(schema: pyarrow.Schema, column: str) -> list[str] | None:
    """The names of a `ClassLabel`, as `datasets` notes them in its files."""
    try:
        document = json.loads((schema.metadata or {}).get(b"huggingface", b"null"))
        names = document["info"]["features"][column]["names"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list else None


def _positions(shard: Path, names: Sequence[str] | None, classes: ClassList) -> Sequence[int]:
    """What each number stands for: an index, or the class that the shard names at that place.

    Names of all classes may be those of another list of the same classes, with titles that several
    of them share: then their places decide, if no name belongs to another one.
    """
    places = range(len(classes))
    if not names:
        return places
    if list(names) == [str(place) for place in places]:
        for name in names:
            classes.check_number(f"{shard}, the names of its classes", name)
        return places
    meant = [classes.meant_by(name) for name in names]
    if len(names) == len(classes):
        known = [place for place in places if meant[place]]
        if 2 * len(known) > len(names) and all(place in meant[place] for place in known):
            return places
    doubtful = [name for name, each in zip(names, meant, strict=True) if len(each) != 1]
    if doubtful or len(set(meant)) < len(meant):
        times = Counter(meant)
        twice = [name for name, each in zip(names, meant, strict=True) if times[each] > 1]
        raise DataError(
            f"{shard} names its {len(names)} classes {examples(doubtful or twice)}: not those of "
            f"{classes.name} without doubt.\n"
            + (
                "List them with --classes FILE, one a line, in this order."
                if classes == IMAGENET
                else "Use the list of classes that belongs to it."
            )
        )
    return [each[0] for each in meant]


def _texts(shard: Path, array: Any) -> list[str | None]:
    """The values of a column; each is as long as a name, however often it is repeated."""
    import pyarrow

    is_shared = pyarrow.types.is_dictionary(array.type)
    values: list[str | None] = (array.dictionary if is_shared else array).cast("string").to_pylist()
    if max(map(len, filter(None, values)), default=0) > LONGEST_TEXT:
        raise DataError(
            f"{shard} has names of more than {LONGEST_TEXT} bytes.\nDownload the shard again."
        )
    if not is_shared:
        return values
    return [None if place is None else values[place] for place in array.indices.to_pylist()]


class _RowGroups:
    """Reads images; row groups stay in memory until others need the space.

    Threads that need the same group wait for one of them to load it. At most `_CACHE` bytes are
    kept, or two groups where they are larger. Those of Arrow files are in memory as it is.
    """

    def __init__(self, place_of: Mapping[str, _Place]) -> None:
        self._place_of = place_of
        self._mapped: dict[Path, Shard] = {}
        self._kept: OrderedDict[tuple[Path, int], pyarrow.Array] = OrderedDict()
        self._loading: dict[tuple[Path, int], threading.Lock] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._place_of,)  # another process reads for itself

    def __call__(self, path: str) -> bytes:
        """Bytes of one image."""
        shard, group, row, named = self._place_of[path]
        try:
            if shard in self._mapped:
                rows = self._load(shard, group)
            else:
                with self._lock:
                    loading = self._loading.setdefault((shard, group), threading.Lock())
                with loading:
                    rows = self._get(shard, group)
        except DataError as error:
            raise UnreadableImage(str(error)) from error
        data = rows[row].as_py() if row < len(rows) else None
        return data if isinstance(data, bytes) else _read_named(shard, path, named)

    def _get(self, shard: Path, group: int) -> Any:
        with self._lock:
            if (shard, group) in self._kept:
                self._kept.move_to_end((shard, group))
                return self._kept[shard, group]
        rows = self._load(shard, group)
        if shard in self._mapped:
            return rows
        with self._lock:
            self._kept[shard, group] = rows
            while len(self._kept) > 2 and sum(kept.nbytes for kept in self._kept.values()) > _CACHE:
                self._kept.popitem(last=False)
        return rows

    def _load(self, shard: Path, group: int) -> Any:
        with opened(shard, self._mapped.get(shard)) as file:
            if file.is_mapped:
                self._mapped[shard] = file
            return file.column(group, *image_column(shard, file.schema))


def _read_named(shard: Path, path: str, named: str) -> bytes:
    """An image that a shard only names, as the cache of a folder of images does."""
    try:
        if is_image(named):
            return read_regular(shard.parent / named)
    except (OSError, ValueError) as error:
        raise UnreadableImage(
            f"{shard} has no bytes of {shown(path)}, but the path of a file that cannot be read: "
            f"{shown(named)} ({shown(str(getattr(error, 'strerror', None) or error))}).\n"
            "Give the folder of those files, or write the set again with save_to_disk."
        ) from error
    raise UnreadableImage(f"{shard} has no bytes of {shown(path)}.\nDownload the shard again.")
