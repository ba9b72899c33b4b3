"""A validation set: its images, their labels, and how to read them.

`open_valset` recognizes the layout (layouts/), then compares everything that gives an image a
label: its folder, a list, its official name. Any disagreement is an error, so that a label never
comes from a misplaced file or another numbering.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval.errors import DataError
from eval.images.classes import IMAGENET, SYNSET, ClassList
from eval.images.labels import (
    LabelList,
    examples,
    official_key,
    official_labels,
    official_number,
    read_labels,
    shown,
    synset_in_name,
)
from eval.images.layouts import Listing, unreadable
from eval.images.layouts.find import find
from eval.images.layouts.listed import list_listed
from eval.images.sets import IMAGE_SETS, UNIDENTIFIED, ImageSet, excess_copies, recognize
from eval.images.sidecars import Sidecars
from eval.images.sizes import odd_sizes
from eval.text import check_path, is_utf8

_KAGGLE_LABELS = "LOC_val_solution.csv"
_OFFICIAL = "the official labels"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image."""

    path: str  # inside the validation set, with forward slashes
    label: int  # index in the set's classes

    @property
    def name(self) -> str:
        """The file's name, the same in every layout."""
        return self._official_name or self.path.rpartition("/")[2]

    @property
    def key(self) -> str:
        """The official name, or else folder and name, which no other image has."""
        return self._official_name or self.path

    @property
    def _official_name(self) -> str:
        number = official_number(self.path)
        return f"{official_key(number)}.JPEG" if number else ""


@dataclass(frozen=True)
class ValSet:
    """Images in their final order: sorted by path.

    Attributes:
        root: the folder, tar or shards that the paths of the samples are in.
        layout: how the images are stored and where the labels come from, in words.
        samples: the images; an image's index is its position here.
        read: gives the bytes of a file, by the `path` of its sample, in any thread; raises
            `UnreadableImage`.
        image_set: which set of images it is, or is part of.
        classes: what a label is an index of.
    """

    root: Path
    layout: str
    samples: tuple[Sample, ...]
    read: Callable[[str], bytes]
    image_set: ImageSet = UNIDENTIFIED
    classes: ClassList = IMAGENET

    @property
    def among(self) -> tuple[int, ...] | None:
        """The labels that predictions are restricted to, ascending; None for all classes."""
        return self.image_set.classes

    def limited(self, n: int) -> ValSet:
        """The first n images of a fixed shuffled order, sorted again.

        The order is that of the SHA-256 of the official names, of folder and name for other files:
        the same on every machine and in every layout. A larger limit contains the images of a
        smaller one.
        """
        return self.part(sorted(self.shuffled()[:n]))

    def part(self, indices: Iterable[int]) -> ValSet:
        """Some of the images; what is left knows how many images the whole set has."""
        image_set = self.image_set
        if image_set.images is None:
            image_set = replace(image_set, images=len(self.samples))
        samples = tuple(self.samples[i] for i in indices)
        return replace(self, samples=samples, image_set=image_set)

    def shuffled(self) -> list[int]:
        """Indices of all images in the fixed shuffled order of `limited`."""
        keys = [_sha256(sample.key.encode()) for sample in self.samples]
        return sorted(range(len(keys)), key=keys.__getitem__)

    def doubted(self, digests: Sequence[str]) -> ValSet:
        """The same images, which are not the validation set if too many have the same bytes.

        Args:
            digests: SHA-256 of each image file; "" where it cannot be read.
        """
        copies = excess_copies(digests) if self.image_set.is_val else 0
        if not copies:
            return self
        return replace(
            self,
            image_set=replace(
                UNIDENTIFIED,
                images=self.image_set.images,
                note=f"({copies:,} have the bytes of another one)",
            ),
        )


def fingerprint(samples: Iterable[Sample], digests: Iterable[str]) -> str:
    """SHA-256 of images: their names, labels and hashes of contents, the same in every layout."""
    lines = (
        f"{sample.name} {sample.label} {digest}\n"
        for sample, digest in zip(samples, digests, strict=True)
    )
    return _sha256("".join(sorted(lines)).encode())


