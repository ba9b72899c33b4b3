"""Official labels and the files that list labels: told apart by content, never by an offset."""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from pathlib import Path

import pytest
from small_valsets import name, solution

from eval.errors import DataError
from eval.images.classes import IMAGENET, ClassList, ImageClass, imagenet_classes
from eval.images.labels import (
    image_key,
    is_image,
    official_key,
    official_labels,
    official_number,
    read_labels,
    shown,
    synset_in_name,
)

OFFICIAL = [f"{label}" for label in official_labels()]


def ilsvrc_ids() -> list[str]:
    """A numbering 1..1000 that starts as the devkit's does: 490, 361, 171, 822."""
    ids = list(range(1, 1001))
    random.Random(0).shuffle(ids)
    for label, wanted in zip((65, 970, 230, 809), (490, 361, 171, 822), strict=True):
        other = ids.index(wanted)
        ids[label], ids[other] = ids[other], ids[label]
    return [f"{ids[label]}" for label in official_labels()]


@pytest.fixture
def read(tmp_path: Path):
    def read(text: str | bytes, file: str = "list.txt"):
        path = tmp_path / file
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_labels(path)

    return read


def refusal(read, text: str | bytes) -> str:
    with pytest.raises(DataError) as caught:
        read(text)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert message.count("\n") == 1
    return message


def test_official_labels_are_50_of_each_class():
    labels = official_labels()
    assert len(labels) == 50_000
    assert labels[:5] == (65, 970, 230, 809, 516)  # as everybody quotes them
    assert set(Counter(labels).values()) == {50}
    assert set(labels) == set(range(1000))


def test_official_labels_are_those_of_the_list(shared: Path):
    rows = (shared / "ILSVRC2012_val_labels.txt").read_text().split()
    assert rows[::2] == [name(number) for number in range(1, 50_001)]
    assert rows[1::2] == OFFICIAL


def test_official_labels_do_not_change():
    """Without the list, a change of the resource would go unseen."""
    digest = hashlib.sha256(" ".join(OFFICIAL).encode()).hexdigest()
    assert digest == "52fa874e720a7de210ad0a9644cb98e333301caff5e22b969a44be7c23078928"


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("ILSVRC2012_val_00000293.JPEG", 293),
        ("val/n01440764/ILSVRC2012_val_00000293.jpeg", 293),
        ("ILSVRC2012_val_00000293_n01440764.JPEG", 293),
        ("ILSVRC2012_val_00000293", 293),
        ("ilsvrc2012_val_00050000.jpg", 50_000),
        ("ILSVRC2012_val_00000000.JPEG", None),
        ("ILSVRC2012_val_00050001.JPEG", None),
        ("ILSVRC2012_val_293.JPEG", None),
        ("ILSVRC2012_val_00000293 (1).JPEG", None),
        ("ILSVRC2012_test_00000293.JPEG", None),
        ("ILSVRC2012_val_00000293.txt", None),
        ("ILSVRC2012_val_0000029३.JPEG", None),
    ],
)
def test_official_names(path: str, number: int | None):
    assert official_number(path) == number


def test_names_without_folder_and_suffix():
    assert image_key("a/b.c/photo.one.jpg") == "photo.one"
    assert image_key("photo.one") == "photo.one"
    assert image_key("a/ILSVRC2012_val_00000293_n01440764.jpg") == "ILSVRC2012_val_00000293"
    assert synset_in_name("ILSVRC2012_val_00000293_n01440764.JPEG") == "n01440764"
    assert synset_in_name("ILSVRC2012_val_00000293.JPEG") is None
    assert is_image("x/ILSVRC2012_val_00000293.JPEG")
    assert not is_image("x/._ILSVRC2012_val_00000293.JPEG")
    assert not is_image(".DS_Store")
    assert not is_image("val.txt")


@pytest.mark.parametrize("numbering", ["sorted positions", "ILSVRC ids", "sorted positions from 1"])
def test_ground_truth_in_any_numbering_gives_the_official_labels(read, numbering: str):
    codes = {
        "sorted positions": OFFICIAL,
        "ILSVRC ids": ilsvrc_ids(),
        "sorted positions from 1": [f"{label + 1}" for label in official_labels()],
    }[numbering]
    labels = read("\n".join(codes) + "\n")
    assert labels.name == f"list.txt ({numbering})"
    assert tuple(labels.label_of.values()) == official_labels()
    assert next(iter(labels.label_of)) == "ILSVRC2012_val_00000001"


def test_ids_start_as_in_the_devkit():
    """The premise of the test above."""
    assert ilsvrc_ids()[:4] == ["490", "361", "171", "822"]


