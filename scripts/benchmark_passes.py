"""The single measurements of `benchmark.py`; each runs in a process of its own.

    benchmark_passes.py '{"kind": "ours", "backend": "torch", ...}'

The one argument is a `Contender` and where its images and weights are, as JSON; the result is
printed as JSON.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.cli import run_command

BOTH = ("unfused", "reparameterized")
DEPLOY = ("reparameterized",)
OURS = "PP-LCNetV2"

# The 1x1 convolutions whose rate is taken for the processor's best: (B, C, H, W), C to C channels.
BEST_CONVOLUTIONS = ((4, 512, 14, 14), (4, 256, 28, 28))


@dataclass(frozen=True)
class Contender:
    """Something that is measured.

    Attributes:
        name: as in the table.
        kind: a key of `PASSES`.
        forms: of the model.
        backend: of ours.
        batch: images in a batch; 0 for our default.
        loaders: processes of timm's loader.
        flags: of timm's ``validate.py``.
        network: `OURS`, or a network of timm's with random weights.
        workers: threads of a process; 0 for our default.
        processes: of ours.
    """

    name: str
    kind: str
    forms: tuple[str, ...] = DEPLOY
    backend: str = "torch"
    batch: int = 0
    loaders: int = 0
    flags: tuple[str, ...] = ()
    network: str = OURS
    workers: int = 0
    processes: int = 1


@dataclass(frozen=True)
class Place:
    """Where things are.

    Attributes:
        data: a validation set.
        weights: of `OURS`.
        cache: a folder for crops.
    """

    data: Path
    weights: Path
    cache: Path


def timm_pass(contender: Contender, place: Place) -> dict[str, Any]:
    """Timm's loader, transforms and model, put together as its ``validate.py`` does."""
    import torch
    from timm.data import create_dataset, create_loader

    model = timm_model(contender, place.weights)
    layout = torch.channels_last if "channels-last" in contender.flags else torch.contiguous_format
    model = model.to(memory_format=layout)
    loader = create_loader(
        create_dataset("", root=str(place.data)),
        input_size=(3, 224, 224),
        batch_size=contender.batch,
        interpolation="bilinear",
        crop_pct=0.875,
        num_workers=contender.loaders,
        device=torch.device("cpu"),
    )
    classes: list[int] = []
    with torch.inference_mode():
        model(torch.zeros(contender.batch, 3, 224, 224).to(memory_format=layout))
        started = time.perf_counter()
        for images, _ in loader:
            logits = model(images.to(memory_format=layout))
            classes += logits.topk(5).indices[:, 0].tolist()
        seconds = time.perf_counter() - started
    return {"images": len(classes), "seconds": seconds, "classes": [classes]}


def timm_model(contender: Contender, weights: Path) -> Any:
    """The network as timm has it."""
    import timm
    from timm.utils.model import reparameterize_model

    if contender.network != OURS:
        return library_model(contender.network)
    from pplcnet import PPLCNetV2

    ours = load(weights)
    scales = {0.75: "small", 1.0: "base", 1.25: "large"}
    model = timm.create_model(f"lcnetv2_{scales[ours.scale]}").eval()
    model.load_state_dict(timm_state(ours, model.state_dict(), 1 - PPLCNetV2.DROP_RATE))
    return reparameterize_model(model) if "reparam" in contender.flags else model


def library_model(name: str) -> Any:
    """A network of timm's with random weights, always the same ones; its deploy form if any."""
    import timm
    import torch
    from timm.utils.model import reparameterize_model

    torch.manual_seed(0)
    return reparameterize_model(timm.create_model(name).eval())


def timm_state(ours: Any, theirs: dict[str, Any], kept: float) -> dict[str, Any]:
    """Our weights under timm's names; timm folds the factor of the dropout into ``last_conv``."""
    from pplcnet._weights import names_in

    state = ours.state_dict()
    renamed = {theirs: state[ours] for ours, theirs in names_in(state, "timm").items()}
    renamed["conv_head.weight" if "conv_head.weight" in theirs else "last_conv.weight"] = (
        state["last_conv.conv.weight"].double() * kept
    ).float()
    return {name: renamed.get(name, value) for name, value in theirs.items()}


def load(weights: Path) -> Any:
    """The model that the weights are of, unfused, in evaluation mode."""
    from pplcnet import read_weights
    from pplcnet._weights import model_for

    return model_for(read_weights(weights))


