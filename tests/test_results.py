"""Results read back: what is intact is read, what is damaged is one clear error."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_evaluations import evaluation_of, random_measurement
from small_results import (
    HEADER,
    IMAGES,
    WHOLE,
    ranks,
    sha256,
    summary_row,
    write_result,
    write_rows,
)

from eval.config import Reference, Tolerance, VariantConfig
from eval.errors import UsageError
from eval.images.valset import Sample
from eval.judge.gate import compare
from eval.judge.verdict import Verdict, expected_correct
from eval.measure.measurement import Measurement
from eval.results.history import append_history
from eval.results.read import (
    ADDED_COLUMNS,
    SUMMARY_COLUMNS,
    _row,
    read_result,
    read_rows,
)
from eval.text import csv_cell, from_csv_cell, markdown_text, printable

EARLY, LATE = "2026-01-01T00:00:00+00:00", "2026-02-01T00:00:00+00:00"


def test_new_columns_follow_those_of_earlier_versions() -> None:
    """The files of `small_results` are of an earlier version: all tests read such ones."""
    assert (*HEADER, *ADDED_COLUMNS) == SUMMARY_COLUMNS


def test_a_folder_gives_figures_and_predictions(tmp_path: Path) -> None:
    rank, fused = ranks(60), ranks(61)
    rank[-1] = fused[-1] = -1  # a bad image: its cells are empty
    forms = {"unfused": rank, "fused": fused}
    folder = write_result(tmp_path / "r", forms, bad_images=1, verdict="INCOMPLETE")
    result = read_result(folder)

    assert list(result.rows) == [("base", "unfused"), ("base", "fused")]
    row = result.rows["base", "unfused"]
    assert (row.images, row.top1_correct, row.top5_correct) == (IMAGES, 60, 70)
    assert row.counts == {1: 60, 5: 70}
    assert {row.cells[name] for name in ADDED_COLUMNS} == {""}
    assert row.started_at.isoformat() == "2026-01-02T03:04:05+00:00"
    assert row.cells["command"] == 'python -m eval.imagenet --data "a, b"'
    assert result.predictions is not None
    np.testing.assert_array_equal(result.predictions.rank["unfused"], rank)
    assert result.predictions.top1["unfused"][[0, 98, 99]].tolist() == [0, 700, -1]
    assert int(result.predictions.correct("fused", 1).sum()) == 61


def test_a_summary_alone_gives_figures_only(tmp_path: Path) -> None:
    folder = write_result(tmp_path / "r", ranks(60))
    assert read_result(folder / "summary.csv").predictions is None


def test_a_history_gives_the_latest_row_of_each_form(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "history.csv",
        [
            summary_row(ranks(62), run_id="late", started_at=LATE),
            summary_row(ranks(61), run_id="early", started_at=EARLY),
            summary_row(ranks(50), "fused", run_id="early", started_at=EARLY),
            summary_row(ranks(40), run_id="s", started_at=EARLY, variant="small"),
        ],
    )

    def figures(source: str, **options: set[str]) -> dict[tuple[str, str], int]:
        rows = read_result(source, **options).rows
        return {key: row.top1_correct for key, row in rows.items()}

    fused, small = ("base", "fused"), ("small", "unfused")
    assert figures(str(path)) == {("base", "unfused"): 62, fused: 50, small: 40}
    assert figures(f"{path}#early") == {("base", "unfused"): 61, fused: 50}
    assert figures(str(path), skip_runs={"late"})["base", "unfused"] == 61
    with pytest.raises(UsageError, match="has no run nope"):
        read_result(f"{path}#nope")
    with pytest.raises(UsageError, match="no run other than the one"):
        read_result(path, skip_runs={"late", "early", "s"})


def test_of_two_rows_of_one_second_the_one_further_down_is_the_latest(tmp_path: Path) -> None:
    rows = [summary_row(ranks(n), run_id=f"r{n}") for n in (63, 61)]
    result = read_result(write_rows(tmp_path / "history.csv", rows))
    assert result.rows["base", "unfused"].top1_correct == 61


def test_a_number_sign_may_be_part_of_a_path(tmp_path: Path) -> None:
    folder = write_result(tmp_path / "run#3", ranks(60))
    assert read_result(folder).rows["base", "unfused"].top1_correct == 60
    with pytest.raises(UsageError, match="a folder contains one run"):
        read_result(f"{tmp_path}#3")


def test_images_are_known_by_name_in_every_layout(tmp_path: Path) -> None:
    paths = [f"ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(IMAGES)]
    flat = read_result(write_result(tmp_path / "a", ranks(60), paths=paths)).predictions
    paths = [f"val/n00000000/{path.replace('JPEG', 'jpg')}" for path in paths]
    sorted_ = read_result(write_result(tmp_path / "b", ranks(60), paths=paths)).predictions
    assert flat is not None
    assert sorted_ is not None
    assert flat.keys() == sorted_.keys()


def test_names_that_repeat_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = [f"n{i:08d}/1.JPEG" for i in range(IMAGES)]
    predictions = read_result(write_result(tmp_path / "a", ranks(60), paths=paths)).predictions
    assert predictions is not None
    assert predictions.keys() == paths


def _replace(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "is empty"),
        (lambda text: text[:-1], "is cut off"),
        (lambda text: text[: len(text) // 2], "is cut off"),
        (lambda text: text.partition("\n")[0] + "\n", "contains no runs"),
        (_replace(",macs,", ","), "row 1 has 39 of 38 columns"),
        (_replace(",macs,", ",macros,"), "no column macs"),
        (_replace(",macs,", ",params,"), "more than one column params"),
        (_replace("2026-01-02T03:04:05+00:00", "yesterday"), "started_at: 'yesterday'"),
        (_replace("05+00:00", "05"), "without its time zone"),
        (_replace(",100,50000,", ",1e2,50000,"), "images: '1e2' is not a whole number"),
        (_replace(",100,50000,", ",-100,50000,"), "images: '-100' is not a whole number"),
        (_replace(",60,70,60.0,70.0,", ",71,70,71.0,70.0,"), "71 and 70 of 100"),
        (_replace(",60,70,60.0,70.0,", ",60,170,60.0,170.0,"), "60 and 170 of 100"),
        (_replace(",60,70,60.0,70.0,", ",60,70,61.0,70.0,"), "top1: '61.0' is not what its"),
        (_replace(",60,70,60.0,70.0,", ",60,70,60.0,,"), "top5: '' is not a number from 0 to 100"),
        (_replace(sha256("images"), "abc"), "dataset_sha256: 'abc' is not a SHA-256"),
        (_replace(sha256("images"), ""), "dataset_sha256: '' is not a SHA-256"),
        (_replace(sha256("weights"), "abc"), "weights_sha256: 'abc' is not a SHA-256"),
        (_replace("base-1", ""), "run_id: '' is empty"),
        (_replace('"a, b', '"a, "b'), "cannot be read|not CSV|is cut off|columns"),
    ],
)
def test_a_damaged_summary_is_refused(
    tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    path = write_result(tmp_path / "r", ranks(60)) / "summary.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(UsageError, match=message) as caught:
        read_result(tmp_path / "r")
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "is empty"),
        (lambda text: text[:-3], "is cut off"),
        (lambda text: text.partition("\n")[0] + "\n", "it has no rows"),
        (lambda text: "\n".join(text.split("\n")[:-2]) + "\n", "of 99 images correct"),
        (_replace("photo_00003", "photo_00002"), "more than once: n00000000/photo_00002"),
        (_replace("unfused_rank", "fused_rank"), "no column fused_top1"),
        (_replace("label", "lable"), "no column label"),
        (_replace("unfused_rank,unfused_top1", "a,b"), "it has no forms"),
        (_replace("JPEG,0,0,0,", "JPEG,0,,0,"), "contradicts itself: n00000000/photo_00000"),
        (_replace("JPEG,0,0,0,", "JPEG,0,0,1,"), "contradicts itself"),
        (_replace("JPEG,49,7,700,", "JPEG,49,7,,"), "contradicts itself"),
        (_replace("JPEG,49,7,700,", "JPEG,49,,700,"), "contradicts itself"),
        (_replace("JPEG,49,7,700,", "JPEG,49,,,"), "and 1 unreadable .*, its .* and 0"),
        (_replace("JPEG,0,0,0,", "JPEG,0,3,700,"), "has 59/70 of 100 images correct"),
        (_replace("JPEG,0,0,0,", "JPEG,0.0,0,0,"), "label: '0.0' is not a whole number"),
        (_replace("JPEG,0,0,0,", "JPEG,,0,0,"), "label: '' is not a whole number"),
        (_replace("JPEG,0,0,0,", "JPEG,0,-2,0,"), "unfused_rank: '-2' is not a whole number"),
        (_replace("photo_00003", "\udcff"), "cannot be read"),
        (_replace("n00000000/photo_00003", "n0/\0photo"), "no path inside a validation set"),
        (_replace("n00000000/photo_00003", "../../x"), "'../../x.JPEG' is no path inside"),
        (_replace("n00000000/photo_00003", "/etc/x"), "'/etc/x.JPEG' is no path inside"),
        (_replace("n00000000/photo_00003", "n0/../x"), "no path inside a validation set"),
        (_replace("\n3,n0", "\n4,n0"), "index: not the numbers from 0 to 99, each once"),
        (_replace("\n3,n0", "\n103,n0"), "index: not the numbers from 0 to 99, each once"),
        (_replace("\n3,n0", "\nx,n0"), "index: 'x' is not a whole number"),
        (
            lambda text: text.replace("\n3,n0", "\n99,n0").replace(
                "\n99,n00000000/photo_00099", "\n3,n00000000/photo_00099"
            ),
            "index: n00000000/photo_00004.JPEG is number 4, but the images are sorted by path",
        ),
    ],
)
def test_damaged_predictions_are_refused(
    tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    path = write_result(tmp_path / "r", ranks(60)) / "predictions.csv"
    path.write_bytes(change(path.read_text()).encode(errors="surrogateescape"))
    with pytest.raises(UsageError, match=message) as caught:
        read_result(tmp_path / "r")
    assert str(path) in str(caught.value)


def test_rows_may_have_any_order_with_their_index(tmp_path: Path) -> None:
    order = np.random.default_rng(2).permutation(IMAGES).tolist()
    assert read_result(write_result(tmp_path / "r", ranks(60), order=order)).predictions


def test_flips_are_those_of_the_predictions(tmp_path: Path) -> None:
    """61 and 60 of 100 correct: one prediction differs."""
    forms = {"unfused": ranks(60), "fused": ranks(61)}
    cells = {"max_abs_logit_diff": 1e-5}
    assert read_result(write_result(tmp_path / "r", forms, **cells, prediction_flips=1)).rows
    write_result(tmp_path / "r", forms, **cells, prediction_flips=0)
    with pytest.raises(
        UsageError, match=r"has 1 images with different predictions .* says 0"
    ) as told:
        read_result(tmp_path / "r")
    assert len(str(told.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"verdict": "PASS"', '"verdict": "FAIL"'),
        ('"run_id": "r"', '"run_id": "s"'),
        ('"top1": 60.0', '"top1": 61.0'),
        ('"images": 100', '"images": 101'),
        ('"form": "unfused"', '"form": "fused"'),
        ('"results"', '"other"'),
        ("{", "["),
    ],
)
def test_a_summary_and_the_run_beside_it_say_the_same(tmp_path: Path, old: str, new: str) -> None:
    folder = write_result(tmp_path / "r", ranks(60), **WHOLE, run_id="r")
    form = {"form": "unfused", "verdict": "PASS", "images": 100, "top1": 60.0, "top5": 70.0}
    text = json.dumps({"run_id": "r", "verdict": "PASS", "results": [form]})
    (folder / "run.json").write_text(text)
    assert read_result(folder).rows
    assert old in text
    (folder / "run.json").write_text(text.replace(old, new, 1))
    with pytest.raises(UsageError, match=r"run\.json") as told:
        read_result(folder)
    assert len(str(told.value).splitlines()) <= 2


def test_predictions_of_another_run_are_refused(tmp_path: Path) -> None:
    folder = write_result(tmp_path / "r", ranks(60))
    other = write_result(tmp_path / "s", {"fused": ranks(60)})
    (folder / "predictions.csv").write_bytes((other / "predictions.csv").read_bytes())
    with pytest.raises(UsageError, match="no columns for the form 'unfused'"):
        read_result(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "no such result"),
        ("nothing.csv#run", "no such result"),
        ("empty", "summary.csv: there is no such file"),
        ("r/predictions.csv", "is not a summary or history"),
        ("folder", "more than one run"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    write_result(tmp_path / "r", ranks(60))
    rows = [summary_row(ranks(60), run_id=run) for run in ("a", "b")]
    write_rows(tmp_path / "folder" / "summary.csv", rows)
    with pytest.raises(UsageError, match=re.escape(message)):
        read_result(tmp_path / name)


# --- Verdicts must follow from the figures beside them


@pytest.mark.parametrize(
    ("right", "near", "cells", "message"),
    [
        # What a run can have written.
        (60, 10, {}, ""),
        (62, 10, {}, ""),
        (58, 10, {}, ""),
        (60, 12, {}, ""),
        (60, 8, {}, ""),
        (63, 10, {"reference_top1": "", "reference_top5": "73"}, ""),
        (60, 30, {"reference_top5": ""}, ""),
        (63, 7, {"verdict": "FAIL"}, ""),
        (60, 7, {"verdict": "FAIL"}, ""),
        (60, 10, {"verdict": "FAIL", "images_expected": 101}, ""),  # stopped early
        (60, 10, {"verdict": "PARTIAL", "images_expected": 101}, ""),
        (60, 10, {"verdict": "NO_REFERENCE", "precision": "bf16"}, ""),
        (60, 10, {"verdict": "NO_REFERENCE", "tolerance": ""}, ""),
        (60, 10, {"verdict": "NO_REFERENCE", "tolerance": "", "reference_top1": ""}, ""),
        (60, 10, {"verdict": "NO_REFERENCE", "images_expected": 99}, ""),
        (60, 10, {"verdict": "INCOMPLETE", "bad_images": 1}, ""),
        (60, 10, {"verdict": "INCOMPLETE", "bad_images": 30}, ""),
        (60, 10, {"verdict": "DISAGREE", "max_abs_logit_diff": 1.1}, ""),
        (60, 10, {"verdict": "DISAGREE", "max_abs_logit_diff": 1.1, "bad_images": 1}, ""),
        # The count that a figure stands for is the nearest; a half is rounded up.
        (60, 10, {"reference_top1": "57.5"}, ""),
        (60, 10, {"reference_top1": "62.49"}, ""),
        (
            60,
            10,
            {"reference_top1": "57.49"},
            "figures say: FAIL, top-1 [+]3, top-5 [+]0 .* tolerance 2",
        ),
        (
            60,
            10,
            {"reference_top1": "62.5"},
            "figures say: FAIL, top-1 -3, top-5 [+]0 .* tolerance 2",
        ),
        (
            60,
            10,
            {"reference_top5": "72.5"},
            "figures say: FAIL, top-1 [+]0, top-5 -3 .* tolerance 2",
        ),
        (60, 10, {"verdict": "FAIL", "reference_top1": "57.49"}, ""),
        (
            60,
            10,
            {"verdict": "FAIL", "reference_top1": "57.5"},
            "say: PASS, top-1 [+]2, top-5 [+]0 .* tolerance 2",
        ),
        (60, 10, {"tolerance": 0}, ""),
        (60, 10, {"verdict": "FAIL", "tolerance": 0}, "say: PASS, top-1 [+]0, .* tolerance 0"),
        # What nobody's run has earned.
        (60, 10, {"images_expected": 101}, "say: PARTIAL, 100 of 101 images"),
        (60, 10, {"images_expected": 99}, "say: NO_REFERENCE, 100 images, but .* is for 99"),
        (60, 10, {"bad_images": 1}, "say: INCOMPLETE, 1 of 100 images cannot be decoded"),
        (60, 10, {"tolerance": ""}, "say: NO_REFERENCE, there is no reference or no tolerance"),
        (60, 10, {"reference_top1": "", "reference_top5": ""}, "no reference or no tolerance"),
        (63, 7, {}, "say: FAIL, top-1 [+]3, top-5 [+]0 .* tolerance 2"),
        (57, 13, {}, "say: FAIL, top-1 -3, top-5 [+]0 .* tolerance 2"),
        (60, 13, {}, "say: FAIL, top-1 [+]0, top-5 [+]3 .* tolerance 2"),
        (60, 10, {"verdict": "FAIL"}, "say: PASS, top-1 [+]0, top-5 [+]0 images vs. reference"),
        (60, 10, {"verdict": "FAIL", "images_expected": 99}, "100 images, but .* is for 99"),
        (63, 7, {"verdict": "FAIL", "bad_images": 1}, "say: INCOMPLETE, 1 of 100"),
        (63, 7, {"verdict": "FAIL", "tolerance": ""}, "no reference or no tolerance"),
        (60, 10, {"verdict": "PARTIAL"}, "say: PASS, top-1 [+]0, top-5 [+]0"),
        (60, 10, {"verdict": "PARTIAL", "images_expected": 101, "bad_images": 1}, "INCOMPLETE"),
        (60, 10, {"verdict": "NO_REFERENCE", "bad_images": 1}, "INCOMPLETE, 1 of 100"),
        (60, 10, {"verdict": "NO_REFERENCE"}, "say: PASS, top-1 [+]0, top-5 [+]0"),
        (63, 7, {"verdict": "NO_REFERENCE"}, "say: FAIL, top-1 [+]3, top-5 [+]0"),
        (60, 10, {"verdict": "INCOMPLETE"}, "say: PASS"),
        (60, 10, {"verdict": "DISAGREE"}, "say: PASS"),
        # Precision, forms, and the figures that follow from counts.
        (60, 10, {"precision": "bf16"}, "say: NO_REFERENCE, the reported figures are fp32: a bf16"),
        (60, 10, {"precision": "int8"}, "say: NO_REFERENCE, the reported figures are fp32: a int8"),
        (60, 10, {"precision": "int8", "form": "scored"}, ""),  # compared with --tolerance
        (60, 10, {"verdict": "NO_REFERENCE", "precision": "int8", "form": "scored"}, ""),
        (60, 10, {"max_abs_logit_diff": 0.009}, ""),
        (60, 10, {"max_abs_logit_diff": 1e30}, "say: DISAGREE, the two forms give different"),
        (60, 10, {"max_abs_logit_diff": 1e30, "verdict": "FAIL"}, "say: DISAGREE"),
        (60, 10, {"verdict": "DISAGREE", "max_abs_logit_diff": 1e-5}, "say: PASS"),
        (
            60,
            10,
            {"verdict": "DISAGREE", "max_abs_logit_diff": 1.1, "precision": "bf16"},
            "say: NO",
        ),
        (60, 10, {"max_abs_logit_diff": 1e-5, "prediction_flips": 5}, ""),
        (60, 10, {"max_abs_logit_diff": 1e-5, "prediction_flips": 20}, "say: DISAGREE"),
        (
            60,
            10,
            {"prediction_flips": 20},
            "prediction_flips: '20' is not possible: no logit differs",
        ),
        (60, 10, {"max_abs_logit_diff": 0, "prediction_flips": 1}, "no logit differs"),
        (60, 10, {"max_abs_logit_diff": 1e-5, "prediction_flips": 101}, "more than 100 images"),
        (60, 10, {"tolerance": 10**9}, "tolerance: '1000000000' is more than 100 images"),
        (60, 10, {"tolerance": 100}, ""),
        (60, 10, {"tolerance": 101}, "tolerance: '101' is more than 100 images"),
        # Wilson's interval of 60 of 100.
        (60, 10, {"top1_ci_low": 50.20025867910617, "top1_ci_high": 69.05987135675412}, ""),
        (
            60,
            10,
            {"top1_ci_low": 69.05987135675412, "top1_ci_high": 50.20025867910617},
            "top1_ci_low: '69.05",
        ),
        (
            60,
            10,
            {"top1_ci_low": 50.20025867910617, "top1_ci_high": 100},
            "top1_ci_high: '100' is not what",
        ),
        (60, 10, {"delta_top1": 0, "delta_top5": "0.0"}, ""),
        (60, 10, {"delta_top1": "-0.1"}, "delta_top1: '-0.1' is not what its counts say"),
        (60, 10, {"delta_top5": "1.0"}, "delta_top5: '1.0' is not what its counts say"),
        (60, 10, {"reference_top5": "", "delta_top5": "0.0"}, "from a reference that is not there"),
        (60, 10, {"verdict": "INCOMPLETE", "bad_images": 31}, "impossible as counts .* 31 unread"),
        (60, 10, {"verdict": "Pass"}, "'Pass' is not one of PASS, NO_REFERENCE, PARTIAL"),
        (60, 10, {"verdict": ""}, "'' is not one of PASS"),
        (60, 10, {"verdict": "DEMO"}, "'DEMO' is not one of PASS"),
    ],
)
def test_a_verdict_must_follow_from_its_figures(
    tmp_path: Path, right: int, near: int, cells: dict[str, object], message: str
) -> None:
    row = summary_row(ranks(right, near), **(WHOLE | cells))
    path = write_rows(tmp_path / "summary.csv", [row])
    if not message:
        assert read_rows(path)[0].verdict == row["verdict"]
        return
    with pytest.raises(UsageError, match=message) as caught:
        read_rows(path)
    assert "row 1" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@given(st.integers(0, 100), st.integers(0, 10_000), st.integers(0, 30), st.booleans())
def test_what_the_judge_says_is_never_refused(
    right: int, reference: int, tolerance: int, top1: bool
) -> None:
    figure = f"{reference / 100}"
    cells = {"reference_top1": "", "reference_top5": "", "tolerance": tolerance}
    cells["reference_top1" if top1 else "reference_top5"] = figure
    expected = expected_correct(reference / 100, IMAGES)
    verdict = Verdict.PASS if abs(right - expected) <= tolerance else Verdict.FAIL
    row = summary_row(ranks(right, 0), **(WHOLE | cells | {"verdict": verdict.value}))
    assert _row({name: str(cell) for name, cell in row.items()}, "x").verdict is verdict


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("started_at", "0001-01-01T00:00:00+14:00", "not a year from 1970 to 2999"),
        ("started_at", "9999-12-31T23:59:59-14:00", "not a year from 1970 to 2999"),
        ("started_at", "1969-12-31T23:59:59+00:00", "not a year from 1970 to 2999"),
        ("images_per_second", "abc", "not a number from 0"),
        ("images_per_second", "-1", "not a number from 0"),
        ("images_per_second", "nan", "not a number from 0"),
        ("images_per_second", "1e999", "not a number from 0"),
        ("images_per_second", "1_0", "not a number from 0"),
        ("seconds", "inf", "not a number from 0"),
        ("nll", "NaN", "not a number from 0"),
        ("nll", "1e-99999999", "not a number from 0"),
        ("max_abs_logit_diff", "Infinity", "not a number from 0"),
        ("top1", "nan", "not a number from 0 to 100"),
        ("top5", "inf", "not a number from 0 to 100"),
        ("top1_ci_low", "-0.1", "not a number from 0 to 100"),
        ("top1_ci_high", "100.1", "not a number from 0 to 100"),
        ("reference_top1", "770.4", "not a number from 0 to 100"),
        ("reference_top5", "-5.0", "not a number from 0 to 100"),
        ("reference_top1", "0x10", "not a number from 0 to 100"),
        ("delta_top1", "100.5", "not a number from -100 to 100"),
        ("delta_top5", "nan", "not a number from -100 to 100"),
        ("tolerance", "-5", "not a whole number from 0"),
        ("tolerance", "1.0", "not a whole number from 0"),
        ("tolerance", "12345678901234567890123", "not a whole number from 0"),
        ("prediction_flips", "nan", "not a whole number from 0"),
        ("params", "six", "not a whole number from 0"),
        ("macs", "1e9", "not a whole number from 0"),
    ],
)
def test_numbers_that_are_none_are_refused(
    tmp_path: Path, name: str, value: str, message: str
) -> None:
    path = write_rows(tmp_path / "summary.csv", [summary_row(ranks(60), **{name: value})])
    with pytest.raises(UsageError, match=f"row 1, {name}: .* {message}") as caught:
        read_rows(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("started_at", "1970-01-01T00:00:00+00:00"),
        ("started_at", "2999-12-31T23:59:59-14:00"),
        ("images_per_second", "0"),
        ("nll", "1.5e-07"),
        ("max_abs_logit_diff", "3e-4"),
        ("top1_ci_high", "69.05987135675412"),
        ("delta_top1", "-17.04"),
        ("tolerance", ""),
        ("macs", "600076712"),
    ],
)
def test_numbers_as_they_are_written_are_read(tmp_path: Path, name: str, value: str) -> None:
    path = write_rows(tmp_path / "summary.csv", [summary_row(ranks(60), **{name: value})])
    assert read_rows(path)[0].cells[name] == value


# --- Any number of classes


def _per_class(path: Path, classes: list[tuple[str, str]]) -> Path:
    lines = ["synset,name,images", *(f'{synset},"{name}",1' for synset, name in classes)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_any_number_of_classes_is_read(tmp_path: Path) -> None:
    labels = np.arange(IMAGES) * 20
    folder = write_result(tmp_path / "r", ranks(60), labels=labels, wrong=21841)
    predictions = read_result(folder).predictions
    assert predictions is not None
    assert predictions.top1["unfused"][[1, 99]].tolist() == [20, 21841]


def test_the_classes_beside_the_predictions_bound_them(tmp_path: Path) -> None:
    folder = write_result(tmp_path / "r", ranks(60), wrong=50)
    _per_class(folder / "per_class.csv", [(f"c{i}", f"Class {i}, or so") for i in range(51)])
    result = read_result(folder)
    assert result.classes is not None
    assert len(result.classes) == 51
    assert result.classes.rows[50] == ("c50", "Class 50, or so")
    _per_class(folder / "per_class.csv", [(f"c{i}", "x") for i in range(50)])
    with pytest.raises(UsageError, match="unfused_top1: '50' is not below 50"):
        read_result(folder)
    (folder / "per_class.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match=r"is not a per_class\.csv .* no column synset, name"):
        read_result(folder)
    (folder / "per_class.csv").write_text("synset,name\n")
    with pytest.raises(UsageError, match=r"is not a per_class.csv .* no rows"):
        read_result(folder)


# --- Odd paths


@pytest.mark.skipif(sys.platform == "win32", reason="FIFOs are of POSIX")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    folder = write_result(tmp_path / "r", ranks(60))
    for name in ("summary.csv", "predictions.csv"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(UsageError, match=f"{name} is not a regular file"):
            read_result(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(content)


def test_a_name_too_long_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read|no such result"):
        read_result(tmp_path / ("x" * 5000))


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("base-1 äöü 漢字", "base-1 äöü 漢字"),
        ("a\x1b[31mred\nnext\tcell\r", r"a\x1b[31mred\nnext\tcell\r"),
        ("\u202eright to left\x00\x7f\udcff", r"\u202eright to left\x00\x7f\udcff"),
    ],
)
def test_printable_text(text: str, safe: str) -> None:
    assert printable(text) == safe


@given(st.text())
def test_no_text_moves_a_cursor_or_ends_a_line(text: str) -> None:
    assert printable(text).isprintable()
    assert markdown_text(text).isprintable()
    assert not re.search(r"(?<!\\)[|`*_\[\]<]", markdown_text(text).replace("\\\\", ""))


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd", "'+cmd"),
        ("-x", "'-x"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("'=1", "''=1"),
        ("-0.5", "-0.5"),
        ("+5", "+5"),
        ("-1e-05", "-1e-05"),
        ("-1+2", "'-1+2"),
        ("a=1", "a=1"),
        ("'quoted'", "'quoted'"),
        ("", ""),
    ],
)
def test_no_cell_is_a_formula(text: str, cell: str) -> None:
    assert csv_cell(text) == cell
    assert from_csv_cell(cell) == text


@given(st.text(st.sampled_from("'=+-@1a.\t\r"), max_size=6))
def test_cells_are_read_as_they_were_written(text: str) -> None:
    assert from_csv_cell(csv_cell(text)) == text


def top1_alone(n: int = 30) -> Measurement:
    """As of predictions that name one class of each image."""
    measured = random_measurement(n, forms=["scored"])
    scores = measured.scores["scored"]
    scores.rank[:] = np.minimum(scores.rank, 1)
    scores.top[:, 1:], scores.prob[:, 1:] = -1, np.nan
    scores.nll[:] = np.nan
    scores.known = 1
    return measured


def test_without_the_top_5_its_figures_are_empty(tmp_path: Path) -> None:
    """And the result is judged by its top-1, read again, and compared by it."""
    measured = top1_alone()
    reference = Reference("x", top1=100 * measured.scores["scored"].correct(1) / 30, top5=90.0)
    tolerance = {"torchvision": Tolerance(0, "x")}
    config = VariantConfig("base", "base", 30, {"": reference}, tolerance)
    evaluation = evaluation_of(measured, config)
    evaluation.save(tmp_path / "a")
    (result,) = evaluation.judgment.forms
    assert (result.verdict, set(result.correct)) == (Verdict.PASS, {1})
    assert result.reason == "top-1 +0 images vs. reference; tolerance 0; top-5 is unknown"
    row = read_result(tmp_path / "a").rows["base", "scored"]
    empty = ("top5_correct", "top5", "delta_top5")
    assert [row.cells[name] for name in empty] == ["", "", ""]
    assert row.counts == {1: result.correct[1]}
    page = (tmp_path / "a" / "report.html").read_text()
    assert "Top-1 " in page
    assert "At which position is the label?" not in page
    assert ", label at position" not in page
    assert set(evaluation.per_class["scored_correct@5"].isna()) == {True}
    (compared,) = compare(read_result(tmp_path / "a"), read_result(tmp_path / "a"))
    assert (set(compared.paired.lost), compared.regressed) == ({1}, False)  # type: ignore[union-attr]
    assert ("top-5", None) in [(check.name, check.passed) for check in compared.checks]


def test_a_top_5_accuracy_without_its_count_is_refused() -> None:
    row = summary_row(ranks(60), top5_correct="", top5=70.0)
    with pytest.raises(UsageError, match=r"top5: '70\.0' is there without top5_correct"):
        _row({name: str(cell) for name, cell in row.items()}, "x")


def test_confusions_by_hand(tmp_path: Path) -> None:
    measured = top1_alone(6)
    labels = [s.label for s in measured.valset.samples]
    assert labels == [0, 1, 2, 3, 4, 5]
    measured.valset = dataclasses.replace(
        measured.valset, samples=tuple(Sample(f"{i}.JPEG", i // 3) for i in range(6))
    )
    top = measured.scores["scored"].top[:, 0]
    top[:] = [5, 0, 5, 0, 1, -1]  # the last one could not be read
    measured.scores["scored"].rank[:] = [1, 0, 1, 1, 0, -1]
    evaluation_of(measured).save(tmp_path)
    assert (tmp_path / "confusions.csv").read_text() == (
        "form,label,prediction,count\nscored,0,5,2\nscored,1,0,1\n"
    )


def test_names_that_look_like_formulas_come_back(tmp_path: Path) -> None:
    """Written by us, with marks, and read again without."""
    measured = random_measurement(30)
    names = (*(f"=cmd|' /C calc'!A{i:02}.JPEG" for i in range(29)), "@x.JPEG")
    samples = tuple(Sample(name, i) for i, name in enumerate(names))
    measured.valset = dataclasses.replace(measured.valset, samples=samples)
    evaluation = evaluation_of(measured, command="-x --data '=1'")
    evaluation.save(tmp_path)
    text = (tmp_path / "predictions.csv").read_text()
    assert "\n1,'=cmd|' /C calc'!A01.JPEG,1," in text
    assert "\n29,'@x.JPEG,29," in text
    assert ",'-x --data '=1'," in (tmp_path / "summary.csv").read_text()
    result = read_result(tmp_path)
    assert result.predictions is not None
    assert result.predictions.paths == names
    assert {row.cells["command"] for row in result.rows.values()} == {"-x --data '=1'"}
    append_history(tmp_path / "history.csv", tmp_path)
    rows = (tmp_path / "history.csv").read_text().splitlines()
    assert rows == (tmp_path / "summary.csv").read_text().splitlines()
