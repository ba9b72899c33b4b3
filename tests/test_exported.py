"""Exported files: made, checked, quantized, evaluated, refused, and compared in one table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import FILES, MakeVal, jpeg, rows_of
from torch import nn

import pplcnet
from eval import export, sweep
from eval.backends import create_predictor
from eval.backends.formats import precision_of
from eval.backends.onnx import export_onnx
from eval.backends.signature import check_signature
from eval.errors import ModelError, UsageError
from eval.imagenet import main
from eval.images.preprocess import PREPROCESS
from eval.images.sets import V2, VAL
from eval.jobs.sweep import combinations, reported


@pytest.fixture(scope="module")
def made(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an ONNX file, an OpenVINO one, and an int8 one of each."""
    folder = tmp_path_factory.mktemp("exported")
    images = folder / "val" / "n01440764"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        (images / f"{number}.JPEG").write_bytes(jpeg(pixels))
    words = ["--variant", "small", "--weights", str(weights), "--format", "onnx,openvino"]
    words += ["--int8", "--calibrate", str(folder / "val"), "--images", str(folder / "val")]
    assert export.main([*words, "--method", "minmax", "--output", str(folder)]) == 0
    return folder


def evaluate(data: Path, exported: Path, output: Path, *more: str) -> int:
    return main(
        ["--data", str(data), "--variant", "small", "--weights", str(exported),
         "--output", str(output), "--quiet", *more]
    )  # fmt: skip


def test_what_is_made_is_whole(made: Path) -> None:
    names = {path.name for path in made.iterdir() if path.is_file()}
    assert names == {
        "model.onnx",
        "model.xml",
        "model.bin",
        "model-int8.onnx",
        "model-int8.xml",
        "model-int8.bin",
    }
    proto = onnx.load(made / "model.onnx")
    onnx.checker.check_model(proto, full_check=True)
    (entry,), (answer,) = proto.graph.input, proto.graph.output
    assert (entry.name, answer.name) == ("input", "logits")
    batch, *sizes = entry.type.tensor_type.shape.dim
    assert batch.dim_param
    assert [size.dim_value for size in sizes] == [3, 224, 224]
    assert (made / "model-int8.onnx").stat().st_size < 0.4 * (made / "model.onnx").stat().st_size
    assert (made / "model-int8.xml").with_suffix(".bin").stat().st_size < 0.4 * (
        made / "model.bin"
    ).stat().st_size


def test_precision_is_seen_in_the_file(made: Path) -> None:
    found = {
        name: precision_of(made / name)
        for name in ("model.onnx", "model.xml", "model-int8.onnx", "model-int8.xml")
    }
    assert found == {
        "model.onnx": "fp32",
        "model.xml": "fp32",
        "model-int8.onnx": "int8",
        "model-int8.xml": "int8",
    }


@pytest.mark.parametrize(
    ("name", "backend"),
    [("model.onnx", "onnxruntime"), ("model.onnx", "openvino"), ("model.xml", "openvino")],
)
def test_an_exported_file_is_evaluated_as_the_model_is(
    name: str, backend: str, made: Path, weights: Path, val_folder: MakeVal, tmp_path: Path
) -> None:
    data = val_folder(FILES)
    assert evaluate(data, weights, tmp_path / "torch", "--forms", "reparameterized") == 0
    assert evaluate(data, made / name, tmp_path / "out", "--backend", backend) == 0
    (summary,) = rows_of(tmp_path / "out/summary.csv")
    assert (summary["form"], summary["backend"]) == ("exported", backend)
    assert (summary["precision"], summary["params"]) == ("fp32", "")
    pairs = zip(
        rows_of(tmp_path / "out/predictions.csv"),
        rows_of(tmp_path / "torch/predictions.csv"),
        strict=True,
    )
    for found, expected in pairs:
        assert found["exported_top1"] == expected["reparameterized_top1"]
        assert float(found["exported_prob1"]) == pytest.approx(
            float(expected["reparameterized_prob1"]), rel=1e-3
        )


@pytest.mark.parametrize("name", ["model-int8.onnx", "model-int8.xml"])
def test_int8_is_evaluated_and_never_gated(
    name: str, made: Path, val_folder: MakeVal, tmp_path: Path
) -> None:
    config = tmp_path / "four.toml"
    config.write_text(
        'name = "four"\nmodel = "small"\nimages = 4\n[reference]\nsource = "x"\ntop1 = 0.0\n'
        '[tolerance.torchvision]\nimages = 4\nreason = "any count passes"\n'
    )
    data = val_folder(FILES)
    found = []
    for file in (name, "model.onnx"):
        words = ["--data", str(data), "--config", str(config), "--weights", str(made / file)]
        words += ["--image-set", "val", "--output", str(tmp_path / file), "--quiet"]
        assert main(words) == 0
        (summary,) = rows_of(tmp_path / file / "summary.csv")
        found.append((summary["precision"], summary["verdict"]))
    assert found == [("int8", "NO_REFERENCE"), ("fp32", "PASS")]
    notes = [
        json.loads((tmp_path / file / "run.json").read_text())["settings"].get("int8", "")
        for file in (name, "model.onnx")
    ]
    assert "VNNI" in notes[0], "another processor may give another accuracy"
    assert "differently" in (tmp_path / name / "report.html").read_text()
    assert not notes[1]


