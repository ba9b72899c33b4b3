"""Paddle's inference models, both formats: read, mapped by roles, and run."""

from __future__ import annotations

import copy
import importlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, randomize_bn
from paddle_exports import Export, Step

import pplcnet
from pplcnet import PPLCNetV2, WeightsError
from pplcnet._paddle_graph import find_graph, read_graph
from pplcnet._paddle_inference import run
from pplcnet._weights import model_for

FORMATS = ("inference.json", "inference.pdmodel")
MakeVal = Callable[..., Path]


@pytest.fixture(scope="module")
def model() -> PPLCNetV2:
    torch.manual_seed(2)
    model = pplcnet.create_model("small", num_classes=10).eval()
    randomize_bn(model)
    torch.nn.init.uniform_(model.fc.bias, -1, 1)  # type: ignore[arg-type]
    return model


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def logits(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(images)


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_the_network_that_was_exported_comes_back(
    name: str, merged: bool, model: PPLCNetV2, images: torch.Tensor, tmp_path: Path
) -> None:
    graph = Export(model, merged=merged).save(tmp_path, name)
    weights = pplcnet.read_weights(graph)
    assert (weights.layout, weights.reparameterized) == ("paddle", merged)
    found = model_for(weights).eval().double()
    wanted = model.double() if not merged else pplcnet.reparameterize(model).double()
    expected = logits(copy.deepcopy(wanted), images.double())
    model.float()
    assert (logits(found, images.double()) - expected).abs().max() < 1e-5 * expected.abs().max()
    if not merged:  # the very tensors
        state = model.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in found.float().state_dict().items())


@pytest.mark.parametrize(("variant", "name"), [("base", FORMATS[0]), ("large", FORMATS[1])])
def test_other_sizes(variant: str, name: str, tmp_path: Path) -> None:
    big = pplcnet.create_model(variant, num_classes=3).eval()
    weights = pplcnet.read_weights(Export(big, merged=False).save(tmp_path, name))
    assert model_for(weights).depths == big.depths


def test_a_folder_and_a_file_name_the_same_graph(model: PPLCNetV2, tmp_path: Path) -> None:
    graph = Export(model).save(tmp_path)
    assert find_graph(tmp_path) == find_graph(graph) == graph
    assert find_graph(graph.with_suffix(".pdiparams")) is None
    (tmp_path / "config.json").write_text('{"architectures": []}')
    assert find_graph(tmp_path / "config.json") is None


def test_the_graph_itself_gives_logits_not_probabilities(
    model: PPLCNetV2, images: torch.Tensor, tmp_path: Path
) -> None:
    for name in FORMATS:
        for softmax in (True, False):
            graph = read_graph(Export(model, merged=False, softmax=softmax).save(tmp_path, name))
            assert ("softmax" in {each.kind for each in graph.operators}) is softmax
            found = run(graph, images.double())
            expected = logits(copy.deepcopy(model).double(), images.double())
            assert (found - expected).abs().max() < 1e-12 * expected.abs().max()


# Each of them is a network of the same layers that computes something else.
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("batch_norm", {"epsilon": 1.01e-5}),
        ("conv2d", {"strides": [1, 1]}),
        ("depthwise_conv2d", {"paddings": [0, 0]}),
        ("dropout", {"p": 0.21}),
        ("dropout", {"mode": "upscale_in_train"}),
        ("relu", "sigmoid"),
        ("sigmoid", "relu"),
        ("multiply", "add"),
    ],
)
@pytest.mark.parametrize("name", FORMATS)
def test_another_computation_is_refused(
    name: str, kind: str, change: dict[str, object] | str, model: PPLCNetV2, tmp_path: Path
) -> None:
    export = Export(model)
    found = [i for i, step in enumerate(export.steps) if step.kind == kind]
    at = found[0] if kind == "conv2d" else found[-1]  # the last ones see a single pixel
    step = export.steps[at]
    if isinstance(change, str):
        export.steps[at] = step._replace(kind=change)
    else:
        export.steps[at] = step._replace(attributes={**step.attributes, **change})
    with pytest.raises(WeightsError, match=r"computes something else|cannot be run as") as caught:
        pplcnet.read_weights(export.save(tmp_path, name))
    assert str(caught.value).count("\n") == 1


