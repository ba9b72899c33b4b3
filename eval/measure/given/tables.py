"""Tables of ranked classes: CSV, JSON, JSON lines and parquet, whoever named their columns.

    path,top1,...,top5,prob1,...     ours; also top0..., top_1..., Top1...
    filename,index,prob              timm's inference.py: one class, or lists in a cell
    filename,index_0,...,prob_0,...  the same with a column for each
    file_name, class_ids, scores     PaddleClas
    {"a.JPEG": [65, 3, 8, 1, 2]}     JSON by image

Columns of names of classes are left out: an index says the same, once.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval.errors import DataError, UsageError
from eval.files import is_inflated
from eval.images.labels import examples, image_key, is_image, shown
from eval.images.layouts.shards import check_pages, parquet_file
from eval.images.lists import NAME_KEYS
from eval.measure.given.answers import Answers, Ranked, Stated, logits, ranked
from eval.text import from_csv_cell, table

if TYPE_CHECKING:
    import pyarrow

Columns = Mapping[str, Sequence[Any]]  # cells by header; all of one length

_CLASSES = ("top", "topk", "top_k", "class", "class_id", "class_idx", "class_index", "pred",
            "prediction", "predicted", "pred_label", "predictionstring")  # fmt: skip
_INDEX = "index"  # timm's classes; in other tables, the number of the row
_PLURALS = {_INDEX: "indices", "probability": "probabilities"}  # that do not end in s or es
_NOT_ALONE = ("class",)  # without a number, it may be the label
_PROBABILITIES = ("prob", "probability", "score", "confidence", "conf", "logit", "output")
_TRUE_LABELS = ("target", "ground_truth", "gt", "gt_label", "true_label", "true_class")
_DELIMITERS = (",", ";", "\t", "|")
_LARGEST_JSON = 1 << 29  # bytes
_MOST_CELLS = 100_000_000  # of a parquet file: 50,000 images with logits have half as many
_WIDEST = 16  # bytes of a number: a decimal's
_MANY_CELLS = 4_000_000  # which a file may have whatever its size: 15 columns of 250,000 images

_NEEDED = (
    "Needed: path or name, and top1 to top5 (class indices, best first), index (timm's "
    "inference.py: --include-index), or classes (in one column)."
)
_NUMBER = re.compile(r"[-+.0-9eE ]+")
_FORM = re.compile(r"(.+)_rank")
_NUMBERED = re.compile(r"(.*?)_?([0-9]{1,4})")


class _Group(NamedTuple):
    """Columns that belong together, best class first."""

    stem: str
    columns: tuple[str, ...]


def read_csv(path: Path, text: str, count: int, form: str | None) -> Answers:
    """A CSV with a header, with commas, semicolons, tabs or bars.

    Of our own ``predictions.csv``, `form` says which form to score.
    """
    delimiter = delimiter_of(text)
    first = text.lstrip().partition("\n")[0].rstrip()
    if first and all(_NUMBER.fullmatch(cell) for cell in first.split(delimiter)):
        raise DataError(
            f"{path} has no header: its first line is {shown(first)}.\n"
            "Needed: path, and top1 to top5 or index; arrays without names as .npy with --names."
        )
    header, rows = table(path, text, DataError, delimiter)
    cells = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    return from_columns(path, dict(zip(header, cells, strict=True)), count, form)


def delimiter_of(text: str) -> str:
    """What separates the columns: that which makes the most of the first line."""
    first = text.lstrip("\r\n").partition("\n")[0].rstrip("\r")

    def cells(delimiter: str) -> int:
        try:
            return len(next(csv.reader([first], delimiter=delimiter), []))
        except csv.Error:
            return 0

    return max(_DELIMITERS, key=cells)


def parse_json(path: Path, text: str) -> Any:
    """The content of a JSON file; a list, if it has an object per line."""
    if len(text) > _LARGEST_JSON:
        raise DataError(
            f"{path} is too large for JSON ({len(text) >> 20} MiB).\nSave it as CSV or .npz."
        )
    try:
        try:
            return json.loads(text, object_pairs_hook=_once)
        except ValueError:
            lines = [line for line in text.splitlines() if line.strip()]
            if len(lines) < 2 or not all(line.lstrip().startswith("{") for line in lines):
                raise
            return [json.loads(line, object_pairs_hook=_once) for line in lines]
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else shown(str(error))
        raise DataError(
            f"{path} is not JSON ({reason}).\nThe file is damaged or was cut off: write it again."
        ) from None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object, whose keys must not repeat: Python would keep the last one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        key = next(key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
        raise ValueError(f"{shown(key)} is there twice")
    return found


def columns_of(path: Path, document: Any) -> Columns:
    """The columns of a table, however pandas and others lay it out."""
    if isinstance(document, dict) and len(document) == 1:
        (only,) = document.values()
        document = only if _all(only, dict) and isinstance(only, list) else document
    if _all(document, dict) and isinstance(document, list):
        return _records(path, document)
    if isinstance(document, dict) and {"columns", "data"} <= document.keys():
        rows = document["data"]
        if _all(rows, list) and all(len(row) == len(document["columns"]) for row in rows):
            header = map(str, document["columns"])
            return dict(zip(header, zip(*rows, strict=True), strict=True))
    if isinstance(document, dict) and document:
        values = list(document.values())
        if any(_plain(name) in NAME_KEYS for name in document):  # column by column
            rows = {tuple(value) for value in values if isinstance(value, dict)}
            columns = [list(v.values()) if isinstance(v, dict) else v for v in values]
            lengths = {len(column) for column in columns if isinstance(column, list)}
            if len(rows) <= 1 and len(lengths) == 1 and _all(columns, list):
                return dict(zip(document, columns, strict=True))
        elif _all(values, dict):
            named = [{"path": n, **row} for n, row in document.items() if "path" not in row]
            if len(named) == len(values):
                return _records(path, named)
        elif not any(isinstance(value, dict) for value in values):
            return {"path": list(document), "top": values}
    raise DataError(
        f"{path} is JSON, but no table of predictions.\n"
        'Needed: objects such as {"path": "a.JPEG", "top5": [65, 3, 8, 1, 2]}, or one by image.'
    )


def _all(rows: Any, kind: type) -> bool:
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, kind) for row in rows)


def _records(path: Path, rows: Sequence[Mapping[str, Any]]) -> Columns:
    header = rows[0].keys()
    for number, row in enumerate(rows):
        if row.keys() != header:
            other = sorted(row.keys() ^ header)
            raise DataError(
                f"{path}: object {number} does not have the keys of the first: {examples(other)}.\n"
                "The file is damaged, or two tools wrote to it."
            )
    return {name: [row[name] for row in rows] for name in header}


def read_parquet(path: Path, count: int, form: str | None) -> Answers:
    """The columns of a parquet file; see `read_csv`."""
    again = "Save it again, or as CSV."
    with parquet_file(path, _every, again) as file:
        for group in range(file.num_row_groups):
            check_pages(path, file.metadata.row_group(group), _every, again)
        _check_cells(path, file.metadata)
        content = file.read()
        if twice := [name for name, n in Counter(content.column_names).items() if n > 1]:
            raise DataError(f"{path} has more than one column {examples(twice)}.\nKeep one.")
        size, stored = sum(map(_text_bytes, content.columns)), path.stat().st_size
        if is_inflated(size, stored):
            raise DataError(
                f"{path} repeats texts: {size >> 20:,} MiB in {stored:,} bytes, which no real file "
                "does.\nSave the names of the images and the indices of the classes alone."
            )
        columns = {name: _values(content.column(name)) for name in content.column_names}
        del content
    return from_columns(path, columns, count, form)


class _FloatRows(Sequence[list[float]]):
    """Lists of floats that have one length, without an object for each number.

    Attributes:
        array: (N, length), float32 or float64.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, row: Any) -> Any:
        return self.array[row].tolist()


