"""LiteRT, ncnn, MNN and ExecuTorch, and what every runtime does with files that are not right."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import struct
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from conftest import ROOT, MakeVal
from onnx import TensorProto, helper
from test_backends import CPU, PREPROCESSING, assert_agrees, plain
from torch import nn

from eval.backends import BACKENDS, Task, child, create_predictor
from eval.backends.child import quiet
from eval.backends.formats import RUNTIMES, companions, files_of, size_of
from eval.backends.signature import Feed, check_signature
from eval.errors import ModelError, UsageError
from eval.export import main as export
from eval.imagenet import main
from eval.measure.engine import Engine
from eval.models import exported
from eval.request import Request

BATCH = 3


def needs(backend: str, *, converting: bool = True) -> None:
    entry = BACKENDS[backend]
    for name in (*entry.needs, *(entry.converts if converting else ())):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install '.[{entry.extra}]'")


class Tiny(nn.Module):
    """Quick to convert, and its answers tell the channels and the corners of an image apart."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.conv = nn.Conv2d(3, 8, 3, stride=4)
        self.fc = nn.Linear(8 * 4, 5)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.pool = nn.AvgPool2d(28)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(torch.relu(self.conv(x))).flatten(1))


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), dtype=np.uint8)


def predictor(backend: str, model: nn.Module | Path, batch: int = BATCH, **more: object):
    return create_predictor(
        backend, {"f": model}, PREPROCESSING, CPU, "fp32", batch_size=batch, workers=2, **more
    )


@pytest.mark.parametrize(
    "backend",
    [
        "ncnn",
        "mnn",
        pytest.param("litert", marks=pytest.mark.slow),
        pytest.param("executorch", marks=pytest.mark.slow),
    ],
)
def test_answers_are_those_of_plain_torch(backend: str, crops: np.ndarray) -> None:
    needs(backend)
    model = Tiny().eval()
    made = predictor(backend, model)
    for batch in (crops, crops[:1], np.concatenate([crops, crops])):
        assert_agrees(made(batch)["f"], plain(model, batch), within=1e-4)
    if backend == "ncnn":
        assert made.settings["ncnn.use_fp16_storage"] is False
        assert made.settings["batch"] == {"f": 1}
    else:
        assert made.settings["batch"]["f"] in (1, BATCH)


@pytest.mark.parametrize("backend", ["onnxruntime", "litert", "ncnn", "mnn", "executorch"])
def test_a_precision_that_would_be_changed_is_refused(backend: str) -> None:
    for precision in ("bf16", "fp16"):
        with pytest.raises(UsageError, match=rf"{precision}.*fp32 only"):
            create_predictor(backend, {}, PREPROCESSING, CPU, precision, batch_size=1, workers=1)


