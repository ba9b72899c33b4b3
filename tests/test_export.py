"""``eval.export``: its options, its old name, and what int8 is judged by."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT, MakeVal
from safetensors.torch import load_file, save_file
from scipy.special import rel_entr, softmax

from eval import export
from eval.errors import UsageError
from eval.jobs import convert
from eval.jobs.int8 import divergence


def alias() -> ModuleType:
    spec = importlib.util.spec_from_file_location("export_onnx", ROOT / "scripts/export_onnx.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_old_name_still_works(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--variant", "small", "--weights", str(weights), "--output", str(tmp_path / "a.onnx")]
    assert alias().main([*words, "--openvino", str(tmp_path / "deep" / "b.xml")]) == 0
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        "a.onnx",
        "b.bin",
        "b.xml",
    ]
    shown = capsys.readouterr()
    assert shown.err == "scripts/export_onnx.py is deprecated: use python -m eval.export\n"
    assert shown.out.count("top-1 identical in") == 2


@pytest.mark.parametrize("recipe", ["torchvision,resize=235", "squash", None])
def test_the_old_name_takes_what_the_new_one_takes(
    recipe: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, asked = alias(), []

    def made(words: list[str], *_: object) -> None:
        asked.append(export.parse([*words, "--output", "folder"]).preprocess)

    monkeypatch.setattr(script, "_export", made)
    assert script.main(["--output", "a.onnx", *(["--preprocess", recipe] if recipe else [])]) == 0
    assert asked == [recipe]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "onnx,coreml"], "--format coreml: use one of onnx, openvino"),
        (["--int8"], "--int8 and --calibrate go together"),
        (["--calibrate", "val"], "--int8 and --calibrate go together"),
        (["--max-drop", "1pp"], "--max-drop and --method only apply to int8"),
        (["--method", "minmax"], "--max-drop and --method only apply to int8"),
        (
            ["--int8", "--calibrate", "x", "--method", "best", "--format", "ncnn,onnx"],
            "--method best: onnx has minmax, percentile, entropy.",
        ),
        (["--int8", "--calibrate", "val", "--max-drop", "much"], "such as 0.5pp"),
        (["--int8", "--calibrate", "val", "--max-drop=-1pp"], "such as 0.5pp"),
    ],
)
def test_options_that_do_not_go_together(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export.main([*words, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_rounded_weights_are_not_exported_as_fp32(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({name: each.half() for name, each in load_file(weights).items()}, tmp_path / "h.pth")
    words = ["--variant", "small", "--weights", str(tmp_path / "h.pth")]
    assert export.main([*words, "--output", str(tmp_path / "out")]) == 4
    assert "has fp16 weights; exported files would hold" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_points_by_hand() -> None:
    assert export._points("--max-drop", "0.5pp") == 0.005
    assert export._points("--max-drop", "2") == 0.02
    with pytest.raises(UsageError):
        export._points("--max-drop", "nan")


def test_divergence_is_scipys() -> None:
    rng = np.random.default_rng(0)
    expected, found = rng.normal(0, 3, (2, 5, 7)).astype(np.float32)
    by_scipy = rel_entr(softmax(expected, 1), softmax(found, 1)).sum(1).mean()
    assert divergence(expected, found) == pytest.approx(by_scipy, rel=1e-5)
    assert divergence(expected, expected) == 0


def test_nothing_gets_its_name_when_an_answer_is_wrong(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    real = convert.answers

    def wrong(backend: str, *rest: object) -> np.ndarray:
        logits = real(backend, *rest)  # type: ignore[arg-type]
        return logits if backend == "torch" else np.roll(logits, 1, axis=1)

    monkeypatch.setattr(convert, "answers", wrong)
    words = ["--variant", "small", "--weights", str(weights)]
    assert export.main([*words, "--output", str(tmp_path / "out")]) == 4
    assert "another top-1 prediction for 32 of 32 images of noise" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_two_images_are_too_few_to_calibrate_on(
    weights: Path, val_folder: MakeVal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = val_folder({"n01440764": ["a.JPEG"]})
    words = ["--variant", "small", "--weights", str(weights), "--int8", "--calibrate", str(data)]
    assert export.main([*words, "--output", str(tmp_path / "out")]) == 2
    assert "needs at least 4 images" in capsys.readouterr().err
