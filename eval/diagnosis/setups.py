"""A setup: everything between an image file and a right or wrong prediction, as plain values.

Two setups that are equal give the same predictions, so that a change that changes nothing is seen
by comparing, and no setup is computed twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eval.diagnosis.pixels import Recipe
from eval.images.preprocess import MEAN, STD, torchvision_table

Table = NDArray[np.float32]


@dataclass(frozen=True)
class Setup:
    """How images are prepared, what computes the logits, and which of them is the right one.

    Attributes:
        recipe: from an image file to a crop.
        table: the normalized value of each level in each channel, float32 (256, 3), as bytes.
        order: ``rgb``, or ``bgr``: the channels of the normalized image are reversed.
        axes: ``hw``; ``wh``: height and width are swapped; ``flat``: rows of pixels taken for
            planes of channels, a reshape in place of a transpose.
        form: which form of the model.
        edits: changes to the model, names of `eval.diagnosis.edits.EDITS`.
        backend: what computes the logits.
        precision: in what.
        labels: in which order the model numbers the classes, see `eval.diagnosis.orders`.
    """

    recipe: Recipe
    table: bytes = field(repr=False)
    form: str
    backend: str = "torch"
    precision: str = "fp32"
    order: str = "rgb"
    axes: str = "hw"
    edits: tuple[str, ...] = ()
    labels: str = ""

    @property
    def model(self) -> tuple[str, tuple[str, ...], str, str]:
        """What has to be prepared before images can be computed."""
        return self.form, self.edits, self.backend, self.precision


@dataclass(frozen=True)
class Facts:
    """What changes may depend on.

    Attributes:
        size: of a side of the crop.
        own_table: the normalization of the model itself.
        forms: those that there are.
        edits: name of each edit that changes something, for each form.
        backends: others that can compute the same.
        has_precisions: whether the precision can be chosen; an exported file has its own.
        orders: name of each order of the classes that differs from ours, see `orders`.
    """

    size: int
    own_table: bytes = field(repr=False)
    forms: tuple[str, ...]
    edits: Mapping[str, frozenset[str]] = field(default_factory=dict)
    backends: tuple[str, ...] = ()
    has_precisions: bool = True
    orders: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)


def as_bytes(table: Table) -> bytes:
    """A table as a value that can be compared."""
    return np.ascontiguousarray(table, np.float32).tobytes()


def as_table(data: bytes) -> Table:
    """float32 (256, 3)."""
    return np.frombuffer(data, np.float32).reshape(256, 3)


def levels_table(mean: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Table:
    """Levels 0..255 with a mean subtracted and no division."""
    return np.arange(256, dtype=np.float32)[:, np.newaxis] - np.array(mean, np.float32)


TABLES: dict[str, bytes] = {
    name: as_bytes(table)
    for name, table in {
        "half": torchvision_table((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        "unit": torchvision_table((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        "levels": levels_table(),
        "imagenet": torchvision_table(),
        # openai/CLIP clip.py, _transform
        "clip": torchvision_table(
            (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        ),
        # BVLC/caffe: means of red, green and blue; the channels are reversed as well
        "caffe": levels_table((123.68, 116.779, 103.939)),
        "bgr-means": torchvision_table(MEAN[::-1], STD[::-1]),
    }.items()
}
