"""A setup: everything between an image file and a correct or wrong prediction, as plain values.

Two setups that are equal give the same predictions, so that a change that changes nothing is seen
by comparing, and no setup is computed twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eval.recipe import Recipe


@dataclass(frozen=True)
class Setup:
    """How images are prepared, what computes the logits, and which class each of them is.

    Attributes:
        recipe: from an image file to the input of the model.
        axes: ``hw``; ``wh``: height and width are swapped; ``flat``: rows of pixels taken for
            planes of channels, a reshape in place of a transpose.
        edits: changes to the model, names of `eval.diagnosis.edits.EDITS`.
        labels: in which order the model numbers the classes, see `eval.diagnosis.orders`.
    """

    recipe: Recipe
    form: str
    backend: str = "torch"
    precision: str = "fp32"
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
        own: the recipe of the model itself.
        forms: those that there are.
        edits: name of each edit that changes something, for each form.
        backends: others that can compute the same.
        has_precisions: whether the precision can be chosen; an exported file has its own.
        orders: name of each order of the classes that differs from ours, see `orders`.
    """

    own: Recipe
    forms: tuple[str, ...]
    edits: Mapping[str, frozenset[str]] = field(default_factory=dict)
    backends: tuple[str, ...] = ()
    has_precisions: bool = True
    orders: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
