"""Global settings that predictions depend on: set for an evaluation and restored afterwards."""

from __future__ import annotations

import ctypes
import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from eval.images.preprocess import exact_opencv

_CHATTY = ("torch.onnx", "nncf", "onnxscript")  # loggers of exporters and quantizers


@contextmanager
def exact_settings() -> Iterator[dict[str, Any]]:
    """Use exact float32 and one thread per worker until the context ends.

    TF32 and cuDNN's benchmark mode are switched off. Each worker decodes and computes in its own
    thread, so OpenCV and torch must not start more threads. Torch's random state is restored, too.

    Yields:
        The settings, by name, for the reports.
    """
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    threads = torch.get_num_threads()
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    random = torch.get_rng_state()
    cuda.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = False
    # Before any model is prepared: oneDNN lays the weights out for this number of threads, and a
    # batch of one takes five times as long on another.
    torch.set_num_threads(1)
    try:
        with exact_opencv():
            yield {
                "cuda.matmul.allow_tf32": cuda.allow_tf32,
                "cudnn.allow_tf32": cudnn.allow_tf32,
                "cudnn.benchmark": cudnn.benchmark,
                **freed_memory_kept(),
            }
    finally:
        cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
        torch.set_num_threads(threads)
        torch.set_rng_state(random)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


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
