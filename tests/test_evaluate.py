"""`eval.evaluate`: the command's own counts, from Python, and nothing else changed by it."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision
from conftest import FILES, HANG, ROOT, MakeVal, rows_of
from safetensors.torch import save_file

import pplcnet
from eval import Evaluation, Request, evaluate
from eval.backends.onnx import export_onnx
from eval.errors import DataError, EvalError, LogitsError, ModelError, UsageError
from eval.imagenet import main
from eval.jobs import evaluate as pipeline
from eval.measure.settings import exact_settings
from eval.progress import Event
from eval.provenance import Provenance
from eval.results import schema

BOTH = ["unfused", "reparameterized"]


@pytest.fixture
def val(val_folder: MakeVal) -> Path:
    return val_folder(FILES)


@pytest.fixture(scope="module")
def files(
    weights: Path, model: pplcnet.PPLCNetV2, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A weights file of each kind of source."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(1)
    save_file(timm.create_model("test_resnet").state_dict(), folder / "timm.safetensors")
    torch.save(torchvision.models.resnet18().state_dict(), folder / "tv.pth")
    (folder / "m.onnx").write_bytes(export_onnx(pplcnet.reparameterize(model)))
    ours, theirs = folder / "timm.safetensors", folder / "tv.pth"
    return {"variant": weights, "timm": ours, "torchvision": theirs,
            "onnx": folder / "m.onnx"}  # fmt: skip


@pytest.fixture(scope="module")
def openvino_file(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    openvino = pytest.importorskip("openvino")
    path: Path = tmp_path_factory.mktemp("openvino") / "m.xml"
    openvino.save_model(openvino.convert_model(files["onnx"]), path, compress_to_fp16=False)
    return path


def same_as_the_command(output: Path, words: list[str], **options: Any) -> Evaluation:
    """The evaluation of a request, once its counts are those of the command line."""
    code = main([*words, "--output", str(output), "--quiet"])
    evaluation = evaluate(Request(**options))
    rows = rows_of(output / "summary.csv")
    assert [row["form"] for row in rows] == list(evaluation.summary["form"])
    for name in ("top1_correct", "top5_correct", "images"):
        assert [int(row[name]) for row in rows] == list(evaluation.summary[name])
    for name in ("verdict", "weights_sha256", "dataset_sha256", "backend", "preprocess"):
        assert [row[name] for row in rows] == list(evaluation.summary[name]), name
    written = pd.read_csv(output / "predictions.csv")
    for column in written.columns:
        if "prob" not in column:
            assert list(written[column]) == list(evaluation.predictions[column])
    assert evaluation.exit_code == code
    return evaluation


# The same counts as the command


def test_a_variant(val: Path, weights: Path, tmp_path: Path) -> None:
    words = ["--data", str(val), "--variant", "small", "--weights", str(weights)]
    options = {"data": str(val), "variant": "small", "weights": str(weights)}
    unstated = evaluate(Request(**options, forms="unfused"))  # type: ignore[arg-type]
    assert (unstated.verdict, unstated.exit_code) == ("NO_REFERENCE", 0)
    evaluation = same_as_the_command(
        tmp_path / "out", [*words, "--image-set", "val"], image_set="val", **options
    )
    assert (evaluation.verdict, evaluation.exit_code) == ("PARTIAL", 0)
    assert list(evaluation.summary["form"]) == BOTH


@pytest.mark.parametrize("name", ["timm:test_resnet", "torchvision:resnet18"])
def test_a_model_of_a_library(name: str, val: Path, files: dict[str, Path], tmp_path: Path) -> None:
    weights = files[name.partition(":")[0]]
    words = ["--data", str(val), "--model", name, "--weights", str(weights)]
    evaluation = same_as_the_command(tmp_path / "out", words, data=val, model=name, weights=weights)
    assert list(evaluation.summary["form"]) == ["unfused"]


def test_an_onnx_file(val: Path, files: dict[str, Path], tmp_path: Path) -> None:
    words = ["--data", str(val), "--variant", "small", "--weights", str(files["onnx"])]
    evaluation = same_as_the_command(
        tmp_path / "out", words, data=val, variant="small", weights=files["onnx"]
    )
    assert list(evaluation.summary["form"]) == ["exported"]
    of_torch = evaluate(
        Request(data=val, variant="small", weights=files["variant"], forms="reparameterized")
    )
    best = of_torch.predictions["reparameterized_top1"]
    assert list(evaluation.predictions["exported_top1"]) == list(best)


@pytest.mark.slow
def test_an_openvino_file(val: Path, openvino_file: Path, tmp_path: Path) -> None:
    words = ["--data", str(val), "--variant", "small", "--weights", str(openvino_file)]
    evaluation = same_as_the_command(
        tmp_path / "out", words, data=val, variant="small", weights=openvino_file
    )
    assert {file.path.name for file in evaluation.subject.files} == {"m.xml", "m.bin"}


def test_the_demo_in_part(
    made_demo: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("out", "api"):
        shutil.copytree(made_demo[0].parent, tmp_path / name / "demo", copy_function=os.link)
    words = ["--demo", "--limit", "6", "--forms", "reparameterized"]
    options = {"demo": True, "limit": 6, "forms": ["reparameterized"]}
    monkeypatch.setattr(pipeline, "TemporaryDirectory", lambda **_: nullcontext(tmp_path / "api"))
    evaluation = same_as_the_command(tmp_path / "out", words, **options)
    assert evaluation.subject.caution.startswith("DEMO")


@pytest.mark.slow
def test_the_whole_demo_passes() -> None:
    evaluation = evaluate(Request(demo=True))
    assert evaluation.verdict == "PASS"
    assert list(evaluation.summary["top1_correct"]) == [437, 437]


# What it gives


def test_tables_have_the_documented_columns(val: Path, weights: Path) -> None:
    evaluation = evaluate(Request(data=val, variant="small", weights=weights))
    assert tuple(evaluation.summary.columns) == schema.SUMMARY_COLUMNS
    predictions = [
        *(name for name, _ in schema.PREDICTIONS if "{form}" not in name),
        *(name.format(form=form) for form in BOTH for name, _ in schema.PREDICTIONS
          if "{form}" in name),
    ]  # fmt: skip
    assert list(evaluation.predictions.columns) == predictions
    assert len(evaluation.predictions) == 4
    assert list(evaluation.per_class.columns[:3]) == ["synset", "name", "images"]
    figures = ("correct@1", "correct@5", "precision", "recall", "f1")
    columns = {f"{form}_{name}" for form in BOTH for name in figures}
    assert set(evaluation.per_class.columns[3:]) == columns
    assert len(evaluation.per_class) == 1000
    assert evaluation.per_class["images"].sum() == 4
    assert list(evaluation.confusions.columns) == ["form", "label", "prediction", "count"]


def test_saving_later_gives_the_files_of_a_run_with_an_output(
    val: Path, weights: Path, tmp_path: Path
) -> None:
    """But for the options, the times and the identity of the run."""
    request = Request(data=val, variant="small", weights=weights, forms="unfused", command="x")
    evaluate(request).save(tmp_path / "later")
    evaluate(Request(data=val, variant="small", weights=weights, forms="unfused", command="x",
                     output=tmp_path / "at once"))  # fmt: skip
    names = {path.name for path in (tmp_path / "at once").iterdir()}
    assert {path.name for path in (tmp_path / "later").iterdir()} == names
    assert names == {
        "summary.csv", "predictions.csv", "per_class.csv", "confusions.csv", "run.json",
        "report.html",
    }  # fmt: skip
    for name in ("predictions.csv", "per_class.csv", "confusions.csv"):
        one, other = (tmp_path / folder / name for folder in ("later", "at once"))
        assert one.read_bytes() == other.read_bytes()
    rows = [rows_of(tmp_path / folder / "summary.csv") for folder in ("later", "at once")]
    varying = {"run_id", "started_at", "images_per_second", "seconds"}
    for one, other in zip(*rows, strict=True):
        assert {k: v for k, v in one.items() if k not in varying} == {
            k: v for k, v in other.items() if k not in varying
        }


def test_progress_sees_every_image(val: Path, weights: Path) -> None:
    seen: list[Event] = []
    request = Request(data=val, variant="small", weights=weights, batch_size=1, forms="unfused")
    evaluation = evaluate(request, progress=seen.append)
    steps = [event for event in seen if event.stage == "evaluating"]
    assert [event.done for event in steps] == [1, 2, 3, 4]
    assert {event.total for event in steps} == {4}
    assert steps[-1].correct == evaluation.summary["top1_correct"][0]
    assert any(str(val) in event.message for event in seen)


def test_an_observer_that_fails_ends_the_evaluation(val: Path, weights: Path) -> None:
    def fails(event: Event) -> None:
        raise ZeroDivisionError

    request = Request(data=val, variant="small", weights=weights, forms="unfused")
    with pytest.raises(ZeroDivisionError):
        evaluate(request, progress=fails)


# What it leaves alone


def global_settings() -> dict[str, Any]:
    """Everything that an evaluation could leave changed behind it."""
    return {
        "matmul tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn tf32": torch.backends.cudnn.allow_tf32,
        "cudnn benchmark": torch.backends.cudnn.benchmark,
        "torch threads": torch.get_num_threads(),
        "torch random": torch.get_rng_state().tolist(),
        "numpy random": np.random.get_state()[1].tolist(),  # type: ignore[index,union-attr]
        "torch default dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "cv2 threads": cv2.getNumThreads(),
        "cv2 log level": cv2.utils.logging.getLogLevel(),
        "signals": {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)},
        "logging": {
            name: logging.getLogger(name).level
            for name in ("", "torch.onnx", "nncf", "onnxscript", "PIL", "matplotlib")
        },
        "streams": (sys.stdout, sys.stderr),
    }


@pytest.fixture
def unusual_settings() -> Any:
    """Settings that differ from the defaults and from what an evaluation needs."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, torch.get_num_threads()
    threads, level = cv2.getNumThreads(), cv2.utils.logging.getLogLevel()
    matmul.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = True
    torch.set_num_threads(2)
    cv2.setNumThreads(3)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    torch.manual_seed(99)
    yield
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before[:3]
    torch.set_num_threads(before[3])
    cv2.setNumThreads(threads)
    cv2.utils.logging.setLogLevel(level)


