"""Torch: lowered for a CPU, eager mode, and ``torch.compile``.

Every form sees the same normalized batch, so that any difference between their answers is the
model's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eval.backends.imagewise import imagewise
from eval.backends.lowering import lower, usable
from eval.backends.onecall import in_one_call
from eval.errors import UsageError
from eval.images.preprocess import Crop, Preprocess

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU_PART = 8  # images: enough work for a call, and little enough for the caches
# The lowered graph may be so many times as far from float64's logits as eager mode is. Where both
# are nearer than `ROUNDING` machine epsilons of the largest logit, nothing can be told from it.
TOLERATED = 4
ROUNDING = 2
CHECKED = (2, 16)  # images: if a few are judged unluckily, more
Forward = Callable[[Tensor], Tensor]


class TorchPredictor:
    """The forms in torch, channels last.

    On a CPU each form is lowered (`eval.backends.lowering`), and used so if its answers are then as
    near to float64's as eager mode's are; otherwise it runs in eager mode, and `settings` says why.
    Batches are worked through in parts of equal size; what is missing in the last part is filled up
    with zeros, so that an image's logits do not depend on how many others there are.

    Args:
        models: form name to model; they are copied.
        preprocess: whose `normalize` the models were trained for.
        device: where to compute.
        precision: a key of `DTYPES`; weights and inputs are cast after any folding.
        batch_size: the size that most batches will have.

    Attributes:
        settings: how each form is computed, for the reports.
        part: images that are computed at a time.
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
        self.settings: dict[str, str] = {}
        self.part = part_size(batch_size) if self._in_parts() else batch_size
        self._table = torch.from_numpy(preprocess.table).to(device)
        self._forward = {
            form: self._prepared(
                form,
                copy.deepcopy(model)
                .eval()
                .to(device, self.dtype)
                .to(memory_format=torch.channels_last),
            )
            for form, model in models.items()
        }

    def _in_parts(self) -> bool:
        """Whether a batch is worked through in parts."""
        return self.device.type == "cpu"

    def _prepared(self, form: str, model: nn.Module) -> Forward:
        """What is called for a part of a batch."""
        if self.device.type != "cpu":
            return model
        forward, how = lowered_or_eager(model, self._check_batches())
        self.settings[f"torch, {form}"] = f"{how}; micro-batches of {self.part}"
        return forward

    def _check_batches(self) -> list[Tensor]:
        """Smooth images and uniform noise by turns, always the same, at least `CHECKED`."""
        size, rng = self.preprocess.size, np.random.default_rng(0)
        crops = np.empty((self.part * math.ceil(CHECKED[-1] / self.part), size, size, 3), np.uint8)
        for number, crop in enumerate(crops):
            side = size if number % 2 else 7
            drawn = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            crop[:] = cv2.resize(drawn, (size, size))
        return [self._batch(part) for part in np.split(crops, len(crops) // self.part)]

    def __call__(self, crops: Crop) -> dict[str, NDArray[Any]]:
        """uint8 crops (B, size, size, 3) to float32 logits (B, classes) of each form."""
        answers: dict[str, list[NDArray[Any]]] = {form: [] for form in self._forward}
        size = self.part if self._in_parts() else max(1, len(crops))
        with torch.inference_mode():
            for start in range(0, len(crops), size):
                part = crops[start : start + size]
                batch = self._batch(_filled_up(part, size))
                for form, forward in self._forward.items():
                    logits = forward(batch)[: len(part)]
                    answers[form].append(logits.float().cpu().numpy())
        return {form: np.concatenate(parts) for form, parts in answers.items()}

    def _batch(self, crops: Crop) -> Tensor:
        """uint8 (B, size, size, 3) to normalized (B, 3, size, size), channels last, on the device.

        The channels lie next to each other for a batch of one, too: its strides are given by
        `permute`, not guessed from its shape.
        """
        return self._normalized(crops).permute(0, 3, 1, 2).to(self.dtype)

    def _normalized(self, crops: Crop) -> Tensor:
        """float32 (B, size, size, 3) on the device."""
        if self.device.type == "cpu":
            return torch.from_numpy(self.preprocess.normalize(crops))
        # The upload is a quarter of what float32 would be; the table gives the same bits.
        pinned = torch.from_numpy(np.ascontiguousarray(crops)).pin_memory()
        levels = pinned.to(self.device, non_blocking=True)
        return self._table[levels.int(), torch.arange(3, device=self.device)]


def part_size(batch_size: int) -> int:
    """Images in each part of a batch: equal parts of at most `CPU_PART`."""
    return math.ceil(batch_size / math.ceil(batch_size / CPU_PART))


def _filled_up(crops: Crop, size: int) -> Crop:
    """Crops (B, ...) and zeros after them, (size, ...)."""
    if len(crops) == size:
        return crops
    filled = np.zeros((size, *crops.shape[1:]), crops.dtype)
    filled[: len(crops)] = crops
    return filled


def lowered_or_eager(model: nn.Module, batches: Sequence[Tensor]) -> tuple[Forward, str]:
    """The model lowered for batches of this kind; itself where that fails or answers differently.

    Args:
        model: in evaluation mode, on the CPU.
        batches: of one size, `CHECKED` images together; what the answers are compared on.

    Returns:
        What to call, and how it computes, for the reports.
    """
    eager, dtype = "eager mode", batches[0].dtype
    if not usable(batches[0].device, dtype):
        return model, f"{eager} (this torch has no oneDNN operators for {dtype})"
    try:
        module, recorded = lower(model, batches[0])
        how = "lowered"
        if len(batches[0]) > 1:
            whole, module = module, imagewise(module, lower(model, batches[0][:1])[0])
            how += "" if module is whole else ", early layers image by image"
        lowered = in_one_call(module)

        def eagerly(batch: Tensor) -> Tensor:
            return recorded if batch is batches[0] else model(batch)

        for images in CHECKED:
            ours, eagers = _distances(model, (lowered, eagerly), batches, images)
            times = ours / max(eagers, ROUNDING * torch.finfo(dtype).eps)
            if times <= TOLERATED:
                return lowered, how
    except Exception as error:  # whatever it is, eager mode does what the model's code says
        reason = str(error).strip().partition("\n")[0]
        return model, f"{eager} (not lowered: {type(error).__name__}: {reason})"
    return model, (
        f"{eager} (lowered, it answered differently: by {ours:.1e} of the largest logit from "
        f"float64, {times:.3g} times as far as eager mode)"
    )


@torch.inference_mode()
def _distances(
    model: nn.Module, forwards: Sequence[Forward], batches: Sequence[Tensor], images: int
) -> list[float]:
    """How far each answers the first images from float64: root mean square, largest logit 1."""
    # Convolutions in float64 are twice as fast this way.
    exact = copy.deepcopy(model).double().to(memory_format=torch.contiguous_format)
    needed = batches[: math.ceil(images / len(batches[0]))]
    some = torch.cat(list(needed))[:images].double().contiguous()
    expected = torch.cat([exact(two) for two in torch.split(some, CHECKED[0])])
    largest = expected.abs().amax(1, keepdim=True)
    answers = (torch.cat([forward(batch) for batch in needed])[:images] for forward in forwards)
    return [float(((answer - expected) / largest).square().mean().sqrt()) for answer in answers]


class CompilePredictor(TorchPredictor):
    """The forms through ``torch.compile``, for batches of one size.

    Constants are folded for the deploy form only: in the unfused one that would fold its batch
    normalization, and it is to be measured as trained.

    Raises:
        UsageError: the compiler does not work here.
    """

    def _in_parts(self) -> bool:
        return False

    def _prepared(self, form: str, model: nn.Module) -> Forward:
        torch.set_num_threads(1)  # what is compiled is run by single-threaded workers
        fold = form == "reparameterized" and self.device.type == "cpu"
        compiled: Forward = torch.compile(model, dynamic=False, options={"freezing": fold})
        try:
            # Made as a batch is made: for any other kind of tensor it would compile once more.
            with torch.inference_mode():
                compiled(self._check_batches()[0])
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise UsageError(
                f"--backend compile: torch.compile failed ({type(error).__name__}: {reason}).\n"
                "Install a C++ compiler (g++ or clang++), or use --backend torch."
            ) from error
        return compiled
