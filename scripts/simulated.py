"""An image that costs time but no core: how a run behaves on cores that are not there.

What a core would do in native code is replaced by sleeping for as long, and the interpreter's lock
by a lock of each process that is slept in for as long as the real one is held. Processes, threads,
queues, records and the journal are those of a real run. The other processes of a run import this
module as well.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eval.backends import Task
from eval.cli import run_command
from eval.images.preprocess import PREPROCESS
from eval.images.sets import UNIDENTIFIED
from eval.images.valset import Sample, ValSet
from eval.measure.engine import CPU_BATCH, Engine
from eval.measure.journal import Journal
from eval.measure.settings import exact_settings

SIDE = 8  # pixels: the real work on an image is next to nothing
CLASSES = 6
FORM = "reparameterized"
_lock = threading.Lock()


def _late() -> float:
    """Seconds by which a sleep is longer than asked for."""
    late = []
    for _ in range(50):
        started = time.perf_counter()
        time.sleep(0.0005)
        late.append(time.perf_counter() - started - 0.0005)
    return sorted(late)[len(late) // 2]


_LATE = _late()


def rest(seconds: float) -> None:
    """Sleep for so long, in all."""
    time.sleep(max(0.0, seconds - _LATE))


@dataclass(frozen=True)
class Image:
    """What an image takes of a core, in seconds.

    Attributes:
        native: without the interpreter's lock.
        locked: with it.
    """

    native: float
    locked: float

    def __call__(self, _: bytes) -> Any:
        """Take it."""
        with _lock:
            rest(self.locked)
        rest(self.native)
        return np.zeros((SIDE, SIDE, 3), np.uint8)


class Few(nn.Module):
    """A network of hardly any arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, CLASSES)."""
        return self.fc(x[:, :, 0, 0])  # type: ignore[no-any-return]


def read(_: str) -> bytes:
    """An image file."""
    return b""


def rate(image: Image, images: int, processes: int, threads: int) -> float:
    """Images per second of a run of these processes, each with so many threads."""
    torch.manual_seed(0)
    preprocess = replace(PREPROCESS["torchvision"], crop=image, size=SIDE)
    samples = tuple(Sample(f"{number}.JPEG", number % CLASSES) for number in range(images))
    valset = ValSet(Path(), "simulated", samples, read, UNIDENTIFIED)
    task = Task(
        "torch", {FORM: Few().eval()}, preprocess, torch.device("cpu"), "fp32", CPU_BATCH, threads
    )
    with exact_settings(), tempfile.TemporaryDirectory() as folder:
        engine = Engine(task, processes=processes)
        try:
            with Journal(Path(folder), {}, (FORM,)) as journal:
                measured = engine.measure(valset, journal=journal)
        finally:
            engine.close()
    return images / measured.seconds


def main(words: Sequence[str]) -> int:
    """Print the images per second of one run, which the only word describes in JSON."""
    asked = json.loads(words[0])
    sys.modules["simulated"] = sys.modules["__main__"]
    for kind in (Image, Few, read):
        kind.__module__ = "simulated"
    print(rate(Image(asked["native"], asked["locked"]), *asked["run"]))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
