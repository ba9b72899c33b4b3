"""Sets as Hugging Face's `datasets` and Hub keep them: any names, labels compared, small traps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import small_valsets as small
from small_valsets import jpeg, name, rows, synset

from eval.errors import DataError, UnreadableImage
from eval.images.classes import IMAGENET, read_classes
from eval.images.labels import official_labels
from eval.images.layouts import shards as layout
from eval.images.valset import ValSet, open_valset

TITLES = [row.title for row in IMAGENET.rows]


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_valset(root)
    assert str(caught.value).count("\n") == 1
    return str(caught.value)


def labels_of(valset: ValSet) -> list[tuple[str, int]]:
    return [(sample.name, sample.label) for sample in valset.samples]


def photos(labels: list[object], paths: list[object]) -> pyarrow.Table:
    images = [{"bytes": jpeg(n), "path": path} for n, path in enumerate(paths)]
    return pyarrow.table({"image": images, "label": labels})


# Names and columns


@pytest.mark.parametrize("kind", ["stream", "file", "parquet"])
def test_any_names(tmp_path: Path, kind: str) -> None:
    """As `to_parquet` and Arrow's two formats have the photos of a folder."""
    table = photos([7, 0, 999], ["cat.jpg", "dog 1.png", None])
    path = tmp_path / "mine"
    if kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    elif kind == "file":
        with pyarrow.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    else:
        small.stream(path, table)
    valset = open_valset(path)
    assert valset.layout == "unidentified images, 1 arrow shard"
    assert labels_of(valset) == [("cat.jpg", 7), ("dog 1.png", 0), ("000002", 999)]
    assert [valset.read(sample.path) for sample in valset.samples] == [jpeg(n) for n in range(3)]


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.large_binary()])
@pytest.mark.parametrize("parquet", [True, False])
def test_images_as_bytes_alone(tmp_path: Path, kind: pyarrow.DataType, parquet: bool) -> None:
    images = pyarrow.array([jpeg(0), jpeg(1)], kind)
    labels = pyarrow.array([5, 0], pyarrow.uint8())
    table = pyarrow.table({"jpg": images, "cls": labels, "__key__": ["a", "b"]})
    path = tmp_path / "x.arrow"
    if parquet:
        pyarrow.parquet.write_table(table, path)
    else:
        small.stream(path, table)
    valset = open_valset(path)
    assert labels_of(valset) == [("a", 5), ("b", 0)]
    assert valset.read(valset.samples[1].path) == jpeg(1)


@pytest.mark.parametrize(
    "labels", [[8.0, 0.0], ["n01514859", "n01440764"], ["hen", "tench, Tinca tinca"]]
)
def test_labels_that_can_only_mean_one_class(tmp_path: Path, labels: list[object]) -> None:
    path = small.stream(tmp_path / "x", photos(labels, ["a.jpg", "b.jpg"]))
    assert [label for _, label in labels_of(open_valset(path))] == [8, 0]


def test_images_that_a_cache_only_names(tmp_path: Path) -> None:
    """As `load_dataset("imagefolder")` leaves it; only files named like images are read."""
    folder = small.folders(tmp_path / "val")
    paths = [str(folder / synset(n) / name(n)) for n in (1, 2)]
    names = sorted({synset(1), synset(2)})
    labels = [names.index(synset(n)) for n in (1, 2)]
    table = photos(labels, paths)
    images = [{"bytes": None, "path": path} for path in paths]
    table = table.set_column(0, "image", pyarrow.array(images, table["image"].type))
    path = small.stream(tmp_path / "imagefolder-train.arrow", small.hugging_face(table, names))
    valset = open_valset(path.parent / path.name)
    assert valset.read(valset.samples[0].path) == jpeg(1)
    (folder / synset(1) / name(1)).unlink()
    with pytest.raises(UnreadableImage, match=r"the path of a file that cannot be read: .*No such"):
        valset.read(valset.samples[0].path)
    (tmp_path / "secret").write_bytes(b"x")
    images = [{"bytes": None, "path": str(tmp_path / "secret")}] * 2
    table = table.set_column(0, "image", pyarrow.array(images, table["image"].type))
    valset = open_valset(small.stream(tmp_path / "y.arrow", small.hugging_face(table, names)))
    with pytest.raises(UnreadableImage, match="has no bytes of"):
        valset.read(valset.samples[0].path)


# Labels


def test_class_labels_of_any_order(tmp_path: Path) -> None:
    names = ["n01443537", "tench, Tinca tinca", "great_white_shark"]
    table = small.hugging_face(photos([0, 1, 2], ["a.jpg", "b.jpg", "c.jpg"]), names)
    assert [label for _, label in labels_of(open_valset(small.stream(tmp_path / "x", table)))] == [
        1, 0, 2,
    ]  # fmt: skip


