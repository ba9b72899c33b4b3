"""How long an image needs the interpreter's lock, which one thread of a process has at a time.

It is sampled by py-spy, which looks 200 times a second at which thread holds it, and where. On a
machine that does other work as well, a thread waits for a core with the lock and without it: only
the share of time with a core is counted. What is left of the disturbance makes the figures too
large, several times where many processes want a core. The process pauses while it is looked at:
otherwise py-spy loses a tenth of its looks, since the stack changes meanwhile.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from benchmark_passes import Contender

from eval.errors import EvalError, UsageError

RATE = 200  # samples a second; with 500, the process hardly runs in some runtimes
_WORKER = "_worker (concurrent/futures/thread.py"


class LockTime(NamedTuple):
    """What an image needs.

    Attributes:
        total: milliseconds with the lock, of all workers.
        native: milliseconds of a core without it.
        places: the same as `total` by the line of code that had it, the longest first.
    """

    total: float
    native: float
    places: Mapping[str, float]


def sampler() -> str:
    """The program py-spy.

    Raises:
        UsageError: it is not installed.
    """
    beside = Path(sys.executable).with_name("py-spy")
    found = shutil.which("py-spy") or (str(beside) if beside.exists() else None)
    if not found:
        raise UsageError(
            "Lock time is sampled with py-spy, which is not installed: pip install py-spy."
        )
    return found


def lock_time(contender: Contender, places: Mapping[str, str]) -> LockTime:
    """Sample a single measurement of `benchmark_passes.py`.

    Args:
        contender: what to measure, on one thread.
        places: its images, weights and cache.

    Raises:
        UsageError: see `sampler`.
        EvalError: the measurement failed.
    """
    asked = json.dumps({**dataclasses.asdict(contender), **places})
    script = Path(__file__).with_name("benchmark_passes.py")
    with tempfile.NamedTemporaryFile(suffix=".raw") as file:
        done = subprocess.run(
            [sampler(), "record", "--gil", "--rate", str(RATE), "--format", "raw",
             "--output", file.name, "--", sys.executable, str(script), asked],
            capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(script.parents[1])},
        )  # fmt: skip
        lines = [line for line in done.stdout.splitlines() if line.startswith('{"')]
        if not lines:
            raise EvalError(f"{contender.name} failed:\n{done.stderr[-2000:]}")
        samples = Path(file.name).read_text(encoding="utf-8")
    result = json.loads(lines[-1])
    if "unavailable" in result:
        raise EvalError(result["unavailable"])
    return of_samples(samples, result["images"], result["seconds"], result["cpu"])


def of_samples(samples: str, images: int, seconds: float, cpu: float) -> LockTime:
    """Lock time from py-spy's samples of one worker.

    Args:
        samples: lines of a stack, its frames separated by semicolons, and how often it was seen.
        images: how many were measured.
        seconds: in which.
        cpu: seconds that the process had a core for.
    """
    counts: Counter[str] = Counter()
    for line in samples.splitlines():
        stack, _, count = line.rpartition(" ")
        if _WORKER in stack:
            counts[stack.rpartition(";")[2]] += int(count)
    each = 1000 / RATE / images * min(1.0, cpu / seconds)
    total = each * counts.total()
    places = {place: each * count for place, count in counts.most_common()}
    return LockTime(total, 1000 * cpu / images - total, places)
