"""What ends a command before it begins: an old Python, a package that is missing. Never with 1."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

MISSING = "raise ModuleNotFoundError(f\"No module named '{__name__}'\", name=__name__)\n"
CONSOLE = "import sys; from eval.cli import main; sys.exit(main())"


def run(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of a Python that finds the modules in `path` first."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "eval.imagenet", "--data", "x"],
        ["-m", "eval", "imagenet", "--data", "x"],
        ["-m", "eval.regression", "--baseline", "x", "--candidate", "x"],
        ["-c", CONSOLE, "imagenet", "--data", "x"],
    ],
)
def test_a_package_that_is_missing(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "msgspec.py").write_text(MISSING)
    found = run(tmp_path, *words)
    assert (found.returncode, found.stdout) == (2, "")
    what, advice = found.stderr.splitlines()
    assert what == f"error: the Python package msgspec is not installed ({sys.executable})."
    assert advice.startswith("Install pplcnet-eval with its dependencies")


@pytest.mark.parametrize("package", ["torch", "numpy"])
def test_a_package_that_is_missed_later(tmp_path: Path, package: str) -> None:
    """Those that take long are imported once the options are known to be fine."""
    (tmp_path / f"{package}.py").write_text(MISSING)
    words = ["-m", "eval.imagenet", "--data", str(tmp_path), "--output", str(tmp_path / "out")]
    found = run(tmp_path, *words)
    assert (found.returncode, found.stdout) == (2, "")
    assert f"error: the Python package {package} is not installed" in found.stderr
    assert len(found.stderr.splitlines()) == 2
    assert run(tmp_path, "-m", "eval.imagenet", "--help").returncode == 0


def test_a_package_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "msgspec.py").write_text("raise ImportError('libGL.so.1: no such file\\nmore')\n")
    found = run(tmp_path, "-m", "eval.imagenet", "--data", "x")
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 2
    assert "a Python package cannot be imported: libGL.so.1: no such file (" in found.stderr


@pytest.mark.parametrize(
    "source", ["import eval.nowhere\n", "from eval.cli import nothing\n", "1 / 0\n", "def\n"]
)
@pytest.mark.parametrize("words", [["-m", "eval.imagenet"], ["-c", CONSOLE, "imagenet"]])
def test_a_bug_is_no_measured_difference(tmp_path: Path, source: str, words: list[str]) -> None:
    (tmp_path / "msgspec.py").write_text(source)
    found = run(tmp_path, *words, "--data", "x")
    assert found.returncode == 70
    assert "Traceback" in found.stderr
    assert found.stderr.splitlines()[-1].startswith("This is a bug in pplcnet-eval")


OLD = "import sys\nsys.version_info = (3, 10, 13, 'final', 0)\n"


@pytest.mark.parametrize("words", [["-m", "eval.imagenet", "--demo"], ["-m", "eval", "data"]])
def test_an_old_python(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "sitecustomize.py").write_text(OLD)
    found = run(tmp_path, *words)
    assert (found.returncode, found.stdout) == (2, "")
    what, advice = found.stderr.splitlines()
    assert what == (
        f"error: pplcnet-eval needs Python 3.11 or later; {sys.executable} is Python 3.10."
    )
    assert advice.startswith("Use the environment that it is installed in")


def test_an_old_python_that_imports_it_gets_an_import_error(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(OLD)
    code = "try:\n import eval\nexcept ImportError as error:\n print(error)"
    found = run(tmp_path, "-c", code)
    assert found.returncode == 0
    assert found.stdout.startswith("pplcnet-eval needs Python 3.11 or later; ")


def test_an_old_python_can_read_the_check() -> None:
    """A feature that it lacks would end it with a SyntaxError, and 1."""
    source = (ROOT / "eval/__init__.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 6))
    assert "from __future__ import annotations" not in source, "a SyntaxError before 3.7"
    assert "from __future__" not in (ROOT / "eval/__main__.py").read_text(encoding="utf-8")


def test_the_package_is_the_console_script() -> None:
    found = run(ROOT, "-m", "eval", "--help")
    assert found.returncode == 0
    assert found.stdout.startswith("usage: pplcnet-eval COMMAND [options]\n")
    found = run(ROOT, "-m", "eval", "history", "--help")
    assert found.stdout.startswith("usage: python -m eval.history ")


def test_every_way_to_start_it_is_silent() -> None:
    """Python warns of a module that is imported before ``-m`` runs it."""
    for words in (["-m", "eval.cli"], ["-m", "eval"], ["-c", CONSOLE]):
        found = run(ROOT, *words, "--version")
        assert (found.returncode, found.stderr) == (0, ""), words


def test_importing_the_package_leaves_another_programs_errors_alone(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "__init__.py").write_text("import eval\n")
    (tmp_path / "other" / "__main__.py").write_text("1 / 0\n")
    found = run(tmp_path, "-m", "other")
    assert found.returncode == 1
    assert "This is a bug" not in found.stderr