@pytest.mark.parametrize("backend", ["torch", "compile", "litert", "ncnn", "mnn", "executorch"])
def test_a_file_of_another_runtime_is_refused(backend: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot run .*x\.onnx: use onnxruntime or openvino"):
        predictor(backend, tmp_path / "x.onnx")


def test_each_format_has_a_runtime_and_the_table_is_light() -> None:
    assert {s for row in BACKENDS.values() for s in row.suffixes} == set(RUNTIMES)
    assert RUNTIMES[".onnx"] == ("onnxruntime", "openvino")
    code = "import sys, eval.backends; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_each_extra_installs_what_its_row_needs() -> None:
    packages = {"ai_edge_litert": "ai-edge-litert", "litert_torch": "litert-torch",
                "paddle": "paddlepaddle"}  # fmt: skip
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {
        name: {re.split("[<>=]", line)[0] for line in lines}
        for name, lines in project["optional-dependencies"].items()
    }
    for row in BACKENDS.values():
        needed = {packages.get(name, name) for name in (*row.needs, *row.converts)}
        assert needed <= extras[row.extra] if row.extra else not needed


BEGINNINGS = {
    ".onnx": b"\x08\x0a" + bytes(range(100)),
    ".xml": b"<net name='x'><layers>",
    ".tflite": struct.pack("<I", 28) + b"TFL3" + bytes(200),
    ".param": b"7767517\n3 3\nInput in0 0 1 in0\nConvolution c 1 1 in0 out0 0=8 1=3 6=216\n",
    ".mnn": struct.pack("<I", 24) + bytes(200),
    ".pte": struct.pack("<I", 48) + b"ET12" + bytes(200),
}


@pytest.mark.parametrize("suffix", list(BEGINNINGS))
@pytest.mark.parametrize("content", ["empty", "foreign", "truncated"])
def test_damaged_files_end_with_4(
    suffix: str, content: str, val_folder: MakeVal, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for backend in RUNTIMES[suffix][:1]:
        needs(backend, converting=False)
    path = tmp_path / f"x{suffix}"
    foreign = b"GIF89a" + bytes(300)
    path.write_bytes({"empty": b"", "foreign": foreign, "truncated": BEGINNINGS[suffix]}[content])
    path.with_suffix(".bin").write_bytes(b"")
    data = val_folder({"n01440764": ["a.JPEG"]})
    words = ["--data", str(data), "--variant", "small", "--weights", str(path), "--quiet"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 4
    error = capfd.readouterr().err
    assert f"x{suffix}" in error
    assert error.startswith("error: ")
    assert error.count("\n") <= 2, error


def graph(path: Path, nodes: list, output: list, batch: object = "batch") -> Path:
    """An ONNX file of a few nodes, from ``x`` (batch, 3, 224, 224) to ``y``."""
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 224, 224])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, output)
    made = helper.make_graph(nodes[1:], "g", [entry], [answer], nodes[0])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def ints(name: str, *values: int) -> TensorProto:
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_graph_that_answers_once_for_a_batch_is_refused(backend: str, tmp_path: Path) -> None:
    reduce = helper.make_node("ReduceMean", ["x"], ["m"], axes=[0, 2, 3], keepdims=0)
    row = helper.make_node("Reshape", ["m", "s"], ["y"])
    path = graph(tmp_path / "x.onnx", [[ints("s", 1, 3)], reduce, row], ["n", 3])
    with pytest.raises(ModelError, match=r"gives \(1, 3\) for 2 images instead of \(2,"):
        predictor(backend, path)


def test_a_graph_that_answers_at_random_is_refused(tmp_path: Path) -> None:
    noise = helper.make_node("RandomNormalLike", ["x"], ["r"])
    mean = helper.make_node("ReduceMean", ["r"], ["y"], axes=[2, 3], keepdims=0)
    path = graph(tmp_path / "x.onnx", [[], noise, mean], ["n", 3])
    with pytest.raises(
        ModelError, match=r"x\.onnx gives the same images different logits each time"
    ):
        predictor("onnxruntime", path)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.slow
def test_an_mnn_file_for_one_image_at_a_time(
    static: bool, tmp_path: Path, crops: np.ndarray
) -> None:
    """It does not say so, and crashes or answers once for a batch when it is given one."""
    needs("mnn")
    model, source, path = Tiny().eval(), tmp_path / "x.onnx", tmp_path / "x.mnn"
    torch.onnx.export(model, (torch.zeros(1, 3, 224, 224),), source, dynamo=True, verbose=False)
    options = ["--saveStaticModel"] if static else []
    words = ["ONNX", str(source), str(path), *options]
    child.call("MNN", "test_runtimes:to_mnn", words=words)
    made = predictor("mnn", path)
    assert_agrees(made(crops)["f"], plain(model, crops), within=1e-4)
    assert made.settings["batch"] == {"f": 1}


def to_mnn(words: list[str]) -> None:
    """In a child process: MNN's converter prints."""
    from eval.backends.mnn import to_mnn as convert

    convert(*words)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_graph_that_fails_or_wants_a_terabyte_is_an_error(backend: str, tmp_path: Path) -> None:
    flat = helper.make_node("Reshape", ["x", "s"], ["y"])
    path = graph(tmp_path / "fails.onnx", [[ints("s", 7, 5)], flat], ["n", 5])
    with pytest.raises(ModelError, match=r"fails\.onnx"):
        predictor(backend, path)
    big = helper.make_node("Expand", ["x", "s"], ["e"])
    small = helper.make_node("ReduceMean", ["e"], ["y"], axes=[0, 3, 4], keepdims=0)
    nodes = [[ints("s", 2_000_000, 1, 3, 224, 224)], big, small]
    path = graph(tmp_path / "huge.onnx", nodes, ["n", 3])
    with pytest.raises(ModelError, match=r"huge\.onnx"):
        predictor(backend, path)


