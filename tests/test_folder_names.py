"""Class folders named in words or by numbers: matched without doubt, as it was said, or refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import small_valsets as small
from small_valsets import jpeg, name, synset

from eval.data import main as data_main
from eval.errors import DataError, UsageError
from eval.images.classes import IMAGENET, ClassList, ImageClass, read_classes
from eval.images.labels import official_labels
from eval.images.valset import open_valset
from eval.request import Request


def folders(root: Path, *names: str) -> Path:
    for number, folder in enumerate(names):
        (root / folder).mkdir(parents=True)
        (root / folder / f"{number}.jpg").write_bytes(jpeg(number))
    return root


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("n01440764", (0,)),
        ("N01440764", (0,)),
        ("n01440764_tench", (0,)),
        ("n01440764-Tinca tinca", (0,)),
        ("n01440764_my_fish", (0,)),
        ("n01440764_goldfish", (0, 1)),
        ("tench", (0,)),
        ("tench, Tinca tinca", (0,)),
        ("TINCA_TINCA", (0,)),
        ("jack-o'-lantern", (607,)),
        ("crane", (134, 517)),
        ("cardigan", (264, 474)),
        ("fish", ()),
        ("n00000000_tench", ()),
        ("", ()),
        ("_", ()),
        ("tench_n01440764", (0,)),
        ("goldfish_n01440764", (0, 1)),
        ("ILSVRC2012_val_00000293_n01440764", ()),  # a file, not a class
        ("0_n01440764", (0,)),
        ("0000_tench", (0,)),
        ("001.Tench", (0,)),  # counted from 1
        ("0007_tench", (0, 6, 7)),
        ("5000_tench", ()),
    ],
)
def test_what_a_name_may_mean(word: str, meant: tuple[int, ...]) -> None:
    assert IMAGENET.meant_by(word) == meant


def test_names_of_ones_own_classes() -> None:
    rows = (ImageClass("cat", "Cat, House cat"), ImageClass("1", "one"), ImageClass("dog", "CAT"))
    classes = ClassList("mine", rows)
    assert [classes.meant_by(n) for n in ("cat", "house_cat", "Cat", "1", "ONE")] == [
        (0,), (0,), (0, 2), (1,), (1,),
    ]  # fmt: skip


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize(
    "names",
    [
        ("tench, Tinca tinca", "goldfish, Carassius auratus", "hen"),
        ("tench", "Carassius_auratus", "HEN"),
        ("n01440764_tench", "n01443537_goldfish", "n01514859_hen"),
        ("N01440764", "N01443537", "N01514859"),
    ],
)
def test_folders_in_words(tmp_path: Path, names: tuple[str, ...], archive: bool) -> None:
    root = folders(tmp_path / "val", *names)
    if archive:
        with tarfile.open(tmp_path / "val.tar", "w") as file:
            file.add(root, "val")
        root = tmp_path / "val.tar"
    valset = open_valset(root)
    assert "3 synset folders, named in words" in valset.layout
    assert {s.name: s.label for s in valset.samples} == {"0.jpg": 0, "1.jpg": 1, "2.jpg": 8}
    if not archive:
        assert open_valset(tmp_path).layout.endswith("named in words in val/")


def test_official_images_in_folders_in_words(tmp_path: Path) -> None:
    titles = {n: IMAGENET.rows[official_labels()[n - 1]].title for n in (1, 2, 3)}
    for n, title in titles.items():
        (tmp_path / "val" / title).mkdir(parents=True)
        (tmp_path / "val" / title / name(n)).write_bytes(jpeg(n))
    assert open_valset(tmp_path / "val").image_set.is_val
    (tmp_path / "val" / titles[1] / name(1)).rename(tmp_path / "val" / titles[2] / name(1))
    with pytest.raises(DataError, match=rf"{synset(2)} \(970\) by folders, {synset(1)} \(65\)"):
        open_valset(tmp_path / "val")


@pytest.mark.parametrize(
    ("names", "doubtful"),
    [
        (("tench", "goldfish", "crane"), "crane"),
        (("tench", "goldfish", "notes"), "notes"),
        (("tench", "Tinca_tinca", "hen"), "Tinca_tinca, tench"),
        (("n01440764_goldfish", "hen"), "n01440764_goldfish"),
    ],
)
def test_doubtful_folders(tmp_path: Path, names: tuple[str, ...], doubtful: str) -> None:
    root = folders(tmp_path / "val", *names)
    with pytest.raises(DataError) as caught:
        open_valset(root)
    assert str(caught.value) == (
        f"--data {root}: its folders are named in words, and {doubtful}: not one class of "
        "ILSVRC2012 each, without doubt.\nRename them to synsets (n01440764, ...)."
    )


def test_titles_of_ones_own_classes(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("n1\tcat\nn2\tdog, hound\n")
    classes = read_classes(tmp_path / "classes.txt")
    valset = open_valset(folders(tmp_path / "val", "cat", "Hound"), classes=classes)
    assert [s.label for s in valset.samples] == [1, 0]
    with pytest.raises(DataError, match=r"mouse: not one class of classes\.txt each"):
        open_valset(folders(tmp_path / "more", "cat", "Hound", "mouse"), classes=classes)


# Numbers


@pytest.mark.parametrize("form", ["{}", "{:04}"])
def test_numbers_are_never_guessed(tmp_path: Path, form: str) -> None:
    root = folders(tmp_path / "val", *map(form.format, (1, 50, 1000)))
    with pytest.raises(DataError, match="Say which: --folders index, or --folders ilsvrc-id"):
        open_valset(root)
    # Ids 1, 50 and 1000 are those of the kit fox, the serval and the last class of the devkit.
    labels = [s.label for s in open_valset(root, folders="ilsvrc-id").samples]
    assert [IMAGENET.rows[label].folder for label in labels][:1] == ["n02119789"]
    assert len(set(labels)) == 3
    with pytest.raises(DataError, match="has 1000: no index of ILSVRC2012"):
        open_valset(root, folders="index")
    (root / form.format(1000)).rename(root / form.format(999))
    valset = open_valset(root, folders="index")
    assert valset.layout == ("unidentified images, 3 numbered folders, read as --folders index")
    assert sorted(s.label for s in valset.samples) == [1, 50, 999]


def test_numbers_in_an_archive_and_in_val(tmp_path: Path) -> None:
    root = folders(tmp_path / "val", "7", "8")
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        file.add(root, "some/val")
    for place in (tmp_path, tmp_path / "x.tar"):
        assert [s.label for s in open_valset(place, folders="index").samples] == [7, 8]


def test_numbers_are_claims(tmp_path: Path) -> None:
    labels = official_labels()[:2]
    for n, label in enumerate(labels, 1):
        (tmp_path / f"{label}").mkdir()
        (tmp_path / f"{label}" / name(n)).write_bytes(jpeg(n))
    assert open_valset(tmp_path, folders="index").image_set.is_val
    with pytest.raises(DataError, match="labels disagree for 2 of 2 images"):
        open_valset(tmp_path, folders="ilsvrc-id")


def test_the_option_and_what_it_is_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folders(tmp_path / "val", "7", "8")
    assert data_main(["--data", str(root), "--folders", "index", "--quiet"]) == 0
    assert "2 numbered folders, read as --folders index" in capsys.readouterr().out
    assert data_main(["--data", str(root), "--folders", "ids"]) == 2
    with pytest.raises(DataError, match="has no numbered folders: no index of"):
        open_valset(folders(tmp_path / "x", "n01440764"), folders="index")
    with pytest.raises(DataError, match="has 2 parquet shards, no numbered folders"):
        open_valset(small.parquet(tmp_path / "shards"), folders="index")
    for options in ({"demo": True}, {"data": "x", "classes": "x", "folders": "ilsvrc-id"}):
        with pytest.raises(UsageError):
            Request(**{"folders": "index", **options})  # type: ignore[arg-type]


def test_numbers_of_ones_own_classes(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    classes = read_classes(tmp_path / "classes.txt")
    valset = open_valset(folders(tmp_path / "val", "0", "1"), classes=classes, folders="index")
    assert [(s.path, s.label) for s in valset.samples] == [("0/0.jpg", 0), ("1/1.jpg", 1)]
    assert valset.image_set.name == "classes.txt"


def test_a_stray_image_beside_numbers(tmp_path: Path) -> None:
    root = folders(tmp_path / "val", "7", "8")
    (root / name(1)).write_bytes(jpeg(1))
    with pytest.raises(DataError, match="and 1 beside them"):
        open_valset(root, folders="index")
    (root / name(1)).unlink()
    (root / "7" / "more").mkdir()
    (root / "7" / "more" / "x.jpg").write_bytes(jpeg(1))
    with pytest.raises(DataError, match="images in other folders"):
        open_valset(root, folders="index")


def test_shards_of_a_tar_hold_words(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        for path in ("a/tench/1.jpg", "a/hen/1.jpg"):
            member = tarfile.TarInfo(path)
            member.size = len(jpeg(1))
            file.addfile(member, io.BytesIO(jpeg(1)))
    assert [s.label for s in open_valset(tmp_path / "x.tar").samples] == [8, 0]
