"""An audit: its bound, what noise may explain, and the command on real results."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pytest
import small_valsets
import timm
from conftest import jpeg, rows_of
from known_answer import folder_of_images, labels_of_chosen
from safetensors.torch import save_file
from test_image_sets import timm_indices

import eval.imagenet
import eval.score
from eval.audit import main
from eval.images.classes import imagenet_classes
from eval.judge.audit import Answer, answer, is_near_tie
from eval.metrics import Scores, largest_number_wrong, wilson_interval


def few_found(population: int, wrong: int, sampled: int, different: int) -> Fraction:
    """Probability of at most `different` wrong rows in the sample, in whole numbers."""
    ways = sum(comb(wrong, d) * comb(population - wrong, sampled - d) for d in range(different + 1))
    return Fraction(ways, comb(population, sampled))


def test_the_bound_of_the_default_sample() -> None:
    wrong = largest_number_wrong(50_000, 300, 0)
    assert wrong / 50_000 <= 0.01
    assert few_found(50_000, wrong, 300, 0) > Fraction(1, 20)
    assert few_found(50_000, wrong + 1, 300, 0) <= Fraction(1, 20)


@pytest.mark.parametrize(("population", "sampled"), [(30, 10), (30, 30), (12, 1)])
def test_the_bound_is_that_of_brute_force(population: int, sampled: int) -> None:
    for different in range(min(sampled, 4) + 1):
        possible = [
            wrong
            for wrong in range(different, population - sampled + different + 1)
            if few_found(population, wrong, sampled, different) > Fraction(1, 20)
        ]
        assert largest_number_wrong(population, sampled, different) == max(possible)


def test_edited_rows_are_found_as_often_as_the_bound_promises() -> None:
    rng = np.random.default_rng(2)
    runs = 4000
    # A single edited row in 1,000, and 50 of 1,000: the sample has it with these probabilities.
    for edited, sampled in ((1, 50), (50, 50), (58, 50)):
        promised = float(1 - few_found(1000, edited, sampled, 0))
        found = sum(bool((rng.permutation(1000)[:sampled] < edited).any()) for _ in range(runs))
        assert found / runs == pytest.approx(promised, abs=4 * 0.5 / runs**0.5)
    # With more rows wrong than the bound allows, the sample shows one of them at 95 %.
    wrong = largest_number_wrong(1000, 50, 0) + 1
    found = sum(bool((rng.permutation(1000)[:50] < wrong).any()) for _ in range(runs))
    assert found / runs >= 0.95 - 3 * (0.05 * 0.95 / runs) ** 0.5


LOGITS = np.array([5.0, 4.0, 3.99999, 1.0, 0.5, 0.2, 0.1], np.float32)


def test_an_answer_is_what_the_logits_rank() -> None:
    assert answer(Scores.of(LOGITS[np.newaxis], np.array([2])), 0) == Answer(2, (0, 1, 2, 3, 4))
    tie = np.array([[1.0, 1.0, 1.0]], np.float32)
    assert answer(Scores.of(tie, np.array([1])), 0) == Answer(1, (0, 1, 2))


def test_noise_may_swap_what_is_close_and_nothing_else() -> None:
    swapped = Answer(1, (0, 2, 1, 3, 4))
    assert is_near_tie(swapped, LOGITS, 2, 1e-4)
    assert not is_near_tie(swapped, LOGITS, 2, 1e-7)
    assert is_near_tie(Answer(2, (0, 1, 2, 3, 4)), LOGITS, 2, 1e-7)  # what was measured
    assert not is_near_tie(Answer(0, (2, 0, 1, 3, 4)), LOGITS, 2, 1e-4)
    assert not is_near_tie(Answer(1, (0, 2, 1, 3, 6)), LOGITS, 2, 1e-4)  # 4 was left out
    assert not is_near_tie(Answer(1, (0, 2, 2, 3, 4)), LOGITS, 2, 1e-4)
    assert not is_near_tie(Answer(1, (0, 2, 1, 3, 99)), LOGITS, 2, 1e-4)
    assert not is_near_tie(Answer(7, (0, 1, 2, 3, 4)), LOGITS, 2, 1e-4)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_images(tmp_path_factory.mktemp("images"), labels_of_chosen())


@pytest.fixture(scope="module")
def result(images: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of the small network, both forms."""
    folder = tmp_path_factory.mktemp("run") / "result"
    words = ["--data", str(images), "--variant", "small", "--weights", str(weights)]
    words += ["--image-set", "val"]
    assert eval.imagenet.main([*words, "--output", str(folder), "--quiet"]) == 0
    return folder


