"""The workflows and the action: few rights, pinned actions, and commands that exist."""

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
from test_action import action, words

from eval import imagenet, regression
from eval.config import load_variant

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
BASELINES = ROOT / "configs" / "baselines"
PINNED = r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+"


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    document["on"] = document.pop(True)  # YAML 1.1 reads `on` as a truth value
    return document


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in load(path)["jobs"].values() for step in job["steps"]]


def measured(path: Path) -> list[list[str]]:
    """The options that each use of our own action makes."""
    uses = [step["with"] for step in steps(path) if step.get("uses") == "./"]
    assert all(set(use) <= set(action["inputs"]) for use in uses)
    defaults = {name: row["default"] for name, row in action["inputs"].items()}
    given = [defaults | use for use in uses]
    return [words({f"INPUT_{name.upper()}": use[name] for name in use}) for use in given]


def compared(path: Path) -> list[list[str]]:
    """The options of each comparison."""
    runs = [shlex.split(step["run"]) for step in steps(path) if "run" in step]
    return [row[row.index("regression") + 1 :] for row in runs if "regression" in row]


accuracy = load(ROOT / ".github" / "workflows" / "accuracy.yml")
tests = load(ROOT / ".github" / "workflows" / "tests.yml")


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
    for name in used:
        assert name == "./" or re.fullmatch(PINNED, name)
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


def request_of(options: list[str]) -> imagenet.Request:
    options = [word.replace("${{ matrix.variant }}", "base_ssld") for word in options]
    return imagenet.to_request(imagenet._parser().read(options), "")


def test_the_options_can_be_parsed_and_fit_together() -> None:
    path = ROOT / ".github" / "workflows" / "accuracy.yml"
    demo, full = map(request_of, measured(path))
    assert demo.demo
    assert demo.baseline == str((BASELINES / "demo").relative_to(ROOT))
    assert full.data == Path("${{ vars.IMAGENET_VAL }}")
    assert full.baseline is None  # there is none before the first run
    assert full.preprocess in load_variant(str(full.variant)).tolerance

    (gate,) = compared(path)
    gate = [word.replace("$VARIANT", "base_ssld") for word in gate]
    args = regression._parser().parse_args(gate)
    assert Path(args.candidate) == full.output
    assert Path(args.baseline).parent == BASELINES.relative_to(ROOT)
    assert Path(args.baseline).name == f"{full.variant}-{full.preprocess}"
    assert not args.accept


def test_the_scripts_that_workflows_call_exist() -> None:
    called = [
        word
        for path in WORKFLOWS
        for step in steps(path)
        for word in step.get("run", "").split()
        if word.startswith("scripts/")
    ]
    assert sorted(called) == ["scripts/check", "scripts/test", "scripts/test"]
    assert all((ROOT / name).is_file() for name in called)


def test_fresh_examples_of_the_property_tests_are_a_job_of_their_own() -> None:
    runs = {
        name: [step["run"] for step in job["steps"] if "fresh" in step.get("run", "")]
        for name, job in tests["jobs"].items()
    }
    assert {name for name, commands in runs.items() if commands} == {"fresh"}
    assert runs["fresh"] == ["bash scripts/test -m hypothesis --hypothesis-profile=fresh"]


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
