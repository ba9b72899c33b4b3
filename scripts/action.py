"""The step of action.yml that measures: inputs from the environment, outputs and a summary.

The exit code is that of ``pplcnet-eval imagenet``. Outputs go to ``$GITHUB_OUTPUT``, a Markdown
table to ``$GITHUB_STEP_SUMMARY``. Only a result that this run has written is reported.
"""

from __future__ import annotations

import csv
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from eval.cli import run_command

OPTIONS = ("data", "variant", "weights", "baseline", "output")  # inputs that are options
COLUMNS = ("form", "images", "top1", "top5", "reference_top1", "reference_top5", "verdict")


def words(environ: Mapping[str, str]) -> list[str]:
    """The options of ``pplcnet-eval imagenet``.

    Args:
        environ: the inputs, as ``INPUT_DATA`` and so on; an empty one is left out.

    Raises:
        ValueError: the quotes in ``args`` do not match.
    """
    found = []
    for name in OPTIONS:
        if value := environ.get(f"INPUT_{name.upper()}"):
            found += [f"--{name}={value}"]
    return found + shlex.split(environ.get("INPUT_ARGS", ""))


def result(folder: Path, earlier: int | None) -> tuple[str, list[dict[str, str]]] | None:
    """The verdict of a run and the rows of its summary, if it has written them.

    Args:
        folder: its ``--output``.
        earlier: what `written_at` was before the run.
    """
    if written_at(folder) in (None, earlier):
        return None
    verdict = json.loads((folder / "run.json").read_text(encoding="utf-8"))["verdict"]
    with (folder / "summary.csv").open(encoding="utf-8", newline="") as file:
        return verdict, list(csv.DictReader(file))


def written_at(folder: Path) -> int | None:
    """When the summary was written, in nanoseconds; None if there is none."""
    try:
        return (folder / "summary.csv").stat().st_mtime_ns
    except FileNotFoundError:
        return None


def worse_top1(rows: list[dict[str, str]]) -> str:
    """The top-1 of the worse form, as written in the summary; "" if there is none."""
    return min((row["top1"] for row in rows), key=float, default="")


def summary(code: int, verdict: str, rows: list[dict[str, str]]) -> str:
    """The Markdown of the step's summary."""
    lines = [f"### PP-LCNetV2 on ImageNet: {verdict or 'no result'} (exit code {code})", ""]
    if rows:
        lines += [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
        lines += [f"| {' | '.join(row[name] for name in COLUMNS)} |" for row in rows]
    else:
        lines += ["The log of this step says why."]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the measurement and report it; the exit code is its own."""
    try:
        options = words(os.environ)
    except ValueError as error:
        print(f"error: args: {error}: {os.environ['INPUT_ARGS']}", file=sys.stderr)
        return 2
    folder = Path(os.environ["INPUT_OUTPUT"])
    earlier = written_at(folder)
    # -P: not an eval package of the caller's repository.
    command = [sys.executable, "-P", "-m", "eval.cli", "imagenet", *options]
    code = subprocess.run(command, check=False).returncode
    verdict, rows = result(folder, earlier) or ("", [])
    with Path(os.environ["GITHUB_OUTPUT"]).open("a", encoding="utf-8") as file:
        file.write(f"verdict={verdict}\ntop1={worse_top1(rows)}\n")
    with Path(os.environ["GITHUB_STEP_SUMMARY"]).open("a", encoding="utf-8") as file:
        file.write(summary(code, verdict, rows))
    return code


if __name__ == "__main__":
    sys.exit(run_command(lambda _: main()))
