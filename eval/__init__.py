"""The ImageNet evaluation harness for PP-LCNetV2.

>>> from eval import Request, evaluate
>>> evaluation = evaluate(Request(data="/val", variant="base_ssld"))  # doctest: +SKIP
>>> evaluation.verdict  # doctest: +SKIP
'PASS'

Importing it imports neither torch nor numpy: that happens at the first use of a name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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
