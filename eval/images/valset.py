"""A val set: which images there are, what they show, and how to get their bytes.

`open_valset` sees which layout it has (layouts/), then compares all that is said about each
image: by its folder, by lists, by its official name. Whoever disagrees with the official labels
is an error, so that a label here is never the opinion of a stray folder or of another numbering.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from eval.errors import DataError
from eval.images.classes import ClassList, imagenet, imagenet_classes, label_of_synset
from eval.images.labels import (
    LabelList,
    examples,
    image_key,
    official_key,
    official_labels,
    official_number,
    read_labels,
    shown,
    synset_in_name,
)
from eval.images.layouts import Listing, unreadable
from eval.images.layouts.folders import is_val_folder, list_folder
from eval.images.layouts.parquet import find_shards, list_parquet
from eval.images.layouts.tar import list_tar
from eval.images.sets import VAL, ImageSet, recognise

_OFFICIAL_TAR = "ILSVRC2012_img_val.tar"
_KAGGLE_FOLDERS = ("ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val", "CLS-LOC/val")
_KAGGLE_LABELS = "LOC_val_solution.csv"
_VAL_FOLDERS = ("val", "validation")
_OFFICIAL = "the official labels"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image."""

    path: str  # inside the val set, with forward slashes
    label: int  # 0..999

    @property
    def name(self) -> str:
        """The file's name, the same in every layout."""
        number = official_number(self.path)
        return f"{official_key(number)}.JPEG" if number else self.path.rpartition("/")[2]


@dataclass(frozen=True)
class ValSet:
    """Images in their final order: sorted by path.

    Attributes:
        root: the folder, tar or shards that the paths of the samples are in.
        layout: how it is kept and where the labels are from, in words.
        samples: the images; an image's index is its position here.
        read: gives the bytes of a file, by the `path` of its sample, in any thread; raises
            `DataError` where the system does not.
        file_of: gives the file on disk that holds an image, by the same `path`.
        image_set: which set of images it is, or is part of.
        classes: the classes that its labels are indices of.
    """

    root: Path
    layout: str
    samples: tuple[Sample, ...]
    read: Callable[[str], bytes]
    file_of: Callable[[str], Path]
    image_set: ImageSet = VAL
    classes: ClassList = field(default_factory=imagenet)

    def limited(self, n: int) -> ValSet:
        """The first n images of a fixed shuffled order, sorted again.

        The order is that of the SHA-256 of the file names: the same on every machine and in every
        layout, and a larger limit holds the smaller one.
        """
        shuffled = sorted(self.samples, key=lambda sample: _sha256(sample.name.encode()))
        return replace(self, samples=tuple(sorted(shuffled[:n], key=lambda s: s.path)))


def fingerprint(samples: Iterable[Sample], digests: Iterable[str]) -> str:
    """SHA-256 of a set of images: their names, labels and contents, whatever layout they are in.

    Args:
        samples: the images.
        digests: SHA-256 of their files, in the same order.
    """
    lines = (
        f"{sample.name} {sample.label} {digest}\n"
        for sample, digest in zip(samples, digests, strict=True)
    )
    return _sha256("".join(sorted(lines)).encode())