def test_an_ncnn_file_by_hand(tmp_path: Path, crops: np.ndarray) -> None:
    """The mean of each channel, without a weight: ncnn itself says nothing about shapes."""
    needs("ncnn", converting=False)
    path = tmp_path / "mean.param"
    path.write_text("7767517\n2 2\nInput i 0 1 in0\nPooling p 1 1 in0 out0 0=1 4=1\n")
    path.with_suffix(".bin").write_bytes(b"")
    found = predictor("ncnn", path)(crops)["f"]
    expected = PREPROCESSING.normalize(crops).astype(np.float64).mean((1, 2))
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ModelError, match=r"gives \(1, 3\) for 1 images instead of \(1, 1000\)"):
        predictor("ncnn", path, classes=1000)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_pixels_may_be_uint8_and_channels_last(
    backend: str, tmp_path: Path, crops: np.ndarray
) -> None:
    entry = helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 224, 224, 3])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f"], ["y"], axes=[1, 2], keepdims=0),
    ]
    opset = [helper.make_opsetid("", 17)]
    made = helper.make_graph(nodes, "g", [entry], [answer])
    onnx.save(helper.make_model(made, opset_imports=opset, ir_version=8), tmp_path / "x.onnx")
    found = predictor(backend, tmp_path / "x.onnx")(crops)["f"]
    assert np.allclose(found, crops.astype(np.float64).mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize(
    ("scale", "zero", "taken"),
    [
        (0.0187, 114, "normalized, then quantized (scale 0.0187, zero point 114)"),
        (1, 0, "pixels as they are (scale 1, zero point 0)"),
        (1 / 255, 0, "pixels as they are (scale 0.00392157, zero point 0)"),
        (1 / 127.5, 128, "pixels as they are (scale 0.00784314, zero point 128)"),
    ],
)
def test_a_uint8_input_is_quantized_by_its_own_scale(
    scale: float, zero: int, taken: str, tmp_path: Path, crops: np.ndarray
) -> None:
    """By hand: the whole number nearest to image / scale + zero, or the pixel itself."""
    needs("litert", converting=False)
    from test_precision import F32, FLOATS, ROWS, UINT8, Tensor, litert

    pixels = [Tensor(UINT8, [1, 224, 224, 3], b"", scale, zero), Tensor(F32, [1, 224, 224, 3])]
    path = litert(tmp_path / "x.tflite", [FLOATS], [], pixels)
    made = predictor("litert", path)
    whole = crops.astype(np.float64)
    if "quantized" in taken:
        whole = np.clip(np.rint(PREPROCESSING.normalize(crops) / scale) + zero, 0, 255)
    expected = ((whole - zero) * scale).mean((1, 2)) @ ROWS.T
    assert np.allclose(made(crops)["f"], expected, rtol=1e-3, atol=1e-3)
    assert made.settings["litert.input"] == taken


def test_signatures_by_hand() -> None:
    logits = [("float", [None, 1000])]
    nchw = check_signature("x", [("float", [None, 3, 224, 224])], logits)
    assert nchw == Feed("NCHW", "float", None, 1000)
    nhwc = check_signature("x", [("uint8", [8, 192, 192, 3])], logits, 192)
    assert nhwc == Feed("NHWC", "uint8", 8, 1000)


def test_every_file_of_a_model_counts(tmp_path: Path) -> None:
    """External data under any name, in any number of files; they are hashed and sized."""
    tensors = [
        helper.make_tensor(name, TensorProto.FLOAT, [4], np.ones(4, np.float32).tobytes(), raw=True)
        for name in "abc"
    ]
    for tensor, file in zip(tensors, ["one.bin", "two.weights", "one.bin"], strict=True):
        onnx.external_data_helper.set_external_data(tensor, file)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
    path = graph(tmp_path / "x.onnx", [tensors, helper.make_node("Identity", ["x"], ["y"])], ["n"])
    assert [p.name for p in companions(path)] == ["one.bin", "two.weights"]
    with pytest.raises(ModelError, match=r"one\.bin, which is not beside it"):
        exported.check_file(path)
    (tmp_path / "one.bin").write_bytes(bytes(32))
    (tmp_path / "two.weights").write_bytes(bytes(16))
    exported.check_file(path)
    assert size_of(path) == path.stat().st_size + 48
    (tmp_path / "m.ncnn.param").write_text("7767517\n")
    assert [p.name for p in files_of(tmp_path / "m.ncnn.param")] == ["m.ncnn.param", "m.ncnn.bin"]


def test_sessions_that_answer_otherwise_than_when_the_file_was_tried_are_refused(
    tmp_path: Path, crops: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the second worker's only, and only in this process."""
    from eval.backends.onnx import OnnxGraph

    mean = helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)
    path = graph(tmp_path / "x.onnx", [[], mean], ["n", 3])
    assert predictor("onnxruntime", path)(crops)["f"].shape == (BATCH, 3)
    plain_session, made = OnnxGraph.session, []

    def session(self: OnnxGraph, feed: Feed, batch: int):
        made.append(plain_session(self, feed, batch))
        error = 0.01 * (len(made) == 2)
        return lambda images, answer=made[-1]: answer(images) + error

    monkeypatch.setattr(OnnxGraph, "session", session)
    with pytest.raises(ModelError, match=r"x\.onnx gives .* other logits with 2 workers"):
        predictor("onnxruntime", path)


def source_of(path: Path) -> exported.ExportedSource:
    return exported.open_source(Request(data=".", variant="small", weights=path))


@pytest.mark.parametrize("end", ["Softmax", "LogSoftmax", "Sigmoid", ""])
def test_a_graph_that_ends_in_probabilities(end: str, tmp_path: Path, crops: np.ndarray) -> None:
    """Probabilities are used as they are; what a sigmoid gives only ranks."""
    mean = helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0)
    scale = helper.make_tensor("s", TensorProto.FLOAT, [3], [8, -8, 4])
    nodes = [[scale], mean, helper.make_node("Mul", ["m", "s"], ["l" if end else "y"])]
    axis = {} if end == "Sigmoid" else {"axis": 1}
    last = [helper.make_node(end, ["l"], ["y"], **axis)] if end else []
    path = graph(tmp_path / "x.onnx", [*nodes, *last], ["n", 3])
    engine = Engine(Task("onnxruntime", {"f": path}, PREPROCESSING, CPU, "fp32", 4, 1, 3))
    found = engine.logits(crops)["f"]
    logits = PREPROCESSING.normalize(crops).astype(np.float64).mean((1, 2)) * [8, -8, 4]
    said = engine.settings.get("outputs", {}).get("f", "")
    words = {"Softmax": "probabilities, used", "LogSoftmax": "log-prob", "": "",
             "Sigmoid": "numbers between 0 and 1"}  # fmt: skip
    assert said.startswith(words[end])
    assert bool(said) == bool(end)
    shared = np.log(np.exp(logits).sum(1, keepdims=True)) if end else 0
    expected = 1 / (1 + np.exp(-logits)) if end == "Sigmoid" else logits - shared
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_what_was_hashed_is_what_runs(tmp_path: Path, crops: np.ndarray) -> None:
    """The file and its weights are exchanged after the hash was taken, and put back later."""
    eye = np.eye(3, dtype=np.float32).tobytes()
    weights = helper.make_tensor("w", TensorProto.FLOAT, [3, 3], eye, raw=True)
    (tmp_path / "apart").mkdir()
    mean = helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0)
    nodes = [[weights], mean, helper.make_node("MatMul", ["m", "w"], ["y"])]
    path = graph(tmp_path / "x.onnx", nodes, ["n", 3])
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="apart/w.bin",
                    size_threshold=0)  # fmt: skip
    before = {file: file.read_bytes() for file in (path, tmp_path / "apart/w.bin")}
    subject = source_of(path).load(3, lambda _: None)
    assert [(file.path, file.sha256) for file in subject.files] == [
        (file, hashlib.sha256(data).hexdigest()) for file, data in before.items()
    ]
    (tmp_path / "apart/w.bin").write_bytes(np.full(9, 7, np.float32).tobytes())
    path.write_bytes(b"")
    found = predictor("onnxruntime", subject.forms["exported"])(crops)["f"]
    assert np.allclose(found, PREPROCESSING.normalize(crops).mean((1, 2)), atol=1e-5)
    with pytest.raises(ModelError, match="changed during the evaluation"):
        subject.check_unchanged()
    folder = subject.forms["exported"].parent
    assert list(folder.iterdir())
    del subject
    assert not folder.exists()