def _values(column: pyarrow.ChunkedArray) -> Sequence[Any]:
    """The cells of a column."""
    import pyarrow.compute
    import pyarrow.types as kinds

    kind = column.type
    is_list = kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)
    is_full = is_list and not column.null_count
    if is_full and (kinds.is_float32(kind.value_type) or kinds.is_float64(kind.value_type)):
        lengths = pyarrow.compute.unique(pyarrow.compute.list_value_length(column)).to_pylist()
        flat = column.combine_chunks().flatten()
        if len(lengths) == 1 and lengths[0] and not flat.null_count:  # None is that of no list
            return _FloatRows(flat.to_numpy().reshape(len(column), lengths[0]))
    cells: list[Any] = column.to_pylist()
    return cells


def _every(_column: str) -> bool:
    return True


def _check_cells(path: Path, about: pyarrow.parquet.FileMetaData) -> None:
    """A column of one value that is repeated takes no space, but a cell for each."""
    groups = map(about.row_group, range(about.num_row_groups))
    cells = sum(g.column(i).num_values for g in groups for i in range(about.num_columns))
    stored = path.stat().st_size
    if cells > _MOST_CELLS or cells > max(_MANY_CELLS, stored):
        raise DataError(f"{path} has {cells:,} values in {stored:,} bytes.\nSave logits as .npy.")
    columns = map(about.schema.column, range(about.num_columns))
    if wide := [c.path for c in columns if c.length > _WIDEST]:  # 0 but for values of one length
        raise DataError(
            f"{path}: {examples(wide)} is of a type that no tool uses for predictions.\n"
            "Save text as strings and numbers as integers or floats."
        )