@pytest.mark.parametrize("names", [TITLES, [str(n) for n in range(1000)]])
def test_class_labels_of_all_classes_by_their_places(tmp_path: Path, names: list[str]) -> None:
    """Two titles are of two classes each: crane and maillot."""
    table = small.hugging_face(photos([134, 517], ["a.jpg", "b.jpg"]), names)
    valset = open_valset(small.stream(tmp_path / "x", table))
    assert [label for _, label in labels_of(valset)] == [134, 517]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "tench"], "names its 2 classes cat: not those of ILSVRC2012 without doubt"),
        (["crane", "tench"], "names its 2 classes crane"),
        (["tench", "n01440764"], "names its 2 classes tench, n01440764"),
        ([*TITLES[1:], TITLES[0]], "names its 1000 classes partridge, crane, "),
    ],
)
def test_class_labels_of_other_classes(tmp_path: Path, names: list[str], message: str) -> None:
    table = small.hugging_face(photos([0], ["a.jpg"]), names)
    assert message in refusal(small.stream(tmp_path / "x", table))


def test_class_labels_and_the_users_classes(tmp_path: Path) -> None:
    (tmp_path / "pets.txt").write_text("cat\tCat, house cat\ndog\nfish\n")
    pets = read_classes(tmp_path / "pets.txt")
    table = small.hugging_face(photos([0, 1], ["a.jpg", "b.jpg"]), ["dog", "House_Cat"])
    valset = open_valset(small.stream(tmp_path / "x.arrow", table), classes=pets)
    assert labels_of(valset) == [("a.jpg", 1), ("b.jpg", 0)]
    assert valset.image_set.name == "pets.txt"
    table = small.hugging_face(table, ["dog", "bird"])
    small.stream(tmp_path / "x.arrow", table)
    with pytest.raises(DataError, match=r"names its 2 classes bird: not those of pets\.txt"):
        open_valset(tmp_path / "x.arrow", classes=pets)


@pytest.mark.parametrize(
    ("label", "path", "who"),
    [
        (1, "val/n01440764/a.jpg", r"n01443537 \(1\) by its label, n01440764 \(0\) by its path"),
        (1, name(1), r"n01443537 \(1\) by label column, n01751748 \(65\) by the official labels"),
        (65, "ILSVRC2012_val_00000001_n01440764.JPEG", r"n01440764 \(0\) by file name"),
    ],
)
def test_labels_are_claims(tmp_path: Path, label: int, path: str, who: str) -> None:
    small.stream(tmp_path / "x", photos([label], [path]))
    with pytest.raises(DataError, match=who):
        open_valset(tmp_path / "x")


def test_names_in_disguise_are_not_the_validation_set(tmp_path: Path) -> None:
    table = photos([65], [f"{name(1)}.jpg"])
    assert not open_valset(small.stream(tmp_path / "x", table)).image_set.is_val


# Where they lie


def test_splits_on_disk(tmp_path: Path) -> None:
    root = small.saved_to_disk(tmp_path / "set")
    (root / "validation").rename(root / "other")
    message = refusal(root)
    assert (
        f"2 splits, none of them for validation alone.\nDid you mean --data {root}/other" in message
    )
    for file in (root / "train").iterdir():
        file.unlink()
    assert "1 arrow shard in other/" in open_valset(root).layout


def test_shards_of_an_earlier_set(tmp_path: Path) -> None:
    """What `save_to_disk` wrote before stays in the folder, where it had more shards."""
    for shard in (0, 1, 2):
        small.stream(tmp_path / f"data-{shard:05}-of-00003.arrow", rows([shard + 1]))
    small.stream(tmp_path / "data-00000-of-00001.arrow", rows([6]))
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
    (tmp_path / "state.json").write_text(json.dumps(state))
    valset = open_valset(tmp_path)
    assert [n for n, _ in labels_of(valset)] == [name(6)]
    assert "without data-00000-of-00003.arrow" in valset.layout
    (tmp_path / "data-00000-of-00001.arrow").unlink()
    assert "data-00000-of-00001.arrow, which its state.json names, are missing" in refusal(tmp_path)


def test_derived_files_of_a_cache(tmp_path: Path) -> None:
    """`Dataset.map` leaves its results beside what they were made from."""
    root = tmp_path / "0.0.0"
    small.stream(root / "imagenet-1k-validation.arrow", rows([1, 2]))
    small.stream(root / "imagenet-1k-train-00000-of-00257.arrow", rows([3]))
    small.stream(root / "cache-0123456789abcdef.arrow", rows([4]))
    assert [n for n, _ in labels_of(open_valset(root))] == [name(1), name(2)]
    (root / "imagenet-1k-validation.arrow").rename(root / "imagenet-1k-test.arrow")
    assert "has shards of several splits, none of them for validation alone: " in refusal(root)


def test_what_is_not_taken_is_named(tmp_path: Path) -> None:
    root = small.parquet(tmp_path / "set")
    (root / "data" / "train-00000-of-00294.parquet").touch()
    (root / "data" / "README.md").touch()
    assert open_valset(root).layout.endswith(", without data/train-00000-of-00294.parquet")


