"""The gate: what regressed fails, what is not comparable is refused, and all of it is told."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import HANG, ROOT, jpeg
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from small_results import (
    IMAGES,
    WHOLE,
    image_names,
    labels_of,
    ranks,
    sha256,
    summary_row,
    write_result,
    write_rows,
)

from eval import regression, score
from eval.errors import UsageError
from eval.images.classes import ClassList, ImageClass, imagenet_classes
from eval.images.preprocess import crop_of
from eval.jobs.compare import check_baseline
from eval.judge import gate
from eval.judge.gate import Asked, Limit, compare, pair
from eval.judge.result import Predictions, Result, Row
from eval.judge.verdict import Verdict
from eval.metrics import mcnemar
from eval.recipe import NAMED
from eval.results import regression_report


@pytest.fixture(autouse=True)
def _no_step_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


@pytest.fixture
def gate_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run the command line on the folders a and b: exit code, and what it printed."""

    def run(*options: str, baseline: str = "a", candidate: str = "b") -> tuple[int, str]:
        sides = ["--baseline", str(tmp_path / baseline), "--candidate", str(tmp_path / candidate)]
        code = regression.main([*sides, *options])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def two(tmp_path: Path, before: np.ndarray, after: np.ndarray, **cells: object) -> None:
    """Result folders a and b; `cells` are of b."""
    write_result(tmp_path / "a", before)
    write_result(tmp_path / "b", after, **({"run_id": "base-2"} | cells))


# --- Arithmetic


@pytest.mark.parametrize(
    ("lost", "gained", "p"),
    [
        (0, 0, 1.0),
        (1, 1, 1.0),
        (5, 0, 2 / 32),
        (0, 6, 2 / 64),
        (2, 10, 2 * (1 + 12 + 66) / 4096),
        (10, 2, 2 * (1 + 12 + 66) / 4096),
        (3, 4, 1.0),  # 2 * 64 / 128
    ],
)
def test_mcnemar_by_hand(lost: int, gained: int, p: float) -> None:
    assert mcnemar(lost, gained) == p


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_test(lost: int, gained: int) -> None:
    """As scipy has it."""
    expected = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1
    assert mcnemar(lost, gained) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_thousands() -> None:
    """Beyond what floats hold; compared with the normal approximation with its correction."""
    z = (3100 - 2900 - 1) / 6000**0.5
    assert mcnemar(3100, 2900) == pytest.approx(math.erfc(z / 2**0.5), rel=0.01)
    assert 0 <= mcnemar(20_000, 0) < 1e-300


@pytest.mark.parametrize(
    ("text", "total", "images", "shown"),
    [
        ("5", 50_000, 5, "5 images"),
        ("0", 50_000, 0, "0 images"),
        ("0.05pp", 50_000, 25, "0.05pp, 25 images"),
        ("1pp", 400, 4, "1pp, 4 images"),
        ("0.1pp", 400, Fraction(2, 5), "0.1pp, 0.4 images"),
        ("0.58pp", 50_000, 290, "0.58pp, 290 images"),  # in floats 289.99999999999994
    ],
)
def test_limits_in_images_and_points(text: str, total: int, images: Fraction, shown: str) -> None:
    assert Limit.parse(text).images(total) == images
    assert Limit.parse(text).shown(total) == shown