def test_messages_name_the_file_and_not_its_copy(tmp_path: Path) -> None:
    for name, data in (("x.onnx", b"\x08\x0a" + bytes(range(100))), ("x.xml", b"<net><layers>")):
        (tmp_path / name).write_bytes(data)
        (tmp_path / "x.bin").write_bytes(b"")
        subject = source_of(tmp_path / name).load(1000, lambda _: None)
        backend = RUNTIMES[Path(name).suffix][0]
        with pytest.raises(ModelError) as caught:
            predictor(backend, subject.forms["exported"])
        assert str(tmp_path / name) in str(caught.value)
        assert str(subject.forms["exported"].parent) not in str(caught.value)


def test_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [4], bytes(16), raw=True)
    onnx.external_data_helper.set_external_data(tensor, "../w.bin")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    (tmp_path / "m").mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(16))
    path = graph(tmp_path / "m/x.onnx", [[tensor], helper.make_node("Identity", ["x"], ["y"])],
                 ["n"])  # fmt: skip
    with pytest.raises(ModelError, match=r"x\.onnx keeps its weights in w\.bin, outside"):
        source_of(path).load(1000, lambda _: None)


def test_a_child_that_crashes_or_hangs_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"it crashed \(SIG"):
        child.call("it", "os:abort")
    with pytest.raises(ModelError, match="no answer within 1 seconds"):
        child.call("it", "subprocess:call", seconds=1, args=["sleep", "9"])
    with pytest.raises(ModelError, match="it: JSONDecodeError: Expecting value"):
        child.call("it", "json:loads", s="word")


