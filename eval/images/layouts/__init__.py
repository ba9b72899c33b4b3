"""The layouts of a validation set; each module lists the images of one.

    folders.py   class folders, or all files in one folder
    tar.py       a tar of either, or WebDataset shards; zip.py: a zip (archives.py: both)
    arrow.py     Hugging Face's parquet and Arrow shards, which shards.py opens
    find.py      which of these a path is; foreign.py: what is not read, and how to get there

A listing gives the images, the labels that the layout itself gives them, and how to read them.
Names, lists and the official labels are compared in eval/images/valset.py.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from eval.errors import DataError, UnreadableImage
from eval.images.classes import ILSVRC_ID, IMAGENET, SYNSET, ClassList
from eval.images.labels import examples, is_image, official_number, shown

START = 32  # bytes, enough to know the format of a file
SIDECARS = ("cls", "json", "txt")  # suffixes of files that may say the label of an image

_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"P5\n": "PGM",
    b"P6\n": "PPM",
}
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
_V2_NAME = re.compile(r"[0-9a-f]{40}\.jpeg")  # the SHA-1 of the photo
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
        numbered: whether its folders and files have ImageNetV2's names.
        beside: path of an image to files of its name that may say its label
            (eval/images/sidecars.py); `read` gives their bytes.
        others: paths of the visible files that are neither.
        same_as: path of an image to the one that it is a link to, where the layout has links.
    """

    root: Path
    words: str
    label_of: Mapping[str, int | None]
    labeled_by: str
    read: Callable[[str], bytes]
    numbered: bool = False
    beside: Mapping[str, Sequence[str]] = field(default_factory=dict)
    others: Sequence[str] = ()
    same_as: Mapping[str, str] = field(default_factory=dict)


def is_class_folder(name: str, classes: ClassList) -> bool:
    """Whether a folder of this name shows that the classes lie here; any synset does."""
    return name in classes.index_of or SYNSET.fullmatch(name) is not None


def labels_of_folders(
    root: Path, folders: Set[str], classes: ClassList, *, in_words: bool
) -> dict[str, int]:
    """What folders stand for: classes by their names or, where it is said, by their numbers.

    Folders may also be named in words, such as ``American_alligator`` or ``n01440764_tench``,
    where each of them is one class without doubt.
    """
    if classes.numbers:
        numbered = {name: classes.numbered(name) for name in folders if name.isdecimal()}
        found = {name: label for name, label in numbered.items() if label is not None}
        if len(found) < len(numbered) or not found:
            wrong = examples(sorted(set(numbered) - set(found))) or "no numbered folders"
            raise DataError(
                f"--data {root} has {wrong}: no {classes.numbers} of {classes.name}.\n"
                "Omit --folders, or name the folder that holds those of the classes."
            )
        return found
    if exact := {name: classes.index_of[name] for name in folders if name in classes.index_of}:
        return exact
    if not in_words:
        return {}
    meant = {name: classes.meant_by(name) for name in sorted(folders)}
    if 2 * sum(map(bool, meant.values())) <= len(meant):
        return {}
    times = Counter(meant.values())
    if doubtful := [name for name, each in meant.items() if len(each) != 1 or times[each] > 1]:
        raise DataError(
            f"--data {root}: its folders are named in words, and {examples(doubtful)}: not one "
            f"class of {classes.name} each, without doubt.\nRename them to "
            + ("synsets (n01440764, ...)." if classes == IMAGENET else "the names in the list.")
        )
    return {name: each[0] for name, each in meant.items()}


@dataclass(frozen=True)
class Tree:
    """The visible files of a folder, a tar or a zip, which are all arranged alike.

    Attributes:
        root: for messages.
        paths: of the files, relative to the folder that holds the validation set.
        folders: names of the folders at the top.
        read: see `Listing`.
        start: the first bytes of a file.
        words: what comes before the words of the layout, such as ``tar of``.
        where: what comes after them.
        same_as: see `Listing`.
    """

    root: Path
    paths: Sequence[str]
    folders: Set[str]
    read: Callable[[str], bytes]
    start: Callable[[str], bytes]
    words: str = ""
    where: str = ""
    same_as: Mapping[str, str] = field(default_factory=dict)