def our_pass(contender: Contender, place: Place) -> dict[str, Any]:
    """Our engine, as ``python -m eval.imagenet`` calls it."""
    from tempfile import TemporaryDirectory

    from eval.images.cache import CropCache
    from eval.images.preprocess import PREPROCESS
    from eval.images.valset import open_valset
    from eval.measure import cores, engine, measurement
    from eval.measure.batch import Plan
    from eval.measure.journal import Journal, NoJournal
    from eval.measure.settings import exact_settings

    preprocess, valset = PREPROCESS["torchvision"], open_valset(place.data)
    if contender.processes > 1:
        return our_processes(contender, place)
    predictor, batch = our_predictor(contender, place.weights)
    workers = contender.workers or cores.choose_workers()
    plan = Plan(preprocess, contender.forms, batch, workers)
    cached = contender.kind == "cached"
    kept = CropCache(place.cache, valset, preprocess) if cached else nullcontext()
    with exact_settings(), TemporaryDirectory() as folder, kept as crops:
        if crops:
            without = replace(plan, forms=())
            engine.measure(valset, lambda _: {}, without, journal=NoJournal(()), cache=crops)
        with Journal(Path(folder), {}, contender.forms) as journal:
            started, cpu = time.perf_counter(), time.process_time()
            part = engine.measure(valset, predictor, plan, journal=journal, cache=crops)
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    measured = measurement.assemble(valset, [part], contender.forms)
    classes = [scores.top[:, 0].tolist() for scores in measured.scores.values()]
    return {"images": len(valset.samples), "seconds": seconds, "cpu": cpu, "classes": classes}


def our_processes(contender: Contender, place: Place) -> dict[str, Any]:
    """Our engine with several processes, each of which has made its model."""
    import torch

    from eval.backends import Task
    from eval.images.preprocess import PREPROCESS
    from eval.images.valset import open_valset
    from eval.measure import cores, engine
    from eval.measure.settings import exact_settings, keep_freed_memory

    keep_freed_memory()
    valset = open_valset(place.data)
    cpu = torch.device("cpu")
    task = Task(
        contender.backend, our_forms(contender, place.weights), PREPROCESS["torchvision"], cpu,
        "fp32", contender.batch or cores.choose_batch_size(cpu), contender.workers,
    )  # fmt: skip
    with exact_settings():
        ours = engine.Engine(task, processes=contender.processes)
        try:
            measured = ours.measure(valset)
        finally:
            ours.close()
    classes = [scores.top[:, 0].tolist() for scores in measured.scores.values()]
    return {"images": len(valset.samples), "seconds": measured.seconds, "classes": classes}


def our_predictor(contender: Contender, weights: Path) -> tuple[Any, int]:
    """A backend that has answered one batch, and its batch size."""
    import numpy as np
    import torch

    from eval.backends import create_predictor
    from eval.images.preprocess import PREPROCESS
    from eval.measure.cores import choose_batch_size, choose_workers
    from eval.measure.settings import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    device, workers = torch.device("cpu"), contender.workers or choose_workers()
    batch = contender.batch or choose_batch_size(device)
    predictor = create_predictor(
        contender.backend,
        our_forms(contender, weights),
        PREPROCESS["torchvision"],
        device,
        "fp32",
        batch_size=batch,
        workers=workers,
    )
    predictor(np.zeros((batch, 224, 224, 3), np.uint8))
    for form, how in getattr(predictor, "settings", {}).items():
        print(f"{contender.name}: {form}: {how}", file=sys.stderr)
    return predictor, batch


def our_forms(contender: Contender, weights: Path) -> dict[str, Any]:
    """The forms of the contender's network."""
    from pplcnet import reparameterize

    if contender.network != OURS:
        return dict.fromkeys(contender.forms, library_model(contender.network))
    model = load(weights)
    every = {"unfused": model, "reparameterized": reparameterize(model)}
    return {form: every[form] for form in contender.forms}


def crop_pass(contender: Contender, place: Place) -> dict[str, Any]:
    """Reading, decoding, resizing and cropping alone, in as many workers as a run has."""
    from eval.images.decoders import exact_decoders
    from eval.images.preprocess import PREPROCESS
    from eval.images.valset import open_valset
    from eval.measure.cores import choose_workers

    valset, crop = open_valset(place.data), PREPROCESS["torchvision"].crop

    def crop_all(samples: Sequence[Any]) -> None:
        for sample in samples:
            crop(valset.read(sample.path))

    parts = [valset.samples[start : start + 8] for start in range(0, len(valset.samples), 8)]
    with exact_decoders(), ThreadPoolExecutor(contender.workers or choose_workers()) as pool:
        started, cpu = time.perf_counter(), time.process_time()
        for _ in pool.map(crop_all, parts):
            pass
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"images": len(valset.samples), "seconds": seconds, "cpu": cpu, "classes": []}


