"""Every layout gives the same images, labels and bytes; every fault has its message."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import small_valsets as small
from small_valsets import IMAGES, LAYOUTS, jpeg, name, synset

from eval.errors import DataError, UnreadableImage, UsageError
from eval.images.labels import official_labels
from eval.images.layouts import arrow as arrow_layout
from eval.images.valset import ValSet, fingerprint, open_valset

ROOT = Path(__file__).parents[1]
NUMBERS = range(1, IMAGES + 1)


def contents(valset: ValSet) -> dict[str, tuple[int, bytes]]:
    return {s.name: (s.label, valset.read(s.path)) for s in valset.samples}


def set_fingerprint(valset: ValSet) -> str:
    digests = [hashlib.sha256(valset.read(s.path)).hexdigest() for s in valset.samples]
    return fingerprint(valset.samples, digests)


def refusal(root: Path, labels: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        open_valset(root, labels)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert message.count("\n") <= 1
    return message


def listed(path: Path, rows: dict[str, object]) -> Path:
    path.write_text("".join(f"{row} {code}\n" for row, code in rows.items()))
    return path


# The layouts


@pytest.mark.parametrize(
    ("layout", "words"),
    {
        "folders": "6 synset folders, checked with the official labels",
        "flat": "flat files, official labels",
        "renamed": "flat files, official labels",
        "tar": "tar of flat files, official labels",
        "tar of folders": "tar of 6 synset folders, checked with the official labels",
        "kaggle": "flat files in ILSVRC/Data/CLS-LOC/val/, labels of LOC_val_solution.csv, "
        "checked with the official labels",
        "parquet": "2 parquet shards, checked with the official labels",
        "save_to_disk": "1 arrow shard in validation/, checked with the official labels",
        "hub cache": "2 parquet shards in snapshots/49e2ee26, checked with the official labels",
    }.items(),
)
def test_same_images_in_every_layout(tmp_path: Path, layout: str, words: str):
    valset = open_valset(LAYOUTS[layout](tmp_path / "set"))
    assert valset.layout == words
    assert contents(valset) == {name(n): (official_labels()[n - 1], jpeg(n)) for n in NUMBERS}
    paths = [sample.path for sample in valset.samples]
    assert paths == sorted(paths)


def test_fingerprint_and_limit_are_the_same_in_every_layout(tmp_path: Path):
    sets = [open_valset(make(tmp_path / name)) for name, make in LAYOUTS.items()]
    assert len({set_fingerprint(valset) for valset in sets}) == 1
    assert len({frozenset(contents(valset.limited(3))) for valset in sets}) == 1


def test_fingerprint_changes_with_name_label_and_content(tmp_path: Path):
    valset = open_valset(small.flat(tmp_path / "flat"))
    sample, *others = valset.samples
    digests = [f"{i:064x}" for i in range(IMAGES)]
    marks = {
        fingerprint(valset.samples, digests),
        fingerprint([type(sample)(sample.path, 0), *others], digests),
        fingerprint([type(sample)("other.jpg", sample.label), *others], digests),
        fingerprint(valset.samples, digests[::-1]),
    }
    assert len(marks) == 4


def test_reads_from_many_threads(tmp_path: Path, monkeypatch):
    """Row groups come and go meanwhile."""
    monkeypatch.setattr(arrow_layout, "_CACHE", 0)
    for layout in ("tar", "parquet", "save_to_disk"):
        valset = open_valset(LAYOUTS[layout](tmp_path / layout))
        samples = valset.samples * 20
        with ThreadPoolExecutor(8) as pool:
            data = list(pool.map(valset.read, [sample.path for sample in samples]))
        assert data == [jpeg(int(sample.name[15:23])) for sample in samples]


def test_row_groups_are_dropped_for_others(tmp_path: Path, monkeypatch):
    valset = open_valset(small.parquet(tmp_path / "set"))
    loads = []
    read_row_group = pyarrow.parquet.ParquetFile.read_row_group

    def counted(self, group, **options):
        loads.append(group)
        return read_row_group(self, group, **options)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", counted)
    first = valset.samples[0].path
    for sample in valset.samples:
        valset.read(sample.path)
    assert len(loads) == 4  # two of each shard, once
    valset.read(first)
    assert len(loads) == 4
    monkeypatch.setattr(arrow_layout, "_CACHE", 0)
    valset = open_valset(tmp_path / "set")
    loads.clear()
    for sample in valset.samples:
        valset.read(sample.path)
    valset.read(first)
    assert len(loads) == 5


def test_shared_images_in_the_flat_layout(shared: Path):
    valset = open_valset(shared / "imagenet-val-4")
    assert valset.layout == "flat files, official labels, without the unlabeled whl_demo.jpg"
    assert [(sample.path, sample.name, sample.label) for sample in valset.samples] == [
        (f"ILSVRC2012_val_{n:08d}.jpeg", name(n), official_labels()[n - 1])
        for n in (10, 10010, 20010, 30010)
    ]


def test_shared_images_with_the_shared_list(shared: Path):
    valset = open_valset(shared / "imagenet-val-4", shared / "ILSVRC2012_val_labels.txt")
    assert valset.layout == (
        "flat files, labels of ILSVRC2012_val_labels.txt (sorted positions), checked with the "
        "official labels, without the unlabeled whl_demo.jpg"
    )
    assert len(valset.samples) == 4


def test_shared_image_that_a_list_names(shared: Path, tmp_path: Path):
    rows = {name(n): official_labels()[n - 1] for n in (10, 10010, 20010, 30010)}
    labels = listed(tmp_path / "list.txt", rows | {"whl_demo.jpg": 8})
    valset = open_valset(shared / "imagenet-val-4", labels)
    assert valset.layout == "unidentified images, flat files, labels of list.txt"
    assert (valset.samples[-1].path, valset.samples[-1].label) == ("whl_demo.jpg", 8)


def test_shared_images_in_every_layout(shared: Path, tmp_path: Path):
    """Photos, with the suffix that they have."""
    flat = shared / "imagenet-val-4"
    folders = tmp_path / "folders"
    archive = tmp_path / "val.tar"
    with tarfile.open(archive, "w") as file:
        for sample in open_valset(flat).samples:
            folder = folders / small.synset(int(sample.name[15:23]))
            folder.mkdir(parents=True)
            shutil.copy(flat / sample.path, folder)
            file.add(flat / sample.path, sample.path)
    sets = [open_valset(root) for root in (flat, folders, archive)]
    assert contents(sets[0]) == contents(sets[1]) == contents(sets[2])
    assert len({set_fingerprint(valset) for valset in sets}) == 1


# Detection


@pytest.mark.parametrize("inside", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC",
                                    "ILSVRC/Data/CLS-LOC/val"])  # fmt: skip
def test_kaggle_tree_from_any_of_its_folders(tmp_path: Path, inside: str):
    valset = open_valset(small.kaggle(tmp_path / "set") / inside)
    assert "labels of LOC_val_solution.csv, checked with the official labels" in valset.layout
    assert [sample.path for sample in valset.samples] == [name(n) for n in NUMBERS]


def test_kaggle_labels_from_inside_by_a_relative_path(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(small.kaggle(tmp_path / "set") / "ILSVRC/Data/CLS-LOC/val")
    assert "LOC_val_solution.csv" in open_valset(Path()).layout


@pytest.mark.parametrize("inner", ["val", "validation"])
@pytest.mark.parametrize("layout", ["folders", "flat"])
def test_val_folder_is_followed(tmp_path: Path, inner: str, layout: str):
    LAYOUTS[layout](tmp_path / inner)
    (tmp_path / "train" / "n01440764").mkdir(parents=True)
    (tmp_path / "classes.png").touch()
    valset = open_valset(tmp_path)
    assert f" in {inner}/, " in valset.layout
    assert contents(valset) == contents(open_valset(tmp_path / inner))


def test_val_folder_further_below_is_named(tmp_path: Path):
    small.flat(tmp_path / "imagenet" / "images")
    message = refusal(tmp_path)
    assert f"Did you mean --data {tmp_path / 'imagenet' / 'images'}?" in message


def test_folders_further_below_that_are_classes(tmp_path: Path):
    """One folder for each class, by another name, is not a choice of val sets."""
    for number in NUMBERS:
        (tmp_path / f"class {number}").mkdir()
        (tmp_path / f"class {number}" / name(number)).write_bytes(jpeg(number))
    assert "has no synset folders (n01440764, ...) and no images" in refusal(tmp_path)


def test_folder_of_the_official_tar(tmp_path: Path):
    small.tar(tmp_path / "ILSVRC2012_img_val.tar")
    assert open_valset(tmp_path).layout == "tar of flat files, official labels"


@pytest.mark.parametrize("inside", ["", "data", "data/validation-00000-of-00002.parquet"])
def test_parquet_shards_from_any_place(tmp_path: Path, inside: str):
    valset = open_valset(small.parquet(tmp_path / "set") / inside)
    assert valset.samples[0].path == (
        f"validation-00000-of-00002.parquet/000000/ILSVRC2012_val_00000005_{synset(5)}.JPEG"
    )
    assert len(valset.samples) == (3 if inside.endswith(".parquet") else 6)
    assert valset.layout.startswith("1 of 2" if inside.endswith(".parquet") else "2 parquet shards")


def test_files_that_are_no_images_are_no_matter(tmp_path: Path):
    root = small.folders(tmp_path / "set")
    expected = contents(open_valset(root))
    (root / ".DS_Store").touch()
    (root / "val.txt").touch()
    (root / "preview.png").touch()
    (root / ".ipynb_checkpoints").mkdir()
    (root / ".ipynb_checkpoints" / name(7)).write_bytes(jpeg(7))
    (root / "extra").mkdir()
    (root / "extra" / "README").touch()
    (root / synset(1) / f"._{name(1)}").touch()
    (root / synset(1) / "Thumbs.db").touch()
    (root / synset(1) / ".ipynb_checkpoints").mkdir()
    valset = open_valset(root)
    assert contents(valset) == expected
    left_out = valset.layout.partition("official labels, without ")[2]
    assert left_out.endswith(", ... (4 in all)")
    assert set(left_out.removesuffix(", ... (4 in all)").split(", ")) < {
        "val.txt", "preview.png", "extra/README", f"{synset(1)}/Thumbs.db",
    }  # fmt: skip


def test_tar_with_more_in_it(tmp_path: Path):
    tar = small.tar_of_folders(tmp_path / "val.tar")
    expected = contents(open_valset(tar))
    with tarfile.open(tar, "a") as archive:
        for extra in (f"val/._{name(1)}", f"val/.cache/{name(2)}", "val/x/notes", "val.txt"):
            archive.addfile(tarfile.TarInfo(extra))
        archive.addfile(_folder("val/n01440764"))
    valset = open_valset(tar)
    assert contents(valset) == expected
    words = "tar of 6 synset folders in val/, checked with the official labels, without x/notes"
    assert valset.layout == words


def _folder(path: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.type = tarfile.DIRTYPE
    return member


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_formats(tmp_path: Path, kind: int):
    names = [f"{'long' * 25}/{name(n)}" for n in NUMBERS]
    valset = open_valset(small.tar(tmp_path / "val.tar", names, kind))
    assert [sample.path for sample in valset.samples] == [name(n) for n in NUMBERS]
    assert valset.read(name(3)) == jpeg(3)


def test_tar_with_a_hard_link(tmp_path: Path):
    """As tar stores a file that has two names."""
    root = small.flat(tmp_path / "flat")
    twin = same_class(6)
    (root / name(twin)).hardlink_to(root / name(6))
    with tarfile.open(tmp_path / "val.tar", "w") as archive:
        archive.add(root, ".")
    assert contents(open_valset(tmp_path / "val.tar")) == contents(open_valset(root))
    (root / name(twin)).rename(root / name(7))
    with tarfile.open(tmp_path / "val.tar", "w") as archive:
        archive.add(root, ".")
    message = refusal(tmp_path / "val.tar")
    assert " is a hard link to " in message
    assert "an image of another class" in message


def same_class(number: int) -> int:
    """Another official image of the class of one."""
    labels = official_labels()
    return 1 + labels.index(labels[number - 1], number)


# Labels


def test_list_for_synset_folders_is_compared(tmp_path: Path):
    """It must not be ignored, nor be trusted more than the folders."""
    root = small.folders(tmp_path / "set")
    rows = {name(n): official_labels()[n - 1] for n in NUMBERS}
    labels = listed(tmp_path / "list.txt", rows)
    assert open_valset(root, labels).layout == (
        "6 synset folders, checked with list.txt and the official labels"
    )
    listed(labels, rows | {name(4): 0})
    assert "(809) by folders, n01440764 (0) by list.txt, " in refusal(root, labels)


@pytest.mark.parametrize("layout", ["flat", "tar"])
def test_labels_of_a_list_by_name(tmp_path: Path, layout: str):
    rows = {f"some/folder/{name(n)}": official_labels()[n - 1] for n in [9, *reversed(NUMBERS)]}
    labels = listed(tmp_path / "val_list.txt", rows)
    valset = open_valset(LAYOUTS[layout](tmp_path / "set"), labels)
    assert valset.layout.endswith("labels of val_list.txt, checked with the official labels")
    assert contents(valset) == contents(open_valset(valset.root))


def test_labels_of_own_photos(tmp_path: Path):
    for number, photo in enumerate(("cat.jpg", "dog one.PNG", "b.jpeg")):
        (tmp_path / photo).write_bytes(jpeg(number))
    labels = listed(tmp_path / "list.txt", {"x/dog one.png": 151, "cat": 281, "b.jpeg": 0})
    valset = open_valset(tmp_path, labels)
    assert valset.layout == "unidentified images, flat files, labels of list.txt"
    assert [(s.path, s.label) for s in valset.samples] == [
        ("b.jpeg", 0), ("cat.jpg", 281), ("dog one.PNG", 151),
    ]  # fmt: skip


def test_ground_truth_of_a_partial_set(tmp_path: Path):
    truth = tmp_path / "ground_truth.txt"
    truth.write_text("".join(f"{(label + 371) % 1000 + 1}\n" for label in official_labels()))
    valset = open_valset(small.flat(tmp_path / "set"), truth)
    assert valset.layout == (
        "flat files, labels of ground_truth.txt (a numbering of its own), checked with the "
        "official labels"
    )
    assert [sample.label for sample in valset.samples] == list(official_labels()[:IMAGES])


def test_list_that_does_not_name_all_images(tmp_path: Path):
    labels = listed(tmp_path / "list.txt", {name(1): 65})
    message = refusal(small.flat(tmp_path / "set"), labels)
    assert f"{name(2)}, {name(3)}, {name(4)}, ... (5 in all): not in list.txt" in message


def test_own_photo_that_a_list_does_not_name(tmp_path: Path):
    for photo in ("cat.jpg", "dog.jpg"):
        (tmp_path / photo).write_bytes(jpeg(1))
    message = refusal(tmp_path, listed(tmp_path / "list.txt", {"cat.jpg": 281}))
    assert "dog.jpg" in message
    assert "nor in list.txt" in message


def test_own_photos_without_a_list(tmp_path: Path):
    (tmp_path / "cat.jpg").write_bytes(jpeg(1))
    message = refusal(tmp_path)
    assert "cat.jpg: neither official names (ILSVRC2012_val_00000001.JPEG)" in message
    assert "--labels FILE (lines of `name index`)" in message


@pytest.mark.parametrize(
    "stray",
    [
        "ILSVRC2012_val_00000001 (1).JPEG",
        "ILSVRC2012_val_00050001.JPEG",
        "ILSVRC2012_test_00000001.JPEG",
        "ilsvrc2012_val_7.jpeg",
    ],
)
def test_names_that_are_almost_official(tmp_path: Path, stray: str):
    root = small.flat(tmp_path / "set")
    (root / stray).write_bytes(jpeg(9))
    assert f"{stray}: not among ILSVRC2012_val_00000001 to _00050000" in refusal(root)


def test_more_strays_than_official_names(tmp_path: Path):
    root = small.flat(tmp_path / "set", images=2)
    for photo in ("a.jpg", "b.jpg", "c.jpg"):
        (root / photo).write_bytes(jpeg(9))
    assert "a.jpg, b.jpg, c.jpg: neither official names" in refusal(root)


@pytest.mark.parametrize("again", ["jpg/{}.jpg", "{}_n01751748.JPEG"])
def test_official_image_twice(tmp_path: Path, again: str):
    root = small.flat(tmp_path / "set")
    other = root / again.format("ILSVRC2012_val_00000001").rpartition("/")[2]
    other.write_bytes(jpeg(1))
    message = refusal(root)
    assert "holds ILSVRC2012_val_00000001 twice: " in message
    assert name(1) in message
    assert other.name in message


def test_image_in_the_wrong_folder(tmp_path: Path):
    root = small.folders(tmp_path / "set")
    (root / synset(1) / name(1)).rename(root / synset(2) / name(1))
    assert refusal(root) == (
        f"--data {root}: labels disagree for 1 of 6 images: {synset(2)}/{name(1)} is "
        f"{synset(2)} (970) by folders, {synset(1)} (65) by the official labels.\n"
        "Files were moved or renamed, or labels edited. The official labels are built in: omit "
        "--labels."
    )


def test_stray_folder_has_shifted_all(tmp_path: Path):
    """As ImageFolder numbers classes, with a folder before the first."""
    rows = {name(n): official_labels()[n - 1] + 1 for n in NUMBERS}
    message = refusal(small.flat(tmp_path / "set"), listed(tmp_path / "list.txt", rows))
    assert "labels disagree for 6 of 6 images" in message
    assert "is n01753488 (66) by list.txt, n01751748 (65) by the official labels; " in message
    assert message.count("by list.txt") == 3
    assert "All are off by +1: list.txt uses another numbering" in message


def test_list_of_some_names_in_another_numbering(tmp_path: Path):
    rows = dict(zip(map(name, NUMBERS), (490, 361, 171, 822, 297, 482), strict=True))
    message = refusal(small.flat(tmp_path / "set"), listed(tmp_path / "list.txt", rows))
    assert "Does list.txt use another numbering (ILSVRC ids)?" in message


def test_kaggle_labels_disagree(tmp_path: Path):
    root = small.kaggle(tmp_path / "set")
    csv = root / "LOC_val_solution.csv"
    csv.write_text(csv.read_text().replace(synset(3), "n01440764"))
    message = refusal(root)
    assert f"{name(3)} is n01440764 (0) by LOC_val_solution.csv, {synset(3)} (230)" in message


def test_kaggle_labels_are_cut(tmp_path: Path):
    root = small.kaggle(tmp_path / "set")
    small.solution(root / "LOC_val_solution.csv", images=4)
    assert f"{name(5)}, {name(6)}: not in LOC_val_solution.csv" in refusal(root)


def test_synset_in_a_name_disagrees(tmp_path: Path):
    root = tmp_path / "set"
    root.mkdir()
    (root / "ILSVRC2012_val_00000001_n01440764.JPEG").write_bytes(jpeg(1))
    assert "is n01440764 (0) by file name, n01751748 (65)" in refusal(root)


def test_parquet_labels_disagree(tmp_path: Path):
    root = small.parquet(tmp_path / "set", label=[1, 2, 3])
    assert "n01443537 (1) by label column" in refusal(root)


# Sets that are none


def test_nothing_there(tmp_path: Path):
    assert "there is no such file or folder" in refusal(tmp_path / "none")


def test_empty_folder(tmp_path: Path):
    assert "no images: it contains nothing" in refusal(tmp_path)


def test_folder_of_something_else(tmp_path: Path):
    for file in ("README.md", "notes.txt", "a", "b"):
        (tmp_path / file).touch()
    message = refusal(tmp_path)
    assert (
        "has no synset folders (n01440764, ...) and no images: it contains README.md, a, b."
        in message
    )
    assert "Give the folder of the 1000 class folders" in message


def test_synset_folders_without_images(tmp_path: Path):
    (tmp_path / "n01440764" / "images").mkdir(parents=True)
    (tmp_path / "n01440764" / "images" / name(293)).write_bytes(jpeg(1))
    assert "its 1 synset folders contain no images" in refusal(tmp_path)


def test_unknown_synsets(tmp_path: Path):
    root = small.folders(tmp_path / "set")
    for stray in ("n00000001", "n00000002", "n00000003", "n00000004"):
        (root / stray).mkdir()
        (root / stray / "a.jpg").write_bytes(jpeg(1))
    message = refusal(root)
    assert "n00000001, n00000002, n00000003, ... (4 in all): not among the 1000" in message


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("archive", [False, True])
def test_numbered_folders(tmp_path: Path, first: int, archive: bool):
    paths = [f"val/{first + n}/{name(n)}" for n in NUMBERS]
    if archive:
        root = small.tar(tmp_path / "val.tar", paths)
    else:
        root = tmp_path / "val"
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True)
            (tmp_path / path).write_bytes(jpeg(1))
    message = refusal(root)
    assert (
        f"has numbered folders ({first + 1}, {first + 2}, {first + 3}, ... (6 in all))" in message
    )
    assert "in others its ILSVRC id" in message


def test_sorting_was_interrupted(tmp_path: Path):
    root = small.folders(tmp_path / "set")
    (root / synset(1) / name(1)).rename(root / name(1))
    message = refusal(root)
    assert f"has 5 images in synset folders and 1 beside them ({name(1)})" in message


def test_training_set(tmp_path: Path):
    root = tmp_path / "train"
    (root / "n01440764").mkdir(parents=True)
    for number in range(51):
        (root / "n01440764" / f"n01440764_{number}.JPEG").touch()
    message = refusal(root)
    assert "51 images of n01440764, 51 in all; the validation set has 50 of each class" in message


def test_file_that_is_no_set(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(jpeg(1) * 3)
    assert "a.jpg is a single image (JPEG)" in refusal(tmp_path / "a.jpg")
    (tmp_path / "list.txt").write_text("a.jpg 1\n")
    assert f"Did you mean --data {tmp_path} --labels " in refusal(tmp_path / "list.txt")
    (tmp_path / "notes").write_text("a.jpg 1\n" * 100)
    assert "is neither a tar nor a parquet file: " in refusal(tmp_path / "notes")
    (tmp_path / "empty").touch()
    assert "is neither a tar nor a parquet file: empty file" in refusal(tmp_path / "empty")


@pytest.mark.parametrize(
    ("mode", "words"),
    [("gz", "gzip"), ("bz2", "bzip2"), ("xz", "xz")],
)
def test_compressed_tar(tmp_path: Path, mode: str, words: str):
    with tarfile.open(tmp_path / "val.tar", f"w:{mode}") as archive:
        archive.addfile(tarfile.TarInfo(name(1)))
    message = refusal(tmp_path / "val.tar")
    assert f"is compressed with {words}: its images cannot be read in place" in message
    assert "Unpack it first" in message


def test_another_compression(tmp_path: Path):
    (tmp_path / "val.tar").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(2000))
    assert "is compressed with zstd" in refusal(tmp_path / "val.tar")


def test_tar_cut_anywhere(tmp_path: Path):
    tar = small.tar(tmp_path / "val.tar")
    data = tar.read_bytes()
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512  # of the last content
    for size in range(700, end + 511, 97):
        tar.write_bytes(data[:size])
        message = refusal(tar)
        assert (
            " is truncated after ILSVRC2012_val_0000000" in message or "is damaged after" in message
        )
        assert "29b22e2961454d5413ddabcf34fc5622" in message
    tar.write_bytes(data[: end + 512])
    assert len(open_valset(tar).samples) == IMAGES


def test_tar_with_a_damaged_header(tmp_path: Path):
    tar = small.tar(tmp_path / "val.tar")
    data = bytearray(tar.read_bytes())
    data[data.index(name(3).encode())] ^= 1
    tar.write_bytes(data)
    assert f"is damaged after {name(4)}" in refusal(tar)


def test_tar_cut_after_it_was_opened(tmp_path: Path):
    tar = small.tar(tmp_path / "val.tar")
    valset = open_valset(tar)
    os.truncate(tar, 1000)
    with pytest.raises(
        DataError, match=r"was truncated while it was read, at ILSVRC2012_val_00000001"
    ):
        valset.read(name(1))


def test_tar_of_the_training_set(tmp_path: Path):
    tar = tmp_path / "ILSVRC2012_img_train.tar"
    with tarfile.open(tar, "w") as archive:
        archive.addfile(tarfile.TarInfo("n01440764.tar"))
    assert "holds tars and no images (n01440764.tar), as the archive of the" in refusal(tar)


def test_tar_with_symbolic_links(tmp_path: Path):
    tar = small.tar(tmp_path / "val.tar")
    with tarfile.open(tar, "a") as archive:
        link = tarfile.TarInfo(name(7))
        link.type, link.linkname = tarfile.SYMTYPE, name(6)
        archive.addfile(link)
    message = refusal(tar)
    assert f"{name(7)} is a link or not a regular file" in message
    assert "--dereference" in message


def test_tar_with_a_name_twice(tmp_path: Path):
    tar = small.tar(tmp_path / "val.tar", [name(1)] * IMAGES)
    assert f"contains {name(1)} twice" in refusal(tar)


@pytest.mark.parametrize(
    "member",
    ["val/../{}", "../{}", "val//{}", "val/./{}", "././{}", "//{}", "a/b/../../{}"],
)
def test_tar_with_a_path_that_leads_elsewhere(tmp_path: Path, member: str):
    """Such images must not be left out silently."""
    tar = small.tar(tmp_path / "val.tar")
    with tarfile.open(tar, "a") as archive:
        archive.addfile(tarfile.TarInfo(member.format(name(7))))
    assert f"{member.format(name(7))} has '.', '..' or '//' in its path" in refusal(tar)


def test_tar_of_several_sets(tmp_path: Path):
    paths = [f"{'ab'[n % 2]}/{name(n)}" for n in NUMBERS]
    assert "has images in several folders: a, b." in refusal(small.tar(tmp_path / "v.tar", paths))
    paths = [f"{('train', 'val')[n % 2]}/{synset(n)}/{name(n)}" for n in NUMBERS]
    assert len(open_valset(small.tar(tmp_path / "v.tar", paths)).samples) == 3


def test_image_file_that_vanishes(tmp_path: Path):
    root = small.flat(tmp_path / "set")
    valset = open_valset(root)
    (root / name(2)).unlink()
    with pytest.raises(DataError, match=r"00000002.JPEG cannot be read: No such file"):
        valset.read(name(2))


def test_broken_link_is_not_left_out(tmp_path: Path):
    root = small.flat(tmp_path / "set")
    (root / name(7)).symlink_to("nowhere.JPEG")
    valset = open_valset(root)
    assert len(valset.samples) == IMAGES + 1
    with pytest.raises(DataError, match=r"is a link to a file that is gone: nowhere\.JPEG\."):
        valset.read(name(7))


def make_special(path: Path, kind: str) -> None:
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))  # a path of a socket must be short
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["FIFO", "socket", "character device"])
@pytest.mark.parametrize("layout", ["flat", "folders"])
def test_only_regular_files_are_images(tmp_path: Path, monkeypatch, kind: str, layout: str):
    """A FIFO would wait for a writer, a device may never end."""
    monkeypatch.chdir(tmp_path)
    root = LAYOUTS[layout](tmp_path / "set")
    expected = contents(open_valset(root))
    make_special(root / "notes.txt", kind)  # not named like an image
    make_special(root / ".hidden.JPEG", kind)
    assert contents(open_valset(root)) == expected
    path = root / ("" if layout == "flat" else synset(1)) / name(7)
    make_special(path, kind)
    assert f"{path} is a {kind}, not a regular file.\nReplace it" in refusal(root)
    (root / "link").symlink_to(path)
    path.rename(root / "x.fifo")
    path.symlink_to(root / "x.fifo")
    assert f"{path} is a {kind}, not a regular file" in refusal(root)


def test_a_file_that_becomes_a_fifo_does_not_hang(tmp_path: Path):
    root = small.flat(tmp_path / "set")
    valset = open_valset(root)
    (root / name(2)).unlink()
    os.mkfifo(root / name(2))
    with pytest.raises(UnreadableImage, match=r"00000002\.JPEG is a FIFO, not a regular file"):
        valset.read(name(2))


def test_a_fifo_is_no_set(tmp_path: Path):
    os.mkfifo(tmp_path / "val.tar")
    assert "val.tar is a FIFO, not a regular file" in refusal(tmp_path / "val.tar")
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data" / "validation-00000-of-00001.parquet")
    assert "00001.parquet is a FIFO, not a regular file" in refusal(tmp_path)


def test_a_link_that_leads_to_itself_is_not_left_out(tmp_path: Path):
    for layout in ("flat", "folders"):
        root = LAYOUTS[layout](tmp_path / layout)
        link = root / ("" if layout == "flat" else synset(7)) / name(7)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(link.name)
        valset = open_valset(root)
        assert len(valset.samples) == IMAGES + 1
        with pytest.raises(UnreadableImage, match="Too many levels of symbolic links"):
            valset.read(str(link.relative_to(root)))


def test_system_errors_are_ours(tmp_path: Path, monkeypatch):
    """As of a disk that fails, or of a folder without permission."""

    def fails(*_):
        raise OSError(5, "Input/output error", str(tmp_path / "set"))

    monkeypatch.setattr(os, "scandir", fails)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / 'set'} cannot be read: Input/output error.")


def test_name_that_is_no_utf8(tmp_path: Path):
    try:
        (tmp_path / os.fsdecode(b"n\xff.jpg")).touch()
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    labels = listed(tmp_path / "list.txt", {"n": 1})
    assert "not valid UTF-8" in refusal(tmp_path, labels)


@pytest.mark.parametrize("what", ["--data", "--labels"])
def test_path_that_is_no_utf8(tmp_path: Path, what: str):
    """No report could name it: better said before anything is measured."""
    root = small.flat(tmp_path / "set")
    labels = listed(tmp_path / "list.txt", {name(n): official_labels()[n - 1] for n in NUMBERS})
    try:
        if what == "--data":
            root = root.rename(tmp_path / os.fsdecode(b"caf\xe9"))
        else:
            labels = labels.rename(tmp_path / os.fsdecode(b"caf\xe9.txt"))
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    message = refusal(root, labels)
    assert message.startswith(what)
    assert "the path is not valid UTF-8" in message
    message.encode()


# Parquet


def shard(root: Path) -> Path:
    return root / "data" / "validation-00000-of-00002.parquet"


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_shards_of_another_split(tmp_path: Path, suffix: str):
    """The only one is read, whatever it is called: which set it is follows from the images."""
    root = small.parquet(tmp_path / "set")
    expected = open_valset(root).samples
    for path in (root / "data").iterdir():
        target = path.with_name(path.name.replace("validation", "train"))
        path.rename(target)
        if suffix == "arrow":
            small.stream(target.with_suffix(".arrow"), pyarrow.parquet.read_table(target))
            target.unlink()
    root = root / "data" if suffix == "arrow" else root
    folder = root if suffix == "arrow" else root / "data"
    found = open_valset(root)
    assert found.image_set.is_val
    assert [(each.name, each.label) for each in found.samples] == [
        (each.name, each.label) for each in expected
    ]
    for other in ("test", "extra"):
        first = sorted(folder.iterdir())[0]
        beside = folder / f"{other}-00000-of-00001.{suffix}"
        shutil.copy(first, beside)
        message = refusal(root)
        assert "has shards of several splits, none of them for validation alone: " in message
        assert "Give those of one: a file, or a range" in message
        beside.unlink()


def test_other_splits_beside(tmp_path: Path):
    root = small.parquet(tmp_path / "set")
    shutil.copy(shard(root), root / "data" / "train-00000-of-00294.parquet")
    assert len(open_valset(root).samples) == IMAGES


def test_test_split_has_no_labels(tmp_path: Path):
    root = small.parquet(tmp_path / "set", label=[-1, -1, -1])
    assert "row 0: label -1 is not in 0..999.\nIs this the test split?" in refusal(root)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [{"bytes": b"a", "path": [1]}] * 3}, "no column of image files (the column ima"),
        ({"image": ["a", "b", "c"]}, "no column of image files (the column image holds string)"),
        ({"image": [{"path": "a"}] * 3}, "no column of image files"),
        ({"image": [b"a"] * 3, "img": [b"a"] * 3}, "no column of image files (image and img of "),
        ({"label": [[1], [2], [3]]}, "the column label holds list<element: int64> instead of"),
        ({"label": [True] * 3}, "the column label holds bool instead of labels"),
        ({"label": [0.5, 1, 2]}, "cannot be read as parquet: Float value 0.5"),
        ({"label": [None, 1, 2]}, "row 0: label None is not in 0..999"),
        ({"label": ["cat", "dog", "cow"]}, "row 0: the column label holds text: cat, which is no"),
        ({"label": ["crane", "dog", "cow"]}, "crane, which is the name of several classes"),
        (
            {"label": [516, 970, 809], "cls": [516, 970, 1]},
            "(809) by its label, n01443537 (1) by its cls",
        ),
    ],
)
def test_other_columns(tmp_path: Path, columns: dict[str, list[object]], message: str):
    assert message in refusal(small.parquet(tmp_path / "set", **columns))


def test_image_without_bytes(tmp_path: Path):
    images = [{"bytes": None, "path": name(n)} for n in (5, 2, 4)]
    root = small.parquet(tmp_path / "set", image=images)
    valset = open_valset(shard(root))
    with pytest.raises(DataError, match="has no bytes of "):
        valset.read(valset.samples[0].path)


def test_shard_without_rows(tmp_path: Path):
    table = pyarrow.parquet.read_table(shard(small.parquet(tmp_path / "set")))
    pyarrow.parquet.write_table(table.slice(0, 0), tmp_path / "0000.parquet")
    assert "its shards have no rows" in refusal(tmp_path / "0000.parquet")


def test_cut_shard(tmp_path: Path):
    root = small.parquet(tmp_path / "set")
    data = shard(root).read_bytes()
    shard(root).write_bytes(data[:-100])
    assert "validation-00000-of-00002.parquet cannot be read as parquet: " in refusal(root)


def test_shard_damaged_after_it_was_opened(tmp_path: Path):
    valset = open_valset(small.parquet(tmp_path / "set"))
    os.truncate(shard(tmp_path / "set"), 100)
    with pytest.raises(DataError, match="cannot be read as parquet"):
        valset.read(valset.samples[0].path)


def test_without_pyarrow(tmp_path: Path, monkeypatch):
    root = small.parquet(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match=r'pip install "pplcnet-eval\[arrow\]"'):
        open_valset(root)


def test_other_layouts_do_not_need_pyarrow(tmp_path: Path):
    """Nor anything else that takes long to import."""
    code = (
        "import sys; from pathlib import Path; from eval.images.valset import open_valset;"
        f"open_valset(Path({str(small.flat(tmp_path / 'set'))!r}));"
        "print({'pyarrow', 'numpy', 'torch', 'cv2', 'PIL'} & set(sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "set()\n"


def test_whole_tar_in_memory_is_not_needed(tmp_path: Path):
    """Only headers are read: 3 GiB of zeros, which a sparse file has for nothing, are skipped."""
    tar = tmp_path / "val.tar"
    header = tarfile.TarInfo(name(1))
    header.size = 3 << 30
    with tar.open("wb") as file:
        file.write(header.tobuf())
        file.seek(header.size, io.SEEK_CUR)
        other = tarfile.TarInfo(name(2))
        other.size = 5
        file.write(other.tobuf() + b"hello".ljust(512, b"\0") + bytes(1024))
    assert open_valset(tar).read(name(2)) == b"hello"
