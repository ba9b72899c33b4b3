"""Sizes of images that the validation set cannot have.

Its photos are of all sizes, 500 x 375 pixels in about a quarter of them. Copies that were resized
(ImageNet-C, the 256-pixel copies on the Hub) have its names and labels, and other pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from eval.errors import UnreadableImage

_LOOKED_AT = 64  # images
_FEWEST = 32  # that 32 photos of the real set are of one size does not happen
_RESIZED = 256  # pixels of the short side in common copies


def odd_sizes(read: Callable[[str], bytes], paths: Sequence[str]) -> str:
    """What is odd about the sizes of the first images; "" if nothing is.

    The first ones lie together in every layout. Those that cannot be read do not count.
    """
    if len(paths) < _FEWEST:
        return ""
    sizes = [size for path in paths[:_LOOKED_AT] if (size := _size(read, path))]
    if len(sizes) < _FEWEST:
        return ""
    if len(set(sizes)) == 1:
        width, height = sizes[0]
        return f"all of the first {len(sizes)} images have {width} x {height} pixels"
    if {min(size) for size in sizes} == {_RESIZED}:
        return f"all of the first {len(sizes)} images have a short side of {_RESIZED} pixels"
    return ""


def _size(read: Callable[[str], bytes], path: str) -> tuple[int, int] | None:
    from PIL import Image  # opening a set of a few images does without

    try:
        with Image.open(io.BytesIO(read(path))) as image:
            return image.size
    except (UnreadableImage, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
