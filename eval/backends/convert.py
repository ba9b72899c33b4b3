"""Torch models to the files of other runtimes, each converter in a process of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.backends import BACKENDS, child
from eval.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


def in_child(
    backend: str, model: nn.Module, folder: Path, batches: Sequence[int], size: int
) -> dict[int, Path]:
    """Convert a model in a child process, once for each batch size: that size to the file."""
    _, ending = BACKENDS[backend].export
    paths = {batch: folder / f"batch{batch}{ending}" for batch in batches}
    _convert(backend, model, paths, size)
    return paths


def export_in_child(backend: str, model: nn.Module, _graph: Path, path: Path, size: int) -> None:
    """Write a model's file, for one image at a time; see `in_child`."""
    _convert(backend, model, {1: path}, size)


def _convert(backend: str, model: nn.Module, paths: Mapping[int, Path], size: int) -> None:
    import torch

    entry = BACKENDS[backend]
    with tempfile.TemporaryDirectory(prefix="pplcnet-eval-") as folder:
        pickled = Path(folder) / "model.pickle"
        try:
            torch.save(model, pickled)
        except Exception as error:
            raise ModelError(
                f"This {type(model).__name__} cannot be handed to the converter of {entry.title} "
                f"({child.first_line(error)}).\nUse --backend torch."
            ) from error
        child.call(
            f"The converter of {entry.title}",
            "eval.backends.convert:convert_here",
            backend=backend,
            pickled=str(pickled),
            paths={str(batch): str(path) for batch, path in paths.items()},
            size=size,
        )


def convert_here(backend: str, pickled: str, paths: dict[str, str], size: int) -> None:
    """What `_convert` does in the child process."""
    import torch

    model = torch.load(pickled, weights_only=False)  # written by the parent process
    model = model.cpu().float().eval()
    for batch, path in paths.items():
        BACKENDS[backend].load().convert(model, Path(path), int(batch), size)
