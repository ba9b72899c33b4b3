"""The 1000 classes of ILSVRC2012: label index = position in the sorted list of synsets."""

from __future__ import annotations

import csv
import functools
from importlib import resources
from typing import NamedTuple


class ImageNetClass(NamedTuple):
    """One class."""

    synset: str  # WordNet id, n and eight digits
    name: str  # its lemmas; not unique ("crane" is 134 and 517)


@functools.cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """All 1000, in label order. Source of the names: WordNet 3.0, as timm ships them."""
    file = resources.files("eval").joinpath("resources/classes.csv")
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return tuple(ImageNetClass(row["synset"], row["name"]) for row in rows)


@functools.cache
def label_of_synset() -> dict[str, int]:
    """Synset to label index."""
    return {row.synset: label for label, row in enumerate(imagenet_classes())}
