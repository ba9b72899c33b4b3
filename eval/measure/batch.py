"""A batch: its images read, decoded and cropped, given to every form, and scored.

Several threads evaluate batches at once, and several processes (`eval.measure.crew`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eval.backends import Predictor
from eval.errors import UnreadableImage
from eval.images.cache import CropCache
from eval.images.preprocess import BadImage, Crop, Preprocess
from eval.images.valset import ValSet
from eval.measure.journal import REASON_BYTES, Records, record_dtype
from eval.measure.measurement import KEPT
from eval.measure.reading import decoding, read_hashed
from eval.metrics import Kind, Scores, as_logits, check_logits, without_background

_RECORD = "Replace the file (images are never skipped), or use --on-bad-image record."


@dataclass(frozen=True)
class Plan:
    """How the images are measured.

    Attributes:
        preprocess: how images are decoded and cropped.
        forms: names of the forms that the predictor computes.
        batch_size: images per batch; every batch is computed at this size.
        workers: number of threads.
        share: (number, count): this process measures every count-th batch, beginning with number.
        record_bad: whether an image that cannot be decoded is recorded; if not, it ends the run.
        background_first: whether the first output of a model is left out.
        order: indices of the images in the order of measurement, int64; None for the order of the
            validation set.
    """

    preprocess: Preprocess
    forms: tuple[str, ...]
    batch_size: int
    workers: int
    share: tuple[int, int] = (0, 1)
    record_bad: bool = False
    background_first: bool = False
    order: NDArray[np.int64] | None = None


class BatchEvaluator:
    """Evaluates a batch: read, decode and crop its images, run every form, score the logits.

    Several threads call it at once.
    """

    def __init__(
        self,
        valset: ValSet,
        predictor: Predictor,
        plan: Plan,
        cache: CropCache | None,
        kinds: Mapping[str, Kind],
    ) -> None:
        self._kinds = {form: kinds.get(form, Kind.LOGITS) for form in plan.forms}
        self._valset, self._predictor, self._plan, self._cache = valset, predictor, plan, cache
        self._labels = np.array([sample.label for sample in valset.samples])
        self._among = None if valset.among is None else np.array(valset.among)
        self._dtype = record_dtype(plan.forms)
        self._part = getattr(predictor, "part", plan.batch_size)

    def __call__(self, indices: NDArray[np.int64]) -> Records:
        """Measure the images with the given indices, int64 (B,), and return their records (B,)."""
        records = np.zeros(len(indices), self._dtype)
        records["index"] = indices
        size = self._plan.preprocess.size
        # Whole parts, so that the last images are computed like all others.
        whole = math.ceil(len(indices) / self._part) * self._part
        crops = np.zeros((whole, size, size, 3), np.uint8)
        read = [self._read_image(index, crops[row]) for row, index in enumerate(indices.tolist())]
        digests = b"".join(digest for digest, _ in read)
        records["sha256"] = np.frombuffer(digests, np.uint8).reshape(-1, 32)
        records["reason"] = [reason for _, reason in read]
        good = np.flatnonzero(records["reason"] == b"")
        logits = {form: rows[good] for form, rows in self._predictor(crops).items()}
        names = [self._valset.samples[i].path for i in indices[good]]
        for form, rows in logits.items():
            check_logits(rows, names, self._kinds[form])
            if self._plan.background_first:
                rows = logits[form] = without_background(rows, self._kinds[form])
            labels = self._labels[indices[good]]
            scores = Scores.of(rows, labels, self._among, self._kinds[form])
            _store(records, form, good, scores)
        logits = {form: as_logits(rows, self._kinds[form]) for form, rows in logits.items()}
        records["logit_diff"] = np.nan
        if len(logits) > 1:
            records["logit_diff"][good] = _largest_difference(*logits.values())
        for rows in logits.values():
            largest = np.abs(rows).max(axis=1, initial=0.0)
            records["largest_logit"][good] = np.maximum(records["largest_logit"][good], largest)
        return records

    def _read_image(self, index: int, crop: Crop) -> tuple[bytes, bytes]:
        """Fill in a crop (size, size, 3).

        Returns:
            SHA-256 of the file, zeros if it cannot be read; and the reason why the image is bad.
        """
        cache, digest = self._cache, bytes(32)
        path = self._valset.samples[index].path
        try:
            data, digest = read_hashed(self._valset, path)
            cached = cache.get(index, digest) if cache else None
            crop[:] = self._plan.preprocess.crop(data) if cached is None else cached
            if cache and cached is None:
                cache.put(index, digest, crop)
        except (BadImage, UnreadableImage) as error:
            if not self._plan.record_bad:
                with decoding(self._valset, path, _RECORD):
                    raise
            reason = str(error).partition("\n")[0] or type(error).__name__
            return digest, reason.encode()[:REASON_BYTES]
        return digest, b""


def _store(records: Records, form: str, rows: NDArray[np.int64], scores: Scores) -> None:
    """Store scores (len(rows),) in the given rows; the other rows have no prediction."""
    answers = records[form]
    answers["rank"], answers["top"] = -1, -1
    answers["prob"], answers["nll"], answers["tied"] = np.nan, np.nan, False
    for name in KEPT:
        answers[name][rows] = getattr(scores, name)


def _largest_difference(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Largest absolute difference between two forms' logits, (B,)."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    difference: NDArray[np.float64] = np.abs(first - second).max(axis=1)
    return difference


class ShrinkOnOutOfMemory:
    """A predictor that splits a batch into smaller parts when it runs out of memory.

    Other errors are passed on. Later batches are split in the same way.

    Args:
        predictor: computes the parts.
        notify: called with a message when the size is reduced.
    """

    def __init__(self, predictor: Predictor, notify: Callable[[str], None]) -> None:
        self._predictor = predictor
        self._notify = notify
        if hasattr(predictor, "part"):
            self.part = predictor.part
        self._limit = sys.maxsize

    @property
    def settings(self) -> Mapping[str, Any]:
        """Those of the predictor."""
        found: Mapping[str, Any] = getattr(self._predictor, "settings", {})
        return found

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """Those that the predictor knows."""
        found: Mapping[str, Kind] = getattr(self._predictor, "kinds", {})
        return found

    def __call__(self, crops: Crop) -> Mapping[str, NDArray[Any]]:
        """Compute a batch, uint8 (B, size, size, 3), in parts: logits (B, C) by form."""
        parts: list[Mapping[str, NDArray[Any]]] = []
        start = 0
        while start < len(crops):
            size = min(self._limit, len(crops) - start)
            try:
                parts.append(self._predictor(crops[start : start + size]))
                start += size
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error) or size == 1:
                    raise
                self._limit = size // 2
                self._notify(f"Out of memory: batches of {self._limit} from now on")
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        return {form: np.concatenate([part[form] for part in parts]) for form in parts[0]}


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The CPU allocator raises a plain RuntimeError (c10/core/impl/alloc_cpu.cpp).
    return "DefaultCPUAllocator: can't allocate memory" in str(error)