def test_tensors_go_where_the_graph_uses_them(model: PPLCNetV2, tmp_path: Path) -> None:
    """The graph is the authority: swapped parameters are another network, faithfully read."""
    export = Export(model, merged=False)
    names = [name for name in export.parameters if "batch_norm2d.b_0" in name]
    one, other = next(
        pair
        for pair in itertools.combinations(names, 2)
        if export.parameters[pair[0]].shape == export.parameters[pair[1]].shape
    )
    swapped = {one: export.parameters[other], other: export.parameters[one]}
    export.parameters |= swapped
    found = model_for(pplcnet.read_weights(export.save(tmp_path)))
    assert any(
        not torch.equal(value, found.state_dict()[name])
        for name, value in model.state_dict().items()
    )


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], "ends in the middle of a tensor"),
        (lambda data: data[: len(data) // 2], "ends in the middle of a tensor"),
        (lambda data: data + b"\0", "is damaged"),
        (lambda _: b"", "0 tensors, but the graph has"),
        (lambda data: data[:-4] + np.float32(np.nan).tobytes(), "contains NaN or infinity"),
    ],
)
def test_damaged_parameters(
    name: str, change: Callable[[bytes], bytes], message: str, model: PPLCNetV2, tmp_path: Path
) -> None:
    parameters = Export(model).save(tmp_path, name).with_suffix(".pdiparams")
    parameters.write_bytes(change(parameters.read_bytes()))
    with pytest.raises(WeightsError, match=message) as caught:
        pplcnet.read_weights(tmp_path)
    assert str(caught.value).startswith(str(parameters))
    assert str(caught.value).count("\n") == 1


@pytest.mark.parametrize("name", FORMATS)
def test_missing_parameters(name: str, model: PPLCNetV2, tmp_path: Path) -> None:
    graph = Export(model).save(tmp_path, name)
    graph.with_suffix(".pdiparams").unlink()
    with pytest.raises(WeightsError, match=r"inference\.pdiparams: there is no such file"):
        pplcnet.read_weights(graph)


@pytest.mark.parametrize("name", FORMATS)
def test_an_operator_that_writes_files_is_refused(
    name: str, model: PPLCNetV2, tmp_path: Path
) -> None:
    export = Export(model)
    save = Step(
        "save", (export.steps[3].output,), "v0", (), {"file_path": str(tmp_path / "written")}
    )
    export.steps.insert(4, save)
    with pytest.raises(WeightsError, match=r"the operator 'save' is not one of PP-LCNetV2's"):
        pplcnet.read_weights(export.save(tmp_path / "m", name))
    assert not (tmp_path / "written").exists()


def test_several_blocks_are_refused(model: PPLCNetV2, tmp_path: Path) -> None:
    export = Export(model)
    document = export.pir()
    document["program"]["regions"][0]["blocks"] *= 2
    graph = export.save(tmp_path)
    graph.write_text(json.dumps(document))
    with pytest.raises(WeightsError, match="a graph of 2 blocks"):
        pplcnet.read_weights(graph)
    old = export.save(tmp_path, FORMATS[1])
    old.write_bytes(old.read_bytes() * 2)
    with pytest.raises(WeightsError, match="a graph of 2 blocks"):
        pplcnet.read_weights(old)


@pytest.mark.parametrize("name", FORMATS)
def test_another_network_is_named_as_such(name: str, model: PPLCNetV2, tmp_path: Path) -> None:
    export = Export(model)
    relu = next(i for i, step in enumerate(export.steps) if step.kind == "batch_norm")
    step = export.steps[relu]
    export.steps[relu] = step._replace(kind="relu", inputs=step.inputs[:1], attributes={})
    with pytest.raises(WeightsError, match="but not PP-LCNetV2"):
        pplcnet.read_weights(export.save(tmp_path, name))


