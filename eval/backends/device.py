"""Which device a run uses, and the switches that keep its float32 exact."""

from __future__ import annotations

import re

import torch

from eval.errors import UsageError


def choose_device(name: str, process: int = 0) -> torch.device:
    """The device of a process.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: a GPU where there is one. Without a
            number, each process of a machine takes the GPU of its own number.
        process: number of this process on its machine.

    Raises:
        UsageError: the device is not there.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if available else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"--device {name}: use auto, cpu, cuda or cuda:N.")
    if name == "cuda":
        name = f"cuda:{process}"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= available:
        raise UsageError(
            f"--device {name}: torch can use {available} CUDA devices here. Use --device cpu, "
            "fewer processes, or check the driver with nvidia-smi."
        )
    return device


def exact_float32() -> dict[str, bool]:
    """Switch off everything that may change float32 results unasked, and say what was set."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    return {
        "cuda.matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
    }
