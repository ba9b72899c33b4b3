"""Freed memory stays with a command's process, and the reports say so."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource
from eval.measure.settings import freed_memory_kept, keep_freed_memory
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: no huge pages, whatever the system
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def in_ten_allocations():
    b"x" * 40_000_000  # fetched once
    before = faults()
    for _ in range(10):
        b"x" * 40_000_000
    return faults() - before
assert freed_memory_kept() == {}
print(in_ten_allocations())
found = keep_freed_memory()
assert found == freed_memory_kept() and found["M_TOP_PAD"] == 64 * 2**20, found
print(in_ten_allocations())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    import resource  # not everywhere

    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    left, kept = map(int, done.stdout.split())

    # Forty megabytes, ten times: too large for what glibc keeps by itself.
    pages = 10 * 40_000_000 // resource.getpagesize()
    assert kept < pages / 100
    assert left > pages * 0.9


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from eval.measure import settings as allocator

    monkeypatch.setattr(allocator, "_in_effect", {})
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert allocator.keep_freed_memory() == {}


def test_the_settings_of_a_run_say_what_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from eval.measure import settings as allocator
    from eval.measure.settings import exact_settings

    monkeypatch.setattr(allocator, "_in_effect", {"M_TOP_PAD": 5})
    with exact_settings() as found:
        assert found["M_TOP_PAD"] == 5