def test_ground_truth_of_synsets(read):
    synsets = [imagenet_classes()[label].synset for label in official_labels()]
    labels = read("\r\n".join(synsets))
    assert tuple(labels.label_of.values()) == official_labels()


def test_ground_truth_with_a_wrong_line(read):
    ids = ilsvrc_ids()
    ids[6], ids[7] = ids[7], ids[6]
    message = refusal(read, "\n".join(ids))
    assert "contradicts the official labels: image 7 has " in message
    assert f"has {ids[6]} (elsewhere " in message
    assert f"shows {imagenet_classes()[official_labels()[6]].synset}" in message
    assert "damaged or was edited; omit --labels" in message


def test_ground_truth_in_another_order(read):
    """Of the images sorted by class, for instance."""
    message = refusal(read, "\n".join(sorted(ilsvrc_ids())))
    assert "another order than the images, or belong to another set" in message


def test_two_classes_with_one_number(read):
    ids = ["1" if code == "2" else code for code in ilsvrc_ids()]
    assert "image " in refusal(read, "\n".join(ids))


def test_one_class_with_two_numbers(read):
    ids = ilsvrc_ids()
    ids[ids.index("7")] = "0"
    assert "1001 numbers for 1000 classes" in refusal(read, "\n".join(ids))


def test_ground_truth_of_another_length(read):
    message = refusal(read, "\n".join(OFFICIAL[:-1]))
    assert "one word per line and 49,999 lines" in message
    assert "ILSVRC2012_validation_ground_truth.txt" in message


def test_ground_truth_with_a_long_line(read):
    message = refusal(read, "\n".join([*OFFICIAL[:-1], "1 2 three"]))
    assert "line 50000 is not an image name and a class: 1 2 three" in message


def test_name_list_in_any_order_with_folders_and_without_suffix(read):
    labels = read("\ufeffval/ILSVRC2012_val_00000003.JPEG 230\n\nILSVRC2012_val_00000001\t65\n"
                  "my photo.png 5\nn01440764/other.jpg n01440764\n")  # fmt: skip
    assert labels.name == "list.txt"
    assert labels.label_of == {
        "val/ILSVRC2012_val_00000003": 230,
        "ILSVRC2012_val_00000001": 65,
        "my photo": 5,
        "n01440764/other": 0,
    }


@pytest.mark.parametrize("numbering", ["sorted positions", "ILSVRC ids"])
def test_name_list_of_the_whole_set_shows_its_numbering(read, numbering: str):
    codes = OFFICIAL if numbering == "sorted positions" else ilsvrc_ids()
    rows = [f"{name(i)} {code}\n" for i, code in enumerate(codes, 1)]
    random.Random(1).shuffle(rows)
    labels = read("".join(rows))
    assert labels.name == f"list.txt ({numbering})"
    assert [labels.label_of[image_key(name(i))] for i in (1, 2, 3)] == [65, 970, 230]


def test_name_list_of_a_part_cannot_be_in_ids(read):
    """Any four of them could be a numbering of their own."""
    message = refusal(read, f"{name(1)} 490\n{name(9)} 1000\n")
    assert "line 2 has 1000 instead of an index 0..999 (are these ILSVRC ids?)" in message
    assert "position of the synset in the sorted list" in message


def test_list_that_numbers_the_images(read):
    """Kaggle's ImageSets/CLS-LOC/val.txt."""
    rows = "".join(f"{image_key(name(i))} {i}\n" for i in range(998, 1003))
    assert "line 3 numbers the images instead of their classes" in refusal(read, rows)


def test_name_listed_twice(read):
    assert read("a.jpg 1\na.jpg 1\n").label_of == {"a": 1}
    message = refusal(read, "x/a.jpg 1\n./x/a.jpg 2\n")
    assert "x/a is listed twice, as 1 in line 1 and as 2 in line 2" in message


def test_unknown_synset(read):
    assert "n99999999, which is not one of the 1000" in refusal(read, "a.jpg n99999999\n")


def test_line_without_a_class(read):
    assert "line 2 is not an image name and a class: b.jpg" in refusal(read, "a.jpg 1\nb.jpg\n")


def test_line_of_a_number_alone(read):
    assert "line 2 has 0 instead of an index" in refusal(read, "a.jpg 1\n0\n")


@pytest.mark.parametrize("word", ["-1", "1.5", "1_0", "٣", "9" * 5000, "0x1", "\0"])
def test_word_that_is_no_number(read, word: str):
    assert "line 1 " in refusal(read, f"a.jpg {word}\n")


