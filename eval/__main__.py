"""``python -m eval COMMAND``: the console script."""

from eval.cli import console

console()
