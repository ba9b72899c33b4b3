"""The ReaL labels, with a denominator of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import jpeg
from timm.data.real_labels import RealLabelsImagenet

from eval.errors import DataError
from eval.imagenet import main
from eval.images.labelset import LabelScore, LabelSet, real, real_labels, score
from eval.images.valset import ValSet, open_valset

MakeVal = Callable[..., Path]
NUMBERS = (1, 2, 3, 20, 41, 50000)
ROOT = Path(__file__).parents[1]


@pytest.fixture
def valset(tmp_path: Path) -> ValSet:
    (tmp_path / "val").mkdir()
    for number in NUMBERS:
        name = f"ILSVRC2012_val_{number:08}.JPEG"
        (tmp_path / "val" / name).write_bytes(jpeg(np.zeros((8, 8, 3), np.uint8)))
    return open_valset(tmp_path / "val")


def test_counts_by_hand() -> None:
    labels = LabelSet("mine", (frozenset({3}), frozenset({1, 4}), frozenset(), frozenset({0})))
    top = np.array([[3, 0, 1, 2, 5], [2, 4, 0, 1, 9], [7, 8, 9, 1, 2], [-1, -1, -1, -1, -1]])
    assert score(labels, top) == LabelScore("mine", images=3, top1_correct=1, top5_correct=2)
    assert score(labels, top).top1 == 100 / 3
    assert score(labels, top).top5 == 200 / 3


def test_images_and_predictions_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="argument 2"):
        score(LabelSet("mine", (frozenset({3}),)), np.zeros((2, 5), np.int64))
    with pytest.raises(ValueError, match="No image has a label of none"):
        score(LabelSet("none", (frozenset(),)), np.zeros((1, 5), np.int64))


def test_labels_are_those_of_the_file_names(valset: ValSet) -> None:
    found = real(valset)
    assert found.name == "ReaL"
    assert found.accepted == tuple(real_labels()[number - 1] for number in NUMBERS)
    assert len(real_labels()) == 50_000


def test_scores_are_timms(valset: ValSet) -> None:
    rng = np.random.default_rng(0)
    tops = np.array([rng.permutation(1000)[:5] for _ in NUMBERS])
    labeled = [row for row, number in enumerate(NUMBERS) if real_labels()[number - 1]]
    assert 2 < len(labeled) < len(NUMBERS)
    tops[labeled[0], 3] = min(real_labels()[NUMBERS[labeled[0]] - 1])  # among the five only
    for row in labeled[1:3]:
        tops[row, 0] = max(real_labels()[NUMBERS[row] - 1])

    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in NUMBERS]
    theirs = RealLabelsImagenet([""] * 50_000)
    hits = {1: 0, 5: 0}
    images = 0
    for name, top in zip(names, tops.tolist(), strict=True):
        known = theirs.real_labels[name]
        images += bool(known)
        for k in hits:
            hits[k] += any(answer in known for answer in top[:k])
    found = score(real(valset), tops)
    assert (found.images, found.top1_correct, found.top5_correct) == (images, hits[1], hits[5])
    assert found.top1_correct < found.top5_correct
    assert found.top1 == 100 * hits[1] / images


def test_a_bad_image_counts_as_wrong(valset: ValSet) -> None:
    found = score(real(valset), np.full((len(NUMBERS), 5), -1))
    assert found.images > 0
    assert found.top5_correct == 0


def test_names_that_are_not_official_are_refused(val_folder: MakeVal) -> None:
    with pytest.raises(DataError, match=r"a\.JPEG has no official name"):
        real(open_valset(val_folder({"n01440764": ["a.JPEG"]})))


def test_images_without_any_label_are_refused(tmp_path: Path) -> None:
    number = next(number for number, labels in enumerate(real_labels(), 1) if not labels)
    (tmp_path / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 1 images has a ReaL label"):
        real(open_valset(tmp_path))


def test_label_sets_need_nothing_of_the_measurement() -> None:
    code = (
        "import sys; from eval.images.labelset import real_labels; from eval.images.sets import A;"
        "real_labels(); A.classes; slow = ('eval.measure', 'torch', 'timm', 'cv2');"
        "print([name for name in sys.modules if name.startswith(slow)])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"


def test_a_run_shows_them_beside_the_official_ones(
    valset: ValSet, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    words = ["--data", str(valset.root), "--variant", "small", "--real-labels", "--quiet"]
    words += ["--weights", str(weights), "--output", str(output)]
    assert main([*words, "--forms", "reparameterized"]) == 0
    images = real(valset).images
    assert f"ReaL: {images} images have ReaL labels\n" in capsys.readouterr().out
    page = (output / "report.html").read_text()
    assert "reparameterized, ReaL labels" in page


def test_refusals_in_words(val_folder: MakeVal, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        real(open_valset(val_folder({"n01440764": ["a.JPEG"]})))
    assert str(caught.value) == (
        "--real-labels: n01440764/a.JPEG has no official name (ILSVRC2012_val_00000001.JPEG to "
        "00050000), which is needed to find its ReaL labels.\nOmit --real-labels."
    )
    number = next(number for number, labels in enumerate(real_labels(), 1) if not labels)
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        real(open_valset(tmp_path / "flat"))
    assert str(caught.value) == (
        "--real-labels: none of the 1 images has a ReaL label.\n"
        "Omit --real-labels, or use more images."
    )
    with pytest.raises(ValueError, match=r"^No image has a label of none\.$"):
        score(LabelSet("none", (frozenset(),)), np.zeros((1, 5), np.int64))


def test_real_labels_by_hand(valset: ValSet) -> None:
    """As in the file that the authors publish: the first three images."""
    assert real_labels()[:3] == (frozenset(), frozenset({970, 795}), frozenset({230, 231}))
    assert real(valset).accepted[1] == frozenset({970, 795})


def test_percentages_are_unrounded() -> None:
    found = LabelScore("mine", images=8, top1_correct=1, top5_correct=3)
    assert (found.top1, found.top5) == (12.5, 37.5)
    assert LabelSet("mine", (frozenset({0}), frozenset(), frozenset({1, 2}))).images == 2
