"""The console script: its commands, its help, and a folder of the user's own called eval."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROOT

from eval import cli
from eval.version import version

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that an installer writes from `[project.scripts]`."""
    module, _, function = SCRIPTS["pplcnet-eval"].partition(":")
    path = tmp_path_factory.mktemp("bin") / "pplcnet-eval"
    path.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    return path


def run(*words: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_help_fits_a_terminal(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        import_module(f"eval.{name}").main(["--help"])
    assert ended.value.code == 0
    assert not [line for line in capsys.readouterr().out.splitlines() if len(line) > 80]


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["-h"], 0), ([], 2)])
def test_the_commands_are_listed(script: Path, words: list[str], code: int) -> None:
    found = run(script, *words)
    assert (found.returncode, found.stderr) == (code, "")
    lines = found.stdout.splitlines()
    assert lines[0] == "usage: pplcnet-eval COMMAND [options]"
    assert all(len(line) <= 80 for line in lines)
    listed = [line.split()[0] for line in lines if line.startswith("  ")]
    assert listed[:6] == ["imagenet", "data", "regression", "score", "history", "sweep"]
    assert listed == list(cli.COMMANDS)


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_can_be_called(name: str) -> None:
    assert callable(import_module(f"eval.{name}").main)


def test_no_command_is_forgotten() -> None:
    """A module with a command line is one of the commands."""
    files = (ROOT / "eval").glob("*.py")
    programs = {path.stem for path in files if 'if __name__ == "__main__"' in path.read_text()}
    assert programs - {"cli"} == set(cli.COMMANDS)


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_a_command_goes_by_the_name_that_was_typed(script: Path, name: str) -> None:
    found = run(script, name, "--help")
    assert found.returncode == 0
    assert found.stdout.startswith(f"usage: pplcnet-eval {name} ")


def test_a_module_goes_by_its_own_name() -> None:
    found = run("-m", "eval.history", "--help")
    assert found.stdout.startswith("usage: python -m eval.history ")


@pytest.mark.parametrize("words", [["--help"], ["imagenet", "--help"], ["--version"]])
def test_help_is_quick_and_imports_nothing_heavy(script: Path, words: list[str]) -> None:
    """Quick, in what does not depend on the machine: few modules are imported, and all small."""
    found = run("-X", "importtime", script, *words)
    assert found.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert "eval.cli" in imported
    assert len(imported) < 300  # Python's own included
    assert not imported & {"torch", "timm", "cv2", "pandas", "matplotlib", "PIL"}


def test_arguments_and_exit_codes_pass_through(script: Path, tmp_path: Path) -> None:
    found = run(script, "data", "--data", tmp_path / "none")
    assert found.returncode == 3
    assert str(tmp_path / "none") in found.stderr
    found = run(script, "history", "--unknown")
    assert found.returncode == 2
    assert found.stderr.startswith("error: pplcnet-eval history does not take --unknown.\n")


@pytest.mark.parametrize(
    ("word", "hint"),
    [("imagnet", " Did you mean 'imagenet'?"), ("zzz", ""), ("--limit", ""), ("cli", "")],
)
def test_unknown_command(script: Path, word: str, hint: str) -> None:
    found = run(script, word)
    assert (found.returncode, found.stdout) == (2, "")
    first, second = found.stderr.splitlines()
    assert first == f"error: pplcnet-eval has no command {word!r}.{hint}"
    assert second.startswith("Available: imagenet, data, ")


def test_version(script: Path) -> None:
    found = run(script, "--version")
    assert (found.returncode, found.stdout) == (0, f"pplcnet-eval {version()}\n")


def test_version_of_a_tree_that_was_never_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.version.DISTRIBUTION", "pplcnet-eval-that-is-not-installed")
    assert version() == "0+unknown"


class TestFolderCalledEval:
    """What docs/install.md says about it."""

    def test_a_package_hides_the_modules(self, script: Path, tmp_path: Path) -> None:
        (tmp_path / "eval").mkdir()
        (tmp_path / "eval" / "__init__.py").touch()
        found = run("-m", "eval.history", "--help", cwd=tmp_path)
        assert found.returncode == 1
        assert "No module named eval.history" in found.stderr
        assert run(script, "history", "--help", cwd=tmp_path).returncode == 0
        assert run("-P", "-m", "eval.history", "--help", cwd=tmp_path).returncode == 0

    def test_so_does_a_file(self, script: Path, tmp_path: Path) -> None:
        (tmp_path / "eval.py").touch()
        found = run("-m", "eval.history", "--help", cwd=tmp_path)
        assert found.returncode == 1
        assert "ModuleNotFoundError" in found.stderr
        assert run(script, "history", "--help", cwd=tmp_path).returncode == 0

    def test_a_plain_folder_does_not(self, tmp_path: Path) -> None:
        (tmp_path / "eval").mkdir()
        (tmp_path / "eval" / "metrics.py").touch()
        assert run("-m", "eval.history", "--help", cwd=tmp_path).returncode == 0
