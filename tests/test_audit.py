"""An audit: its bound, what noise may explain, and the command on real results."""

from __future__ import annotations

import csv
import json
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pytest
from known_answer import folder_of_images, labels_of_chosen

import eval.imagenet
import eval.score
from eval.audit import main
from eval.judge.audit import Answer, is_near_tie, measured_answer
from eval.metrics import largest_number_wrong


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


def test_measured_answer() -> None:
    assert measured_answer(LOGITS, 2, 3) == Answer(2, (0, 1, 2))
    tie = np.array([1.0, 1.0, 1.0], np.float32)
    assert measured_answer(tie, 1, 3) == Answer(1, (0, 1, 2))


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
    assert not found["remarks"]
    assert "CONFIRMED" in out
    code, found = audited(result, images, "--weights", str(weights), "--images", "6")
    assert (code, found["images"]) == (0, 6)
    assert found["largest_share_wrong"] == largest_number_wrong(24, 6, 0) / 24


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
    assert "the rows count" in str(found["contradictions"])


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
    np.savez(tmp_path / "p.npz", logits=logits, names=np.array(paths))
    words = [str(tmp_path / "p.npz"), "--data", str(images), "--variant", "small", "--quiet"]
    assert eval.score.main([*words, "--output", str(tmp_path / "scored")]) == 0
    given = ["--predictions", str(tmp_path / "p.npz")]
    code, found = audited(tmp_path / "scored", images, *given)
    assert (code, found["different"], found["images"]) == (0, 0, 24)
    logits[3] = logits[3][::-1]
    np.savez(tmp_path / "p.npz", logits=logits, names=np.array(paths))
    code, found = audited(tmp_path / "scored", images, *given)
    assert (code, found["different"]) == (1, 1)


def test_there_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "--data", str(tmp_path)]) == 2
    assert "no such folder" in capsys.readouterr().err
