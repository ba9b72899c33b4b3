"""Orders in which a model may number the classes, other than ours.

An order gives, for each of our labels, the index of the output that a model of that order answers
with; -1 where it has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.images.classes import IMAGENET, ClassList, ilsvrc_ids
from eval.images.labels import official_labels
from eval.images.valset import ValSet

Order = NDArray[np.int64]


def orders(valset: ValSet, outputs: int) -> dict[str, Order]:
    """All orders that could be meant, by name; those that equal ours are left out.

    A name is the value of the hypothesis, and a number where the value has several readings.

    Args:
        valset: whose labels are ours; the whole set, not a sample of it.
        outputs: how many the model has.
    """
    classes = valset.classes
    found: dict[str, Order] = {}
    own = np.arange(len(classes))

    def add(name: str, order: Order) -> None:
        known = [own, *found.values()]
        if not any(np.array_equal(order, other) for other in known):
            found[name] = np.where(order < outputs, order, -1)

    add("plus-1", (own + 1) % max(outputs, len(classes)))
    add("minus-1", (own - 1) % len(classes))
    if outputs == len(classes) + 1:
        found["background-first"] = found.pop("plus-1")
    offset = outputs - len(classes) if outputs > len(classes) else 0
    if classes.rows == IMAGENET.rows:
        add("ilsvrc-id", position_of(ilsvrc_ids()) + offset)
    for number, ranking in enumerate(_by_name(classes), 1):
        add(f"name-order/{number}", position_of(ranking) + offset)
    there = sorted({sample.label for sample in valset.samples})
    if len(there) < len(classes):
        add("folder-order", position_of(there, len(classes)))
    add("list-order", position_of(_first_seen(valset), len(classes)) + offset)
    return found


def position_of(labels: Sequence[int], total: int | None = None) -> Order:
    """Where each label stands in a list of labels; -1 for those that are not in it."""
    position = np.full(total or len(labels), -1)
    position[list(labels)] = np.arange(len(labels))
    return position


def _by_name(classes: ClassList) -> Iterator[list[int]]:
    """Alphabetical by name: by all of it or its first word, as letters or as bytes."""
    names = [row.title for row in classes.rows]
    first = [name.partition(",")[0] for name in names]
    for words in (first, names):
        for spelled in (words, [word.replace(" ", "_") for word in words]):
            yield sorted(range(len(classes)), key=spelled.__getitem__)
            yield sorted(range(len(classes)), key=[word.casefold() for word in spelled].__getitem__)


def _first_seen(valset: ValSet) -> list[int]:
    """Classes in the order in which a flat list of the images first shows them."""
    if valset.classes.rows == IMAGENET.rows and valset.image_set.is_judged:
        return list(dict.fromkeys(official_labels()))
    return list(dict.fromkeys(sample.label for sample in valset.samples))
