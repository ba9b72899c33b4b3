"""Sets, lists and classes in forms that a checker of the project came with, one row for each."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import small_valsets as small
from small_valsets import jpeg

from eval.data import main as data_main
from eval.errors import DataError
from eval.images.classes import IMAGENET, ClassList, ImageClass, read_classes
from eval.images.layouts.archives import EACH
from eval.images.valset import ValSet, fingerprint, open_valset

SYNSETS = ("n01440764", "n01443537", "n01514859")  # the classes 0, 1 and 8
LABELS = (0, 1, 8)
TITLES = ("tench, Tinca tinca", "goldfish, Carassius auratus", "hen")
Files = Mapping[str, bytes]
GIT_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def files(name: str = "{i}.jpg", **beside: Callable[[int], str | bytes]) -> dict[str, bytes]:
    """Three images, and files of the same key with these suffixes ("_" stands for a dot)."""
    found: dict[str, bytes] = {}
    for i, synset in enumerate(SYNSETS):
        words = {"i": i, "synset": synset, "label": LABELS[i], "title": TITLES[i].split(",")[0]}
        found[name.format(**words)] = jpeg(i)
        for suffix, text in beside.items():
            content = text(i)
            data = content if isinstance(content, bytes) else content.encode()
            found[f"{i}.{suffix.replace('_', '.')}"] = data
    return found


def tarred(path: Path, content: Files) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def unpacked(root: Path, content: Files) -> Path:
    for name, data in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def labels(valset: ValSet) -> list[int]:
    return [sample.label for sample in sorted(valset.samples, key=lambda sample: sample.name)]


def digest(valset: ValSet) -> str:
    return fingerprint(valset.samples, [str(hash(valset.read(s.path))) for s in valset.samples])


def refusal(data: Path, lists: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        open_valset(data, lists)
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        files(cls=lambda i: f"{LABELS[i]}.0\n"),
        files(cls=lambda i: TITLES[i]),
        files(cls_txt=lambda i: str(LABELS[i])),
        files(txt=lambda i: str(LABELS[i]).encode("utf-16")),
        files("{i}.input.jpg", output_cls=lambda i: str(LABELS[i])),
        files(json=lambda i: json.dumps({"label": LABELS[i], "class_name": TITLES[i]})),
    ],
)
def test_labels_beside_images(tmp_path: Path, content: Files) -> None:
    assert labels(open_valset(tarred(tmp_path / "a.tar", content))) == list(LABELS)


def test_what_an_object_beside_an_image_says_must_agree(tmp_path: Path) -> None:
    said = {"label": 1, "class_name": "tench"}
    tar = tarred(tmp_path / "a.tar", files(json=lambda i: json.dumps(said)))
    assert refusal(tar) == (
        "0.json: label (1) and class_name (tench) could both be the label.\n"
        "Keep only the one that is."
    )


# Classes 0 to 3, of which 0 and 3 have each other's number as the name.
NUMBERS = ClassList("numbers.txt", tuple(ImageClass(name, f"no. {name}") for name in "3120"))
WAY_ON = "Give the classes of numbers.txt names that are no numbers, such as class_3; a number is "
Write = Callable[[Path, int | str], tuple[Path, Path | None]]


def a_list(text: str, suffix: str) -> Write:
    """A list of one image; "?" stands for its label, in quotes if it is text."""

    def write(root: Path, label: int | str) -> tuple[Path, Path]:
        unpacked(root, {"0.jpg": jpeg(0)})
        (root.parent / f"list.{suffix}").write_text(text.replace("?", json.dumps(label)))
        return root, root.parent / f"list.{suffix}"

    return write


def a_column(root: Path, label: int | str) -> tuple[Path, None]:
    root.mkdir(parents=True)
    rows = pyarrow.table({"image": [jpeg(0)], "label": [label], "filename": ["0.jpg"]})
    pyarrow.parquet.write_table(rows, root / "x.parquet")
    return root, None


def beside(name: str, text: str) -> Write:
    def write(root: Path, label: int | str) -> tuple[Path, None]:
        content = text.replace("?", json.dumps(label))
        return unpacked(root, {"0.jpg": jpeg(0), name: content.encode()}), None

    return write


PLACES: dict[str, Write] = {
    "0.json: ": beside("0.json", '{"label": ?}'),
    "metadata.jsonl: ": beside("metadata.jsonl", '{"file_name": "0.jpg", "label": ?}'),
    "x.parquet, row 0: the column label: ": a_column,
    "list.json, line 1: ": a_list('{"0.jpg": ?}', "json"),
}
TEXTS: dict[str, Write] = {
    "0.cls: ": lambda root, label: beside("0.cls", str(label))(root, ""),
    "0.txt: ": lambda root, label: beside("0.txt", str(label))(root, ""),
    "metadata.csv: ": beside("metadata.csv", "file_name,label\n0.jpg,?\n"),
    "list.csv, line 2: ": a_list("filename,label\n0.jpg,?\n", "csv"),
    "list.txt, line 1: ": lambda root, label: a_list(f"0.jpg {label}\n", "txt")(root, ""),
}


@pytest.mark.parametrize("where", [*PLACES, *TEXTS])
def test_a_number_that_is_the_name_of_another_class(where: str, tmp_path: Path) -> None:
    """A list of classes in the order of text ("1", "10", "2"), or numbered from 1, has them."""
    write = {**PLACES, **TEXTS}[where]
    data, lists = write(tmp_path / "same" / "val", "1")
    assert labels(open_valset(data, lists, NUMBERS)) == [1]
    data, lists = write(tmp_path / "other" / "val", "3")
    with pytest.raises(DataError) as caught:
        open_valset(data, lists, NUMBERS)
    _, text = str(caught.value).split(where)
    assert text == (
        "the label 3 may be the index 3 (0) or the name of class 0.\n" + WAY_ON + "an index then."
    )
    renamed = ClassList("numbers.txt", (ImageClass("class_3", ""), *NUMBERS.rows[1:]))
    assert labels(open_valset(data, lists, renamed)) == [3]


@pytest.mark.parametrize("where", PLACES)
def test_a_number_that_is_no_text_is_an_index(where: str, tmp_path: Path) -> None:
    data, lists = PLACES[where](tmp_path / "val", 3)
    assert labels(open_valset(data, lists, NUMBERS)) == [3]


def test_a_number_that_is_a_name_and_no_index(tmp_path: Path) -> None:
    """-1, too, which else says nothing."""
    for name in ("12", "-1"):
        classes = ClassList("x", (ImageClass(name, ""), ImageClass("b", "")))
        data = unpacked(tmp_path / name, {"0.jpg": jpeg(0), "0.cls": name.encode()})
        with pytest.raises(DataError, match=f"label {name} is the name of class 0, and no index 0"):
            open_valset(data, None, classes)


def test_names_of_a_shard_that_count_its_classes(tmp_path: Path) -> None:
    rows = pyarrow.table({"image": [jpeg(0)], "label": [3], "filename": ["0.jpg"]})
    pyarrow.parquet.write_table(small.hugging_face(rows, list("0123")), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="the names of its classes: the label 0 may be the index 0"):
        open_valset(tmp_path, None, NUMBERS)
    named = small.hugging_face(rows, list("3210"))
    pyarrow.parquet.write_table(named, tmp_path / "x.parquet")
    assert labels(open_valset(tmp_path, None, NUMBERS)) == [3]


def test_two_columns_of_a_list_that_are_numbers(tmp_path: Path) -> None:
    """An index and the number that is the name of its class."""
    unpacked(tmp_path / "val", {"0.jpg": jpeg(0)})
    for label, message in (("1", "label .1. and class_name .3. could both"), ("3", "the index 3")):
        (tmp_path / "x.csv").write_text(f"filename,label,class_name\n0.jpg,{label},3\n")
        with pytest.raises(DataError, match=message):
            open_valset(tmp_path / "val", tmp_path / "x.csv", NUMBERS)
    (tmp_path / "x.json").write_text('[{"filename": "0.jpg", "label": 3, "class_name": "3"}]')
    with pytest.raises(DataError, match=r"label \(3\) and class_name \(3\) could both be"):
        open_valset(tmp_path / "val", tmp_path / "x.json", NUMBERS)


def test_files_beside_images_that_are_not_read(tmp_path: Path) -> None:
    pickled = tarred(tmp_path / "p.tar", files(cls=lambda i: pickle.dumps(LABELS[i])))
    assert refusal(pickled).startswith("0.cls is not a class: a pickle.\n")
    indexed = tarred(tmp_path / "i.tar", files(index=lambda i: str(i)))
    assert "0.index, beside 0.jpg, is not read as one.\nName such files .cls" in refusal(indexed)


@pytest.mark.parametrize("name", ["s-{00..01}.tar", "s-{00,01}.tar", "s-*.tar", ""])
def test_shards_by_their_names(tmp_path: Path, name: str) -> None:
    content = list(files(cls=lambda i: str(LABELS[i])).items())
    tarred(tmp_path / "val" / "s-00.tar", dict(content[:2]))
    tarred(tmp_path / "val" / "s-01.tar", dict(content[2:]))
    tarred(tmp_path / "train" / "s-00.tar", dict(content))
    valset = open_valset(tmp_path / "val" / name if name else tmp_path)
    assert digest(valset) == digest(open_valset(unpacked(tmp_path / "out", dict(content))))
    assert labels(valset) == list(LABELS)


def test_webdatasets_own_addresses(tmp_path: Path) -> None:
    for name in (f"pipe:cat {tmp_path}/a.tar", f"{tmp_path}/a.tar::{tmp_path}/b.tar"):
        assert refusal(Path(name)).endswith("name them as in 'x-{00..63}.tar'.")


@pytest.mark.parametrize(
    "name",
    ["{label:04}_{title}/{i}.jpg", "{label}_{synset}/{i}.jpg", "{title}_{synset}/{i}.jpg",
     "{synset}_{i}.jpg", "{i}_{synset}.jpg"],
)  # fmt: skip
def test_classes_in_names(tmp_path: Path, name: str) -> None:
    assert labels(open_valset(unpacked(tmp_path, files(name)))) == list(LABELS)


def test_a_number_that_is_not_that_of_the_title(tmp_path: Path) -> None:
    content = {f"{9 - i}_{title}/a.jpg": jpeg(i) for i, title in enumerate(("tench", "hen"))}
    assert "not one class of ILSVRC2012 each, without doubt" in refusal(unpacked(tmp_path, content))


def zipped(path: Path, content: Files) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def test_zips_of_windows(tmp_path: Path) -> None:
    content = files("val/{synset}/{i}.jpg")
    path = zipped(tmp_path / "val.zip", content)
    data = path.read_bytes()
    for name in content:
        data = data.replace(name.encode(), name.replace("/", "\\").encode())
    path.write_bytes(data)
    assert labels(open_valset(path)) == list(LABELS)


def test_a_zip_with_a_password(tmp_path: Path) -> None:
    path = zipped(tmp_path / "val.zip", {"n01440764/0.jpg": jpeg(0)})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert refusal(path) == (
        f"--data {path} is encrypted: n01440764/0.jpg needs a password.\n"
        f"Unpack it: unzip {path} -d FOLDER"
    )


def test_tars_of_the_training_set(tmp_path: Path) -> None:
    zipped(tmp_path / "a.zip", {"n01440764.tar": b""})
    assert refusal(tmp_path / "a.zip").endswith(f"Unpack it, and then those: {EACH}")
    for synset in SYNSETS:
        tarred(tmp_path / "train" / f"{synset}.tar", files())
    assert refusal(tmp_path / "train").endswith(f"into a folder of its name: {EACH}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GIT_LFS, "is a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>login", "is a web page"),
    ],
)
def test_what_was_downloaded_is_not_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("val.tar", "val.parquet"):
        (tmp_path / name).write_bytes(content)
        assert message in refusal(tmp_path / name)


def test_all_compressed_shards_are_named(tmp_path: Path) -> None:
    for name in ("0.tar.gz", "1.tar.gz"):
        (tmp_path / name).write_bytes(b"\x1f\x8b\x08\0")
    assert refusal(tmp_path).endswith(f"gunzip {tmp_path}/*.tar.gz")


def test_what_was_meant_by_a_path(tmp_path: Path) -> None:
    unpacked(tmp_path / "wrapped" / "imagenet" / "ILSVRC" / "val", files("{synset}/{i}.jpg"))
    meant = tmp_path / "wrapped" / "imagenet" / "ILSVRC" / "val"
    assert refusal(tmp_path / "wrapped").endswith(f"Did you mean --data {meant}?")
    assert refusal(tmp_path / "warpped").endswith(f"Did you mean {tmp_path / 'wrapped'}?")
    assert refusal(tmp_path / "x" / "y").endswith(f"{tmp_path} has no x.")
    assert "hf download ILSVRC/imagenet-1k " in refusal(Path("ILSVRC/imagenet-1k"))
    (tmp_path / "dataset_dict.json").write_text("{}")
    assert refusal(tmp_path / "dataset_dict.json").endswith(f"Did you mean --data {tmp_path}?")


def test_images_that_are_not_where_or_what_they_should_be(tmp_path: Path) -> None:
    deep = unpacked(tmp_path / "deep", files("{synset}/images/{i}.jpg"))
    assert "but folders with images, as n01" in refusal(deep)
    bare = unpacked(tmp_path / "bare", {"n01440764/0": jpeg(0)})
    assert "n01440764/0 is an image (JPEG) without the suffix" in refusal(bare)


# Lists


def listed(tmp_path: Path, text: str) -> tuple[Path, Path]:
    (tmp_path / "list.txt").write_text(text)
    return unpacked(tmp_path / "val", files()), tmp_path / "list.txt"


@pytest.mark.parametrize(
    ("row", "header"),
    [
        ("{i}.jpg|{label}", "filename|label\n"),
        ("{i}.jpg|{label}", ""),
        ("{i}.jpg: {label}", ""),
        ("{i},{label}", "id,label\n"),
        ("{i}.jpg,{label}", "Image Name,Class Label\n"),
        ("/val/{synset}/{i}.jpg {label}", ""),
    ],
)
def test_lists(tmp_path: Path, row: str, header: str) -> None:
    words = [{"i": i, "label": LABELS[i], "synset": SYNSETS[i]} for i in range(3)]
    text = header + "".join(row.format(**each) + "\n" for each in words)
    assert labels(open_valset(*listed(tmp_path, text))) == list(LABELS)


def test_folders_in_a_list_are_claims(tmp_path: Path) -> None:
    text = "".join(f"/val/{SYNSETS[i]}/{i}.jpg {LABELS[i] + 1}\n" for i in range(3))
    message = refusal(*listed(tmp_path, text))
    assert "0.jpg is n01440764 (0) by its folder in list.txt, n01443537 (1) by list.txt" in message
    assert "The official labels" not in message


def test_columns_that_are_not_known(tmp_path: Path) -> None:
    message = refusal(*listed(tmp_path, "bild,klasse\n0.jpg,0\n1.jpg,1\n2.jpg,8\n"))
    assert "has the columns bild, klasse, without a name that says which is what.\n" in message


# Classes


@pytest.mark.parametrize(
    "text",
    [
        '["a", "b"]',
        '{"label2id": {"b": 1, "a": 0}}',
        '{"class_to_idx": {"a": 0, "b": 1}}',
        '{"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}',
        "{0: 'a',\n 1: 'b'}",
    ],
)
def test_documents_of_classes(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    assert [row.folder for row in read_classes(tmp_path / "c.json").rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names:\n  0: a\n  1: b\n", "line 1 is YAML (names:)"),
        ("- a\n- b\n", "line 1 is YAML (- a)"),
        ("{1, 2}", "does not give each of the indices"),
        ("{__import__('os')}", "is not JSON"),
        ("a x\na y\n", "a tab follows it"),
    ],
)
def test_classes_that_are_not_read(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(DataError) as caught:
        read_classes(tmp_path / "c.txt")
    assert message in str(caught.value)


def test_imagenets_own_titles_need_no_list(tmp_path: Path) -> None:
    titles = [row.title for row in IMAGENET.rows]
    (tmp_path / "c.txt").write_text("\n".join(title.partition(",")[0] for title in titles))
    (tmp_path / "c.json").write_text(json.dumps({"id2label": dict(enumerate(titles))}))
    for name in ("c.txt", "c.json"):
        with pytest.raises(DataError, match="ImageNet's own classes: omit --classes"):
            read_classes(tmp_path / name)


# Parquet


def parquet(path: Path, **columns: Sequence[object]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), path)
    return path


def test_numbers_as_text_and_names_of_files(tmp_path: Path) -> None:
    images = [{"bytes": jpeg(i), "path": f"{i}.jpg"} for i in range(3)]
    path = parquet(
        tmp_path / "a.parquet", image_id=["x", "y", "z"], image=images, label=["0", "1", "8"]
    )
    valset = open_valset(path)
    assert labels(valset) == list(LABELS)
    plain = open_valset(unpacked(tmp_path / "plain", files("{synset}/{i}.jpg")))
    assert digest(valset) == digest(plain)


def test_the_command_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = tarred(tmp_path / "a.tar", {"n01440764.tar": b""})
    assert data_main(["--data", str(tar)]) == 3
    assert capsys.readouterr().err.count("\n") == 2
