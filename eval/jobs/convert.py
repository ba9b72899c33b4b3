"""A torch model as a file of another format, and how near its logits are to torch's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from eval.backends import BACKENDS, Task
from eval.backends.formats import EXPORTS, companions, size_of
from eval.errors import ModelError
from eval.images.preprocess import Crop, Preprocess
from eval.images.valset import open_valset
from eval.measure.cores import choose_workers
from eval.measure.engine import Engine
from eval.measure.reading import read_crops
from eval.progress import Event, Observer, ignore

WITHIN = 1e-3  # of the largest logit
HELD_OUT = 0.25  # share of the calibration images that is kept for choosing


@dataclass(frozen=True)
class Model:
    """What is exported, and the images that it is compared on.

    Attributes:
        crops: uint8 (B, size, size, 3).
        shown: what the images are, for messages.
        expected: torch's logits of them.
    """

    model: nn.Module
    preprocess: Preprocess
    crops: Crop
    shown: str
    expected: NDArray[np.float32]


def sample_of(path: Path, count: int, preprocess: Preprocess) -> tuple[Crop, list[int]]:
    """Crops and labels of the first images of a validation set's fixed shuffled order."""
    valset = open_valset(path)
    if count < len(valset.samples):
        valset = valset.limited(count)
    labels = [sample.label for sample in valset.samples]
    return read_crops(valset, preprocess, choose_workers()), labels


def answers(
    backend: str, model: nn.Module | Path, preprocess: Preprocess, crops: Crop
) -> NDArray[np.float32]:
    """Logits of a model or of a file."""
    cpu = torch.device("cpu")
    task = Task(backend, {"": model}, preprocess, cpu, "fp32", batch_size=8, workers=1)
    return Engine(task).logits(crops)[""]


def make(kind: str, model: Model, folder: Path) -> Path:
    """Write the fp32 file of a format: ``model`` and its ending, in `folder`."""
    backend, ending = EXPORTS[kind]
    path = folder / f"model{ending}"
    BACKENDS[backend].load().export(model.model, folder / "graph.onnx", path, model.preprocess.size)
    return path


def compare_with_torch(kind: str, path: Path, model: Model, progress: Observer = ignore) -> None:
    """Tell how near a file's answers are to torch's."""
    backend, _ = EXPORTS[kind]
    found = answers(backend, path, model.preprocess, model.crops)
    largest = float(np.abs(model.expected).max())
    difference = float(np.abs(found - model.expected).max()) / largest
    other = int((found.argmax(1) != model.expected.argmax(1)).sum())
    if not difference < WITHIN or other:
        raise ModelError(
            f"{path.name}: {backend}'s outputs do not match PyTorch's: another top-1 prediction "
            f"for {other} of {len(found)} {model.shown}; logits differ by {difference:.2g} of the "
            "largest.\nNothing was written; try another format."
        )
    shown = f"{path.name}: {size_of(path):,} bytes; {len(found)} {model.shown}"
    told = f"logits within {difference:.1e} of the largest"
    progress(Event(message=f"{shown}: top-1 identical in {backend}, {told}"))


def move(path: Path, target: Path) -> None:
    """A model's files to their place; the one that names the others last."""
    for beside in companions(path):
        beside.replace(target.with_suffix(beside.suffix))
    path.replace(target)
