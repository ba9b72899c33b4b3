"""Images that cost time but no core: how a run behaves on cores that are not there.

What an image takes of a core is slept, in place of reading, decoding, computing and scoring it:
first with the interpreter's lock, which a call of `ctypes.PyDLL` keeps, so that all other threads
of its process wait as they would for Python code; then without it. All else is that of a real run:
processes, threads, queues, messages, records, the journal, and what the first process does for the
others, in Python and with its own lock. The other processes of a run import this module as well.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eval.backends import Task
from eval.cli import run_command
from eval.images.preprocess import PREPROCESS
from eval.images.sets import UNIDENTIFIED
from eval.images.valset import Sample, ValSet
from eval.measure import batch, engine, member
from eval.measure.journal import Journal, Records, record_dtype
from eval.measure.settings import exact_settings
from eval.progress import ProgressBar

CLASSES = 6
FORMS = ("unfused", "reparameterized")
MOST_HELD = 0.001  # seconds with the lock at a time: of some images, so that there are fewer sleeps
SAMPLES = 50  # sleeps, of which the median shows how late they are
_PR_SET_TIMERSLACK = 29  # linux/prctl.h: by default, sleeps are 50 microseconds late
_usleep = ctypes.PyDLL(None).usleep


def _be_in_time() -> None:
    """Let the sleeps of this thread end when they should, as far as the system can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def _late() -> float:
    """Seconds by which a sleep is longer than asked for."""
    _be_in_time()
    late = []
    for _ in range(SAMPLES):
        started = time.perf_counter()
        _usleep(500)
        late.append(time.perf_counter() - started - 0.0005)
    return sorted(late)[SAMPLES // 2]


_LATE = _late()


@dataclass(frozen=True)
class Image:
    """What an image takes of a core, in seconds; it stands where a crop is made.

    Attributes:
        native: without the interpreter's lock.
        locked: with it.
    """

    native: float
    locked: float

    def __call__(self, _: bytes) -> Any:
        """Nothing is cropped: see `Evaluator`."""
        raise NotImplementedError


class Evaluator:
    """In place of `eval.measure.batch.BatchEvaluator`."""

    def __init__(self, _valset: ValSet, _predictor: Any, plan: batch.Plan, *_: Any) -> None:
        assert isinstance(plan.preprocess.crop, Image)
        self._image = plan.preprocess.crop
        self._records = np.zeros(plan.batch_size, record_dtype(plan.forms))

    def __call__(self, indices: NDArray[np.int64]) -> Records:
        """Records (B,) of nothing, after the time that they would have taken."""
        _be_in_time()
        late = 0.0  # what a sleep is too long, the next one is shorter
        at_once = max(1, int(MOST_HELD / self._image.locked))
        for start in range(0, len(indices), at_once):
            count = len(indices[start : start + at_once])
            _usleep(max(0, round(1e6 * (count * self._image.locked - _LATE))))
            until = time.perf_counter() + count * self._image.native - late
            time.sleep(max(0.0, until - time.perf_counter()))
            late = time.perf_counter() - until
        records = self._records[: len(indices)].copy()
        records["index"] = indices
        return records


def install() -> None:
    """From now on, this process simulates."""
    for module in (engine, member):
        module.BatchEvaluator = Evaluator  # type: ignore[misc]


class Few(nn.Module):
    """A network of hardly any arithmetic; a process that is sent one simulates."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, CLASSES)."""
        return self.fc(x[:, :, 0, 0])  # type: ignore[no-any-return]

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        install()


def read(_: str) -> bytes:
    """An image file."""
    return b""


@dataclass(frozen=True)
class Row:
    """A kind of run.

    Attributes:
        image: what each image takes.
        batch: images in a batch.
        forms: how many; each makes a record longer.
    """

    image: Image
    batch: int
    forms: int


def rates(rows: Sequence[Row], processes: int, threads: int, seconds: float) -> list[float]:
    """Images per second of runs of about so long, of these processes with so many threads each."""
    torch.manual_seed(0)
    preprocess = replace(PREPROCESS["torchvision"], size=8)
    models = dict.fromkeys(FORMS, Few().eval())
    task = Task("torch", models, preprocess, torch.device("cpu"), "fp32", 1, threads)
    found = []
    with (
        exact_settings(),
        ProgressBar() as progress,
        closing(engine.Engine(task, progress, processes)) as ours,
    ):
        assert ours.kinds
        for row in rows:
            each = row.image.native + row.image.locked
            images = max(1, round(seconds * processes * threads / each / row.batch)) * row.batch
            samples = tuple(Sample(f"{number}.JPEG", number % CLASSES) for number in range(images))
            valset = ValSet(Path(), "simulated", samples, read, UNIDENTIFIED)
            forms = FORMS[: row.forms]
            ours.task = replace(
                task, models={form: models[form] for form in forms}, batch_size=row.batch,
                preprocess=replace(preprocess, crop=row.image),
            )  # fmt: skip
            with (
                tempfile.TemporaryDirectory() as folder,
                Journal(Path(folder), {}, forms) as journal,
            ):
                found.append(images / ours.measure(valset, journal=journal).seconds)
    return found


def main(words: Sequence[str]) -> int:
    """Print the rates of some rows on one set of cores, all described by the only word, as JSON."""
    asked = json.loads(words[0])
    install()
    sys.modules["simulated"] = sys.modules["__main__"]
    for kind in (Image, Few, read):
        kind.__module__ = "simulated"
    rows = [
        Row(Image(row["native"], row["locked"]), row["batch"], row["forms"])
        for row in asked["rows"]
    ]
    print(json.dumps(rates(rows, asked["processes"], asked["threads"], asked["seconds"])))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
