"""Global settings that the predictions depend on: set for an evaluation, and put back after it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from eval.images.preprocess import exact_opencv

_CHATTY = ("torch.onnx", "nncf", "onnxscript")  # loggers of exporters and quantisers


@contextmanager
def exact_settings() -> Iterator[dict[str, Any]]:
    """Exact float32 and one thread per worker, for as long as the context lasts.

    TF32 and cuDNN's benchmark mode are off. Each worker decodes and computes on its own thread, so
    that OpenCV and torch must not start more. The random state is put back, too.

    Yields:
        What was set, for the reports.
    """
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    threads = torch.get_num_threads()
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    random = torch.get_rng_state()
    cuda.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = False
    try:
        with exact_opencv():
            yield {
                "cuda.matmul.allow_tf32": cuda.allow_tf32,
                "cudnn.allow_tf32": cudnn.allow_tf32,
                "cudnn.benchmark": cudnn.benchmark,
            }
    finally:
        cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
        torch.set_num_threads(threads)
        torch.set_rng_state(random)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
