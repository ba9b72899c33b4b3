"""A survey of a validation set: every image is read, hashed and decoded before hours are spent.

Each image is decoded in full by both decoders that the evaluation uses.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from eval.errors import UnreadableImage
from eval.images.decoders import exact_decoders
from eval.images.labels import shown
from eval.images.layouts.tar import OFFICIAL_MD5
from eval.images.preprocess import PREPROCESS, BadImage
from eval.images.sets import UNIDENTIFIED, excess_copies
from eval.images.valset import ValSet, fingerprint

# A set with at least this share of its images is meant to be complete; a smaller one is a choice.
_MEANT_TO_BE_WHOLE = 0.9
_BATCH = 16  # images per task of a thread
_SHOWN = 10  # rows of a list, in text
_ORIENTATION = 0x0112  # EXIF; 1 is upright
_SHORT = 256  # pixels: what the short side is resized to


class Look(NamedTuple):
    """What was found out about one image file."""

    digest: str  # SHA-256, hexadecimal; "" if the file cannot be read
    problem: str  # why the image cannot be evaluated, or ""
    oddities: tuple[str, ...]  # properties that decoders may treat differently


@dataclass(frozen=True)
class Survey:
    """What was found out about a validation set.

    Attributes:
        tar_md5: MD5 of the tar that it is, hexadecimal; "" if it is none.
    """

    valset: ValSet
    looks: Sequence[Look]
    tar_md5: str = ""

    @cached_property
    def images_per_class(self) -> list[int]:
        """Number of images of each label."""
        counts = Counter(sample.label for sample in self.valset.samples)
        return [counts[label] for label in range(len(self.valset.classes))]

    @cached_property
    def unreadable(self) -> list[tuple[str, str]]:
        """Path and reason."""
        rows = zip(self.valset.samples, self.looks, strict=True)
        return [(sample.path, look.problem) for sample, look in rows if look.problem]

    @cached_property
    def duplicates(self) -> list[list[str]]:
        """Paths of images with the same bytes."""
        paths = defaultdict(list)
        for sample, look in zip(self.valset.samples, self.looks, strict=True):
            if look.digest:
                paths[look.digest].append(sample.path)
        return [group for group in paths.values() if len(group) > 1]

    @property
    def oddities(self) -> dict[str, int]:
        """Each unusual property and how many images have it, most frequent first."""
        counts = Counter(oddity for look in self.looks for oddity in look.oddities)
        return dict(counts.most_common())

    @property
    def dataset_sha256(self) -> str | None:
        """The fingerprint that ``run.json`` has; None if an image cannot be read."""
        digests = [look.digest for look in self.looks]
        return fingerprint(self.valset.samples, digests) if all(digests) else None

    @property
    def expected(self) -> int | None:
        """Number of images of the whole set; None if that is not known."""
        return self.valset.image_set.images

    @property
    def classes_expected(self) -> int:
        """Number of classes of the whole set."""
        return len(self.valset.classes if self.valset.among is None else self.valset.among)

    @property
    def complete(self) -> bool | None:
        """Whether it is the whole set, with all images of each class; None if that is unknown."""
        if self.expected is None:
            return None
        most = self.valset.image_set.most
        counts = set(self.images_per_class)
        return len(self.looks) == self.expected and (most is None or counts == {most})

    @cached_property
    def problems(self) -> list[str]:
        """What is wrong and what to do about it; empty if the set is ready to evaluate."""
        found = []
        images = len(self.looks)
        if self.unreadable:
            found.append(
                f"{_count(len(self.unreadable), 'image')} cannot be decoded: replace with intact "
                "copies; no image may be left out."
            )
        if self.expected is None:  # a set that we know nothing about may have copies
            return found
        surplus = excess_copies([look.digest for look in self.looks])
        if surplus:
            found.append(
                f"{_count(surplus, 'image')} duplicated under another name: get the right "
                "files for those names."
            )
        if _MEANT_TO_BE_WHOLE * self.expected <= images < self.expected:
            found.append(f"{_count(self.expected - images, 'image')} missing: complete the copy.")
        return found

    @property
    def advice(self) -> str:
        """What to do now, in one line."""
        images = len(self.looks)
        image_set = self.valset.image_set
        if self.problems:
            return "Not ready to evaluate: " + " ".join(self.problems)
        if image_set.name == UNIDENTIFIED.name:
            return (
                f"Ready to evaluate: {_count(images, 'image')} that do not show which set they "
                "are, so that nothing is compared. --image-set val states that they are the "
                "ILSVRC2012 validation set."
            )
        if self.expected is None:
            return (
                f"Ready to evaluate: {_count(images, 'image')} of the classes in "
                f"{image_set.name}, with python -m eval.imagenet --classes."
            )
        if self.complete:
            name = "validation set" if image_set.is_val else image_set.name
            return f"Ready to evaluate: the whole {name}, with python -m eval.imagenet."
        return (
            f"Ready to evaluate as a partial set, {images:,} of {self.expected:,} images: "
            "python -m eval.imagenet gives the verdict PARTIAL."
        )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def look_at(data: bytes) -> Look:
    """Decode an image file with both decoders, and describe it."""
    digest = hashlib.sha256(data).hexdigest()
    try:
        PREPROCESS["torchvision"].crop(data)
        PREPROCESS["paddle"].crop(data)
    except BadImage as error:
        return Look(digest, str(error), ())
    return Look(digest, "", tuple(_oddities(data)))


def _oddities(data: bytes) -> list[str]:
    """What is unusual about an image that can be decoded."""
    found = []
    with Image.open(io.BytesIO(data)) as image:
        if image.mode != "RGB":
            names = {"L": "grayscale", "CMYK": "CMYK"}
            found.append(names.get(image.mode, f"mode {image.mode}"))
        if image.format not in ("JPEG", "MPO"):  # MPO is a JPEG with a second picture
            found.append(f"{image.format} format")
        try:
            if image.getexif().get(_ORIENTATION, 1) != 1:
                found.append("EXIF orientation")
        except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
            found.append("damaged EXIF")
        if min(image.size) < _SHORT:
            found.append(f"short side under {_SHORT}")
    return found


def survey(
    valset: ValSet, workers: int | None = None, progress: Callable[[int], object] | None = None
) -> Survey:
    """Read and decode every image in threads; `progress` is given the number of each batch."""
    samples = valset.samples
    tar_md5 = _md5(valset.root) if valset.root.suffix == ".tar" and valset.root.is_file() else ""

    def look_at_batch(start: int) -> list[Look]:
        looks = []
        for sample in samples[start : start + _BATCH]:
            try:
                looks.append(look_at(valset.read(sample.path)))
            except UnreadableImage as error:
                looks.append(Look("", str(error).partition("\n")[0], ()))
        return looks

    looks: list[Look] = []
    with warnings.catch_warnings(), exact_decoders(), ThreadPoolExecutor(workers) as pool:
        # Pillow warns of corrupt EXIF and large images, once for each place in its code.
        warnings.simplefilter("ignore")
        try:
            for batch in pool.map(look_at_batch, range(0, len(samples), _BATCH)):
                looks += batch
                if progress:
                    progress(len(batch))
        finally:
            pool.shutdown(cancel_futures=True)
    return Survey(valset, looks, tar_md5)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def to_json(seen: Survey) -> dict[str, Any]:
    """The survey for scripts: the facts, `ok`, the `problems` and the `advice`."""
    counts = seen.images_per_class
    return {
        "ok": not seen.problems,
        "complete": seen.complete,
        "layout": seen.valset.layout,
        "images": len(seen.looks),
        "images_expected": seen.expected,
        "classes": sum(count > 0 for count in counts),
        "classes_expected": seen.classes_expected,
        "images_per_class": {
            row.folder: count for row, count in zip(seen.valset.classes.rows, counts, strict=True)
        },
        "unreadable": [{"path": path, "reason": reason} for path, reason in seen.unreadable],
        "duplicates": seen.duplicates,
        "oddities": seen.oddities,
        "dataset_sha256": seen.dataset_sha256,
        "problems": seen.problems,
        "advice": seen.advice,
    }


def to_text(seen: Survey) -> str:
    """The survey as text for people."""
    present = [count for count in seen.images_per_class if count]
    fewest, most = min(present), max(present)
    each = f"{most}" if fewest == most else f"{fewest} to {most}"
    unreadable = [f"{shown(path)}: {shown(reason)}" for path, reason in seen.unreadable]
    duplicates = [" = ".join(map(shown, group)) for group in seen.duplicates]
    odd = ", ".join(f"{count:,} {name}" for name, count in seen.oddities.items())
    of_all = "" if seen.expected is None else f" of {seen.expected:,}"
    lines = [
        f"layout       {seen.valset.layout}",
        *([f"MD5 of tar   {_tar(seen.tar_md5)}"] if seen.tar_md5 else []),
        f"images       {len(seen.looks):,}{of_all}",
        f"classes      {len(present):,} of {seen.classes_expected:,}, images per class: {each}",
        f"unreadable   {_list(unreadable)}",
        f"duplicates   {_list(duplicates)}",
        f"unusual      {odd or 'none'}",
        f"fingerprint  {seen.dataset_sha256 or 'none: some images cannot be read'}",
        "",
        seen.advice,
    ]
    return "\n".join(lines)


def _tar(md5: str) -> str:
    return f"{md5}: {'the official tar' if md5 == OFFICIAL_MD5 else 'not the official tar'}"


def _list(rows: Sequence[str]) -> str:
    if not rows:
        return "none"
    more = [f"... and {len(rows) - _SHOWN:,} more"] if len(rows) > _SHOWN else []
    return "\n    ".join([f"{len(rows):,}", *rows[:_SHOWN], *more])