def test_nothing_native_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet():
        subprocess.run(["echo", "noise"], check=True)
    print("result", flush=True)
    assert capfd.readouterr().out == "result\n"


@pytest.mark.parametrize("opset", ["1", pytest.param("99", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_an_opset_that_would_not_be_written_is_refused(
    opset: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--variant", "small", "--weights", str(weights), "--opset", opset]
    assert export([*words, "--output", str(tmp_path / "out")]) in (2, 4)
    error = capsys.readouterr().err
    assert "opset" in error or "exporter cannot" in error
    assert error.count("\n") <= 2
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ncnn", "mnn", "litert", "executorch"])
def test_exports_load_in_a_fresh_process(
    kind: str, weights: Path, val_folder: MakeVal, tmp_path: Path
) -> None:
    from eval.backends.formats import EXPORTS as KINDS

    backend, ending = KINDS[kind]
    needs(backend)
    words = ["--variant", "small", "--weights", str(weights), "--format", kind]
    assert export([*words, "--output", str(tmp_path / "out")]) == 0
    data = val_folder({"n01440764": ["a.JPEG", "b.JPEG"], "n01443537": ["c.JPEG"]})
    common = ["--data", str(data), "--variant", "small", "--quiet"]
    file = tmp_path / "out" / f"model{ending}"
    code = [sys.executable, "-m", "eval.imagenet", *common, "--weights", str(file)]
    subprocess.run([*code, "--output", str(tmp_path / "a")], check=True, cwd=ROOT)
    torch_words = [*common, "--weights", str(weights), "--forms", "reparameterized"]
    assert main([*torch_words, "--output", str(tmp_path / "b")]) == 0
    tops = [
        pd.read_csv(tmp_path / name / "predictions.csv").iloc[:, 4:9].to_numpy().tolist()
        for name in "ab"
    ]
    assert tops[0] == tops[1]
    half = tmp_path / f"half{ending}"
    for source in files_of(file):
        shutil.copy(source, half.with_suffix(source.suffix))
    last = files_of(half)[-1]
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    assert main([*common, "--weights", str(half), "--output", str(tmp_path / "c")]) == 4


def test_requests_take_every_kind_of_file(tmp_path: Path) -> None:
    for suffix in RUNTIMES:
        from eval.models import open_source

        source = open_source(Request(data=".", variant="small", weights=tmp_path / f"x{suffix}"))
        # Paddle's inference models are read as checkpoints, so torch runs them by default.
        is_read = suffix in BACKENDS["paddle"].suffixes
        assert source.backend == ("torch" if is_read else RUNTIMES[suffix][0])
