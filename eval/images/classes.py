"""The 1000 classes of ILSVRC2012: label index = position in the sorted list of synsets."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from functools import cached_property
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


class Class(NamedTuple):
    """A class of a model."""

    folder: str  # name of the folder that its images are in: a synset, for ImageNet
    title: str  # what people call it


@dataclass(frozen=True)
class ClassList:
    """The classes that a model tells apart, in index order.

    Attributes:
        name: where the list is from.
        rows: the classes.
    """

    name: str
    rows: tuple[Class, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def index_of(self) -> dict[str, int]:
        """Folder to class index."""
        return {row.folder: index for index, row in enumerate(self.rows)}

    def title(self, label: int) -> str:
        """A short name that is unique: two of ImageNet's classes are called "crane"."""
        return f"{self.rows[label].title.partition(',')[0]} ({label})"


@functools.cache
def imagenet() -> ClassList:
    """The 1000 classes of ILSVRC2012."""
    return ClassList("ILSVRC2012", tuple(Class(*row) for row in imagenet_classes()))
