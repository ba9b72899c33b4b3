"""Exported files, by the names that other modules import; see `eval.models.exported`."""

from __future__ import annotations

from eval.backends.signature import check_signature
from eval.models.exported import FORM, RUNTIMES, companions, is_exported, precision_of, size_of

__all__ = [
    "FORM",
    "RUNTIMES",
    "check_signature",
    "companions",
    "is_exported",
    "precision_of",
    "size_of",
]
