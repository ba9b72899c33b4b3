"""``python -m eval.data``: what it counts, what it finds, and its exit codes."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import small_valsets as small
from PIL import Image
from small_valsets import IMAGES, LAYOUTS, jpeg, name, synset

from eval.data import main
from eval.images import survey
from eval.images.labels import official_labels
from eval.images.sets import VAL
from eval.images.survey import Look, Survey, look_at, to_text
from eval.images.valset import Sample, ValSet

ROOT = Path(__file__).parents[1]
PARTIAL_ADVICE = (
    "Ready to evaluate as a partial set, 6 of 50,000 images: python -m eval.imagenet gives the "
    "verdict PARTIAL."
)


def run(capsys, root: Path, *options: str) -> tuple[int, str, str]:
    code = main(["--data", str(root), "--quiet", *options])
    out, err = capsys.readouterr()
    return code, out, err


def run_json(capsys, root: Path) -> tuple[int, dict]:
    code, out, _ = run(capsys, root, "--json")
    return code, json.loads(out)


def picture(format_: str = "JPEG", mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    image = Image.linear_gradient("L").resize((300, 260)).convert("RGB").convert(mode)
    image.save(file, format_, **options)
    return file.getvalue()


@functools.cache
def seen(images: int, *, copies: int = 0) -> Survey:
    """A survey of official images, of which the last few have the bytes of the first."""
    samples = [Sample(name(n), label) for n, label in enumerate(official_labels(), 1)][:images]
    digests = [f"{i:064x}" for i in range(images - copies)] + [f"{0:064x}"] * copies
    valset = ValSet(Path("set"), "flat files", tuple(samples), lambda path: path.encode(), VAL)
    return Survey(valset, [Look(digest, "", ()) for digest in digests])


def test_text_of_a_clean_partial_set(tmp_path: Path, capsys):
    code, out, err = run(capsys, small.folders(tmp_path / "set"))
    assert code == 0
    assert err == ""
    assert out.splitlines() == [
        "layout       6 synset folders, checked with the official labels",
        "images       6 of 50,000",
        "classes      6 of 1,000, images per class: 1",
        "unreadable   none",
        "duplicates   none",
        "unusual      6 short side under 256",
        f"fingerprint  {expected_fingerprint()}",
        "",
        PARTIAL_ADVICE,
    ]


def expected_fingerprint() -> str:
    """Worked out without the code that is tested."""
    lines = [
        f"{name(n)} {official_labels()[n - 1]} {hashlib.sha256(jpeg(n)).hexdigest()}\n"
        for n in range(1, IMAGES + 1)
    ]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_json_in_every_layout(tmp_path: Path, capsys, layout: str):
    root = LAYOUTS[layout](tmp_path / "set")
    code, document = run_json(capsys, root)
    counts = document.pop("images_per_class")
    assert len(counts) == 1000
    assert {key for key, count in counts.items() if count} == {synset(n) for n in range(1, 7)}
    assert document.pop("layout")
    assert code == 0
    assert document == {
        "data": str(root),
        "ok": True,
        "complete": False,
        "images": 6,
        "images_expected": 50_000,
        "classes": 6,
        "classes_expected": 1000,
        "unreadable": [],
        "duplicates": [],
        "oddities": {"short side under 256": 6},
        "dataset_sha256": expected_fingerprint(),
        "problems": [],
        "advice": PARTIAL_ADVICE,
    }


def test_shared_images(capsys, shared: Path):
    code, document = run_json(capsys, shared / "imagenet-val-4")
    assert code == 0
    assert (document["images"], document["classes"], document["oddities"]) == (4, 4, {})
    assert "without the unlabeled whl_demo.jpg" in document["layout"]


def test_labels_option(tmp_path: Path, capsys):
    root = tmp_path / "set"
    root.mkdir()
    (root / "cat.jpg").write_bytes(jpeg(1))
    (tmp_path / "list.txt").write_text("cat.jpg 281\n")
    code, out, _ = run(capsys, root, "--labels", str(tmp_path / "list.txt"))
    assert code == 0
    assert "flat files, labels of list.txt" in out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (picture()[:-500], "image file is truncated"),
        (picture()[:200], "Truncated File Read"),
        (b"", "not an image that Pillow knows"),
        (b"<html>not found</html>", "not an image that Pillow knows"),
        (picture("PNG")[:-500], ""),
        (picture("PCX"), "OpenCV cannot decode it"),
    ],
)
def test_unreadable_image(tmp_path: Path, capsys, content: bytes, reason: str):
    root = small.flat(tmp_path / "set")
    (root / name(2)).write_bytes(content)
    code, document = run_json(capsys, root)
    assert code == 3
    assert document["ok"] is False
    [bad] = document["unreadable"]
    assert bad["path"] == name(2)
    assert reason in bad["reason"]
    assert document["dataset_sha256"]  # of its bytes, as in a run that records bad images
    assert document["problems"] == [
        "1 image cannot be decoded: replace with intact copies; no image may be left out."
    ]
    code, out, _ = run(capsys, root)
    assert code == 3
    assert f"unreadable   1\n    {name(2)}: {bad['reason']}\n" in out
    assert out.endswith("no image may be left out.\n")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_anywhere_is_found(mode: str, progressive: bool):
    """No decoder may fill the rest with gray."""
    whole = picture(mode=mode, progressive=progressive)
    assert look_at(whole).problem == ""
    for size in range(0, len(whole) - 2, 61):
        assert look_at(whole[:size]).problem


def test_file_that_is_not_there(tmp_path: Path, capsys):
    root = small.flat(tmp_path / "set")
    (root / name(7)).symlink_to("nowhere")
    code, document = run_json(capsys, root)
    assert code == 3
    assert "is a link to a file that is gone: nowhere" in document["unreadable"][0]["reason"]
    assert document["dataset_sha256"] is None
    assert "fingerprint  none" in run(capsys, root)[1]


def test_copies(tmp_path: Path, capsys):
    root = small.flat(tmp_path / "set")
    (root / name(7)).write_bytes(jpeg(2))
    code, document = run_json(capsys, root)
    assert code == 3
    assert document["duplicates"] == [[name(2), name(7)]]
    assert document["problems"][0].startswith("1 image duplicated under another name")
    assert f"duplicates   1\n    {name(2)} = {name(7)}\n" in run(capsys, root)[1]


@pytest.mark.parametrize(("copies", "ok"), [(60, True), (61, False)])
def test_the_set_has_copies_of_its_own(copies: int, ok: bool):
    found = seen(50_000, copies=copies)
    assert found.complete
    assert (found.problems == []) == ok


@pytest.mark.parametrize(
    ("images", "ok", "advice"),
    [
        (
            50_000,
            True,
            "Ready to evaluate: the whole validation set, with python -m eval.imagenet.",
        ),
        (49_999, False, "Not ready to evaluate: 1 image missing: complete the copy."),
        (45_000, False, "Not ready to evaluate: 5,000 images missing: complete the copy."),
        (44_999, True, "Ready to evaluate as a partial set, 44,999 of 50,000 images: "),
    ],
)
def test_missing_images(images: int, ok: bool, advice: str):
    found = seen(images)
    assert found.complete == (images == 50_000)
    assert (found.problems == []) == ok
    assert found.advice.startswith(advice)


def test_text_of_the_whole_set():
    lines = to_text(seen(50_000)).splitlines()
    assert lines[1] == "images       50,000 of 50,000"
    assert lines[2] == "classes      1,000 of 1,000, images per class: 50"
    assert re.search(r"images per class: 3\d to 50", to_text(seen(45_000)))


def test_long_lists_are_cut_in_text(tmp_path: Path, capsys):
    root = tmp_path / "set"
    root.mkdir()
    for number in range(1, 14):
        (root / name(number)).write_bytes(b"%d" % number)
    code, out, _ = run(capsys, root)
    assert code == 3
    assert "unreadable   13\n" in out
    assert out.count("not an image that Pillow knows") == 10
    assert "    ... and 3 more\n" in out


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture(exif=exif)


@pytest.mark.parametrize(
    ("content", "oddities"),
    [
        (picture(), ()),
        (picture(mode="L"), ("grayscale",)),
        (picture(mode="CMYK"), ("CMYK",)),
        (picture("PNG"), ("PNG format",)),
        (picture("PNG", "P"), ("mode P", "PNG format")),
        (picture("PNG", "RGBA"), ("mode RGBA", "PNG format")),
        (rotated(1), ()),
        (rotated(6), ("EXIF orientation",)),
        (jpeg(1), ("short side under 256",)),
    ],
)
def test_oddities(content: bytes, oddities: tuple[str, ...]):
    look = look_at(content)
    assert look == Look(hashlib.sha256(content).hexdigest(), "", oddities)


def test_damaged_exif(tmp_path: Path, capsys):
    """It warns or raises in Pillow, and neither may end the survey or become a line of its own."""
    content = rotated(6)
    start = content.index(b"Exif\0\0") + 6
    root = small.flat(tmp_path / "set")
    for offset in range(24):
        (root / name(2)).write_bytes(
            content[: start + offset] + b"\xff" + content[start + offset + 1 :]
        )
        code, _, err = run(capsys, root)
        assert (code, err) == (0, "")


def test_labels_that_disagree(tmp_path: Path, capsys):
    root = small.folders(tmp_path / "set")
    (root / synset(1) / name(1)).rename(root / synset(2) / name(1))
    code, out, err = run(capsys, root)
    assert (code, out) == (3, "")
    assert err.startswith(f"error: --data {root}: labels disagree for 1 of 6 images: ")
    assert err.count("\n") == 2
    code, document = run_json(capsys, root)
    assert code == 3
    assert document["ok"] is False
    assert document["problems"] == [err.removeprefix("error: ").rstrip()]


def test_no_set(tmp_path: Path, capsys):
    code, out, err = run(capsys, tmp_path / "none")
    assert (code, out) == (3, "")
    assert "there is no such file or folder" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "missing: --data.\npython -m eval.data --help explains the options."),
        (["--data"], "--data: expected one argument.\n"),
        (["--data", "x", "--workers", "0"], "--workers 0: use a positive number."),
        (["--dat", "x"], "python -m eval.data does not take --dat.\nDid you mean: "),
    ],
)
def test_usage(capsys, options: list[str], message: str):
    assert main(options) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert "usage:" not in error


def test_interrupted(tmp_path: Path, capsys, monkeypatch):
    def interrupt(_: bytes) -> Look:
        raise KeyboardInterrupt

    monkeypatch.setattr(survey, "look_at", interrupt)
    code, out, err = run(capsys, small.flat(tmp_path / "set"))
    assert (code, out) == (130, "")
    assert err == "interrupted: not all images were checked\n"


def test_workers_do_not_change_the_result(tmp_path: Path, capsys):
    root = small.flat(tmp_path / "set", images=40)
    (root / name(20)).write_bytes(b"x")
    results = [run(capsys, root, "--json", "--workers", n) for n in ("1", "7")]
    assert results[0] == results[1]


def test_command_line(tmp_path: Path):
    """Progress is on stderr, the result on stdout."""
    ran = subprocess.run(
        [sys.executable, "-m", "eval.data", "--data", str(small.flat(tmp_path / "set")), "--json"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(ran.stdout)["ok"] is True
    assert "6/6" in ran.stderr


def test_help_needs_nothing_heavy():
    code = (
        "import sys; from eval.data import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print({'numpy', 'cv2', 'PIL', 'torch', 'tqdm', 'pyarrow'} & set(sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "Exit codes: 0 ready to evaluate" in ran.stdout
    assert ran.stdout.endswith("set()\n")
