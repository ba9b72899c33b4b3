"""Takes away what other systems lack, when it is imported: also as a plugin, ``-p other_platform``.

Windows has no O_NONBLOCK, pread, sched_getaffinity, sysconf, nor the module resource; other C
libraries have no mallopt; a host program may keep SIGTERM for itself.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
import types
from typing import Any

import filelock  # noqa: F401 - its modules are looked through

# On Windows, filelock has another implementation; the one that runs here needs its own system.
_whole = types.ModuleType("os")
_whole.__dict__.update(vars(os))
for _key, _module in list(sys.modules.items()):
    if _key.startswith("filelock.") and hasattr(_module, "os"):
        _module.os = _whole  # type: ignore[attr-defined]

for _name in (
    *("O_NONBLOCK", "O_NOFOLLOW", "pread", "pwrite", "sysconf"),
    *("sched_getaffinity", "sched_setaffinity"),
):
    if hasattr(os, _name):
        delattr(os, _name)
sys.modules["resource"] = None  # type: ignore[assignment]
platform.libc_ver = lambda *_, **__: ("", "")  # type: ignore[assignment]

_signal, _load = signal.signal, ctypes.CDLL


def _no_handler(number: int, handler: Any) -> Any:
    if number == signal.SIGTERM:
        raise OSError("no handler")
    return _signal(number, handler)


class _Library(_load):  # type: ignore[misc, valid-type]
    def __init__(self, name: Any = None, *words: Any, **options: Any) -> None:
        if name is None:
            raise TypeError("no library of that name")
        super().__init__(name, *words, **options)


signal.signal = _no_handler  # type: ignore[assignment]
ctypes.CDLL = _Library  # type: ignore[misc]
