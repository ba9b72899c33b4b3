"""Where the time of a run goes: each step of a worker, timed alone on one core.

    profile_run.py --data PHOTOS --weights F --images 400
    profile_run.py --data PHOTOS --weights F --images 400 --lock
    profile_run.py --early base mobilenetv2_100 resnet50

The steps are those of `eval.measure.engine.measure`, called as it calls them. The last tables split
the time of the models by operator, and show at which rate the convolutions run: oneDNN's best rate
in the same process is what they can be compared with.

With ``--lock``, instead: how long an image needs the interpreter's lock, and where, by py-spy. With
``--early``: networks with random weights, in whole batches and with their early layers image by
image, on all cores.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import numpy as np
import timm
import torch
from benchmark import link_images
from benchmark_passes import BOTH, Contender, convolution_rate, library_model
from locktime import lock_time
from PIL import Image
from torch import Tensor, fx

from eval.backends.imagewise import imagewise
from eval.backends.lowering import PackedConv2d, lower
from eval.backends.onecall import in_one_call
from eval.backends.pytorch import Forward, TorchPredictor
from eval.cli import run_command
from eval.errors import ModelError, UsageError
from eval.images.preprocess import PREPROCESS
from eval.images.valset import open_valset
from eval.measure.cores import CPU_BATCH, choose_workers
from eval.measure.journal import Journal, record_dtype
from eval.measure.settings import keep_freed_memory
from eval.metrics import Scores, check_logits
from pplcnet import VARIANTS, WeightsError, create_model, read_weights, reparameterize
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
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=CPU_BATCH)
    parser.add_argument("--lock", action="store_true", help="where the interpreter's lock is held")
    parser.add_argument(
        "--early", nargs="+", metavar="NETWORK", help="variants of ours, timm's names"
    )
    args = parser.parse_args()
    if args.early:
        return print_early(args.early)
    if not args.data or not args.weights:
        raise UsageError("--data and --weights are needed, or --early.")
    if args.lock:
        return print_lock(args.data, args.weights, args.images)
    return print_steps(args.data, args.weights, args.images, args.batch_size)


def print_steps(photos: Path, weights: Path, images: int, batch_size: int) -> int:
    """Milliseconds per image of each step, and of the operators of each form."""
    keep_freed_memory()
    torch.set_num_threads(1)

    preprocess = PREPROCESS["torchvision"]
    valset = open_valset(photos).limited(images)
    if len(valset.samples) < batch_size:
        raise UsageError(f"--images: at least one batch is needed, {batch_size} images.")
    try:
        model = model_for(read_weights(weights))
    except WeightsError as error:
        raise ModelError(str(error)) from error
    predictors = {
        form: TorchPredictor({form: each}, preprocess, torch.device("cpu"), "fp32", batch_size)
        for form, each in (("unfused", model), ("reparameterized", reparameterize(model)))
    }
    clock = Clock()
    samples = valset.samples[: len(valset.samples) // batch_size * batch_size]
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder), {}, predictors) as journal:
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
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
    count = len(samples)
    print(f"{count} images, batches of {batch_size}, one core; ms per image")
    for step, seconds in clock.seconds.items():
        print(f"{step:36}{1000 * seconds / count:8.3f}")
    for form, predictor in predictors.items():
        print(f"{form}: {'; '.join(predictor.settings.values())}")
    print(f"\noneDNN's best 1x1 convolution, float32, one core: {convolution_rate():.0f} GFLOP/s")
    for form, predictor in predictors.items():
        module = getattr(predictor._forward[form], "module", None)
        if isinstance(module, fx.GraphModule):
            print_layers(form, module, predictor._batch(pixels), repeats=40)
    return 0


def print_lock(data: Path, weights: Path, images: int, lines: int = 12) -> int:
    """The lock time of an image, and the lines that hold the lock longest."""
    contenders = (
        Contender("both forms", "ours", BOTH, workers=1),
        Contender("deploy form", "ours", workers=1),
        Contender("decode and crop", "crop", workers=1),
    )
    with tempfile.TemporaryDirectory() as name:
        link_images(data, Path(name) / "val", images)
        places = {"data": f"{name}/val", "weights": str(weights.resolve()), "cache": f"{name}/c"}
        for contender in contenders:
            found = lock_time(contender, places)
            print(f"{contender.name}: {found.total:.3f} ms per image with the interpreter's lock")
            for place, milliseconds in list(found.places.items())[:lines]:
                print(f"{milliseconds:10.3f}  {place}")
    return 0


def print_early(names: Sequence[str]) -> int:
    """For each network: ms per image and thread in whole batches, and image by image."""
    keep_freed_memory()
    torch.set_num_threads(1)
    threads, size = choose_workers(), CPU_BATCH
    print(f"{threads} threads, batches of {size}; ms per image and thread; largest difference")
    for name in names:
        if name not in VARIANTS and not timm.is_model(name):
            raise UsageError(
                f"--early {name}: no variant of ours ({', '.join(VARIANTS)}) or of timm."
            )
        torch.manual_seed(0)
        model = create_model(name).eval() if name in VARIANTS else library_model(name)
        forms = {name: model}
        if name in VARIANTS:
            forms = {f"{name}, unfused": model, f"{name}, deploy": reparameterize(model)}
        for form, network in forms.items():
            network.to(memory_format=torch.channels_last)
            batch = torch.randn(size, 224, 224, 3).permute(0, 3, 1, 2)
            try:
                whole = lower(network, batch)[0]
                early = imagewise(whole, lower(network, batch[:1])[0])
            except Exception as error:
                raise ModelError(
                    f"--early {name}: it cannot be lowered for 224 x 224 pixels ({error})."
                ) from error
            ways = [in_one_call(whole), in_one_call(early)]
            seconds = by_turns(ways, batch, threads)
            with torch.inference_mode():
                one, other = (way(batch) for way in ways)
            apart = float((one - other).abs().max() / one.abs().max())
            milliseconds = [1000 * median(each) / size for each in seconds]
            print(
                f"{form:28}" + "".join(f"{each:9.2f}" for each in milliseconds)
                + f"{milliseconds[1] / milliseconds[0]:8.3f}{apart:10.1e}"
            )  # fmt: skip
    return 0


def by_turns(
    ways: Sequence[Forward], batch: Tensor, threads: int, turns: int = 9, calls: int = 10
) -> list[list[float]]:
    """Seconds that a call takes in each of the threads, of each way, turn by turn."""

    def call(way: Forward) -> None:
        torch.set_num_threads(1)
        with torch.inference_mode():
            for _ in range(calls):
                way(batch)

    seconds: list[list[float]] = [[] for _ in ways]
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(turns):
            for way, found in zip(ways, seconds, strict=True):
                started = time.perf_counter()
                list(pool.map(call, [way] * threads))
                found.append((time.perf_counter() - started) / calls)
    return seconds


class Layer(NamedTuple):
    """The calls of one kind of operator in a forward pass of one image.

    Attributes:
        milliseconds: in the network.
        alone: of convolutions: milliseconds if each is repeated on the same images, so that its
            input and output are as near as the caches allow.
        gflop: of convolutions.
    """

    milliseconds: float = 0.0
    alone: float = 0.0
    gflop: float = 0.0


class TimedGraph(fx.Interpreter):
    """Runs a graph, and keeps the shortest time of each node in `seconds`."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seconds: dict[fx.Node, float] = {}

    def run_node(self, node: fx.Node) -> Any:
        """Run it, and time that."""
        started = time.perf_counter()
        result = super().run_node(node)
        seconds = time.perf_counter() - started
        self.seconds[node] = min(seconds, self.seconds.get(node, seconds))
        return result


