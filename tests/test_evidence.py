"""What a set of images is, and which files of it count: shown, stated, or said; never assumed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image
from small_evaluations import counted
from small_valsets import LAYOUTS, jpeg, name, synset

from eval import Request, data, score
from eval.config import load_variant
from eval.errors import DataError, UsageError
from eval.images.classes import IMAGENET, read_classes
from eval.images.labels import official_labels
from eval.images.sets import STATED, VAL
from eval.images.valset import Sample, ValSet, open_valset
from eval.judge.verdict import judge

Files = Mapping[str, bytes]
VAL_FILES: Files = {f"{synset(n)}/{name(n)}": jpeg(n) for n in range(1, 7)}


def folder(root: Path, files: Files) -> Path:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def tar(path: Path, files: Files) -> Path:
    with tarfile.open(path, "w") as archive:
        for member, content in files.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    return path


PACKS: dict[str, Callable[[Path, Files], Path]] = {"folder": folder, "tar": tar, "zip": zipped}


def photo(width: int, height: int, seed: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (seed, seed, 90)).save(file, "JPEG", comment=f"{seed}")
    return file.getvalue()


def opened(root: Path, labels: Path | None = None, **options: object) -> list[tuple[str, int]]:
    return [(s.path, s.label) for s in open_valset(root, labels, **options).samples]  # type: ignore[arg-type]


def refusal(root: Path, labels: Path | None = None, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        open_valset(root, labels, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert message.count("\n") == 1
    return message


# --- Which set it is


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str]]:
    """The verdict of a model that is always correct, where that is what is reported."""
    monkeypatch.setattr("eval.results.html.html_report", lambda *_: "")

    def call(root: Path, *options: str, labels: Path | None = None) -> tuple[str, str]:
        samples = open_valset(root, labels).samples
        with (tmp_path / "answers.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", *(f"top{k}" for k in range(1, 6))])
            for sample in samples:
                classes = [sample.label, *(c for c in range(6) if c != sample.label)]
                writer.writerow([sample.path, *classes[:5]])
        (tmp_path / "all.toml").write_text(
            f'name = "all"\nmodel = "base"\nimages = {len(samples)}\n'
            '[reference]\ntop1 = 100.0\ntop5 = 100.0\nsource = "x"\n'
            '[tolerance.paddle]\nimages = 0\nreason = "x"\n'
        )
        words = [str(tmp_path / "answers.csv"), "--data", str(root), "--quiet", *options]
        words += ["--config", str(tmp_path / "all.toml"), "--output", str(tmp_path / "out")]
        words += ["--preprocess", "paddle", "--precision", "fp32"]
        assert score.main(words if labels is None else [*words, "--labels", str(labels)]) == 0
        document = json.loads((tmp_path / "out" / "run.json").read_text())
        result = document["results"][0]
        return result["verdict"], f"{document['image_set']}; {result['reason']}"

    return call


@pytest.mark.parametrize("layout", ["folders", "flat", "tar", "kaggle", "parquet", "save_to_disk"])
def test_official_names_show_the_validation_set(
    tmp_path: Path, judged: Callable[..., tuple[str, str]], layout: str
) -> None:
    verdict, reason = judged(LAYOUTS[layout](tmp_path / "set"))
    assert (verdict, reason.partition(";")[0]) == ("PASS", "ILSVRC2012 validation")


def twice() -> Files:
    """Three photos, each under two official names."""
    return {f"{synset(n)}/{name(n)}": jpeg((n + 1) // 2) for n in range(1, 7)}


def resized(sizes: Callable[[int], tuple[int, int]]) -> Files:
    return {f"{synset(n)}/{name(n)}": photo(*sizes(n), n) for n in range(1, 41)}


FALSE_SETS: dict[str, tuple[Files, str]] = {
    "training names": (
        {f"{synset(n)}/{synset(n)}_{n}0026.JPEG": jpeg(n) for n in range(1, 7)},
        "unidentified images",
    ),
    "any photos": (
        {f"{synset(n)}/DSC_{n}.JPG": jpeg(n) for n in range(1, 7)},
        "unidentified images",
    ),
    "one of them renamed": (
        {f"{synset(n)}/{name(n) if n < 6 else 'x.JPEG'}": jpeg(n) for n in range(1, 7)},
        "unidentified images",
    ),
    "sketches, one of them renamed": (
        {f"{synset(n)}/sketch_{n}{'b' if n == 6 else ''}.JPEG": jpeg(n) for n in range(1, 7)},
        "unidentified images",
    ),
    "another suffix behind the official one": (
        {f"{synset(n)}/{name(n)}.jpg": jpeg(n) for n in range(1, 7)},
        "unidentified images",
    ),
    "the number of the official name": (
        {f"{synset(n)}/{n}.JPEG": jpeg(n) for n in range(1, 7)},
        "unidentified images",
    ),
    "all of one size, as ImageNet-C": (
        resized(lambda _: (224, 224)),
        "all of the first 40 images have 224 x 224 pixels",
    ),
    "all of one short side": (
        resized(lambda n: (256, 256 + n)),
        "all of the first 40 images have a short side of 256 pixels",
    ),
}


@pytest.mark.parametrize("case", FALSE_SETS)
def test_other_images_are_measured_and_never_compared(
    tmp_path: Path, judged: Callable[..., tuple[str, str]], case: str
) -> None:
    files, said = FALSE_SETS[case]
    verdict, reason = judged(folder(tmp_path / "set", files))
    assert verdict == "NO_REFERENCE"
    assert "the reported figures are for the ILSVRC2012 validation set" in reason
    assert reason.startswith("unidentified images")
    assert said in reason


def test_each_photo_twice_is_not_the_validation_set(
    tmp_path: Path, judged: Callable[..., tuple[str, str]]
) -> None:
    """The hashes are only known in the end; here, six images are also a part of the set."""
    for statement in ((), ("--image-set", "val")):
        files = twice()
        if statement:
            files = {path.replace("ILSVRC", "copy_of_"): data for path, data in files.items()}
        verdict, reason = judged(folder(tmp_path / f"{statement}", files), *statement)
        assert verdict == "PARTIAL"
        assert reason.startswith("unidentified images (3 have the bytes of another one); ")
    valset, digests = copied(50_000, 61)
    measured = counted(40_035, 47_435, valset=valset.doubted(digests), digests=digests)
    (result,) = judge(measured, load_variant("base_ssld"), "paddle", "fp32").forms
    assert result.verdict == "NO_REFERENCE"
    assert "(61 have the bytes of another one): the reported figures are for" in result.reason
    valset, digests = copied(50_000, 60)
    measured = counted(40_035, 47_435, valset=valset.doubted(digests), digests=digests)
    (result,) = judge(measured, load_variant("base_ssld"), "paddle", "fp32").forms
    assert result.verdict == "PASS"


def test_labels_of_a_list_do_not_show_what_the_images_are(
    tmp_path: Path, judged: Callable[..., tuple[str, str]]
) -> None:
    """As a list that was made from the model's own answers."""
    root = folder(tmp_path / "set", {f"photo_{n}.JPEG": jpeg(n) for n in range(1, 7)})
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"photo_{n}.JPEG {n}\n" for n in range(1, 7)))
    assert judged(root, labels=labels)[0] == "NO_REFERENCE"


