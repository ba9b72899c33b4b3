"""The variants of PP-LCNetV2: scale and depths (PaddleClas, ``pp_lcnet_v2.py``)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One set of released weights: its name and the network that it belongs to."""

    name: str
    scale: float  # channel multiplier
    depths: tuple[int, int, int, int]  # blocks per stage, including the downsampling block


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("small", 0.75, (2, 2, 4, 2)),
        Variant("base", 1.0, (2, 2, 6, 2)),
        Variant("base_ssld", 1.0, (2, 2, 6, 2)),  # base, distilled: the same network
        Variant("large", 1.25, (2, 2, 8, 2)),
    )
}


def find_variant(name: str) -> Variant:
    """Find a variant by name.

    Raises:
        ValueError: there is no such variant; the message lists those that exist.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    close = difflib.get_close_matches(name, VARIANTS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"Unknown variant {name!r}.{hint} Available: {', '.join(VARIANTS)}.")