class RepeatedGraph(TimedGraph):
    """The same, but each convolution is called many times before the next one."""

    def run_node(self, node: fx.Node) -> Any:
        """Run it; a convolution changes nothing but its result, and can be run again."""
        if node.op == "call_module":
            called = self.fetch_attr(str(node.target))
            if isinstance(called, PackedConv2d):
                for _ in range(20):
                    super().run_node(node)
        return super().run_node(node)


@torch.inference_mode()
def layers(module: fx.GraphModule, batch: Tensor, repeats: int) -> dict[str, Layer]:
    """Each kind of operator, the slowest first, per image.

    Args:
        module: a lowered network.
        batch: (B, 3, H, W).
        repeats: forward passes; the shortest time of each node counts.
    """
    graph, repeated = TimedGraph(module), RepeatedGraph(module)
    for _ in range(repeats):
        graph.run(batch)
    for _ in range(3):
        repeated.run(batch)
    found: dict[str, Layer] = {}
    per_image = 1e3 / len(batch)
    for node, seconds in graph.seconds.items():
        kind, alone, gflop = "the rest", 0.0, 0.0
        if node.op == "call_module":
            called = module.get_submodule(str(node.target))
            kind = type(called).__name__
            if isinstance(called, PackedConv2d):
                kind, alone = called.kind, per_image * repeated.seconds[node]
                gflop = 2e-9 * called.products * node.meta["tensor"].numel() / len(batch)
        before, this = found.get(kind, Layer()), (per_image * seconds, alone, gflop)
        found[kind] = Layer(*(a + b for a, b in zip(before, this, strict=True)))
    return dict(sorted(found.items(), key=lambda item: -item[1].milliseconds))


def print_layers(form: str, module: fx.GraphModule, batch: Tensor, repeats: int) -> None:
    """The table of `layers`."""
    table = layers(module, batch, repeats)
    total = sum(layer.milliseconds for layer in table.values())
    print(f"\n{form}, batches of {len(batch)}: {total:.2f} ms per image in its operators")
    print(f"{'':28}{'ms':>8}{'share':>9}{'GFLOP/s':>9}{'alone, ms':>11}{'GFLOP/s':>9}")
    for kind, layer in table.items():
        share = 100 * layer.milliseconds / total
        line = f"{kind:28}{layer.milliseconds:8.3f}{share:7.1f} %"
        if layer.gflop:
            line += f"{1e3 * layer.gflop / layer.milliseconds:9.0f}"
            line += f"{layer.alone:11.3f}{1e3 * layer.gflop / layer.alone:9.0f}"
        print(line)


if __name__ == "__main__":
    sys.exit(run_command(lambda _: main()))
