"""What several test modules need: the shared oracle, and small models and images."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis_profiles import pytest_configure as pytest_configure
from hypothesis_profiles import pytest_report_header as pytest_report_header
from markupsafe import Markup
from PIL import Image
from safetensors.torch import save_file
from skip_summary import pytest_terminal_summary as pytest_terminal_summary
from torch import nn

import pplcnet

ROOT = Path(__file__).parents[1]
MakeVal = Callable[..., Path]  # the fixture `val_folder`
FILES = {"n01440764": ["a.JPEG", "b.JPEG"], "n01443537": ["c.JPEG"], "n15075141": ["d.JPEG"]}
HANG = 600  # seconds until a process that a test waits for counts as hanging; never a speed limit
torch.set_num_threads(1)  # small tensors: threads would only wait for each other


# The modules of `pytest -m core`: no network is run and no process is started in them, but for
# test_command.py, so that they are done in half a minute.
CORE = frozenset(
    f"test_{name}.py"
    for name in (
        *("calibration", "classes", "command", "config", "files", "folder", "identity", "journal"),
        *("labels", "metrics", "results", "schema", "sequential", "verdict"),
    )
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in CORE:
            item.add_marker("core")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real photos and the official implementation's answers."""
    folder = Path(os.environ.get("PPLCNET_SHARED", ROOT.parent / "shared"))
    if not (folder / "oracle").is_dir():
        pytest.skip(f"no {folder}: real photos and official answers are not part of the project")
    return folder


@pytest.fixture(scope="session")
def made_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo's images and weights, made once for all test processes: it takes a while."""
    from timm.data import ImageNetInfo

    from eval.models.demo import make_demo

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(shared / "demo.lock"):
        return make_demo(shared / "demo", ImageNetInfo().label_names())


@pytest.fixture(autouse=True)
def _no_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are half of the time of a run on a few images: drawn where tests look at them."""
    if request.path.name not in ("test_html_report.py", "test_history.py", *CORE):
        monkeypatch.setattr("eval.results.plots._render", lambda *_, **__: Markup("<svg />"))


# Tests that look at how a lowered graph is judged, or at what it computes.
LOWERED = ("test_lowering.py", "test_backends.py", "test_oracle.py", "test_torch_tools.py")


@pytest.fixture(autouse=True)
def _no_float64(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The float64 answers that a lowered graph is judged by take a quarter of a run's start."""
    if request.path.name not in LOWERED:
        monkeypatch.setattr("eval.backends.pytorch._distances", lambda *_: [0.0, 0.0])


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


def randomize_bn(model: nn.Module) -> None:
    """Give batch normalization statistics that a wrong fold cannot survive."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)


@pytest.fixture(scope="session")
def model() -> pplcnet.PPLCNetV2:
    """The small network, random, to be read only."""
    torch.manual_seed(6)
    model = pplcnet.create_model("small").eval()
    randomize_bn(model)
    return model


@pytest.fixture(scope="session")
def weights(model: pplcnet.PPLCNetV2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its file."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_file(model.state_dict(), path)
    return path


def jpeg(array: np.ndarray, **options: object) -> bytes:
    """A uint8 image as the bytes of a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", **options)
    return file.getvalue()


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def start(module: str, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run one of our modules as a user does: a process of its own."""
    settings: dict[str, Any] = {
        "cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True,
        "timeout": HANG, "check": False,
    }  # fmt: skip
    return subprocess.run([sys.executable, "-m", module, *words], **(settings | options))


@pytest.fixture
def val_folder(tmp_path: Path) -> Callable[..., Path]:
    """Make a val folder of random JPEGs: one for each synset and file name."""

    def make(files: dict[str, list[str]], side: int = 40) -> Path:
        rng = np.random.RandomState(0)
        for synset, names in files.items():
            (tmp_path / "val" / synset).mkdir(parents=True, exist_ok=True)
            for name in names:
                pixels = rng.randint(0, 256, (side, side + 8, 3), dtype=np.uint8)
                (tmp_path / "val" / synset / name).write_bytes(jpeg(pixels))
        return tmp_path / "val"

    return make