def test_solution(read, tmp_path: Path):
    labels = read_labels(solution(tmp_path / "LOC_val_solution.csv"))
    assert labels.name == "LOC_val_solution.csv"
    assert labels.label_of["ILSVRC2012_val_00000002"] == 970
    assert len(labels.label_of) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ImageId,PredictionString\n", "lists no images"),
        ("ImageId,PredictionString\nILSVRC2012_val_00000001,\n", "line 2 is not an image name"),
        ("ImageId,PredictionString\nILSVRC2012_val_00000001\n", "line 2 is not an image name"),
        ("ImageId,PredictionString\na,n01440765 1\n", "n01440765, which is not one of the 1000"),
        ('ImageId,PredictionString\na,"' + "x\n" * 100_000, "field larger than field limit"),
    ],
)
def test_damaged_solution(read, text: str, message: str):
    assert message in refusal(read, text)


@pytest.mark.parametrize("text", [b"\xff\xd8\xff\xe0 not text", b"PK\x03\x04\x9c\xff"])
def test_file_that_is_no_text(read, text: bytes):
    message = refusal(read, text)
    assert "is not a UTF-8 text file" in message
    assert "ILSVRC2012_validation_ground_truth.txt" in message


def test_empty_file(read):
    assert "is empty" in refusal(read, " \n\n")


def test_huge_file(tmp_path: Path):
    path = tmp_path / "val.tar"
    with path.open("wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(DataError, match=r"too large for a list of labels \(100 MiB\)"):
        read_labels(path)


def test_missing_file_and_folder(tmp_path: Path):
    with pytest.raises(DataError, match="No such file"):
        read_labels(tmp_path / "list.txt")
    with pytest.raises(DataError, match="Is a directory"):
        read_labels(tmp_path)


def test_shown_text_is_one_short_printable_line():
    assert shown("a b") == "a b"
    assert shown("a\nb\x1b") == r"a\nb\x1b"
    assert shown("\udcff.jpg") == r"\udcff.jpg"
    assert len(shown("a" * 1000)) == 120


def test_labels_and_classes_fit():
    """The first validation image shows a sea snake, the third a Shetland sheepdog."""
    names = [imagenet_classes()[label].name.split(",")[0] for label in official_labels()[:3]]
    assert names[0] == "sea snake"
    assert names[2] == "Shetland sheepdog"
    assert IMAGENET.index_of["n01751748"] == 65


# Whole messages, and the edges of what is recognized


INDEX = (
    "An index is the position of the synset in the sorted list of 1000; the official labels are "
    "built in: omit --labels if the names are official."
)
ROWS = (
    "A list of labels has one line per image: its name and its class index; the devkit's is "
    "data/ILSVRC2012_validation_ground_truth.txt."
)
MINE = ClassList("mine.txt", (ImageClass("cat", "Cat"), ImageClass("10", "Ten")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n", " is empty.\nGive a list of labels, or omit --labels."),
        ("a\n", (" has one word per line and 1 lines; a ground-truth file has one line for each of "
         "ImageNet's 50,000 validation images.\nUse the devkit's "
         "ILSVRC2012_validation_ground_truth.txt, or lines of `name index`.")),
        ("a.jpg 1000\n", (", line 1 has 1000 instead of an index 0..999 (are these ILSVRC ids?)."
         f"\n{INDEX}")),
        ("a.jpg 1\n\nILSVRC2012_val_00000007.JPEG 7 7\nILSVRC2012_val_00001000.JPEG 1000\n",
         (", line 4 numbers the images instead of their classes (ImageSets/CLS-LOC/val.txt?)."
         f"\n{INDEX}")),
        ("ILSVRC2012_val_00001001.JPEG 1002\n", (", line 1 has 1002 instead of an index 0..999 "
         f"(are these ILSVRC ids?).\n{INDEX}")),
        ("a.jpg n01440765\n", (", line 1 has n01440765, which is not one of the 1000 classes."
         f"\n{INDEX}")),
        ("a.jpg  x\ty\n", f", line 1 is not an image name and a class: a.jpg x y.\n{INDEX}"),
        ("a.jpg 1\na.png 2\n", (": a is listed twice, as 1 in line 1 and as 2 in line 2.\n"
         "Each image has one label: remove the wrong line.")),
        ("ImageId,PredictionString\n", " lists no images.\nIt was cut: write it again."),
        ("ImageId,PredictionString\na,n01440764 1\nb,\n", (", line 3 is not an image name and a "
         f"class: b.\n{INDEX}")),
        ("ImageId,PredictionString\n,n01440764 1\n", (", line 2 is not an image name and a class: "
         f", n01440764.\n{INDEX}")),
        ("ImageId,PredictionString\n,\n", " lists no images.\nIt was cut: write it again."),
        ("ImageId,PredictionString\na,5000 1\n", (", line 2 has 5000 instead of an index 0..999 "
         f"(are these ILSVRC ids?).\n{INDEX}")),
        ('ImageId,PredictionString\na,"' + "x\n" * 100_000, (", line 65538: field larger than "
         "field limit (131072).\nThe file is damaged or was edited: write it again.")),
        ("a" * 100_001 + " 1\n", (", line 1 has more than 100,000 characters.\nA list has one line "
         "for each image.")),
        (b"\xff", f" is not a UTF-8 text file.\n{ROWS}"),
    ],
)  # fmt: skip
def test_refusals_in_words(read, tmp_path: Path, text: str | bytes, message: str):
    assert refusal(read, text) == f"{tmp_path / 'list.txt'}{message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 2\n", ", line 1 has 2 instead of an index 0..1."),
        ("a.jpg n01440764\n", ", line 1 has n01440764, which is not one of the 2 classes."),
        ("a.jpg dog\n", ", line 1 is not an image name and a class: a.jpg dog."),
    ],
)
def test_refusals_with_other_classes(tmp_path: Path, text: str, message: str):
    (tmp_path / "l.txt").write_text(text)
    with pytest.raises(DataError) as caught:
        read_labels(tmp_path / "l.txt", MINE)
    advice = "An index is the position of the class in mine.txt, from 0."
    assert str(caught.value) == f"{tmp_path / 'l.txt'}{message}\n{advice}"


