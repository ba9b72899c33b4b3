"""Small files that would cost minutes or gigabytes are refused in two lines, or cost little."""

from __future__ import annotations

import io
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from small_valsets import name

from eval.config import load_config
from eval.errors import DataError, UnreadableImage, UsageError
from eval.images.classes import IMAGENET
from eval.images.labels import official_labels, read_labels
from eval.images.layouts import shards as layout
from eval.images.layouts.arrow import list_shards
from eval.images.layouts.pages import pages_of
from eval.images.preprocess import MOST_SCANS, BadImage, crop_of
from eval.images.valset import open_valset
from eval.measure.given import read_answers
from eval.recipe import NAMED
from eval.results.read import read_predictions
from eval.text import table

MANY = 100_000


def scans(extra: int) -> bytes:
    """A progressive JPEG with some of its scans again."""
    file = io.BytesIO()
    Image.linear_gradient("L").save(file, "JPEG", progressive=True)
    data = file.getvalue()
    places = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    assert 1 < len(places) < MOST_SCANS
    again = data[places[-2] : places[-1]]
    return data[:-2] + again * (extra - len(places)) + data[-2:]


@pytest.mark.parametrize("recipe", ["torchvision", "paddle"])
def test_scans_of_a_jpeg(recipe: str) -> None:
    assert crop_of(NAMED[recipe], scans(MOST_SCANS)).shape == (224, 224, 3)
    message = f"a JPEG of {MOST_SCANS + 1} scans; the limit is {MOST_SCANS}"
    with pytest.raises(BadImage, match=message):
        crop_of(NAMED[recipe], scans(MOST_SCANS + 1))


def shard(path: Path, values: pyarrow.Array, names: pyarrow.Array) -> Path:
    image = pyarrow.StructArray.from_arrays([values, names], ["bytes", "path"])
    rows = pyarrow.table({"image": image, "label": list(official_labels()[: len(names)])})
    pyarrow.parquet.write_table(rows, path, compression="zstd", store_schema=False)
    return path


def names_of(rows: int) -> pyarrow.Array:
    return pyarrow.array([name(number) for number in range(1, rows + 1)])


