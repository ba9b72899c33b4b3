"""Make ``eval/resources/val_labels.u16`` from a list of the 50,000 official labels.

    python scripts/make_val_labels.py ILSVRC2012_val_labels.txt

The list has a line `name index` for each image, in order of its number; the index is the position
of the synset in the sorted list. The result has the indices alone, as little-endian uint16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

OUTPUT = Path(__file__).parents[1] / "eval" / "resources" / "val_labels.u16"


def encode(text: str) -> bytes:
    """The list as bytes, two for each image."""
    rows = [line.split() for line in text.splitlines()]
    expected = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]
    if [name for name, _ in rows] != expected:
        raise SystemExit("the list does not name images 1 to 50000 in order")
    labels = np.array([int(index) for _, index in rows], "<u2")
    if np.bincount(labels, minlength=1000).tolist() != [50] * 1000:
        raise SystemExit("the list does not have 50 images of each of 1000 classes")
    return labels.tobytes()


def main() -> None:
    """Read the list that the command line names, and write the resource."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("list", type=Path)
    OUTPUT.write_bytes(encode(parser.parse_args().list.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
