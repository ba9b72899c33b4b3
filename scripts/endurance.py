"""Long checks outside the test suite: kill a run repeatedly, measure its memory, inject faults.

    endurance.py kill PHOTOS --images 2000 --kills 20 --signal KILL -- --variant base --weights F
    endurance.py any PHOTOS --images 2000 --kills 1000 -- --variant base --weights F --processes 3
    endurance.py memory PHOTOS --images 1000 10000 50000 -- --variant base --weights F
    endurance.py faults

``any`` sends random signals (SIGKILL, SIGTERM, or SIGSTOP and after a moment SIGCONT) to random
processes of a run, at random moments, and starts it again until all are sent. After each end, the
journal has no image twice and no process is left; at last, the reports are those of an undisturbed
run. ``faults`` makes every file operation of a run fail once, in three ways (scripts/faults.py).

PHOTOS is a folder of images, searched recursively. The validation set, with 1000 classes, consists
of links to them. Options after ``--`` are passed on to ``python -m eval.imagenet``.
"""

from __future__ import annotations

import argparse
import csv
import filecmp
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from eval.cli import run_command
from eval.images.classes import imagenet_classes
from eval.measure.journal import record_dtype

CLASSES = 1000
LEFT_SECONDS = 5  # in which the system ends what the first process has left, on a busy machine


def link_farm(photos: Path, target: Path, images: int) -> None:
    """Make a validation set of `images` links to photos, spread evenly over the 1000 synsets."""
    files = sorted(path.resolve() for path in photos.rglob("*") if path.is_file())
    source = itertools.cycle(files)
    for number in range(images):
        folder = target / imagenet_classes()[number % CLASSES].synset
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05}.JPEG").symlink_to(next(source))


def evaluation(data: Path, output: Path, options: list[str]) -> list[str]:
    """The command line of a run."""
    words = ["--data", str(data), "--output", str(output), "--quiet", *options]
    return [sys.executable, "-m", "eval.imagenet", *words]


