"""Matplotlib, whatever ``MPLBACKEND`` says: figures are drawn without a backend.

Its import fails where that names none, so it is hidden from it and then set, if it can be.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from eval.errors import UsageError

_chosen = os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib as matplotlib
    import matplotlib.style
    import matplotlib.ticker
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
finally:
    if _chosen is not None:
        os.environ["MPLBACKEND"] = _chosen
if _chosen:
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _chosen


def save(figure: Figure, path: Path) -> None:
    """Write a drawing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error
