"""The code that ran is the code that was hashed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from eval import provenance


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of this project, whose files may be changed."""
    for folder in ("eval", "pplcnet", "configs"):
        shutil.copytree(
            ROOT / folder, tmp_path / "code" / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path / "code"


def answer(copy: Path, code: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def edit(path: Path, old: str, new: str) -> None:
    """Replace text by as much, and give the file the times that it had."""
    times = path.stat()
    text = path.read_text(encoding="utf-8")
    assert old in text
    assert len(old) == len(new)
    path.write_text(text.replace(old, new), encoding="utf-8")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


EDIT = """
def edit(path, old, new):
    import pathlib
    path = pathlib.Path(path)
    path.write_text(path.read_text().replace(old, new))
"""
CHECK = """
from eval.provenance import check_code
try:
    check_code()
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_compiled_module_is_not_older_than_its_source(copy: Path) -> None:
    show = "from eval.errors import LogitsError; print(LogitsError.exit_code)"
    assert answer(copy, show) == "5\n"
    edit(copy / "eval" / "errors.py", "exit_code = 5", "exit_code = 6")
    assert answer(copy, show) == "6\n"
    assert answer(copy, show) == "6\n"


def test_compiled_modules_are_used(copy: Path) -> None:
    show = "import eval.errors"
    answer(copy, show)
    (compiled,) = (copy / "eval" / "__pycache__").glob("errors.*.pyc")
    before = compiled.stat().st_mtime_ns
    answer(copy, show)
    assert compiled.stat().st_mtime_ns == before


def test_a_module_replaced_before_it_was_imported(copy: Path) -> None:
    code = f"import eval{EDIT}edit('eval/errors.py', 'exit_code = 5', 'exit_code = 6'){CHECK}"
    assert answer(copy, code) == (
        "UsageError This program's own files changed while it ran: eval/errors.py.\n"
        "Start it again, so that one version of the code does it all.\n"
    )
    put_back = f"{EDIT}import eval\nedit('eval/text.py', 'def ', 'def  ')\nimport eval.text\n"
    put_back += f"edit('eval/text.py', 'def  ', 'def '){CHECK}"
    assert "eval/text.py" in answer(copy, put_back)


def test_a_module_changed_after_its_import_is_still_the_one_that_runs(copy: Path) -> None:
    code = f"import eval.errors{EDIT}edit('eval/errors.py', 'exit_code = 5', 'exit_code = 6')"
    assert answer(copy, f"{code}{CHECK}") == ""


@pytest.mark.parametrize(
    "name", ["eval/resources/report.html.jinja", "configs/base.toml", "eval/resources/classes.csv"]
)
def test_data_is_code_too(copy: Path, name: str) -> None:
    show = "from eval.provenance import code_sha256; print(code_sha256())"
    before = answer(copy, show)
    assert name in answer(copy, f"import eval{EDIT}edit({name!r}, 'a', 'b'){CHECK}")
    assert answer(copy, show) != before, "its hash is part of the code's"
    assert name in answer(copy, f"import eval, os; os.remove({name!r}){CHECK}")


def test_the_hash_is_of_the_code_that_was_imported(copy: Path) -> None:
    show = "from eval.provenance import code_sha256; print(code_sha256())"
    before = answer(copy, show)
    repaired = f"import eval.errors{EDIT}edit('eval/errors.py', 'code = 5', 'code = 6')\n{show}"
    assert answer(copy, repaired) == before
    assert answer(copy, show) != before


def test_a_package_has_the_hash_of_its_checkout(copy: Path) -> None:
    show = "from eval.provenance import code_sha256; print(code_sha256())"
    before = answer(copy, show)
    shutil.move(copy / "configs", copy / "eval" / "configs")
    assert answer(copy, show) == before


def test_the_commit_is_that_of_this_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provenance.git_commit.cache_clear()  # whoever edits while the tests run
    here = provenance.git_commit()
    if not here:
        pytest.skip("not a checkout")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    provenance.git_commit.cache_clear()
    assert provenance.git_commit() == here


def test_the_runtime_is_among_the_versions() -> None:
    assert "numpy" in provenance.versions()
    found = provenance.versions(["pytest", "no_such_runtime"])
    assert found["pytest"] == pytest.__version__
    assert found["no_such_runtime"] == ""


def test_the_processor_has_a_name() -> None:
    assert provenance.processor()
