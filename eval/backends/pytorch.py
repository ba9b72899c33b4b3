"""Torch: eager mode, and ``torch.compile``.

Every form sees the same normalised batch, so that any difference between their answers is the
model's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eval.backends.onednn import lower, usable
from eval.errors import UsageError
from eval.images.preprocess import Crop, Preprocess
from pplcnet import PPLCNetV2

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Forward = Callable[[Tensor], Tensor]


class TorchPredictor:
    """The forms in torch, channels last.

    On a CPU the convolutions of our network are prepared by `eval.backends.onednn.lower`, which
    keeps every operation; other models, and all where oneDNN is missing, run as they are.

    Args:
        models: form name to model; they are copied.
        preprocess: whose `normalize` the models were trained for.
        device: where to compute.
        precision: a key of `DTYPES`; weights and inputs are cast after any folding.
        batch_size: the size that most batches will have.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        preprocess: Preprocess,
        device: torch.device,
        precision: str = "fp32",
        batch_size: int = 1,
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
        self._forward = {
            form: self._prepared(form, model, batch_size) for form, model in self.models.items()
        }

    def _prepared(self, _form: str, model: nn.Module, batch_size: int) -> Forward:
        """What is called for a batch."""
        ours = isinstance(model, PPLCNetV2) and usable(self.device, self.dtype)
        return lower(model, batch_size) if ours else model

    def __call__(self, crops: Crop) -> dict[str, NDArray[Any]]:
        """uint8 crops (B, size, size, 3) to float32 logits (B, classes) of each form."""
        with torch.inference_mode():
            batch = self._normalized(crops).permute(0, 3, 1, 2).to(self.dtype)
            return {
                form: forward(batch).float().cpu().numpy()
                for form, forward in self._forward.items()
            }

    def _normalized(self, crops: Crop) -> Tensor:
        """float32 (B, size, size, 3) on the device."""
        if self.device.type == "cpu":
            return torch.from_numpy(self.preprocess.normalize(crops))
        # The upload is a quarter of what float32 would be; the table gives the same bits.
        pinned = torch.from_numpy(np.ascontiguousarray(crops)).pin_memory()
        levels = pinned.to(self.device, non_blocking=True)
        return self._table[levels.int(), torch.arange(3, device=self.device)]


class CompilePredictor(TorchPredictor):
    """The forms through ``torch.compile``, for batches of one size.

    Constants are folded for the deploy form only: in the unfused one that would fold its batch
    normalisation, and it is to be measured as trained.

    Raises:
        UsageError: the compiler does not work here.
    """

    def _prepared(self, form: str, model: nn.Module, batch_size: int) -> Forward:
        torch.set_num_threads(1)  # what is compiled is run by single-threaded workers
        size = self.preprocess.size
        fold = form == "reparameterized" and self.device.type == "cpu"
        compiled: Forward = torch.compile(model, dynamic=False, options={"freezing": fold})
        try:
            # Made as a batch is made: for any other kind of tensor it would compile once more.
            with torch.inference_mode():
                blank = torch.zeros(batch_size, size, size, 3, device=self.device)
                compiled(blank.permute(0, 3, 1, 2).to(self.dtype))
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise UsageError(
                f"--backend compile: torch.compile failed ({type(error).__name__}: {reason}).\n"
                "It needs a C++ compiler (g++ or clang++); or use --backend torch."
            ) from error
        return compiled
