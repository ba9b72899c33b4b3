"""Where the time of a run goes: each step of a worker, timed alone on one core.

    profile_run.py --data PHOTOS --weights F --images 400

The steps are those of `eval.measure.engine.measure`, called as it calls them; the last tables
split the time of the models by operator.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from benchmark_passes import convolution_rate
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from eval.backends.pytorch import TorchPredictor
from eval.command import run_command
from eval.errors import ModelError
from eval.images.preprocess import PREPROCESS
from eval.images.valset import open_valset
from eval.measure.allocator import keep_freed_memory
from eval.measure.engine import CPU_BATCH
from eval.measure.journal import Journal, record_dtype
from eval.measure.metrics import Scores, check_logits
from pplcnet import WeightsError, read_weights, reparameterize
from pplcnet._weights import model_for

Result = TypeVar("Result")


class Clock:
    """Seconds by step."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def time(self, step: str, call: Callable[[], Result]) -> Result:
        """Call, and add what it took."""
        started = time.perf_counter()
        result = call()
        self.seconds[step] += time.perf_counter() - started
        return result


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=int, default=400)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)

    preprocess = PREPROCESS["torchvision"]
    valset = open_valset(args.data).limited(args.images)
    try:
        model = model_for(read_weights(args.weights))
    except WeightsError as error:
        raise ModelError(str(error)) from error
    predictors = {
        form: TorchPredictor({form: each}, preprocess, torch.device("cpu"), "fp32", CPU_BATCH)
        for form, each in (("unfused", model), ("reparameterized", reparameterize(model)))
    }
    clock = Clock()
    samples = valset.samples[: len(valset.samples) // CPU_BATCH * CPU_BATCH]
    operators: dict[str, Counter[str]] = {form: Counter() for form in predictors}
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder), {}, predictors) as journal:
        for start in range(0, len(samples), CPU_BATCH):
            batch = samples[start : start + CPU_BATCH]
            crops = []
            for sample in batch:
                data = clock.time("read the file", lambda s=sample: valset.read(s.path))
                clock.time("SHA-256 of it", lambda d=data: hashlib.sha256(d).digest())
                clock.time("decode, alone", lambda d=data: Image.open(io.BytesIO(d)).convert("RGB"))
                crops.append(clock.time("decode, resize, crop", lambda d=data: preprocess.crop(d)))
            pixels = np.stack(crops)
            clock.time("normalize, alone", lambda p=pixels: preprocess.normalize(p))
            labels = np.array([sample.label for sample in batch])
            for form, predictor in predictors.items():
                name = f"normalize and {form} model"
                logits = clock.time(name, lambda p=predictor, x=pixels: p(x))[form]
                clock.time("check and score", lambda x=logits: check_logits(x, [""] * len(x)))
                clock.time("check and score", lambda x=logits, y=labels: Scores.of(x, y))
            records = np.zeros(len(batch), record_dtype(predictors))
            clock.time("journal", lambda r=records: journal.append(r))
    for form, predictor in predictors.items():
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
            for _ in range(5):
                predictor(pixels)
        for row in profiled.key_averages(group_by_input_shape=True):
            operators[form][kind_of(row.key, row.input_shapes)] += row.self_cpu_time_total

    count = len(samples)
    print(f"{count} images, batches of {CPU_BATCH}, one core; ms per image")
    for step, seconds in clock.seconds.items():
        print(f"{step:36}{1000 * seconds / count:8.3f}")
    for form, predictor in predictors.items():
        print(f"{form}: {'; '.join(predictor.settings.values())}")
    print(f"\noneDNN's best 1x1 convolution, float32, one core: {convolution_rate():.0f} GFLOP/s")
    for form, times in operators.items():
        total = sum(times.values())
        print(f"\n{form}, by operator: share of its time")
        for name, share in times.most_common(8):
            print(f"{name:36}{100 * share / total:7.1f} %")
    return 0


def kind_of(operator: str, shapes: list[list[int]]) -> str:
    """The operator; convolutions by their kernel and whether they are depthwise."""
    if "convolution" not in operator or len(shapes) < 2 or len(shapes[0]) != 4:
        return operator
    channels, weight = shapes[0][1], shapes[1]
    if len(weight) != 4:
        return operator
    depthwise = weight[1] == 1 and channels > 1
    return f"{'depthwise' if depthwise else 'dense'} convolution {weight[2]}x{weight[3]}"


if __name__ == "__main__":
    sys.exit(run_command(lambda _: main()))
