"""What the value of an option may be, as typed on a command line or given from Python.

A kind takes the option's name and the value, and gives the value that is used. It takes its own
results, too.
"""

from __future__ import annotations

import difflib
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.errors import UsageError
from eval.text import shown

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

Kind = Callable[[str, Any], Any]


def text(option: str, value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str):
        raise UsageError(f"{option} {value!r}: not a text.")
    if not value.strip():
        raise UsageError(
            f"{option} is empty.\nName a value; a variable of a script that is not set gives an "
            "empty one."
        )
    if _CONTROL.search(value):
        raise UsageError(
            f"{option} {shown(value)} has a line break or another control character."
            "\nRename the file or the folder, or type the value again."
        )
    return value


def path(option: str, value: Any) -> Path:
    """A path that is not empty; ``~`` is the home folder."""
    return Path(file_or_word(option, value))


def file_or_word(option: str, value: Any) -> str | Path:
    """A path as `path` takes it, or something else that is kept as it is, such as ``auto``."""
    if isinstance(value, str) and _URL.match(value):
        raise UsageError(
            f"{option} {shown(value)} is a URL; what is evaluated lies on this machine.\n"
            "Download it first, and give its path."
        )
    if isinstance(value, os.PathLike):
        return Path(os.path.expanduser(os.fsdecode(value)))  # noqa: PTH111
    return os.path.expanduser(text(option, value))  # noqa: PTH111  # leaves an unknown ~user


def drawing(option: str, value: Any) -> Path:
    """The path of a drawing, ``.png`` or ``.svg``."""
    found = path(option, value)
    if found.suffix not in (".png", ".svg"):
        raise UsageError(f"{option} {found}: name a .png or .svg file.")
    return found


def flag(option: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise UsageError(f"{option} {value!r}: not True or False.")
    return value


@dataclass(frozen=True)
class Whole:
    """A whole number.

    Attributes:
        least, most: its limits, if it has any.
        why: what is wrong with a larger one, for the message.
    """

    least: int | None = None
    most: int | None = None
    why: str = ""

    def __call__(self, option: str, value: Any) -> int:
        """Check a value."""
        kinds = {None: "whole number", 0: "number, 0 or more", 1: "positive number"}
        try:
            if isinstance(value, str):
                number = int(value) if re.fullmatch(r"-?[0-9]{1,18}", value) else None
            else:
                number = None if isinstance(value, bool) else operator.index(value)
        except TypeError:
            number = None
        if number is None or (self.least is not None and number < self.least):
            text(option, str(value))
            raise UsageError(f"{option} {value}: use a {kinds[self.least]}.")
        if self.most is not None and number > self.most:
            raise UsageError(f"{option} {number}: use at most {self.most}; {self.why}.")
        return number


positive = Whole(1)


@dataclass(frozen=True)
class OneOf:
    """One of some names.

    Attributes:
        names: in the order of the help.
        meant: other words for them, in lower case.
    """

    names: Iterable[str]
    meant: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, option: str, value: Any) -> str:
        """Check a value."""
        names = list(self.names)
        if value in names:
            return str(value)
        word = text(option, value)
        close = difflib.get_close_matches(word.lower(), names, n=1)
        meant = [self.meant[word.lower()]] if word.lower() in self.meant else close
        hint = f"\nDid you mean {option} {meant[0]}?" if meant else ""
        raise UsageError(f"{option} {word}: use one of {', '.join(names)}.{hint}")


@dataclass(frozen=True)
class ListOf:
    """Several values, separated by commas.

    Attributes:
        kind: of each.
        all_words: words for all that there are, and these.
    """

    kind: Kind = text
    all_words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __call__(self, option: str, value: Any) -> tuple[Any, ...]:
        """Check a list or a text with commas."""
        words = text(option, value).split(",") if isinstance(value, str) else list(value)
        if len(words) == 1 and words[0] in self.all_words:
            return self.all_words[words[0]]
        if not words:
            text(option, "")
        return tuple(self.kind(option, word) for word in words)