@pytest.mark.parametrize("text", ["", "-5", "5.5", "5%", "0.05 pp", "pp", "1e3", "five", "٣"])
def test_other_limits_are_refused(
    text: str, tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    two(tmp_path, ranks(60), ranks(60))
    code, told = gate_run(f"--max-drop-top1={text}")
    assert code == 2
    assert ("neither images (5) nor points (0.05pp)" if text else "is empty") in told


# --- Gates


def _moved(right: int, near: int = 10, *, losses: int = 0, gains: int = 0) -> np.ndarray:
    """Of ranks(), the first right ones are lost and the last wrong ones gained."""
    rank = ranks(right, near)
    rank[:losses] = 2
    rank[IMAGES - gains :] = 0
    return rank


@pytest.mark.parametrize(
    ("after", "options", "failed"),
    [
        (ranks(60), (), ""),
        (_moved(60, losses=5), (), ""),
        (_moved(60, losses=6), (), "top-1; base, unfused: flips"),
        (_moved(60, losses=6), ("--max-flips", "6"), "top-1"),
        (_moved(60, losses=6), ("--max-flips", "6", "--max-drop-top1", "6"), ""),
        (_moved(60, losses=6), ("--max-flips", "6", "--max-drop-top1", "6pp"), ""),
        (_moved(60, losses=6), ("--max-flips", "6", "--max-drop-top1", "5.9pp"), "top-1"),
        (_moved(60, losses=1), ("--max-drop-top1", "0"), "top-1"),
        (_moved(60, losses=1), ("--max-flips", "0"), "flips"),
        (ranks(60, 5), (), ""),
        (ranks(60, 4), (), "top-5"),
        (ranks(60, 4), ("--max-drop-top5", "6"), ""),
        (ranks(60, 9), ("--max-drop-top5", "0.9pp"), "top-5"),
        # As many right as before, but others: only the flips tell.
        (_moved(60, losses=6, gains=6), (), "flips"),
        (_moved(60, losses=5, gains=6), (), ""),
        # An improvement is never a failure, however many answers change.
        (ranks(100, 0), ("--max-flips", "0", "--max-drop-top1", "0"), ""),
    ],
)
def test_gates(
    tmp_path: Path,
    gate_run: Callable[..., tuple[int, str]],
    after: np.ndarray,
    options: tuple[str, ...],
    failed: str,
) -> None:
    two(tmp_path, ranks(60), after)
    code, told = gate_run(*options)
    last = told.splitlines()[-1]
    if failed:
        assert (code, last) == (1, f"REGRESSED  base, unfused: {failed}")
    else:
        assert (code, last) == (0, "OK  not worse than the baseline")


def test_answers_that_are_wrong_in_another_way_are_flips(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    write_result(tmp_path / "a", ranks(60))
    write_result(tmp_path / "b", ranks(60), wrong=701)
    code, told = gate_run()
    assert code == 1
    assert "FAIL  flips: 40 wrong to wrong; limit: 5 besides wrong to correct" in told
    assert "ok    top-1: +0 images; limit: a drop of 5 images" in told


def test_unreadable_images_are_a_regression(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    rank = ranks(60)
    rank[-1] = -1
    two(tmp_path, ranks(60), rank, bad_images=1, verdict="INCOMPLETE")
    code, told = gate_run()
    assert code == 3
    assert "FAIL  unreadable images: 0 before, 1 now" in told
    assert gate_run(baseline="b", candidate="a")[0] == 2


def test_each_form_is_gated(tmp_path: Path, gate_run: Callable[..., tuple[int, str]]) -> None:
    write_result(tmp_path / "a", {"unfused": ranks(60), "fused": ranks(60)})
    write_result(tmp_path / "b", {"unfused": ranks(60), "fused": _moved(60, losses=9)})
    code, told = gate_run()
    assert code == 1
    assert told.splitlines()[-1] == "REGRESSED  base, fused: top-1; base, fused: flips"
    assert gate_run("--form", "unfused")[0] == 0
    assert gate_run("--form", "fused")[0] == 1
    code, told = gate_run("--form", "unfused:fused")
    assert code == 1
    assert "base, unfused to fused: 100 images" in told
    code, told = gate_run("--form", "int8")
    assert code == 2
    assert "has unfused, fused, but not 'int8'" in told


def test_a_form_that_is_missing_is_not_left_out(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    write_result(tmp_path / "a", {"unfused": ranks(60), "fused": ranks(60)})
    write_result(tmp_path / "b", ranks(60))
    for sides in ({}, {"baseline": "b", "candidate": "a"}):
        code, told = gate_run(**sides)
        assert code == 2
        assert "form is unfused" in told
        assert "--form" in told
    assert gate_run("--form", "unfused")[0] == 0


def test_without_predictions_counts_are_gated(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    two(tmp_path, ranks(60), _moved(60, losses=6, gains=6))
    (tmp_path / "a" / "predictions.csv").unlink()
    code, told = gate_run()
    assert code == 0
    assert "-     flips: not checked: no predictions.csv on both sides" in told
    assert "McNemar" not in told
    # Wilson's interval of 60 of 100, worked by hand
    assert "baseline      60.000       60  50.200 to 69.060     70.000       70" in told
    code, told = gate_run("--max-flips", "5")
    assert code == 2
    assert f"needs predictions.csv on both sides; {tmp_path / 'a'} has none" in told


# --- What is broken on purpose is caught


def test_a_top5_that_is_unknown_on_one_side_is_said(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    two(tmp_path, ranks(70), ranks(70), top5_correct="", top5="")
    for folder in "ab":
        (tmp_path / folder / "predictions.csv").unlink()
    code, told = gate_run()
    assert code == 0
    assert "-     top-5: not checked: unknown on one side" in told


def _other_names() -> list[str]:
    return [name.replace("photo_00007", "photo_00007_") for name in image_names()]


@pytest.mark.parametrize(
    ("after", "changes", "code", "told"),
    [
        # Another preprocessing, by its name; and the named one, with a bug.
        (ranks(60), {"preprocess": "paddle"}, 2,
         "preprocess is torchvision in the baseline and paddle in the candidate"),
        (_moved(60, losses=8, gains=1), {}, 1, "top-1: 8 images lost, 1 gained"),
        # Other weights, by their hash; and the same file, loaded wrongly.
        (ranks(60), {"weights_sha256": sha256("x")}, 2,
         f"weights_sha256 is {sha256('weights')[:12]} in the baseline and {sha256('x')[:12]} in"),
        (ranks(60), {"weights_sha256": ""}, 2, "in the baseline and unknown in the candidate"),
        (ranks(0), {}, 1, "top-1: 60 images lost, 0 gained"),
        # Other labels: two classes exchanged, or all shifted by one.
        (ranks(60), {"labels": labels_of()[[2, 3, 0, 1, *range(4, IMAGES)]]}, 2,
         "labels differ (baseline and candidate): photo_00000 0 and 1, photo_00001 0 and 1"),
        (ranks(60), {"labels": labels_of() + 1}, 2, "(100 in all)"),
        # Other images: contents, names, number.
        (ranks(60), {"dataset_sha256": sha256("x")}, 2,
         f"dataset_sha256 is {sha256('images')[:12]} in the baseline and {sha256('x')[:12]} in"),
        (ranks(60), {"paths": _other_names()}, 2,
         "only in the baseline: photo_00007; only in the candidate: photo_00007_"),
        (ranks(60, images=99), {}, 2, "images is 100 in the baseline and 99 in the candidate"),
        # Another model.
        (ranks(60), {"variant": "small"}, 2, "variant is base in the baseline"),
    ],
)  # fmt: skip
def test_what_is_broken_on_purpose_is_caught(
    tmp_path: Path,
    gate_run: Callable[..., tuple[int, str]],
    after: np.ndarray,
    changes: dict[str, object],
    code: int,
    told: str,
) -> None:
    two(tmp_path, ranks(60), after, **changes)
    found = gate_run()
    assert found[0] == code
    assert told in found[1]
    if code == 2:
        assert found[1].startswith("error: Not comparable")
        assert len(found[1].splitlines()) <= 2


def test_unknown_weights_are_never_the_same(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    for folder in ("a", "b"):
        write_result(tmp_path / folder, ranks(60), weights_sha256="")
    code, told = gate_run()
    assert code == 2
    assert "weights_sha256 is unknown in the baseline and unknown in the candidate" in told
    assert gate_run("--allow-other-weights")[0] == 0


def test_every_field_that_differs_is_named(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    two(tmp_path, ranks(60), ranks(60), preprocess="squash", dataset_sha256=sha256("x"),
        weights_sha256=sha256("y"))  # fmt: skip
    _, told = gate_run()
    for name in ("preprocess", "dataset_sha256", "weights_sha256"):
        assert f"{name} is " in told
    _, told = gate_run("--allow-other-weights")
    assert "weights_sha256" not in told


def test_images_are_matched_by_name_and_not_by_place(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    write_result(tmp_path / "a", ranks(60))
    paths = [name.rpartition("/")[2] for name in image_names()]
    order = np.random.default_rng(0).permutation(IMAGES)
    write_result(tmp_path / "b", _moved(60, losses=2), paths=paths, order=order.tolist())
    code, told = gate_run()
    assert code == 0
    assert "top-1: 2 images lost, 0 gained; exact McNemar p = 0.5" in told
    assert "n00000000/photo_00000.JPEG: 0 tench -> 700 paper towel, correct to wrong" in told


CLASSES = 20


def _val_of_shifts(folder: Path) -> Path:
    """An image a class: a red texture, seen through a window that moves by a pixel a class."""
    texture = np.random.default_rng(0).integers(0, 256, (256, 256 + CLASSES, 3), dtype=np.uint8)
    texture[..., 1:] = 128
    for label in range(CLASSES):
        synset = folder / imagenet_classes()[label].synset
        synset.mkdir(parents=True)
        image = jpeg(texture[:, label : label + 256], quality=100, subsampling=0)
        (synset / f"photo_{label}.JPEG").write_bytes(image)
    return folder


def _distances(crops: np.ndarray, templates: np.ndarray) -> np.ndarray:
    """A network of one layer: the nearest template is the answer; (B, 1000)."""
    crops, templates = (
        rows[:, ::8, ::8].reshape(len(rows), -1) / 255 for rows in (crops, templates)
    )
    logits = np.full((len(crops), 1000), -1e3)
    logits[:, : len(templates)] = -((crops[:, None] - templates[None]) ** 2).sum(axis=2)
    return logits


BREAKS: dict[str, tuple[int, str]] = {
    "nothing": (0, "OK  not worse"),
    "channels exchanged": (1, "REGRESSED  base, scored: top-1"),
    "crop off by a pixel": (1, "REGRESSED  base, scored: top-1"),
    "weights in another order": (1, "top-1: 20 images lost, 0 gained"),
    "some weights lost": (1, "top-1: 7 images lost, 0 gained"),
    "other weights": (2, "weights_sha256 is"),
    "labels exchanged": (
        2,
        "labels differ (baseline and candidate): photo_0 0 and 1, photo_1 1 and",
    ),
    "an image damaged": (2, "dataset_sha256 is"),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_what_is_broken_on_purpose_is_caught_with_real_pixels(
    tmp_path: Path,
    gate_run: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
) -> None:
    """From image files by preprocessing, weights, scores and reports to the exit code."""
    monkeypatch.setattr("eval.results.html.html_report", lambda *_: "")  # takes a second
    val = _val_of_shifts(tmp_path / "val")
    files = [path.read_bytes() for path in sorted(val.glob("*/*"))]
    crops = np.array([crop_of(NAMED["torchvision"], data) for data in files], dtype=np.float64)
    weights = crops.copy()
    (tmp_path / "weights").write_bytes(b"weights")

    def measure(output: str) -> None:
        names = [f"photo_{label}.JPEG" for label in range(CLASSES)]
        np.savez(tmp_path / "x.npz", logits=_distances(crops, weights), names=names)
        sides = ["--data", str(val), "--variant", "base", "--preprocess", "torchvision", "--quiet"]
        sides += ["--weights", str(tmp_path / "weights"), "--output", str(tmp_path / output)]
        assert score.main([str(tmp_path / "x.npz"), *sides]) == 0

    measure("a")
    synsets = [val / imagenet_classes()[label].synset for label in range(2)]
    match broken:
        case "channels exchanged":
            crops = crops[..., ::-1]
        case "crop off by a pixel":
            crops = np.roll(crops, -1, axis=2)
        case "weights in another order":
            weights = np.roll(weights, 1, axis=0)
        case "some weights lost":
            weights[:7] = 0
        case "other weights":
            (tmp_path / "weights").write_bytes(b"others")
        case "labels exchanged":
            synsets[0].rename(val / "x")
            synsets[1].rename(synsets[0])
            (val / "x").rename(synsets[1])
        case "an image damaged":
            (synsets[0] / "photo_0.JPEG").write_bytes(files[0][:-100])
    measure("b")
    code, told = gate_run()
    assert code == BREAKS[broken][0]
    assert BREAKS[broken][1] in told


# --- Other weights


@pytest.mark.parametrize(("losses", "code"), [(0, 0), (1, 0), (2, 1)])
def test_other_weights_have_a_limit_in_points(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]], losses: int, code: int
) -> None:
    """0.1 points of 1000 images are one image; any number of answers may change."""
    before, after = np.full(1000, 9), np.full(1000, 9)
    before[:600] = 0
    after[losses:600] = 0
    for folder, rank, wrong, key in (("a", before, 700, "w"), ("b", after, 701, "x")):
        write_result(tmp_path / folder, rank, wrong=wrong, weights_sha256=sha256(key),
                     labels=np.arange(1000) % 500)  # fmt: skip
    found, told = gate_run("--allow-other-weights")
    assert found == code
    assert "limit: a drop of 0.1pp, 1 images" in told
    assert "-     flips: not checked, as the weights differ" in told
    assert "note  the weights differ or are unknown" in told


def test_the_same_weights_keep_their_limits_where_others_are_allowed(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    two(tmp_path, ranks(60), ranks(60), device="cuda:0")
    _, told = gate_run("--allow-other-weights")
    assert "limit: a drop of 5 images" in told
    assert "note  device cpu -> cuda:0" in told


# --- Histories


def test_a_history_as_baseline(tmp_path: Path, gate_run: Callable[..., tuple[int, str]]) -> None:
    write_result(tmp_path / "b", ranks(60), run_id="new", started_at="2026-03-01T00:00:00+00:00")
    rows = [
        summary_row(ranks(60), run_id="old", started_at="2026-01-01T00:00:00+00:00"),
        summary_row(ranks(70), run_id="best", started_at="2026-02-01T00:00:00+00:00"),
        # --history has added the candidate already: it must not be compared with itself.
        summary_row(ranks(60), run_id="new", started_at="2026-03-01T00:00:00+00:00"),
        summary_row(ranks(90), run_id="s", variant="small"),
    ]
    write_rows(tmp_path / "history.csv", rows)
    assert gate_run(baseline="history.csv")[0] == 1
    assert gate_run(baseline="history.csv#old")[0] == 0
    assert gate_run(baseline="history.csv#best")[0] == 1
    assert gate_run(baseline="history.csv#old", candidate="history.csv#new")[0] == 0
    assert gate_run(baseline="history.csv", candidate="history.csv#best")[0] == 0


def test_a_baseline_is_checked_before_hours_are_spent(tmp_path: Path) -> None:
    folder = write_result(tmp_path / "a", ranks(60))
    check_baseline(folder, "base", "torchvision")
    for variant, preprocess in (("small", "torchvision"), ("base", "paddle")):
        with pytest.raises(UsageError, match=f"no run of {variant} with --preprocess {preprocess}"):
            check_baseline(folder, variant, preprocess)
    with pytest.raises(UsageError, match="no such result"):
        check_baseline(tmp_path / "x", "base", "torchvision")


# --- What is written


def _cases(path: Path) -> dict[tuple[str, str], list[str]]:
    root = ET.parse(path).getroot()
    for suite in root:
        for attribute, tag in (
            ("failures", "failure"),
            ("errors", "error"),
            ("skipped", "skipped"),
        ):
            assert int(suite.attrib[attribute]) == len(suite.findall(f"testcase/{tag}"))
        assert int(suite.attrib["tests"]) == len(suite.findall("testcase"))
    return {
        (case.attrib["classname"], case.attrib["name"]): [child.tag for child in case]
        for case in root.iter("testcase")
    }


def _csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_reports_are_written_before_a_failing_exit(
    tmp_path: Path,
    gate_run: Callable[..., tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    summary = tmp_path / "step.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    two(tmp_path, ranks(60), _moved(60, losses=30, gains=2))
    assert gate_run("--output", str(tmp_path / "out"))[0] == 1

    assert _cases(tmp_path / "out" / "junit.xml") == {
        ("base, unfused", "verdict"): [],
        ("base, unfused", "top-1"): ["failure"],
        ("base, unfused", "top-5"): [],
        ("base, unfused", "flips"): ["failure"],
        ("base, unfused", "unreadable images"): [],
    }
    (row,) = _csv(tmp_path / "out" / "regression.csv")
    assert (row["baseline_top1_correct"], row["candidate_top1_correct"]) == ("60", "32")
    assert (row["lost_top1"], row["gained_top1"], row["flips"]) == ("30", "2", "32")
    assert float(row["p_top1"]) == pytest.approx(2 * (1 + 32 + 496) / 2**32)
    assert (row["verdict"], row["failed"]) == ("regressed", "top-1; flips")
    flips = _csv(tmp_path / "out" / "regression_flips.csv")
    assert [row["kind"] for row in flips] == ["correct to wrong"] * 30 + ["wrong to correct"] * 2
    assert flips[0] == {
        "variant": "base", "baseline_form": "unfused", "candidate_form": "unfused",
        "path": "n00000000/photo_00000.JPEG", "label": "0", "before": "0", "after": "700",
        "rank_before": "0", "rank_after": "2", "kind": "correct to wrong",
    }  # fmt: skip
    classes = _csv(tmp_path / "out" / "regression_classes.csv")
    assert len(classes) == 16
    assert [(row["label"], row["before"], row["after"]) for row in classes[-2:]] == [
        ("14", "2", "0"),
        ("49", "0", "2"),
    ]
    report = (tmp_path / "out" / "regression.md").read_text()
    assert "## Accuracy: REGRESSED" in report
    assert "| n01440764 0 tench | 2 | 2 | 0 | -2 |" in report
    assert "32 predictions changed" in report
    assert report.count("correct to wrong |") == regression_report.SHOWN
    assert summary.read_text() == f"before\n{report}\n"


def test_a_refusal_is_an_error_in_the_reports(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step.md"))
    two(tmp_path, ranks(60), ranks(60), preprocess="paddle")
    assert gate_run("--output", str(tmp_path / "out"))[0] == 2
    assert _cases(tmp_path / "out" / "junit.xml") == {("comparison", "comparable"): ["error"]}
    assert "preprocess is torchvision" in (tmp_path / "out" / "junit.xml").read_text()
    assert "preprocess is torchvision" in (tmp_path / "step.md").read_text()


def test_what_cannot_be_written_is_an_error(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    two(tmp_path, ranks(60), ranks(60))
    code, told = gate_run("--output", str(tmp_path / "a" / "summary.csv" / "x"))
    assert code == 2
    assert "cannot be written" in told
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    code, told = gate_run()
    assert code == 2
    assert "error: $GITHUB_STEP_SUMMARY" in told


def test_junit_of_checks_that_were_not_made(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    two(tmp_path, ranks(60), ranks(60))
    (tmp_path / "b" / "predictions.csv").unlink()
    assert gate_run("--output", str(tmp_path / "out"))[0] == 0
    assert _cases(tmp_path / "out" / "junit.xml")["base, unfused", "flips"] == ["skipped"]
    assert not (tmp_path / "out" / "regression_flips.csv").exists()


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
def test_no_name_breaks_the_reports(name: str) -> None:
    """File names are anything; tables keep their columns, and XML stays XML."""
    rows = {"rank": np.array([0, 7]), "top1": np.array([3, 9])}
    before = Predictions((name, f"{name}2"), np.array([3, 4]), *({"f": v} for v in rows.values()))
    after = Predictions((name, f"{name}2"), before.labels, {"f": np.array([7, 7])},
                        {"f": np.array([9, 8])})  # fmt: skip
    row = a_row(name)
    comparison = gate.Comparison(
        row, row, pair(before, "f", after, "f"), (gate.Check("x", False, name),), (name,)
    )
    tables = [
        line
        for line in regression_report.markdown([comparison], (name, name)).splitlines()
        if line.startswith("|")
    ]
    columns = {line.replace("\\|", "").count("|") for line in tables}
    assert columns == {4, 5, 6}
    assert len(tables) == 2 + 4 + 2 + 1 + 2 + 2 + 2 + 1
    ET.fromstring(regression_report.junit([comparison], UsageError(name)))
    assert "\x1b" not in regression_report.text([comparison], (name, name))


def a_row(text: str = "x") -> Row:
    """A row whose texts are all the same."""
    cells = dict.fromkeys(gate.NOTED, text)
    started = datetime(2026, 1, 1, tzinfo=UTC)
    return Row(text, started, text, text, text, 2, 2, 0, 1, 1, Verdict.PASS, "w", text, cells)


# --- Properties


@given(st.lists(st.tuples(st.integers(-1, 6), st.integers(-1, 6)), min_size=1, max_size=60))
def test_exchanges_explain_the_counts(ranks_of_images: list[tuple[int, int]]) -> None:
    """Lost minus gained is the drop; exchanging the sides exchanges them."""
    before, after = (np.array(rank) for rank in zip(*ranks_of_images, strict=True))
    labels = np.arange(len(before)) % 7
    sides = [
        Predictions(tuple(map(str, range(len(rank)))), labels, {"f": rank},
                    {"f": np.where(rank == 0, labels, np.where(rank < 0, -1, 100 + rank))})
        for rank in (before, after)
    ]  # fmt: skip
    there = pair(sides[0], "f", sides[1], "f")
    back = pair(sides[1], "f", sides[0], "f")
    for k in (1, 5):
        drop = int(sides[0].correct("f", k).sum() - sides[1].correct("f", k).sum())
        assert there.lost[k] - there.gained[k] == drop
        assert (there.lost[k], there.gained[k]) == (back.gained[k], back.lost[k])
    kinds = there.flips_by_kind
    assert (kinds["correct to wrong"], kinds["wrong to correct"]) == (
        there.lost[1],
        there.gained[1],
    )
    assert sum(row.before - row.after for row in there.classes) == there.lost[1] - there.gained[1]


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 30))
def test_only_a_greater_drop_fails(before: int, after: int, limit: int) -> None:
    sides = [
        Result("x", {("x", "x"): replace(a_row(), images=100, top1_correct=n, top5_correct=n)})
        for n in (before, after)
    ]
    images = Limit(Fraction(limit))
    (comparison,) = compare(*sides, Asked(top1=images, top5=images))
    assert comparison.regressed == (before - after > limit)


# --- Verdicts


def _verdict(word: str) -> dict[str, object]:
    """Cells that a run with this verdict has."""
    more: dict[str, dict[str, object]] = {
        "FAIL": {"reference_top1": "50.0"},
        "PARTIAL": {"images_expected": 50_000},
        "INCOMPLETE": {"bad_images": 1},
        "DISAGREE": {"max_abs_logit_diff": 1.1},
        "NO_REFERENCE": {"tolerance": ""},
    }
    return WHOLE | more.get(word, {}) | {"verdict": word}


def _with_verdicts(tmp_path: Path, before: str, after: str) -> None:
    for folder, word in (("a", before), ("b", after)):
        rank = ranks(60)
        if word == "INCOMPLETE":
            rank[-1] = -1
        write_result(tmp_path / folder, rank, run_id=folder, **_verdict(word))


@pytest.mark.parametrize("word", ["PASS", "FAIL", "PARTIAL", "NO_REFERENCE"])
@pytest.mark.parametrize("baseline", ["PASS", "NO_REFERENCE", "PARTIAL"])
def test_verdicts_that_pass_and_a_fail_that_does_not(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]], baseline: str, word: str
) -> None:
    _with_verdicts(tmp_path, baseline, word)
    code, told = gate_run()
    if word == "FAIL":
        assert code == 1
        assert (
            f"FAIL  verdict: FAIL; {baseline} before (its accuracy is not the reported one)" in told
        )
        assert told.splitlines()[-1] == "REGRESSED  base, unfused: verdict"
        assert gate_run("--allow-failed-baseline")[0] == 1, "the baseline has not failed"
    else:
        assert (code, f"ok    verdict: {word}; {baseline} before" in told) == (0, True)


@pytest.mark.parametrize(
    ("word", "code", "reason"),
    [
        ("INCOMPLETE", 3, "some of its images could not be read"),
        ("DISAGREE", 5, "its two forms give different predictions"),
    ],
)
def test_a_candidate_that_cannot_be_trusted_fails_with_its_own_code(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]], word: str, code: int, reason: str
) -> None:
    _with_verdicts(tmp_path, "PASS", word)
    for options in ((), ("--allow-failed-baseline",)):
        found, told = gate_run(*options, "--output", str(tmp_path / "out"))
        assert found == code
        assert f"FAIL  verdict: {word}; PASS before ({reason})" in told
    assert _cases(tmp_path / "out" / "junit.xml")["base, unfused", "verdict"] == ["failure"]
    assert (
        f"| verdict | FAIL | {word.replace('_', chr(92) + '_')}"
        in (tmp_path / "out" / "regression.md").read_text()
    )
    (row,) = _csv(tmp_path / "out" / "regression.csv")
    assert (row["baseline_verdict"], row["candidate_verdict"]) == ("PASS", word)


def test_the_gravest_of_several_failures_is_the_exit_code(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    write_result(tmp_path / "a", ranks(60))
    rank = ranks(0)
    rank[-1] = -1
    write_result(tmp_path / "b", rank, run_id="b", **_verdict("INCOMPLETE"))
    code, told = gate_run()
    assert code == 3
    assert "verdict; base, unfused: top-1" in told


@pytest.mark.parametrize("word", ["FAIL", "INCOMPLETE", "DISAGREE"])
def test_a_baseline_must_have_earned_its_figures(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]], word: str
) -> None:
    _with_verdicts(tmp_path, word, "PASS")
    code, told = gate_run("--output", str(tmp_path / "out"))
    assert code == 2
    first, second = told.splitlines()
    assert first.startswith(f"error: The baseline {tmp_path / 'a'} (base, unfused) says {word}: ")
    assert ("--allow-failed-baseline" in second) == (word == "FAIL")
    assert _cases(tmp_path / "out" / "junit.xml") == {("comparison", "comparable"): ["error"]}
    with pytest.raises(UsageError, match=f"says {word}"):
        check_baseline(tmp_path / "a", "base", "torchvision")
    assert gate_run("--allow-failed-baseline")[0] == (0 if word == "FAIL" else 2)


def test_a_failed_baseline_can_be_allowed_and_the_report_says_so(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    _with_verdicts(tmp_path, "FAIL", "FAIL")
    assert gate_run()[0] == 2
    code, told = gate_run("--allow-failed-baseline", "--output", str(tmp_path / "out"))
    assert code == 0
    assert "ok    verdict: FAIL, like the baseline: allowed (its accuracy is not the rep" in told
    note = "the verdict of the baseline is FAIL, which --allow-failed-baseline allows"
    assert f"note  {note}" in told
    assert note in (tmp_path / "out" / "regression.md").read_text()


def test_no_form_borrows_the_verdict_of_a_run_that_disagrees(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    """One form of two says DISAGREE: the other cannot be compared on its own either."""
    write_result(tmp_path / "a", ranks(60), **_verdict("PASS"))
    write_result(tmp_path / "b", {"unfused": ranks(60), "fused": ranks(60)}, run_id="b")
    cells = {"run_id": "b", "max_abs_logit_diff": 1.1}
    rows = [
        summary_row(ranks(60), **(_verdict("PASS") | cells)),
        summary_row(ranks(60), "fused", **(_verdict("DISAGREE") | cells)),
    ]
    write_rows(tmp_path / "b" / "summary.csv", rows)
    code, told = gate_run("--form", "unfused")
    assert code == 5
    assert "FAIL  verdict: DISAGREE; PASS before" in told
    code, told = gate_run("--form", "unfused", baseline="b", candidate="a")
    assert code == 2
    assert "(base, unfused) says DISAGREE" in told


def test_another_run_of_a_history_does_not_spoil_the_latest(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    early = {"run_id": "early", "started_at": "2026-01-01T00:00:00+00:00"}
    rows = [
        summary_row(ranks(60), "fused", **(_verdict("DISAGREE") | early)),
        summary_row(ranks(60), **(_verdict("PASS") | {"run_id": "late"})),
    ]
    write_rows(tmp_path / "history.csv", rows)
    write_result(tmp_path / "b", ranks(60), **(_verdict("PASS") | {"run_id": "new"}))
    assert gate_run("--form", "unfused", baseline="history.csv")[0] == 0


def test_a_candidate_that_was_stopped_early_is_explained(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    write_result(tmp_path / "a", ranks(60))
    cells = _verdict("FAIL") | {"images_expected": 100, "run_id": "b"}
    write_result(tmp_path / "b", ranks(20, images=40), **cells)
    code, told = gate_run()
    assert code == 2
    assert "images is 100 in the baseline and 40 in the candidate" in told
    assert "was stopped early, with FAIL: only a whole run can be compared" in told


@pytest.mark.parametrize("word", ["FAIL", "INCOMPLETE", "DISAGREE"])
def test_what_failed_is_not_accepted(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]], word: str
) -> None:
    _with_verdicts(tmp_path, "PASS", word)
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    code, told = gate_run("--accept", "--allow-failed-baseline")
    assert code == 2
    assert f"says {word} (unfused): it cannot become a baseline" in told
    assert "Only results that say one of PASS, NO_REFERENCE, PARTIAL can." in told
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before


def test_an_edited_verdict_is_refused(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    _with_verdicts(tmp_path, "PASS", "FAIL")
    path = tmp_path / "b" / "summary.csv"
    path.write_text(path.read_text().replace(",FAIL,", ",PASS,"))
    code, told = gate_run()
    assert code == 2
    assert "verdict: 'PASS' is not what its figures say: FAIL, top-1 +10, top-5 +0" in told


def test_the_committed_demo_baseline_passes_against_itself(
    gate_run: Callable[..., tuple[int, str]],
) -> None:
    folder = str(ROOT / "configs" / "baselines" / "demo")
    code, told = gate_run(baseline=folder, candidate=folder)
    assert code == 0
    assert told.count("ok    verdict: PASS; PASS before") == 2


# --- Classes


def _classes(path: Path, titles: list[tuple[str, str]]) -> None:
    rows = [f"{folder},{title}" for folder, title in titles]
    path.write_text("\n".join(["synset,name", *rows]) + "\n")


def test_classes_are_called_what_the_results_call_them(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    two(tmp_path, ranks(60), _moved(60, losses=8))
    titles = [(f"dir{i}", f"Title {i}") for i in range(701)]
    _classes(tmp_path / "b" / "per_class.csv", titles)
    _, told = gate_run("--output", str(tmp_path / "out"))
    assert "photo_00002.JPEG: 1 Title 1 -> 700 Title 700, correct to wrong" in told
    assert "| dir1 1 Title 1 | 2 | 2 | 0 | -2 |" in (tmp_path / "out/regression.md").read_text()
    _classes(tmp_path / "a" / "per_class.csv", [(name, "renamed") for name, _ in titles])
    assert gate_run()[0] == 1, "titles may change"


def test_without_names_a_class_is_a_number(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    labels = np.arange(IMAGES) * 100
    write_result(tmp_path / "a", ranks(60), labels=labels, wrong=21841)
    write_result(tmp_path / "b", _moved(60, losses=8), labels=labels, wrong=21841, run_id="b")
    code, told = gate_run("--output", str(tmp_path / "out"))
    assert code == 1
    assert "photo_00001.JPEG: 100 -> 21841, correct to wrong" in told
    assert "| 100 | 1 | 1 | 0 | -1 |" in (tmp_path / "out" / "regression.md").read_text()


def test_other_classes_are_not_comparable(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    two(tmp_path, ranks(60), ranks(60))
    titles = [(f"dir{i}", "x") for i in range(701)]
    _classes(tmp_path / "a" / "per_class.csv", titles)
    _classes(tmp_path / "b" / "per_class.csv", titles[1::-1] + titles[2:])
    code, told = gate_run()
    assert code == 2
    assert "classes differ (baseline and candidate): 0 is dir0 and dir1, 1 is dir1 and dir0" in told
    _classes(tmp_path / "b" / "per_class.csv", [*titles, ("more", "x")])
    code, told = gate_run()
    assert code == 2
    assert "classes: 701 in the baseline and 702 in the candidate" in told


def test_a_label_without_bound_takes_no_memory(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    labels = np.full(IMAGES, 10**17)
    write_result(tmp_path / "a", ranks(60), labels=labels)
    write_result(tmp_path / "b", _moved(60, losses=8), labels=labels, run_id="b")
    code, told = gate_run()
    assert code == 1
    assert "top-1: 8 images lost, 0 gained" in told


# --- Boundaries by hand


def _result(images: int = 1000, **cells: object) -> Result:
    """A whole run of `images`, with counts of top-1 and top-5, without predictions."""
    row = replace(a_row(), images=images, top1_correct=600, top5_correct=800)
    return Result("x", {("x", "x"): replace(row, **cells)})


@pytest.mark.parametrize(
    ("limit", "drop", "passed"),
    [
        (Limit(Fraction(7)), 7, True),
        (Limit(Fraction(7)), 8, False),
        (Limit(Fraction(0)), 0, True),
        (Limit(Fraction(0)), 1, False),
        (Limit(Fraction(0)), -1, True),
        (Limit(Fraction(1, 2), points=True), 5, True),  # 0.5 points of 1000 are 5 images
        (Limit(Fraction(1, 2), points=True), 6, False),
        # 0.59 points are 5.9 images: 5 is below, 6 above; nothing is rounded to whole images.
        (Limit(Fraction(59, 100), points=True), 5, True),
        (Limit(Fraction(59, 100), points=True), 6, False),
    ],
)
def test_the_limit_itself_is_allowed_and_one_more_is_not(
    limit: Limit, drop: int, passed: bool
) -> None:
    for k, count in ((1, 600), (5, 800)):
        after = _result(**{f"top{k}_correct": count - drop})
        (comparison,) = compare(_result(), after, Asked(top1=limit, top5=limit))
        found = {check.name: check.passed for check in comparison.checks}
        assert found[f"top-{k}"] is passed
        assert found[f"top-{6 - k}"] is True
        assert comparison.exit_code == (0 if passed else 1)


@pytest.mark.parametrize(("top1", "top5"), [(7, 3), (3, 7)])
def test_each_count_has_its_own_limit(top1: int, top5: int) -> None:
    asked = Asked(top1=Limit(Fraction(5)), top5=Limit(Fraction(5)))
    for name, option, drops in (("top-1", "top1", 7), ("top-5", "top5", 7)):
        after = _result(top1_correct=600 - top1, top5_correct=800 - top5)
        (comparison,) = compare(
            _result(), after, replace(asked, **{option: Limit(Fraction(drops))})
        )
        failed = [check.name for check in comparison.checks if check.passed is False]
        assert failed == [k for k, drop in (("top-1", top1), ("top-5", top5))
                          if drop > 5 and k != name]  # fmt: skip


def test_the_gravest_verdict_of_a_run_stands_for_it() -> None:
    rows = {
        ("x", form): replace(a_row(), form=form, verdict=verdict)
        for form, verdict in (("a", Verdict.INCOMPLETE), ("b", Verdict.DISAGREE))
    }
    for row in rows.values():
        assert gate.verdict_of(Result("x", rows), row) is Verdict.DISAGREE


def test_a_failed_baseline_is_refused_unless_it_is_allowed() -> None:
    failed = _result(verdict=Verdict.FAIL)
    with pytest.raises(UsageError, match="says FAIL"):
        gate.check_baseline_verdict(failed, failed.rows["x", "x"])
    gate.check_baseline_verdict(failed, failed.rows["x", "x"], allow_failed=True)


@pytest.mark.parametrize(
    ("before", "now", "passed"), [(0, 0, True), (0, 1, False), (2, 2, True), (2, 3, False)]
)
def test_unreadable_images_by_hand(before: int, now: int, passed: bool) -> None:
    (comparison,) = compare(_result(bad_images=before), _result(bad_images=now))
    (check,) = [check for check in comparison.checks if check.name == "unreadable images"]
    assert check == gate.Check("unreadable images", passed, f"{before} before, {now} now")


def test_flips_by_hand() -> None:
    """Four images: each kind of flip once, and one that stays. Sides are not exchanged."""
    labels = np.array([3, 3, 4, 5])
    names = tuple("abcd")
    before = Predictions(
        names, labels, {"f": np.array([0, 9, 2, 0])}, {"f": np.array([3, 8, 7, 5])}
    )
    after = Predictions(names, labels, {"f": np.array([5, 6, 0, 0])}, {"f": np.array([1, 2, 4, 5])})
    found = pair(before, "f", after, "f")
    assert found.flips == (
        gate.Flip("a", 3, before=3, after=1, rank_before=0, rank_after=5),
        gate.Flip("b", 3, before=8, after=2, rank_before=9, rank_after=6),
        gate.Flip("c", 4, before=7, after=4, rank_before=2, rank_after=0),
    )
    assert [flip.kind for flip in found.flips] == [
        "correct to wrong",
        "wrong to wrong",
        "wrong to correct",
    ]
    assert (found.lost, found.gained) == ({1: 1, 5: 1}, {1: 1, 5: 0})
    assert found.classes == (
        gate.ClassChange(3, images=2, before=1, after=0),
        gate.ClassChange(4, images=1, before=0, after=1),
    )
    assert (found.p_value(1), found.p_value(5)) == (1.0, 1.0)


def test_no_flips_by_hand() -> None:
    rows = {("x", "f"): replace(a_row(), form="f", images=1, top1_correct=1, top5_correct=1)}
    predictions = Predictions(("a",), np.array([3]), {"f": np.array([0])}, {"f": np.array([3])})
    (comparison,) = compare(*[Result("x", rows, predictions)] * 2)
    assert gate.Check("flips", True, "none; limit: 5 besides wrong to correct") in comparison.checks


def test_the_order_of_flips_and_classes() -> None:
    """Losses first, then by path; classes by their change, then by label."""
    labels = np.array([9, 8, 7, 7, 6])
    names = ("e", "d", "c", "b", "a")
    before = np.array([0, 0, 0, 0, 3])
    after = np.array([1, 1, 1, 1, 0])
    sides = [
        Predictions(names, labels, {"f": rank}, {"f": np.where(rank == 0, labels, 100)})
        for rank in (before, after)
    ]
    found = pair(sides[0], "f", sides[1], "f")
    assert [flip.path for flip in found.flips] == ["b", "c", "d", "e", "a"]
    assert [(row.label, row.after - row.before) for row in found.classes] == [
        (7, -2),
        (8, -1),
        (9, -1),
        (6, 1),
    ]


@pytest.mark.parametrize(("flips", "passed"), [(8, True), (7, False)])
def test_flips_of_both_bad_kinds_count_and_gains_do_not(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]], flips: int, passed: bool
) -> None:
    """5 correct to wrong, 3 wrong to wrong and 6 wrong to correct: 8 count."""
    before, after = ranks(60), _moved(60, losses=5, gains=6)
    write_result(tmp_path / "a", before)
    folder = write_result(tmp_path / "b", after, run_id="b")
    path = folder / "predictions.csv"
    lines = path.read_text().splitlines(keepends=True)
    for i in (81, 82, 83):  # wrong in both
        lines[i] = lines[i].replace(",700,", ",701,")
    path.write_text("".join(lines))
    code, told = gate_run("--max-flips", str(flips))
    assert code == (0 if passed else 1)
    assert (
        "flips: 5 correct to wrong, 3 wrong to wrong, 6 wrong to correct; limit: "
        f"{flips} besides wrong to correct" in told
    )


def test_defaults_by_hand() -> None:
    """The documented limits."""
    same, other = Asked().limits(same_weights=True), Asked().limits(same_weights=False)
    assert [same.top1.images(50_000), same.top5.images(50_000), same.flips] == [5, 5, 5]
    assert [other.top1.images(50_000), other.top5.images(50_000), other.flips] == [50, 50, None]
    mine = Asked(top1=Limit(Fraction(1)), top5=Limit(Fraction(2)), flips=0)
    for same_weights in (True, False):
        limits = mine.limits(same_weights=same_weights)
        assert [limits.top1.images(9), limits.top5.images(9), limits.flips] == [1, 2, 0]


def test_notes_by_hand() -> None:
    cells = dict.fromkeys(gate.NOTED, "same") | {"torch": "2.5.0", "git_commit": "0123456789abcdef"}
    after_cells = cells | {"torch": "2.6.0", "git_commit": "", "timm": "123456789012345"}
    cells["timm"] = ""
    before, after = _result(), _result()
    key = ("x", "x")
    before = replace(before, rows={key: replace(before.rows[key], cells=cells)})
    after = replace(after, rows={key: replace(after.rows[key], cells=after_cells)})
    (comparison,) = compare(before, after)
    assert comparison.notes == (
        "torch 2.5.0 -> 2.6.0",
        "timm unknown -> 1234567890123",
        "git_commit 0123456789abc -> unknown",
    )
    (comparison,) = compare(before, before)
    assert comparison.notes == ("both are the same run",)
    one = {"machine": "here", "onnxruntime": "1.23.2", "torch": "2.5.0"}
    other = {"machine": "there", "onnxruntime": "1.32.0", "torch": "2.6.0", "onnx": "1.9"}
    (comparison,) = compare(replace(before, environment=one), replace(before, environment=other))
    assert comparison.notes[1:] == (
        "machine here -> there",
        "onnx unknown -> 1.9",
        "onnxruntime 1.23.2 -> 1.32.0",  # torch has a column
    )
    (comparison,) = compare(before, replace(before, environment=other))
    assert comparison.notes[1:] == ()  # a history says none of it


# --- Accepting


def test_an_accepted_result_is_compared_like_the_original(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    rank = {"unfused": ranks(60), "fused": ranks(61)}
    write_result(tmp_path / "b", rank)
    code, told = gate_run("--accept", baseline="kept")
    assert code == 0
    assert f"{tmp_path / 'kept'} now holds {tmp_path / 'b'}." in told
    lines = (tmp_path / "kept" / "predictions.csv").read_text().splitlines()
    assert lines[:2] == [
        "path,label,unfused_rank,unfused_top1,fused_rank,fused_top1",
        "n00000000/photo_00000.JPEG,0,0,0,0,0",
    ]
    assert gate_run("--max-flips", "0", baseline="kept")[0] == 0
    write_result(tmp_path / "c", rank | {"fused": _moved(61, losses=7)})
    assert gate_run(baseline="kept", candidate="c")[0] == 1
    # A result without predictions leaves no older ones behind.
    (tmp_path / "c" / "predictions.csv").unlink()
    assert gate_run("--accept", baseline="kept", candidate="c")[0] == 0
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["summary.csv"]


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ("bad", "says INCOMPLETE (unfused): it cannot become a baseline"),
        ("a", "are the same one"),
        ("a/summary.csv", "needs a result folder"),
        ("torn", "is cut off"),
    ],
)
def test_only_an_intact_result_is_accepted(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]], candidate: str, message: str
) -> None:
    kept = write_result(tmp_path / "a", ranks(60))
    write_result(tmp_path / "bad", ranks(60), bad_images=1, verdict="INCOMPLETE", predictions=False)
    torn = write_result(tmp_path / "torn", ranks(60)) / "predictions.csv"
    torn.write_bytes(torn.read_bytes()[:-4])
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    code, told = gate_run("--accept", candidate=candidate)
    assert code == 2
    assert message in told
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before


# --- The command line


def test_results_go_to_stdout_and_errors_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_result(tmp_path / "a", ranks(60))
    assert regression.main(["--baseline", str(folder), "--candidate", str(folder)]) == 0
    captured = capsys.readouterr()
    assert not captured.err
    assert "note  both are the same run" in captured.out
    assert regression.main(["--baseline", str(tmp_path / "x"), "--candidate", str(folder)]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.startswith("error: ")


def test_a_crash_does_not_look_like_a_regression(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("eval.jobs.compare.read_result", crash)
    code, told = gate_run()
    assert code == 70
    assert "ZeroDivisionError: a bug" in told


@pytest.mark.parametrize("module", ["regression", "history", "score"])
def test_help_needs_no_heavy_imports(module: str) -> None:
    code = (
        f"import sys; from eval import {module}\n"
        f"try: {module}.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'timm', 'cv2', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "[]"
    assert f"usage: python -m eval.{module}" in shown.stdout


@pytest.mark.parametrize("losses", [0, 9])
def test_nothing_that_happens_to_stdout_changes_a_verdict(tmp_path: Path, losses: int) -> None:
    """`| true` and `>/dev/full`: a regression stays 1, and the reports are written."""
    two(tmp_path, ranks(60), _moved(60, losses=losses))
    sides = ["--baseline", str(tmp_path / "a"), "--candidate", str(tmp_path / "b")]
    command = [sys.executable, "-m", "eval.regression", *sides, "--output", str(tmp_path / "out")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        assert run.stderr.read() == ""
        assert run.wait(timeout=HANG) == (1 if losses else 0)
    assert (tmp_path / "out" / "junit.xml").exists()
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                command, stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert done.returncode == (1 if losses else 2)
        assert "stdout cannot be written" in done.stderr or losses
        assert "Traceback" not in done.stderr


def test_an_interrupt_is_130(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eval.jobs.compare.read_result", interrupt)
    assert gate_run()[0] == 130


def test_a_report_that_cannot_be_written_does_not_hide_why_nothing_was_compared(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    two(tmp_path, ranks(60), ranks(60), preprocess="paddle")
    code, told = gate_run("--output", str(tmp_path / "a" / "summary.csv" / "x"))
    assert code == 2
    assert "preprocess is torchvision in the baseline" in told
    assert "cannot be written" in told


def test_errors_from_files_are_printed_safely(
    tmp_path: Path, gate_run: Callable[..., tuple[int, str]]
) -> None:
    evil = "x\x1b[2J\nOK  not worse than the baseline"
    for folder, name in (("a", evil), ("b", f"{evil}2")):
        write_result(tmp_path / folder, ranks(60), run_id=evil, variant=name, predictions=False)
    code, told = gate_run()
    assert code == 2
    assert len(told.splitlines()) == 1
    assert "\x1b" not in told
    write_result(tmp_path / "c", {evil: ranks(60)}, run_id=evil, variant=evil, predictions=False)
    write_result(tmp_path / "d", {evil: ranks(40)}, run_id=evil, variant=evil, predictions=False)
    code, told = gate_run(baseline="c", candidate="d")
    assert code == 1
    assert "\x1b" not in told
    assert told.splitlines().count("OK  not worse than the baseline") == 0


# --- Refusals, word for word


def _refused(baseline: Result, candidate: Result, asked: Asked = gate.DEFAULTS) -> str:
    with pytest.raises(UsageError) as caught:
        compare(baseline, candidate, asked)
    return str(caught.value)


def _predictions() -> Predictions:
    return Predictions(("a",), np.array([0]), {"u": np.array([0])}, {"u": np.array([0])})


def _named(source: str, *keys: tuple[str, str], **cells: object) -> Result:
    row = _result().rows["x", "x"]
    rows = {key: replace(row, variant=key[0], form=key[1], **cells) for key in keys}
    return Result(source, rows)


def test_refusals_word_for_word() -> None:
    one, two_forms = ("base", "u"), (("base", "u"), ("base", "f"))
    assert _refused(_named("A", one, ("small", "u")), _named("B", ("large", "u"))) == (
        "Not comparable: variant is base, small in the baseline (A) and large in the candidate (B)."
    )
    assert _refused(_named("A", one), _named("B", *two_forms)) == (
        "Not comparable: form is u in the baseline and u, f in the candidate.\n"
        "Name one with --form NAME, or as --form BASELINE:CANDIDATE."
    )
    assert _refused(_named("A", *two_forms), _named("B", one)).startswith(
        "Not comparable: form is u, f in the baseline and u in the candidate.\n"
    )
    for form, missing, source in (("i", "i", "A"), ("u:i", "i", "B"), ("i:u", "i", "A")):
        assert _refused(_named("A", one), _named("B", *two_forms), Asked(form=form)) == (
            f"--form {form}: {source} has {'u' if source == 'A' else 'u, f'}, but not {missing!r}."
        )
    assert _refused(_named("A", one), _named("B", one), Asked(flips=3)) == (
        "--max-flips needs predictions.csv on both sides; A has none.\n"
        "Name the result folders, or omit --max-flips."
    )
    with_predictions = replace(_named("A", one), predictions=_predictions())
    assert "sides; B has none" in _refused(with_predictions, _named("B", one), Asked(flips=3))
    assert _refused(_named("A", one, verdict=Verdict.FAIL), _named("B", one)) == (
        "The baseline A (base, u) says FAIL: its accuracy is not the reported one.\n"
        "Name another result, or use eval.regression with --allow-failed-baseline."
    )
    assert _refused(_named("A", one, verdict=Verdict.DISAGREE), _named("B", one)) == (
        "The baseline A (base, u) says DISAGREE: its two forms give different predictions.\n"
        "Name another result as the baseline."
    )
    first, second = "1" * 64, "2" * 64
    others = _named("B", one, weights_sha256=second)
    assert _refused(_named("A", one, weights_sha256=first), others) == (
        f"Not comparable (base, u): weights_sha256 is {first[:12]} in the baseline and "
        f"{second[:12]} in the candidate.\n"
        "To compare them anyway: python -m eval.regression --allow-other-weights."
    )
    others = _named("B", one, preprocess="p", images=999, dataset_sha256=second)
    assert _refused(_named("A", one, preprocess="q", dataset_sha256=first), others) == (
        "Not comparable (base, u): preprocess is q in the baseline and p in the candidate; "
        "images is 1000 in the baseline and 999 in the candidate; "
        f"dataset_sha256 is {first[:12]} in the baseline and {second[:12]} in the candidate.\n"
        "Only runs on the same images, labels and preprocessing can be compared."
    )


@pytest.mark.parametrize(
    ("baseline", "candidate", "stopped"),
    [
        ({}, {"images": 400, "images_expected": 1000, "verdict": Verdict.FAIL}, True),
        ({}, {"images": 400, "images_expected": 1000, "verdict": Verdict.PARTIAL}, False),
        ({}, {"images": 400, "images_expected": 400, "verdict": Verdict.FAIL}, False),
        ({"preprocess": "p"}, {"images_expected": 2000, "verdict": Verdict.FAIL}, False),
    ],
)
def test_only_a_run_that_was_stopped_early_is_said_to_be(
    baseline: dict[str, object], candidate: dict[str, object], stopped: bool
) -> None:
    key = ("base", "u")
    advice = _refused(_named("A", key, **baseline), _named("B", key, **candidate)).splitlines()[1]
    assert advice == (
        "The candidate was stopped early, with FAIL: only a whole run can be compared."
        if stopped
        else "Only runs on the same images, labels and preprocessing can be compared."
    )


def test_a_comparison_without_predictions_word_for_word() -> None:
    (comparison,) = compare(_result(), _result(top1_correct=594))
    assert comparison.paired is None
    assert comparison.name == "x, x"
    assert comparison.classes is None
    assert comparison.checks == (
        gate.Check("verdict", True, "PASS; PASS before", 0),
        gate.Check("top-1", False, "-6 images; limit: a drop of 5 images", 1),
        gate.Check("top-5", True, "+0 images; limit: a drop of 5 images", 1),
        gate.Check("flips", None, "not checked: no predictions.csv on both sides", 1),
        gate.Check("unreadable images", True, "0 before, 0 now", 1),
    )
    assert (comparison.regressed, comparison.exit_code) == (True, 1)


def test_a_form_of_one_against_a_form_of_the_other() -> None:
    sides = (_named("A", ("base", "u"), ("base", "f")), _named("B", ("base", "i"), ("base", "f")))
    (comparison,) = compare(*sides, Asked(form="u:i"))
    assert (comparison.baseline.form, comparison.candidate.form) == ("u", "i")
    assert comparison.name == "base, u to i"
    (comparison,) = compare(*sides, Asked(form="f"))
    assert (comparison.baseline.form, comparison.candidate.form) == ("f", "f")


def test_a_history_may_hold_more_variants_than_are_asked_about() -> None:
    baseline = _named("A", ("base", "u"), ("small", "u"), ("small", "f"))
    candidate = _named("B", ("base", "u"))
    (comparison,) = compare(baseline, candidate)
    assert comparison.candidate.variant == "base"
    assert len(compare(baseline, baseline)) == 3


def test_the_classes_are_the_candidates_or_else_the_baselines() -> None:
    first, second = (ClassList(name, (ImageClass("dir", "title"),)) for name in "ab")
    for before, after, expected in (
        (first, second, second),
        (first, None, first),
        (None, second, second),
        (None, None, None),
    ):
        sides = replace(_result(), classes=before), replace(_result(), classes=after)
        assert compare(*sides)[0].classes is expected
