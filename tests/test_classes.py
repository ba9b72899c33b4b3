"""Other classes than ImageNet's: the file that lists them, and validation sets of them."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
import small_valsets as small
from hypothesis import given
from hypothesis import strategies as st
from small_valsets import jpeg

from eval.data import main
from eval.errors import DataError
from eval.images.classes import (
    IMAGENET,
    ImageClass,
    ImageNetClass,
    imagenet_classes,
    read_classes,
)
from eval.images.sets import IMAGE_SETS, VAL
from eval.images.valset import open_valset

PETS = "dog\tDog, man's best friend\ncat  Tabby cat\n10 Ten\n2\n"  # in no order that sorting gives


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    (tmp_path / "pets.txt").write_text(PETS)
    return tmp_path / "pets.txt"


def folders(root: Path, *paths: str) -> Path:
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"" if path.endswith(".txt") else jpeg(number))
    return root


def refusal(text: str | bytes, tmp_path: Path) -> str:
    path = tmp_path / "classes.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        read_classes(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.count("\n") == 1
    return message


# The list


def test_imagenet():
    assert len(IMAGENET) == 1000
    assert IMAGENET.rows[65] == ImageClass("n01751748", "sea snake")
    assert IMAGENET.index_of["n15075141"] == 999
    assert [IMAGENET.title(label) for label in (134, 517)] == ["crane (134)", "crane (517)"]
    titles = [IMAGENET.title(label) for label in range(1000)]
    assert len(set(titles)) == 1000
    assert not [title for title in titles if "," in title]


def test_order_is_that_of_the_file(pets: Path):
    classes = read_classes(pets)
    assert classes.name == "pets.txt"
    assert classes.rows == (
        ("dog", "Dog, man's best friend"),
        ("cat", "Tabby cat"),
        ("10", "Ten"),
        ("2", "2"),
    )
    assert classes.index_of == {"dog": 0, "cat": 1, "10": 2, "2": 3}
    assert len(classes) == 4
    assert [classes.title(label) for label in (0, 1, 3)] == ["Dog (0)", "Tabby cat (1)", "2 (3)"]


@pytest.mark.parametrize(
    "text", ["a A\nb B\n", "a A\nb B", "\ufeffa A\r\nb B\r\n\r\n", "a\tA\nb  \u00a0B \n \n"]
)
def test_line_ends_and_blanks_do_not_matter(tmp_path: Path, text: str):
    (tmp_path / "c.txt").write_bytes(text.encode())
    assert read_classes(tmp_path / "c.txt").rows == (("a", "A"), ("b", "B"))


def test_a_tab_lets_names_have_blanks(tmp_path: Path):
    (tmp_path / "c.txt").write_text("golden retriever\tGolden Retriever\nborder collie\t\n")
    assert read_classes(tmp_path / "c.txt").rows == (
        ("golden retriever", "Golden Retriever"),
        ("border collie", "border collie"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("a\nb\na\n", "line 3: a is already on line 1"),
        ("a\n\nb\n", "line 2 has no name, which would shift the classes below it"),
        ("\na\n", "line 1 has no name"),
        ("a\n\tTitle\n", "line 2 has no name"),
        ("val/a\n", "line 1 has the path val/a"),
        ("a\nval\\b\n", r"line 2 has the path val\b"),
        ("a\n..\n", "line 2 has ..: hidden folders, '.' and '..' are not classes"),
        (".\n", "line 1 has ."),
        (".git\n", "line 1 has .git"),
        ("a\n/\n", "line 2 has the path /"),
        ("a \x1b[31mred\n", "line 1 has characters that cannot be printed: "),
        ("a\0b\n", "line 1 has characters that cannot be printed: "),
        (b"\xff\xd8\xff\xe0", "is not a UTF-8 text file"),
    ],
)
def test_what_is_no_list_of_classes(tmp_path: Path, text: str | bytes, message: str):
    assert message in refusal(text, tmp_path)


def test_no_file(tmp_path: Path):
    with pytest.raises(DataError, match=r"none\.txt cannot be read: No such file"):
        read_classes(tmp_path / "none.txt")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_classes(tmp_path)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_list_or_our_error(tmp_path_factory, data: bytes):
    path = tmp_path_factory.mktemp("c") / "c.txt"
    path.write_bytes(data)
    try:
        classes = read_classes(path)
    except DataError:
        return
    assert len(classes.index_of) == len(classes) > 0
    assert not [name for name in classes.index_of if "/" in name or name in (".", "..", "")]
    assert len({classes.title(label) for label in range(len(classes))}) == len(classes)


# Validation sets of them


def test_folders_are_labeled_by_the_list(tmp_path: Path, pets: Path):
    """Not by their order on disk, and a class without a folder keeps its index."""
    root = folders(tmp_path / "val", "2/a.jpg", "10/b.jpg", "10/c.PNG", "dog/1.jpg", "notes.txt")
    valset = open_valset(root, classes=read_classes(pets))
    assert [(s.path, s.label) for s in valset.samples] == [
        ("10/b.jpg", 2), ("10/c.PNG", 2), ("2/a.jpg", 3), ("dog/1.jpg", 0),
    ]  # fmt: skip
    assert valset.layout == "3 class folders, without notes.txt, no images of cat"
    assert valset.classes == read_classes(pets)
    assert valset.among is None
    assert (valset.image_set.name, valset.image_set.images) == ("pets.txt", None)
    assert valset.image_set not in IMAGE_SETS
    assert not valset.image_set.is_judged
    part = valset.limited(2)
    assert part.classes == valset.classes
    assert (len(part.samples), part.image_set.images) == (2, 4)  # so that it can be PARTIAL


def test_more_than_fifty_images_of_a_class(tmp_path: Path, pets: Path):
    root = folders(tmp_path / "val", *(f"dog/{number}.jpg" for number in range(51)))
    assert len(open_valset(root, classes=read_classes(pets)).samples) == 51


@pytest.mark.parametrize("stray", ["zebra/a.jpg", "zebra/deep/a.jpg", "n01440764/a.jpg"])
def test_a_folder_that_is_not_in_the_list(tmp_path: Path, pets: Path, stray: str):
    root = folders(tmp_path / "val", "dog/a.jpg", stray)
    name = stray.partition("/")[0]
    with pytest.raises(DataError, match=rf"{name}: not among the 4 classes of pets\.txt"):
        open_valset(root, classes=read_classes(pets))


def test_hidden_folders_are_no_classes(tmp_path: Path, pets: Path):
    root = folders(tmp_path / "val", "dog/a.jpg", ".cache/b.jpg")
    assert len(open_valset(root, classes=read_classes(pets)).samples) == 1


def test_a_folder_of_the_list_without_images(tmp_path: Path, pets: Path):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match="its 1 class folders contain no images"):
        open_valset(tmp_path / "val", classes=read_classes(pets))


def test_other_folders_only(tmp_path: Path, pets: Path):
    folders(tmp_path / "data" / "train", "dog/a.jpg")
    folders(tmp_path / "data" / "test", "dog/a.jpg")
    with pytest.raises(DataError, match=r"Did you mean --data .*(train or .*test|test or .*train)"):
        open_valset(tmp_path / "data", classes=read_classes(pets))


def test_a_val_folder_and_a_tar(tmp_path: Path, pets: Path):
    classes = read_classes(pets)
    root = folders(tmp_path / "data", "val/dog/a.jpg", "val/2/b.jpg", "train/cat/c.jpg")
    expected = [("2/b.jpg", 3), ("dog/a.jpg", 0)]
    assert [(s.path, s.label) for s in open_valset(root, classes=classes).samples] == expected
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        tar.add(root / "val", "pets/val")
    packed = open_valset(tmp_path / "val.tar", classes=classes)
    assert [(s.path, s.label) for s in packed.samples] == expected
    assert packed.layout == "tar of 2 class folders, no images of cat, 10"
    with tarfile.open(tmp_path / "val.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("pets/val/zebra/x.jpg"), io.BytesIO())
    with pytest.raises(DataError, match="zebra: not among the 4 classes"):
        open_valset(tmp_path / "val.tar", classes=classes)


def test_flat_files_need_a_list_of_labels(tmp_path: Path, pets: Path):
    root = folders(tmp_path / "val", "a.jpg", "b.jpg")
    classes = read_classes(pets)
    with pytest.raises(DataError, match=r"a\.jpg, b\.jpg: neither in a class folder of pets\.txt"):
        open_valset(root, classes=classes)
    labels = tmp_path / "labels.txt"
    labels.write_text("a.jpg 3\nb cat\n")
    assert [s.label for s in open_valset(root, labels, classes).samples] == [3, 1]
    labels.write_text("a.jpg 3\nb.jpg 4\n")
    with pytest.raises(DataError, match=r"line 2 has 4 instead of an index 0\.\.3"):
        open_valset(root, labels, classes)
    labels.write_text("a.jpg 3\n")
    with pytest.raises(DataError, match=r"b\.jpg: neither in a class folder .* nor in labels"):
        open_valset(root, labels, classes)
    labels.write_text("3\n1\n")
    with pytest.raises(DataError, match="one word per line and 2 lines"):
        open_valset(root, labels, classes)


def test_official_names_are_checked_where_their_synset_is_in_the_list(tmp_path: Path):
    """As in ImageNet-100: the same names and synsets, other indices."""
    synsets = [small.synset(number) for number in (3, 1, 2)]
    (tmp_path / "c.txt").write_text("\n".join(synsets))
    classes = read_classes(tmp_path / "c.txt")
    root = tmp_path / "val"
    folders(root, *(f"{small.synset(n)}/{small.name(n)}" for n in (1, 2, 3)))
    valset = open_valset(root, classes=classes)
    assert {s.name: s.label for s in valset.samples} == {
        small.name(1): 1, small.name(2): 2, small.name(3): 0,
    }  # fmt: skip
    assert valset.layout == "3 class folders, checked with the official labels"
    assert valset.image_set is not VAL
    (root / small.synset(1) / small.name(1)).rename(root / small.synset(2) / small.name(1))
    with pytest.raises(DataError, match=rf"{small.synset(2)} \(2\) by folders, "):
        open_valset(root, classes=classes)


@pytest.mark.parametrize(
    "text",
    [
        "index,name,title\n1,dog,Dog\n0,cat,Cat\n",
        "name;index;title\ndog;1;Dog\ncat;0;Cat\n",
        '"index","name","title"\n"1","dog","Dog"\n"0","cat","Cat"\n',
        "0,cat,Cat\n1,dog,Dog\n",
        "# mine\n1;dog;Dog\n0;cat;Cat\n",
    ],
)
def test_tables_of_classes(tmp_path: Path, text: str):
    (tmp_path / "classes.csv").write_text(text)
    assert read_classes(tmp_path / "classes.csv").rows == (("cat", "Cat"), ("dog", "Dog"))


def test_a_table_of_synsets(tmp_path: Path):
    (tmp_path / "classes.csv").write_text("n01440764,tench, Tinca tinca\nn01443537,goldfish\n")
    rows = read_classes(tmp_path / "classes.csv").rows
    assert rows == (("n01440764", "tench"), ("n01443537", "goldfish"))


@pytest.mark.parametrize("text", ["index,name\n0,cat\n2,dog\n", "index,id\n0,1\n1,2\n"])
def test_tables_that_do_not_number_classes(tmp_path: Path, text: str):
    (tmp_path / "classes.csv").write_text(text)
    with pytest.raises(DataError, match="line 1 looks like a header"):
        read_classes(tmp_path / "classes.csv")


def test_parquet_shards_of_other_classes(tmp_path: Path, pets: Path):
    root = small.parquet(tmp_path / "set")
    with pytest.raises(DataError, match=r"row 0: label 516 is not in 0\.\.3"):
        open_valset(root, classes=read_classes(pets))


# eval.data


def test_survey(tmp_path: Path, pets: Path, capsys: pytest.CaptureFixture[str]):
    root = folders(tmp_path / "val", "dog/a.jpg", "dog/b.jpg", "2/c.jpg")
    (root / "2" / "copy.jpg").write_bytes(jpeg(0))
    words = ["--data", str(root), "--classes", str(pets), "--quiet"]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["images_per_class"] == {"dog": 2, "cat": 0, "10": 0, "2": 2}
    assert (document["images"], document["images_expected"], document["complete"]) == (
        4,
        None,
        None,
    )
    assert (document["classes"], document["classes_expected"]) == (2, 4)
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "images       4\nclasses      2 of 4, images per class: 2\n" in text
    assert "duplicates   1\n    2/copy.jpg = dog/a.jpg\n" in text
    assert text.endswith("with python -m eval.imagenet --classes.\n")
    assert main(["--data", str(root), "--classes", str(root), "--quiet"]) == 3
    assert "Is a directory" in capsys.readouterr().err


# Whole messages


ROWS = (
    "A file of classes has one class per line, in index order: the name of its folder, then "
    "optionally a title."
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f" is empty.\n{ROWS}"),
        ("a\nb\na x\n", (", line 3: a is already on line 1.\nEach class is listed once, in index "
         "order; where its name contains blanks, a tab follows it.")),
        ("a\n\nb\n", (", line 2 has no name, which would shift the classes below it."
         f"\n{ROWS}")),
        ("val/a b\n", (", line 1 has the path val/a instead of the name of a folder."
         f"\n{ROWS}")),
        ("a\\b\n", (", line 1 has the path a\\b instead of the name of a folder."
         f"\n{ROWS}")),
        (".a b\n", f", line 1 has .a: hidden folders, '.' and '..' are not classes.\n{ROWS}"),
        ("a b\0\n", f", line 1 has characters that cannot be printed: a b\\x00.\n{ROWS}"),
        ("a\0 b\n", f", line 1 has characters that cannot be printed: a\\x00 b.\n{ROWS}"),
        (b"\xff", f" is not a UTF-8 text file.\n{ROWS}"),
    ],
)  # fmt: skip
def test_refusals_in_words(tmp_path: Path, text: str | bytes, message: str):
    assert refusal(text, tmp_path) == f"{tmp_path / 'classes.txt'}{message}"


def test_files_that_cannot_be_read_in_words(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        read_classes(tmp_path)
    assert (
        str(caught.value) == f"{tmp_path} cannot be read: Is a directory.\nGive a file of classes."
    )
    with pytest.raises(DataError, match=r"^--classes .*the path is not valid UTF-8"):
        read_classes(tmp_path / os.fsdecode(b"\xff.txt"))


def test_names_and_titles(tmp_path: Path):
    (tmp_path / "c.txt").write_text("a b/c\td  e\tf\n b\t c \nd  e/f  .g\nh\t, x\ni\n")
    with pytest.raises(DataError, match="line 1 has the path a b/c instead"):
        read_classes(tmp_path / "c.txt")
    (tmp_path / "c.txt").write_text("a b\td  e\tf\n b\t c \nd  e/f  .g\nh\t, x\ni\n")
    classes = read_classes(tmp_path / "c.txt")
    assert classes.rows == (("a b", "d e f"), ("b", "c"), ("d", "e/f .g"), ("h", ", x"), ("i", "i"))
    assert [classes.title(label) for label in (0, 3, 4)] == ["d e f (0)", "h (3)", "i (4)"]
    assert (classes.kind, classes.name) == ("class", "c.txt")
    checked = classes.checked_folders
    assert [bool(checked.fullmatch(name)) for name in ("a", "x\ny", ".a")] == [True, True, False]


def test_imagenets_list():
    assert (IMAGENET.name, IMAGENET.kind) == ("ILSVRC2012", "synset")
    checked = IMAGENET.checked_folders
    assert [bool(checked.fullmatch(name)) for name in ("n01440764", "n0144076", "x")] == [
        True, False, False,
    ]  # fmt: skip
    assert IMAGENET.rows[0] == ("n01440764", "tench, Tinca tinca")
    assert imagenet_classes()[0] == ImageNetClass("n01440764", "tench, Tinca tinca")
    assert len(imagenet_classes()) == 1000
    assert [row.folder for row in IMAGENET.rows] == sorted(row.folder for row in IMAGENET.rows)
