"""The time of one image: percentiles by hand, and real rows of a real model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from eval.backends import Task
from eval.errors import DataError
from eval.images.preprocess import PREPROCESS
from eval.images.valset import open_valset
from eval.measure import latency
from eval.measure.latency import STAGES, _row, measure_latency


def task(model: nn.Module) -> Task:
    cpu = torch.device("cpu")
    return Task("torch", {"f": model}, PREPROCESS["torchvision"], cpu, "fp32", 4, 2)


class Slow(nn.Module):
    """Takes at least as long as it was told, in milliseconds."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        import time

        assert len(x) == 1
        time.sleep(0.004)
        return x.mean((2, 3))


def test_percentiles_by_hand() -> None:
    row = _row("f", 2, "model", np.arange(1, 102) / 1000)  # 1 to 101 ms
    assert (row.median_ms, row.p90_ms, row.p99_ms) == pytest.approx((51, 91, 100))
    assert (row.threads, row.batch, row.images) == (2, 1, 101)


def test_rows_of_a_model(val_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "WARM_UP", 1)
    valset = open_valset(val_folder({"n01440764": ["a.JPEG", "b.JPEG"], "n01443537": ["c.JPEG"]}))
    threads = torch.get_num_threads()
    rows = measure_latency(task(Slow()), valset, images=2)
    assert torch.get_num_threads() == threads
    cores = sorted({1, os.cpu_count() or 1})
    assert [(row.threads, row.stage) for row in rows] == [(n, s) for n in cores for s in STAGES]
    for alone, whole in zip(rows[::2], rows[1::2], strict=True):
        assert 4 <= alone.median_ms < whole.median_ms
        assert alone.median_ms <= alone.p90_ms <= alone.p99_ms
        assert alone.images == whole.images == 2


def test_images_that_cannot_be_decoded_do_not_count(
    val_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "WARM_UP", 1)
    folder = val_folder({"n01440764": ["a.JPEG", "b.JPEG"]})
    (folder / "n01440764" / "a.JPEG").write_bytes(b"no image")
    assert measure_latency(task(Slow()), open_valset(folder))[0].images == 1
    (folder / "n01440764" / "b.JPEG").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the images"):
        measure_latency(task(Slow()), open_valset(folder))