def arrange(tree: Tree, classes: ClassList) -> Listing:
    """Find the images of a tree, their labels, and the files that are none.

    Images lie in class folders, which may be numbered or named in words, or all at the top.

    Raises:
        DataError: no images; folders that are not in the list of classes; both layouts at once;
            images further below; a file that is an image, but is not named like one.
    """
    is_flat = any("/" not in path and is_image(path) for path in tree.paths)
    meaning = labels_of_folders(tree.root, tree.folders, classes, in_words=not is_flat)
    is_v2 = not is_flat and _is_v2(tree, classes)
    if is_v2 and not classes.numbers:
        meaning = {str(label): label for label in range(len(classes))}
    label_of, flat, elsewhere, others = _by_place(tree.paths, meaning)
    strange = tree.folders - set(meaning)
    if unknown := {name for name in strange if classes.checked_folders.fullmatch(name)}:
        raise unknown_folders(tree.root, unknown, classes)
    if is_v2 and not classes.numbers:
        words = f"{len(classes)} numbered folders, read as numbers (2 before 10)"
    elif label_of or classes.numbers:
        words = _words_of({path.rpartition("/")[0] for path in label_of}, classes)
        _check_loose(tree.root, flat, len(label_of), classes)
        others += flat
    else:
        words, label_of = "flat files", dict.fromkeys(flat)
    if not label_of:
        check_no_images(tree, others)
        seen = {path.partition("/")[0] for path in tree.paths} | tree.folders
        raise no_images(tree.root, seen, classes, next(iter(elsewhere), ""))
    if elsewhere:
        raise DataError(
            f"--data {tree.root}: {examples(elsewhere)}: images in other folders than those of the "
            f"{words}.\nPut them directly into a class's folder, or move them away: none may be "
            "left out silently."
        )
    beside, others = _beside(label_of, others)
    check_no_images(tree, others)
    return Listing(
        tree.root,
        f"{tree.words}{words}{tree.where}",
        label_of,
        "folders",
        tree.read,
        is_v2 and classes.numbers != ILSVRC_ID,
        beside,
        others,
        {path: first for path, first in tree.same_as.items() if path in label_of},
    )


def _by_place(
    paths: Iterable[str], meaning: Mapping[str, int]
) -> tuple[dict[str, int | None], list[str], list[str], list[str]]:
    """Images in class folders with their labels, those at the top, all others, and other files."""
    label_of: dict[str, int | None] = {}
    flat: list[str] = []
    elsewhere: list[str] = []
    others: list[str] = []
    for path in paths:
        folder = path.rpartition("/")[0]
        if not is_image(path):
            others.append(path)
        elif not folder:
            flat.append(path)
        elif folder in meaning:
            label_of[path] = meaning[folder]
        else:
            elsewhere.append(path)
    return label_of, flat, elsewhere, others


def _words_of(found: Set[str], classes: ClassList) -> str:
    """How images in these class folders are stored."""
    if classes.numbers:
        return f"{len(found)} numbered folders, read as --folders {classes.numbers}"
    in_words = found.isdisjoint(classes.index_of)
    return f"{len(found)} {classes.kind} folders{', named in words' if in_words else ''}"


def _is_v2(tree: Tree, classes: ClassList) -> bool:
    """Whether these are ImageNetV2's folders, all of them, and the names of its files.

    With others, a number may mean anything.
    """
    numbers = {str(label) for label in range(len(classes))}
    images = [path for path in tree.paths if is_image(path)]
    return {name for name in tree.folders if name.isdecimal()} == numbers and all(
        folder in numbers and _V2_NAME.fullmatch(name)
        for folder, _, name in (path.rpartition("/") for path in images)
    )


def _check_loose(root: Path, flat: Sequence[str], images: int, classes: ClassList) -> None:
    """Official images beside class folders would be left out."""
    loose = [path for path in flat if official_number(path)]
    if loose:
        raise DataError(
            f"--data {root} has {images:,} images in {classes.kind} folders and "
            f"{len(loose):,} beside them ({examples(loose)}).\n"
            "Was sorting them into folders interrupted? Finish it, or move all into one folder."
        )


