"""Change the code of a module in every small way, and see which changes no test notices.

    mutation.py eval/judge/verdict.py tests/test_verdict.py
    mutation.py eval/judge/verdict.py tests/test_verdict.py -- 'eval.judge.verdict.x_gravest*'

Needs mutmut (``pip install mutmut==3.8.1``). It works in a copy, ``--folder``, where a second run
tries only what is new; what follows ``--`` chooses mutants by name. mutmut changes no decorated
function, so that properties are written as plain functions in the copy. Survivors of code that
runs once (at import, or cached) are tried again, each in a new process.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from eval.cli import run_command
from eval.errors import UsageError

ROOT = Path(__file__).parents[1]
COPIED = ("eval", "pplcnet", "configs", "docs", "scripts", "tests")
CONFIG = """
[tool.mutmut]
source_paths = ["eval"]
only_mutate = ["{module}"]
also_copy = ["eval", "pplcnet", "configs", "docs", "scripts", "tests", "README.md"]
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["-x", "-q"]
timeout_multiplier = 30.0
timeout_constant = 20.0
"""
_DECORATOR = re.compile(r"( *)@(property|(?:functools\.)?(?:cached_property|cache))")


def undecorated(code: str) -> str:
    """The same module, with ``x = property(x)`` below a function instead of a decorator above."""
    lines = code.split("\n")
    found: list[str] = []
    while lines:
        line = lines.pop(0)
        match = _DECORATOR.fullmatch(line)
        if not match:
            found.append(line)
            continue
        indent, decorator = match.groups()
        name = lines[0].partition("def ")[2].partition("(")[0]
        body = [lines.pop(0)]
        while lines and (not lines[0] or lines[0].startswith((f"{indent} ", f"{indent})"))):
            body.append(lines.pop(0))
        blank = len(body) - len("\n".join(body).rstrip().split("\n"))
        found += [*body[: len(body) - blank], "", f"{indent}{name} = {decorator}({name})"]
        found += [""] * blank
    return "\n".join(found)


def prepare(folder: Path, module: str, tests: list[str]) -> None:
    """Make or renew the copy."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, dirs_exist_ok=True)
        if name == "tests" and (folder / "mutants" / name).is_dir():
            shutil.copytree(ROOT / name, folder / "mutants" / name, dirs_exist_ok=True)
    shutil.copy(ROOT / "README.md", folder)
    code = (ROOT / module).read_text(encoding="utf-8")
    (folder / module).write_text(undecorated(code), encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(
        project + CONFIG.format(module=module, tests=tests), encoding="utf-8"
    )


def survivors(folder: Path) -> list[str]:
    """Names of the mutants that no test has noticed."""
    words = [sys.executable, "-m", "mutmut", "results"]
    listed = subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True).stdout
    rows = [line.strip().split(": ") for line in listed.splitlines() if ": " in line]
    return [name for name, status in rows if status in ("survived", "no tests")]


def noticed(folder: Path, name: str, tests: list[str]) -> bool:
    """Whether a test fails where the mutant is there from the start."""
    words = [sys.executable, "-m", "pytest", "-x", "-q", *tests]
    environment = os.environ | {"MUTANT_UNDER_TEST": name}
    cwd = folder / "mutants"
    return bool(subprocess.run(words, cwd=cwd, env=environment, capture_output=True).returncode)


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    words = sys.argv[1:] if argv is None else argv
    own = words[: words.index("--")] if "--" in words else words
    chosen = words[len(own) + 1 :]
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("module", help="the file whose code is changed")
    parser.add_argument("tests", nargs="+", help="the test files that should notice")
    parser.add_argument("--folder", type=Path, default=Path("build/mutation"), help="for the copy")
    args = parser.parse_args(own)
    if not (ROOT / args.module).is_file():
        raise UsageError(f"{args.module}: no such file.\nName it from the root of the project.")
    folder = args.folder / Path(args.module).stem
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder, args.module, args.tests)
    subprocess.run([sys.executable, "-m", "mutmut", "run", *chosen], cwd=folder, check=True)
    left = [name for name in survivors(folder) if not noticed(folder, name, args.tests)]
    for name in left:
        subprocess.run([sys.executable, "-m", "mutmut", "show", name], cwd=folder, check=True)
    print(f"{args.module}: {len(left)} mutants survive")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
