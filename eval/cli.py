"""``pplcnet-eval COMMAND``: all commands behind one name.

``pplcnet-eval imagenet ...`` is ``python -m eval.imagenet ...``, whatever the current folder holds.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from eval.command import run_command
from eval.errors import UsageError

NAME = "pplcnet-eval"

# In the order of the help; each is a module of this package with a `main`.
COMMANDS = {
    "imagenet": "measure a model and compare it with its reported accuracy",
    "data": "check a validation set before measuring on it",
    "regression": "compare two results: the gate for CI",
    "score": "score predictions that another device or runtime made",
    "history": "show accuracy and speed over many runs",
    "sweep": "compare models, forms, backends and precisions in one table",
    "diagnose": "explain a wrong accuracy",
    "audit": "measure a random sample of a result again",
    "export": "export a model for deployment",
}


def program(command: str) -> str:
    """How the user started a command, for its help: what argparse calls ``prog``."""
    started = Path(sys.argv[0]).stem
    return f"{NAME} {command}" if started == NAME else f"python -m eval.{command}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, and give its exit code.

    Raises:
        SystemExit: argparse's own, for a command's ``--help`` (0) and for mistyped options (2).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in available():
        command = importlib.import_module(f"eval.{arguments[0]}")
        code: int = command.main(arguments[1:])
        return code
    return run_command(_without_a_command, arguments)


def _without_a_command(arguments: Sequence[str]) -> int:
    known = available()
    match arguments:
        case ["-h" | "--help", *_]:
            print(_help(known))
            return 0
        case ["--version", *_]:
            from eval.version import version

            print(f"{NAME} {version()}")
            return 0
        case [name, *_]:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UsageError(
                f"{NAME} has no command {name!r}.{hint}\nAvailable: {', '.join(known)}."
            )
        case _:  # nothing was measured: not 0, which CI would take for a success
            print(_help(known))
            return UsageError.exit_code


def available() -> dict[str, str]:
    """The commands that this installation has, with what they do."""
    return {name: text for name, text in COMMANDS.items() if find_spec(f"eval.{name}")}


def _help(known: dict[str, str]) -> str:
    width = max(map(len, known))
    rows = "\n".join(f"  {name:{width}}  {text}" for name, text in known.items())
    return (
        f"usage: {NAME} COMMAND [options]\n\n"
        "Does this PP-LCNetV2 give the reported ImageNet accuracy?\n\n"
        f"commands:\n{rows}\n\n"
        f"{NAME} COMMAND --help shows the options of a command."
    )


if __name__ == "__main__":
    sys.exit(main())
