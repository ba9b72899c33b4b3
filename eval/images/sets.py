"""Sets of test images with ILSVRC2012's classes: the val set, and those that others made since.

    val       ILSVRC2012 validation: what the reported figures are of
    v2        ImageNetV2 (Recht et al., arXiv 1902.10811): folders 0 to 999 instead of synsets
    a         ImageNet-A (Hendrycks et al., arXiv 1907.07174): 200 of the classes
    r         ImageNet-R (Hendrycks et al., arXiv 2006.16241): 200 others
    sketch    ImageNet-Sketch (Wang et al., arXiv 1905.13549)

A model's answers to A and R are taken among the 200 classes that the set has, as its authors and
timm do. Sizes are those of timm's results/README.md.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from eval.images.classes import label_of_synset
from eval.images.labels import official_number

_SKETCH = re.compile(r"sketch_[0-9]+\.JPEG")


@dataclass(frozen=True)
class ImageSet:
    """What a set of test images is.

    Attributes:
        name: as its authors call it.
        images: how many it has.
        most: the most that it has of one class, where that is the same for all.
        synsets: timm's list of its classes; None for all 1000.
        is_judged: whether reported figures are of this set.
    """

    name: str
    images: int | None
    most: int | None = None
    synsets: str | None = None
    is_judged: bool = False

    @property
    def classes(self) -> tuple[int, ...] | None:
        """The labels that answers are taken among, ascending; None for all."""
        return None if self.synsets is None else _labels(self.synsets)

    @property
    def words(self) -> str:
        """For the layout's line; empty for the val set."""
        if self is VAL:
            return ""
        return self.name if self.synsets is None else f"{self.name}, answers among its 200 classes"


VAL = ImageSet("ILSVRC2012 validation", 50_000, most=50, is_judged=True)
V2 = ImageSet("ImageNetV2", 10_000, most=10)
A = ImageSet("ImageNet-A", 7_500, synsets="imagenet_a_synsets.txt")
R = ImageSet("ImageNet-R", 30_000, synsets="imagenet_r_synsets.txt")
SKETCH = ImageSet("ImageNet-Sketch", 50_889)
IMAGE_SETS = (VAL, V2, A, R, SKETCH)


def recognise(paths: Iterable[str], labels: Collection[int], numbered: bool) -> ImageSet:
    """Tell which set it is.

    ImageNetV2 is known by its folders, Sketch by its file names, A and R by having exactly their
    classes and no official file names. All else is the val set, or part of it.

    Args:
        paths: of the images.
        labels: that they have.
        numbered: whether the folders are 0 to 999.
    """
    names = [path.rpartition("/")[2] for path in paths]
    if any(official_number(name) for name in names):
        return VAL
    if numbered:
        return V2
    if all(_SKETCH.fullmatch(name) for name in names):
        return SKETCH
    found = set(labels)
    for each in (A, R):
        if each.classes is not None and found == set(each.classes):
            return each
    return VAL


@functools.cache
def _labels(file: str) -> tuple[int, ...]:
    text = (importlib.resources.files("timm.data") / "_info" / file).read_text(encoding="utf-8")
    return tuple(sorted(label_of_synset()[synset] for synset in text.split()))