def test_sizes_differ_in_the_validation_set(
    tmp_path: Path, judged: Callable[..., tuple[str, str]]
) -> None:
    root = folder(tmp_path / "set", resized(lambda n: (500 if n < 40 else 499, 375)))
    assert judged(root)[0] == "PASS"


@pytest.mark.parametrize("disguise", ["{}.jpg", "{}.JPEG", "{}.jpeg.png"])
def test_a_disguised_official_name_has_the_official_label(tmp_path: Path, disguise: str) -> None:
    path = f"{synset(2)}/{disguise.format(name(1))}"
    message = refusal(folder(tmp_path / "set", {path: jpeg(1)}))
    assert f"is {synset(2)} (970) by folders, {synset(1)} (65) by the official labels" in message


def test_what_is_stated_is_compared_and_said(
    tmp_path: Path,
    judged: Callable[..., tuple[str, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = {f"{synset(n)}/photo_{n}.JPEG": jpeg(n) for n in range(1, 7)}
    root = folder(tmp_path / "set", files)
    verdict, said = judged(root, "--image-set", "val")
    stated = "ILSVRC2012 validation as stated by --image-set val"
    assert (verdict, said.partition(";")[0]) == ("PASS", stated)
    printed = capsys.readouterr().out
    assert f"image set: {stated}\n" in printed
    assert f"({stated}, 6 synset folders)" in printed
    assert data.main(["--data", str(root), "--image-set", "val", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "Ready to evaluate as a partial set, 6 of 50,000 images" in printed
    assert data.main(["--data", str(root), "--quiet"]) == 0
    assert "do not show which set they are" in capsys.readouterr().out


def test_a_statement_does_not_outweigh_what_the_images_show(tmp_path: Path) -> None:
    sketches = folder(tmp_path / "x", {f"{synset(n)}/sketch_{n}.JPEG": jpeg(n) for n in (1, 2)})
    message = refusal(sketches, stated=STATED["val"])
    assert "these images are ImageNet-Sketch, not ILSVRC2012 validation" in message
    small_files = {path.replace("ILSVRC", "x_"): data for path, data in resized(one_size).items()}
    valset = open_valset(folder(tmp_path / "y", small_files), stated=STATED["val"])
    assert valset.image_set.is_judged
    assert "(all of the first 40 images have 224 x 224 pixels)" in valset.layout


def one_size(_: int) -> tuple[int, int]:
    return 224, 224


@pytest.mark.parametrize("others", [{"classes": "c.txt", "data": "x"}, {"demo": True}])
def test_only_images_of_imagenets_classes_can_be_stated(others: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="--image-set is for ImageNet"):
        Request(image_set="val", **others)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--image-set imagenet: use one of val"):
        Request(image_set="imagenet", data="x")


def copied(images: int, copies: int) -> tuple[ValSet, list[str]]:
    samples = tuple(Sample(name(n), 0) for n in range(1, images + 1))
    valset = ValSet(Path("x"), "x", samples, str.encode, VAL)
    return valset, [f"{max(0, i - copies):064x}" for i in range(images)]


@pytest.mark.parametrize(("copies", "is_val"), [(0, True), (60, True), (61, False)])
def test_the_set_has_some_copies_of_its_own(copies: int, is_val: bool) -> None:
    valset, digests = copied(50_000, copies)
    assert valset.doubted(digests).image_set.is_judged == is_val
    assert valset.doubted(digests).image_set.images == 50_000
    unread = valset.doubted([""] * 50_000)  # hashes that are not known are not alike
    assert unread.image_set is VAL


# --- Which files count


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({f"{synset(1)}/images/{name(7)}": jpeg(7)}, "images in other folders than those of"),
        ({f"more/{name(7)}": jpeg(7)}, "images in other folders than those of"),
        ({f"more/deep/{name(7)}": jpeg(7)}, "images in other folders than those of"),
        ({f"{synset(1)}/photo": jpeg(7)}, "is an image (JPEG) without the suffix of one"),
        ({f"{synset(1)}/photo.jpg_original": jpeg(7)}, "photo.jpg_original is an image (JPEG)"),
        ({"photo.bak": b"\x89PNG\r\n\x1a\n"}, "photo.bak is an image (PNG)"),
        ({"x.data": b"RIFF1234WEBPVP8 "}, "x.data is an image (WebP)"),
        ({"x.data": b"\0\0\0\x1cftypavif"}, "x.data is an image (AVIF or HEIC)"),
        ({"n00000001/a.jpg": jpeg(7)}, "n00000001: not among the 1000 classes"),
        ({name(7): jpeg(7)}, f"6 images in synset folders and 1 beside them ({name(7)})"),
    ],
)
def test_no_image_is_left_out(tmp_path: Path, pack: str, more: Files, message: str) -> None:
    assert message in refusal(PACKS[pack](tmp_path / "set", {**VAL_FILES, **more}))


@pytest.mark.parametrize("pack", PACKS)
def test_flat_files_beside_a_folder_that_has_more(tmp_path: Path, pack: str) -> None:
    files = {name(1): jpeg(1), f"more/{name(2)}": jpeg(2), f"more/{name(3)}": jpeg(3)}
    message = refusal(PACKS[pack](tmp_path / "set", files))
    assert "images in other folders than those of the flat files" in message


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("suffix", ["jfif", "jpe", "pgm", "avif", "heic", "jp2", "JPG"])
def test_suffixes_of_images(tmp_path: Path, pack: str, suffix: str) -> None:
    """Whether it can be decoded is another question, whose answer is an error."""
    files = {f"{synset(1)}/a.{suffix}": jpeg(7), f"{synset(2)}/b.png": jpeg(8)}
    assert (f"{synset(1)}/a.{suffix}", 65) in opened(PACKS[pack](tmp_path / "set", files))


@pytest.mark.parametrize("pack", PACKS)
def test_other_files_are_counted_and_named(tmp_path: Path, pack: str) -> None:
    more = {"README.md": b"x", f"{synset(1)}/notes.doc": b"x", "preview.png": jpeg(9)}
    hidden = {".DS_Store": b"", f"{synset(1)}/._{name(1)}": jpeg(1), ".cache/a.jpg": jpeg(1)}
    valset = open_valset(PACKS[pack](tmp_path / "set", {**VAL_FILES, **more, **hidden}))
    kind = "" if pack == "folder" else f"{pack} of "
    said, _, left_out = valset.layout.partition(", without ")
    assert said == f"{kind}6 synset folders, checked with the official labels"
    assert set(left_out.split(", ")) == set(more)
    assert [sample.path for sample in valset.samples] == sorted(VAL_FILES)


@pytest.mark.parametrize("pack", PACKS)
def test_classes_without_images_are_named(tmp_path: Path, pack: str) -> None:
    (tmp_path / "pets.txt").write_text("dog\ncat\nbird\n")
    files = {"dog/a.jpg": jpeg(1), "bird/b.jpg": jpeg(2), "cat/notes": b""}
    root = PACKS[pack](tmp_path / "set", files)
    valset = open_valset(root, classes=read_classes(tmp_path / "pets.txt"))
    assert valset.layout.endswith("2 class folders, without cat/notes, no images of cat")


def test_a_list_of_labels_in_the_folder_is_not_left_out(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("a.jpg 3\n")
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    assert "without" not in open_valset(tmp_path, labels).layout


@pytest.mark.parametrize("pack", ["tar", "zip"])
def test_the_set_lies_deeper_in_an_archive(tmp_path: Path, pack: str) -> None:
    files = {f"data/val/{path}": content for path, content in VAL_FILES.items()}
    files |= {f"data/train/{path}": content for path, content in VAL_FILES.items()}
    valset = open_valset(PACKS[pack](tmp_path / "set", files))
    assert " in data/val/, " in valset.layout
    assert [sample.path for sample in valset.samples] == sorted(VAL_FILES)
    assert valset.read(sorted(VAL_FILES)[0]) == VAL_FILES[sorted(VAL_FILES)[0]]


def test_imagenet_v2_in_an_archive(tmp_path: Path) -> None:
    files = {f"v2/{number}/{number:040x}.jpeg": b"x" for number in range(1000)}
    valset = open_valset(tar(tmp_path / "v2.tar", files))
    assert valset.image_set.name == "ImageNetV2"
    assert {sample.label for sample in valset.samples} == set(range(1000))


def test_a_zip_that_is_damaged_or_locked(tmp_path: Path) -> None:
    path = zipped(tmp_path / "val.zip", VAL_FILES)
    content = path.read_bytes()
    place = content.index(jpeg(1)) + 100
    path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
    valset = open_valset(path)
    with pytest.raises(DataError, match="cannot be read: Bad CRC-32"):
        valset.read(f"{synset(1)}/{name(1)}")
    path.write_bytes(content[:-30])
    assert "cannot be read as a zip" in refusal(path)


def test_tars_behind_each_other(tmp_path: Path) -> None:
    """`cat a.tar b.tar`; only the first has an end, and the second was never read."""
    halves = [dict(list(VAL_FILES.items())[:3]), dict(list(VAL_FILES.items())[3:])]
    first, second = (tar(tmp_path / f"{n}.tar", half) for n, half in enumerate(halves))
    both = tmp_path / "both.tar"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    assert "goes on behind the end of its archive: several tars in one?" in refusal(both)
    both.write_bytes(first.read_bytes() + bytes(20_480))
    assert len(opened(both)) == 3


def test_tars_that_were_appended_to_each_other(tmp_path: Path) -> None:
    """GNU tar's -A leaves the end marks in between, if they do not fill a record."""
    files = [dict([item]) for item in VAL_FILES.items()]
    paths = [tar(tmp_path / f"{n}.tar", part) for n, part in enumerate(files)]
    try:
        subprocess.run(["tar", "-A", "-f", *map(str, paths)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no GNU tar")
    with tarfile.open(paths[0], ignore_zeros=True) as archive:
        assert len(archive.getnames()) == 6
    with tarfile.open(paths[0]) as archive:
        seen = len(archive.getnames())
    if seen == 6:
        assert len(opened(paths[0])) == 6
    else:
        assert "goes on behind the end" in refusal(paths[0])


def test_eval_data_says_whether_a_tar_is_the_official_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tar(tmp_path / "val.tar", VAL_FILES)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    assert data.main(["--data", str(path), "--quiet"]) == 0
    assert f"\nMD5 of tar   {md5}: not the official tar\n" in capsys.readouterr().out
    monkeypatch.setattr("eval.images.survey.OFFICIAL_MD5", md5)
    assert data.main(["--data", str(path), "--quiet"]) == 0
    assert f"\nMD5 of tar   {md5}: the official tar\n" in capsys.readouterr().out


# --- The order of --limit


def test_the_order_of_official_images_is_that_of_their_names(tmp_path: Path) -> None:
    expected = sorted(map(name, range(1, 7)), key=lambda n: hashlib.sha256(n.encode()).digest())
    for layout, make in LAYOUTS.items():
        valset = open_valset(make(tmp_path / layout))
        assert [valset.samples[i].name for i in valset.shuffled()] == expected


def test_files_of_one_name_are_shuffled_too() -> None:
    paths = [f"{row.folder}/0.JPEG" for row in IMAGENET.rows]
    samples = tuple(Sample(path, label) for label, path in enumerate(paths))
    valset = ValSet(Path("x"), "x", samples, str.encode)
    labels = [valset.samples[i].label for i in valset.shuffled()]
    by_hand = sorted(range(1000), key=lambda i: hashlib.sha256(paths[i].encode()).digest())
    assert labels == by_hand
    assert labels[:100] != list(range(100))


# --- Files beside the images


def beside(suffix: str, content: Callable[[int], bytes], names: str = "{}.jpg") -> Files:
    files = {names.format(n): jpeg(n) for n in range(1, 7)}
    return files | {f"{names.format(n)[:-4]}.{suffix}": content(n) for n in range(1, 7)}


def label(number: int) -> int:
    return official_labels()[number - 1]


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("cls", lambda n: b"%d" % label(n)),
        ("cls", lambda n: b"%d\n" % label(n)),
        ("txt", lambda n: synset(n).encode()),
        ("json", lambda n: json.dumps({"label": label(n), "width": 5}).encode()),
        ("json", lambda n: json.dumps({"synset": synset(n)}).encode()),
    ],
)
def test_labels_beside_the_images(
    tmp_path: Path, pack: str, suffix: str, content: Callable[[int], bytes]
) -> None:
    """As WebDataset's shards have them."""
    root = PACKS[pack](tmp_path / "set", beside(suffix, content))
    assert opened(root) == [(f"{n}.jpg", label(n)) for n in range(1, 7)]
    assert open_valset(root).layout.endswith(f"flat files, labels of its .{suffix}")
    named = beside(suffix, content, "ILSVRC2012_val_{:08d}.jpg")
    layout = open_valset(PACKS[pack](tmp_path / "named", named)).layout
    assert layout.endswith(f"labels of its .{suffix}, checked with the official labels")


@pytest.mark.parametrize("names", ["ILSVRC2012_val_{:08d}.jpg", f"{synset(1)}/{{}}.jpg"])
def test_labels_beside_the_images_that_contradict(tmp_path: Path, names: str) -> None:
    files = beside("cls", lambda _: b"7", names)
    message = refusal(tar(tmp_path / "set.tar", files))
    assert "(7) by its .cls" in message


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        ("cls", b"tinker", ".cls is not a class: tinker"),
        ("cls", b"", ".cls is not a class"),
        ("cls", b"1000", ".cls has the class 1000; indices are 0 to 999"),
        ("json", b'{"label": -1}', "labels are unknown"),  # as Hugging Face has it
        ("json", b'{"label": -2}', ".json has the class -2"),
    ],
)
def test_labels_of_other_classes(tmp_path: Path, suffix: str, content: bytes, message: str) -> None:
    assert message in refusal(folder(tmp_path / "set", beside(suffix, lambda _: content)))


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("txt", b"a photo of a tench"),
        ("json", b'{"caption": "x"}'),
        ("json", b"[" * 100_000),
        ("json", b"\xff"),
        ("json", b'{"label": true}'),
    ],
)
def test_captions_are_no_labels(tmp_path: Path, suffix: str, content: bytes) -> None:
    names = "ILSVRC2012_val_{:08d}.jpg"
    valset = open_valset(folder(tmp_path / "set", beside(suffix, lambda _: content, names)))
    assert valset.layout.startswith("flat files, official labels, without ILSVRC2012_val_0000")
    assert valset.layout.endswith("(6 in all)")