def audited(folder: Path, images: Path, *words: str) -> tuple[int, dict[str, object]]:
    target = folder.parent / "audit.json"
    code = main([str(folder), "--data", str(images), "--json", str(target), "--quiet", *words])
    return code, json.loads(target.read_text())


def edited(result: Path, tmp_path: Path, edit: dict[str, str], row: int = 0) -> Path:
    """A copy of a result with cells of one row replaced."""
    folder = tmp_path / "edited"
    folder.mkdir()
    (folder / "summary.csv").write_bytes((result / "summary.csv").read_bytes())
    with (result / "predictions.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    rows[row] |= edit
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, reader.fieldnames or [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_a_real_result_is_confirmed(
    result: Path, images: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = audited(result, images, "--weights", str(weights), "--seed", "7")
    out = capsys.readouterr().out
    assert (code, found["outcome"], found["different"]) == (0, "confirmed", 0), out
    assert found["images"] == found["population"] == 24
    assert found["largest_share_wrong"] == 0  # all of them
    assert found["seed"] == 7
    assert not found["unchecked"]
    assert "CONFIRMED" in out
    code, found = audited(result, images, "--weights", str(weights), "--images", "6")
    assert (code, found["images"], found["outcome"]) == (0, 6, "confirmed")
    assert found["largest_share_wrong"] == largest_number_wrong(24, 6, 0) / 24
    assert found["unchecked"] == ["images' contents"]
    assert capsys.readouterr().out.endswith("CONFIRMED, images' contents not checked\n")


def test_an_edited_row_is_found(result: Path, images: Path, weights: Path, tmp_path: Path) -> None:
    with (result / "predictions.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    lower = str((int(first["unfused_top3"]) + 500) % 1000)
    folder = edited(result, tmp_path, {"unfused_top3": lower})
    code, found = audited(folder, images, "--weights", str(weights))
    assert (code, found["outcome"], found["different"]) == (1, "contradicted", 1)
    (example,) = found["examples"]  # type: ignore[misc]
    assert example["form"] == "unfused"
    assert example["path"] == first["path"]


def test_counts_that_do_not_follow_are_a_contradiction(
    result: Path, images: Path, weights: Path, tmp_path: Path
) -> None:
    with (result / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    wrong = next(i for i, row in enumerate(rows) if int(row["unfused_rank"]) > 5)
    label = rows[wrong]["label"]
    edit = {"unfused_rank": "0", "unfused_top1": label}
    folder = edited(result, tmp_path, edit, wrong)
    code, found = audited(folder, images, "--weights", str(weights), "--images", "1", "--seed", "0")
    assert code == 1
    assert "top1_correct 1 (not 0)" in str(found)


def test_other_weights_are_a_contradiction(
    result: Path, images: Path, weights: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    tensors["fc.bias"] = torch.roll(tensors["fc.bias"], 1) + 1
    save_file(tensors, tmp_path / "other.safetensors")
    code, found = audited(result, images, "--weights", str(tmp_path / "other.safetensors"))
    assert code == 1
    assert "the result was made with the weights" in str(found["contradictions"])


def test_other_images_are_a_contradiction(result: Path, weights: Path, tmp_path: Path) -> None:
    images = folder_of_images(tmp_path, labels_of_chosen())
    victim = next(images.rglob("*.JPEG"))
    data = victim.read_bytes()
    next(p for p in images.rglob("*.JPEG") if p != victim).write_bytes(data)
    code, found = audited(result, images, "--weights", str(weights))
    assert code == 1
    assert "(their hashes differ)" in str(found["contradictions"])
    victim.unlink()
    _, found = audited(result, images, "--weights", str(weights))
    assert "not among your images" in str(found["contradictions"])


def test_a_scored_result(images: Path, tmp_path: Path) -> None:
    paths = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.JPEG"))
    logits = np.random.default_rng(0).normal(size=(len(paths), 1000)).astype(np.float32)
    # As a tool on another system names what it made of each image.
    names = np.array([f"out\\{Path(path).name}.npz" for path in paths])
    np.savez(tmp_path / "p.npz", logits=logits, names=names)
    words = [str(tmp_path / "p.npz"), "--data", str(images), "--variant", "small", "--quiet"]
    assert eval.score.main([*words, "--output", str(tmp_path / "scored")]) == 0
    given = ["--predictions", str(tmp_path / "p.npz")]
    code, found = audited(tmp_path / "scored", images, *given)
    assert (code, found["different"], found["images"]) == (0, 0, 24)
    logits[3] = logits[3][::-1]
    np.savez(tmp_path / "p.npz", logits=logits, names=names)
    code, found = audited(tmp_path / "scored", images, *given)
    assert (code, found["different"]) == (1, 1)


def test_a_scored_result_of_top_1_predictions(images: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in images.rglob("*.JPEG"))
    lines = [f"{name},{place % 7}" for place, name in enumerate(names)]
    (tmp_path / "p.csv").write_text("path,top1\n" + "\n".join(lines))
    words = [str(tmp_path / "p.csv"), "--data", str(images), "--variant", "small", "--quiet"]
    folder = tmp_path / "scored"
    assert eval.score.main([*words, "--output", str(folder)]) == 0
    given = ["--predictions", str(tmp_path / "p.csv")]
    assert audited(folder, images, *given)[0] == 0
    rewrite(folder / "confusions.csv", lambda rows: rows[1:])
    code, found = audited(folder, images, *given)
    (told,) = found["contradictions"]  # type: ignore[misc]
    assert (code, "confusions.csv is not that of the rows: scored, " in told) == (1, True)


# What an audit of a result that was edited says: each was confirmed once, all rows but a few being
# as they were.


def copied(result: Path, tmp_path: Path) -> Path:
    shutil.copytree(result, tmp_path / "edited")
    return tmp_path / "edited"


def rewrite(path: Path, edit: Callable[[list[dict[str, str]]], list[dict[str, str]]]) -> None:
    """Edit the rows of a CSV file."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = edit(list(reader))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, reader.fieldnames or [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def each_row(**cells: str) -> Callable[[list[dict[str, str]]], list[dict[str, str]]]:
    return lambda rows: [row | cells for row in rows]


def contradictions(folder: Path, images: Path, weights: Path, sample: str = "1") -> str:
    words = ("--weights", str(weights), "--images", sample, "--seed", "0")
    code, found = audited(folder, images, *words)
    assert (code, found["outcome"], found["different"]) == (1, "contradicted", 0)
    return "\n".join(found["contradictions"])  # type: ignore[arg-type]


def test_rows_that_are_copies_of_others(
    result: Path, images: Path, weights: Path, tmp_path: Path
) -> None:
    def copy(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        again = rows[0] | {"path": f"again/{Path(rows[0]['path']).name}"}
        kept = [again, rows[0], *rows[2:]]  # sorted by path
        return [row | {"index": str(i)} for i, row in enumerate(kept)]

    folder = copied(result, tmp_path)
    rewrite(folder / "predictions.csv", copy)
    found = contradictions(folder, images, weights, "20")
    assert "rows of an image that has one already: " in found
    assert "images without a row: " in found


def test_rows_that_were_left_out(result: Path, images: Path, weights: Path, tmp_path: Path) -> None:
    folder = copied(result, tmp_path)
    rewrite(folder / "predictions.csv", lambda rows: rows[:-4])
    cells = {"images": "20", "images_expected": "20", "verdict": "NO_REFERENCE"}
    low, high = wilson_interval(0, 20)
    edit = each_row(**cells, top1_ci_low=str(low), top1_ci_high=str(high))
    rewrite(folder / "summary.csv", edit)
    found = contradictions(folder, images, weights)
    assert "images without a row: " in found
    assert "images_expected 50000 (not 20), verdict PARTIAL (not NO_REFERENCE)" in found


def test_probabilities_that_were_made_up(
    result: Path, images: Path, weights: Path, tmp_path: Path
) -> None:
    folder = copied(result, tmp_path)
    same = {f"unfused_prob{k}": "0.999999" for k in range(1, 6)}
    rewrite(folder / "predictions.csv", each_row(**same))
    code, found = audited(folder, images, "--weights", str(weights), "--images", "3")
    assert (code, found["different"]) == (1, 3)
    assert "unfused, probabilities that are none: " in str(found["contradictions"])
    # Possible ones, of one image, that is in the sample.
    rewrite(folder / "predictions.csv", lambda _: rows_of(result / "predictions.csv"))
    rewrite(
        folder / "predictions.csv", each_row(**{f"unfused_prob{k}": "0.2" for k in range(1, 6)})
    )
    code, found = audited(folder, images, "--weights", str(weights), "--images", "1")
    assert (code, found["different"]) == (1, 1)


EDITS = {  # cells of each row, and what is said about them
    "precision": ("bf16", "precision is bf16, run.json says fp32"),
    "reference_top1": ("50", "reference_top1 73.97 (not 50)"),
    "delta_top1": ("-50", "delta_top1 -73.97 (not -50)"),
    "nll": ("0.001", "nll is 0.001, by its probabilities it is at least"),
    "max_abs_logit_diff": ("0", "max_abs_logit_diff is 0, run.json says"),
    "dataset_sha256": ("0" * 64, "dataset_sha256 is 0000"),
    "params": ("1", "(not 1)"),
    "command": ("sudo rm", "command is sudo rm, run.json says"),
}


def test_a_summary_that_was_edited(
    result: Path, images: Path, weights: Path, tmp_path: Path
) -> None:
    folder = copied(result, tmp_path)
    edit = each_row(**{name: cell for name, (cell, _) in EDITS.items()})
    rewrite(folder / "summary.csv", edit)
    words = ("--weights", str(weights), "--images", "1")
    code, found = audited(folder, images, *words)
    assert code == 1
    for _, said in EDITS.values():
        assert said in str(found["contradictions"])


def test_files_that_disagree(result: Path, images: Path, weights: Path, tmp_path: Path) -> None:
    folder = copied(result, tmp_path)
    run = json.loads((folder / "run.json").read_text())
    said = run["image_set"]
    run["verdict"], run["results"][0]["verdict"] = "PASS", "PASS"
    run["published"]["reference"][""]["top1"] = 12.5
    run["exit_code"], run["image_set"] = 1, "the paper's own"
    (folder / "run.json").write_text(json.dumps(run))
    page = (folder / "report.html").read_text()
    (folder / "report.html").write_text(page.replace("verdict PARTIAL", "verdict PASS"))
    rewrite(folder / "per_class.csv", lambda rows: [rows[0] | {"images": "7"}, *rows[1:]])
    assert contradictions(folder, images, weights).splitlines() == [
        "run.json, published: not your configuration's reference",
        "run.json: the verdict is PASS, the rows' PARTIAL",
        "run.json: exit_code is 1 with the verdict PARTIAL, and no baseline",
        f"run.json: the images are the paper's own, by their names {said}",
        "run.json, unfused: its rows and the configuration give verdict PARTIAL (not PASS)",
        "per_class.csv is not that of the rows: n01440764",
        "report.html shows PASS, summary.csv says PARTIAL",
    ]


# The model is that of the result.


@pytest.mark.slow
def test_a_configuration_of_ones_own(weights: Path, tmp_path: Path) -> None:
    config = tmp_path / "own.toml"
    text = (
        'name = "own"\nmodel = "small"\nimages = 6\n[reference]\nsource = "x"\ntop1 = {}\n'
        '[tolerance.torchvision]\nimages = 1\nreason = "y"\n'
    )
    config.write_text(text.format(100))
    images = small_valsets.folders(tmp_path / "val")
    words = ["--data", str(images), "--config", str(config), "--weights", str(weights)]
    folder = tmp_path / "result"
    assert eval.imagenet.main([*words, "--output", str(folder), "--quiet"]) == 1
    given = ("--weights", str(weights))
    assert audited(folder, images, *given)[0] == 0

    edit = each_row(reference_top1="0", delta_top1="0", verdict="PASS")
    shutil.copytree(folder, tmp_path / "edited")
    rewrite(tmp_path / "edited" / "summary.csv", edit)
    found = contradictions(tmp_path / "edited", images, weights)
    assert (
        "reference_top1 100.0 (not 0), delta_top1 -100.0 (not 0), verdict FAIL (not PASS)" in found
    )
    assert "run.json: the verdict is FAIL, the rows' PASS" in found
    assert "report.html shows FAIL, summary.csv says PASS" in found

    config.write_text(text.format(99))
    assert main([str(folder), "--data", str(images), *given, "--quiet"]) == 2
    config.unlink()
    assert main([str(folder), "--data", str(images), *given, "--quiet"]) == 2
    (tmp_path / "moved.toml").write_text(text.format(100))
    assert audited(folder, images, *given, "--config", str(tmp_path / "moved.toml"))[0] == 0


def test_a_model_of_a_library(images: Path, tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "t.safetensors")
    words = ["--data", str(images), "--model", "timm:test_resnet", "--limit", "6"]
    given = ["--weights", str(tmp_path / "t.safetensors"), "--quiet"]
    folder = tmp_path / "result"
    assert eval.imagenet.main([*words, *given, "--output", str(folder)]) == 0
    code, found = audited(folder, images, *given)
    assert (code, found["images"], found["contradictions"]) == (0, 6, [])
    (folder / "run.json").unlink()
    assert main([str(folder), "--data", str(images), *given]) == 2


def test_a_tolerance_is_that_of_the_result(images: Path, tmp_path: Path) -> None:
    table = tmp_path / "results.csv"
    settings = "model,img_size,top1,top5,crop_pct,interpolation\ntest_resnet.r160_in1k,160,"
    table.write_text(f"{settings}46,71,0.95,bilinear\n")
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "t.safetensors")
    words = ["--data", str(images), "--model", "timm:test_resnet", "--timm-results", str(table)]
    given = ["--weights", str(tmp_path / "t.safetensors"), "--quiet"]
    folder = tmp_path / "result"
    assert eval.imagenet.main([*words, *given, "--tolerance", "3", "--output", str(folder)]) == 0
    code, found = audited(folder, images, *given)
    assert (code, found["contradictions"]) == (0, [])
    run = folder / "run.json"
    document = json.loads(run.read_text())
    (tolerance,) = document["published"]["tolerance"].values()
    assert tolerance.pop("images") == 3
    run.write_text(json.dumps(document))
    code, found = audited(folder, images, *given)
    line = "run.json, published: not your configuration's tolerance"
    assert (code, found["contradictions"]) == (1, [line])
    tolerance["images"] = 3
    run.write_text(json.dumps(document))
    table.write_text(f"{settings}46,72,0.95,bilinear\n")
    code, found = audited(folder, images, *given)
    assert "published: not your configuration's reference" in str(found["contradictions"])


@pytest.mark.parametrize("letter", ["a", "r"])
def test_a_set_of_200_classes(letter: str, weights: Path, tmp_path: Path) -> None:
    images = tmp_path / "set"
    rng = np.random.RandomState(3)
    for label in timm_indices(letter):
        pixels = rng.randint(0, 256, (8, 8, 3), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
        folder = images / imagenet_classes()[label].synset
        folder.mkdir(parents=True)
        (folder / "art_0.jpg").write_bytes(jpeg(pixels))
    words = ["--data", str(images), "--variant", "small", "--limit", "24", "--quiet"]
    given = ["--weights", str(weights)]
    result = tmp_path / "result"
    assert eval.imagenet.main([*words, *given, "--output", str(result)]) == 0
    code, found = audited(result, images, *given)
    assert (code, found["images"], found["different"], found["near_ties"]) == (0, 24, 0, 0)
    assert found["unchecked"] == []


def test_there_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "--data", str(tmp_path)]) == 2
    assert "no such folder" in capsys.readouterr().err