def test_zeros_in_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 4 KB may become gigabytes."""
    path = shard(tmp_path / "x.parquet", pyarrow.array([bytes(3 << 20)]), names_of(1))
    assert path.stat().st_size < 10_000
    assert open_valset(path).samples
    monkeypatch.setattr("eval.files._LARGE", 2 << 20)
    with pytest.raises(DataError, match=r"makes 3 MiB of .* bytes \(image.bytes\)") as caught:
        open_valset(path)
    assert str(caught.value).count("\n") == 1


def test_a_value_that_a_shard_repeats_is_kept_once(tmp_path: Path) -> None:
    """A file of a few KB would become 1000 times 10 KB."""
    values = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 1000, pyarrow.int32()), pyarrow.array([bytes(10_000)])
    )
    path = shard(tmp_path / "x.parquet", values.cast("binary"), names_of(1000))
    valset = open_valset(path)
    assert valset.read(valset.samples[7].path) == bytes(10_000)
    kept = valset.read._kept  # type: ignore[attr-defined]
    assert sum(rows.nbytes for rows in kept.values()) < 100_000


def test_a_long_name_that_a_shard_repeats(tmp_path: Path) -> None:
    names = pyarrow.array(["x" * 5000] * 100)
    path = shard(tmp_path / "x.parquet", pyarrow.array([b"a"] * 100), names)
    with pytest.raises(DataError, match="names of more than 4096 bytes"):
        open_valset(path)


def test_a_name_that_a_dictionary_repeats_is_kept_once(tmp_path: Path) -> None:
    """A shard of a few KB would become a name of 4 KB for each of its rows."""
    values = pyarrow.array([b"a"] * 9)
    path = shard(tmp_path / "x.parquet", values, pyarrow.array(["x" * 256] * 9))
    with pytest.raises(DataError, match="row 0: a name of 256 characters"):
        open_valset(path)
    path = shard(path, values, pyarrow.array([f"{'x' * 4000}/a"] * 9))
    places = open_valset(path).read._place_of.values()  # type: ignore[attr-defined]
    assert len({id(place.path) for place in places}) == 1


def test_values_that_a_stream_repeats(tmp_path: Path) -> None:
    """Views may lead to the same bytes again and again."""
    views = pyarrow.array(["x" * 4000 + ".jpg"] * 3, pyarrow.string()).cast(pyarrow.string_view())
    image = pyarrow.StructArray.from_arrays([pyarrow.array([b"a"] * 3), views], ["bytes", "path"])
    table = pyarrow.table({"image": image, "label": [1, 2, 3]})
    with pyarrow.ipc.new_stream(tmp_path / "x", table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"no column of image files .*string_view"):
        open_valset(tmp_path / "x")


def test_a_stream_of_many_batches(tmp_path: Path) -> None:
    """It is read once, not again for each image."""
    rows = pyarrow.table({"image": [b"a"] * 3000, "label": [1] * 3000})
    with pyarrow.ipc.new_stream(tmp_path / "x", rows.schema) as writer:
        writer.write_table(rows, max_chunksize=1)
    read = list_shards(tmp_path / "x", [tmp_path / "x"], IMAGENET).read
    assert read("x/000000") == read("x/002999") == b"a"
    assert list(read._mapped) == [tmp_path / "x"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["a,1,b,c\n" * 10, "a\n,,,,,,,\n" * 5])
def test_cells_of_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("eval.images.lists._MOST_CELLS", 30)
    (tmp_path / "x.csv").write_text(f"filename,label,x,y\n{text}")
    with pytest.raises(DataError, match="more than 30 cells, too many for a list"):
        read_labels(tmp_path / "x.csv")


def test_a_large_document(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(f"[{'[],' * (6 << 20)}[]]")
    with pytest.raises(DataError, match="too large for a list in JSON"):
        read_labels(tmp_path / "x.json")


LONG, OFTEN = "x" * 100_000, 3000
REPEATED: dict[str, pyarrow.Array] = {  # 300 MB in a file of a few KB
    "text": pyarrow.array([LONG] * OFTEN),
    "views": pyarrow.array([LONG] * OFTEN, pyarrow.string_view()),
    "lists": pyarrow.array([[LONG]] * OFTEN),
    "structs": pyarrow.array([{"a": {"b": LONG}}] * OFTEN),
    "maps": pyarrow.array([[("a", LONG)]] * OFTEN, pyarrow.map_("string", "string")),
}


@pytest.mark.parametrize("kind", REPEATED)
def test_texts_that_a_file_of_predictions_repeats(kind: str, tmp_path: Path) -> None:
    """They are counted as they are stored, once, before any is written out."""
    names = [f"{n}.JPEG" for n in range(OFTEN)]
    rows = pyarrow.table({"path": names, "top1": [7] * OFTEN, "x": REPEATED[kind]})
    pyarrow.parquet.write_table(rows, tmp_path / "x", compression="zstd")
    assert (tmp_path / "x").stat().st_size < 50_000
    usual = pyarrow.default_memory_pool()
    counting = pyarrow.proxy_memory_pool(usual)
    pyarrow.set_memory_pool(counting)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"repeats texts: 286 MiB in .* bytes") as caught:
            read_answers(tmp_path / "x", 1000)
        assert counting.max_memory() < 10 << 20
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()
        pyarrow.set_memory_pool(usual)
    assert str(caught.value).count("\n") == 1


def test_a_column_of_one_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no space, and a cell for each of its rows."""
    rows = {"path": [f"{n}.JPEG" for n in range(5000)], "top1": [7] * 5000}
    rows |= {f"x{n}": [1.5] * 5000 for n in range(20)}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "x", compression="zstd")
    assert read_answers(tmp_path / "x", 1000).names[-1] == "4999.JPEG"
    monkeypatch.setattr("eval.measure.given.tables._MANY_CELLS", 100_000)
    with pytest.raises(DataError, match=r"has 110,000 values in .* bytes"):
        read_answers(tmp_path / "x", 1000)