def test_a_graph_with_a_fixed_batch_is_evaluated(
    model: pplcnet.PPLCNetV2, made: Path, val_folder: MakeVal, tmp_path: Path
) -> None:
    proto = onnx.load(made / "model.onnx")
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(proto, tmp_path / "three.onnx")
    data = val_folder(FILES)
    assert evaluate(data, tmp_path / "three.onnx", tmp_path / "three") == 0
    assert evaluate(data, made / "model.onnx", tmp_path / "any") == 0
    tops = [
        [row["exported_top1"] for row in rows_of(tmp_path / name / "predictions.csv")]
        for name in ("three", "any")
    ]
    assert tops[0] == tops[1]


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ([("float", [None, 3, 224, 224])] * 2, [("float", [None, 1000])], "2 inputs"),
        ([("float", [None, 3, 256, 256])], [("float", [None, 1000])], "256"),
        ([("float", [None, 224, 3, 224])], [("float", [None, 1000])], "224, 3, 224"),
        ([("int64", [None, 3, 224, 224])], [("float", [None, 1000])], "int64"),
        ([("float", [None, 3, 224, 224])], [("float", [None, 21841])], "21841"),
        ([("float", [None, 3, 224, 224])], [("float", [None])], r"gives float \(any\)"),
    ],
)
def test_another_signature_is_refused(inputs: list, outputs: list, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        check_signature("x.onnx", inputs, outputs, classes=1000)


def test_a_model_of_other_classes_ends_with_4(
    val_folder: MakeVal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Tiny(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    (tmp_path / "tiny.onnx").write_bytes(export_onnx(Tiny()))
    for backend in ("onnxruntime", "openvino"):
        code = evaluate(
            val_folder(FILES), tmp_path / "tiny.onnx", tmp_path / backend, "--backend", backend
        )
        error = capsys.readouterr().err
        assert code == 4
        assert "tiny.onnx gives 3 outputs for 1000 classes.\nName its classes with" in error
        assert error.count("\n") <= 2


@pytest.mark.parametrize("name", ["x.onnx", "x.xml"])
def test_a_damaged_file_ends_with_4(
    name: str, val_folder: MakeVal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(b"nothing of the kind")
    assert evaluate(val_folder(FILES), tmp_path / name, tmp_path / "out") == 4
    error = capsys.readouterr().err
    assert "no runtime can load it" in error
    assert error.count("\n") <= 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--forms", "unfused"), "only the form that was"),
        (("--backend", "torch"), "use onnxruntime or"),
    ],
)
def test_options_that_do_not_fit_a_file(
    more: tuple[str, ...], words: str, made: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert evaluate(tmp_path, made / "model.onnx", tmp_path / "out", *more) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_is_one_table(
    weights: Path, made: Path, val_folder: MakeVal, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["--data", str(val_folder(FILES)), "--variant", "small", "--image-set", "val"]
    words += [
        "--weights",
        str(weights),
        str(made / "model-int8.onnx"),
        "--output",
        str(tmp_path / "out"),
    ]
    words += ["--backend", "torch,onnxruntime", "--quiet"]
    assert sweep.main(words) == 0
    shown = capsys.readouterr()
    rows = rows_of(tmp_path / "out/sweep.csv")
    assert [(row["backend"], row["precision"]) for row in rows] == [
        ("torch", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8"),
    ]  # fmt: skip
    assert rows[0]["flips"] == rows[1]["flips"] == "0"
    for row in rows:
        assert f"{row['backend']} {row['precision']}" in shown.out
        (summary,) = rows_of(Path(row["output"]) / "summary.csv")
        assert summary["top1_correct"] == row["top1_correct"]
    assert "small, reported: 73.97 / - (PaddleX model list)" in shown.out
    assert float(rows[2]["megabytes"]) < 0.4 * float(rows[0]["megabytes"])


def test_a_sweep_gives_files_the_options_of_their_kind(tmp_path: Path) -> None:
    for name in ("a.pth", "b.onnx"):
        (tmp_path / name).touch()
    asked = sweep.to_sweep(
        sweep.parse(
            ["--data", "x", "--weights", *(str(tmp_path / n) for n in ("a.pth", "b.onnx")),
             "--weights-entry", "ema", "--output-name", "probs", "--background-first",
             "--backend", "torch,onnxruntime"]
        )
    )  # fmt: skip
    requests = [row.request(asked) for row in combinations(asked)[0]]
    assert {(r.weights_entry, r.output_name, r.background_first) for r in requests} == {
        ("ema", None, False),
        (None, "probs", True),
    }


def test_every_combination_of_a_sweep_has_a_folder_of_its_own(made: Path) -> None:
    words = [
        "--data",
        "val",
        "--weights",
        "auto",
        str(made / "model-int8.onnx"),
        str(made / "model-int8.xml"),
    ]
    words += ["--backend", "torch,onnxruntime,openvino", "--precision", "fp32,bf16"]
    words += ["--variant", "base,small", "--preprocess", "torchvision,paddle"]
    planned, left_out = combinations(sweep.to_sweep(sweep.parse(words)))
    names = [each.name for each in planned]
    # Of each: 3 backends in fp32, 2 in bf16, one file in 2, the other in 1.
    assert len(names) == len(set(names)) == 2 * 2 * (3 + 2 + 2 + 1)
    assert "small-model-int8.onnx-openvino-int8-torchvision" in names
    assert left_out == 4 * ["onnxruntime has no bf16 here"]


def test_a_sweep_shows_the_figures_of_its_own_set() -> None:
    shown = [line[:28] for line in reported(["small", "timm:resnet18"], VAL)]
    assert shown == ["small, reported: 73.97 / - ("]
    (line,) = reported(["small"], V2)
    assert line.startswith("small, timm: 60.98 / 82.54 (")


def test_weights_of_a_sweep_may_belong_to_one_variant(tmp_path: Path) -> None:
    file = tmp_path / "b=c.onnx"
    words = ["--data", "val", "--variant", "small,base"]
    words += ["--weights", "small=a/x.pdparams", "base=b/x.pdparams", f"base={file}"]
    words += ["--backend", "torch,openvino"]
    assert sweep.main(words) == 4  # the file is not there
    file.touch()
    planned, _ = combinations(sweep.to_sweep(sweep.parse(words)))
    found = [(each.name, each.weights) for each in planned]
    assert found == [
        ("small-reparameterized-torch-fp32-own", "a/x.pdparams"),
        ("small-reparameterized-openvino-fp32-own", "a/x.pdparams"),
        ("base-reparameterized-torch-fp32-own", "b/x.pdparams"),
        ("base-reparameterized-openvino-fp32-own", "b/x.pdparams"),
        ("base-b=c.onnx-openvino-fp32-own", str(file)),
    ]


def test_a_sweep_cannot_tell_files_of_one_name_apart(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "model-int8.onnx"
    shutil.copy(made / "model-int8.onnx", other)
    words = [
        "--data",
        "val",
        "--weights",
        str(made / "model-int8.onnx"),
        str(other),
        "--backend",
        "openvino",
    ]
    assert sweep.main(words) == 2
    assert "two files have the same name" in capsys.readouterr().err


def test_a_sweep_names_what_it_leaves_out(
    val_folder: MakeVal, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(val_folder(FILES)), "--variant", "small", "--weights", str(weights)]
    words += ["--backend", "onnxruntime,torch", "--precision", "bf16", "--quiet"]
    assert sweep.main([*words, "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err == "left out: onnxruntime has no bf16 here\n"
    assert sweep.main([*words, "--backend", "onnxruntime"]) == 2
    assert capsys.readouterr().err == (
        "error: Nothing is left to run: onnxruntime has no bf16 here.\n"
    )


def test_a_run_that_fails_is_named_and_the_others_go_on(
    weights: Path, val_folder: MakeVal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(val_folder(FILES)), "--variant", "large,small"]
    words += ["--weights", str(weights), "--output", str(tmp_path / "out"), "--quiet"]
    assert sweep.main(words) == 4
    shown = capsys.readouterr()
    assert "does not fit the model" in shown.err
    assert "failed with exit code 4" in shown.out
    assert [row["exit_code"] for row in rows_of(tmp_path / "out/sweep.csv")] == ["4", "0"]


def test_a_precision_that_openvino_would_replace_is_refused(made: Path) -> None:
    import openvino

    has = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for precision in ("fp32", "bf16", "fp16"):
        words = (
            "openvino",
            {"a": made / "model.onnx"},
            PREPROCESS["torchvision"],
            torch.device("cpu"),
        )
        if precision.upper() in has:
            create_predictor(*words, precision, batch_size=1, workers=1)
        else:
            with pytest.raises(UsageError, match="OpenVINO does not support it on this"):
                create_predictor(*words, precision, batch_size=1, workers=1)


@pytest.mark.slow
def test_a_sweep_measures_and_draws_the_latency(
    val_folder: MakeVal, weights: Path, tmp_path: Path
) -> None:
    data = val_folder({"n01440764": ["a.JPEG"], "n01443537": ["b.JPEG"]})
    words = ["--data", str(data), "--variant", "small", "--weights", str(weights), "--quiet"]
    words += ["--output", str(tmp_path / "out"), "--latency"]
    assert sweep.main([*words, "--plot", str(tmp_path / "plot.svg")]) == 0
    (row,) = rows_of(tmp_path / "out/sweep.csv")
    assert float(row["latency_ms"]) > 0
    drawn = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    assert drawn.startswith("<?xml")


def test_a_plot_that_cannot_be_drawn_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(tmp_path / "nowhere"), "--plot"]
    assert sweep.main([*words, "plot.svg"]) == 2
    assert "add --latency" in capsys.readouterr().err
    assert sweep.main([*words, "plot.pdf", "--latency"]) == 2
    assert "name a .png or .svg file" in capsys.readouterr().err
