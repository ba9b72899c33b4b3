"""Which predictions are correct for each image by the ReaL labels.

ReaL (Beyer et al., "Are we done with ImageNet?", arXiv 2006.07159) gives the validation images all
the labels that annotators agreed on. A prediction is correct if it is any of them; images that were
left without a label do not count. The labels are those that timm ships
(``timm/data/_info/imagenet_real_labels.json``): 50,000 lists, in the order of the official names.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.errors import DataError
from eval.images.labels import official_number
from eval.images.valset import ValSet
from eval.text import timm_info

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelSet:
    """The correct answers for each image of a validation set.

    Attributes:
        name: for reports.
        accepted: the labels that count as correct, in image order; with none, the image does not
            count.
    """

    name: str
    accepted: tuple[frozenset[int], ...]

    @property
    def images(self) -> int:
        """How many images count."""
        return sum(map(bool, self.accepted))


@dataclass(frozen=True)
class LabelScore:
    """How many predictions of one model are correct by a label set.

    Attributes:
        images: those that count, which is the denominator.
    """

    name: str
    images: int
    top1_correct: int
    top5_correct: int

    @property
    def top1(self) -> float:
        """In percent, unrounded."""
        return 100.0 * self.top1_correct / self.images

    @property
    def top5(self) -> float:
        """In percent, unrounded."""
        return 100.0 * self.top5_correct / self.images


def real(valset: ValSet) -> LabelSet:
    """The ReaL labels."""
    accepted = []
    for sample in valset.samples:
        number = official_number(sample.path)
        if number is None:
            raise DataError(
                f"--real-labels: {sample.path} has no official name (ILSVRC2012_val_00000001.JPEG "
                "to 00050000), which is needed to find its ReaL labels.\nOmit --real-labels."
            )
        accepted.append(real_labels()[number - 1])
    if not any(accepted):
        raise DataError(
            f"--real-labels: none of the {len(accepted)} images has a ReaL label.\n"
            "Omit --real-labels, or use more images."
        )
    return LabelSet("ReaL", tuple(accepted))


@functools.cache
def real_labels() -> tuple[frozenset[int], ...]:
    """The labels of ILSVRC2012_val_00000001.JPEG and the 49,999 that follow it."""
    rows = json.loads(timm_info("imagenet_real_labels.json"))
    return tuple(frozenset(labels) for labels in rows)


def score(label_set: LabelSet, top: NDArray[np.int64]) -> LabelScore:
    """Count the correct predictions; an image without a prediction counts as wrong.

    Args:
        label_set: the correct answers of N images.
        top: int64 (N, 5), the top classes of each image, best first; -1 where there is none.

    Raises:
        ValueError: the numbers of images differ, or no image counts.
    """
    if label_set.images == 0:
        raise ValueError(f"No image has a label of {label_set.name}.")
    return LabelScore(
        name=label_set.name,
        images=label_set.images,
        top1_correct=_hits(label_set, top[:, :1].tolist()),
        top5_correct=_hits(label_set, top.tolist()),
    )


def _hits(label_set: LabelSet, answers: list[list[int]]) -> int:
    rows = zip(label_set.accepted, answers, strict=True)
    return sum(not accepted.isdisjoint(row) for accepted, row in rows)
