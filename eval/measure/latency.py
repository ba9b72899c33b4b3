"""How long one image takes: what a phone or a server that answers one request at a time sees.

Throughput (images per second) is measured with a worker on every core; here one image is asked for
at a time, with one thread and with all cores.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from eval.backends import Predictor, Task, predictor_for, prepared
from eval.errors import DataError, UnreadableImage
from eval.images.preprocess import BadImage, Preprocess
from eval.images.valset import ValSet

IMAGES = 200
WARM_UP = 10
STAGES = ("model", "model+preprocess")


@dataclass(frozen=True)
class LatencyRow:
    """One row of ``latency.csv``.

    Attributes:
        form: which form of the model.
        threads: that the runtime may use for one image.
        batch: images in a call; always 1.
        stage: ``model``: from the uint8 crop to the logits, normalization included;
            ``model+preprocess``: from the bytes of the image file to the logits.
        median_ms, p90_ms, p99_ms: percentiles over the images, in milliseconds.
        images: how many were timed.
    """

    form: str
    threads: int
    batch: int
    stage: str
    median_ms: float
    p90_ms: float
    p99_ms: float
    images: int


def measure_latency(task: Task, valset: ValSet, images: int = IMAGES) -> list[LatencyRow]:
    """Time a model on real images, one at a time.

    Args:
        task: what is timed; its batch size, workers and threads are replaced.
        valset: the first images of its fixed shuffled order are used.
        images: how many; after `WARM_UP` calls that do not count.

    Returns:
        For each form, number of threads and stage, one row.
    """
    files = _files(valset, task.preprocess, images)
    rows = []
    before = torch.get_num_threads()
    try:
        for form, model in task.models.items():
            one = replace(task, models={form: model}, batch_size=1, workers=1)
            with prepared(one) as ready:
                for threads in sorted({1, os.cpu_count() or 1}):
                    torch.set_num_threads(threads)  # first: weights are laid out for that many
                    predictor = predictor_for(replace(ready, threads=threads))
                    times = _times(predictor, task.preprocess, files)
                    for stage, values in zip(STAGES, times, strict=True):
                        rows.append(_row(form, threads, stage, values))
    finally:
        torch.set_num_threads(before)
    return rows


def _files(valset: ValSet, preprocess: Preprocess, images: int) -> list[bytes]:
    """The bytes of images that can be decoded."""
    chosen = valset.limited(min(images, len(valset.samples)))
    files = []
    for sample in chosen.samples:
        try:
            data = valset.read(sample.path)
            preprocess.crop(data)
        except (BadImage, UnreadableImage):
            continue
        files.append(data)
    if not files:
        raise DataError("--latency: none of the images can be decoded.\nCheck the validation set.")
    return files


def _times(
    predictor: Predictor, preprocess: Preprocess, files: Sequence[bytes]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds of each image: the model alone, and with preprocessing."""
    first = preprocess.crop(files[0])[np.newaxis]
    for _ in range(WARM_UP):
        predictor(first)
    alone, whole = [], []
    for data in files:
        start = time.perf_counter()
        crops = preprocess.crop(data)[np.newaxis]
        prepared = time.perf_counter()
        predictor(crops)
        end = time.perf_counter()
        alone.append(end - prepared)
        whole.append(end - start)
    return np.array(alone), np.array(whole)


def _row(form: str, threads: int, stage: str, seconds: NDArray[np.float64]) -> LatencyRow:
    median, p90, p99 = (float(value) for value in np.percentile(seconds * 1e3, (50, 90, 99)))
    return LatencyRow(form, threads, 1, stage, median, p90, p99, len(seconds))
