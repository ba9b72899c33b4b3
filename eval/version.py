"""The version of this package, as it was installed."""

from __future__ import annotations

from importlib import metadata

DISTRIBUTION = "pplcnet-eval"


def version() -> str:
    """The installed version; ``0+unknown`` for a source tree that was never installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+unknown"
