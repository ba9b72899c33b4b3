"""What the files hold: the page about them, and the files themselves, agree with the schema."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, rows_of
from small_evaluations import FORMS, evaluation_of, random_measurement

from eval.results import schema
from eval.results.read import read_rows

CONTRACT = (  # the order and the names that scripts rely on
    "run_id, started_at, variant, form, backend, device, precision, preprocess, images, "
    "images_expected, bad_images, top1_correct, top5_correct, top1, top5, top1_ci_low, "
    "top1_ci_high, reference_top1, reference_top5, reference_source, delta_top1, delta_top5, "
    "tolerance, verdict, nll, max_abs_logit_diff, prediction_flips, images_per_second, seconds, "
    "params, macs, weights, weights_sha256, dataset_sha256, torch, torchvision, timm, git_commit, "
    "command, balanced_accuracy, macro_precision, macro_f1"
)


def documented(file: str) -> list[str]:
    """The names in the table of a file in docs/results.md."""
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    section = page.partition(f"## {file}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def with_forms(names: list[str]) -> list[str]:
    """`{form}` replaced by each form, one form after the other."""
    fixed = [name for name in names if "{form}" not in name]
    own = [name for name in names if "{form}" in name]
    return fixed + [name.replace("{form}", form) for form in FORMS for name in own]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result with bad images, so that every file is there."""
    measured = random_measurement(40)
    measured.bad[3] = "truncated"
    for scores in measured.scores.values():
        scores.rank[3], scores.top[3] = -1, -1
        scores.prob[3], scores.nll[3] = np.nan, np.nan
    folder = tmp_path_factory.mktemp("result")
    evaluation_of(measured).save(folder)
    return folder


def header(path: Path) -> list[str]:
    return next(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_the_page_is_the_one_that_is_printed() -> None:
    """After a change: python -m eval.results.schema > docs/results.md."""
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == schema.document()


def test_summary_has_the_contracts_columns_in_its_order() -> None:
    assert ", ".join(schema.SUMMARY_COLUMNS) == CONTRACT


@pytest.mark.parametrize(
    "file", ["summary.csv", "predictions.csv", "per_class.csv", "confusions.csv", "bad_images.csv"]
)
def test_a_file_has_exactly_the_documented_columns(file: str, written: Path) -> None:
    assert header(written / file) == with_forms(documented(file))


def test_run_json_has_exactly_the_documented_keys(written: Path) -> None:
    run = json.loads((written / "run.json").read_text(encoding="utf-8"))
    assert list(run) == documented("run.json")


def test_every_file_is_documented_and_the_other_way_round(written: Path) -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^## (\S+\.\w+)$", page, re.MULTILINE))
    assert {path.name for path in written.iterdir()} - {"report.html"} <= sections


def test_no_meaning_is_empty_or_said_twice() -> None:
    rows = [(column.name, column.meaning) for column in schema.SUMMARY]
    rows += [*schema.PREDICTIONS, *schema.PER_CLASS, *schema.BAD_IMAGES]
    rows += [(key.name, key.meaning) for key in schema.RUN]
    assert all(meaning.strip() and "|" not in meaning for _, meaning in rows)
    for names in (schema.SUMMARY_COLUMNS, [key.name for key in schema.RUN]):
        assert len(set(names)) == len(names)


def test_the_verdict_is_the_same_in_every_file(written: Path) -> None:
    run = json.loads((written / "run.json").read_text(encoding="utf-8"))
    rows = rows_of(written / "summary.csv")
    assert [row["verdict"] for row in rows] == ["INCOMPLETE"] * 2
    assert run["verdict"] == "INCOMPLETE"
    assert run["exit_code"] == 3
    assert [row["verdict"] for row in run["results"]] == ["INCOMPLETE"] * 2
    assert 'class="verdict INCOMPLETE"' in (written / "report.html").read_text(encoding="utf-8")


def test_no_number_is_written_as_text_or_rounded(written: Path) -> None:
    rows = rows_of(written / "summary.csv")
    read_rows(written / "summary.csv")  # refuses what is no number
    for row in rows:
        assert float(row["top1"]) == 100 * int(row["top1_correct"]) / int(row["images"])
        assert row["params"] == "6687208"


def test_facts_of_the_page_are_keys_of_run_json() -> None:
    evaluation = evaluation_of(random_measurement(20))
    names = {key.name.replace("_", " ") for key in schema.RUN if key.shown}
    shown = [name for rows in schema.shown_facts(evaluation).values() for name, _ in rows]
    assert set(shown) == names
    assert len(shown) == len(names)
