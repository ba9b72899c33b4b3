"""The errors of reading and downloading weights, and the advice in their messages."""

from __future__ import annotations

OTHER_WEIGHTS = "The training diverged, or the file is damaged: give another one."
FETCH_AGAIN = "Download the file again, or use --weights auto."
SAVE_TENSORS = "Give a file with nothing but the weights: model.state_dict()."


def name_classes(found: int, wanted: int) -> str:
    """What to do about a head that has another number of classes."""
    if found == wanted + 1:
        return (
            "If the first is a background class, add --background-first; else name its classes "
            "with --classes FILE."
        )
    return "Name its classes with --classes FILE, one per line in index order."


class WeightsError(Exception):
    """Weights are missing, damaged, refused, or belong to another model.

    The message is one or two lines: what is wrong, where, and what to do.
    """


class Refused(Exception):
    """The content of a file was understood but is not accepted; the caller adds the path."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(found, advice)
        self.found = found
        self.advice = advice


def quoted(value: object) -> str:
    """A value from a file, shortened and safe to print on a terminal.

    `value` must be a string, bytes, or a flat tuple of numbers.
    """
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def one_line(error: BaseException) -> str:
    """The message of a library's exception as one short ASCII line."""
    line = " ".join(str(error).split()).encode("ascii", "backslashreplace").decode()
    line = line if len(line) <= 120 else f"{line[:117]}..."
    return line.rstrip(".") or type(error).__name__