def _text_bytes(array: Any) -> int:
    """Bytes that the texts of a column take when each is written out."""
    import pyarrow
    import pyarrow.compute

    if isinstance(array, pyarrow.ChunkedArray):
        return sum(map(_text_bytes, array.chunks))
    kinds, kind = pyarrow.types, array.type
    if kinds.is_dictionary(kind):
        lengths = pyarrow.compute.binary_length(array.dictionary)
        return int(pyarrow.compute.sum(lengths.take(array.indices).cast("int64")).as_py() or 0)
    if kinds.is_struct(kind):
        return sum(_text_bytes(array.field(place)) for place in range(kind.num_fields))
    return _text_bytes(array.values) if kinds.is_nested(kind) else 0


def from_columns(path: Path, columns: Columns, count: int, form: str | None) -> Answers:
    """The predictions in a table, and what it says about the true labels."""
    forms = [match[1] for name in columns if (match := _FORM.fullmatch(name))]
    if forms and "path" in columns and all(f"{each}_top1" in columns for each in forms):
        own = _own(path, columns, forms, count, form)
        names = [from_csv_cell(str(name)) for name in columns["path"]]
        return replace(own, stated=_stated(columns, names, ("label",)))
    if form is not None:
        raise UsageError(f"{path} has one set of predictions: omit --array {form}.")
    names = _names(path, columns)
    answers = _answers(path, columns, names, count)
    return replace(answers, stated=_stated(columns, names, _TRUE_LABELS))


def _stated(columns: Columns, names: Sequence[str], known: Sequence[str]) -> Stated:
    """The columns that can only be true labels."""
    return {
        name: dict(zip(names, map(_text, cells), strict=True))
        for name, cells in columns.items()
        if _plain(name) in known
    }


def _answers(path: Path, columns: Columns, names: Sequence[str], count: int) -> Answers:
    classes, prob = _classes(path, columns), _first(_groups(columns, _PROBABILITIES))
    if classes is None and prob and (outputs := _outputs(columns, prob, count)) is not None:
        return logits(names, outputs)
    values = list(_rows(columns, prob)) if prob else None
    if classes is None:
        if not values or any(len(row) != count for row in values):
            raise DataError(f"{path} has the columns {examples(columns)}.\n{_NEEDED}")
        return _all_outputs(path, names, values, count)
    listed = list(_rows(columns, classes))
    _check_index(path, classes, listed, has_outputs=prob is not None)
    places = max(map(len, listed), default=0)
    if values and places == 1 and {len(row) for row in values} in ({1, 2}, {2}):
        is_split = all(cell.isdecimal() for row in values for cell in row)
        values = [[".".join(row)] for row in values] if is_split else values  # 0,5 is a half
    if values and any(len(row) < len(cells) for row, cells in zip(values, listed, strict=True)):
        values = None
    return ranked(path, names, listed, values and [row[:places] for row in values], count)


def _own(
    path: Path, columns: Columns, forms: Sequence[str], count: int, form: str | None
) -> Ranked:
    """Our own ``predictions.csv``."""
    if form is None and len(forms) > 1:
        raise UsageError(
            f"{path} has the forms {examples(forms)}.\nName the one to score with --array, such as "
            f"--array {shown(forms[-1])}."
        )
    chosen = forms[0] if form is None else form
    if chosen not in forms:
        raise UsageError(f"--array {chosen}: {path} has the forms {examples(forms)}.")
    part = {name.removeprefix(f"{chosen}_"): cells for name, cells in columns.items()}
    classes, prob = _groups(part, ("top",)), _groups(part, ("prob",))
    return ranked(
        path,
        [from_csv_cell(str(name)) for name in columns["path"]],
        list(_rows(part, classes[0])),
        list(_rows(part, prob[0])) if prob else None,
        count,
    )


def names_columns(header: Sequence[str]) -> list[str]:
    """The columns that may have the names of images."""
    known = [
        (NAME_KEYS.index(plain), name) for name in header if (plain := _plain(name)) in NAME_KEYS
    ]
    return [name for _, name in sorted(known)]


