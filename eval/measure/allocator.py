"""Keep freed memory in the process, so that the next batch need not get it from the system again.

glibc maps every large block separately and unmaps it as soon as it is freed. A batch of activations
takes some ten megabytes, so the memory of every layer of every batch would be mapped, zeroed page
by page and unmapped again. With higher thresholds, the same memory is reused.

The setting affects the whole process and cannot be undone, so only commands make it.
"""

from __future__ import annotations

import ctypes
import platform

_MIB = 2**20
# Numbers from glibc's malloc.h, values in bytes, largest first: old versions refuse large ones.
_OPTIONS = {
    "M_MMAP_THRESHOLD": (-3, (1024 * _MIB, 32 * _MIB)),  # blocks up to this size are not mapped
    "M_TRIM_THRESHOLD": (-1, (2047 * _MIB,)),  # free memory that is kept
    "M_TOP_PAD": (-2, (64 * _MIB,)),  # fetched, and kept by a thread's arena, beyond what is needed
}
_in_effect: dict[str, int] = {}


def keep_freed_memory() -> dict[str, int]:
    """Raise glibc's thresholds, once for a process; with another C library, nothing is done.

    Returns:
        What was set, in bytes, by the name of the option.
    """
    if not _in_effect and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for name, (number, values) in _OPTIONS.items():
            accepted = next((value for value in values if mallopt(number, value) == 1), None)
            if accepted is not None:
                _in_effect[name] = accepted
    return freed_memory_kept()


def freed_memory_kept() -> dict[str, int]:
    """What `keep_freed_memory` has set in this process."""
    return dict(_in_effect)
