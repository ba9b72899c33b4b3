"""Make ``eval/resources/val_labels.u16`` from a list of the 50,000 official labels.

    python scripts/make_val_labels.py ILSVRC2012_val_labels.txt

The list has a line `name index` for each image, ordered by image number. The index is the position
of the synset in the sorted list of 1000. The output contains only the indices, as little-endian
uint16.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.cli import run_command
from eval.errors import DataError

OUTPUT = Path(__file__).parents[1] / "eval" / "resources" / "val_labels.u16"


def encode(text: str) -> bytes:
    """Encode the list as little-endian uint16, two bytes per image.

    Args:
        text: the content of the list.

    Raises:
        DataError: this is not the list of the 50,000 official labels.
    """
    rows = [line.split() for line in text.splitlines()]
    expected = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]
    named = all(len(row) == 2 and row[1].isascii() and row[1].isdigit() for row in rows)
    if not named or [name for name, _ in rows] != expected:
        raise DataError("The list does not have a line for each of images 1 to 50000, in order.")
    labels = np.array([int(index) for _, index in rows], "<u2")
    if np.bincount(labels, minlength=1000).tolist() != [50] * 1000:
        raise DataError("The list does not have 50 images in each of the 1000 classes.")
    return labels.tobytes()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code, as ``python -m eval.imagenet`` does."""
    return run_command(_run, argv)


def _run(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("list", type=Path, help="text file with a line `name index` per image")
    path = parser.parse_args(arguments).list
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    OUTPUT.write_bytes(encode(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
