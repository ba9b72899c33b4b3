"""What predictions made elsewhere are, and how they are matched with images.

Classes are identified by index, since their names are not unique ("crane" is 134 and 517), and
images by file name, never by their position in a list.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.errors import DataError, LogitsError
from eval.images.labels import examples, image_key, shown
from eval.images.valset import Sample
from eval.metrics import TOP, Kind, Scores, check_logits, kind_of, together

CHUNK = 2048  # images whose logits are sorted at a time

_INDEX = re.compile(r" *([0-9]{1,9})(?:\.0*)? *")  # tables with gaps have whole numbers as 65.0


# Columns of true labels, by name: the name of an image, as it is written, to its cell.
Stated = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Ranked:
    """The top classes of each image.

    Attributes:
        names: of the images, as they are written.
        classes: int64 (N, K), best first.
        prob: float64 (N, K), or None if they are not given or are not probabilities.
        known: the largest k of which the top-k is known: 5, or K if that is less and there are
            more classes.
        stated: see `Logits`.
    """

    names: tuple[str, ...]
    classes: NDArray[np.int64]
    prob: NDArray[np.float64] | None
    known: int = TOP
    stated: Stated = field(default_factory=dict)

    @property
    def description(self) -> str:
        """What is known about each image, for the report."""
        places = self.classes.shape[1]
        listed = f"{places} top classes" if places > 1 else "the top class alone"
        unknown = "; top-5 is unknown" if self.known < TOP else ""
        return f"{listed}; rank {places} means {places} or more{unknown}"

    def scores(self, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> Scores:
        """Score rows (B,) against labels (B,); a label that is not listed has rank K."""
        classes = self.classes[rows]
        hit = classes == labels[:, np.newaxis]
        places = classes.shape[1]
        scores = replace(Scores.empty(len(rows)), known=self.known, listed=places)
        scores.rank[:] = np.where(hit.any(axis=1), hit.argmax(axis=1), places)
        places = min(TOP, places)
        scores.top[:, :places] = classes[:, :places]
        if self.prob is not None:
            scores.prob[:, :places] = self.prob[rows, :places]
        return scores


@dataclass(frozen=True)
class Logits:
    """A value for each class of each image.

    Attributes:
        names: of the images, as they are written.
        values: (N, classes), logits or probabilities of any numeric type.
        kind: what they are.
        stated: what the file says about the true labels.
    """

    names: tuple[str, ...]
    values: NDArray[Any]
    kind: Kind
    stated: Stated = field(default_factory=dict)

    @property
    def description(self) -> str:
        """What is known about each image, for the report."""
        return f"{self.kind.words or self.kind} (of all classes, {self.values.dtype})"

    def scores(self, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> Scores:
        """Score rows (B,) against labels (B,)."""
        scores = Scores.empty(len(rows))
        for start in range(0, len(rows), CHUNK):
            where = np.arange(start, min(start + CHUNK, len(rows)))
            values = self.values[rows[where]].astype(np.float64)
            scores.put(where, Scores.of(values, labels[where], kind=self.kind))
        return scores


Answers = Ranked | Logits


def match(names: Sequence[str], samples: Sequence[Sample]) -> dict[int, int]:
    """Find the prediction for each image by the image's name, whatever its folder and suffix.

    A backslash separates folders, unless an image of the validation set has it in its name.

    Returns:
        Index of the sample to index of the name; images without a prediction are left out.
    """
    sample_of = {image_key(sample.path): i for i, sample in enumerate(samples)}
    if len(sample_of) < len(samples):
        raise DataError(
            "--data has images of the same name in different folders: predictions are matched by "
            "file name.\nRename the images."
        )
    keys = [_key(name, sample_of) for name in names]
    twice = [name for name, number in Counter(keys).items() if number > 1]
    if twice:
        raise DataError(
            f"Predicted more than once: {examples(twice)}.\n"
            "Did a second run append to the file? Remove it and predict again."
        )
    unknown = [name for name, key in zip(names, keys, strict=True) if key not in sample_of]
    if unknown:
        raise DataError(
            f"Not in --data: {examples(unknown)}.\n"
            "Name the validation set that the predictions were made on."
        )
    return {sample_of[key]: row for row, key in enumerate(keys)}


def _key(name: str, known: Container[str]) -> str:
    """`image_key` of an image, or of a file that was made from one."""
    name = re.sub(r"\.(npz|npy|bin|txt)$", "", name.strip())
    key = image_key(name)
    return key if key in known else image_key(name.replace("\\", "/"))


def ranked(
    path: Path,
    names: Sequence[str],
    classes: Sequence[Sequence[str]],
    prob: Sequence[Sequence[str]] | None,
    count: int,
) -> Ranked:
    """Check the ranked classes of each image.

    Args:
        path: for messages.
        names: of the images.
        classes: of each image, best first; an image without any has no prediction.
        prob: of each of those classes, if given.
        count: how many classes there are.
    """
    predicted = [row for row, cells in enumerate(classes) if cells]
    if not predicted:
        raise DataError(f"{path} contains no predictions.\nDid the tool stop early?")
    names, classes = [names[row] for row in predicted], [classes[row] for row in predicted]
    prob = None if prob is None else [prob[row] for row in predicted]
    places = len(classes[0])
    for name, row in zip(names, classes, strict=True):
        if len(row) != places:
            raise DataError(
                f"{path}: {len(row)} ranked classes for {shown(name)}, {places} for "
                f"{shown(names[0])}.\nAll images need the same number of ranked classes."
            )
        for cell in row:
            index = _INDEX.fullmatch(cell)
            if not index or int(index[1]) >= count:
                raise DataError(
                    f"{path}: {shown(name)} has class {shown(cell)}; classes are 0 to "
                    f"{count - 1}.\n"
                    + (
                        "If the model has a background class as class 0, subtract 1 first."
                        if index
                        else "Write the index of the class: its place in the list, from 0."
                    )
                )
        if len({int(float(cell)) for cell in row}) < places:
            raise DataError(f"{path}: {shown(name)} has a class twice: {' '.join(row)}.")
    table = np.array([[int(float(cell)) for cell in row] for row in classes], dtype=np.int64)
    known = TOP if places >= min(TOP, count) else places
    return Ranked(tuple(names), table, _probabilities(path, names, prob), known)


def logits(names: Sequence[str], values: NDArray[Any]) -> Logits:
    """Check the outputs of each image.

    Args:
        names: of the images.
        values: (N, classes), of any numeric type.

    Raises:
        LogitsError: values are not finite, or the same for every class.
    """
    kinds = set()
    for start in range(0, len(values), CHUNK):
        with np.errstate(invalid="ignore"):  # NaN is found by the check
            chunk = values[start : start + CHUNK].astype(np.float64)
        check_logits(chunk, list(names[start : start + CHUNK]))
        kinds.add(kind_of(chunk))
    return Logits(tuple(names), values, together(kinds))


def _probabilities(
    path: Path, names: Sequence[str], cells: Sequence[Sequence[str]] | None
) -> NDArray[np.float64] | None:
    """The numbers beside the classes, if they can be probabilities; they must not increase."""
    if cells is None or not all(cells) or any(not cell.strip() for row in cells for cell in row):
        return None
    try:
        values = np.array([[float(cell) for cell in row] for row in cells])
    except ValueError as error:
        raise DataError(f"{path}: {error}.\nProbabilities are numbers.") from None
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values).all(axis=1)))
        raise LogitsError(f"{path}: the prediction for {shown(names[row])} is NaN or infinite.")
    rises = (np.diff(values, axis=1) > 0).any(axis=1)
    if rises.any():
        raise DataError(
            f"{path}: the classes of {shown(names[int(rises.argmax())])} are not best first: a "
            f"later one is more probable ({int(rises.sum()):,} such images).\n"
            "Sort the classes of each image by probability."
        )
    return values if (values >= 0).all() and (values.sum(axis=1) < 1.01).all() else None
