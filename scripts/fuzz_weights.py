"""Damage small checkpoints at random and read them: no error but `WeightsError` may be raised.

    python scripts/fuzz_weights.py [NUMBER]

This reads NUMBER (default 10000) damaged files of each format and prints how many were read and
how many refused. The test suite does the same with fewer files (tests/test_checkpoint.py).
"""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hypothesis
import numpy as np
import safetensors.torch
import torch
from hypothesis import strategies as st

from eval.cli import run_command
from pplcnet._checkpoint import read_checkpoint
from pplcnet._errors import WeightsError

ARRAYS: dict[str, np.ndarray] = {
    "stem.0.conv.weight": np.linspace(-1, 1, 24, dtype="f4").reshape(2, 3, 2, 2),
    "stem.0.bn._mean": np.zeros(2, "f8"),
    "stem.0.bn._variance": np.ones(2, ">f4"),
    "fc.weight": np.asfortranarray(np.arange(6, dtype="f2").reshape(2, 3)),
    "fc.bias": np.array([], "f4"),
    "steps": np.int64(7),  # type: ignore[dict-item]
}


def pdparams(protocol: int) -> bytes:
    """A file as Paddle writes it, with a table of names and, before protocol 4, a split array.

    Args:
        protocol: of the pickle, 2 to 4.
    """
    content: dict[str, object] = dict(ARRAYS)
    content["StructuredToParameterName@@"] = {name: f"{name}_0" for name in ARRAYS}
    if protocol < 4:
        content |= {"big@@.0": np.arange(4, dtype="f4"), "big@@.1": np.arange(2, dtype="f4")}
        table = {"OriginShape": (2, 3), "slices": ["big@@.0", "big@@.1"]}
        content["UnpackBigParamInfor@@"] = {"big": table}
    return pickle.dumps(content, protocol)


def samples() -> dict[str, bytes]:
    """One small valid file of each format."""
    tensors = {
        "stem.0.conv.weight": torch.linspace(-1, 1, 24).reshape(2, 3, 2, 2),
        "fc.weight": torch.arange(6.0, dtype=torch.float16).reshape(2, 3),
        "fc.bias": torch.zeros(0),
    }
    new, old = io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": tensors}, new)
    torch.save(tensors, old, _use_new_zipfile_serialization=False)
    return {
        "pdparams protocol 2": pdparams(2),
        "pdparams protocol 3": pdparams(3),
        "pdparams protocol 4": pdparams(4),
        "safetensors": safetensors.torch.save(tensors),
        "pth": new.getvalue(),
        "pth before 1.6": old.getvalue(),
    }


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Change `data` in one to four places: flip, set, insert, remove or copy bytes, or cut it."""
    result = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        if not result:
            break
        position = draw(st.integers(0, len(result) - 1))
        what = draw(st.sampled_from(["flip", "set", "insert", "remove", "copy", "cut"]))
        if what == "flip":
            result[position] ^= 1 << draw(st.integers(0, 7))
        elif what == "set":
            result[position] = draw(st.integers(0, 255))
        elif what == "insert":
            result[position:position] = draw(st.binary(min_size=1, max_size=9))
        elif what == "remove":
            del result[position : position + draw(st.integers(1, 9))]
        elif what == "copy":
            start = draw(st.integers(0, len(result) - 1))
            result[position:position] = result[start : start + draw(st.integers(1, 64))]
        else:
            del result[position:]
    return bytes(result)


def outcome(path: Path) -> str:
    """Read a file and return "read" or "refused"; any other outcome is a bug and raises."""
    try:
        tensors = read_checkpoint(path).tensors
    except WeightsError as error:
        message = str(error)
    else:
        for name, tensor in tensors.items():
            assert (type(name), type(tensor)) == (str, torch.Tensor)
            assert tensor.is_contiguous()
            tensor.add_(1)  # its memory exists and can be written to
        return "read"
    assert message.startswith(str(path))
    assert message.count("\n") == 1
    assert message.isascii()
    return "refused"


def outcomes(
    path: Path,
    contents: st.SearchStrategy[bytes],
    examples: int,
    outcome: Callable[[], str],
) -> collections.Counter[str]:
    """Write `examples` contents to a file, one after another, and count the outcomes."""
    counts: collections.Counter[str] = collections.Counter()

    @hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(contents)
    def read(content: bytes) -> None:
        path.write_bytes(content)
        counts[outcome()] += 1

    read()
    return counts


def fuzz(data: bytes, examples: int, folder: Path) -> collections.Counter[str]:
    """Read `examples` damaged variants of `data` and count the outcomes."""
    path = folder / "damaged"
    return outcomes(path, damaged(data), examples, lambda: outcome(path))


def tell(kind: str, fuzz: Callable[[], collections.Counter[str]]) -> None:
    """Print the outcomes of one kind of input."""
    start = time.perf_counter()
    counts = fuzz()
    print(
        f"{kind} {counts.total():6} inputs: {counts['refused']} refused, {counts['read']} read, "
        f"nothing else; {time.perf_counter() - start:.0f} s",
        flush=True,
    )


def tell_memory() -> None:
    """Print the most memory that this process had."""
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(f"peak memory {peak / 2**20:.0f} MiB")


def main() -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "number", nargs="?", type=int, default=10_000, help="damaged files per format (10000)"
    )
    number = parser.parse_args().number
    with tempfile.TemporaryDirectory() as folder:
        for name, data in samples().items():
            tell(f"{name:20}", partial(fuzz, data, number, Path(folder)))
    tell_memory()
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda _: main()))