def image_list_sha256(valset: ValSet) -> str:
    """SHA-256 of which images there are, and of their labels; not of their contents."""
    lines = (f"{sample.path} {sample.label}\n" for sample in valset.samples)
    return _sha256("".join(lines).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def open_valset(root: Path, labels: Path | None = None) -> ValSet:
    """Find the images and labels of a val set.

    Args:
        root: synset folders, a folder of files with official names, a tar of either, parquet
            shards, the root of Kaggle's tree, or a folder with one of these in ``val``.
        labels: a `name index` list or a ground-truth file (`eval.images.labels.read_labels`).

    Raises:
        DataError: there is no val set, or it cannot be that of ILSVRC2012, or its labels are
            missing or contradict each other.
        UsageError: parquet shards need pyarrow.
    """
    try:
        listing = _find(root)
    except OSError as error:
        raise unreadable(Path(error.filename or root), error) from error
    labels = labels or _kaggle_labels(listing)
    return _assemble(listing, read_labels(labels) if labels else None)


def _find(root: Path) -> Listing:
    """See which layout there is."""
    if not root.exists():
        raise DataError(f"--data {root}: there is no such file or folder.")
    if not root.is_dir():
        with root.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        return list_parquet(root, [root]) if is_parquet else list_tar(root)
    for inner in ("", *_KAGGLE_FOLDERS, *_VAL_FOLDERS):
        folder = root / inner
        if folder.is_dir():
            where = f" in {inner}/" if inner else ""
            if is_val_folder(folder):
                listing = list_folder(folder)
                return replace(listing, words=listing.words + where)
            if shards := find_shards(folder):
                return list_parquet(folder, shards)
    if (root / _OFFICIAL_TAR).is_file():
        return list_tar(root / _OFFICIAL_TAR)
    likely = list(_val_folders_below(root))
    if 1 <= len(likely) <= 3:  # more of them are not val sets but classes
        raise DataError(
            f"--data {root} itself holds no val set.\n"
            f"Did you mean --data {' or '.join(shown(str(path)) for path in likely)}?"
        )
    return list_folder(root)


def _val_folders_below(root: Path) -> Iterator[Path]:
    """Folders that may be meant, among the first thousand."""
    below = (path for pattern in ("*/", "*/*/") for path in root.glob(pattern))
    for folder in itertools.islice(below, 1000):
        with contextlib.suppress(OSError):  # this is no more than a hint
            if is_val_folder(folder):
                yield folder


def _kaggle_labels(listing: Listing) -> Path | None:
    """Kaggle's file of labels, which lies beside its ``ILSVRC`` folder, if this is its tree."""
    if any(official_number(path) for path in listing.label_of):
        folder = listing.root.absolute()
        for place in (folder, *folder.parents[:4]):
            if (place / _KAGGLE_LABELS).is_file():
                return place / _KAGGLE_LABELS
    return None


def _assemble(listing: Listing, labels: LabelList | None) -> ValSet:
    """Give each image its label, once all who know it agree."""
    samples: list[Sample] = []
    nameless: list[str] = []
    disputed: list[tuple[str, Mapping[str, int]]] = []
    for path, own in sorted(listing.label_of.items()):
        claims = _claims(path, own, listing.labelled_by, labels)
        if not claims:
            nameless.append(path)
            continue
        samples.append(Sample(path, next(iter(claims.values()))))
        if len(set(claims.values())) > 1:
            disputed.append((path, claims))
    root = listing.root
    _check_names(root, samples, nameless, labels)
    if disputed:
        raise _disagreement(root, disputed, len(samples))
    if labels:
        _check_listed(root, samples, labels)
    image_set = recognise((s.path for s in samples), {s.label for s in samples}, listing.numbered)
    _check_counts(root, samples, image_set)
    words = [image_set.words] if image_set.words else []
    layout = ", ".join([*words, _layout(listing, labels, samples, nameless)])
    return ValSet(root, layout, tuple(samples), listing.read, listing.file_of, image_set)


def _claims(path: str, own: int | None, owner: str, labels: LabelList | None) -> dict[str, int]:
    """Who says what about an image."""
    claims = {} if own is None else {owner: own}
    key = image_key(path)
    if labels and key in labels.label_of:
        claims[labels.name] = labels.label_of[key]
    synset = synset_in_name(path)
    if synset in label_of_synset():
        claims["file name"] = label_of_synset()[synset]
    number = official_number(path)
    if number:
        claims[_OFFICIAL] = official_labels()[number - 1]
    return claims


def _check_names(
    root: Path, samples: Sequence[Sample], nameless: Sequence[str], labels: LabelList | None
) -> None:
    """Official images are there once each, and no other file looks as if it were one."""
    where = f"--data {root}"
    undecodable = [path for path in [s.path for s in samples] + [*nameless] if not _is_utf8(path)]
    if undecodable:
        raise DataError(f"{where}: {examples(undecodable)}: no UTF-8 names.\nRename the files.")
    paths: dict[int, str] = {}
    for sample in samples:
        number = official_number(sample.path)
        if number and paths.setdefault(number, sample.path) != sample.path:
            raise DataError(
                f"{where} holds {official_key(number)} twice: {shown(paths[number])} and "
                f"{shown(sample.path)}.\nRemove one of them; each image counts once."
            )
    like = [path for path in nameless if path.upper().startswith("ILSVRC2012_")]
    if like:
        raise DataError(
            f"{where}: {examples(like)}: not among ILSVRC2012_val_00000001 to _00050000.\n"
            "These are copies, renamed files, or images of another set, whose labels are not "
            "known: move them away."
        )
    if len(nameless) > len(paths):
        listed = f" nor in {labels.name}" if labels else ""
        raise DataError(
            f"{where}: {examples(nameless)}: neither official names (ILSVRC2012_val_00000001.JPEG) "
            f"in synset folders{listed}, so that their labels are not known.\n"
            "Name a list of them with --labels FILE (lines of `name index`), or sort them into "
            "synset folders (n01440764, ...)."
        )


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_listed(root: Path, samples: Sequence[Sample], labels: LabelList) -> None:
    """A list names every image; images that are not there are no matter."""
    missing = [s.path for s in samples if image_key(s.path) not in labels.label_of]
    if missing:
        raise DataError(
            f"--data {root}: {examples(missing)}: not in {labels.name}.\n"
            "Use the list that belongs to these images, or none where their names are official."
        )


def _disagreement(
    root: Path, disputed: Sequence[tuple[str, Mapping[str, int]]], images: int
) -> DataError:
    """Three examples, and what is likely to be wrong."""
    rows = []
    wrong = []  # who, and how far from the last claim, which has the most authority
    for path, claims in disputed:
        *_, last = claims.values()
        wrong += [(who, label - last) for who, label in claims.items() if label != last]
        said = (
            f"{imagenet_classes()[label].synset} ({label}) by {who}"
            for who, label in claims.items()
        )
        rows.append(f"{shown(path)} is {', '.join(said)}")
    who = wrong[0][0]
    offsets = {offset for _, offset in wrong}
    if len(wrong) > 3 and len(offsets) == 1:
        reason = f"All are off by {offsets.pop():+d}: {who} counts in another way."
    elif 2 * len(disputed) > images:
        reason = f"Does {who} number the classes in another way (ILSVRC ids)?"
    else:
        reason = "Files were moved or renamed, or labels edited."
    return DataError(
        f"--data {root}: labels disagree for {len(disputed):,} of {images:,} images: "
        f"{'; '.join(rows[:3])}.\n{reason} The official labels are built in and need no list."
    )


def _check_counts(root: Path, samples: Sequence[Sample], image_set: ImageSet) -> None:
    """More images, or more of a class, than a set has cannot be that set."""
    counts = Counter(sample.label for sample in samples)
    label, most = counts.most_common(1)[0]
    if image_set.most and most > image_set.most:
        name = "the val set" if image_set is VAL else image_set.name
        raise DataError(
            f"--data {root}: {most} images of {imagenet_classes()[label].synset}, "
            f"{len(samples)} in all; {name} has {image_set.most} of each class.\n"
            "Is this the training set, or were images copied twice?"
        )
    if image_set.images is not None and len(samples) > image_set.images:
        raise DataError(
            f"--data {root}: {len(samples):,} images; {image_set.name}, whose classes or names "
            f"they have, has {image_set.images:,}.\nWere images copied twice?"
        )


def _layout(
    listing: Listing, labels: LabelList | None, samples: Sequence[Sample], nameless: Sequence[str]
) -> str:
    """How it is kept, who gives the labels, who agrees, and what is left out."""
    official = all(official_number(sample.path) for sample in samples)
    owned = listing.label_of[samples[0].path] is not None
    checks = [labels.name] if labels and owned else []
    if official and (owned or labels):
        checks.append(_OFFICIAL)
    parts = [listing.words]
    if not owned:
        parts.append(f"labels of {labels.name}" if labels else "official labels")
    if checks:
        parts.append(f"checked with {' and '.join(checks)}")
    if nameless:
        parts.append(f"without the unofficial {examples(nameless)}")
    return ", ".join(parts)
