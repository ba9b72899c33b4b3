"""Global settings that predictions depend on: set for an evaluation and restored afterwards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from eval.images.preprocess import exact_opencv
from eval.measure.allocator import freed_memory_kept

_CHATTY = ("torch.onnx", "nncf", "onnxscript")  # loggers of exporters and quantisers


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
