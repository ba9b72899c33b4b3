"""The check of links, and that ours resolve."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPT = ROOT / "scripts" / "check_links.py"


def check(*pages: Path) -> tuple[int, list[str]]:
    found = subprocess.run(
        [sys.executable, SCRIPT, *pages], capture_output=True, text=True, check=False
    )
    assert found.stderr == ""
    return found.returncode, found.stdout.splitlines()


def test_our_pages() -> None:
    assert check() == (0, [])


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a b.md").write_text("# One\n\n## Two, `three`\n\n## One\n")
    (tmp_path / "image.png").touch()
    return tmp_path / "page.md"


@pytest.mark.parametrize(
    "text",
    [
        "[x](docs)",
        "[x](docs/a%20b.md)",
        "[x](<docs/a%20b.md#two-three>)",
        "[x](docs/a%20b.md#one-1)",
        '![x](image.png "a title")',
        "[x](https://example.invalid/none)",
        "[x](mailto:a@example.invalid)",
        "# Here\n[x](#here)",
        "```\n[x](none.md)\n```",
        "`[x](none.md)`",
        '<img src="image.png">',
        "[x][y]\n\n[y]: image.png",
    ],
)
def test_links_that_lead_somewhere(page: Path, text: str) -> None:
    page.write_text(text)
    assert check(page) == (0, [])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[x](none.md)", "none.md: there is no "),
        ("[x](docs/a%20b.md#three)", "docs/a%20b.md#three: "),
        ("[x](docs/a%20b.md#one-2)", "docs/a%20b.md#one-2: "),
        ("[x](#here)", "#here: "),
        ("[![x](none.png)](image.png)", "none.png: there is no "),
        ("```\ncode\n```\n[x](none.md)", "none.md: there is no "),
        ('<a href="none.html">x</a>', "none.html: there is no "),
        ("[x][y]\n\n[y]: none.png", "none.png: there is no "),
    ],
)
def test_links_that_lead_nowhere(page: Path, text: str, problem: str) -> None:
    page.write_text(text)
    code, lines = check(page)
    assert code == 1
    (line,) = lines
    assert line.startswith(f"{page}: {problem}")


def test_the_check_calls_it() -> None:
    assert "scripts/check_links.py" in (ROOT / "scripts" / "check").read_text()
