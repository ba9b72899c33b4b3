"""Results read back: what is intact is read, what is damaged is one clear error."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_results import HEADER, IMAGES, ranks, sha256, summary_row, write_result, write_rows

from eval.errors import UsageError
from eval.results.read import SUMMARY_COLUMNS, finished_length, read_result, read_rows

EARLY, LATE = "2026-01-01T00:00:00+00:00", "2026-02-01T00:00:00+00:00"


def test_reads_the_columns_that_are_written() -> None:
    assert list(SUMMARY_COLUMNS) == HEADER


def test_a_folder_gives_figures_and_predictions(tmp_path: Path) -> None:
    rank, fused = ranks(60), ranks(61)
    rank[-1] = fused[-1] = -1  # a bad image: its cells are empty
    forms = {"unfused": rank, "fused": fused}
    folder = write_result(tmp_path / "r", forms, bad_images=1, verdict="INCOMPLETE")
    result = read_result(folder)

    assert list(result.rows) == [("base", "unfused"), ("base", "fused")]
    row = result.rows["base", "unfused"]
    assert (row.images, row.top1_correct, row.top5_correct) == (IMAGES, 60, 70)
    assert (row.correct(1), row.correct(5)) == (60, 70)
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
    with pytest.raises(UsageError, match="no run but the one"):
        read_result(path, skip_runs={"late", "early", "s"})


def test_of_two_rows_of_one_second_the_one_further_down_is_the_latest(tmp_path: Path) -> None:
    rows = [summary_row(ranks(n), run_id=f"r{n}") for n in (63, 61)]
    result = read_result(write_rows(tmp_path / "history.csv", rows))
    assert result.rows["base", "unfused"].top1_correct == 61


def test_a_number_sign_may_be_part_of_a_path(tmp_path: Path) -> None:
    folder = write_result(tmp_path / "run#3", ranks(60))
    assert read_result(folder).rows["base", "unfused"].top1_correct == 60
    with pytest.raises(UsageError, match="a folder holds one run"):
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
        (lambda text: text.partition("\n")[0] + "\n", "holds no runs"),
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
        (_replace('"a, b', '"a, "b'), "cannot be read|is cut off|columns"),
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


def test_predictions_of_another_run_are_refused(tmp_path: Path) -> None:
    folder = write_result(tmp_path / "r", ranks(60))
    other = write_result(tmp_path / "s", {"fused": ranks(60)})
    (folder / "predictions.csv").write_bytes((other / "predictions.csv").read_bytes())
    with pytest.raises(UsageError, match="no columns of the form 'unfused'"):
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


def test_an_unfinished_row_can_be_left_out(tmp_path: Path) -> None:
    rows = [summary_row(ranks(60), run_id="a"), summary_row(ranks(61), run_id="b")]
    path = write_rows(tmp_path / "history.csv", rows)
    path.write_bytes(path.read_bytes()[:-20])
    assert [row.run_id for row in read_rows(path, drop_unfinished=True)] == ["a"]


@given(st.lists(st.lists(st.text('a,"\n', max_size=4), min_size=2, max_size=2), max_size=4),
       st.data())  # fmt: skip
def test_finished_length_is_the_last_end_of_a_row(
    rows: list[list[str]], data: st.DataObject
) -> None:
    """Of a CSV file cut anywhere, those rows are left whose line end is still there."""
    quoted = ["".join(f'"{c.replace(chr(34), chr(34) * 2)}",' for c in row) + "\n" for row in rows]
    whole = "".join(quoted).encode()
    cut = data.draw(st.integers(0, len(whole)))
    ends = [len("".join(quoted[:n]).encode()) for n in range(len(quoted) + 1)]
    assert finished_length(whole[:cut]) == max(end for end in ends if end <= cut)
