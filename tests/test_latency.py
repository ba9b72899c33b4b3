"""The time of one image: percentiles by hand, and real rows of a real model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
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


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


class Clock:
    """In place of the module `time`: time passes only where a test says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_percentiles_by_hand() -> None:
    row = _row("f", 2, "model", np.arange(1, 102) / 1000)  # 1 to 101 ms
    assert (row.median_ms, row.p90_ms, row.p99_ms) == pytest.approx((51, 91, 100))
    assert (row.threads, row.batch, row.images) == (2, 1, 101)


def test_rows_of_a_model(val_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The images take 4 and 6 ms by turns, and 2 ms each to be decoded."""
    clock, calls = Clock(), count()
    original = PREPROCESS["torchvision"]

    def crop(data: bytes) -> np.ndarray:
        clock.now += 0.002
        return original.crop(data)

    def predictor_for(task: Task) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        assert (task.batch_size, task.workers) == (1, 1)

        def predict(crops: np.ndarray) -> dict[str, np.ndarray]:
            assert crops.shape == (1, 224, 224, 3)
            clock.now += (0.004, 0.006, 100)[next(calls) % 3 - 1]
            return {"f": np.zeros((1, 3), np.float32)}

        return predict

    monkeypatch.setattr(latency, "time", clock)
    monkeypatch.setattr(latency, "WARM_UP", 1)  # of 100 s
    monkeypatch.setattr(latency, "predictor_for", predictor_for)
    monkeypatch.setattr(latency.os, "cpu_count", lambda: 4)
    valset = open_valset(val_folder({"n01440764": ["a.JPEG", "b.JPEG"], "n01443537": ["c.JPEG"]}))
    threads = torch.get_num_threads()
    asked = replace(task(Mean()), preprocess=replace(original, crop=crop))
    rows = measure_latency(asked, valset, images=2)
    assert torch.get_num_threads() == threads
    assert [(row.threads, row.stage) for row in rows] == [(n, s) for n in (1, 4) for s in STAGES]
    for alone, whole in zip(rows[::2], rows[1::2], strict=True):
        assert (alone.median_ms, alone.p90_ms, alone.p99_ms) == pytest.approx((5, 5.8, 5.98))
        assert (whole.median_ms, whole.p90_ms, whole.p99_ms) == pytest.approx((7, 7.8, 7.98))
        assert alone.images == whole.images == 2


def test_images_that_cannot_be_decoded_do_not_count(
    val_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "WARM_UP", 1)
    folder = val_folder({"n01440764": ["a.JPEG", "b.JPEG"]})
    (folder / "n01440764" / "a.JPEG").write_bytes(b"no image")
    assert measure_latency(task(Mean()), open_valset(folder))[0].images == 1
    (folder / "n01440764" / "b.JPEG").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the images"):
        measure_latency(task(Mean()), open_valset(folder))


def test_a_model_is_converted_once(
    val_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval.backends import onnx

    made = []

    def sources(*arguments: object) -> dict[int, bytes]:
        made.append(arguments)
        return real(*arguments)  # type: ignore[arg-type]

    real = onnx.sources
    monkeypatch.setattr(onnx, "sources", sources)
    monkeypatch.setattr(latency, "WARM_UP", 1)
    monkeypatch.setattr(latency.os, "cpu_count", lambda: 2)
    valset = open_valset(val_folder({"n01440764": ["a.JPEG"]}))
    rows = measure_latency(replace(task(Mean()), backend="onnxruntime"), valset)
    assert {row.threads for row in rows} == {1, 2}
    assert len(made) == 1
