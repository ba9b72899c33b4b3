"""The forms of the model on a device: crops in, logits out.

Every form sees the same normalised batch, so that any difference between their answers is the
model's.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eval.errors import UsageError
from eval.preprocess import Crop, Preprocess

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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


class TorchPredictor:
    """Torch eager mode, channels last.

    Args:
        models: form name to model; they are copied.
        preprocess: whose `normalize` the models were trained for.
        device: where to compute.
        precision: a key of `DTYPES`; weights and inputs are cast after any folding.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        preprocess: Preprocess,
        device: torch.device,
        precision: str = "fp32",
    ) -> None:
        self.preprocess = preprocess
        self.device = device
        self.dtype = DTYPES[precision]
        self.models = {
            form: copy.deepcopy(model)
            .eval()
            .to(device, self.dtype)
            .to(memory_format=torch.channels_last)
            for form, model in models.items()
        }
        self._table = torch.from_numpy(preprocess.table).to(device)

    def __call__(self, crops: Crop) -> dict[str, NDArray[Any]]:
        """uint8 crops (B, 224, 224, 3) to float32 logits (B, classes) of each form."""
        with torch.inference_mode():
            batch = self._normalized(crops).permute(0, 3, 1, 2).to(self.dtype)
            return {form: model(batch).float().cpu().numpy() for form, model in self.models.items()}

    def _normalized(self, crops: Crop) -> Tensor:
        """float32 (B, 224, 224, 3) on the device."""
        if self.device.type == "cpu":
            return torch.from_numpy(self.preprocess.normalize(crops))
        # The upload is a quarter of what float32 would be; the table gives the same bits.
        levels = torch.from_numpy(np.ascontiguousarray(crops)).to(self.device, non_blocking=True)
        return self._table[levels.int(), torch.arange(3, device=self.device)]
