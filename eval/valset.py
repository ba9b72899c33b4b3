"""A val set: which images there are, what they show, and how to get their bytes.

Labels come from the fixed 1000 synsets, never from the folders that happen to be there. A layout
is a function from a path to a `ValSet`; what follows sees names, labels and bytes only.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from eval.classes import imagenet_classes, label_of_synset
from eval.errors import DataError

IMAGES_PER_CLASS = 50
_SYNSET = re.compile(r"n\d{8}")
_IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"}


@dataclass(frozen=True)
class Sample:
    """One image."""

    path: str  # inside the val set, with forward slashes
    label: int  # 0..999

    @property
    def name(self) -> str:
        """The file's name, the same in every layout."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class ValSet:
    """Images in their final order: sorted by path.

    Attributes:
        root: what the user named.
        layout: how it is kept, in words.
        samples: the images; an image's index is its position here.
        read: gives the bytes of a file, by the `path` of its sample.
    """

    root: Path
    layout: str
    samples: tuple[Sample, ...]
    read: Callable[[str], bytes]

    def limited(self, n: int) -> ValSet:
        """The first n images of a fixed shuffled order, sorted again.

        The order is that of the SHA-256 of the file names: the same on every machine, and a
        larger limit holds the smaller one.
        """
        shuffled = sorted(self.samples, key=lambda sample: _sha256(sample.name.encode()))
        return replace(self, samples=tuple(sorted(shuffled[:n], key=lambda s: s.path)))


def fingerprint(samples: Iterable[Sample], digests: Iterable[str]) -> str:
    """SHA-256 of a set of images: their names, labels and contents, whatever folder they are in.

    Args:
        samples: the images.
        digests: SHA-256 of their files, in the same order.
    """
    lines = (
        f"{sample.name} {sample.label} {digest}\n"
        for sample, digest in zip(samples, digests, strict=True)
    )
    return _sha256("".join(sorted(lines)).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def open_valset(root: Path) -> ValSet:
    """Find the images and labels of a val set.

    Raises:
        DataError: there is none, or it cannot be the ILSVRC2012 validation set.
    """
    if not root.exists():
        raise DataError(f"--data {root}: there is no such folder.")
    if not root.is_dir():
        raise DataError(f"--data {root} is a file; a folder of synset folders is needed.")
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    if any(_SYNSET.fullmatch(name) for name in folders):
        return _synset_folders(root, folders)
    seen = ", ".join(sorted(entry.name for entry in root.iterdir())[:3]) or "nothing"
    raise DataError(
        f"--data {root} has no synset folders (n01440764, ...): it holds {seen}.\n"
        "Name the folder that holds the 1000 class folders."
    )


def _synset_folders(root: Path, folders: list[str]) -> ValSet:
    label_of = label_of_synset()
    synsets = [name for name in folders if _SYNSET.fullmatch(name)]
    unknown = [name for name in synsets if name not in label_of]
    if unknown:
        raise DataError(
            f"--data {root}: {', '.join(unknown[:3])} ({len(unknown)} in all) are not among the "
            "1000 classes of ILSVRC2012.\nThis is another set of classes, or stray folders: move "
            "them away."
        )
    samples = sorted(
        (
            Sample(f"{synset}/{entry.name}", label_of[synset])
            for synset in synsets
            for entry in os.scandir(root / synset)
            if os.path.splitext(entry.name)[1].lower() in _IMAGE_SUFFIXES
            and not entry.name.startswith(".")
        ),
        key=lambda sample: sample.path,
    )
    if not samples:
        raise DataError(f"--data {root}: its {len(synsets)} synset folders hold no images.")
    _check_counts(root, samples)
    return ValSet(
        root,
        f"{len(synsets)} synset folders",
        tuple(samples),
        lambda path: (root / path).read_bytes(),
    )


def _check_counts(root: Path, samples: list[Sample]) -> None:
    """More images than the val set has, or as many but not 50 each, cannot be the val set."""
    counts = Counter(sample.label for sample in samples)
    label, most = counts.most_common(1)[0]
    if most > IMAGES_PER_CLASS:
        raise DataError(
            f"--data {root}: {most} images of {imagenet_classes()[label].synset}, "
            f"{len(samples)} in all; the val set has {IMAGES_PER_CLASS} of each class.\n"
            "Is this the training set, or were images copied twice?"
        )