@pytest.mark.parametrize("pack", PACKS)
def test_metadata_of_an_image_folder(tmp_path: Path, pack: str) -> None:
    files = {f"{n}.jpg": jpeg(n) for n in range(1, 7)}
    table = "file_name,label\n" + "".join(f"{n}.jpg,{label(n)}\n" for n in range(1, 7))
    root = PACKS[pack](tmp_path / "a", {**files, "metadata.csv": table.encode()})
    assert opened(root) == [(f"{n}.jpg", label(n)) for n in range(1, 7)]
    rows = [json.dumps({"file_name": f"{n}.jpg", "label": synset(n)}) for n in range(1, 7)]
    root = PACKS[pack](tmp_path / "b", {**files, "metadata.jsonl": "\n".join(rows).encode()})
    assert opened(root) == [(f"{n}.jpg", label(n)) for n in range(1, 7)]
    named = {name(n): jpeg(n) for n in range(1, 7)}
    rows = [json.dumps({"file_name": name(n), "label": 7}) for n in range(1, 7)]
    root = PACKS[pack](tmp_path / "c", {**named, "metadata.jsonl": "\n".join(rows).encode()})
    assert "(7) by metadata.jsonl" in refusal(root)


def test_shards_of_webdataset(tmp_path: Path) -> None:
    """A folder of tars is one set; no image is in two of them."""
    files = list(beside("cls", lambda n: b"%d" % label(n), "ILSVRC2012_val_{:08d}.jpg").items())
    (tmp_path / "wds").mkdir()
    files.sort()
    for number in range(3):
        part = dict(files[4 * number : 4 * number + 4])
        tar(tmp_path / "wds" / f"imagenet1k-validation-{number:02d}.tar", part)
    (tmp_path / "wds" / "_info.json").write_text("{}")
    valset = open_valset(tmp_path / "wds")
    assert valset.layout == (
        "3 tars of flat files, labels of its .cls, checked with the official labels"
    )
    assert {s.name: valset.read(s.path) for s in valset.samples} == {
        name(n): jpeg(n) for n in range(1, 7)
    }
    assert valset.image_set is VAL
    tar(tmp_path / "wds" / "imagenet1k-validation-03.tar", dict(files[:2]))
    assert "contains ILSVRC2012_val_00000001.cls twice" in refusal(tmp_path / "wds")


