"""Damage Paddle's inference models at random: no error but `WeightsError` may be raised.

    python scripts/fuzz_paddle.py [NUMBER]

This reads NUMBER (default 1000) damaged graphs and parameters of a very small network, in each
format, and prints how many were read and how many refused. What is read is run, too. The test
suite does the same with fewer files (tests/test_paddle_inference.py).
"""

from __future__ import annotations

import argparse
import collections
import re
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from fuzz_weights import damaged, outcomes, tell
from hypothesis import strategies as st

import pplcnet
from eval.cli import run_command
from pplcnet import PPLCNetV2, WeightsError
from pplcnet._variants import Variant

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from paddle_exports import Export

TINY = Variant("tiny", 0.05, (1, 1, 1, 1))
NUMBERS = (0, 1, -1, 2, 3, 7, 255, 1 << 31, 1 << 40, 1 << 63, 1 << 70, 0.5, 1e-5, 1e400)
WORDS = ("relu", "sigmoid", "add", "matmul", "fetch", "full", "NHWC", "SAME", "axis", "t_f16", "")


@st.composite
def changed(draw: st.DrawFn, data: bytes) -> bytes:
    """Another number or word in one to four places of a JSON file, which stays JSON."""
    for _ in range(draw(st.integers(1, 4))):
        pattern, values = draw(st.sampled_from([
            (rb"(?<=[ \[])-?[0-9][0-9.e+-]*", [str(number).encode() for number in NUMBERS]),
            (rb'(?<=")[\w.]+(?=")', [word.encode() for word in WORDS]),
        ]))  # fmt: skip
        places = list(re.finditer(pattern, data))
        place = places[draw(st.integers(0, len(places) - 1))]
        data = data[: place.start()] + draw(st.sampled_from(values)) + data[place.end() :]
    return data


Strategy = Callable[[bytes], st.SearchStrategy[bytes]]
KINDS: dict[str, tuple[str, str, Strategy]] = {  # graph, the file that is damaged, and how
    "inference.json": ("inference.json", "inference.json", damaged),
    "inference.json, still JSON": ("inference.json", "inference.json", changed),
    "inference.pdmodel": ("inference.pdmodel", "inference.pdmodel", damaged),
    "inference.pdiparams": ("inference.pdmodel", "inference.pdiparams", damaged),
}


def outcome(graph: Path) -> str:
    """Read a model and return "read" or "refused"; any other outcome is a bug and raises."""
    try:
        weights = pplcnet.read_weights(graph)
    except WeightsError as error:
        message = str(error)
    else:
        assert all(tensor.isfinite().all() for tensor in weights.tensors.values())
        return "read"
    assert message.startswith(str(graph.parent)), message
    assert message.count("\n") == 1, message
    assert all(line.isprintable() for line in message.split("\n")), message
    return "refused"


def fuzz(kind: str, examples: int, folder: Path) -> collections.Counter[str]:
    """Read `examples` damaged models of a kind and count the outcomes."""
    name, target, strategy = KINDS[kind]
    torch.manual_seed(0)
    graph = Export(PPLCNetV2(TINY.scale, TINY.depths, 3).eval()).save(folder, name)
    path = folder / target
    data = path.read_bytes()
    with mock.patch("pplcnet._paddle_inference.VARIANTS", {TINY.name: TINY}):
        assert outcome(graph) == "read", f"the undamaged {kind}"
        return outcomes(path, strategy(data), examples, lambda: outcome(graph))


def main() -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "number", nargs="?", type=int, default=1000, help="damaged models per kind (1000)"
    )
    number = parser.parse_args().number
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            tell(f"{kind:26}", partial(fuzz, kind, number, Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(lambda _: main()))
