"""What a result says: rows of ``summary.csv``, and the predictions beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from eval.images.classes import ClassList
from eval.images.labels import image_key
from eval.judge.verdict import Verdict

SCORED = "scored"  # the form of predictions that were made elsewhere


@dataclass(frozen=True)
class Row:
    """One row of ``summary.csv`` or of a history: one form of one run.

    Attributes:
        started_at: with a time zone; 1970 or later.
        images, images_expected, bad_images, top1_correct: counts of images.
        top5_correct: the same; None where only top-1 predictions are known.
        verdict: supported by the figures of the row.
        weights_sha256: empty where the weights are unknown.
        cells: every column as it is written. A column of numbers holds a finite number or nothing.
    """

    run_id: str
    started_at: datetime
    variant: str
    form: str
    preprocess: str
    images: int
    images_expected: int
    bad_images: int
    top1_correct: int
    top5_correct: int | None
    verdict: Verdict
    weights_sha256: str
    dataset_sha256: str
    cells: Mapping[str, str]

    @property
    def counts(self) -> Mapping[int, int]:
        """K to the images whose label is among the k best, for k = 1, and 5 where it is known."""
        found = {1: self.top1_correct, 5: self.top5_correct}
        return {k: count for k, count in found.items() if count is not None}


@dataclass(frozen=True)
class Predictions:
    """``predictions.csv``: what each form answered to each image.

    Attributes:
        paths: the images, in the order of the file.
        labels: int64 (N,).
        rank: form to int64 (N,), classes before the label; -1 for an image that was not read.
        top1: form to int64 (N,), top-1 prediction; -1 likewise.
    """

    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    rank: Mapping[str, NDArray[np.int64]]
    top1: Mapping[str, NDArray[np.int64]]

    def keys(self) -> list[str]:
        """What each image is called in every layout; whole paths where names are not unique."""
        keys = [image_key(path) for path in self.paths]
        return keys if len(set(keys)) == len(keys) else list(self.paths)

    def correct(self, form: str, k: int) -> NDArray[np.bool_]:
        """Whether the label is among the k best; bool (N,)."""
        rank = self.rank[form]
        right: NDArray[np.bool_] = (rank >= 0) & (rank < k)
        return right


@dataclass(frozen=True)
class Result:
    """A run, or the latest ones of a history.

    Attributes:
        source: as the user named it.
        rows: (variant, form) to its row.
        predictions: of all forms, where the folder has them.
        classes: of the model, where the folder has a ``per_class.csv``.
        environment: the machine, and the versions of what computed, where the folder has a
            ``run.json``.
    """

    source: str
    rows: Mapping[tuple[str, str], Row]
    predictions: Predictions | None = None
    classes: ClassList | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
