"""The layouts of a validation set; each module lists the images of one.

    folders.py   class folders, or all files in one folder
    tar.py       a tar of either
    parquet.py   shards of Hugging Face's ILSVRC/imagenet-1k

A listing gives the images, the labels that the layout itself gives them, and how to read them.
Names, lists and the official labels are compared in eval/images/valset.py.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.errors import DataError, UnreadableImage
from eval.images.classes import IMAGENET, SYNSET, ClassList
from eval.images.labels import examples, is_image, official_number, shown

_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISCHR, "a character device"),
)


@dataclass(frozen=True)
class Listing:
    """The images in one place.

    Attributes:
        root: what their paths are relative to.
        words: how they are stored.
        label_of: path, with forward slashes, to the label that the layout gives, if any.
        labeled_by: what gives those labels.
        read: bytes of an image, from any thread; raises `UnreadableImage`.
        file_of: the file on disk that holds an image.
        numbered: whether its folders are 0 to 999 instead of synsets.
    """

    root: Path
    words: str
    label_of: Mapping[str, int | None]
    labeled_by: str
    read: Callable[[str], bytes]
    file_of: Callable[[str], Path]
    numbered: bool = False


def is_class_folder(name: str, classes: ClassList) -> bool:
    """Whether a folder of this name shows that the classes lie here; any synset does."""
    return name in classes.index_of or SYNSET.fullmatch(name) is not None


def labels_by_folder(
    root: Path, paths: Iterable[str], classes: ClassList
) -> tuple[str, dict[str, int | None]]:
    """Labels of images in class folders, or None for each of those that are in no folder.

    Args:
        root: for messages.
        paths: of files, relative; those that are not images, or in other folders, do not count.
        classes: the names of the folders.

    Returns:
        What the layout is called, and path to label.

    Raises:
        DataError: folders that are not in the list of classes, or both layouts at once.
    """
    foldered: dict[str, int | None] = {}
    flat: dict[str, int | None] = {}
    unknown: dict[str, None] = {}
    found = set()
    for path in filter(is_image, paths):
        folder, _, _ = path.rpartition("/")
        if not folder:
            flat[path] = None
        elif folder in classes.index_of:
            found.add(folder)
            foldered[path] = classes.index_of[folder]
        elif classes.checked_folders.fullmatch(folder):
            unknown[folder] = None
    if unknown:
        raise unknown_folders(root, unknown, classes)
    if not foldered:
        return "flat files", flat
    loose = [path for path in flat if official_number(path)]
    if loose:
        raise DataError(
            f"--data {root} has {len(foldered):,} images in {classes.kind} folders and "
            f"{len(loose):,} beside them ({examples(loose)}).\n"
            "Was sorting them into folders interrupted? Finish it, or move all into one folder."
        )
    return f"{len(found)} {classes.kind} folders", foldered


def unknown_folders(root: Path, folders: Iterable[str], classes: ClassList) -> DataError:
    """The error if folders are not in the list of classes."""
    listed = examples(sorted(folders))
    if classes == IMAGENET:
        return DataError(
            f"--data {root}: {listed}: not among the {len(classes)} classes of {classes.name}.\n"
            "These are other classes (list them with --classes FILE), or stray folders: move "
            "them away."
        )
    return DataError(
        f"--data {root}: {listed}: not among the {len(classes)} classes of {classes.name}.\n"
        "Add the folders to the list, in index order, or move them away. If a name contains "
        "spaces, a tab must follow it in the list."
    )


def no_images(root: Path, seen: Iterable[str], classes: ClassList) -> DataError:
    """The error if a folder or tar contains nothing that is recognized."""
    names = sorted(seen)
    folders = [name for name in names if is_class_folder(name, classes)]
    if folders:
        return DataError(
            f"--data {root}: its {len(folders)} {classes.kind} folders contain no images.\n"
            "The images must be directly in them, as in "
            f"{shown(folders[0])}/{'ILSVRC2012_val_00000293' if classes == IMAGENET else '1'}.JPEG."
        )
    if any(name.isdecimal() for name in names):
        return DataError(
            f"--data {root} has numbered folders ({examples(n for n in names if n.isdecimal())}): "
            "in some copies, the number is the index of the class, in others its ILSVRC id.\n"
            "If the file names are official, put the files into one folder: the labels are built "
            "in; or rename the folders to synsets. (ImageNetV2 has all the folders 0 to 999.)"
        )
    held = ", ".join(shown(name) for name in names[:3]) or "nothing"
    if classes != IMAGENET:
        return DataError(
            f"--data {root} has no images and none of the class folders of {classes.name} "
            f"({examples(classes.index_of)}): it contains {held}.\n"
            "Give the folder that contains the class folders, or their tar."
        )
    return DataError(
        f"--data {root} has no synset folders (n01440764, ...) and no images: it contains {held}.\n"
        "Give the folder of the 1000 class folders or of the ILSVRC2012_val_*.JPEG files, their "
        "tar, or the parquet shards."
    )


def unreadable(path: Path, error: OSError) -> UnreadableImage:
    """The error if the system cannot read a file."""
    return UnreadableImage(
        f"{shown(str(path))} cannot be read: {error.strerror or error}.\n"
        "Check its permissions and the disk, or replace it with an intact copy."
    )


def check_regular(path: Path, mode: int) -> None:
    """Refuse what would hang or never end when it is read as a file.

    Args:
        path: for the message.
        mode: as `os.stat` gives it, of the file and not of a link to it.

    Raises:
        UnreadableImage: it is a FIFO, a socket or a device.
    """
    for is_kind, kind in _KINDS:
        if is_kind(mode):
            raise UnreadableImage(
                f"{shown(str(path))} is {kind}, not a regular file.\nReplace it with an image, or "
                "remove it."
            )


def read_regular(path: Path) -> bytes:
    """The bytes of a file, which must be a regular one.

    Raises:
        OSError: it cannot be read.
        UnreadableImage: it is a FIFO, a socket or a device.
    """
    # Without O_NONBLOCK, opening a FIFO waits for a writer.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
        check_regular(path, os.fstat(file.fileno()).st_mode)
        return file.read()
