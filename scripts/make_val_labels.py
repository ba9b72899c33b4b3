"""Make ``eval/resources/val_labels.u16`` from a list of the 50,000 official labels.

    python scripts/make_val_labels.py ILSVRC2012_val_labels.txt

The list has a line `name index` for each image, in order of its number; the index is the position
of the synset in the sorted list. The result has the indices alone, as little-endian uint16.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.command import run_command
from eval.errors import DataError

OUTPUT = Path(__file__).parents[1] / "eval" / "resources" / "val_labels.u16"


def encode(text: str) -> bytes:
    """The list as bytes, two for each image.

    Raises:
        DataError: it is not the list of the 50,000 official labels.
    """
    rows = [line.split() for line in text.splitlines()]
    expected = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]
    named = all(len(row) == 2 and row[1].isascii() and row[1].isdigit() for row in rows)
    if not named or [name for name, _ in rows] != expected:
        raise DataError("The list does not name images 1 to 50000 in order.")
    labels = np.array([int(index) for _, index in rows], "<u2")
    if np.bincount(labels, minlength=1000).tolist() != [50] * 1000:
        raise DataError("The list does not have 50 images of each of 1000 classes.")
    return labels.tobytes()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and give its exit code, as of ``python -m eval.imagenet``."""
    return run_command(_run, argv)


def _run(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("list", type=Path)
    path = parser.parse_args(arguments).list
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    OUTPUT.write_bytes(encode(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
