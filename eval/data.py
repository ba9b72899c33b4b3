"""``python -m eval.data``: look a val set over before hours are spent on it.

Every image is read, hashed and decoded in full by both decoders that the evaluation has.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import struct
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from eval.cli import program
from eval.config import IMAGENET_VAL_IMAGES
from eval.errors import DataError, EvalError
from eval.images.sets import VAL

if TYPE_CHECKING:  # decoders take a while to import: --help and wrong options do without
    from eval.images.valset import ValSet

CLASSES = 1000
INTERRUPTED = 130

# The set itself has some: 29 at 32x32 pixels (PatrykChrabaszcz/Imagenet32_Scripts issue 8).
_OWN_DUPLICATES = 60
# With that many of its images, a set is meant to be whole; with fewer, somebody's choice.
_MEANT_TO_BE_WHOLE = 0.9
_BATCH = 16  # images for a task of a thread
_SHOWN = 10  # rows of a list, in text
_ORIENTATION = 0x0112  # EXIF; 1 is upright


class Look(NamedTuple):
    """What one image file turned out to be."""

    digest: str  # SHA-256, hexadecimal; "" if it could not be read
    problem: str  # why it cannot be evaluated, or ""
    oddities: tuple[str, ...]  # what decoders may differ in


@dataclass(frozen=True)
class Survey:
    """All that was seen of a val set; `looks` are in the order of its samples."""

    valset: ValSet
    looks: Sequence[Look]

    @cached_property
    def images_per_class(self) -> list[int]:
        """Number of images of each label."""
        counts = Counter(sample.label for sample in self.valset.samples)
        return [counts[label] for label in range(CLASSES)]

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
        """How many images are unusual in which way, most frequent first."""
        counts = Counter(oddity for look in self.looks for oddity in look.oddities)
        return dict(counts.most_common())

    @property
    def dataset_sha256(self) -> str | None:
        """The fingerprint that ``run.json`` has; None if some image could not be read."""
        from eval.images.valset import fingerprint

        digests = [look.digest for look in self.looks]
        return fingerprint(self.valset.samples, digests) if all(digests) else None

    @property
    def expected(self) -> int:
        """Images of the whole set."""
        return self.valset.image_set.images or len(self.looks)

    @property
    def complete(self) -> bool:
        """Whether it is the whole set, with as many images of each class as it should have."""
        most = self.valset.image_set.most
        return len(self.looks) == self.expected and (
            most is None or self.images_per_class == [most] * CLASSES
        )

    @cached_property
    def problems(self) -> list[str]:
        """What is wrong and what to do about it; empty where a run may start."""
        found = []
        images = len(self.looks)
        if self.unreadable:
            found.append(
                f"{len(self.unreadable):,} images cannot be decoded: replace them with intact "
                "copies; none may be left out."
            )
        surplus = sum(len(group) - 1 for group in self.duplicates)
        if surplus > _OWN_DUPLICATES * images // IMAGENET_VAL_IMAGES:
            found.append(
                f"{surplus:,} images are copies of others: get those again under their own names."
            )
        if _MEANT_TO_BE_WHOLE * self.expected <= images < self.expected:
            found.append(f"{self.expected - images:,} images are missing: complete the copy.")
        return found

    @property
    def advice(self) -> str:
        """What to do now, in one line."""
        images = len(self.looks)
        if self.problems:
            return "Not fit for a run: " + " ".join(self.problems)
        if self.complete:
            name = "validation set" if self.valset.image_set is VAL else self.valset.image_set.name
            return f"This is the whole {name}, fit for python -m eval.imagenet."
        return (
            f"A sound partial set, {images:,} of {self.expected:,} images: python -m eval.imagenet "
            "runs on it, with the verdict PARTIAL."
        )


def look_at(data: bytes) -> Look:
    """Decode an image file with both decoders, and describe it."""
    from eval.images.preprocess import PREPROCESS, BadImage

    digest = hashlib.sha256(data).hexdigest()
    try:
        PREPROCESS["torchvision"].crop(data)
        PREPROCESS["paddle"].crop(data)
    except BadImage as error:
        return Look(digest, str(error), ())
    return Look(digest, "", tuple(_oddities(data)))


def _oddities(data: bytes) -> list[str]:
    """What is unusual about an image that can be decoded."""
    from PIL import Image

    from eval.images.preprocess import RESIZE

    found = []
    with Image.open(io.BytesIO(data)) as image:
        if image.mode != "RGB":
            names = {"L": "greyscale", "CMYK": "CMYK"}
            found.append(names.get(image.mode, f"mode {image.mode}"))
        if image.format not in ("JPEG", "MPO"):  # MPO is a JPEG with a second picture
            found.append(f"{image.format} format")
        try:
            if image.getexif().get(_ORIENTATION, 1) != 1:
                found.append("EXIF orientation")
        except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
            found.append("damaged EXIF")
        if min(image.size) < RESIZE:
            found.append(f"short side under {RESIZE}")
    return found


def survey(
    valset: ValSet,
    workers: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Survey:
    """Look at every image of a val set, in threads.

    Args:
        valset: the images.
        workers: threads; None for a number that suits the machine.
        progress: called with each number of images done.
    """
    samples = valset.samples

    def look_at_batch(start: int) -> list[Look]:
        looks = []
        for sample in samples[start : start + _BATCH]:
            try:
                looks.append(look_at(valset.read(sample.path)))
            except DataError as error:
                looks.append(Look("", str(error).partition("\n")[0], ()))
        return looks

    looks: list[Look] = []
    with ThreadPoolExecutor(workers) as pool:
        try:
            for batch in pool.map(look_at_batch, range(0, len(samples), _BATCH)):
                looks += batch
                if progress:
                    progress(len(batch))
        finally:
            pool.shutdown(cancel_futures=True)
    return Survey(valset, looks)


def to_json(seen: Survey) -> dict[str, Any]:
    """What scripts need: the facts, `ok`, the `problems` and the `advice`."""
    from eval.images.classes import imagenet_classes

    counts = seen.images_per_class
    return {
        "ok": not seen.problems,
        "complete": seen.complete,
        "layout": seen.valset.layout,
        "images": len(seen.looks),
        "images_expected": seen.expected,
        "classes": sum(count > 0 for count in counts),
        "classes_expected": _classes(seen),
        "images_per_class": {
            row.synset: count for row, count in zip(imagenet_classes(), counts, strict=True)
        },
        "unreadable": [{"path": path, "reason": reason} for path, reason in seen.unreadable],
        "duplicates": seen.duplicates,
        "oddities": seen.oddities,
        "dataset_sha256": seen.dataset_sha256,
        "problems": seen.problems,
        "advice": seen.advice,
    }


def to_text(seen: Survey) -> str:
    """The same for a person."""
    from eval.images.labels import shown

    present = [count for count in seen.images_per_class if count]
    fewest, most = min(present), max(present)
    each = f"{most}" if fewest == most else f"{fewest} to {most}"
    unreadable = [f"{shown(path)}: {shown(reason)}" for path, reason in seen.unreadable]
    duplicates = [" = ".join(map(shown, group)) for group in seen.duplicates]
    odd = ", ".join(f"{count:,} {name}" for name, count in seen.oddities.items())
    lines = [
        f"layout       {seen.valset.layout}",
        f"images       {len(seen.looks):,} of {seen.expected:,}",
        f"classes      {len(present):,} of {_classes(seen):,}, images of a class: {each}",
        f"unreadable   {_list(unreadable)}",
        f"duplicates   {_list(duplicates)}",
        f"unusual      {odd or 'none'}",
        f"fingerprint  {seen.dataset_sha256 or 'none: some images cannot be read'}",
        "",
        seen.advice,
    ]
    return "\n".join(lines)


def _classes(seen: Survey) -> int:
    """How many classes the whole set has."""
    classes = seen.valset.image_set.classes
    return CLASSES if classes is None else len(classes)


def _list(rows: Sequence[str]) -> str:
    if not rows:
        return "none"
    more = [f"... and {len(rows) - _SHOWN:,} more"] if len(rows) > _SHOWN else []
    return "\n    ".join([f"{len(rows):,}", *rows[:_SHOWN], *more])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code: 0, or 3 where something is wrong."""
    args = _parser().parse_args(argv)
    try:
        seen = _run(args)
    except EvalError as error:
        if args.json:
            document = {"ok": False, "problems": [str(error)], "advice": str(error)}
            print(json.dumps({"data": str(args.data), **document}, indent=2))
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: the val set was not looked over to its end", file=sys.stderr)
        return INTERRUPTED
    if args.json:
        print(json.dumps({"data": str(args.data), **to_json(seen)}, indent=2))
    else:
        print(to_text(seen))
    return DataError.exit_code if seen.problems else 0


def _run(args: argparse.Namespace) -> Survey:
    from tqdm import tqdm

    from eval.images.valset import open_valset

    valset = open_valset(args.data, args.labels)
    with (
        warnings.catch_warnings(),
        tqdm(total=len(valset.samples), unit="img", disable=args.quiet) as bar,
    ):
        # Pillow warns of corrupt EXIF and large images, once for each place in its code.
        warnings.simplefilter("ignore")
        return survey(valset, args.workers, bar.update)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("data"),
        description="Look a val set over: its layout, labels, counts, copies, and every image.",
        epilog="Exit codes: 0 fit for a run, though perhaps a part of the set; 2 usage; 3 not.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="PATH", required=True,
        help="synset folders, a folder of ILSVRC2012_val_*.JPEG, their tar, Kaggle's tree, or "
        "parquet shards")  # fmt: skip
    add("--labels", type=Path, metavar="FILE",
        help="`name index` list or ground-truth file; official labels are built in")  # fmt: skip
    add("--json", action="store_true", help="one JSON document on stdout")
    add("--workers", type=_positive, metavar="N", help="threads")
    add("--quiet", action="store_true", help="no progress on stderr")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


if __name__ == "__main__":
    sys.exit(main())
