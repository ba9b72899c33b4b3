"""How many processes, threads and images at a time suit a machine."""

from __future__ import annotations

import os

import torch

from eval.backends import BACKENDS
from eval.processes import own_place, usable_cores

CPU_BATCH = 8  # one part (eval/backends/pytorch.py): more would only use more memory
GPU_BATCH = 64
# A thread holds the interpreter's lock for 3 to 12 % of its time, by form, backend and cache
# (docs/performance.md): of so many, each waits for it hardly at all.
MOST_THREADS = 4
# Another process takes some seconds of a core until it measures; these are as much.
LEAST_IMAGES = 1000
GPU_BYTES = 2 << 30  # of a GPU for each process: torch's own, the model and its batches


def choose_workers(processes: int = 1) -> int:
    """Threads of each process: one per core that may be used, in all that share a machine."""
    return -(-_cores() // processes)


def choose_processes(images: int, device: torch.device, backend: str = "torch") -> int:
    """Processes for so many images: few enough threads in each, enough images and memory for each.

    Args:
        images: how many there are.
        device: that all of them share.
        backend: that computes in each.
    """
    if os.name != "posix":
        return 1
    threads = 1 if BACKENDS[backend].keeps_lock else MOST_THREADS
    most = min(-(-_cores() // threads), images // LEAST_IMAGES)
    if device.type == "cuda":
        most = min(most, torch.cuda.mem_get_info(device)[0] // GPU_BYTES)
    return max(1, most)


def choose_batch_size(device: torch.device) -> int:
    """Images per batch for a device."""
    return CPU_BATCH if device.type == "cpu" else GPU_BATCH


def _cores() -> int:
    return max(1, usable_cores() // own_place().local_count)
