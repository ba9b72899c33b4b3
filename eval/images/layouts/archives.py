"""What tars and zips have in common: the names of their members, and where the set lies in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from eval.errors import DataError
from eval.images.classes import ClassList
from eval.images.labels import examples, is_image, shown
from eval.images.layouts import Tree, top_folder

Place = TypeVar("Place")

# The command that unpacks tars, each into a folder of its name.
EACH = 'for f in *.tar; do mkdir "${f%.tar}" && tar -xf "$f" -C "${f%.tar}"; done'


def visible_name(archive: Path, name: str) -> str | None:
    """The name of a member, of a folder without its slash; None for a hidden one."""
    path = name.removeprefix("./").removesuffix("/")
    parts = path.split("/")
    if {".", ".."} & set(parts[:-1]) or "" in parts[1:-1] or parts[-1] == "..":
        raise DataError(
            f"--data {archive}: {shown(name)} has '.', '..' or '//' in its path.\n"
            "Create the archive again, from inside the folder of the validation set."
        )
    return None if not path or any(part.startswith(".") for part in parts) else path


class Members(Generic[Place]):
    """The visible files of one archive, or of several that are shards of one set.

    Attributes:
        root: for messages.
        place_of: where they lie, by their names.
        folders: names of the folders that are listed.
        same_as: name of an image that is a link to another one, to the name of that.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place_of: dict[str, Place] = {}
        self.folders: set[str] = set()
        self.same_as: dict[str, str] = {}

    def add(self, name: str, place: Place) -> None:
        """Add a file."""
        if name in self.place_of:
            raise DataError(
                f"--data {self.root} contains {shown(name)} twice.\nCreate it again from the files."
            )
        self.place_of[name] = place

    def tree(
        self,
        words: str,
        classes: ClassList,
        read: Callable[[Mapping[str, Place], int], Callable[[str], bytes]],
        start: int,
    ) -> Tree:
        """The files of the validation set.

        Args:
            words: such as ``tar of``.
            classes: the names of its folders.
            read: gives the reader of files at these places; of their first bytes, or of all if the
                number is negative.
            start: how many of the first bytes tell the format of a file.
        """
        tars = [name for name in self.place_of if name.endswith(".tar")]
        if tars and not any(map(is_image, self.place_of)):
            raise DataError(
                f"--data {self.root} holds tars and no images ({examples(tars)}), as the archive "
                f"of the training set does.\nUnpack it, and then those: {EACH}"
            )
        top = top_folder(self.root, filter(is_image, self.place_of), classes)
        inside = {
            name.removeprefix(top): place
            for name, place in self.place_of.items()
            if name.startswith(top)
        }
        below = {f"{name}/".removeprefix(top) for name in self.folders if name.startswith(top)}
        return Tree(
            self.root,
            list(inside),
            {name.partition("/")[0] for name in (*inside, *below) if "/" in name},
            read(inside, -1),
            read(inside, start),
            f"{words} ",
            f" in {top}" if len(inside) < len(self.place_of) else "",
            {
                name.removeprefix(top): first.removeprefix(top)
                for name, first in self.same_as.items()
                if name.startswith(top)
            },
        )
