"""Torch models to the files of other runtimes, each converter in a process of its own."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.backends import BACKENDS, child
from eval.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


def in_child(
    backend: str, suffix: str, model: nn.Module, folder: Path, batches: Sequence[int], size: int
) -> dict[int, Path]:
    """Convert a model in a child process, once for each batch size.

    Args:
        backend: a key of `BACKENDS` whose module has ``convert``.
        suffix: of the files.
        model: it is not changed.
        folder: where the files are put.
        batches: images in a batch.
        size: of a side of the images.

    Returns:
        Batch size to the file.

    Raises:
        ModelError: the converter cannot do it.
    """
    import torch

    entry = BACKENDS[backend]
    pickled = folder / "model.pickle"
    try:
        torch.save(model, pickled)
    except Exception as error:
        raise ModelError(
            f"This {type(model).__name__} cannot be handed to the converter of {entry.title} "
            f"({child.first_line(error)}).\nUse --backend torch."
        ) from error
    paths = {batch: folder / f"batch{batch}{suffix}" for batch in batches}
    child.call(
        f"The converter of {entry.title}",
        "eval.backends.convert:convert_here",
        module=entry.module,
        pickled=str(pickled),
        paths={str(batch): str(path) for batch, path in paths.items()},
        size=size,
    )
    pickled.unlink()
    return paths


def convert_here(module: str, pickled: str, paths: dict[str, str], size: int) -> None:
    """What `in_child` does in the child process."""
    import torch

    model = torch.load(pickled, weights_only=False)  # written by the parent process
    model = model.cpu().float().eval()
    for batch, path in paths.items():
        importlib.import_module(module).convert(model, Path(path), int(batch), size)
