"""Each layout of docs/inputs.md gives `eval.data` and `eval.imagenet` what a plain folder does."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_valsets as small
import timm
import torch
from safetensors.torch import save_file
from small_valsets import IMAGES, LAYOUTS, jpeg, name, rows, stream, synset

from eval import Evaluation, Request, evaluate
from eval.data import main as data_main
from eval.images.classes import IMAGENET
from eval.images.labels import official_labels
from eval.images.valset import open_valset

NUMBERS = range(1, IMAGES + 1)


def zipped(root: Path) -> Path:
    return Path(shutil.make_archive(str(root), "zip", small.folders(root)))


def web_dataset(root: Path) -> Path:
    """Two shards, as `webdataset.ShardWriter` writes them."""
    root.mkdir()
    for shard in (0, 1):
        with tarfile.open(root / f"imagenet1k-validation-{shard:02}.tar", "w") as archive:
            for n in list(NUMBERS)[shard::2]:
                label = official_labels()[n - 1]
                for suffix, data in (
                    ("cls", f"{label}".encode()),
                    ("jpg", jpeg(n)),
                    ("json", json.dumps({"label": label}).encode()),
                ):
                    member = tarfile.TarInfo(f"{name(n)[:-5]}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return root


def sorted_into(root: Path, folder: Callable[[int], str]) -> Path:
    for n in NUMBERS:
        (root / folder(n)).mkdir(parents=True, exist_ok=True)
        (root / folder(n) / name(n)).write_bytes(jpeg(n))
    return root


def in_words(root: Path) -> Path:
    return sorted_into(root, lambda n: IMAGENET.rows[official_labels()[n - 1]].title)


def by_index(root: Path) -> Path:
    return sorted_into(root, lambda n: f"{official_labels()[n - 1]:04}")


def with_a_list(root: Path) -> Path:
    sorted_into(root, lambda n: f"part {n % 2}")
    lines = (f'"part {n % 2}/{name(n)}";{synset(n)}\n' for n in NUMBERS)
    (root / "val_list.csv").write_text("".join(["filename;label\n", *lines]))
    return root


def arrow_cache(root: Path) -> Path:
    stream(root / "imagenet-1k-validation.arrow", rows(list(NUMBERS)))
    return root


MADE: dict[str, tuple[Callable[[Path], Path], dict[str, str]]] = {
    **{kind: (make, {}) for kind, make in LAYOUTS.items()},
    "zip": (zipped, {}),
    "WebDataset": (web_dataset, {}),
    "words": (in_words, {}),
    "numbers": (by_index, {"folders": "index"}),
    "list": (with_a_list, {"labels": "val_list.csv"}),
    "cache": (arrow_cache, {}),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "timm.safetensors"
    torch.manual_seed(1)
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


def measured(root: Path, weights: Path, **options: Any) -> Evaluation:
    return evaluate(Request(data=root, model="timm:test_resnet", weights=weights, **options))


@pytest.fixture(scope="module")
def plain(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return measured(small.folders(tmp_path_factory.mktemp("plain") / "set"), weights)


@pytest.mark.parametrize("kind", MADE)
def test_the_same_as_the_plain_folder(
    kind: str,
    plain: Evaluation,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, options = MADE[kind]
    root = make(tmp_path / "set")
    if "labels" in options:
        options = {"labels": str(root / options["labels"])}
    evaluation = measured(root, weights, **options)
    assert evaluation.measured.valset.image_set.is_val
    columns = ["images", "top1_correct", "top5_correct", "verdict", "dataset_sha256"]
    assert evaluation.summary[columns].equals(plain.summary[columns])
    by_label = ["label", "unfused_top1"] if "unfused_top1" in evaluation.predictions else ["label"]
    found, expected = (
        each.predictions.sort_values("label")[by_label].values.tolist()
        for each in (evaluation, plain)
    )
    assert found == expected
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    assert data_main(["--data", str(root), "--json", "--quiet", *words]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["dataset_sha256"] == plain.summary["dataset_sha256"][0]
    assert document["images"] == IMAGES


def test_what_numbers_mean_is_part_of_a_run(weights: Path, tmp_path: Path) -> None:
    """Two of them give other labels; a run that was interrupted does not go on with the other."""
    root = tmp_path / "val"
    for folder in ("7", "8"):
        (root / folder).mkdir(parents=True)
        (root / folder / f"{folder}.jpg").write_bytes(jpeg(int(folder)))
    by_index, by_id = (
        measured(root, weights, folders=folders) for folders in ("index", "ilsvrc-id")
    )
    assert by_index.predictions["label"].tolist() == [7, 8]
    assert by_id.predictions["label"].tolist() != [7, 8]
    assert by_index.summary["dataset_sha256"][0] != by_id.summary["dataset_sha256"][0]
    by_index.save(tmp_path / "out")
    document = json.loads((tmp_path / "out" / "run.json").read_text())
    assert document["request"]["folders"] == "index"
    assert "--folders index" not in document["image_set"]


@pytest.mark.slow
def test_webdataset_writes_what_is_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    pattern = str(tmp_path / "imagenet1k-validation-%02d.tar")
    with webdataset.ShardWriter(pattern, maxcount=4, verbose=0) as writer:
        for n in NUMBERS:
            label = official_labels()[n - 1]
            about = json.dumps({"label": label, "filename": name(n)}).encode()
            key = name(n).removesuffix(".JPEG")
            writer.write({"__key__": key, "jpg": jpeg(n), "cls": f"{label}", "json": about})
    for root in (tmp_path, tmp_path / "imagenet1k-validation-{00..01}.tar"):
        valset = open_valset(root)
        assert valset.image_set.is_val
        assert {s.name: (s.label, valset.read(s.path)) for s in valset.samples} == {
            name(n): (official_labels()[n - 1], jpeg(n)) for n in NUMBERS
        }
