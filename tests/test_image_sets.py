"""ImageNetV2, -A, -R and -Sketch: recognized, labeled, scored among their classes, never gated."""

from __future__ import annotations

import csv
import importlib.resources
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import jpeg
from torchvision import transforms
from torchvision.datasets.folder import pil_loader

import pplcnet
from eval import data
from eval.config import load_config, load_variant
from eval.errors import DataError, UsageError
from eval.imagenet import main
from eval.images import sets as image_sets
from eval.images.classes import imagenet_classes
from eval.images.sets import VAL, recognize
from eval.images.valset import Sample, ValSet, open_valset
from eval.judge.verdict import Verdict, judge
from eval.measure.measurement import Measurement
from eval.metrics import Scores
from eval.score import main as score_main

PHOTO = jpeg(np.random.RandomState(0).randint(0, 256, (40, 48, 3), dtype=np.uint8))
SYNSETS = [row.synset for row in imagenet_classes()]


def timm_indices(letter: str) -> list[int]:
    file = importlib.resources.files("timm.data") / "_info" / f"imagenet_{letter}_indices.txt"
    return [int(line) for line in file.read_text().split()]


def numbered(root: Path, numbers: range = range(1000)) -> Path:
    for number in numbers:
        (root / str(number)).mkdir(parents=True)
        (root / str(number) / f"{number:040x}.jpeg").write_bytes(PHOTO)
    return root


def classes_of(root: Path, labels: list[int], name: str = "art_0.jpg") -> Path:
    for label in labels:
        (root / SYNSETS[label]).mkdir(parents=True, exist_ok=True)
        (root / SYNSETS[label] / name).write_bytes(PHOTO)
    return root


# Recognized


def test_folders_of_imagenet_v2_are_numbers(tmp_path: Path) -> None:
    valset = open_valset(numbered(tmp_path / "v2"))
    assert valset.image_set is image_sets.V2
    assert valset.layout == "ImageNetV2, 1000 numbered folders, read as numbers (2 before 10)"
    assert {sample.path: sample.label for sample in valset.samples} == {
        f"{number}/{number:040x}.jpeg": number for number in range(1000)
    }
    assert valset.limited(7).image_set is image_sets.V2