@pytest.mark.parametrize("kind", [*FORMATS, "inference.json, still JSON", "inference.pdiparams"])
def test_damaged_at_random(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    counts = importlib.import_module("fuzz_paddle").fuzz(kind, 50, tmp_path)
    assert counts["refused"] > 25
    assert counts["read"] > 0


def test_both_files_are_part_of_the_identity(
    model: PPLCNetV2, tmp_path: Path, val_folder: MakeVal
) -> None:
    from eval import Request, evaluate

    network = pplcnet.create_model("small").eval()
    graph = Export(network).save(tmp_path / "model")
    data = val_folder({"n01440764": ["a.JPEG"], "n01443537": ["b.JPEG"]})
    evaluation = evaluate(Request(data=data, variant="small", weights=tmp_path / "model"))
    assert [file.path for file in evaluation.subject.files] == [
        graph, graph.with_suffix(".pdiparams")
    ]  # fmt: skip
    assert list(evaluation.measured.scores) == ["reparameterized"]
    assert "Paddle's inference model" in evaluation.subject.layout
    forms = evaluate(
        Request(data=data, variant="small", weights=Export(network, merged=False).save(tmp_path))
    ).measured.scores
    assert list(forms) == ["unfused", "reparameterized"]


@pytest.mark.parametrize("name", FORMATS)
def test_paddles_own_export(name: str, shared: Path) -> None:
    """PaddleClas's exporter wrote both files from one checkpoint."""
    weights = pplcnet.read_weights(shared / "oracle" / "paddle_inference" / name)
    original = pplcnet.create_model("base")
    pplcnet.load_weights(original, shared / "oracle" / "base.pdparams")
    deploy = pplcnet.reparameterize(original).double()
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)).double()
    expected = logits(deploy, images)
    found = logits(model_for(weights).eval().double(), images)
    # Paddle merged the branches in float32.
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


# As in PaddleClas's deploy/configs/inference_cls.yaml, and as PaddleX writes it beside a model.
DEPLOYED = """
Global:
  inference_model_dir: "./models"
PreProcess:
  transform_ops:
    - ResizeImage:
        resize_short: 256
    - CropImage:
        size: 224
    - NormalizeImage:
        scale: 0.00392157
        mean: [0.485, 0.456, 0.406]
        std: [0.229, 0.224, 0.225]
        order: ''
        channel_num: 3
    - ToCHWImage:
"""


@pytest.mark.parametrize(
    ("name", "scale", "text"),
    [
        ("inference_cls.yaml", "0.00392157", "paddle,scale=0.00392157"),
        ("inference.yml", "0.00392156862745098", "paddle"),
    ],
)
def test_the_recipe_beside_the_model_is_its_own(
    name: str, scale: str, text: str, tmp_path: Path
) -> None:
    from eval import Request
    from eval.errors import UsageError
    from eval.models import choose_preprocess, open_source

    graph = Export(pplcnet.create_model("small").eval()).save(tmp_path)
    (tmp_path / name).write_text(DEPLOYED.replace("0.00392157", scale))

    def source(preprocess: str | None = None, weights: Path = tmp_path):
        request = Request(data=tmp_path, variant="small", weights=weights, preprocess=preprocess)
        return open_source(request)

    def chosen(preprocess: str | None = None, weights: Path = tmp_path):
        return choose_preprocess(source(preprocess, weights))

    for found in (chosen(), chosen("own"), chosen(weights=graph)):
        assert found.name == text
        factor = np.float32(float(scale))  # as PaddleClas computes: everything in float32
        mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
        level = np.arange(256, dtype=np.float32)[:, None]
        assert np.array_equal(found.table, (level * factor - mean) / std)
    subject = source().load(1000, lambda _: None)
    assert subject.preprocess.name == text
    assert f"{tmp_path / name} says: {text}" in subject.layout
    assert ("unlike the training evaluation" in subject.layout) == (text != "paddle")
    assert chosen("own,crop=224,resize=235").name.startswith("paddle,resize=235")
    (tmp_path / name).write_text(DEPLOYED.replace("ToCHWImage", "Normalise"))
    with pytest.raises(UsageError, match=rf"own recipe {tmp_path / name}: it has Normalise"):
        chosen()
    assert chosen("torchvision").name == "torchvision"
    (tmp_path / name).unlink()
    assert chosen().name == "torchvision"
