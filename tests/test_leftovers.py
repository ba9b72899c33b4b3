"""Nothing of an earlier run looks like this one's, and nothing of another run is overwritten."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FILES, MakeVal, rows_of
from small_evaluations import evaluation_of, random_measurement
from small_results import ranks, write_result

import eval.jobs.evaluate
from eval import audit, diagnose, imagenet, regression, score, sweep
from eval.errors import UsageError
from eval.images.cache import CropCache
from eval.images.preprocess import PREPROCESS
from eval.images.valset import open_valset
from eval.measure.journal import Journal
from eval.results.folder import OutputFolder, record_exit_code
from eval.results.schema import COMPARISON_FILES

Run = Callable[..., int]


@pytest.fixture
def val(val_folder: MakeVal) -> Path:
    return val_folder(FILES)


@pytest.fixture
def run(val: Path, weights: Path, tmp_path: Path) -> Run:
    """The command on four images, which pass whatever is answered."""
    config = tmp_path / "own.toml"
    config.write_text(
        'name = "own"\nmodel = "small"\nimages = 4\n[reference]\ntop1 = 0.0\nsource = "test"\n'
        '[tolerance.torchvision]\nimages = 4\nreason = "test"\n'
    )

    def call(*more: str | Path, **named: Path) -> int:
        words = ["--data", named.get("data", val), "--config", config, "--weights", weights]
        words += ["--output", named.get("output", tmp_path / "out"), "--forms", "unfused"]
        words += ["--image-set", "val"]
        return imagenet.main([str(word) for word in [*words, "--quiet", *more]])

    return call


def earlier(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("PASS")
    return folder


def assert_moved(folder: Path, *names: str) -> None:
    for name in names:
        assert not (folder / name).exists(), name
        assert (folder / "previous" / name).read_text() == "PASS"


# The main job


@pytest.mark.parametrize(
    "words",
    [
        ["--hub-benchmark", "nonsense"],  # refused before there is a request
        ["--config", "nowhere.toml"],  # before there is a model
        ["--history", "."],  # before a run
        ["--baseline", "nowhere"],
    ],
)
def test_a_run_that_is_refused_at_once_leaves_no_earlier_pass(
    words: list[str], run: Run, tmp_path: Path
) -> None:
    names = ("summary.csv", "run.json", "report.html", "diagnosis.html", "console.txt")
    earlier(tmp_path / "out", *names)
    assert run(*words) == 2
    assert_moved(tmp_path / "out", *names)


def test_a_baseline_is_never_moved_out_of_its_place(run: Run, tmp_path: Path) -> None:
    earlier(tmp_path / "out", "summary.csv")
    for named in (tmp_path / "out", tmp_path / "out" / "summary.csv"):
        assert run("--baseline", named) == 2
        assert (tmp_path / "out" / "summary.csv").read_text() == "PASS"


def test_a_folder_that_was_removed_belongs_to_the_next_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``rm -rf out`` during a run; a second one starts there, and keeps all that is its own."""
    out = tmp_path / "out"
    second = OutputFolder(out)

    def judge(*args: Any) -> Any:
        shutil.rmtree(out)
        second.claim()
        earlier(out / "journal", "0.bin")
        second.write("summary.csv", "FAIL")
        return original(*args)

    original = eval.jobs.evaluate.judge
    monkeypatch.setattr(eval.jobs.evaluate, "judge", judge)
    assert run() == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith(f"error: {out} was removed or replaced during the run: nothing was")
    assert len(told) == 2
    assert sorted(path.name for path in out.iterdir()) == [".lock", "journal", "summary.csv"]
    assert (out / "summary.csv").read_text() == "FAIL"
    assert (out / "journal" / "0.bin").exists()
    second.__exit__(None, None, None)


