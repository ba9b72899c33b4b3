"""Can a result be believed? What a random sample of its rows says about all of them.

A row is what a result says about one image: the rank of its label and the best classes. Rows are
measured again; differences that rounding may explain are kept apart from those that it cannot.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
# How far a logit may differ between two machines, relative to the largest one. float32 sums in
# another order: 5e-5 at most was seen with weights that amplify it on purpose. The others are a few
# units of their last place; int8 rounds its activations.
NOISE = {"fp32": 1e-4, "fp16": 4e-3, "bf16": 3e-2, "int8": 3e-2}


@dataclass(frozen=True)
class Answer:
    """What a result says about one image.

    Attributes:
        rank: classes before the label.
        top: the best classes, best first; as many as are written down.
    """

    rank: int
    top: tuple[int, ...]


def measured_answer(logits: NDArray[np.float32], label: int, places: int) -> Answer:
    """The answer that logits (classes,) give."""
    lower = np.arange(len(logits)) < label
    rank = int(((logits > logits[label]) | ((logits == logits[label]) & lower)).sum())
    order = np.argsort(-logits, kind="stable")[:places]
    return Answer(rank, tuple(int(place) for place in order))


def is_near_tie(written: Answer, logits: NDArray[np.float32], label: int, noise: float) -> bool:
    """Whether noise on the logits could turn them into the written answer.

    Args:
        written: what the result says.
        logits: (classes,), measured again.
        label: the right class.
        noise: how far a logit may differ, relative to the largest one.
    """
    classes = len(logits)
    if not all(0 <= place < classes for place in written.top):
        return False
    margin = 2 * noise * max(1.0, float(np.abs(logits).max()))  # two logits may both be off
    own = logits[label]
    surely, perhaps = int((logits > own + margin).sum()), int((logits >= own - margin).sum()) - 1
    if not surely <= written.rank <= perhaps:
        return False
    top = list(written.top)
    if len(set(top)) < len(top):
        return False
    left = np.delete(np.arange(classes), top)
    best_left = logits[left].max(initial=-np.inf)
    falls = all(logits[a] >= logits[b] - margin for a, b in itertools.pairwise(top))
    return falls and bool(not top or logits[top[-1]] >= best_left - margin)
