"""What goes wrong with weights, and how it is put."""

from __future__ import annotations

FETCH_AGAIN = "Get the file again, or let --weights auto do it."
SAVE_TENSORS = "Where you trust it, load it and save only model.state_dict()."


class WeightsError(Exception):
    """Weights are missing, damaged, refused or of another model.

    The message is one or two lines: what was found, where, and what to do.
    """


class Refused(Exception):
    """What a file holds was understood and is not accepted; the path is still to be added."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(found, advice)
        self.found = found
        self.advice = advice


def quoted(value: object) -> str:
    """A value from a file: short, and safe to print on a terminal.

    `value` must be text, bytes, or a flat tuple of numbers.
    """
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def one_line(error: BaseException) -> str:
    """What an exception of some library says: one line, short, safe to print."""
    line = " ".join(str(error).split()).encode("ascii", "backslashreplace").decode()
    line = line if len(line) <= 120 else f"{line[:117]}..."
    return line.rstrip(".") or type(error).__name__