def test_run_json_has_the_exit_code_of_the_process(run: Run, val: Path, tmp_path: Path) -> None:
    """A PASS on other images than the baseline's ends with 2, and so it is written."""
    stated = []
    for name, words in (("base", []), ("out", ["--baseline", tmp_path / "base"])):
        code = run(*words, output=tmp_path / name)
        document = json.loads((tmp_path / name / "run.json").read_text())
        stated.append((document["verdict"], document["exit_code"]))
        assert document["exit_code"] == code
        other = (val / "n01440764" / "a.JPEG").read_bytes() + b"\0"  # no copy of it
        (val / "n15075141" / "d.JPEG").write_bytes(other)
    assert stated == [("PASS", 0), ("PASS", 2)]
    assert (tmp_path / "out" / "junit.xml").exists()


def test_an_exit_code_that_changes_at_the_end_is_corrected(tmp_path: Path) -> None:
    evaluation = evaluation_of(random_measurement(3))
    evaluation.save(tmp_path)
    run_id = evaluation.provenance.run_id

    def stated() -> Any:
        return json.loads((tmp_path / "run.json").read_text())["exit_code"]

    record_exit_code(tmp_path, "another run", 70)
    assert stated() == 0
    record_exit_code(tmp_path, run_id, 70)
    assert stated() == 70
    with OutputFolder(tmp_path) as folder:  # by now another run's
        folder.save(evaluation)
        record_exit_code(tmp_path, run_id, 70)
        assert stated() == 0
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="was changed after the run"):
        record_exit_code(tmp_path, run_id, 70)


# The gate


def test_a_refused_comparison_leaves_no_earlier_one(tmp_path: Path) -> None:
    write_result(tmp_path / "a", ranks(60))
    write_result(tmp_path / "b", ranks(60), preprocess="paddle")
    earlier(tmp_path / "out", *COMPARISON_FILES, "summary.csv")
    words = ["--baseline", str(tmp_path / "a"), "--output", str(tmp_path / "out")]
    assert regression.main([*words, "--candidate", str(tmp_path / "b")]) == 2
    assert_moved(tmp_path / "out", *(set(COMPARISON_FILES) - {"junit.xml"}))
    assert "not comparable" in (tmp_path / "out" / "junit.xml").read_text().lower()
    assert (tmp_path / "out" / "summary.csv").read_text() == "PASS", "not of a comparison"
    same = [*words, "--candidate", str(tmp_path / "a")]
    assert regression.main(same) == 0
    assert regression.main([*same, "--max-drop-top1", "much"]) == 2
    assert not (tmp_path / "out" / "regression.md").exists()


@pytest.mark.parametrize("verdict", ["PARTIAL", "NO_REFERENCE"])
def test_an_accepted_result_stands_alone(tmp_path: Path, verdict: str) -> None:
    cells = {"tolerance": "", "images_expected": 100 if verdict == "NO_REFERENCE" else 50_000}
    write_result(tmp_path / "new", ranks(60), verdict=verdict, **cells)
    names = ("report.html", "run.json", "per_class.csv", "regression.md")
    earlier(tmp_path / "kept", *names, "summary.csv", "notes.txt")
    words = ["--baseline", str(tmp_path / "kept"), "--candidate", str(tmp_path / "new")]
    assert regression.main([*words, "--accept"]) == 0
    assert_moved(tmp_path / "kept", *names)
    left = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert left == ["notes.txt", "predictions.csv", "previous", "summary.csv"]
    assert [row["verdict"] for row in rows_of(tmp_path / "kept" / "summary.csv")] == [verdict]


# The other commands


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--data", "nowhere"], 3),
        (["--reference", "nobody's"], 2),
        (["--data", "val"], 3),  # no prediction fits
    ],
)
def test_a_score_that_fails_leaves_no_earlier_pass(
    words: list[str], code: int, val: Path, tmp_path: Path
) -> None:
    earlier(tmp_path / "out", "summary.csv", "run.json")
    (tmp_path / "given.csv").write_text("path,top1\nnobody.JPEG,1\n")
    given = [str(tmp_path / "given.csv"), "--data", str(val), "--output", str(tmp_path / "out")]
    words = [str(val) if word == "val" else word for word in words]
    assert score.main([*given, "--quiet", *words]) == code
    assert_moved(tmp_path / "out", "summary.csv", "run.json")


