"""Property tests: the same examples in every run, or fresh ones of a seed that is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HANG, ROOT
from hypothesis import settings

MODULE = """
from pathlib import Path
from hypothesis import given
from hypothesis import strategies as st

drawn = []

@given(st.integers())
def test_number(number):
    drawn.append(number)
    Path("drawn").write_text(str(drawn))
"""


PLUGINS = [
    word
    for name in ("_hypothesis_pytestplugin", "xdist", "hypothesis_profiles")
    for word in ("-p", name)
]


def drawn(folder: Path, *options: str, profile: str | None = None) -> tuple[str, list[str]]:
    """The examples of a run, and the options that it prints to repeat them."""
    (folder / "test_number.py").write_text(MODULE)
    environment = {name: v for name, v in os.environ.items() if "HYPOTHESIS" not in name}
    environment |= {"PYTHONPATH": str(ROOT / "tests"), "PYTEST_ADDOPTS": ""}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # importing all of them takes seconds
    environment |= {"HYPOTHESIS_PROFILE": profile} if profile else {}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *PLUGINS, *options],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    again = re.search(r"^the same examples again: (.*)$", done.stdout, re.MULTILINE)
    return (folder / "drawn").read_text(), again[1].split() if again else []


def test_by_default_every_run_tries_the_same_examples(tmp_path: Path) -> None:
    first = drawn(tmp_path)
    assert first[1] == []
    assert drawn(tmp_path) == first


def test_fresh_examples_can_be_repeated(tmp_path: Path) -> None:
    first, again = drawn(tmp_path, "--hypothesis-profile=fresh")
    assert drawn(tmp_path, *again) == (first, again)
    assert drawn(tmp_path, profile="fresh")[0] != first


@pytest.mark.slow
def test_the_seed_is_that_of_all_processes(tmp_path: Path) -> None:
    first, again = drawn(tmp_path, "-n", "1", profile="fresh")
    assert drawn(tmp_path, *again)[0] == first


@pytest.mark.parametrize("name", ["repeatable", "fresh"])
def test_no_profile_limits_time(name: str) -> None:
    assert settings.get_profile(name).deadline is None
    assert "too_slow" in {check.name for check in settings.get_profile(name).suppress_health_check}
