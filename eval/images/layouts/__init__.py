"""Ways in which people keep the val set; each module lists the images of one of them.

    folders.py   synset folders, or all files in one folder
    tar.py       a tar of either
    parquet.py   shards of Hugging Face's ILSVRC/imagenet-1k

A listing says which images there are, what the layout itself says they show, and how to get
their bytes. Names, lists and the official labels are compared in eval/images/valset.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.errors import DataError
from eval.images.classes import label_of_synset
from eval.images.labels import SYNSET, examples, is_image, official_number, shown


@dataclass(frozen=True)
class Listing:
    """The images of one place.

    Attributes:
        root: what their paths are relative to.
        words: how they are kept.
        label_of: path, with forward slashes, to the label that the layout gives, if any.
        labelled_by: what gives those labels.
        read: bytes of an image, from any thread; raises `DataError`.
        file_of: the file on disk that holds an image.
        numbered: whether its folders are 0 to 999 instead of synsets.
    """

    root: Path
    words: str
    label_of: Mapping[str, int | None]
    labelled_by: str
    read: Callable[[str], bytes]
    file_of: Callable[[str], Path]
    numbered: bool = False


def labels_by_folder(root: Path, paths: Iterable[str]) -> tuple[str, dict[str, int | None]]:
    """Labels of images in synset folders, or None for each of those that are in no folder.

    Args:
        root: for messages.
        paths: of files, relative; those that are no images, or in other folders, do not count.

    Returns:
        What the layout is called, and path to label.

    Raises:
        DataError: there are no images, unknown synsets, or both layouts at once.
    """
    label_of = label_of_synset()
    foldered: dict[str, int | None] = {}
    flat: dict[str, int | None] = {}
    unknown: dict[str, None] = {}
    synsets = set()
    for path in filter(is_image, paths):
        folder, _, _ = path.rpartition("/")
        if not folder:
            flat[path] = None
        elif folder in label_of:
            synsets.add(folder)
            foldered[path] = label_of[folder]
        elif SYNSET.fullmatch(folder):
            unknown[folder] = None
    if unknown:
        raise DataError(
            f"--data {root}: {examples(sorted(unknown))}: not among the 1000 classes of "
            "ILSVRC2012.\nThis is another set of classes, or stray folders: move them away."
        )
    if not foldered:
        return "flat files", flat
    loose = [path for path in flat if official_number(path)]
    if loose:
        raise DataError(
            f"--data {root} has {len(foldered):,} images in synset folders and {len(loose):,} "
            f"beside them ({examples(loose)}).\n"
            "Sorting them into folders was interrupted: finish it, or move all into one folder."
        )
    return f"{len(synsets)} synset folders", foldered


def no_images(root: Path, seen: Iterable[str]) -> DataError:
    """The error where a folder or tar holds nothing that is understood."""
    names = sorted(seen)
    synsets = [name for name in names if SYNSET.fullmatch(name)]
    if synsets:
        return DataError(
            f"--data {root}: its {len(synsets)} synset folders hold no images.\n"
            "The images must lie in them directly, as n01440764/ILSVRC2012_val_00000293.JPEG does."
        )
    if any(name.isdecimal() for name in names):
        return DataError(
            f"--data {root} has numbered folders ({examples(n for n in names if n.isdecimal())}): "
            "in some copies that is the position of the class, in others its ILSVRC id.\n"
            "Put the files, if their names are official, into one folder: the labels are built in; "
            "or name the folders by synset. (ImageNetV2 is a folder that has all of 0 to 999.)"
        )
    held = ", ".join(shown(name) for name in names[:3]) or "nothing"
    return DataError(
        f"--data {root} has no synset folders (n01440764, ...) and no images: it holds {held}.\n"
        "Name the folder of the 1000 class folders or of the ILSVRC2012_val_*.JPEG files, their "
        "tar, or the parquet shards."
    )


def unreadable(path: Path, error: OSError) -> DataError:
    """The error where the system does not give us a file."""
    return DataError(
        f"{shown(str(path))} cannot be read: {error.strerror or error}.\n"
        "Check its permissions and the disk, or replace it with an intact copy."
    )
