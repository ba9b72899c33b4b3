"""A task of a network that is there in a moment; other processes import it as well."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from eval.backends import Task
from eval.images.preprocess import PREPROCESS

FORM = "reparameterized"


class Tiny(nn.Module):
    """One layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1000, 32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3))  # type: ignore[no-any-return]


def tiny_task(**changes: object) -> Task:
    torch.manual_seed(1)
    task = Task(
        "torch", {FORM: Tiny().eval()}, PREPROCESS["torchvision"], torch.device("cpu"),
        "fp32", batch_size=2, workers=2, classes=1000,
    )  # fmt: skip
    return dataclasses.replace(task, **changes)  # type: ignore[arg-type]