def _names(path: Path, columns: Columns) -> list[str]:
    """The names of the images; two columns of files must name the same ones."""
    found = names_columns(list(columns))
    if not found:
        raise DataError(f"{path} has the columns {examples(columns)}.\n{_NEEDED}")
    first, *others = found
    names = [str(cell) for cell in columns[first]]
    for other in others:
        for name, cell in zip(names, columns[other], strict=True):
            if is_image(str(cell)) and image_key(name) != image_key(str(cell)):
                raise DataError(
                    f"{path} names images in {first} ({shown(name)}) and in {other} "
                    f"({shown(str(cell))}).\nRemove the column that does not name the files."
                )
    return names


def _classes(path: Path, columns: Columns) -> _Group | None:
    """The columns of class indices; None if there are none."""
    found = _groups(columns, _CLASSES)
    if len(found) > 1:
        listed = examples(group.columns[0] for group in found)
        raise DataError(
            f"{path} has several columns that may be the predicted classes: {listed}.\n"
            "Keep one of them."
        )
    return _first(found) or _first(_groups(columns, (_INDEX,)))


def _first(groups: Sequence[_Group]) -> _Group | None:
    return groups[0] if groups else None


def _groups(columns: Columns, stems: Sequence[str]) -> list[_Group]:
    """The groups of columns with these stems, in the order of the stems.

    A group is ``top1, top2, ...`` or ``top0, top1, ...``, or one column of lists or single values,
    by the stem, its plural, or the number of values (``top5``).
    """
    numbered: dict[str, dict[int, str]] = {}
    plain = {_plain(name): name for name in columns}
    for word, name in plain.items():
        if match := _NUMBERED.fullmatch(word):
            numbered.setdefault(match[1], {})[int(match[2])] = name
    found = []
    for stem in stems:
        places = numbered.get(stem, {})
        start = 0 if 0 in places else 1
        run: list[str] = []
        while start + len(run) in places:
            run.append(places[start + len(run)])
        if not run and len(places) == 1:  # such as top5, with five in a cell
            run = list(places.values())
        if run:
            found.append(_Group(stem, tuple(run)))
        words = [f"{stem}s", f"{stem}es", *([_PLURALS[stem]] if stem in _PLURALS else [])]
        words += [] if stem in _NOT_ALONE else [stem]
        found += [_Group(stem, (plain[word],)) for word in words if word in plain]
    return found


def _plain(header: str) -> str:
    return re.sub(r"[ .-]+", "_", header.strip()).casefold()


def _rows(columns: Columns, group: _Group) -> Iterator[list[str]]:
    """The cells of each image, as text."""
    if len(group.columns) == 1:
        yield from (_cells(cell) for cell in columns[group.columns[0]])
        return
    for row in zip(*(columns[name] for name in group.columns), strict=True):
        cells = [_text(cell) for cell in row]
        yield cells if any(cells) else []


def _cells(cell: Any) -> list[str]:
    """What is in a cell: one value, or several as a list or as text."""
    if isinstance(cell, str):
        return re.sub(r"[\[\](),;|]", " ", cell).split()
    values = cell if isinstance(cell, (list, tuple)) else [cell]
    return [text for value in values if (text := _text(value))]


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value).strip()


def _check_index(
    path: Path, group: _Group, rows: Sequence[Sequence[str]], *, has_outputs: bool
) -> None:
    """A column `index` that counts the rows has no classes."""
    counted = [[str(number)] for number in range(len(rows))]
    if group.stem == _INDEX and not has_outputs and len(rows) > 1 and list(rows) == counted:
        raise DataError(
            f"{path}: its column {group.columns[0]} numbers the rows, and there is no other of "
            "classes.\nName the column of the predicted classes top1."
        )


def _outputs(columns: Columns, group: _Group, count: int) -> NDArray[np.float64] | None:
    """A value for each class from one column of floats; None where `_rows` has to look at them."""
    cells = columns[group.columns[0]]
    if len(group.columns) > 1 or not isinstance(cells, _FloatRows):
        return None
    if cells.array.shape[1] != count or np.isnan(cells.array.min()):
        return None  # NaN is what pandas writes where there is nothing
    return cells.array.astype(np.float64)


def _all_outputs(
    path: Path, names: Sequence[str], rows: Sequence[Sequence[str]], count: int
) -> Answers:
    """A value for each class, as of ``inference.py --topk 0``."""
    try:
        values = np.array(rows, dtype=np.float64).reshape(len(rows), count)
    except ValueError as error:
        raise DataError(f"{path}: {shown(str(error))}.\nOutputs are numbers.") from None
    return logits(names, values)