def test_columns_of_parquet_that_are_none(tmp_path: Path) -> None:
    """Values of one length cannot be read as they are stored; two of a name hide one another."""
    fixed = pyarrow.array([b"x" * 17], pyarrow.binary(17))
    for names, column, message in (
        (["path", "top1", "x"], fixed, "x is of a type that no tool uses"),
        (["path", "top1", "top1"], pyarrow.array([8]), "more than one column top1"),
    ):
        rows = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array([7]), column], names)
        pyarrow.parquet.write_table(rows, tmp_path / "x")
        with pytest.raises(DataError, match=message):
            read_answers(tmp_path / "x", 1000)
    half = pyarrow.array([0.5], pyarrow.float16())
    rows = pyarrow.table({"path": ["a"], "top1": [7], "prob1": half})
    pyarrow.parquet.write_table(rows, tmp_path / "x")
    assert read_answers(tmp_path / "x", 1000).prob.tolist() == [[0.5]]  # type: ignore[union-attr]


def understated(path: Path, column: int, name: str) -> None:
    """Edit the index of a file so that it says little of a column."""

    def said() -> int:
        about = pyarrow.parquet.read_metadata(path).row_group(0).column(column)
        return int(getattr(about, name))

    length = -(-said().bit_length() // 7)
    number, small = (
        bytes(n << 1 >> 7 * k & 127 | 128 * (k < length - 1) for k in range(length))
        for n in (said(), 9)
    )
    data = path.read_bytes()
    places = [m.start() for m in re.finditer(re.escape(number), data)]
    for place in reversed(places):
        path.write_bytes(data[:place] + small + data[place + len(small) :])
        if said() == 9:
            return
    pytest.fail("not found")


def test_pages_that_are_larger_than_the_index_says(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.parquet", pyarrow.array([bytes(3 << 20)]), names_of(1))
    understated(path, 0, "total_uncompressed_size")
    message = r"x.parquet: the pages of image.bytes are not what the file says of them\.\n"
    valset = open_valset(path)
    with pytest.raises(UnreadableImage, match=message):
        valset.read(valset.samples[0].path)
    names = [f"{n}.JPEG" for n in range(5000)]
    rows = pyarrow.table({"x": ["x" * 900] * 5000, "path": names, "top1": [7] * 5000})
    for column, said in ((0, "total_uncompressed_size"), (2, "num_values")):
        pyarrow.parquet.write_table(rows, path, compression="zstd", use_dictionary=["top1"])
        understated(path, column, said)
        again = f"the pages of {rows.column_names[column]} are not what .*\nSave it again"
        with pytest.raises(DataError, match=again):
            read_answers(path, 1000)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_texts_that_are_written_as_differences(version: str, tmp_path: Path) -> None:
    """Of a few bytes each, and as long as one likes."""
    names = [f"{'x' * 1000}{n}" for n in range(9)]
    rows = pyarrow.table({"image": [b"a"] * 9, "file_name": names, "label": [1] * 9})
    pyarrow.parquet.write_table(
        rows, tmp_path / "x.parquet", use_dictionary=False, data_page_version=version,
        column_encoding={"file_name": "DELTA_BYTE_ARRAY"},
    )  # fmt: skip
    with pytest.raises(DataError, match="has file_name as DELTA_BYTE_ARRAY, whose size cannot"):
        open_valset(tmp_path / "x.parquet")


@pytest.mark.parametrize("options", [
    {}, {"data_page_version": "2.0"}, {"use_dictionary": False}, {"compression": "none"},
    {"write_page_checksum": True}, {"write_page_index": True}, {"row_group_size": 700},
    {"data_page_size": 99}, {"compression": "gzip", "version": "1.0"},
    {"use_dictionary": False, "column_encoding": {"s": "DELTA_LENGTH_BYTE_ARRAY"}},
])  # fmt: skip
def test_pages_of_every_kind(options: dict[str, Any], tmp_path: Path) -> None:
    """As pyarrow writes them: their sizes and values are those of the index."""
    rows = pyarrow.table({
        "s": [f"n{n % 50}" for n in range(2000)], "i": range(2000), "b": [True, None] * 1000,
        "l": [[1.0, 2.0], None] * 1000, "t": [{"a": b"x" * n, "b": None} for n in range(2000)],
    })  # fmt: skip
    pyarrow.parquet.write_table(rows, tmp_path / "x", **options)
    about = pyarrow.parquet.read_metadata(tmp_path / "x")
    data = memoryview((tmp_path / "x").read_bytes())
    for group in map(about.row_group, range(about.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            pages = list(pages_of(data, column))  # type: ignore[arg-type]
            assert sum(page.values for page in pages) == column.num_values
            # Which includes the headers.
            assert sum(page.size for page in pages) < column.total_uncompressed_size


@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_arrays_that_are_larger_than_their_file(suffix: str, tmp_path: Path) -> None:
    """Zeros shrink to nothing; and an array of text has the width of its longest."""
    path = tmp_path / f"x.{suffix}"
    names = ["x" * 30_000, *map(str, range(999))]
    if suffix == "npz":
        np.savez_compressed(path, logits=np.zeros((20_000, 1000), np.float32))
    else:
        torch.save({"names": names, "logits": torch.zeros(1000, 10)}, path)
    with pytest.raises(DataError, match=r"x\.\w+ makes \d+ MiB of .* bytes") as caught:
        read_answers(path, 10)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).count("\n") == 1


def test_rows_of_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard(tmp_path / "x.parquet", pyarrow.array([b"a"] * 5), names_of(5))
    monkeypatch.setattr(layout, "_MOST_ROWS", 4)
    with pytest.raises(DataError, match="has 5 rows, over 4"):
        open_valset(path)


def test_blank_lines_of_a_table_are_not_kept() -> None:
    blank = "\n" * MANY
    assert table("x", f"a,b{blank}1,2{blank}", DataError) == (["a", "b"], [["1", "2"]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",".join(f"c{i}" for i in range(100_000)) + "\n", "has 100,000 columns, over 8,192"),
        ('a,b\n"1,2\n' + "3,4\n" * MANY, "not CSV"),
        ("\n" * MANY, "is empty: a header and rows are needed"),
        ("a,b\n1,2\n1\n", "row 2 has 1 of 2 columns"),
        ("a,a\n1,2\n", "has more than one column a"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    """Predictions, and results, by the same rules."""
    path = tmp_path / "predictions.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_answers(path, 1000)
    with pytest.raises(UsageError, match=f"{message}|is cut off"):
        read_predictions(path)


def test_rows_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.text._MOST_ROWS", 2)
    assert len(table("x", "a\n1\n2\n", DataError)[1]) == 2
    with pytest.raises(DataError, match="x has more than 2 rows"):
        table("x", "a\n1\n2\n3\n", DataError)


def test_blanks_in_a_list_of_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(f"a{' ' * MANY}b\nc.jpg 7\nd{' ' * MANY}12\n7\n")
    from eval.measure.given.arrays import read_names

    names = read_names(tmp_path / "names.txt")
    assert names == [f"a{' ' * MANY}b", "c.jpg", "d", "7"]


@pytest.mark.parametrize("text", [f"{'a.' * 100_000}b = 1\n", "x = 1\n" * 200_000])
def test_a_long_key_of_a_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(UsageError, match="too long, or has too many dots"):
        load_config(tmp_path / "x.toml")


@pytest.mark.parametrize("first", [0, 1])
def test_ranks_may_be_numbered_from_0(tmp_path: Path, first: int) -> None:
    header = [f"top{first + k}" for k in range(6)] + [f"prob{first + k}" for k in range(6)]
    prob = [0.3, 0.2, 0.1, 0.1, 0.1, 0.05]
    path = tmp_path / "x.csv"
    path.write_text(f"path,{','.join(header)}\na.jpg,9,8,7,6,5,4,{','.join(map(str, prob))}\n")
    answers = read_answers(path, 1000)
    assert answers.classes.tolist() == [[9, 8, 7, 6, 5, 4]]  # type: ignore[union-attr]
    assert answers.prob.tolist() == [prob]  # type: ignore[union-attr]
