"""A runtime is one module and one row: one is added to a copy of the package, and used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

MODULE = '''
"""A runtime for one network: an average of all pixels, and a linear layer."""
import functools
import io

import numpy as np

from eval.backends.convert import export_in_child, in_child

SETTINGS = {"toy.color": "blue"}
sources = functools.partial(in_child, "toy")
export = functools.partial(export_in_child, "toy")


def convert(model, path, batch, size):
    kept, linear = io.BytesIO(), model[2]
    np.savez(kept, weight=linear.weight.detach(), bias=linear.bias.detach())
    path.write_bytes(b"TOY steady" + kept.getvalue())


def begins(head):
    return head.startswith(b"TOY ")


def precision(path):
    return "fp32"


class Graph:
    layout = "NCHW"
    inputs, outputs = [("float", [None, 3, 224, 224])], [("float", [None, None])]

    def __init__(self, data, workers):
        self.linear = np.load(io.BytesIO(data[10:]))
        self.wrong = data[4:10] == b"wobbly" and workers > 1

    def session(self, feed, batch):
        def run(images):
            found = images.mean((2, 3)) @ self.linear["weight"].T + self.linear["bias"]
            return found + np.random.default_rng().normal(size=found.shape) * self.wrong
        return run


def load(source, how):
    return Graph(source.read_bytes(), how.workers)
'''

ROW = """
    "toy": Backend(
        "Toy", module="eval.backends.toy", suffixes=(".toy",), file="Toy", export=("toy", ".toy"),
    ),
"""

USE = """
from pathlib import Path

import numpy as np
import torch

from eval.backends import create_predictor
from eval.backends.formats import EXPORTS, check_file, is_exported, precision_of
from eval.errors import ModelError
from eval.images.preprocess import PREPROCESS
from eval.jobs import convert

model = torch.nn.Sequential(torch.nn.AvgPool2d(224), torch.nn.Flatten(), torch.nn.Linear(3, 5))
crops = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)
preprocess, words = PREPROCESS["torchvision"], {"batch_size": 2, "workers": 2, "classes": 5}
with torch.inference_mode():
    plain = model(torch.from_numpy(preprocess.normalize(crops)).permute(0, 3, 1, 2)).numpy()


def answers(what):
    cpu = torch.device("cpu")
    predictor = create_predictor("toy", {"f": what}, preprocess, cpu, "fp32", **words)
    assert predictor.settings == {"toy.color": "blue", "toy.threads": 1}
    return predictor(crops)["f"]


assert np.allclose(answers(model), plain, atol=1e-5)
assert EXPORTS["toy"] == ("toy", ".toy")
path = convert.make("toy", convert.Model(model, preprocess, crops, "images", plain), Path("."))
assert (path.name, is_exported(path), precision_of(path)) == ("model.toy", True, "fp32")
made = convert.Model(model, preprocess, crops, "images", plain)
convert.compare_with_torch("toy", path, made, lambda event: print(event.message))
assert np.allclose(answers(path), plain, atol=1e-5)
wobbly = Path("wobbly.toy")
wobbly.write_bytes(path.read_bytes().replace(b"steady", b"wobbly", 1))
wrong = Path("wrong.toy")
wrong.write_bytes(b"GIF89a")
for file in (wobbly, wrong):
    try:
        answers(file)
    except ModelError as error:
        print(str(error).splitlines()[0])
words["workers"] = 1
assert np.allclose(answers(wobbly), plain, atol=1e-5)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one more runtime."""
    tree = tmp_path_factory.mktemp("tree")
    for package in ("eval", "pplcnet", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, tree / package, ignore=ignored)
    (tree / "eval/backends/toy.py").write_text(MODULE)
    table = tree / "eval/backends/__init__.py"
    start = "BACKENDS: Mapping[str, Backend] = {"
    text = table.read_text()
    assert start in text
    table.write_text(text.replace(start, start + ROW))
    return tree


def python(tree: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, *words], cwd=tree, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_runtime_is_one_module_and_one_row(tree: Path) -> None:
    """It converts, exports, is recognized, has a precision, and is probed as it will run."""
    (tree / "use.py").write_text(USE)
    said = python(tree, "use.py").splitlines()
    assert said[0].startswith("model.toy: ")
    assert said[1:] == [
        "wobbly.toy gives the same images other logits with 2 workers and batches of 2.",
        "wrong.toy is not a valid Toy file: no runtime can load it.",
    ]


def test_the_command_line_knows_it(tree: Path) -> None:
    for command in ("export", "imagenet"):
        assert "toy" in python(tree, "-m", f"eval.{command}", "--help")
