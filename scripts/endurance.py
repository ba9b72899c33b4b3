"""Long proofs that are not in the test suite: kill a run again and again; watch its memory.

    endurance.py kill PHOTOS --images 2000 --kills 20 --signal KILL -- --variant base --weights F
    endurance.py memory PHOTOS --images 1000 10000 50000 -- --variant base --weights F
    endurance.py faults

The last one lets every file operation of a run fail once, in three ways (scripts/faults.py).

PHOTOS is a folder of images, of any depth. A val set of 1000 classes is made of links to them.
What follows ``--`` is given to ``python -m eval.imagenet``.
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

from eval.command import run_command
from eval.images.classes import imagenet_classes

CLASSES = 1000


def link_farm(photos: Path, target: Path, images: int) -> None:
    """A val folder of `images` links, spread evenly over the 1000 synsets."""
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
    """Bytes in a file; none if it is not there."""
    return path.stat().st_size if path.exists() else 0


def kill(args: argparse.Namespace, folder: Path) -> bool:
    """Kill a run at random moments, continue it, and compare with an unbroken one."""
    link_farm(args.photos, folder / "val", args.images[0])
    started = time.perf_counter()
    subprocess.run(evaluation(folder / "val", folder / "whole", args.options), check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    whole = time.perf_counter() - started
    print(f"unbroken run of {args.images[0]} images: {whole:.1f} s", flush=True)

    random.seed(args.seed)
    command = evaluation(folder / "val", folder / "broken", args.options)
    journal = folder / "broken" / "journal" / "0.bin"
    for number in range(args.kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # One in four while it starts; the others when it has got further than the one before.
        before = size(journal)
        while number % 4 and process.poll() is None and size(journal) == before:
            time.sleep(0.01)
        time.sleep(random.uniform(0, whole / args.kills))  # noqa: S311 - no secret
        process.send_signal(getattr(signal, f"SIG{args.signal}"))
        code = process.wait()
        print(f"kill {number + 1}: exit {code}, {size(journal):,} bytes kept", flush=True)
        if code == 0:
            print("the run was over before it could be killed: fewer --kills, more --images")
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
    """The fault sweep, as the tests have it; it prints how many faults there were."""
    test = "tests/test_faults.py::test_every_operation_fails_in_every_way"
    words = [sys.executable, "-m", "pytest", "-q", "-s", "-m", "slow", test]
    return subprocess.run(words, cwd=Path(__file__).parents[1], check=False).returncode


def main() -> int:
    """Run a proof; 0 when it holds."""
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("proof", choices=("kill", "memory", "faults"))
    parser.add_argument("photos", type=Path, nargs="?")
    parser.add_argument("--images", type=int, nargs="+", default=[2000])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT"), default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words[:split])
    args.options = words[split + 1 :]
    if args.proof == "faults":
        return faults()
    if args.photos is None:
        parser.error(f"{args.proof} needs a folder of PHOTOS")
    with tempfile.TemporaryDirectory() as folder:
        proof = kill if args.proof == "kill" else memory
        return 0 if proof(args, Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(run_command(lambda _: main()))
