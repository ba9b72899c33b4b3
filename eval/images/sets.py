"""Sets of test images with ILSVRC2012's classes: the validation set, and third-party sets.

    val       ILSVRC2012 validation, on which the reported figures were measured
    v2        ImageNetV2 (Recht et al., arXiv 1902.10811): folders 0 to 999 instead of synsets
    a         ImageNet-A (Hendrycks et al., arXiv 1907.07174): 200 of the classes
    r         ImageNet-R (Hendrycks et al., arXiv 2006.16241): 200 classes, 86 of them also in A
    sketch    ImageNet-Sketch (Wang et al., arXiv 1905.13549)

Images that show nothing of this are `UNIDENTIFIED`: they are measured, and compared with nothing.
On A and R, predictions are restricted to the set's 200 classes, as its authors and timm do. The
numbers of images are those of timm's results/README.md.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from eval.config import VAL_SET
from eval.images.classes import IMAGENET, ClassList
from eval.images.labels import VAL_IMAGES, has_official_name, official_number
from eval.text import timm_info

# ImageNet's validation set has some copies of its own: 29 were counted at 32x32 pixels
# (PatrykChrabaszcz/Imagenet32_Scripts issue 8).
_OWN_COPIES = 60
_SKETCH = re.compile(r"sketch_[0-9]+\.JPEG")
# A and R are recognized by their classes. More than they share, and more than chance would give:
# 100 classes picked at random are all among 200 of the 1000 with a probability below 1e-80.
_ENOUGH_CLASSES = range(100, 200 + 1)


@dataclass(frozen=True)
class ImageSet:
    """A set of test images.

    Attributes:
        name: as its authors call it.
        images: how many images the whole set has; None if that is not known.
        most: how many images the set has of each class, where that is the same for all.
        synsets: timm's list of its classes; None for all classes.
        is_judged: whether reported figures were measured on this set.
        note: what else is known about these images, such as who says that they are this set.
    """

    name: str
    images: int | None
    most: int | None = None
    synsets: str | None = None
    is_judged: bool = False
    note: str = ""

    @property
    def is_val(self) -> bool:
        """Whether it is the ILSVRC2012 validation set, or part of it."""
        return self.name == VAL_SET

    @property
    def classes(self) -> tuple[int, ...] | None:
        """The labels that predictions are restricted to, ascending; None for all."""
        return None if self.synsets is None else _labels(self.synsets)

    @property
    def title(self) -> str:
        """The name, and what else is known."""
        return f"{self.name} {self.note}".rstrip()

    @property
    def words(self) -> str:
        """The set and what is known about it; empty where the layout says it all."""
        if not self.note and self not in (*IMAGE_SETS[1:], UNIDENTIFIED):
            return ""
        restricted = "predictions restricted to its 200 classes" if self.synsets else ""
        return ", ".join(filter(None, (self.title, restricted)))


VAL = ImageSet(VAL_SET, 50_000, most=50, is_judged=True)
V2 = ImageSet("ImageNetV2", 10_000, most=10)
A = ImageSet("ImageNet-A", 7_500, synsets="imagenet_a_synsets.txt")
R = ImageSet("ImageNet-R", 30_000, synsets="imagenet_r_synsets.txt")
SKETCH = ImageSet("ImageNet-Sketch", 50_889)
IMAGE_SETS = (VAL, V2, A, R, SKETCH)
UNIDENTIFIED = ImageSet("unidentified images", images=None, most=VAL.most)
STATED = {"val": replace(VAL, note="as stated by --image-set val")}


def recognize(
    paths: Iterable[str],
    labels: Collection[int],
    *,
    numbered: bool = False,
    classes: ClassList = IMAGENET,
) -> ImageSet:
    """Recognize the set that the images are, or are part of.

    Images of other classes than ImageNet's are a set of their own. The validation set is
    recognized by its official names, on every image; ImageNetV2 by the names of its folders and
    files, Sketch by its file names, A and R by their classes: all or most of them and no others,
    without a single official file name. Labels are not looked at here: those of official names must
    agree (eval/images/valset.py).
    """
    if classes != IMAGENET:
        return ImageSet(classes.name, images=None)
    names = [path.rpartition("/")[2] for path in paths]
    if all(map(has_official_name, names)):
        return VAL
    if any(map(official_number, names)):
        return UNIDENTIFIED
    if numbered:
        return V2
    if all(_SKETCH.fullmatch(name) for name in names):
        return SKETCH
    found = set(labels)
    for each in (A, R):
        if len(found) in _ENOUGH_CLASSES and found <= set(each.classes or ()):
            return each
    return UNIDENTIFIED


def excess_copies(digests: Sequence[str]) -> int:
    """Images with the bytes of another one, if there are more than the validation set has.

    Args:
        digests: a hash of each image; "" where it is unknown.
    """
    known = [digest for digest in digests if digest]
    copies = len(known) - len(set(known))
    return copies if copies > _OWN_COPIES * len(digests) // VAL_IMAGES else 0


@functools.cache
def _labels(file: str) -> tuple[int, ...]:
    return tuple(sorted(IMAGENET.index_of[synset] for synset in timm_info(file).split()))
