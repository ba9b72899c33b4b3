"""Every file operation of a run fails once; see scripts/faults.py."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, jpeg
from markupsafe import Markup
from numpy.typing import NDArray

import pplcnet
from eval.imagenet import main
from eval.images.preprocess import Crop
from eval.models import identify, variants

sys.path.insert(0, str(ROOT / "scripts"))
import faults

KEPT = ("val", "tiny.toml", "weights.safetensors", "baseline")
CONFIG = """
name = "tiny"
model = "small"
images = 6
[reference]
top1 = 0.0
top5 = 0.0
source = "the answers of the fake predictor"
[tolerance.torchvision]
images = 6
reason = "any count will do"
"""


def predict(crops: Crop) -> dict[str, NDArray[np.float32]]:
    """Answers of both forms that depend on each image's pixels alone."""
    logits = crops.reshape(len(crops), -1)[:, :1000].astype(np.float32)
    logits[:, 0] += 0.5  # a batch is filled up with black images, which must not be constant
    return {"unfused": logits, "reparameterized": logits.copy()}


@pytest.fixture
def folder(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with everything in it; the model and the plots, which take long, are stand-ins."""
    for name in ("accuracy", "reliability", "coverage", "places"):
        monkeypatch.setattr(f"eval.results.html.{name}_plot", lambda *_: Markup("<svg></svg>"))
    monkeypatch.setattr("eval.measure.engine.predictor_for", lambda *_, **__: predict)
    monkeypatch.setattr(pplcnet, "count_macs", lambda _: 1)
    known, *_ = variants.load_forms("small", weights, ("unfused", "reparameterized"), 1000)

    def load(_model: str, path: Path, *_: object) -> object:
        identify([path])  # opens the file, as the real one does
        return variants.Loaded(known, "pplcnet layout", "fp32")

    monkeypatch.setattr(variants, "load_forms", load)
    random = np.random.RandomState(0)
    for synset in ("n01440764", "n01443537", "n15075141"):
        (tmp_path / "val" / synset).mkdir(parents=True)
        for number in range(2):
            pixels = random.randint(0, 256, (40, 48, 3), dtype=np.uint8)
            (tmp_path / "val" / synset / f"{number}.JPEG").write_bytes(jpeg(pixels))
    (tmp_path / "tiny.toml").write_text(CONFIG)
    (tmp_path / "weights.safetensors").write_bytes(weights.read_bytes())
    assert run(tmp_path, "baseline") == 0
    return tmp_path


def run(folder: Path, output: str, *more: str) -> int:
    words = ["--data", str(folder / "val"), "--config", str(folder / "tiny.toml")]
    words += ["--weights", str(folder / "weights.safetensors"), "--output", str(folder / output)]
    words += ["--batch-size", "2", "--workers", "1", "--image-set", "val", "--quiet", *more]
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        return main(words)


def whole_run(folder: Path) -> int:
    cache, history = str(folder / "cache"), str(folder / "history.csv")
    baseline = str(folder / "baseline")
    return run(folder, "out", "--cache", cache, "--history", history, "--baseline", baseline)


def test_some_operations_fail(folder: Path) -> None:
    tried, problems = faults.sweep(lambda: whole_run(folder), folder, KEPT, step=83, first=3)
    assert tried > 5
    assert problems == []


@pytest.mark.slow
def test_every_operation_fails_in_every_way(folder: Path) -> None:
    tried, problems = faults.sweep(lambda: whole_run(folder), folder, KEPT)
    print(f"{tried} faults")
    assert tried > 300
    assert problems == []


def test_a_run_that_swallows_its_errors_is_caught(folder: Path) -> None:
    def careless() -> int:
        try:
            (folder / "out").mkdir(exist_ok=True)
            for name in faults.REPORTS:
                (folder / "out" / name).write_text("x")
        except OSError:
            return 0
        except KeyboardInterrupt:
            return 130
        return 0

    tried, problems = faults.sweep(careless, folder, KEPT)
    assert tried
    assert any("without" in problem for problem in problems)