def image_list_sha256(valset: ValSet) -> str:
    """SHA-256 of the paths and labels of the images; not of their contents."""
    lines = (f"{sample.path} {sample.label}\n" for sample in valset.samples)
    return _sha256("".join(lines).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def open_valset(
    root: Path,
    labels: Path | None = None,
    classes: ClassList | None = None,
    stated: ImageSet | None = None,
    folders: str | None = None,
) -> ValSet:
    """Find the images and labels of a validation set.

    Args:
        root: class folders, a folder of files, a tar or zip of either, WebDataset or parquet
            shards, the root of Kaggle's tree, or a folder with one of these in ``val``.
        labels: a `name index` list or a ground-truth file (`eval.images.labels.read_labels`);
            needed for files that are not in class folders and have no official names.
        classes: what the folders are named after and the labels are indices of; ImageNet's 1000
            if None.
        stated: the set that these images are said to be, where they do not show it
            (`eval.images.sets.STATED`).
        folders: what the numbers of numbered folders are (`eval.request.FOLDERS`).

    Raises:
        DataError: there is no validation set, or it is another one than stated, or it cannot be
            one of these classes, or labels are missing or contradict each other, or a name is not
            valid UTF-8.
        UsageError: parquet shards need pyarrow, or the name stands for too many shards.
    """
    classes = classes or IMAGENET
    if folders:
        classes = replace(classes, numbers=folders)
    check_path("--data", root)
    listed = read_labels(labels, classes) if labels else None
    try:
        listing = find(root, classes)
    except OSError as error:
        raise unreadable(Path(error.filename or root), error) from error
    except DataError:
        found = list_listed(root, labels.parent, listed) if labels and listed else None
        if found is None:
            raise
        listing = found
    if folders and listing.labeled_by != "folders":
        raise DataError(
            f"--data {root} has {listing.words}, no numbered folders.\nOmit --folders {folders}."
        )
    if classes == IMAGENET and labels is None and (labels := _kaggle_labels(listing)):
        listed = read_labels(labels, classes)
    given = labels.resolve() if labels else None
    others = [path for path in listing.others if (listing.root / path).resolve() != given]
    return _assemble(replace(listing, others=others), listed, classes, stated)


def _kaggle_labels(listing: Listing) -> Path | None:
    """Kaggle's file of labels, beside its ``ILSVRC`` folder, if this is Kaggle's tree."""
    if any(official_number(path) for path in listing.label_of):
        folder = listing.root.absolute()
        for place in (folder, *folder.parents[:4]):
            if (place / _KAGGLE_LABELS).is_file():
                return place / _KAGGLE_LABELS
    return None


def _assemble(
    listing: Listing, labels: LabelList | None, classes: ClassList, stated: ImageSet | None
) -> ValSet:
    """Give each image its label, once all sources of labels agree."""
    samples: list[Sample] = []
    nameless: list[str] = []
    disputed: list[tuple[str, Mapping[str, int]]] = []
    sidecars = Sidecars(listing, classes)
    for path, own in sorted(listing.label_of.items()):
        claims = {} if own is None else {listing.labeled_by: own}
        claims |= sidecars.claims(path) | _claims_by_name(path, labels, classes)
        if not claims:
            nameless.append(path)
            continue
        samples.append(Sample(path, next(iter(claims.values()))))
        if len(set(claims.values())) > 1:
            disputed.append((path, claims))
    root = listing.root
    _check_names(root, listing.label_of)
    _check_unlabeled(root, samples, nameless, labels, classes, listing.others)
    if labels:
        _check_listed(root, samples, labels)
    if disputed:
        raise _disagreement(root, disputed, len(samples), classes)
    _check_links(listing, samples)
    shown_set = recognize(
        (s.path for s in samples),
        {s.label for s in samples},
        numbered=listing.numbered,
        classes=classes,
    )
    image_set = _check_stated(root, shown_set, stated)
    _check_counts(root, samples, image_set, classes)
    if image_set.is_val and (odd := odd_sizes(listing.read, [s.path for s in samples])):
        image_set = _resized(image_set, odd)
    others = [*listing.others, *sidecars.silent]
    parts = [
        *([image_set.words] if image_set.words else []),
        _layout(listing, labels, samples, sidecars, classes),
        *([f"without the unlabeled {examples(nameless)}"] if nameless else []),
        *([f"without {examples(others)}"] if others else []),
        *_empty_classes(samples, classes),
    ]
    return ValSet(root, ", ".join(parts), tuple(samples), listing.read, image_set, classes)


def _check_stated(root: Path, shown_set: ImageSet, stated: ImageSet | None) -> ImageSet:
    """The set that the images show, or else the one that is stated."""
    if stated is None or stated.name == shown_set.name:
        return shown_set
    if shown_set != UNIDENTIFIED:
        raise DataError(
            f"--data {root}: these images are {shown_set.name}, not {stated.name}.\n"
            "Omit --image-set: it is for images that do not show what they are."
        )
    return stated


def _resized(image_set: ImageSet, odd: str) -> ImageSet:
    """The same set with that note, where it is stated; without a statement, it may be another."""
    if image_set.note:
        return replace(image_set, note=f"{image_set.note} ({odd})")
    return replace(UNIDENTIFIED, note=f"(official names, but {odd})")


def _check_links(listing: Listing, samples: Sequence[Sample]) -> None:
    """A hard link in a tar has the content of another image, and so must have its label."""
    if not listing.same_as:
        return
    label_of = {sample.path: sample.label for sample in samples}
    for path, first in listing.same_as.items():
        if label_of.get(path) != label_of.get(first):
            raise DataError(
                f"--data {listing.root}: {shown(path)} is a hard link to {shown(first)}, an image "
                "of another class.\nReplace it with the image of that name."
            )


def _empty_classes(samples: Sequence[Sample], classes: ClassList) -> Iterator[str]:
    """Which of the user's classes have no images."""
    if classes == IMAGENET:
        return
    found = {sample.label for sample in samples}
    empty = [row.folder for label, row in enumerate(classes.rows) if label not in found]
    if empty:
        yield f"no images of {examples(empty)}"


def _claims_by_name(path: str, labels: LabelList | None, classes: ClassList) -> dict[str, int]:
    """Who gives an image of this name a label, and the label; the last one weighs most."""
    claims = {}
    if labels and (key := labels.key_of(path)) is not None:
        folder = key.rpartition("/")[0].rpartition("/")[2]
        if "/" not in path and SYNSET.fullmatch(folder) and folder in classes.index_of:
            claims[f"its folder in {labels.name}"] = classes.index_of[folder]
        claims[labels.name] = labels.label_of[key]
    synset = synset_in_name(path)
    if synset is not None and synset in classes.index_of:
        claims["file name"] = classes.index_of[synset]
    official = _official_label(path, classes)
    if official is not None:
        claims[_OFFICIAL] = official
    return claims


def _official_label(path: str, classes: ClassList) -> int | None:
    """By the official labels, where the name is official and its synset is one of the classes."""
    number = official_number(path)
    if number is None:
        return None
    return classes.index_of.get(IMAGENET.rows[official_labels()[number - 1]].folder)


def _check_names(root: Path, paths: Iterable[str]) -> None:
    """Names are valid UTF-8, and each official image occurs once."""
    undecodable = [path for path in paths if not is_utf8(path)]
    if undecodable:
        raise DataError(
            f"--data {root}: {examples(undecodable)}: names that are not valid UTF-8.\n"
            "Rename the files; if the names are correct, check the locale (LANG, LC_ALL)."
        )
    path_of: dict[int, str] = {}
    for path in paths:
        number = official_number(path)
        if number and path_of.setdefault(number, path) != path:
            raise DataError(
                f"--data {root} holds {official_key(number)} twice: {shown(path_of[number])} and "
                f"{shown(path)}.\nRemove one of them; each image counts once."
            )


def _check_unlabeled(
    root: Path,
    samples: Sequence[Sample],
    nameless: Sequence[str],
    labels: LabelList | None,
    classes: ClassList,
    others: Sequence[str],
) -> None:
    """Images without a label must be few, and not have official names."""
    where = f"--data {root}: {examples(nameless)}"
    listed = f" nor in {labels.name}" if labels else ""
    if nameless and classes != IMAGENET:
        raise DataError(
            f"{where}: neither in a class folder of {classes.name}{listed}, so their labels are "
            "unknown.\nList them with --labels FILE (lines of `name index`), or sort them into "
            "the class folders."
        )
    like = [path for path in nameless if path.upper().startswith("ILSVRC2012_")]
    if like:
        raise DataError(
            f"--data {root}: {examples(like)}: not among ILSVRC2012_val_00000001 to _00050000.\n"
            "These are copies, renamed files, or images of another set, whose labels are "
            "unknown: move them away."
        )
    if len(nameless) > sum(official_number(sample.path) is not None for sample in samples):
        stems = {path.rpartition(".")[0]: path for path in nameless}
        beside = next((path for path in others if path.rpartition(".")[0] in stems), "")
        if beside and not labels:
            image = stems[beside.rpartition(".")[0]]
            raise DataError(
                f"{where}: their labels are unknown; {shown(beside)}, beside {shown(image)}, is "
                "not read as one.\nName such files .cls, if they are labels, or list the images "
                "with --labels FILE (lines of `name index`)."
            )
        raise DataError(
            f"{where}: neither official names (ILSVRC2012_val_00000001.JPEG) "
            f"in synset folders{listed}, so their labels are unknown.\n"
            "List them with --labels FILE (lines of `name index`), or sort them into "
            "synset folders (n01440764, ...)."
        )


def _check_listed(root: Path, samples: Sequence[Sample], labels: LabelList) -> None:
    """A list contains every image; it may contain more."""
    listed = [(sample.path, labels.key_of(sample.path)) for sample in samples]
    missing = [path for path, key in listed if key is None]
    if missing:
        raise DataError(
            f"--data {root}: {examples(missing)}: not in {labels.name}.\n"
            "Use the list that belongs to these images; omit --labels if their names are official."
        )
    image_of: dict[str | None, str] = {}
    for path, key in listed:
        if image_of.setdefault(key, path) != path:
            raise DataError(
                f"--data {root}: {shown(image_of[key])} and {shown(path)} are one line of "
                f"{labels.name}.\nList the images by their paths in the validation set."
            )


def _disagreement(
    root: Path, disputed: Sequence[tuple[str, Mapping[str, int]]], images: int, classes: ClassList
) -> DataError:
    """Three examples, and what is likely to be wrong."""
    rows = []
    wrong = []  # who, and how far from the last claim, which has the most authority
    for path, claims in disputed:
        *_, last = claims.values()
        wrong += [(who, label - last) for who, label in claims.items() if label != last]
        said = (f"{classes.rows[label].folder} ({label}) by {who}" for who, label in claims.items())
        rows.append(f"{shown(path)} is {', '.join(said)}")
    who = wrong[0][0]
    offsets = {offset for _, offset in wrong}
    is_official = _OFFICIAL in disputed[0][1]
    doubted = who if is_official else f"{who} or {list(disputed[0][1])[-1]}"
    if len(wrong) > 3 and len(offsets) == 1:
        reason = f"All are off by {offsets.pop():+d}: {doubted} uses another numbering."
    elif 2 * len(disputed) > images:
        verb = "Does" if is_official else "Do"
        reason = f"{verb} {doubted} use another numbering (ILSVRC ids)?"
    else:
        reason = "Files were moved or renamed, or labels edited."
    official = " The official labels are built in: omit --labels." if is_official else ""
    return DataError(
        f"--data {root}: labels disagree for {len(disputed):,} of {images:,} images: "
        f"{'; '.join(rows[:3])}.\n{reason}{official}"
    )


def _check_counts(
    root: Path, samples: Sequence[Sample], image_set: ImageSet, classes: ClassList
) -> None:
    """More images, or more of a class, than a set has cannot be that set."""
    counts = Counter(sample.label for sample in samples)
    label, most = counts.most_common(1)[0]
    if image_set.most and most > image_set.most:
        name = image_set.name if image_set in IMAGE_SETS[1:] else "the validation set"
        raise DataError(
            f"--data {root}: {most} images of {classes.rows[label].folder}, "
            f"{len(samples):,} in all; {name} has {image_set.most} of each class.\n"
            "Is this the training set, part of another set, or were images copied twice?"
        )
    if image_set.images is not None and len(samples) > image_set.images:
        raise DataError(
            f"--data {root}: {len(samples):,} images, but {image_set.name}, which has such "
            f"classes or names, only has {image_set.images:,}.\nWere images copied twice?"
        )


def _layout(
    listing: Listing,
    labels: LabelList | None,
    samples: Sequence[Sample],
    sidecars: Sidecars,
    classes: ClassList,
) -> str:
    """How the images are stored, where labels come from, and what confirms them."""
    official = all(_official_label(sample.path, classes) is not None for sample in samples)
    owned = listing.label_of[samples[0].path] is not None
    sources = [labels.name] if labels else []
    sources += sidecars.sources
    if official and (owned or sources):
        sources.append(_OFFICIAL)
    checks = sources if owned else sources[1:]
    parts = [listing.words]
    if not owned:
        by_name = "official labels" if official else "labels of the file names"
        parts.append(f"labels of {sources[0]}" if sources else by_name)
    if checks:
        parts.append(f"checked with {' and '.join(checks)}")
    return ", ".join(parts)