def model_pass(contender: Contender, place: Place) -> dict[str, Any]:
    """The backend alone on crops that are in memory, in as many workers as a run has."""
    import numpy as np
    import torch

    from eval.images.preprocess import PREPROCESS
    from eval.images.valset import open_valset
    from eval.measure.cores import choose_workers

    predictor, batch = our_predictor(contender, place.weights)
    valset, crop = open_valset(place.data), PREPROCESS["torchvision"].crop
    crops = np.stack([crop(valset.read(sample.path)) for sample in valset.samples])
    parts = [crops[start : start + batch] for start in range(0, len(crops) - batch + 1, batch)]
    with ThreadPoolExecutor(
        choose_workers(), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        started = time.perf_counter()
        for _ in pool.map(predictor, parts):
            pass
        seconds = time.perf_counter() - started
    return {"images": len(parts) * batch, "seconds": seconds, "classes": []}


def lower_bound_pass(contender: Contender, place: Place) -> dict[str, Any]:
    """What one core can do at best, and what each image asks of it.

    Returns:
        ``gflops``: rate of the fastest of `BEST_CONVOLUTIONS`; ``decode``, ``crop``: seconds for an
        image, the second with decoding; ``gflop``: billions of operations in the convolutions and
        matrix products of the network's deploy form, two for each multiply-accumulate.
    """
    from PIL import Image

    from eval.images.preprocess import PREPROCESS
    from eval.images.valset import open_valset
    from pplcnet import count_macs

    (model,) = our_forms(contender, place.weights).values()
    valset, crop = open_valset(place.data), PREPROCESS["torchvision"].crop
    files = [valset.read(sample.path) for sample in valset.limited(100).samples]
    return {
        "gflops": convolution_rate(),
        "decode": fastest(files, lambda data: Image.open(io.BytesIO(data)).convert("RGB")),
        "crop": fastest(files, crop),
        "gflop": 2e-9 * count_macs(model),
    }


def fastest(items: list[bytes], action: Callable[[bytes], Any], repeats: int = 3) -> float:
    """Seconds for an item, in the fastest of some passes over all."""
    passes = []
    for _ in range(repeats):
        started = time.perf_counter()
        for item in items:
            action(item)
        passes.append(time.perf_counter() - started)
    return min(passes) / len(items)


def convolution_rate(repeats: int = 50) -> float:
    """GFLOP/s of one core in the fastest of `BEST_CONVOLUTIONS` by oneDNN, weights laid out."""
    import torch

    from eval.backends.lowering import PackedConv2d

    torch.set_num_threads(1)
    rates = []
    for batch, channels, height, width in BEST_CONVOLUTIONS:
        x = torch.randn(batch, height, width, channels).permute(0, 3, 1, 2)
        weight = torch.randn(channels, channels, 1, 1)
        conv = PackedConv2d(weight, None, ([0, 0], [1, 1], [1, 1], 1), x.shape)
        with torch.inference_mode():
            for _ in range(repeats):
                started = time.perf_counter()
                conv(x)
                seconds = time.perf_counter() - started
                rates.append(2e-9 * channels * x.numel() / seconds)
    return max(rates)


PASSES: dict[str, Callable[[Contender, Place], dict[str, Any]]] = {
    "timm": timm_pass,
    "ours": our_pass,
    "cached": our_pass,
    "crop": crop_pass,
    "model": model_pass,
    "lower bound": lower_bound_pass,
}


def main(arguments: Sequence[str]) -> int:
    """Measure what is asked for (one JSON object) and print the result."""
    from eval.errors import EvalError, UsageError

    try:
        asked = json.loads(arguments[0])
    except (IndexError, ValueError) as error:
        raise UsageError("benchmark.py runs this, once for each row: run that.") from error
    place = Place(*(Path(asked.pop(name)) for name in ("data", "weights", "cache")))
    asked["forms"], asked["flags"] = tuple(asked["forms"]), tuple(asked["flags"])
    contender = Contender(**asked)
    try:
        result = PASSES[contender.kind](contender, place)
    except EvalError as error:  # a runtime that is not installed, or cannot have this network
        result = {"unavailable": str(error)}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