def _beside(images: Iterable[str], others: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Image to the files that are named after it and may say its label; and the other files."""
    beside: dict[str, list[str]] = {}
    rest: list[str] = []
    if not others:
        return beside, rest
    image_of = {path.rpartition(".")[0]: path for path in images}
    of_key: dict[str, list[str]] = {}
    for path in image_of.values():
        of_key.setdefault(_key(path), []).append(path)
    for path in others:
        stem, _, suffix = path.rpartition(".")
        of_same_key = of_key.get(_key(path), ())
        image = image_of.get(stem) or (of_same_key[0] if len(of_same_key) == 1 else None)
        if suffix.lower() in SIDECARS and image is not None:
            beside.setdefault(image, []).append(path)
        else:
            rest.append(path)
    return beside, rest


def _key(path: str) -> str:
    """What webdataset takes for the key of a sample: all before the first dot of the name."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.partition('.')[0]}"


def check_no_images(tree: Tree, others: Iterable[str]) -> None:
    """Files that are not named like images must not be any."""
    for path in others:
        if not is_image(path) and (kind := kind_of_image(tree.start(path))):
            raise DataError(
                f"--data {tree.root}: {shown(path)} is an image ({kind}) without the suffix of "
                "one.\nGive it the suffix of its format, or move it away: none may be left out "
                "silently."
            )


def top_folder(root: Path, images: Iterable[str], classes: ClassList) -> str:
    """The folder in an archive that holds the validation set, with its slash; "" for the top.

    It is the one above the class folders, or else the one that has all images.
    """
    folders = {path.rpartition("/")[0] for path in images}
    tops = {top for folder in folders if (top := _above_class(folder, classes)) is not None}
    if not tops:
        tops = folders
        names = [folder.rpartition("/")[2] for folder in folders]
        if all(name.isdecimal() for name in names) or all(map(classes.meant_by, names)):
            tops = {folder.rpartition("/")[0] for folder in folders}
    outermost = {top for top in tops if not any(_is_below(top, other) for other in tops)}
    if len(outermost) > 1:
        named_val = {top for top in outermost if top.rpartition("/")[2] in ("val", "validation")}
        outermost = named_val or outermost
    if len(outermost) > 1:
        raise DataError(
            f"--data {root} has images in several folders: "
            f"{examples(top or 'the top' for top in sorted(outermost))}.\n"
            "It must contain a single validation set: unpack it and give that set's folder."
        )
    top = next(iter(outermost), "")
    return f"{top}/" if top else ""


def _above_class(folder: str, classes: ClassList) -> str | None:
    """What is above the first class folder in a path; None if there is none."""
    parts = folder.split("/")
    for place, part in enumerate(parts):
        if is_class_folder(part, classes):
            return "/".join(parts[:place])
    return None


def _is_below(folder: str, other: str) -> bool:
    return folder != other and (not other or folder.startswith(f"{other}/"))


def kind_of_image(data: bytes) -> str:
    """The format that a file begins like; "" if it is not that of an image."""
    if data[4:8] == b"ftyp" and data[8:12] in _BRANDS:
        return "AVIF or HEIC"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    return next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), "")


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


def no_images(root: Path, seen: Iterable[str], classes: ClassList, below: str = "") -> DataError:
    """The error if a folder or tar contains nothing that is recognized."""
    names = sorted(seen)
    folders = [name for name in names if is_class_folder(name, classes)]
    if folders:
        return DataError(
            f"--data {root}: its {len(folders)} {classes.kind} folders contain no images"
            f"{f', but folders with images, as {shown(below)}' if below else ''}.\n"
            "The images must be directly in them, as in "
            f"{shown(folders[0])}/{'ILSVRC2012_val_00000293' if classes == IMAGENET else '1'}.JPEG."
        )
    if any(name.isdecimal() for name in names):
        return DataError(
            f"--data {root} has numbered folders ({examples(n for n in names if n.isdecimal())}): "
            "in some copies, the number is the index of the class, in others its ILSVRC id.\n"
            "Say which: --folders index, or --folders ilsvrc-id. (ImageNetV2 has all the folders 0 "
            "to 999, and files named by their SHA-1.)"
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
    if path.is_symlink() and isinstance(error, FileNotFoundError):
        return UnreadableImage(
            f"{shown(str(path))} is a link to a file that is gone: {shown(str(path.readlink()))}.\n"
            "Copy the file itself, or mount the disk that it is on."
        )
    return UnreadableImage(
        f"{shown(str(path))} cannot be read: {error.strerror or error}.\n"
        "Check its permissions and the disk, or replace it with an intact copy."
    )


def check_regular(path: Path | str, mode: int) -> None:
    """Refuse what would hang or never end when it is read, by its mode, not that of a link."""
    if stat.S_ISREG(mode):
        return
    for is_kind, kind in _KINDS:
        if is_kind(mode):
            raise UnreadableImage(
                f"{shown(str(path))} is {kind}, not a regular file.\nReplace it with an image, or "
                "remove it."
            )


# Without O_NONBLOCK, opening a FIFO waits for a writer; without O_BINARY, Windows changes bytes.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def read_regular(path: Path | str, size: int = -1) -> bytes:
    """The bytes of a file, which must be a regular one; the first `size` if that is not negative.

    Raises:
        OSError: it cannot be read.
        UnreadableImage: it is a FIFO, a socket or a device.
    """
    if not hasattr(os, "O_NONBLOCK"):
        check_regular(path, os.stat(path).st_mode)  # noqa: PTH116 - it may be text
    # A file object would ask the system twice as often.
    handle = os.open(path, _READ)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            check_regular(path, status.st_mode)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        data = os.read(handle, status.st_size + 1 if size < 0 else size)
        if len(data) in (status.st_size, size):  # all of it, in one call
            return data
        with open(handle, "rb", closefd=False) as file:
            return data + file.read(max(-1, size - len(data)))
    finally:
        os.close(handle)
