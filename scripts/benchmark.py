"""How fast this machine evaluates, side by side with a timm pipeline, on the same images.

    benchmark.py                                        the demo's images and weights
    benchmark.py --data PHOTOS --weights F --variant base --images 1000 --repeats 3

Each measurement is a process of its own. It builds its pipeline, answers one batch to warm up, and
then times one whole pass over the images, from files to predicted classes. The contenders take
turns, so that a slow spell of the machine meets all of them, and every ratio is taken within one
turn. The predicted classes of all must be the same.

timm's pipeline is made of its own `create_dataset`, `create_loader`, model and
`reparameterize_model`, put together as its ``validate.py`` does, with bilinear interpolation and
the same weights.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.command import run_command
from eval.errors import DataError, EvalError, UsageError

ROOT = Path(__file__).parents[1]
BOTH = ("unfused", "reparameterized")
DEPLOY = ("reparameterized",)


@dataclass(frozen=True)
class Contender:
    """Something that is measured.

    Attributes:
        name: as in the table.
        kind: ``timm`` and ``ours`` are whole passes; the others are parts of ours.
        forms: of the model.
        backend: of ours.
        batch, loaders: of timm's loader.
        flags: of timm's ``validate.py``.
        optional: left out unless asked for.
    """

    name: str
    kind: str
    forms: tuple[str, ...] = DEPLOY
    backend: str = "torch"
    batch: int = 0
    loaders: int = 0
    flags: tuple[str, ...] = ()
    optional: bool = False


CONTENDERS = (
    Contender("timm -b 256 -j 4", "timm", BOTH[:1], batch=256, loaders=4),
    Contender("timm -b 64 -j 2", "timm", BOTH[:1], batch=64, loaders=2),
    Contender(
        "timm -b 64 -j 2 --reparam --channels-last",
        "timm",
        batch=64,
        loaders=2,
        flags=("reparam", "channels-last"),
    ),
    Contender("ours, both forms, torch", "ours", BOTH),
    Contender("ours, unfused, torch", "ours", BOTH[:1]),
    Contender("ours, reparameterized, torch", "ours"),
    Contender("ours, reparameterized, onnxruntime", "ours", backend="onnxruntime"),
    Contender("ours, reparameterized, openvino", "ours", backend="openvino"),
    Contender("ours, reparameterized, compile", "ours", backend="compile", optional=True),
    Contender("ours, reparameterized, torch, cached", "cached"),
    Contender("ours, reparameterized, openvino, cached", "cached", backend="openvino"),
    Contender("part: decode and crop", "crop"),
    Contender("part: model, torch", "model"),
    Contender("part: model, onnxruntime", "model", backend="onnxruntime"),
    Contender("part: model, openvino", "model", backend="openvino"),
)


# --- one measurement, in a process of its own ------------------------------------------------


def measure(contender: Contender, data: Path, weights: Path, cache: Path) -> dict[str, Any]:
    """Time one pass: images, seconds, and the predicted class of each image and form."""
    runs: dict[str, Callable[..., tuple[int, float, list[list[int]]]]] = {
        "timm": timm_pass,
        "ours": our_pass,
        "cached": our_pass,
        "crop": crop_pass,
        "model": model_pass,
    }
    images, seconds, classes = runs[contender.kind](contender, data, weights, cache)
    return {"images": images, "seconds": seconds, "classes": classes}


def timm_pass(
    contender: Contender, data: Path, weights: Path, _cache: Path
) -> tuple[int, float, list[list[int]]]:
    """Timm's pipeline, as its ``validate.py`` puts it together."""
    import timm
    import torch
    from timm.data import create_dataset, create_loader
    from timm.utils.model import reparameterize_model

    from pplcnet import PPLCNetV2

    ours = load(weights)
    variant = next(
        n for n, s in (("small", 0.75), ("base", 1.0), ("large", 1.25)) if s == ours.scale
    )
    model = timm.create_model(f"lcnetv2_{variant}").eval()
    model.load_state_dict(timm_state(ours, model.state_dict(), 1 - PPLCNetV2.DROP_RATE))
    if "reparam" in contender.flags:
        model = reparameterize_model(model)
    layout = torch.channels_last if "channels-last" in contender.flags else torch.contiguous_format
    model = model.to(memory_format=layout)
    loader = create_loader(
        create_dataset("", root=str(data)),
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
    return len(classes), seconds, [classes]


def timm_state(ours: Any, theirs: dict[str, Any], kept: float) -> dict[str, Any]:
    """Our weights under timm's names; timm folds the factor of the dropout into ``last_conv``."""
    from pplcnet._weights import _names

    state = ours.state_dict()
    renamed = {theirs: state[ours] for ours, theirs in _names(state, "timm").items()}
    renamed["conv_head.weight" if "conv_head.weight" in theirs else "last_conv.weight"] = (
        state["last_conv.conv.weight"].double() * kept
    ).float()
    return {name: renamed.get(name, value) for name, value in theirs.items()}


def our_pass(
    contender: Contender, data: Path, weights: Path, cache: Path
) -> tuple[int, float, list[list[int]]]:
    """Our engine, as ``python -m eval.imagenet`` calls it."""
    from contextlib import nullcontext

    from eval.images.cache import CropCache
    from eval.images.preprocess import PREPROCESS
    from eval.images.valset import open_valset
    from eval.measure.engine import assemble, choose_workers
    from eval.measure.engine import measure as engine
    from eval.measure.journal import Journal

    preprocess, valset = PREPROCESS["torchvision"], open_valset(data)
    predictor, batch = our_predictor(contender, weights)
    kept = CropCache(cache, valset, preprocess) if contender.kind == "cached" else nullcontext()
    with tempfile.TemporaryDirectory() as folder, kept as crops:
        if crops:
            crops.fill(choose_workers())
        with Journal(Path(folder), {}, contender.forms) as journal:
            started = time.perf_counter()
            part = engine(
                valset,
                preprocess,
                predictor,
                contender.forms,
                batch_size=batch,
                workers=choose_workers(),
                journal=journal,
                cache=crops,
            )
            seconds = time.perf_counter() - started
    measured = assemble(valset, [part], contender.forms)
    classes = [scores.top[:, 0].tolist() for scores in measured.scores.values()]
    return len(valset.samples), seconds, classes


def our_predictor(contender: Contender, weights: Path) -> tuple[Any, int]:
    """A backend, warmed up in each worker's way, and its batch size."""
    import numpy as np
    import torch

    from eval.backends import create_predictor
    from eval.images.preprocess import PREPROCESS
    from eval.measure.engine import choose_batch_size, choose_workers
    from pplcnet import reparameterize

    torch.set_num_threads(1)
    model = load(weights)
    every = {"unfused": model, "reparameterized": reparameterize(model)}
    device, workers = torch.device("cpu"), choose_workers()
    batch = choose_batch_size(device)
    predictor = create_predictor(
        contender.backend,
        {form: every[form] for form in contender.forms},
        PREPROCESS["torchvision"],
        device,
        "fp32",
        batch_size=batch,
        workers=workers,
    )
    predictor(np.zeros((batch, 224, 224, 3), np.uint8))
    return predictor, batch


def crop_pass(
    _contender: Contender, data: Path, _weights: Path, _cache: Path
) -> tuple[int, float, list[list[int]]]:
    """Reading, decoding, resizing and cropping alone, in as many workers as a run has."""
    from eval.images.preprocess import PREPROCESS
    from eval.images.valset import open_valset
    from eval.measure.engine import choose_workers

    valset, crop = open_valset(data), PREPROCESS["torchvision"].crop
    with ThreadPoolExecutor(choose_workers()) as pool:
        started = time.perf_counter()
        for _ in pool.map(lambda sample: crop(valset.read(sample.path)), valset.samples):
            pass
        seconds = time.perf_counter() - started
    return len(valset.samples), seconds, []


def model_pass(
    contender: Contender, data: Path, weights: Path, _cache: Path
) -> tuple[int, float, list[list[int]]]:
    """The backend alone on crops that are in memory, in as many workers as a run has."""
    import numpy as np
    import torch

    from eval.images.preprocess import PREPROCESS
    from eval.images.valset import open_valset
    from eval.measure.engine import choose_workers

    predictor, batch = our_predictor(contender, weights)
    valset, crop = open_valset(data), PREPROCESS["torchvision"].crop
    crops = np.stack([crop(valset.read(sample.path)) for sample in valset.samples])
    parts = [crops[start : start + batch] for start in range(0, len(crops) - batch + 1, batch)]
    with ThreadPoolExecutor(
        choose_workers(), initializer=torch.set_num_threads, initargs=(1,)
    ) as p:
        started = time.perf_counter()
        for _ in p.map(predictor, parts):
            pass
        seconds = time.perf_counter() - started
    return len(parts) * batch, seconds, []


def load(weights: Path) -> Any:
    """The model that the weights are of, unfused, in evaluation mode."""
    from pplcnet import read_weights
    from pplcnet._weights import model_for

    return model_for(read_weights(weights))


# --- all of them, in turns ------------------------------------------------------------------


def link_images(photos: Path, target: Path, images: int) -> None:
    """A val folder of `images` links to the photos, over and over."""
    from eval.images.classes import imagenet_classes

    files = sorted(p.resolve() for p in photos.rglob("*") if p.suffix.lower() in (".jpeg", ".jpg"))
    if not files:
        raise DataError(f"--data {photos}: there are no JPEG files below it.")
    synsets = [row.synset for row in imagenet_classes()]
    for number in range(images):
        folder = target / synsets[number % len(synsets)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05}.JPEG").symlink_to(files[number % len(files)])


def in_turns(
    contenders: Sequence[Contender], repeats: int, words: Sequence[str]
) -> Iterator[tuple[int, Contender, dict[str, Any]]]:
    """Measure each contender once per turn, each in a process of its own."""
    for turn in range(repeats):
        for contender in contenders:
            command = [sys.executable, __file__, "--only", contender.name, *words]
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=ROOT, check=False,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            if done.returncode:
                raise EvalError(f"{contender.name} failed:\n{done.stderr[-2000:]}")
            yield turn, contender, json.loads(done.stdout.splitlines()[-1])


def start_up(data: Path, weights: Path, variant: str) -> tuple[float, float]:
    """Seconds to import torch and torchvision and read the weights; and to a run's first batch."""
    started = time.perf_counter()
    code = f"import torch, torchvision; open({str(weights)!r}, 'rb').read()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    bare = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "out" / "journal" / "0.bin"
        words = ["--data", data, "--weights", weights, "--variant", variant, "--quiet"]
        words += ["--output", Path(folder) / "out"]
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "eval.imagenet", *map(str, words)],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while process.poll() is None and not (journal.exists() and journal.stat().st_size):
            time.sleep(0.005)
        first = time.perf_counter() - started
        process.terminate()
        process.wait()
    return bare, first