def size(path: Path) -> int:
    """Size of a file in bytes; 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def kill(args: argparse.Namespace, folder: Path) -> bool:
    """Kill a run at random moments, continue it, and compare it with an uninterrupted run."""
    link_farm(args.photos, folder / "val", args.images[0])
    started = time.perf_counter()
    subprocess.run(evaluation(folder / "val", folder / "whole", args.options), check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    whole = time.perf_counter() - started
    print(f"uninterrupted run of {args.images[0]} images: {whole:.1f} s", flush=True)

    random.seed(args.seed)
    command = evaluation(folder / "val", folder / "broken", args.options)
    journal = folder / "broken" / "journal" / "0.bin"
    for number in range(args.kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Kill one run in four during start-up, the others after they have recorded new images.
        before = size(journal)
        while number % 4 and process.poll() is None and size(journal) == before:
            time.sleep(0.01)
        time.sleep(random.uniform(0, whole / args.kills))  # noqa: S311 - no secret
        process.send_signal(getattr(signal, f"SIG{args.signal}"))
        code = process.wait()
        print(f"kill {number + 1}: exit {code}, {size(journal):,} bytes in the journal", flush=True)
        if code == 0:
            print("The run ended before it could be killed: use fewer --kills or more --images.")
            return False
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"after {args.kills} SIG{args.signal}: ", end="")
    return same_reports(folder)


def any_process(args: argparse.Namespace, folder: Path) -> bool:
    """Send random signals to random processes of a run, until all are sent; then let it end."""
    link_farm(args.photos, folder / "val", args.images[0])
    started = time.perf_counter()
    subprocess.run(evaluation(folder / "val", folder / "whole", args.options), check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    whole = time.perf_counter() - started
    print(f"uninterrupted run of {args.images[0]} images: {whole:.1f} s", flush=True)
    random.seed(args.seed)
    output = folder / "broken"
    command = evaluation(folder / "val", output, args.options)
    sent: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    until = time.perf_counter() + args.minutes * 60
    while sent.total() < args.kills and time.perf_counter() < until:
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seen: set[int] = set()
        # In every other run, the first signal comes when there are others that it may be for.
        while codes.total() % 2 and first.poll() is None and not children(first.pid):
            time.sleep(0.01)
        while sent.total() < args.kills and first.poll() is None:
            time.sleep(random.uniform(0, whole / 3))  # noqa: S311 - no secret
            seen |= set(children(first.pid))
            victim = random.choice([first.pid, *seen & set(children(first.pid))])  # noqa: S311
            name = random.choice(("KILL", "TERM", "STOP"))  # noqa: S311
            if first.poll() is not None or not send(victim, name):
                continue
            sent[f"SIG{name}, {'first' if victim == first.pid else 'other'}"] += 1
            if name == "STOP":
                time.sleep(random.uniform(0, 0.5))  # noqa: S311
                send(victim, "CONT")
        try:
            codes[first.wait(timeout=10 * whole + 60)] += 1
        except subprocess.TimeoutExpired:
            print("A run that lost a process does not end.")
            return False
        if twice := measured_twice(output):
            print(f"{twice} records in the journal are of images that it has already.")
            return False
        until_gone = time.perf_counter() + LEFT_SECONDS
        while (left := [p for p in seen if is_running(p)]) and time.perf_counter() < until_gone:
            time.sleep(0.01)
        if left:
            print(f"Processes are left running: {left}.")
            return False
        if (output / "summary.csv").exists():
            if not same_reports(folder):
                return False
            shutil.rmtree(output)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for what, number in sorted(sent.items()):
        print(f"{number:5} {what}")
    print(f"{sent.total()} signals to {codes.total()} runs; exit codes {dict(codes)}")
    return same_reports(folder)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(word) for task in tasks for word in (task / "children").read_text().split()]
    except OSError:
        return []


def is_running(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def send(pid: int, name: str) -> bool:
    """Send a signal; whether there was a process to send it to."""
    try:
        os.kill(pid, getattr(signal, f"SIG{name}"))
    except ProcessLookupError:
        return False
    return True


def measured_twice(output: Path) -> int:
    """How many records of the journal are of an image that has one already."""
    try:
        forms = json.loads((output / "journal/run.json").read_text(encoding="utf-8"))["forms"]
        data = (output / "journal/0.bin").read_bytes()
    except OSError:
        return 0
    row = np.dtype([("record", record_dtype(forms)), ("crc32", "<u4")])
    index = np.frombuffer(data[: len(data) // row.itemsize * row.itemsize], row)["record"]["index"]
    return len(index) - len(np.unique(index))


def same_reports(folder: Path) -> bool:
    """Whether the interrupted run has the results of the other one."""
    same = all(
        filecmp.cmp(folder / "whole" / name, folder / "broken" / name, shallow=False)
        for name in ("predictions.csv", "per_class.csv")
    )
    print("byte-identical" if same else "DIFFERENT", flush=True)
    return same


def memory(args: argparse.Namespace, folder: Path) -> bool:
    """Print speed and peak memory at several sizes."""
    for images in args.images:
        data, output = folder / f"val-{images}", folder / f"out-{images}"
        link_farm(args.photos, data, images)
        started = time.perf_counter()
        pid = os.posix_spawn(
            sys.executable, evaluation(data, output, args.options), os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
        )  # fmt: skip
        _, status, usage = os.wait4(pid, 0)
        seconds = time.perf_counter() - started
        with (output / "summary.csv").open(encoding="utf-8") as file:
            rate = float(next(csv.DictReader(file))["images_per_second"])
        print(
            f"{images:6} images: exit {os.waitstatus_to_exitcode(status)}, {seconds:7.1f} s with "
            f"start-up, {rate:6.1f} images/s without, peak {usage.ru_maxrss / 1024:.0f} MiB",
            flush=True,
        )
    return True


def faults() -> int:
    """Run the fault sweep of the test suite, which prints the number of injected faults."""
    test = "tests/test_faults.py::test_every_operation_fails_in_every_way"
    words = [sys.executable, "-m", "pytest", "-q", "-s", "-m", "slow", test]
    return subprocess.run(words, cwd=Path(__file__).parents[1], check=False).returncode


def main() -> int:
    """Run a check and return 0 if it passes."""
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "proof", choices=("kill", "any", "memory", "faults"), help="the check to run"
    )
    parser.add_argument("photos", type=Path, nargs="?", help="folder of images")
    parser.add_argument(
        "--images", type=int, nargs="+", default=[2000], help="sizes of the validation set (2000)"
    )
    parser.add_argument("--kills", type=int, default=20, help="how often to kill the run (20)")
    parser.add_argument(
        "--signal", choices=("KILL", "TERM", "INT"), default="KILL", help="signal to send (KILL)"
    )
    parser.add_argument(
        "--minutes", type=float, default=600, help="of any: no new run after that (600)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (0)")
    args = parser.parse_args(words[:split])
    args.options = words[split + 1 :]
    if args.proof == "faults":
        return faults()
    if args.photos is None:
        parser.error(f"{args.proof} needs PHOTOS, a folder of images")
    with tempfile.TemporaryDirectory() as folder:
        proof = {"kill": kill, "any": any_process, "memory": memory}[args.proof]
        return 0 if proof(args, Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(run_command(lambda _: main()))
