"""action.yml: what it is made of, and its step that measures."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from conftest import ROOT
from small_valsets import folders

from eval import imagenet

ACTION = ROOT / "action.yml"
SCRIPT = ROOT / "scripts" / "action.py"
action = yaml.safe_load(ACTION.read_text())
STEPS = action["runs"]["steps"]


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("action_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = _module()
words = script.words


def test_it_is_a_composite_action_with_pinned_parts() -> None:
    assert action["runs"]["using"] == "composite"
    used = re.findall(r"^ +uses: (.*)", ACTION.read_text(), re.MULTILINE)
    assert used
    for name in used:
        assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", name)


def test_no_failure_is_hidden_and_no_text_becomes_code() -> None:
    assert "continue-on-error" not in ACTION.read_text()
    for step in STEPS:
        assert "||" not in step.get("run", "")
        assert "${{" not in step.get("run", "")
        assert step.get("if", "${{ !cancelled() }}") == "${{ !cancelled() }}"
        assert ("run" in step) == ("shell" in step)


def test_inputs_and_outputs_are_those_that_the_script_has() -> None:
    measure = next(step for step in STEPS if step.get("id") == "measure")
    assert measure["env"] == {
        f"INPUT_{name.upper()}": f"${{{{ inputs.{name} }}}}" for name in [*script.OPTIONS, "args"]
    }
    assert set(action["inputs"]) == {*script.OPTIONS, "args", "extras", "artifact"}
    for row in action["inputs"].values():
        assert row["description"].endswith(".")
        assert not row.get("required")
    assert {name: row["value"] for name, row in action["outputs"].items()} == {
        name: f"${{{{ steps.measure.outputs.{name} }}}}" for name in ("verdict", "top1")
    }
    assert SCRIPT.name in measure["run"]


def test_inputs_become_options_that_the_command_has() -> None:
    options = words(
        {
            "INPUT_DATA": "/val set",
            "INPUT_VARIANT": "base",
            "INPUT_WEIGHTS": "-f.pth",
            "INPUT_BASELINE": "",
            "INPUT_OUTPUT": "out",
            "INPUT_ARGS": "--preprocess paddle --cache 'a b'",
        }
    )
    args = imagenet.to_request(imagenet._parser().read(options), "")
    assert (args.data, args.variant, args.weights) == (Path("/val set"), "base", "-f.pth")
    assert (args.baseline, args.output, args.cache) == (None, Path("out"), Path("a b"))


def run(folder: Path, **inputs: str | Path) -> tuple[int, dict[str, str], str]:
    """Exit code, outputs and summary of the step."""
    files = {name: folder / name.lower() for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for path in files.values():
        path.write_text("")
    environ = {f"INPUT_{name.upper()}": str(value) for name, value in inputs.items()}
    found = subprocess.run(
        [sys.executable, SCRIPT],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            **environ,
            **{k: str(v) for k, v in files.items()},
        },
        check=False,
    )
    lines = files["GITHUB_OUTPUT"].read_text().splitlines()
    outputs = dict(line.split("=", 1) for line in lines)
    return found.returncode, outputs, files["GITHUB_STEP_SUMMARY"].read_text()


@pytest.mark.slow
def test_a_run(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "__init__.py").write_text("raise SystemExit('not this one')")
    inputs = {
        "data": folders(tmp_path / "val"),
        "variant": "small",
        "weights": weights,
        "output": "out",
        "args": "--batch-size 4 --workers 1",
    }
    code, outputs, summary = run(tmp_path, **inputs)
    assert code == 0
    assert outputs["verdict"] == "PARTIAL"
    assert 0 <= float(outputs["top1"]) <= 100
    assert summary.startswith("### PP-LCNetV2 on ImageNet: PARTIAL (exit code 0)\n\n| form | ")
    assert "| reparameterized |" in summary

    # The reports of that run are not those of one that fails.
    code, outputs, summary = run(tmp_path, **inputs | {"data": tmp_path / "none"})
    assert code == 3
    assert outputs == {"verdict": "", "top1": ""}
    assert "no result (exit code 3)" in summary


def test_the_output_is_of_the_worse_form() -> None:
    assert script.worse_top1([{"top1": "10.25"}, {"top1": "9.5"}]) == "9.5"
    assert script.worse_top1([]) == ""


def test_quotes_that_do_not_match(tmp_path: Path) -> None:
    code, outputs, summary = run(tmp_path, output="out", args="--cache 'a")
    assert (code, outputs, summary) == (2, {}, "")


@pytest.mark.skipif(
    shutil.which("check-jsonschema") is None, reason="check-jsonschema is not installed"
)
def test_it_is_valid_by_its_schema() -> None:
    found = subprocess.run(
        ["check-jsonschema", "--builtin-schema", "vendor.github-actions", ACTION],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout
