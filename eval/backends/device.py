"""The device of a run, and what its processor is good for."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from eval.errors import UsageError


def choose_device(name: str, process: int = 0) -> torch.device:
    """Choose the device of a process.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:N``, or ``auto`` (a GPU if there is one, else the CPU).
            Without N, process number i of a machine uses GPU i.
        process: number of this process on its machine, from 0.
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
            f"--device {name}: torch finds {available} CUDA devices on this machine.\n"
            "Use --device cpu or fewer processes, or check the driver with nvidia-smi."
        )
    return device


def int8_note() -> str:
    """Whether this processor adds int8 products exactly, as VNNI does, for the reports.

    Without it, x86 kernels may saturate, so that an int8 file scores otherwise.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        found = "it is not known whether this processor has VNNI"
    else:
        found = f"this processor {'has' if 'vnni' in flags else 'does not have'} VNNI"
    return f"{found}; on another processor an int8 file can score differently"