class Rates:
    """Images per second of each contender in each turn."""

    def __init__(self) -> None:
        self.of: dict[str, list[float]] = {}

    def ratio(self, name: str, other: str) -> list[float]:
        """Of two contenders, turn by turn."""
        return [a / b for a, b in zip(self.of[name], self.of[other], strict=True)]

    def allowed(self, backend: str) -> list[float]:
        """What decode, crop and model would allow if nothing else took any time."""
        crop, model = self.of["part: decode and crop"], self.of[f"part: model, {backend}"]
        return [1 / (1 / a + 1 / b) for a, b in zip(crop, model, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and the smallest and largest."""
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(rates: Rates) -> dict[str, list[float]]:
    """What the figures are for, by description."""
    default, small, best = (c.name for c in CONTENDERS if c.kind == "timm")
    deploy = {b: f"ours, reparameterized, {b}" for b in ("torch", "onnxruntime", "openvino")}
    fastest = max(deploy, key=lambda backend: statistics.median(rates.of[deploy[backend]]))
    rows = {
        f"reparameterized, torch / {default}": rates.ratio(deploy["torch"], default),
        f"reparameterized, torch / {best}": rates.ratio(deploy["torch"], best),
        f"reparameterized, {fastest} (fastest) / {default}": rates.ratio(deploy[fastest], default),
        f"reparameterized, {fastest} (fastest) / {best}": rates.ratio(deploy[fastest], best),
        f"both forms, torch / {small} (one form)": rates.ratio("ours, both forms, torch", small),
    }
    for backend, name in deploy.items():
        rows[f"{name} / what its parts allow"] = [
            rate / bound for rate, bound in zip(rates.of[name], rates.allowed(backend), strict=True)
        ]
    for backend in ("torch", "openvino"):
        rows[f"cached, {backend} / its model alone"] = rates.ratio(
            f"{deploy[backend]}, cached", f"part: model, {backend}"
        )
    return rows


def draw(rates: Rates, path: Path) -> None:
    """A bar for each contender, with the spread over the turns."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(rates.of)[::-1]
    middle = [statistics.median(rates.of[name]) for name in names]
    low = [m - min(rates.of[name]) for m, name in zip(middle, names, strict=True)]
    high = [max(rates.of[name]) - m for m, name in zip(middle, names, strict=True)]
    colours = {"t": "#9aa5b1", "o": "#2f6f8f", "p": "#d9c58b"}
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(names) + 1))
    axes.barh(names, middle, xerr=[low, high], color=[colours[n[0]] for n in names])
    axes.set_xlabel("images/s (median; whiskers: smallest and largest turn)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def processor() -> str:
    """What the machine calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model or platform.processor()}, {cores} cores, {platform.system()}"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, help="folder of JPEGs; default: the demo's")
    parser.add_argument("--weights", type=Path, help="default: the demo's")
    parser.add_argument("--variant", default="base", help="of the weights (default %(default)s)")
    parser.add_argument("--images", type=int, default=1000, help="default %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="turns (default %(default)s)")
    parser.add_argument("--compile", action="store_true", help="torch.compile too (slow to start)")
    parser.add_argument("--output", type=Path, default=Path("results/benchmark"))
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one measurement, for ourselves
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Print the table; 1 if predictions differ."""
    args = parse()
    if args.only:
        contender = next(c for c in CONTENDERS if c.name == args.only)
        result = measure(contender, args.data, args.weights, args.cache)
        print(json.dumps(result))
        return 0
    if (args.data is None) != (args.weights is None):
        raise UsageError("--data and --weights go together (default: the demo's).")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.data is None:
            from eval.images.classes import imagenet_classes
            from eval.models.demo import make_demo

            synsets = [row.synset for row in imagenet_classes()]
            args.data, args.weights = make_demo(folder / "demo", synsets, lambda *_: None)
        link_images(args.data, folder / "val", args.images)
        return compare(args, folder / "val", args.weights.resolve(), folder / "cache")


def compare(args: argparse.Namespace, data: Path, weights: Path, cache: Path) -> int:
    """Measure all, print and write what was found; 1 if predictions differ."""
    contenders = [c for c in CONTENDERS if args.compile or not c.optional]
    rates, rows = Rates(), io.StringIO()
    table = csv.writer(rows, lineterminator="\n")
    table.writerow(["turn", "name", "images", "seconds", "images_per_second", "differing_images"])
    truth: list[int] = []
    differing: dict[str, int] = {}
    words = ["--data", str(data), "--weights", str(weights), "--cache", str(cache)]
    for turn, contender, result in in_turns(contenders, args.repeats, words):
        rate = result["images"] / result["seconds"]
        rates.of.setdefault(contender.name, []).append(rate)
        truth = truth or result["classes"][0]
        wrong = max(
            (sum(a != b for a, b in zip(c, truth, strict=True)) for c in result["classes"]),
            default=0,
        )
        differing[contender.name] = max(wrong, differing.get(contender.name, 0))
        table.writerow([turn, contender.name, result["images"], result["seconds"], rate, wrong])
        print(f"turn {turn + 1}: {contender.name}: {rate:.1f} images/s", file=sys.stderr)
    starts = [start_up(data, weights, args.variant) for _ in range(args.repeats)]

    print(
        f"{processor()}; {args.images} images, {args.repeats} turns; median (smallest to largest)"
    )
    print(f"\n{'':44}{'images/s':>26}  other predictions")
    for name, values in rates.of.items():
        compared = "" if name.startswith("part") else str(differing[name])
        print(f"{name:44}{spread(values, 1):>26}  {compared}")
    print()
    for name, values in ratios(rates).items():
        print(f"{name:80}{spread(values):>22}")
    name = "start-up to the first batch / import torch, torchvision and read the weights"
    print(f"{name:80}{spread([b / a for a, b in starts]):>22}")
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "benchmark.csv").write_text(rows.getvalue(), encoding="utf-8")
    draw(rates, args.output / "benchmark.png")
    print(f"\nWritten: {args.output / 'benchmark.csv'}, {args.output / 'benchmark.png'}")
    return 1 if any(differing.values()) else 0


if __name__ == "__main__":
    sys.exit(run_command(lambda _: main()))