def test_other_classes(tmp_path: Path):
    """A number is an index, even where a folder has a number for a name."""
    (tmp_path / "l.txt").write_text("a.jpg cat\nb.jpg 0\nc.jpg 1\n")
    labels = read_labels(tmp_path / "l.txt", MINE)
    assert (labels.name, labels.label_of) == ("l.txt", {"a": 0, "b": 0, "c": 1})
    (tmp_path / "l.txt").write_text("\n".join(OFFICIAL))
    with pytest.raises(DataError, match="one word per line and 50,000 lines"):
        read_labels(tmp_path / "l.txt", MINE)


def test_a_whole_list_of_another_model_is_no_numbering(tmp_path: Path):
    """50,000 official names with two classes: the numbers are indices, nothing is guessed."""
    rows = [f"{name(i)} {i % 2}\n" for i in range(1, 50_001)]
    (tmp_path / "l.txt").write_text("".join(rows))
    labels = read_labels(tmp_path / "l.txt", MINE)
    assert labels.name == "l.txt"
    assert [labels.label_of[image_key(name(i))] for i in (1, 2)] == [1, 0]


def test_a_whole_list_with_one_name_that_is_not_official(read):
    rows = [f"{name(i)} {code}\n" for i, code in enumerate(OFFICIAL[:-1], 1)]
    labels = read("".join([*rows, "photo.jpg 7\n"]))
    assert (labels.name, labels.label_of["photo"]) == ("list.txt", 7)
    synsets = [imagenet_classes()[label].synset for label in official_labels()]
    rows = [f"{name(i)} {code}\n" for i, code in enumerate(synsets, 1)]
    labels = read("".join(rows))
    assert labels.name == "list.txt"
    assert tuple(labels.label_of.values()) == official_labels()
    rows[3] = f"{name(4)} 809\n"  # one number among synsets
    assert tuple(read("".join(rows)).label_of.values()) == official_labels()
    rows[3] = f"{name(4)} 1000\n"
    assert "line 4 has 1000 instead of an index 0..999" in refusal(read, "".join(rows))


def test_ground_truth_of_synsets_and_numbers(read):
    codes = [imagenet_classes()[label].synset for label in official_labels()]
    codes[9] = "5"  # an index, and here it is what counts
    labels = read("\n".join(codes))
    assert labels.name == "list.txt"
    assert list(labels.label_of.values())[8:11] == [official_labels()[8], 5, official_labels()[10]]
    codes[9] = "1000"
    assert "line 10 has 1000 instead" in refusal(read, "\n".join(codes))
    codes[9] = "1001"
    assert "line 10 has 1001 instead" in refusal(read, "\n".join(codes))