# --- Lists of classes


@pytest.mark.parametrize(
    "text",
    [
        "cat 1\ndog 0\nbird 2\n",
        "name index\ncat 1\ndog 0\nbird 2\n",
        "# the classes\ncat\t1\ndog\t0\n# the last one\nbird\t2\n",
        "# name\ndog\ncat\nbird\n",
        '{"cat": 1, "dog": 0, "bird": 2}',
        '{"1": "cat", "0": "dog", "2": "bird"}',
        '{"id2label": {"0": "dog", "1": "cat", "2": "bird"}, "architectures": []}',
        '{"0": ["dog", "Dog"], "1": ["cat", "Cat"], "2": ["bird", "Bird"]}',
    ],
)
def test_classes_are_in_the_order_of_their_indices(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.txt").write_text(text)
    classes = read_classes(tmp_path / "c.txt")
    assert [row.folder for row in classes.rows] == ["dog", "cat", "bird"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat 1\ndog 2\nbird 3\n", "not the indices 0 to 2, each once"),
        ("cat 0\ndog 0\n", "not the indices 0 to 1, each once"),
        ("class\ncat\ndog\n", "line 1 looks like a header (class), not like a class"),
        ("name title\ncat Cat\ndog Dog\n", "looks like a header (name title)"),
        ("1 cat\n0 dog\n", "numbers before its names, in another order than its lines"),
        ('{"cat": 1, "dog": 2}', "does not give each of the indices"),
        ('{"cat": 0, "dog": 0}', "does not give each of the indices"),
        ('{"0": "cat", "1": "cat"}', "class 1: cat is also class 0"),
        ("{", "is not JSON"),
    ],
)
def test_lists_of_classes_that_are_not_clear(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(DataError) as caught:
        read_classes(tmp_path / "c.txt")
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == 1


@pytest.mark.parametrize("names", [("0 cat", "1 dog"), ("7 cat", "5 dog"), ("10 Ten", "2")])
def test_numbers_may_be_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    (tmp_path / "c.txt").write_text("\n".join(names))
    rows = read_classes(tmp_path / "c.txt").rows
    assert [row.folder for row in rows] == [text.split()[0] for text in names]
