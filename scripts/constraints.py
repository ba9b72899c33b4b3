"""Print constraints.txt: the installed versions of all dependencies in pyproject.toml.

python scripts/constraints.py > constraints.txt
"""

from __future__ import annotations

import platform
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from eval.cli import run_command

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
NOT_FOR_USERS = {"test", "dev"}
HEADER = """\
# The versions that the published figures were measured with: decoders and kernels move results.
#   pip install -c constraints.txt 'pplcnet-eval[onnx,openvino,arrow]'
# Made by scripts/constraints.py, with Python {python}.
"""


def names() -> list[str]:
    """What the package and its extras for users depend on, by normalized name."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    rows = list(project["dependencies"])
    for extra, more in project["optional-dependencies"].items():
        rows += more if extra not in NOT_FOR_USERS else []
    found = {normalized(re.split(r"[^A-Za-z0-9._-]", row, maxsplit=1)[0]) for row in rows}
    return sorted(found - {normalized(project["name"])})


def normalized(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    """Print the file."""
    print(HEADER.format(python=platform.python_version()))
    for name in names():
        print(f"{name}=={metadata.version(name).partition('+')[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda _: main()))