def test_a_numbering_of_its_own(read):
    """The same classes under other numbers: what a number stands for follows from the images."""
    labels = read("\n".join(f"{999 - label}" for label in official_labels()))
    assert labels.name == "list.txt (a numbering of its own)"
    assert tuple(labels.label_of.values()) == official_labels()
    ids = ilsvrc_ids()
    swap = {"822": "823", "823": "822"}  # the fourth of the devkit's is another
    labels = read("\n".join(swap.get(code, code) for code in ids))
    assert labels.name == "list.txt (a numbering of its own)"


def test_contradictions_in_words(read, tmp_path: Path):
    codes = list(OFFICIAL)
    codes[0], codes[1] = codes[1], codes[0]
    assert refusal(read, "\n".join(codes)) == (
        f"{tmp_path / 'list.txt'} contradicts the official labels: "
        "image 1 has 970 (elsewhere n09193705) but shows n01751748, "
        "image 2 has 65 (elsewhere n01751748) but shows n09193705.\n"
        "The file is damaged or was edited; omit --labels to use the built-in labels."
    )
    codes = ["1000" if i % 50 == 0 else code for i, code in enumerate(OFFICIAL)]
    assert "contradicts the official labels: image " in refusal(read, "\n".join(codes))
    extra = list(OFFICIAL)
    extra[0] = "1000"
    assert refusal(read, "\n".join(extra)) == (
        f"{tmp_path / 'list.txt'} contradicts the official labels: 1001 numbers for 1000 classes.\n"
        "The file is damaged or was edited; omit --labels to use the built-in labels."
    )
    assert refusal(read, "\n".join(OFFICIAL[::-1])).endswith(
        ".\nIts lines are in another order than the images, or belong to another set; omit "
        "--labels to use the built-in labels."
    )


def test_half_of_the_lines_decide_between_damage_and_order(read):
    """Of the 50 images of a class, 25 have its number and 25 have those of 25 other classes."""
    official, seen, codes = official_labels(), Counter(), []
    for label in official:
        seen[label] += 1
        codes.append(label if seen[label] <= 25 else (label + seen[label] - 25) % 1000)
    message = refusal(read, "\n".join(map(str, codes)))
    assert "(25,000 in all).\nThe file is damaged or was edited; " in message
    codes[0] = 7  # one more: the first image shows class 65
    message = refusal(read, "\n".join(map(str, codes)))
    assert "(25,001 in all).\nIts lines are in another order than the images, " in message


def test_solutions_name_the_image_once(tmp_path: Path):
    path = tmp_path / "s.csv"
    path.write_text("ImageId,PredictionString\r\nx/a.jpg,n01443537 1 2 3 4 n01440764 5 6 7 8\r\n")
    assert read_labels(path).label_of == {"x/a": 1}
    path.write_text('ImageId,PredictionString\n"a",999 1 2\n"b",0\n')
    assert read_labels(path).label_of == {"a": 999, "b": 0}


def test_kinds_of_names():
    suffixes = ["jpeg", "jpg", "png", "bmp", "webp", "tif", "tiff", "gif", "ppm"]
    for suffix in [*suffixes, *(suffix.upper() for suffix in suffixes)]:
        assert is_image(f"a/b.{suffix}")
        assert image_key(f"a/b.c.{suffix}") == "b.c"
    assert image_key("a/b.txt") == "b.txt"
    assert image_key("jpg") == "jpg"
    assert synset_in_name("photo.jpg") is None
    assert official_number("x_ILSVRC2012_val_00000001.JPEG") is None
    assert official_number("ILSVRC2012_val_00000001.JPEG") == 1
    assert official_key(7) == "ILSVRC2012_val_00000007"


def test_a_path_that_is_not_utf8(tmp_path: Path):
    with pytest.raises(DataError, match=r"^--labels .*the path is not valid UTF-8"):
        read_labels(tmp_path / os.fsdecode(b"\xff.txt"))


def test_names_with_blanks_listed_twice(read):
    message = refusal(read, "my old photo.jpg 1\nx.jpg 3\nmy old photo.jpg 2\n")
    assert "my old photo is listed twice, as 1 in line 1 and as 2 in line 3.\n" in message


def test_a_whole_list_that_contradicts_the_official_labels(read, tmp_path: Path):
    codes = [OFFICIAL[1], OFFICIAL[0], *OFFICIAL[2:]]
    message = refusal(read, "".join(f"{name(i)} {code}\n" for i, code in enumerate(codes, 1)))
    assert message.startswith(f"{tmp_path / 'list.txt'} contradicts the official labels: image 1 ")


def test_a_solution_with_line_ends_of_another_system(read):
    assert read("ImageId,PredictionString\ra,n01440764 1\r").label_of == {"a": 0}
