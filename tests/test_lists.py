"""Lists of images and classes in the forms that people have them, and which file a line is of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import small_valsets as small
from small_valsets import jpeg

from eval.errors import DataError
from eval.images.classes import read_classes
from eval.images.labels import read_labels
from eval.images.valset import open_valset

TITLES = {"a.jpg": "tench, Tinca tinca", "b c.jpg": "American_alligator", "d.jpg": "hen"}
EXPECTED = {"a": 0, "b c": 50, "d": 8}  # tench, alligator and hen
SYNSETS = {"a.jpg": "n01440764", "b c.jpg": "n01698640", "d.jpg": "n01514859"}
INDICES = {"a.jpg": "0", "b c.jpg": "50", "d.jpg": "8"}


def lines(row: str, codes: Mapping[str, str] = INDICES, header: str = "") -> str:
    return header + "".join(
        row.format(n=n, name=name, code=code) + "\n" for n, (name, code) in enumerate(codes.items())
    )


LISTS = {
    "comma": lines("{name},{code}"),
    "comma and blank": lines("{name}, {code}"),
    "comma, header": lines("{name},{code}", header="filename,label\n"),
    "header in capitals": lines("{name},{code}", header="ImageID,Label\n"),
    "label first": lines("{code},{name}", header="class,image\n"),
    "quoted": lines('"{name}","{code}"', header='"filename","label"\n'),
    "quoted titles": lines('{name},"{code}"', TITLES, "filename,label\n"),
    "semicolon": lines("{name};{code}", header="filename;label\n"),
    "semicolon without header": lines("{name};{code}"),
    "tab": lines("{name}\t{code}"),
    "tab, header": lines("{name}\t{code}", header="filename\tlabel\n"),
    "pandas": lines("{n},{name},{code}", header=",filename,label\n"),
    "pandas, named index": lines("{n},{name},{code}", header="index,filename,label\n"),
    "pandas without header": lines("{n},{name},{code}"),
    "floats": lines("{name},{code}.0", header="filename,label\n"),
    "floats and blanks": lines("{name} {code}.0"),
    "synsets": lines("{name},{code}", SYNSETS, "image,class\n"),
    "synsets and tabs": lines("{name}\t{code}", SYNSETS),
    "titles": lines("{name} {code}", TITLES),
    "titles and tabs": lines("{name}\t{code}", TITLES),
    "code first": lines("{code} {name}"),
    "synset first": lines("{code} {name}", SYNSETS),
    "comment": lines("{name} {code}", header="# name index\n"),
    "header with blanks": lines("{name} {code}", header="name index\n"),
    "two labels": "file,label,synset\na.jpg,0,n01440764\nb c.jpg,50,n01698640\nd.jpg,8,n01514859\n",
    "two labels without header": "a.jpg,n01440764,tench\nb c.jpg,n01698640,American alligator\n"
    "d.jpg,n01514859,hen\n",
    "boxes": lines("{name}\t{code}\t3\t4\t62\t63", SYNSETS),  # as Tiny ImageNet has them
    "Kaggle": lines("{name},{code} 1 2 3 4", SYNSETS, "ImageId,PredictionString\n"),
    "Kaggle, semicolon": lines("{name};{code} 1 2 3 4", SYNSETS, "ImageId;PredictionString\n"),
    "Kaggle, pandas": lines("{n},{name},{code} 1 2", SYNSETS, ",ImageId,PredictionString\n"),
    "JSON": json.dumps(INDICES),
    "JSON of numbers": json.dumps({name: int(code) for name, code in INDICES.items()}),
    "JSON of floats": json.dumps({name: float(code) for name, code in INDICES.items()}),
    "JSON of pairs": json.dumps([[name, int(code)] for name, code in INDICES.items()]),
    "JSON of objects": json.dumps([{"File_Name": n, "label": c} for n, c in TITLES.items()]),
    "JSON lines": lines('{{"filename": "{name}", "label": {code}}}'),
    "another system": lines("{name},{code}").replace("\n", "\r\n"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists(tmp_path: Path, kind: str) -> None:
    (tmp_path / "list").write_bytes(LISTS[kind].encode())
    assert read_labels(tmp_path / "list").label_of == EXPECTED


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
def test_utf_16(tmp_path: Path, order: str) -> None:
    """As a shell of Windows writes it."""
    (tmp_path / "list").write_bytes(f"\ufeff{LISTS['comma, header']}".encode(order))
    assert read_labels(tmp_path / "list").label_of == EXPECTED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg,1,2\nb.jpg,7,8\n", "columns 2 and 3 could both be the label"),
        ("a.jpg,tench,n01440764\nb.jpg,hen,n01440764\n", "columns 2 and 3 could both be the label"),
        ("a.jpg,c.png,2\nb.jpg,d.png,8\n", "columns 1 and 2 could both be the name"),
        ("file,label,class\na.jpg,1,1\nb.jpg,1,2\n", ("line 3: label (1) and class (2) could both "
         "be the label of b.jpg")),
        ("file,label,label\na.jpg,1,1\n", "more than one column label"),
        ("file,label\na.jpg,1,2\n", "line 2 has 3 of 2 columns"),
        ("file,label\na.jpg,\n", "line 2 is not an image name and a class: a.jpg"),
        ("a.jpg,crane\n", "line 1 has crane, which is the name of the classes 134 and 517"),
        ("a.jpg,1.5\n", "has the columns a.jpg, 1.5, without a name"),
        ('{"a.jpg": true}', 'not an image and a class: {"name": "a.jpg", "label": true}'),
        ('{"a.jpg": [1, 2]}', "entry 1 is not an image and a class"),
        ("[7]", "entry 1 is not an image and a class: 7"),
        ('{"a.jpg": 1\n', "line 1 is not JSON"),
        (f"[{'[' * 100_000}", "line 1 is not JSON"),
        ("# nothing\n", "lists no images"),
        ("{}", "lists no images"),
    ],
)  # fmt: skip
def test_lists_that_are_not_clear(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list").write_text(text)
    with pytest.raises(DataError) as caught:
        read_labels(tmp_path / "list")
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == 1


def test_a_list_of_line_ends(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("\n" * 2_000_001)
    for read in (read_labels, read_classes):
        with pytest.raises(DataError, match="has 2,000,001 lines, too many for a "):
            read(tmp_path / "list")


# Paths


def photos(root: Path, *paths: str) -> Path:
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(jpeg(number))
    return root


def listed(root: Path, text: str, name: str = "val_list.txt") -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    return root / name


def test_paths_relative_to_the_set(tmp_path: Path) -> None:
    """PaddleClas's own sets: a list beside a folder of images, which are not sorted by class."""
    root = photos(tmp_path / "set", "jpg/image_1.jpg", "jpg/image_2.jpg", "jpg/image_3.jpg")
    valset = open_valset(root, listed(root, "jpg/image_1.jpg 7\njpg/image_3.jpg 8\n"))
    assert valset.layout == (
        "unidentified images, listed files, labels of val_list.txt, without jpg/image_2.jpg"
    )
    assert [(s.path, s.label) for s in valset.samples] == [
        ("jpg/image_1.jpg", 7), ("jpg/image_3.jpg", 8),
    ]  # fmt: skip
    assert valset.read("jpg/image_3.jpg") == jpeg(2)


