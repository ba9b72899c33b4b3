"""ReaL: the val set's images with all the labels that people agreed on.

Beyer et al., "Are we done with ImageNet?", arXiv 2006.07159. An answer is right if it is any of an
image's labels; images that were left without one do not count. The labels are those that timm
ships (``timm/data/_info/imagenet_real_labels.json``): 50,000 lists, in the order of the official
file names.
"""

from __future__ import annotations

import importlib.resources
import json
from dataclasses import dataclass
from functools import cache

from eval.errors import DataError
from eval.images.labels import official_number
from eval.images.valset import ValSet
from eval.measure.engine import Measurement
from eval.measure.metrics import percent


@dataclass(frozen=True)
class RealScore:
    """Of one form.

    Attributes:
        images: those with a label, which is the denominator.
        top1_correct, top5_correct: those with a right answer among the first one or five.
    """

    images: int
    top1_correct: int
    top5_correct: int

    @property
    def top1(self) -> float:
        """In percent."""
        return percent(self.top1_correct, self.images)

    @property
    def top5(self) -> float:
        """In percent."""
        return percent(self.top5_correct, self.images)


@cache
def real_labels() -> tuple[frozenset[int], ...]:
    """The labels of ILSVRC2012_val_00000001.JPEG and its 49,999 followers."""
    file = importlib.resources.files("timm.data") / "_info" / "imagenet_real_labels.json"
    return tuple(frozenset(labels) for labels in json.loads(file.read_text(encoding="utf-8")))


def labels_of(valset: ValSet) -> list[frozenset[int]]:
    """The labels of each image, in image order; none for some.

    Raises:
        DataError: an image has no official name, so that its labels cannot be known; or none of
            the images has a label.
    """
    labels = []
    for sample in valset.samples:
        number = official_number(sample.path)
        if number is None:
            raise DataError(
                f"--real-labels: {sample.path} has no official name (ILSVRC2012_val_00000001.JPEG "
                "to 00050000), by which the labels are found.\nLeave --real-labels out."
            )
        labels.append(real_labels()[number - 1])
    if not any(labels):
        raise DataError(
            f"--real-labels: none of the {len(labels)} images has a ReaL label.\n"
            "Leave --real-labels out, or take more images."
        )
    return labels


def score_real(measured: Measurement) -> dict[str, RealScore]:
    """Form to its score; a bad image with labels counts as wrong.

    Raises:
        DataError: as of `labels_of`.
    """
    labels = labels_of(measured.valset)
    return {
        form: RealScore(
            images=sum(map(bool, labels)),
            top1_correct=_hits(labels, scores.top[:, :1].tolist()),
            top5_correct=_hits(labels, scores.top.tolist()),
        )
        for form, scores in measured.scores.items()
    }


def _hits(labels: list[frozenset[int]], answers: list[list[int]]) -> int:
    return sum(not known.isdisjoint(row) for known, row in zip(labels, answers, strict=True))