def test_a_sweep_that_fails_leaves_no_earlier_one(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    row = out / "small-reparameterized-torch-fp32-own"
    earlier(out, "sweep.csv")
    earlier(row, "summary.csv", "console.txt", "report.html")
    words = ["--data", str(tmp_path / "nowhere"), "--variant", "small", "--weights", str(weights)]
    assert sweep.main([*words, "--output", str(out), "--quiet"]) == 3
    assert_moved(out, "sweep.csv")
    assert_moved(row, "summary.csv", "console.txt", "report.html")


def test_an_audit_and_a_diagnosis_that_fail_leave_no_earlier_ones(tmp_path: Path) -> None:
    earlier(tmp_path, "audit.json", "diagnosis.json", "diagnosis.html")
    nowhere = str(tmp_path / "nowhere")
    words = [nowhere, "--data", nowhere, "--json", str(tmp_path / "audit.json")]
    assert audit.main([*words, "--quiet"]) == 2
    words = ["--data", nowhere, "--variant", "small", "--weights", nowhere]
    words += [
        "--json",
        str(tmp_path / "diagnosis.json"),
        "--html",
        str(tmp_path / "diagnosis.html"),
    ]
    assert diagnose.main([*words, "--quiet"]) in (3, 4)
    assert not list(tmp_path.iterdir())


# Links that a stranger made


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Files of somebody else, to be left alone."""
    return earlier(tmp_path / "elsewhere", "summary.csv", "0.bin", "crops.bin", "index.bin", "x")


@pytest.fixture
def untouched(elsewhere: Path) -> Callable[[], bool]:
    return lambda: (
        sorted(path.name for path in elsewhere.iterdir())
        == ["0.bin", "crops.bin", "index.bin", "summary.csv", "x"]
        and {path.read_text() for path in elsewhere.iterdir()} == {"PASS"}
    )


@pytest.mark.parametrize("name", ["previous", ".lock"])
def test_links_in_an_output_folder_are_not_followed(
    name: str, elsewhere: Path, untouched: Callable[[], bool], tmp_path: Path
) -> None:
    out = earlier(tmp_path / "out", "summary.csv")
    (out / name).symlink_to(elsewhere if name == "previous" else elsewhere / "x")
    with pytest.raises(UsageError, match="it is a link") as told, OutputFolder(out):
        pass
    assert len(str(told.value).splitlines()) == 2
    assert untouched()


def test_a_report_that_is_a_link_is_moved_and_not_written_through(
    elsewhere: Path, untouched: Callable[[], bool], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name, target in (("summary.csv", "x"), ("run.json", "nowhere")):
        (out / name).symlink_to(elsewhere / target)
    with OutputFolder(out) as folder:
        folder.save(evaluation_of(random_measurement(3)))
    assert not (out / "summary.csv").is_symlink()
    assert not (out / "run.json").is_symlink()
    assert untouched()


@pytest.mark.parametrize("kind", ["folder", "link", "hard link"])
def test_links_in_a_journal_are_not_followed(
    kind: str, elsewhere: Path, untouched: Callable[[], bool], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
        (out / "journal").symlink_to(elsewhere)
    else:
        (out / "journal").mkdir(parents=True)
        make = os.symlink if kind == "link" else os.link
        make(elsewhere / "0.bin", out / "journal" / "0.bin")
    with pytest.raises(UsageError, match="journal"):
        Journal(out, {"a": 1}, ["unfused"])
    assert untouched()


@pytest.mark.parametrize("kind", ["folder", "link", "hard link"])
@pytest.mark.parametrize("name", ["index.bin", "crops.bin"])
def test_links_in_a_cache_are_not_followed(
    kind: str, name: str, val: Path, elsewhere: Path, untouched: Callable[[], bool], tmp_path: Path
) -> None:
    valset = open_valset(val)
    with CropCache(tmp_path / "cache", valset, PREPROCESS["torchvision"]) as cache:
        folder = cache.folder
    if kind == "folder":
        shutil.rmtree(folder)
        folder.symlink_to(elsewhere)
    else:
        (folder / name).unlink()
        make = os.symlink if kind == "link" else os.link
        make(elsewhere / name, folder / name)
    with pytest.raises(UsageError, match="cannot be written"):
        CropCache(tmp_path / "cache", valset, PREPROCESS["torchvision"])
    assert untouched()