def test_paths_relative_to_the_list(tmp_path: Path) -> None:
    root = photos(tmp_path / "set", "a/b/1.jpg", "a/c/1.jpg")
    labels = listed(tmp_path / "set", "a/b/1.jpg 7\na/c/1.jpg 8\n")
    valset = open_valset(root / "a", labels)
    assert [(s.path, s.label) for s in valset.samples] == [("a/b/1.jpg", 7), ("a/c/1.jpg", 8)]


def test_paths_from_the_only_folder(tmp_path: Path) -> None:
    """Tiny ImageNet's `val_annotations.txt` lies beside the folder of its images."""
    root = photos(tmp_path / "val", "images/val_0.JPEG", "images/val_1.JPEG")
    with pytest.raises(DataError, match=r"Did you mean --data .*/val/images\?"):
        open_valset(root)
    labels = listed(root, "val_0.JPEG\tn01440764\t1\t2\nval_1.JPEG\tn01443537\t3\t4\n")
    valset = open_valset(root, labels)
    assert [(s.path, s.label) for s in valset.samples] == [("val_0.JPEG", 0), ("val_1.JPEG", 1)]


def test_two_files_of_one_name(tmp_path: Path) -> None:
    root = photos(tmp_path / "set", "a/001.jpg", "b/001.jpg")
    labels = listed(root, "a/001.jpg 0\nb/001.jpg 1\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    valset = open_valset(root, labels, read_classes(tmp_path / "classes.txt"))
    assert [(s.path, s.label) for s in valset.samples] == [("a/001.jpg", 0), ("b/001.jpg", 1)]


def test_class_folders_are_claims(tmp_path: Path) -> None:
    root = photos(tmp_path / "set", "n01440764/1.jpg", "n01443537/1.jpg")
    labels = listed(root, "/elsewhere/val/n01440764/1.jpg 0\n/elsewhere/val/n01443537/1.jpg 1\n")
    assert open_valset(root, labels).layout == (
        "unidentified images, 2 synset folders, checked with val_list.txt"
    )
    listed(root, "n01440764/1.jpg 1\nn01443537/1.jpg 0\n")
    with pytest.raises(DataError, match="labels disagree for 2 of 2 images"):
        open_valset(root, labels)


def test_lines_that_fit_two_files(tmp_path: Path) -> None:
    root = photos(tmp_path / "set", "n01440764/1.jpg", "n01443537/1.jpg")
    with pytest.raises(DataError, match=r"n01440764/1\.jpg and n01443537/1\.jpg are one line of "):
        open_valset(root, listed(root, "1.jpg 0\n"))
    root = photos(tmp_path / "flat", "1.jpg")
    with pytest.raises(DataError, match=r"lists a/1, b/1, each of which may be 1\.jpg"):
        open_valset(root, listed(tmp_path, "a/1.jpg 0\nb/1.jpg 1\n"))


@pytest.mark.parametrize("path", ["../outside.jpg", "/outside.jpg", "jpg/none.jpg", "jpg/notes"])
def test_lists_of_files_that_are_not_there(tmp_path: Path, path: str) -> None:
    """The list does not help then: the error is that of the folder."""
    root = photos(tmp_path / "set", "jpg/1.jpg", "jpg/notes")
    photos(tmp_path, "outside.jpg")
    with pytest.raises(DataError, match="itself is not a validation set"):
        open_valset(root, listed(root, f"jpg/1.jpg 7\n{path} 8\n"))


def test_the_same_set_by_a_list_and_by_folders(tmp_path: Path) -> None:
    root = small.folders(tmp_path / "set")
    rows = [f"{path.relative_to(tmp_path)}" for path in sorted(root.rglob("*.JPEG"))]
    labels = [open_valset(root).samples[n].label for n in range(len(rows))]
    text = "".join(f"{row},{label}\n" for row, label in zip(rows, labels, strict=True))
    valset = open_valset(root, listed(tmp_path, text, "list.csv"))
    assert valset.image_set.is_val
    assert valset.samples == open_valset(root).samples