def test_images_before_tables_beside_them(tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(jpeg(1))
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "metadata.parquet")
    (tmp_path / "list.txt").write_text("cat.jpg 7\n")
    valset = open_valset(tmp_path, tmp_path / "list.txt")
    assert valset.layout.endswith("labels of list.txt, without metadata.parquet")


def test_folders_that_lead_to_themselves(tmp_path: Path) -> None:
    root = small.hub_cache(tmp_path / "hub")
    (root / "snapshots" / "again").symlink_to(root)
    assert len(open_valset(root).samples) == small.IMAGES
    root = small.saved_to_disk(tmp_path / "set")
    (root / "validation-again").symlink_to(root)
    (root / "state.json").touch()
    assert len(open_valset(root).samples) == small.IMAGES


def test_caches_further_below_are_named(tmp_path: Path) -> None:
    path = tmp_path / "imagefolder" / f"default-{'0' * 200}" / "0.0.0" / "f0" / "x-train.arrow"
    small.stream(path, rows([1]))
    assert refusal(tmp_path).endswith(f"Did you mean --data {path.parent}?")
    repository = small.hub_cache(tmp_path / "hub")
    shutil.rmtree(tmp_path / "hub" / "downloaded")
    assert refusal(tmp_path / "hub").endswith(f"Did you mean --data {repository}?")


def test_snapshots_of_the_hub(tmp_path: Path) -> None:
    root = small.hub_cache(tmp_path)
    (root / "snapshots" / "0123").mkdir()  # nothing but its page was downloaded of it
    (root / "snapshots" / "0123" / "README.md").touch()
    assert len(open_valset(root).samples) == small.IMAGES
    (root / "snapshots" / "0123" / "validation.parquet").symlink_to(root / "blobs" / "0")
    message = refusal(root)
    assert "with 2 snapshots.\nDid you mean --data " in message
    assert f"{root}/snapshots/0123 or {root}/snapshots/49e2ee26f3810fb5a753" in message


# Few bytes, few costs


def test_a_compressed_batch(tmp_path: Path) -> None:
    """pyarrow would decompress it at once: a few KB may be gigabytes."""
    table = photos([0], ["a.jpg"])
    images = pyarrow.array([{"bytes": bytes(1 << 22), "path": "a.jpg"}], table["image"].type)
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    path = small.stream(tmp_path / "x", table.set_column(0, "image", images), options=options)
    assert path.stat().st_size < 10_000
    assert "has compressed data, which `datasets` does not write" in refusal(path)


def test_a_dictionary(tmp_path: Path) -> None:
    table = pyarrow.table(
        {"image": [jpeg(0)], "label": pyarrow.array(["tench"]).dictionary_encode()}
    )
    assert "has dictionary data" in refusal(small.stream(tmp_path / "x", table))


def test_rows_without_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_MOST_ROWS", 2)
    with pyarrow.ipc.new_stream(tmp_path / "x", rows([1, 2, 3]).schema) as writer:
        writer.write_table(rows([1, 2, 3]))
    assert "has 3 rows, over 2" in refusal(tmp_path / "x")


@pytest.mark.parametrize("cut", [1, 8, 100, 700])
def test_a_stream_that_is_cut(tmp_path: Path, cut: int) -> None:
    path = small.stream(tmp_path / "x", rows([1, 2, 3]))
    path.write_bytes(path.read_bytes()[:-cut])
    assert "cannot be read as arrow" in (message := refusal(path)) or "is truncated" in message


def test_a_stream_that_lies_about_its_offsets(tmp_path: Path) -> None:
    """Offsets beyond the file would be followed to other memory."""
    table = rows([1, 2])
    path = small.stream(tmp_path / "x", table)
    offsets = np.array([0, len(jpeg(1)), len(jpeg(1)) + len(jpeg(2))], "<i4").tobytes()
    data = path.read_bytes()
    assert data.count(offsets) == 1
    path.write_bytes(data.replace(offsets, np.array([0, 1 << 30, 1 << 30], "<i4").tobytes()))
    assert "cannot be read as arrow" in refusal(path)


# The tool itself


@pytest.mark.slow
def test_datasets_writes_what_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    folder = small.folders(tmp_path / "val")
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "c")
    )
    loaded.save_to_disk(str(tmp_path / "disk"))
    (split,) = loaded.values()
    split.to_parquet(str(tmp_path / "x.parquet"))
    (cache,) = (tmp_path / "c").rglob("*.arrow")
    for root in (tmp_path / "disk", tmp_path / "x.parquet", cache, cache.parent):
        valset = open_valset(root)
        assert valset.image_set.is_val
        assert {s.name: (s.label, valset.read(s.path)) for s in valset.samples} == {
            name(n): (official_labels()[n - 1], jpeg(n)) for n in range(1, small.IMAGES + 1)
        }
    assert json.loads((tmp_path / "disk" / "dataset_dict.json").read_text())
