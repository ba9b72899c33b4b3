"""Long checks outside the test suite: kill a run repeatedly, measure its memory, inject faults.

    endurance.py kill PHOTOS --images 2000 --kills 20 --signal KILL -- --variant base --weights F
    endurance.py memory PHOTOS --images 1000 10000 50000 -- --variant base --weights F
    endurance.py faults

``faults`` makes every file operation of a run fail once, in three ways (scripts/faults.py).

PHOTOS is a folder of images, searched recursively. The validation set, with 1000 classes, consists
of links to them. Options after ``--`` are passed on to ``python -m eval.imagenet``.
"""

from __future__ import annotations

import argparse
import csv
import filecmp
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from eval.cli import run_command
from eval.images.classes import imagenet_classes

CLASSES = 1000


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
    same = all(
        filecmp.cmp(folder / "whole" / name, folder / "broken" / name, shallow=False)
        for name in ("predictions.csv", "per_class.csv")
    )
    print(f"after {args.kills} SIG{args.signal}: " + ("byte-identical" if same else "DIFFERENT"))
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
    parser.add_argument("proof", choices=("kill", "memory", "faults"), help="the check to run")
    parser.add_argument("photos", type=Path, nargs="?", help="folder of images")
    parser.add_argument(
        "--images", type=int, nargs="+", default=[2000], help="sizes of the validation set (2000)"
    )
    parser.add_argument("--kills", type=int, default=20, help="how often to kill the run (20)")
    parser.add_argument(
        "--signal", choices=("KILL", "TERM", "INT"), default="KILL", help="signal to send (KILL)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (0)")
    args = parser.parse_args(words[:split])
    args.options = words[split + 1 :]
    if args.proof == "faults":
        return faults()
    if args.photos is None:
        parser.error(f"{args.proof} needs PHOTOS, a folder of images")
    with tempfile.TemporaryDirectory() as folder:
        proof = kill if args.proof == "kill" else memory
        return 0 if proof(args, Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(run_command(lambda _: main()))
