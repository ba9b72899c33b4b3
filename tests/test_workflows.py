"""The workflows: linted, with few rights and pinned actions, and with commands that exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from eval import imagenet, regression

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
BASELINES = ROOT / "configs" / "baselines"


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    document["on"] = document.pop(True)  # YAML 1.1 reads `on` as a truth value
    return document


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in load(path)["jobs"].values() for step in job["steps"]]


def commands(path: Path) -> list[list[str]]:
    """Our own command lines, in words."""
    runs = [shlex.split(step["run"]) for step in steps(path) if "run" in step]
    return [
        words[words.index("-m") + 1 :] for words in runs if "-m" in words and "eval" in str(words)
    ]


accuracy = load(ROOT / ".github" / "workflows" / "accuracy.yml")


def test_there_are_workflows() -> None:
    assert [path.name for path in WORKFLOWS] == ["accuracy.yml", "tests.yml"]


@pytest.mark.skipif(shutil.which("actionlint") is None, reason="actionlint is not installed")
def test_actionlint_finds_nothing() -> None:
    found = subprocess.run(
        ["actionlint", *map(str, WORKFLOWS)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (found.stdout, found.returncode) == ("", 0)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_rights_are_few_and_actions_are_pinned(path: Path) -> None:
    document = load(path)
    assert document["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in document["on"]
    for job in document["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 360
    used = re.findall(r"uses: (.*)", path.read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)
    for step in steps(path):
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_no_failure_is_hidden_and_no_text_becomes_code(path: Path) -> None:
    text = path.read_text()
    assert "continue-on-error" not in text
    for step in steps(path):
        run = step.get("run", "")
        assert "||" not in run
        assert ";" not in run
        assert "${{" not in run  # by environment variables only
        assert step.get("if", "${{ !cancelled() }}") == "${{ !cancelled() }}"


def test_the_full_set_is_skipped_where_it_is_absent() -> None:
    """And alone on a schedule: a run of skipped jobs is skipped, one with a green job is green."""
    jobs = accuracy["jobs"]
    assert list(jobs) == ["demo", "imagenet"]
    assert jobs["demo"]["if"] == "github.event_name == 'pull_request'"
    assert jobs["imagenet"]["if"] == (
        "github.event_name != 'pull_request' && vars.IMAGENET_VAL != ''"
    )
    assert "needs" not in jobs["imagenet"]
    assert "self-hosted" in jobs["imagenet"]["runs-on"]
    assert "self-hosted" not in jobs["demo"]["runs-on"]
    assert {"pull_request", "schedule", "workflow_dispatch"} == set(accuracy["on"])


def test_the_commands_can_be_parsed_and_fit_together() -> None:
    path = ROOT / ".github" / "workflows" / "accuracy.yml"
    lines = commands(path)
    assert [words[0] for words in lines] == [
        "eval.imagenet", "eval.regression", "eval.imagenet", "eval.regression"
    ]  # fmt: skip
    for measure, gate in zip(lines[::2], lines[1::2], strict=True):
        words = [word.replace("$VARIANT", "base_ssld") for word in measure[1:]]
        request = imagenet.to_request(imagenet._parser().parse_args(words), words)
        compared = regression._parser().parse_args(
            [word.replace("$VARIANT", "base_ssld") for word in gate[1:]]
        )
        assert Path(compared.candidate) == request.output
        baseline = Path(compared.baseline)
        assert baseline.parent == BASELINES.relative_to(ROOT)
        expected = "demo" if request.demo else f"{request.variant}-{request.preprocess}"
        assert baseline.name == expected
        assert not compared.accept


def test_the_scripts_that_workflows_call_exist() -> None:
    called = [
        word
        for path in WORKFLOWS
        for step in steps(path)
        for word in step.get("run", "").split()
        if word.startswith("scripts/")
    ]
    assert sorted(called) == ["scripts/check", "scripts/test"]
    assert all((ROOT / name).is_file() for name in called)


@pytest.mark.parametrize(
    "folder", [path for path in BASELINES.iterdir() if path.is_dir()], ids=lambda path: path.name
)
def test_committed_baselines_are_intact_and_name_no_machine(folder: Path) -> None:
    from eval.results.read import read_result

    result = read_result(folder)
    assert result.predictions is not None
    for row in result.rows.values():
        assert row.bad_images == 0
        for name in ("command", "weights"):
            assert not re.search(r"(^| )(/|[A-Z]:|~)", row.cells[name]), row.cells[name]
