"""How fast this machine evaluates, side by side with timm, on the same images.

    benchmark.py                                        the demo's images and weights
    benchmark.py --data PHOTOS --weights F --variant base --images 1000 --repeats 3

Each measurement is a process of its own (benchmark_passes.py). It builds its pipeline, answers one
batch to warm up, and then times one whole pass over the images, from files to predicted classes.
The contenders take turns, so that a slow spell of the machine meets all of them, and every ratio
is taken within one turn. All contenders of a network must predict the same classes.

The section ``scaling`` is about many cores: how long an image needs the interpreter's lock (by
py-spy, scripts/locktime.py), processes x threads on the cores at hand, and 2 to 64 cores that are
simulated (scripts/simulated.py).

The lower bound is the time that an image would take if nothing but the arithmetic, decoding and
cropping took any: the operations of the network's deploy form, for each form, at the rate of
oneDNN's best 1x1 convolution on this machine, and the time of decoding and cropping alone. It is
measured in every turn. A row's fraction of it is how near it comes.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmark_passes import BOTH, Contender
from locktime import LockTime, lock_time

from eval.cli import run_command
from eval.errors import DataError, EvalError, UsageError

ROOT = Path(__file__).parents[1]
NETWORKS = ("tf_efficientnet_lite0", "repvgg_a0", "mobilenetv3_large_100")
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SECTIONS = ("pipelines", "batches", "networks", "scaling")
CORES = (2, 4, 8, 16, 32, 64)  # simulated
SIMULATED_SECONDS = 4
FAST_GPU = "a GPU that never waits"  # it takes what is decoded and cropped, without any delay
BEST_FLAGS = ("reparam", "channels-last")  # of timm's validate.py, without a compiler
TIMM = "timm -b 256 -j 4"
SMALL_BATCHES = "timm -b 64 -j 2"
EAGER = "timm -b 64 -j 2 --reparam --channels-last"
CACHED = "ours, reparameterized, torch, cached"


def pipelines(backends: Sequence[str]) -> Iterator[Contender]:
    """Our network: timm, our backends, and the parts of ours."""
    yield Contender(TIMM, "timm", BOTH[:1], batch=256, loaders=4)
    yield Contender(SMALL_BATCHES, "timm", BOTH[:1], batch=64, loaders=2)
    yield Contender(EAGER, "timm", batch=64, loaders=2, flags=BEST_FLAGS)
    yield Contender("ours, both forms, torch", "ours", BOTH)
    yield Contender("ours, unfused, torch", "ours", BOTH[:1])
    for backend in backends:
        yield Contender(f"ours, reparameterized, {backend}", "ours", backend=backend)
    for backend in ("torch", "openvino"):
        name = f"ours, reparameterized, {backend}, cached"
        yield Contender(name, "cached", backend=backend)
    yield Contender("part: decode and crop", "crop")
    for backend in backends:
        yield Contender(f"part: model, {backend}", "model", backend=backend)


def batches() -> Iterator[Contender]:
    """The deploy form from the cache, with batches of each size."""
    for size in BATCHES:
        yield Contender(f"{CACHED}, -b {size}", "cached", batch=size)


def networks() -> Iterator[Contender]:
    """Other networks: timm's best eager flags, and two of our backends."""
    for name in NETWORKS:
        yield Contender(
            f"{name}: {EAGER}", "timm", batch=64, loaders=2, flags=BEST_FLAGS, network=name
        )
        for backend in ("torch", "onnxruntime"):
            yield Contender(f"{name}: ours, {backend}", "ours", backend=backend, network=name)