def test_some_numbered_folders_may_be_anything(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ImageNetV2 has all the folders 0 to 999"):
        open_valset(numbered(tmp_path / "some", range(999)))
    with pytest.raises(DataError, match="has numbered folders"):
        open_valset(numbered(tmp_path / "ids", range(1, 1001)))
    with pytest.raises(DataError, match="has numbered folders"):
        open_valset(numbered(tmp_path / "more", range(1001)))
    renamed = numbered(tmp_path / "renamed")
    for number in range(1000):
        (renamed / f"{number}" / f"{number:040x}.jpeg").rename(renamed / f"{number}" / "0.jpeg")
    with pytest.raises(DataError, match="has numbered folders"):
        open_valset(renamed)
    assert open_valset(renamed, folders="index").image_set is image_sets.UNIDENTIFIED
    official = numbered(tmp_path / "official")
    for number in range(1, 6):
        (official / f"{number}" / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(PHOTO)
    with pytest.raises(DataError, match="has numbered folders"):
        open_valset(official)


@pytest.mark.parametrize(("letter", "name"), [("a", "ImageNet-A"), ("r", "ImageNet-R")])
def test_subsets_are_known_by_their_classes(tmp_path: Path, letter: str, name: str) -> None:
    labels = timm_indices(letter)
    valset = open_valset(classes_of(tmp_path / "set", labels))
    assert valset.image_set.name == name
    assert valset.image_set.classes is not None
    assert list(valset.image_set.classes) == labels
    assert valset.among == valset.image_set.classes
    assert valset.layout == f"{name}, predictions restricted to its 200 classes, 200 synset folders"


def test_the_same_classes_of_the_val_set_are_the_val_set() -> None:
    labels = timm_indices("a")
    official = [f"{SYNSETS[label]}/ILSVRC2012_val_{label + 1:08d}.JPEG" for label in labels]
    assert recognize(official, labels, numbered=False) is VAL
    others = [f"{SYNSETS[label]}/x.jpg" for label in labels]
    assert recognize(others, labels, numbered=False) is image_sets.A
    assert recognize([*others, "n01440764/x.jpg"], [*labels, 0]) is image_sets.UNIDENTIFIED


@pytest.mark.parametrize(("letter", "name"), [("a", "ImageNet-A"), ("r", "ImageNet-R")])
@pytest.mark.parametrize("missing", [1, 5, 100])
def test_some_folders_of_a_subset_are_missing(
    tmp_path: Path, letter: str, name: str, missing: int
) -> None:
    """It is not the validation set, whose reference would stand beside it."""
    labels = timm_indices(letter)[missing:]
    valset = open_valset(classes_of(tmp_path / "set", labels))
    assert valset.image_set.name == name
    assert not valset.image_set.is_judged
    assert valset.among == tuple(timm_indices(letter))
    assert len(valset.samples) == 200 - missing


def test_few_classes_may_be_anything() -> None:
    labels = timm_indices("a")[:99]
    paths = [f"{SYNSETS[label]}/x.jpg" for label in labels]
    assert recognize(paths, labels) is image_sets.UNIDENTIFIED
    assert len(set(timm_indices("a")) & set(timm_indices("r"))) == 86  # never both at once


def test_a_renamed_training_set_is_still_refused(tmp_path: Path) -> None:
    for number in range(51):
        classes_of(tmp_path / "set", timm_indices("r")[:3], f"art_{number}.jpg")
    with pytest.raises(DataError, match="part of another set, or were images copied twice"):
        open_valset(tmp_path / "set")


def test_sketches_are_known_by_their_names(tmp_path: Path) -> None:
    root = classes_of(tmp_path / "set", [0, 1, 2], "sketch_0.JPEG")
    assert open_valset(root).image_set is image_sets.SKETCH
    (root / SYNSETS[1] / "photo.JPEG").write_bytes(PHOTO)
    assert open_valset(root).image_set is image_sets.UNIDENTIFIED


def test_too_many_images(tmp_path: Path) -> None:
    root = numbered(tmp_path / "v2")
    for copy in range(10):
        (root / "3" / f"{1000 + copy:040x}.jpeg").write_bytes(PHOTO)
    with pytest.raises(DataError, match=r"11 images of n01491361.*ImageNetV2 has 10 of each"):
        open_valset(root)


# Looked over


def test_eval_data_knows_the_size_of_the_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = classes_of(tmp_path / "set", timm_indices("r"))
    for label in timm_indices("r"):  # no copies
        pixels = np.full((30, 30 + label % 50, 3), label % 250, np.uint8)
        (root / SYNSETS[label] / "art_0.jpg").write_bytes(jpeg(pixels, comment=f"{label}"))
    assert data.main(["--data", str(root), "--quiet"]) == 0
    text = capsys.readouterr().out
    assert "images       200 of 30,000" in text
    assert "classes      200 of 200" in text
    assert data.main(["--data", str(root), "--quiet", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["images_expected"], document["classes_expected"]) == (30_000, 200)
    assert document["complete"] is False


# Scored


def test_answers_are_taken_among_the_classes_of_the_set() -> None:
    logits = np.array([[9.0, 5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 9, 8, 7]], np.float32)
    among = np.array([1, 2, 3, 4, 5, 6])
    scores = Scores.of(logits, np.array([2, 6]), among)
    assert scores.rank.tolist() == [1, 2]
    assert scores.top.tolist() == [[1, 2, 3, 4, 5], [4, 5, 6, 3, 2]]
    # By hand: exp(4 - 5) / (1 + e^-1 + e^-2 + e^-3 + e^-4 + e^-5), without the 9 of class 0.
    assert scores.prob[0, 1] == pytest.approx(0.2331, abs=1e-4)
    assert Scores.of(logits, np.array([2, 6])).rank.tolist() == [2, 2]


def test_a_run_over_imagenet_a_scores_as_timm_does(
    tmp_path: Path, model: pplcnet.PPLCNetV2, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = timm_indices("a")
    root = tmp_path / "set"
    rng = np.random.RandomState(1)
    for label in labels:
        (root / SYNSETS[label]).mkdir(parents=True)
        pixels = rng.randint(0, 256, (8, 8, 3), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
        (root / SYNSETS[label] / "x.png").write_bytes(jpeg(pixels))
    output = tmp_path / "out"
    assert main([
        *("--data", str(root), "--variant", "small", "--weights", str(weights), "--quiet"),
        *("--forms", "unfused", "--output", str(output), "--limit", "60"),
    ]) == 0  # fmt: skip
    assert "ImageNet-A, predictions restricted to its 200 classes" in capsys.readouterr().out

    pipeline = transforms.Compose([
        transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    with (output / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    paths = [root / row["path"] for row in rows]
    with torch.inference_mode():
        answers = model(torch.stack([pipeline(pil_loader(str(path))) for path in paths]))
    best = torch.tensor(labels)[answers[:, labels].argmax(1)]  # as timm's validate.py
    everything = answers.argmax(1)
    ours = [int(row["unfused_top1"]) for row in rows]
    assert ours == best.tolist()
    assert ours != everything.tolist()
    with (output / "summary.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["images_expected"], row["verdict"], row["reference_top1"]) == (
        "7500",
        "PARTIAL",
        "",
    )


def measured(image_set: image_sets.ImageSet, images: int) -> Measurement:
    scores = Scores.empty(images)
    scores.rank[:] = 0
    samples = (Sample("0/x.jpeg", 0),) * images
    valset = ValSet(Path("x"), "x", samples, lambda _: b"", image_set)
    return Measurement(valset, {"unfused": scores}, np.zeros(images), 10.0, [""] * images, 1.0)


def test_other_sets_are_never_gated() -> None:
    config = load_variant("base_ssld")
    whole = judge(measured(image_sets.V2, 10_000), config, "paddle", "fp32")
    assert whole.verdict is Verdict.NO_REFERENCE
    (result,) = whole.forms
    assert "the reported figures are for the ILSVRC2012 validation set" in result.reason
    assert result.images_expected == 10_000
    assert result.reference == {1: None, 5: None}
    part = judge(measured(image_sets.V2, 9_999), config, "paddle", "fp32")
    assert part.verdict is Verdict.PARTIAL


def test_published_figures_are_shown_beside_their_own_set(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = numbered(tmp_path / "v2")
    assert main([
        *("--data", str(root), "--variant", "small", "--weights", str(weights), "--quiet"),
        *("--limit", "8", "--forms", "unfused", "--output", str(tmp_path / "out")),
    ]) == 0  # fmt: skip
    text = capsys.readouterr().out
    assert "60.980" in text
    assert "bicubic, crop_pct 0.875" in text
    assert "73.97" not in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert "60.98" in page
    assert " on ImageNetV2" in page
    for name, top1 in {"small": 60.98, "base": 65.05, "base_ssld": 68.82, "large": 66.74}.items():
        assert [other.top1 for other in load_variant(name).others_on(image_sets.V2.name)] == [top1]
        assert top1 not in [other.top1 for other in load_variant(name).others_on(VAL.name)]


def test_a_configuration_names_a_set_that_exists(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(
        'name = "x"\nmodel = "base"\n[[others]]\nname = "y"\ntop1 = 1.0\nsource = "z"\nset = "V3"\n'
    )
    with pytest.raises(UsageError, match=r"set = 'V3': unknown.*ImageNetV2"):
        load_config(path)


def test_predictions_made_elsewhere_are_not_scored_among_other_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = classes_of(tmp_path / "set", timm_indices("a"))
    np.save(tmp_path / "logits.npy", np.zeros((200, 1000)))
    assert score_main([str(tmp_path / "logits.npy"), "--data", str(root), "--quiet"]) == 2
    assert "is ImageNet-A, where only the classes of the set are ranked" in capsys.readouterr().err
