"""The results of a measurement, image by image, and how those of several processes become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval.errors import DataError
from eval.images.valset import ValSet, fingerprint
from eval.measure.journal import Records
from eval.metrics import Scores

KEPT = ("rank", "top", "prob", "nll", "tied")


@dataclass
class Measurement:
    """The results of a run for every image, in image order.

    Attributes:
        valset: the images.
        scores: the scores of all images, by form; a bad image has rank -1.
        logit_diff: float64 (N,), the largest absolute difference of a logit between the two forms;
            NaN if there is only one form or the image is bad.
        largest_logit: the largest absolute logit of any form and image; None if unknown.
        digests: SHA-256 of each image file, hexadecimal.
        seconds: wall time of the images measured in this run.
        measured_now: number of images measured in this run; the others are from an interrupted run.
        from_cache: how many of these had their crops from a cache.
        bad: the reason for each image that could not be decoded, by index.
        stopped: why the run ended early, if it did.
        bound: the statistics behind that decision, for ``run.json``.
    """

    valset: ValSet
    scores: dict[str, Scores]
    logit_diff: NDArray[np.float64]
    largest_logit: float | None
    digests: list[str]
    seconds: float
    measured_now: int = 0
    from_cache: int = 0
    bad: dict[int, str] = field(default_factory=dict)
    stopped: str = ""
    bound: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The class of each image, int64 (N,)."""
        return np.array([sample.label for sample in self.valset.samples])

    @cached_property
    def dataset_sha256(self) -> str:
        """SHA-256 over the names, labels and contents of the measured images, hexadecimal."""
        return fingerprint(self.valset.samples, self.digests)

    @cached_property
    def flips(self) -> NDArray[np.int64]:
        """Indices of the images with different top-1 predictions of the forms, int64 (F,)."""
        first, *others = [scores.top[:, 0] for scores in self.scores.values()]
        differs = np.zeros(len(first), dtype=bool)
        for other in others:
            differs |= first != other
        return np.flatnonzero(differs)

    @property
    def max_logit_diff(self) -> float | None:
        """Largest absolute difference of a logit between the forms; None with one form."""
        seen = self.logit_diff[np.isfinite(self.logit_diff)]
        return float(seen.max()) if len(seen) else None

    @property
    def where_logits_differ(self) -> str:
        """Path of the image with the largest difference of a logit; "" with one form."""
        if self.max_logit_diff is None:
            return ""
        return self.valset.samples[int(np.nanargmax(self.logit_diff))].path

    @property
    def images_per_second(self) -> float | None:
        """Rate of the images measured in this run; None if there were none."""
        return self.measured_now / self.seconds if self.measured_now and self.seconds else None


class Part(NamedTuple):
    """The results of one process."""

    records: Records  # of its share of the images, kept and new ones
    measured_now: int  # number of new records
    seconds: float  # wall time of the new records
    from_cache: int = 0  # crops of them that a cache had


def assemble(
    valset: ValSet,
    parts: Sequence[Part],
    forms: Sequence[str],
    stopped: str = "",
    bound: dict[str, Any] | None = None,
) -> Measurement:
    """Merge the results of all processes.

    Args:
        valset: the images.
        parts: the results of each process.
        forms: names of the forms.
        stopped: why the run ended early, if it did; the result then has only the measured images.
        bound: see `Measurement`.

    Raises:
        DataError: an image is missing, or was measured more than once.
    """
    records = np.concatenate([part.records for part in parts])
    records = records[np.argsort(records["index"], kind="stable")]
    if len(records) >= len(valset.samples):
        stopped, bound = "", None  # after the last image, the counts decide
    if stopped and len(np.unique(records["index"])) == len(records):
        valset = valset.part(records["index"])
        records["index"] = np.arange(len(records))
    if not np.array_equal(records["index"], np.arange(len(valset.samples))):
        counts = np.bincount(records["index"], minlength=len(valset.samples))
        raise DataError(
            f"{int((counts == 0).sum())} images were not measured and "
            f"{int((counts > 1).sum())} more than once: the processes saw different files.\n"
            "Start over with another --output."
        )
    bad = np.flatnonzero(records["reason"] != b"")
    digests = [row.tobytes().hex() for row in records["sha256"]]
    known = [digest for digest in digests if digest.strip("0")]
    return Measurement(
        valset=valset.doubted(known),
        scores={form: _scores(records, form) for form in forms},
        logit_diff=records["logit_diff"],
        largest_logit=float(records["largest_logit"].max(initial=0.0)),
        digests=digests,
        seconds=max(part.seconds for part in parts),
        measured_now=sum(part.measured_now for part in parts),
        from_cache=sum(part.from_cache for part in parts),
        bad={int(i): records["reason"][i].decode(errors="replace") for i in bad},
        stopped=stopped,
        bound=bound or {},
    )


def _scores(records: Records, form: str) -> Scores:
    answers = records[form]
    return Scores(*(np.ascontiguousarray(answers[name]) for name in KEPT))
