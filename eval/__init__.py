"""The ImageNet evaluation harness for PP-LCNetV2.

>>> from eval import Request, evaluate
>>> evaluation = evaluate(Request(data="/val", variant="base_ssld"))  # doctest: +SKIP
>>> evaluation.verdict  # doctest: +SKIP
'PASS'

Importing it imports neither torch nor numpy: that happens at the first use of a name.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

# With `python -m`, this is imported before the module itself; sys.argv[0] is still "-m".
_IS_COMMAND = sys.argv[:1] == ["-m"] or sys.argv[0].endswith("pplcnet-eval")

# Any Python may come here first: what stands above keeps to the grammar of Python 3.6.
if sys.version_info < (3, 11):  # noqa: UP036
    _NEEDED = (
        f"pplcnet-eval needs Python 3.11 or later; {sys.executable} is Python "
        f"{sys.version_info[0]}.{sys.version_info[1]}.\n"
        "Use the environment that it is installed in, or make one with a later Python."
    )
    if not _IS_COMMAND:
        raise ImportError(_NEEDED)
    sys.stderr.write(f"error: {_NEEDED}\n")
    sys.exit(2)  # not 1, as of a traceback: that says that an accuracy was measured, and is wrong

import eval.snapshot  # noqa: E402, F401 - first, so that all other modules are imported as it saw them

if TYPE_CHECKING:
    from eval.jobs.evaluate import evaluate
    from eval.request import Request
    from eval.results.evaluation import Evaluation

__all__ = ["Evaluation", "Request", "evaluate"]

_HOMES = {"Evaluation": "results.evaluation", "Request": "request", "evaluate": "jobs.evaluate"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from eval.version import version

        return version()
    if name in _HOMES:
        value = getattr(importlib.import_module(f"eval.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'eval' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def _is_ours(word: str) -> bool:
    return word.partition(".")[0] == "eval" or word.endswith("pplcnet-eval")


def _end(kind: Any, error: Any, trace: Any) -> None:
    from eval.cli import end_uncaught  # not above: it may be the module that `-m` runs

    end_uncaught(kind, error, trace)


if _IS_COMMAND and any(map(_is_ours, sys.orig_argv)):  # not the command of another package
    sys.excepthook = _end
