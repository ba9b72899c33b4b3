"""The measurement: every image decoded once, every form asked about it, every answer scored.

One single-threaded worker per core decodes, crops and infers its own small batches, so that no
pixels travel between processes and no threads wait for each other. Decoding, resizing and
convolving release the interpreter's lock, so that the workers can be threads.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from eval.errors import DataError
from eval.metrics import Scores, check_logits
from eval.preprocess import CROP, BadImage, Crop, Preprocess
from eval.valset import ValSet, fingerprint

CPU_BATCH = 8  # activations of a few images stay in the cache of one core
GPU_BATCH = 64


class Predictor(Protocol):
    """What a backend is: uint8 crops (B, 224, 224, 3) to logits (B, classes) of each form."""

    def __call__(self, crops: Crop) -> Mapping[str, NDArray[Any]]: ...


@dataclass
class Measurement:
    """All that a run found out, per image, in image order.

    Attributes:
        valset: the images.
        scores: form to the scores of every image.
        logit_diff: float64 (N,), largest absolute difference of a logit between the two forms;
            NaN where there is only one form.
        largest_logit: the largest absolute logit of any form and image.
        digests: SHA-256 of each image file.
        seconds: wall time from the first image to the last.
    """

    valset: ValSet
    scores: dict[str, Scores]
    logit_diff: NDArray[np.float64]
    largest_logit: float
    digests: list[str]
    seconds: float

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 (N,)."""
        return np.array([sample.label for sample in self.valset.samples])

    @property
    def dataset_sha256(self) -> str:
        """Names, labels and contents of the images that were measured."""
        return fingerprint(self.valset.samples, self.digests)

    @property
    def flips(self) -> NDArray[np.int64]:
        """Indices of the images whose best class differs between the forms."""
        first, *others = [scores.top[:, 0] for scores in self.scores.values()]
        return np.flatnonzero(np.any([first != other for other in others], axis=0))

    @property
    def max_logit_diff(self) -> float | None:
        """Largest absolute difference of any logit between the forms, if there are two."""
        return float(self.logit_diff.max()) if len(self.scores) > 1 else None


@dataclass
class _Batch:
    indices: NDArray[np.int64]
    scores: dict[str, Scores]
    logit_diff: NDArray[np.float64]
    largest_logit: float
    digests: list[str]


def measure(
    valset: ValSet,
    preprocess: Preprocess,
    predictor: Predictor,
    *,
    batch_size: int,
    workers: int,
    progress: Callable[[int, int], None] = lambda images, correct: None,
) -> Measurement:
    """Evaluate a val set.

    Args:
        progress: called after each batch with its number of images, and with how many of them
            the last form got right.

    Raises:
        DataError: an image cannot be decoded.
        LogitsError: an answer is not finite or constant.
    """
    labels = np.array([sample.label for sample in valset.samples])
    total = len(labels)

    def evaluate(start: int) -> _Batch:
        indices = np.arange(start, min(start + batch_size, total))
        # Always a whole batch, so that the last one is computed as all the others are.
        crops = np.zeros((batch_size, CROP, CROP, 3), np.uint8)
        digests = []
        for row, index in enumerate(indices):
            path = valset.samples[index].path
            data = valset.read(path)
            digests.append(hashlib.sha256(data).hexdigest())
            try:
                crops[row] = preprocess.crop(data)
            except BadImage as error:
                raise DataError(
                    f"{valset.root / path} cannot be decoded: {error}.\n"
                    "Replace the file with an intact copy; no image may be left out."
                ) from error
        logits = {form: rows[: len(indices)] for form, rows in predictor(crops).items()}
        names = [valset.samples[index].path for index in indices]
        for rows in logits.values():
            check_logits(rows, names)
        return _Batch(
            indices,
            {form: Scores.of(rows, labels[indices]) for form, rows in logits.items()},
            _largest_difference(list(logits.values())),
            max(float(np.abs(rows).max()) for rows in logits.values()),
            digests,
        )

    started = time.perf_counter()
    result: Measurement | None = None
    with ThreadPoolExecutor(workers, initializer=_single_threaded) as pool:
        try:
            for batch in pool.map(evaluate, range(0, total, batch_size)):
                if result is None:
                    scores = {form: Scores.empty(total) for form in batch.scores}
                    result = Measurement(
                        valset, scores, np.full(total, np.nan), 0.0, [""] * total, 0.0
                    )
                for form, batch_scores in batch.scores.items():
                    result.scores[form].put(batch.indices, batch_scores)
                result.logit_diff[batch.indices] = batch.logit_diff
                result.largest_logit = max(result.largest_logit, batch.largest_logit)
                for index, digest in zip(batch.indices, batch.digests, strict=True):
                    result.digests[index] = digest
                last = list(batch.scores.values())[-1]
                progress(len(batch.indices), last.correct(1))
        finally:
            pool.shutdown(cancel_futures=True)
    assert result is not None, "a val set is never empty"
    result.seconds = time.perf_counter() - started
    _check_complete(result)
    return result


def _single_threaded() -> None:
    torch.set_num_threads(1)


def _largest_difference(logits: list[NDArray[Any]]) -> NDArray[np.float64]:
    """(B,): largest absolute difference between two forms' answers; NaN for a single form."""
    if len(logits) < 2:
        return np.full(len(logits[0]), np.nan)
    first, second = (rows.astype(np.float64) for rows in logits)
    return np.abs(first - second).max(axis=1)


def _check_complete(result: Measurement) -> None:
    """Each image exactly once: an assertion about this code, not about the user's data."""
    for form, scores in result.scores.items():
        if (scores.rank < 0).any() or not all(result.digests):
            raise AssertionError(f"{form}: some images were never scored")


def choose_workers() -> int:
    """One per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_batch_size(device: torch.device) -> int:
    """Images per batch, for the kind of device."""
    return CPU_BATCH if device.type == "cpu" else GPU_BATCH
