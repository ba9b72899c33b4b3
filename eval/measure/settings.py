"""Global settings that the predictions depend on: set for an evaluation, and put back after it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import torch

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
    threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    log_level = cv2.utils.logging.getLogLevel()
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    random = torch.get_rng_state()
    cuda.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = False
    cv2.setNumThreads(1)
    # An image that cannot be decoded is reported with its path; OpenCV's lines say no more.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield {
            "cuda.matmul.allow_tf32": cuda.allow_tf32,
            "cudnn.allow_tf32": cudnn.allow_tf32,
            "cudnn.benchmark": cudnn.benchmark,
        }
    finally:
        cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv2_threads)
        cv2.utils.logging.setLogLevel(log_level)
        torch.set_rng_state(random)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
