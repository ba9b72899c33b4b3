"""What the process had set: it changes no result, and is there afterwards."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import FILES, ROOT, MakeVal, start
from PIL import Image, ImageFile

from eval import Request, evaluate
from eval.errors import DataError, UsageError
from eval.measure import settings
from eval.measure.settings import check_settings, enter_worker, exact_settings

PARTS = (settings._WHOLE, *settings._BACKENDS, *settings._PARTS)
SWITCHES = ("generic", "all"), ("cuda", "all"), ("cuda", "conv"), ("mkldnn", "matmul")
new_switches = pytest.mark.skipif(
    not settings._new_switches(), reason="this torch has no fp32_precision"
)


def read(getter: Callable[[], Any]) -> Any:
    """What a getter says; torch's old ones raise where they contradict the new ones."""
    try:
        return getter()
    except RuntimeError:
        return "raises"


def state() -> dict[str, Any]:
    """All that an evaluation sets, by torch's, Pillow's and OpenCV's own getters."""
    backends = torch.backends
    switches = {str(part): settings._get(part) for part in PARTS if settings._new_switches()}
    return switches | {
        "matmul": read(torch.get_float32_matmul_precision),
        "cuda.matmul": read(lambda: backends.cuda.matmul.allow_tf32),
        "cudnn": read(lambda: backends.cudnn.allow_tf32),
        "sums": backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        "benchmark": (backends.cudnn.benchmark, backends.cudnn.deterministic),
        "enabled": (backends.cudnn.enabled, backends.mkldnn.enabled),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "threads": torch.get_num_threads(),
        "numpy": np.geterr(),
        "pillow": (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS),
        "opencv": (cv2.getNumThreads(), cv2.useOptimized()),
        "denormals": sys.float_info.min / float("2") != 0,
    }


@pytest.fixture
def restored() -> Iterator[None]:
    """Whatever a test sets, the next one finds what it is used to."""
    found = [(setting, setting._read()) for setting in settings.SETTINGS]
    with settings._plain_thread():
        yield
    for setting, before in found:
        setting._write(before)


def set_old(name: str, value: bool) -> Callable[[], None]:
    return lambda: setattr(torch.backends.cudnn, name, value)


FLOAT32: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "cudnn": set_old("allow_tf32", True),
    "no cudnn": set_old("allow_tf32", False),
    **{
        f"{part} {value}": lambda part=part, value=value: settings._set(part, value)  # type: ignore[misc]
        for part, value in itertools.product(SWITCHES, ("ieee", "tf32", "bf16"))
        if not (part[0] == "cuda" and value == "bf16")
    },
}


@new_switches
@pytest.mark.parametrize("first", FLOAT32)
def test_float32_is_exact_and_put_back(first: str, restored: None) -> None:
    """Two switches of any kind, after one another."""
    for second in FLOAT32:
        for part in PARTS:
            settings._set(part, "none")
        FLOAT32[first]()
        FLOAT32[second]()
        before = state()
        with exact_settings() as found:
            assert {settings._get(part) for part in PARTS} == {"ieee"}
            assert found["fp32_precision"] == "ieee"
            assert found["cudnn.allow_tf32"] is False
            assert found["cuda.matmul.allow_tf32"] is False
            assert torch.get_float32_matmul_precision() == "highest"
        assert state() == before, (first, second)


@new_switches
@pytest.mark.parametrize("value", [pytest.param("none", marks=pytest.mark.slow), "bf16"])
def test_torch_as_it_starts_is_put_back(value: str) -> None:
    """Its convolutions begin with a value that no setter gives them again."""
    code = (
        "from test_settings import *\n"
        f"settings._set(('generic', 'all'), {value!r})\n"
        "before = state()\n"
        "with exact_settings(): pass\n"
        "print(state() == before)"
    )
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert ran.stdout == "True\n", ran.stderr


def flush_denormals() -> AbstractContextManager[None]:
    torch.set_flush_denormal(True)
    return nullcontext()


def applied(action: Callable[[], Any]) -> Callable[[], AbstractContextManager[Any]]:
    return lambda: nullcontext(action())


AMBIENT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "half": applied(lambda: torch.set_default_dtype(torch.float16)),
    "bfloat16": applied(lambda: torch.set_default_dtype(torch.bfloat16)),
    "double": applied(lambda: torch.set_default_dtype(torch.float64)),
    "device": lambda: torch.device("meta"),
    "deterministic": applied(lambda: torch.use_deterministic_algorithms(True)),
    "no oneDNN": applied(lambda: setattr(torch.backends.mkldnn, "enabled", False)),
    "flushed": flush_denormals,
    "exact sums": applied(
        lambda: setattr(torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False)
    ),
    "numpy raises": lambda: np.errstate(all="raise"),
    "no SIMD": applied(lambda: cv2.setUseOptimized(False)),
    "truncated": applied(lambda: setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)),
    "few pixels": applied(lambda: setattr(Image, "MAX_IMAGE_PIXELS", 10)),
}


@pytest.mark.parametrize("name", AMBIENT)
def test_a_setting_is_as_needed_and_put_back(name: str, restored: None) -> None:
    with exact_settings():
        needed = state()
    with AMBIENT[name]():
        before = state()
        assert before != needed
        with exact_settings():
            assert state() == needed
            check_settings()
            if name == "device":
                assert torch.empty(1).device.type == "cpu"
        assert state() == before