@pytest.mark.parametrize("source", ["variant", "onnx"])
def test_no_setting_is_left_changed_and_nothing_is_printed(
    source: str, val: Path, files: dict[str, Path], unusual_settings: None,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    before = global_settings()
    request = Request(data=val, variant="small", weights=files[source])
    first = evaluate(request)
    assert global_settings() == before
    second = evaluate(request)
    assert global_settings() == before
    assert first.predictions.equals(second.predictions)
    assert tuple(capfd.readouterr()) == ("", "")
    run = schema.run_document(first)
    assert run["settings"]["cudnn.allow_tf32"] is False, "it was off while it counted"


def failing_requests(val: Path, weights: Path, tmp_path: Path) -> dict[type[EvalError], Request]:
    torch.manual_seed(0)
    state = pplcnet.create_model("small").state_dict()
    state["stem.0.bn.running_var"][:] = -1.0
    save_file(state, tmp_path / "nan.safetensors")
    broken = tmp_path / "broken" / "n01440764" / "x.JPEG"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no image")
    (tmp_path / "file").write_text("")
    ours: dict[str, Any] = {"variant": "small", "weights": weights, "forms": "unfused"}
    return {
        DataError: Request(data=broken.parents[1], **ours),
        ModelError: Request(data=val, variant="base", weights=weights),
        LogitsError: Request(data=val, variant="small", weights=tmp_path / "nan.safetensors"),
        UsageError: Request(data=val, output=tmp_path / "file" / "out", **ours),
    }


@pytest.mark.parametrize("kind", [DataError, ModelError, LogitsError, UsageError])
def test_after_an_error_everything_is_as_before(
    kind: type[EvalError], val: Path, weights: Path, tmp_path: Path, unusual_settings: None,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    request = failing_requests(val, weights, tmp_path)[kind]
    torch.manual_seed(99)
    before = global_settings()
    with pytest.raises(kind):
        evaluate(request)
    assert global_settings() == before
    assert tuple(capfd.readouterr()) == ("", "")


def in_thread(action: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(action()))
    thread.start()
    thread.join(timeout=HANG)
    (result,) = results
    return result


def test_from_a_second_thread(val: Path, weights: Path, unusual_settings: None) -> None:
    request = Request(data=val, variant="small", weights=weights, forms="unfused")
    expected = evaluate(request)
    before = global_settings()
    found = in_thread(lambda: evaluate(request))
    assert global_settings() == before
    assert found.predictions.equals(expected.predictions)
    assert found.verdict == expected.verdict


def test_a_request_says_what_does_not_fit() -> None:
    with pytest.raises(UsageError, match="--data PATH, or use --demo"):
        Request()
    with pytest.raises(UsageError, match="--precision fp64"):
        Request(data="x", precision="fp64")
    with pytest.raises(UsageError, match="--limit 0"):
        Request(data="x", limit=0)
    with pytest.raises(UsageError, match="--batch-size True"):
        Request(data="x", batch_size=True)
    assert Request(data="x", forms="reparameterized,unfused").forms == tuple(BOTH)


def test_the_defaults_are_the_commands() -> None:
    from eval.imagenet import _parser, to_request

    asked = to_request(_parser().parse_args(["--data", "x", "--output", "y"]), [])
    made = Request(data="x", output="y", command=asked.command)
    assert asked == made


def test_importing_eval_imports_nothing_heavy() -> None:
    code = (
        "import sys, eval; from eval import Request; Request(data='x');"
        "heavy = {'torch', 'numpy', 'pandas', 'cv2', 'timm', 'matplotlib', 'PIL'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"


def test_the_command_is_kept(val: Path, weights: Path) -> None:
    evaluation = evaluate(
        Request(data=val, variant="small", weights=weights, forms="unfused", limit=1)
    )
    assert isinstance(evaluation.provenance, Provenance)
    assert evaluation.provenance.command.startswith("evaluate(Request(data=")


def test_models_are_prepared_for_one_thread() -> None:
    """oneDNN lays weights out for the number of threads; workers have one each."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with exact_settings():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
