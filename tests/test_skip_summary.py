"""The list of what was skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

MODULE = """
import pytest

@pytest.mark.parametrize("n", range(3))
def test_without_data(n):
    pytest.skip("no photos")

@pytest.mark.skipif(True, reason="no compiler")
def test_without_a_compiler(): ...

@pytest.mark.xfail(strict=True)
def test_known(): assert False

def test_fine(): ...
"""


def run(folder: Path, *options: str) -> list[str]:
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "skip_summary", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "PYTEST_ADDOPTS": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout
    return [line for line in found.stdout.splitlines() if line]


@pytest.mark.parametrize("options", [[], pytest.param(["-n", "2"], marks=pytest.mark.slow)])
def test_skips_are_summed_up_with_their_reasons(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "test_some.py").write_text(MODULE)
    (tmp_path / "test_all.py").write_text("import pytest\npytest.importorskip('no_such_module')")
    lines = run(tmp_path, *options)
    (start,) = [i for i, line in enumerate(lines) if "5 skipped: not verified here" in line]
    first, *others = lines[start + 1 : start + 4]
    assert first == "    3  no photos"
    assert sorted(others) == [
        "    1  could not import 'no_such_module': No module named 'no_such_module'",
        "    1  no compiler",
    ]


def test_nothing_is_said_where_nothing_was_skipped(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text("def test_fine(): ...")
    assert not [line for line in run(tmp_path) if "not verified" in line]
