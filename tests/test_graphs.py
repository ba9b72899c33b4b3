"""Graphs of others: what they take and give, against the mean color that they compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from conftest import FILES, MakeVal, rows_of
from onnx import TensorProto, helper
from test_precision import F32, Tensor, litert
from test_runtimes import needs

from eval import Request, evaluate
from eval.backends import Task, mnn
from eval.backends.formats import check_file, side_of
from eval.backends.signature import check_signature
from eval.errors import ModelError, UsageError
from eval.images.preprocess import PREPROCESS, Crop, Preprocess
from eval.measure.engine import Engine
from eval.models import open_source
from eval.recipe import parse

CPU = torch.device("cpu")
CLASSES = 3
FLOAT, DOUBLE, INT64 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64
SCALE = np.array([8, -8, 4], np.float32)  # of the means of red, green and blue


def node(kind: str, inputs: str, output: str, **options: Any) -> Any:
    return helper.make_node(kind, inputs.split(), [output], **options)


def shape(name: str, *sizes: int) -> TensorProto:
    return helper.make_tensor(name, INT64, [len(sizes)], sizes)


def graph(
    path: Path,
    *nodes: Any,
    give: dict[str, tuple[int, list[Any] | None]],
    take: list[Any] | None = ["n", 3, 224, 224],  # noqa: B006 - never changed
    constants: tuple[TensorProto, ...] = (),
    axes: tuple[int, int] = (2, 3),
) -> Path:
    """From images ``x`` to logits ``l``, (n, 3), and what else the nodes make of them."""
    scale = helper.make_tensor("scale", FLOAT, [3], SCALE.tolist())
    mean = node("ReduceMean", "x", "m", axes=list(axes), keepdims=0)
    made = helper.make_graph(
        [mean, node("Mul", "m scale", "l"), *nodes],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, take)],
        [helper.make_tensor_value_info(name, *kind) for name, kind in give.items()],
        [scale, *constants],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def engine(path: Path, backend: str = "onnxruntime", **options: Any) -> Engine:
    values: dict[str, Any] = {"batch_size": 4, "workers": 1, "classes": CLASSES, **options}
    preprocess = values.pop("preprocess", PREPROCESS["torchvision"])
    return Engine(Task(backend, {"f": path}, preprocess, CPU, "fp32", **values))


@pytest.fixture(scope="module")
def crops() -> Crop:
    return np.random.default_rng(0).integers(0, 256, (6, 224, 224, 3), dtype=np.uint8)


def expected(crops: Crop, preprocess: Preprocess = PREPROCESS["torchvision"]) -> Any:
    return preprocess.normalize(crops).astype(np.float64).mean((1, 2)) * SCALE


LOGITS = {"l": (FLOAT, ["n", 3])}
BOTH = ["onnxruntime", "openvino"]


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize(
    ("nodes", "give", "constants"),
    [
        ([], LOGITS, ()),
        (
            [node("Reshape", "l s", "y")],
            {"y": (FLOAT, ["n", 3, 1, 1])},
            (shape("s", -1, 3, 1, 1),),
        ),
        ([node("Cast", "l", "y", to=DOUBLE)], {"y": (DOUBLE, ["n", 3])}, ()),
        # The only one of three classes; the other are features of another width.
        (
            [node("Concat", "l l", "f", axis=1)],
            {"f": (FLOAT, ["n", 6]), "l": (FLOAT, ["n", 3])},
            (),
        ),
    ],
    ids=["plain", "ones", "double", "features"],
)
def test_outputs(
    backend: str, nodes: list[Any], give: Any, constants: Any, tmp_path: Path, crops: Crop
) -> None:
    made = engine(graph(tmp_path / "x.onnx", *nodes, give=give, constants=constants), backend)
    np.testing.assert_allclose(made.logits(crops)["f"], expected(crops), rtol=1e-4, atol=1e-4)
    assert made.settings.get("output") == ("l" if len(give) > 1 else None)


@pytest.mark.parametrize("backend", BOTH)
def test_one_of_several_outputs_is_named(backend: str, tmp_path: Path, crops: Crop) -> None:
    softmax = node("Softmax", "l", "p", axis=1)
    path = graph(tmp_path / "x.onnx", softmax, give={**LOGITS, "p": (FLOAT, ["n", 3])})
    message = r"2 outputs: l float \(any, 3\); p float \(any, 3\)\.\nName .* --output-name l\."
    with pytest.raises(ModelError, match=message):
        engine(path, backend)
    with pytest.raises(UsageError, match=r"--output-name q: .* no such output\.\nIt has l float"):
        engine(path, backend, output="q")
    logits = engine(path, backend, output="l")
    np.testing.assert_allclose(logits.logits(crops)["f"], expected(crops), rtol=1e-4, atol=1e-4)
    assert logits.settings["output"] == "l"
    assert "outputs" not in logits.settings
    probabilities = engine(path, backend, output="p")
    assert probabilities.settings["outputs"] == {"f": "probabilities, used as they are"}


def test_outputs_that_are_none() -> None:
    take = [("float", ["n", 3, 224, 224])]
    top = [("float", ["n", 5], "v"), ("int64", ["n", 5], "i")]
    with pytest.raises(ModelError, match=r"none of them the logits of 1000 classes: v float"):
        check_signature("x.onnx", take, top, classes=1000)


@pytest.mark.parametrize(
    ("take", "axes", "layout"), [(None, (2, 3), "NCHW"), (None, (1, 2), "NHWC")]
)
def test_a_shape_that_is_not_known_is_tried(
    take: None, axes: tuple[int, int], layout: str, tmp_path: Path, crops: Crop
) -> None:
    path = graph(tmp_path / "x.onnx", take=take, give={"l": (FLOAT, None)}, axes=axes)
    made = engine(path)
    np.testing.assert_allclose(made.logits(crops)["f"], expected(crops), rtol=1e-4, atol=1e-4)
    assert made._predictor._predictor._forms["f"].layout == layout  # type: ignore[attr-defined]


@pytest.mark.parametrize("keep", [0, 1])
def test_a_predicted_class_alone(keep: int, val_folder: MakeVal, tmp_path: Path) -> None:
    """ArgMax at the end: top-1 is counted, and nothing is made up for the rest."""
    index = node("ArgMax", "l", "y", axis=1, keepdims=keep)
    give: Any = {"y": (INT64, ["n", 1] if keep else ["n"])}
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    val = val_folder({"red": ["a.JPEG", "b.JPEG"], "green": ["c.JPEG"], "blue": ["d.JPEG"]})
    plain = graph(tmp_path / "plain.onnx", give=LOGITS)
    request = Request(data=val, variant="base", classes=tmp_path / "classes.txt", weights=plain)
    all_of_it = evaluate(request)
    path = graph(tmp_path / "x.onnx", index, give=give)
    found = evaluate(replace(request, weights=path, output=tmp_path / "out"))
    (a,), (b,) = all_of_it.measured.scores.values(), found.measured.scores.values()
    assert b.top[:, 0].tolist() == a.top[:, 0].tolist()
    assert (b.rank == 0).tolist() == (a.rank == 0).tolist()
    row = found.summary.iloc[0]
    assert row["top1_correct"] == a.correct(1)
    assert row[["top5_correct", "top5", "nll"]].isna().all()
    assert found.setup.settings["outputs"]["exported"].startswith("predicted classes: there is a")
    per_class = rows_of(tmp_path / "out" / "per_class.csv")
    assert {row["exported_correct@5"] for row in per_class} == {""}
    assert sum(int(row["exported_correct@1"]) for row in per_class) == a.correct(1)
    with pytest.raises(UsageError, match="--stop-early: the file gives the predicted class alone"):
        engine(path).measure(found.measured.valset, stopper=cast("Any", object()))


def background(path: Path, end: str = "") -> Path:
    """One more output in front, which is greater than all others."""
    nodes = [node("ReduceMax", "l", "b", axes=[1], keepdims=1), node("Concat", "b l", "y", axis=1)]
    if end:
        nodes.append(node(end, "y", "z", axis=1))
    return graph(path, *nodes, give={"z" if end else "y": (FLOAT, ["n", 4])})


@pytest.mark.parametrize("end", ["", "Softmax"])
def test_a_background_class(end: str, tmp_path: Path, crops: Crop) -> None:
    path = background(tmp_path / "x.onnx", end)
    with pytest.raises(ModelError, match=r"4 outputs for 3 classes\.\n.* add --background-first"):
        engine(path)
    found = engine(path, classes=CLASSES + 1, background_first=True).logits(crops)["f"]
    logits = expected(crops)
    shared = np.log(np.exp(logits).sum(1, keepdims=True)) if end else 0  # as if there was none
    np.testing.assert_allclose(found, logits - shared, rtol=1e-4, atol=1e-4)


def test_a_background_class_from_the_command_to_the_counts(
    val_folder: MakeVal, tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    val = val_folder({"red": ["a.JPEG", "b.JPEG"], "green": ["c.JPEG"], "blue": ["d.JPEG"]})
    plain = graph(tmp_path / "plain.onnx", node("Softmax", "l", "p", axis=1),
                  give={"p": (FLOAT, ["n", 3])})  # fmt: skip
    request = Request(data=val, variant="base", classes=tmp_path / "classes.txt", weights=plain)
    first = evaluate(request)
    path = background(tmp_path / "x.onnx", "Softmax")
    second = evaluate(replace(request, weights=path, background_first=True))
    for a, b in zip(first.measured.scores.values(), second.measured.scores.values(), strict=True):
        np.testing.assert_array_equal(a.top, b.top)
        np.testing.assert_allclose(a.prob, b.prob, rtol=1e-5)
        np.testing.assert_allclose(a.nll, b.nll, rtol=1e-5)
    assert second.provenance.identity["background_first"] is True


def test_images_of_another_size(tmp_path: Path) -> None:
    path = graph(tmp_path / "x.onnx", give=LOGITS, take=["n", 3, 299, 299])
    assert side_of(path) == 299
    request = Request(data=".", variant="base", weights=path)
    # timm: floor(299 / 0.875)
    assert open_source(request).own_preprocess().name == "torchvision,resize=341,crop=299"
    assert side_of(graph(tmp_path / "y.onnx", give=LOGITS, take=["n", 3, "h", "w"])) is None
    assert side_of(graph(tmp_path / "z.onnx", give=LOGITS, take=["n", 256, 256, 3])) == 256


def test_a_size_in_an_openvino_file(tmp_path: Path) -> None:
    import openvino

    path = graph(tmp_path / "x.onnx", give=LOGITS, take=["n", 3, 256, 256])
    openvino.save_model(openvino.Core().read_model(path), tmp_path / "x.xml")
    assert side_of(tmp_path / "x.xml") == 256


@pytest.mark.parametrize(
    ("shape", "signature", "expected"),
    [
        ([1, 256, 256, 3], None, 256),
        ([1, 3, 192, 192], None, 192),
        ([1, 224, 224, 3], [-1, 224, 224, 3], 224),
        ([1, 256, 256, 3], [-1, -1, -1, 3], None),
        ([1, 160, 192, 3], None, None),
    ],
)
def test_a_size_in_a_litert_file(
    shape: list[int], signature: list[int] | None, expected: int | None, tmp_path: Path
) -> None:
    weights = Tensor(F32, [5, 3], np.ones((5, 3), np.float32).tobytes())
    image = Tensor(F32, shape)
    image.signature = signature
    path = litert(tmp_path / "x.tflite", [weights], [], pixels=[image])
    assert side_of(path) == expected
    path.write_bytes(path.read_bytes()[:60])
    assert side_of(path) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [("0=256 1=256 2=3", 256), ("0=256 1=192 2=3", None), ("", None), ("0=x", None)],
)
def test_a_size_in_an_ncnn_file(values: str, expected: int | None, tmp_path: Path) -> None:
    path = tmp_path / "x.ncnn.param"
    path.write_text(f"7767517\n2 2\nInput in0 0 1 in0 {values}\nReLU r 1 1 in0 out0\n")
    assert side_of(path) == expected


@pytest.mark.parametrize(
    ("take", "expected"), [(["n", 3, 256, 256], 256), (["n", 3, "h", "w"], None)]
)
def test_a_size_in_an_mnn_file(take: list[Any], expected: int | None, tmp_path: Path) -> None:
    needs("mnn")
    source = graph(tmp_path / "x.onnx", give=LOGITS, take=take)
    mnn.export(torch.nn.Identity(), source, tmp_path / "x.mnn", 256)
    assert side_of(tmp_path / "x.mnn") == expected


def test_preprocessing_inside_of_a_graph(tmp_path: Path, crops: Crop) -> None:
    """What is left of the recipe is `raw`, or a part of it."""
    mean = helper.make_tensor("mean", FLOAT, [3], [0.485, 0.456, 0.406])
    std = helper.make_tensor("std", FLOAT, [3], [0.229, 0.224, 0.225])
    level = helper.make_tensor("level", FLOAT, [], [255.0])
    inside = [node("Sub", "t mean", "c"), node("Div", "c std", "d"), node("Mul", "d scale", "y")]
    give: Any = {"y": (FLOAT, ["n", 3])}
    for first, recipe in ((node("Div", "m level", "t"), "raw"), (node("Identity", "m", "t"),
                          "torchvision,mean=0,std=1")):  # fmt: skip
        constants = (mean, std, level)
        path = graph(tmp_path / "x.onnx", first, *inside, give=give, constants=constants)
        made = engine(path, preprocess=Preprocess.of(parse(recipe)))
        np.testing.assert_allclose(made.logits(crops)["f"], expected(crops), rtol=1e-3, atol=1e-3)


def test_ties_at_the_maximum_are_said(val_folder: MakeVal, tmp_path: Path) -> None:
    """A sigmoid of large numbers is 1 for several classes."""
    large = helper.make_tensor("large", FLOAT, [3], [1e4, 1e4, -1e4])
    nodes = [node("Abs", "l", "a"), node("Mul", "a large", "b"), node("Sigmoid", "b", "y")]
    path = graph(tmp_path / "x.onnx", *nodes, give={"y": (FLOAT, ["n", 3])}, constants=(large,))
    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    val = val_folder({"red": ["a.JPEG"], "green": ["b.JPEG"], "blue": ["c.JPEG"]})
    found = evaluate(
        Request(data=val, variant="base", classes=tmp_path / "classes.txt", weights=path)
    )
    (tie,) = found.judgment.ties
    assert tie.startswith("exported: 3 of 3 images have several classes with the largest output")
    assert found.measured.scores["exported"].top[:, :2].tolist() == [[0, 1]] * 3
    assert found.summary["nll"].isna().all()
    assert np.isnan(found.measured.scores["exported"].prob).all()


def test_names_are_of_graphs(val_folder: MakeVal) -> None:
    with pytest.raises(UsageError, match="--output-name is of an exported file"):
        evaluate(Request(data=val_folder(FILES), variant="base", output_name="y"))


@pytest.mark.parametrize(
    ("given", "classes", "advice"),
    [
        (10, 1000, "Name its classes with --classes FILE, one per line in index order."),
        (1001, 1000, "If the first is a background class, as in TensorFlow's models, add"),
        (1000, 1001, "Omit --background-first, or give the list of its classes with --classes"),
    ],
)
def test_another_number_of_classes(given: int, classes: int, advice: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_signature(
            "g", [("float", ["n", 3, 224, 224])], [("float", ["n", given])], 224, classes
        )
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"g gives {given} outputs")
    assert second.startswith(advice)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b'<?xml version="1.0"?><annotation>', "is not a valid OpenVINO file"),
        (b'<?xml version="1.0"?>\n<net name="m">', "keeps its weights in m.bin, which is not"),
    ],
)
def test_files_that_are_no_graphs(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.xml").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        check_file(tmp_path / "m.xml")


def test_what_a_runtime_does_not_know_is_said(tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx", give={"l": (FLOAT, ["n", CLASSES])})
    model = onnx.load(path)
    for change, reason in (("ir_version", "IR version: 99"), ("opset", "is till opset")):
        newer = onnx.ModelProto.FromString(model.SerializeToString())
        if change == "ir_version":
            newer.ir_version = 99
        else:
            newer.opset_import[0].version = 999
        onnx.save(newer, path)
        with pytest.raises(ModelError) as caught:
            engine(path)
        first, second = str(caught.value).splitlines()
        assert reason in first
        assert "onnxruntime::" not in first
        assert second == "Upgrade ONNX Runtime, or export the model with an older version."