def test_what_a_runtime_does_to_the_calling_thread_is_put_back() -> None:
    """Some switch off subnormal numbers in the thread that calls them."""
    before = state()
    with exact_settings():
        torch.set_flush_denormal(True)
    assert state() == before


@new_switches
def test_an_evaluation_gives_the_same(val_folder: MakeVal, weights: Path, restored: None) -> None:
    request = Request(
        data=val_folder(FILES), variant="small", weights=weights, workers=1, forms="unfused"
    )
    plain = evaluate(request).predictions
    settings._set(("generic", "all"), "bf16")
    with ExitStack() as stack:
        for name in ("autocast", "inference mode", "half", "device", "few pixels", "flushed"):
            stack.enter_context(AMBIENT[name]())
        before = state()
        assert evaluate(request).predictions.equals(plain)
        assert state() == before


def test_a_truncated_image_is_bad_whatever_pillow_was_told(
    val_folder: MakeVal, weights: Path, restored: None
) -> None:
    data = val_folder(FILES)
    path = data / "n01440764" / "a.JPEG"
    path.write_bytes(path.read_bytes()[:-200])
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    with pytest.raises(DataError, match=r"a\.JPEG cannot be decoded"):
        evaluate(Request(data=data, variant="small", weights=weights, workers=1))


def test_a_change_in_between_is_noticed(restored: None) -> None:
    with exact_settings():
        check_settings()
        torch.set_float32_matmul_precision("medium")
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        with pytest.raises(UsageError) as caught:
            check_settings()
    assert str(caught.value) == (
        "PIL.ImageFile.LOAD_TRUNCATED_IMAGES, torch.backends.fp32_precision changed during the "
        "evaluation, so its results cannot be trusted.\n"
        "Evaluate in a process in which nothing else sets it."
    )


def test_the_shorter_of_two_evaluations_changes_nothing(restored: None) -> None:
    """Nor does the one that began first, in another thread, keep what it found."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    torch.set_num_threads(2)
    before = state()
    entered, leave = threading.Event(), threading.Event()
    seen: list[Any] = []

    def longer() -> None:
        with exact_settings():
            entered.set()
            assert leave.wait(60)
            check_settings()
            seen.append((torch.get_num_threads(), torch.backends.cudnn.benchmark))
            worker = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            worker.start()
            worker.join()

    thread = threading.Thread(target=longer)
    with exact_settings():
        thread.start()
        assert entered.wait(60)
    assert torch.get_num_threads() == 2
    leave.set()
    thread.join()
    assert seen == [(1, False), 1]
    assert state() == before


def test_a_worker_computes_as_any_other() -> None:
    seen: list[Any] = []

    def work() -> None:
        torch.set_autocast_enabled("cpu", True)
        torch.set_grad_enabled(False)
        torch.set_flush_denormal(True)
        torch.set_num_threads(2)
        enter_worker()
        seen.append(state())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (found,) = seen
    assert (found["autocast"], found["grad"], found["threads"]) == (False, (True, False), 1)
    assert found["denormals"]


@pytest.mark.parametrize(
    ("value", "precision"),
    [("BF16", "bf16"), ("f16", "fp16"), ("any", "unknown"), ("STRICT", "fp32"), ("", "fp32")],
)
@pytest.mark.parametrize("name", ["ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"])
def test_what_the_environment_makes_of_fp32(
    name: str, value: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    reason = "" if precision == "fp32" else f"{name}={value}"
    assert settings.precision_in_effect("fp32") == (precision, reason)
    assert settings.precision_in_effect("int8") == ("int8", "")
    with exact_settings() as found:
        assert found.get(name) == (value or None)


def test_a_lower_precision_by_the_environment_is_not_judged(
    val_folder: MakeVal, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    said = []
    request = Request(data=val_folder(FILES), variant="small", weights=weights, workers=1)
    found = evaluate(request, lambda event: said.append(event.message))
    assert set(found.summary["precision"]) == {"bf16"}
    assert "ONEDNN_DEFAULT_FPMATH_MODE=BF16: fp32 may be computed as bf16" in said


@pytest.mark.parametrize("name", ["nonsense", "agg"])
def test_no_backend_of_matplotlib_is_needed(name: str) -> None:
    code = (
        "import os; from eval.jobs import sweep; from eval.results import plots;"
        "import matplotlib as m;"
        "plots.accuracy_plot([plots.Accuracy('a', 1.0)], None);"
        "print(os.environ['MPLBACKEND'], m.get_backend(auto_select=False))"
    )
    environment = {**os.environ, "MPLBACKEND": name}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[0] == name
    assert (ran.stdout.split()[1] == "agg") == (name == "agg")


@pytest.mark.parametrize("model", ["timm:resnet18", "torchvision:resnet18"])
def test_a_configuration_names_its_model(model: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('name = "c"\nmodel = "timm:mobileone_s1"\n')
    for config in (tmp_path / "c.toml", ROOT / "configs" / "base.toml"):
        shown = start(
            "eval.imagenet", "--data", str(tmp_path), "--model", model, "--config", str(config)
        )
        assert shown.returncode == 2
        assert f"not of {model}: its figures are another model's." in shown.stderr