def chosen(args: argparse.Namespace) -> list[Contender]:
    """The contenders of the sections asked for, after the lower bound of each network."""
    from eval.backends import BACKENDS

    backends = [name for name in BACKENDS if args.compile or name != "compile"]
    asked = args.sections
    contenders = (
        [Contender("lower bound", "lower bound")] if {"pipelines", "batches"} & set(asked) else []
    )
    if "pipelines" in asked:
        contenders += pipelines(backends)
    if "batches" in asked:
        contenders += batches()
    if "networks" in asked:
        contenders += [Contender(f"lower bound: {n}", "lower bound", network=n) for n in NETWORKS]
        contenders += networks()
    return contenders


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
    contenders: Sequence[Contender], repeats: int, places: dict[str, str]
) -> Iterator[tuple[int, Contender, dict[str, Any]]]:
    """Measure each contender once per turn, each in a process of its own."""
    unavailable: set[str] = set()
    script = str(Path(__file__).with_name("benchmark_passes.py"))
    for turn in range(repeats):
        for contender in contenders:
            if contender.name in unavailable:
                continue
            asked = json.dumps({**dataclasses.asdict(contender), **places})
            done = subprocess.run(
                [sys.executable, script, asked],
                capture_output=True, text=True, cwd=ROOT, check=False,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            if done.returncode:
                raise EvalError(f"{contender.name} failed:\n{done.stderr[-2000:]}")
            result = json.loads(done.stdout.splitlines()[-1])
            if "unavailable" in result:
                print(f"{contender.name}: left out: {result['unavailable']}", file=sys.stderr)
                unavailable.add(contender.name)
                continue
            yield turn, contender, result


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


class Table:
    """What was measured.

    Attributes:
        rates: images per second of each contender, turn by turn.
        fractions: of the lower bound, likewise.
        bounds: what `lower_bound_pass` found for each network, turn by turn.
        differing: images whose predicted class is not that of the network's first contender.
        rows: for ``benchmark.csv``.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.rates: dict[str, list[float]] = {}
        self.fractions: dict[str, list[float]] = {}
        self.bounds: dict[str, list[dict[str, float]]] = {}
        self.differing: dict[str, int] = {}
        self.rows: list[list[Any]] = []
        self._truth: dict[str, list[int]] = {}

    def add(self, turn: int, contender: Contender, result: dict[str, Any]) -> None:
        """Take in one measurement."""
        if contender.kind == "lower bound":
            self.bounds.setdefault(contender.network, []).append(result)
            return
        name, rate = contender.name, result["images"] / result["seconds"]
        fraction = rate / self.bound_rate(contender)
        self.rates.setdefault(name, []).append(rate)
        self.fractions.setdefault(name, []).append(fraction)
        wrong = 0
        for classes in result["classes"]:
            truth = self._truth.setdefault(contender.network, classes)
            wrong = max(wrong, sum(a != b for a, b in zip(classes, truth, strict=True)))
        self.differing[name] = max(wrong, self.differing.get(name, 0))
        self.rows.append([turn, name, result["images"], result["seconds"], rate, fraction, wrong])
        print(f"turn {turn + 1}: {name}: {rate:.1f} images/s, {fraction:.2f}", file=sys.stderr)

    def bound_rate(self, contender: Contender) -> float:
        """Images per second at the lower bound of the current turn, on all cores."""
        bound = self.bounds[contender.network][-1]
        model = len(contender.forms) * bound["gflop"] / bound["gflops"]
        seconds = {
            "crop": bound["crop"],
            "model": model,
            "cached": model,
        }.get(contender.kind, model + bound["crop"])
        return self.workers / seconds

    def ratio(self, name: str, other: str) -> list[float]:
        """Of two contenders, turn by turn; nothing if one of them was not measured."""
        if name not in self.rates or other not in self.rates:
            return []
        return [a / b for a, b in zip(self.rates[name], self.rates[other], strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and the smallest and largest."""
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(table: Table) -> dict[str, list[float]]:
    """What the figures are for, by description; those of sections that were left out are empty."""
    deploy = "ours, reparameterized, torch"
    prefix = "ours, reparameterized, "
    backends = [
        name
        for name in table.rates
        if name.startswith(prefix) and not name.partition(prefix)[2].count(",")
    ]
    rows: dict[str, list[float]] = {}
    if backends:
        fastest = max(backends, key=lambda name: statistics.median(table.rates[name]))
        for name in dict.fromkeys((deploy, fastest)):
            for other in (TIMM, EAGER):
                rows[f"{name} / {other}"] = table.ratio(name, other)
        both = "ours, both forms, torch"
        rows[f"{both} / {SMALL_BATCHES} (one form)"] = table.ratio(both, SMALL_BATCHES)
    sized = {size: f"{CACHED}, -b {size}" for size in BATCHES}
    if all(name in table.rates for name in sized.values()):
        best = max(sized, key=lambda size: statistics.median(table.rates[sized[size]]))
        for size in (1, 16, 32, 64):
            rows[f"cached, batches of {size} / of {best} (best)"] = table.ratio(
                sized[size], sized[best]
            )
    for network in NETWORKS:
        ours = f"{network}: ours, torch"
        for other in (f"{network}: ours, onnxruntime", f"{network}: {EAGER}"):
            rows[f"{ours} / {other.partition(': ')[2]}"] = table.ratio(ours, other)
    return {name: values for name, values in rows.items() if values}


def draw(table: Table, path: Path) -> None:
    """A bar for each contender, with the spread over the turns."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(table.rates)[::-1]
    middle = [statistics.median(table.rates[name]) for name in names]
    low = [m - min(table.rates[name]) for m, name in zip(middle, names, strict=True)]
    high = [max(table.rates[name]) - m for m, name in zip(middle, names, strict=True)]
    colors = {"timm": "#9aa5b1", "ours": "#2f6f8f", "part": "#d9c58b"}
    kinds = [next(kind for kind in colors if kind in name) for name in names]
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(names) + 1))
    axes.barh(names, middle, xerr=[low, high], color=[colors[kind] for kind in kinds])
    axes.set_xlabel("images/s (median; whiskers: smallest and largest turn)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def processor() -> str:
    """What the machine calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model or platform.processor()}, {cores} cores, {platform.system()}"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, help="folder of JPEGs; default: the demo's")
    parser.add_argument("--weights", type=Path, help="default: the demo's")
    parser.add_argument("--variant", default="base", help="of the weights (default %(default)s)")
    parser.add_argument("--images", type=int, default=1000, help="default %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="turns (default %(default)s)")
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, default=SECTIONS, help="default: all"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile too (slow to start)")
    parser.add_argument("--output", type=Path, default=Path("results/benchmark"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Print the table; 1 if predictions differ."""
    args = parse(arguments)
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
    from eval.measure.cores import choose_workers

    table = Table(choose_workers())
    places = {"data": str(data), "weights": str(weights), "cache": str(cache)}
    if "scaling" in args.sections:
        scaling(places)
    if args.sections == ["scaling"]:
        return 0
    for turn, contender, result in in_turns(chosen(args), args.repeats, places):
        table.add(turn, contender, result)
    starts = [start_up(data, weights, args.variant) for _ in range(args.repeats)]
    print(
        f"{processor()}; {args.images} images, {args.repeats} turns; median (smallest to largest)\n"
    )
    report(table)
    name = "start-up to the first batch / import torch, torchvision and read the weights"
    print(f"{name:84}{spread([b / a for a, b in starts]):>22}")
    args.output.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    header = ["turn", "name", "images", "seconds", "images_per_second", "fraction_of_lower_bound"]
    rows = csv.writer(text, lineterminator="\n")
    rows.writerows([[*header, "differing_images"], *table.rows])
    (args.output / "benchmark.csv").write_text(text.getvalue(), encoding="utf-8")
    draw(table, args.output / "benchmark.png")
    print(f"\nWritten: {args.output / 'benchmark.csv'}, {args.output / 'benchmark.png'}")
    return 1 if any(table.differing.values()) else 0


def scaling(places: dict[str, str]) -> None:
    """Print the lock time of an image, the cores at hand, and more of them, simulated."""
    from eval.backends import BACKENDS

    both = Contender("both forms, torch", "ours", BOTH, workers=1)
    deploy = [
        Contender(f"deploy form, {name}", "ours", backend=name, workers=1)
        for name in BACKENDS
        if name != "compile"
    ]
    cached = Contender("deploy form, torch, cached", "cached", workers=1)
    crop = Contender("decode and crop", "crop", workers=1)
    measured = lock_times((both, *deploy, cached, crop), places)
    print_cores(places)
    rows = (both, deploy[0], cached, crop)
    print_simulated({row: measured[row] for row in rows if row in measured})


def lock_times(
    contenders: Sequence[Contender], places: dict[str, str]
) -> dict[Contender, LockTime]:
    """Print, and return, what an image takes of one thread; without what cannot be measured."""
    heading = ("with the lock", "without", "limit, images/s")
    print(f"{'One thread; ms per image':30}" + "".join(f"{word:>17}" for word in heading))
    measured: dict[Contender, LockTime] = {}
    for contender in contenders:
        try:
            found = measured[contender] = lock_time(contender, places)
        except EvalError as error:
            print(f"{contender.name}: left out: {error}", file=sys.stderr)
            continue
        print(
            f"{contender.name:30}{found.total:17.3f}{found.native:17.3f}"
            f"{1000 / found.total:17,.0f}",
            flush=True,
        )
    return measured


def print_cores(places: dict[str, str]) -> None:
    """Print the rates of processes and threads on the cores at hand."""
    from eval.processes import usable_cores

    cores = usable_cores()
    print(f"\n{cores} cores, deploy form, torch: images/s of processes x threads")
    rows = [(n, cores // n) for n in range(1, cores + 1) if cores % n == 0]
    contenders = [
        Contender(f"{n} x {threads}", "ours", workers=threads, processes=n) for n, threads in rows
    ]
    for _, contender, result in in_turns(contenders, 1, places):
        print(f"{contender.name:30}{result['images'] / result['seconds']:13.1f}", flush=True)


def print_simulated(measured: dict[Contender, LockTime]) -> None:
    """Print the rates of simulated cores: threads of one process, and processes as by default."""
    from eval.measure.cores import CPU_BATCH, GPU_BATCH, MOST_THREADS

    print("\nSimulated cores (scripts/simulated.py): images/s, and of the rate of 2 cores")
    heading, asked = [], []
    for contender, found in measured.items():
        decoding = contender.kind == "crop"
        heading.append(FAST_GPU if decoding else contender.name)
        asked.append({
            "native": found.native / 1000,
            "locked": found.total / 1000,
            "batch": GPU_BATCH if decoding else CPU_BATCH,
            "forms": len(contender.forms),
        })  # fmt: skip
    print(f"{'cores':>5}{'processes x threads':>21}" + "".join(f"{n:>27}" for n in heading))
    first: list[float] = []
    for number in CORES:
        default = -(-number // MOST_THREADS)
        for processes in sorted({1, default}):
            threads = -(-number // processes)
            rates = simulate(asked, processes, threads)
            first = first or rates
            cells = [f"{number:5}{f'{processes} x {threads}':>21}"]
            for rate, of_two in zip(rates, first, strict=True):
                part = rate / (of_two * number / CORES[0])
                cells.append(f"{rate:19,.0f} {part:7.2f}")
            print("".join(cells), flush=True)


def simulate(rows: Sequence[dict[str, Any]], processes: int, threads: int) -> list[float]:
    """Images per second of each kind of run, on simulated cores."""
    asked = {"rows": rows, "processes": processes, "threads": threads, "seconds": SIMULATED_SECONDS}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("simulated.py")), json.dumps(asked)],
        capture_output=True, text=True, check=False,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode:
        raise EvalError(f"The simulation failed:\n{done.stderr[-2000:]}")
    found: list[float] = json.loads(done.stdout)
    return found


def report(table: Table) -> None:
    """Print the bounds, the rates and the ratios."""
    for network, bounds in table.bounds.items():
        print(
            f"lower bound, {network}: {spread([f['gflop'] for f in bounds])} GFLOP for an image and"
            " form;"
            f" one core: {spread([f['gflops'] for f in bounds], 0)} GFLOP/s,"
            f" decoding {spread([1000 * f['decode'] for f in bounds])} ms,"
            f" with resizing and cropping {spread([1000 * f['crop'] for f in bounds])} ms"
        )
    print(f"\n{'':68}{'images/s':>24}{'fraction of the bound':>22}  other predictions")
    for name, rates in table.rates.items():
        compared = "" if name.startswith("part") else str(table.differing[name])
        print(f"{name:68}{spread(rates, 1):>24}{spread(table.fractions[name]):>22}  {compared}")
    print()
    for name, values in ratios(table).items():
        print(f"{name:84}{spread(values):>22}")


if __name__ == "__main__":
    sys.exit(run_command(main))
