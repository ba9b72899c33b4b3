"""``--model timm:NAME``: the same answers as a pipeline that is timm's alone, counted our way."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.data
import torch
from conftest import rows_of
from PIL import Image
from safetensors.torch import save_file
from small_evaluations import counted
from timm.utils.model import reparameterize_model
from torch import nn

from eval.errors import ModelError, UsageError
from eval.imagenet import main
from eval.images.classes import imagenet_classes
from eval.judge.verdict import judge
from eval.models import open_source, published_of
from eval.models.timm import forms_of, load_model, preprocess_of, published, timm_variant
from eval.request import Request

SMALL = "test_efficientnet"  # 160 pixels, crop_pct 0.95
REP = "lcnetv2_small"  # 224 pixels, and a deploy form
IMAGES = 12
HEADER = "model,img_size,top1,top1_err,top5,top5_err,param_count,crop_pct,interpolation\n"


def made(name: str) -> nn.Module:
    """A model whose answers depend on the image, without any training."""
    torch.manual_seed(4)
    model = timm.create_model(name)
    size = model.pretrained_cfg["input_size"][-1]
    colors = nn.functional.interpolate(torch.randn(16, 3, 9, 7), (size, size))
    head = model.get_classifier()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # statistics of one batch, without which signals vanish
        model(colors)
        model.eval()
        if isinstance(head, nn.Linear):  # no class is the answer to everything
            head.bias -= model(colors).mean(0)
    return model


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos") / "val"
    rng = np.random.RandomState(2)
    for number in range(IMAGES):
        folder = root / imagenet_classes()[number * 83].synset
        folder.mkdir(parents=True)
        side = 200 + 17 * number
        pixels = rng.randint(0, 256, (9, 7, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((side, 300), Image.Resampling.BICUBIC)
        image.save(folder / "x.JPEG", quality=90)
    return root


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights of both models, as .safetensors and as .pth."""
    folder = tmp_path_factory.mktemp("weights")
    save_file(made(SMALL).state_dict(), folder / "small.safetensors")
    torch.save({"state_dict": made(REP).state_dict()}, folder / "rep.pth")
    return {SMALL: folder / "small.safetensors", REP: folder / "rep.pth"}


def theirs(name: str, root: Path) -> torch.Tensor:
    """Logits of timm's model on what timm's transforms make of the images."""
    model = made(name)
    config = timm.data.resolve_data_config({}, model=model, use_test_size=True)
    transform = timm.data.create_transform(**config, is_training=False)
    batch = [transform(Image.open(path).convert("RGB")) for path in sorted(root.glob("*/*"))]
    with torch.inference_mode():
        return model(torch.stack(batch))


def macs_by_hooks(model: nn.Module) -> int:
    """Multiply-accumulates of one image in convolutions and matrix products, by their shapes."""
    found = 0

    def count(module: nn.Module, _: object, answer: torch.Tensor) -> None:
        nonlocal found
        found += answer.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    size = model.pretrained_cfg["input_size"][-1]
    with torch.inference_mode():
        model(torch.zeros(1, 3, size, size))
    return found


def run(name: str, root: Path, weights: Path, output: Path, *more: str) -> int:
    words = ["--data", str(root), "--model", f"timm:{name}", "--weights", str(weights)]
    return main([*words, "--output", str(output), "--quiet", *more])


# The same answers


@pytest.mark.parametrize(
    ("name", "size"),
    [(SMALL, 160), (REP, 224), ("test_resnet", 160)],  # the last one's mean is 0.5, bilinear
)
def test_pixels_are_timms(name: str, size: int, photos: Path) -> None:
    preprocess = preprocess_of(made(name))
    config = timm.data.resolve_data_config({}, model=made(name), use_test_size=True)
    transform = timm.data.create_transform(**config, is_training=False)
    assert preprocess.size == size
    for path in photos.glob("*/*"):
        ours = preprocess.normalize(preprocess.crop(path.read_bytes())[np.newaxis])[0]
        expected = transform(Image.open(path).convert("RGB")).permute(1, 2, 0).numpy()
        assert ours.shape == (size, size, 3)
        assert np.array_equal(ours, expected)


@pytest.mark.parametrize(
    ("name", "forms"), [(SMALL, ["unfused"]), (REP, ["unfused", "reparameterized"])]
)
def test_predictions_are_timms(
    name: str, forms: list[str], photos: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    assert run(name, photos, files[name], tmp_path / "out") == 0
    logits = theirs(name, photos)
    best = logits.argmax(1).tolist()
    assert len(set(best)) > 2
    rows = rows_of(tmp_path / "out/predictions.csv")
    for form in forms:
        assert [int(row[f"{form}_top1"]) for row in rows] == best
        probabilities = [float(row[f"{form}_prob1"]) for row in rows]
        expected = logits.double().softmax(1).amax(1).numpy()
        np.testing.assert_allclose(probabilities, expected, rtol=1e-3)
    summary = rows_of(tmp_path / "out/summary.csv")
    assert [row["form"] for row in summary] == forms
    assert {row["variant"] for row in summary} == {timm_variant(f"timm:{name}", None).name}
    own = {
        SMALL: "torchvision,resize=168,interpolation=bicubic,crop=160",
        REP: "torchvision,interpolation=bicubic",
    }[name]
    assert {row["preprocess"] for row in summary} == {own}
    assert {row["verdict"] for row in summary} == {"NO_REFERENCE"}  # unidentified images
    assert summary[0]["params"] == str(sum(p.numel() for p in made(name).parameters()))
    assert summary[0]["macs"] == str(macs_by_hooks(made(name)))
    described = json.loads((tmp_path / "out/run.json").read_text())["preprocess_description"]
    size = 160 if name == SMALL else 224
    assert described.startswith("PIL decode; short side")
    assert f"; crop {size}; /255; " in described


def test_the_cache_keeps_crops_of_the_models_own_size(
    photos: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    words = ("--cache", str(tmp_path / "cache"))
    for number in range(2):
        assert run(SMALL, photos, files[SMALL], tmp_path / f"{number}", *words) == 0
    assert run(SMALL, photos, files[SMALL], tmp_path / "plain") == 0
    tables = [(tmp_path / n / "predictions.csv").read_bytes() for n in ("0", "1", "plain")]
    assert tables[0] == tables[1] == tables[2]
    (crops,) = (tmp_path / "cache").glob("*/crops.bin")
    assert crops.stat().st_size == IMAGES * 160 * 160 * 3


@pytest.mark.parametrize(
    "backend", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_other_runtimes_take_the_models_own_size(
    backend: str, photos: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    assert run(SMALL, photos, files[SMALL], tmp_path / "out", "--backend", backend) == 0
    rows = rows_of(tmp_path / "out/predictions.csv")
    assert [int(row["unfused_top1"]) for row in rows] == theirs(SMALL, photos).argmax(1).tolist()


def test_timms_model_of_this_network_is_ours(
    photos: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    words = ("--preprocess", "torchvision", "--forms", "reparameterized")
    assert run(REP, photos, files[REP], tmp_path / "timm", *words) == 0
    assert main([
        *("--data", str(photos), "--variant", "small", "--weights", str(files[REP]), "--quiet"),
        *("--output", str(tmp_path / "ours"), "--forms", "reparameterized"),
    ]) == 0  # fmt: skip
    tables = [rows_of(tmp_path / name / "predictions.csv") for name in ("timm", "ours")]
    for key in ("path", "reparameterized_rank", "reparameterized_top1"):
        assert [row[key] for row in tables[0]] == [row[key] for row in tables[1]]


@pytest.mark.parametrize(
    "name",
    [
        "repvgg_a0",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("mobileone_s0", "repvit_m0_9", "fastvit_t8")
        ),
    ],
)
def test_families_with_a_deploy_form_get_it(name: str) -> None:
    model = made(name)
    forms = forms_of(model, (), name)
    assert list(forms) == ["unfused", "reparameterized"]
    size = model.pretrained_cfg["input_size"][-1]
    with torch.inference_mode():
        image = torch.rand(1, 3, size, size)
        unfused, deploy = (form(image) for form in forms.values())
    assert unfused.shape == (1, 1000)
    np.testing.assert_allclose(deploy, unfused, atol=1e-3 * float(unfused.abs().max()))
    assert len(forms["reparameterized"].state_dict()) < len(model.state_dict())


# What is refused


def test_a_form_that_timm_has_not(photos: Path, files: dict[str, Path], tmp_path: Path,
                                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    words = ("--forms", "reparameterized")
    assert run(SMALL, photos, files[SMALL], tmp_path / "out", *words) == 2
    assert "timm has no reparameterized form of test_efficientnet" in capsys.readouterr().err
    assert run(SMALL, photos, files[SMALL], tmp_path / "out", "--preprocess", "paddle") == 2
    assert "paddle makes 224x224 crops" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "mobileone_s1"], "write timm:NAME"),
        (["--model", "timm:mobileone_s9"], "Did you mean mobileone_s"),
        (["--model", "timm:mobileone_s1.other_tag"], "timm only has mobileone_s1.apple_in1k"),
        (["--model", "timm:hf-hub:x/y"], "has no such model"),
        (["--model", "timm:repvgg_a0", "--variant", "base"], "--model and --variant both"),
        (["--timm-results", "x.csv"], "only applies to timm"),
        (["--model", "torchvision:resnet18", "--timm-results", "x.csv"], "only applies to timm"),
    ],
)
def test_options_that_do_not_go_together(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", "val", *words]) == 2
    assert message in capsys.readouterr().err


def test_weights_that_cannot_be_used(tmp_path: Path, files: dict[str, Path]) -> None:
    state = made(SMALL).state_dict()
    missing = {name: value for name, value in state.items() if name != "classifier.bias"}
    save_file(missing, tmp_path / "missing.safetensors")
    with pytest.raises(
        ModelError, match=r"does not fit timm's test_efficientnet .*classifier\.bias"
    ):
        load_model(SMALL, tmp_path / "missing.safetensors")
    with pytest.raises(ModelError, match="does not fit timm's test_efficientnet"):
        load_model(SMALL, files[REP])
    state["classifier.bias"][3] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(ModelError, match=r"classifier\.bias: NaN"):
        load_model(SMALL, tmp_path / "nan.safetensors")
    with pytest.raises(ModelError, match="no such file"):
        load_model(SMALL, tmp_path / "none.pth")
    torch.save({"state_dict": made(SMALL)}, tmp_path / "code.pth")  # a pickled module
    with pytest.raises(ModelError):
        load_model(SMALL, tmp_path / "code.pth")
    deploy = reparameterize_model(made(REP))
    save_file(deploy.state_dict(), tmp_path / "deploy.safetensors")
    with pytest.raises(ModelError, match="not reparameterized"):
        load_model(REP, tmp_path / "deploy.safetensors")


def test_other_classes_are_refused(tmp_path: Path) -> None:
    name = "mobilenetv3_large_100.miil_in21k"  # of 11,221 classes
    save_file(timm.create_model(name).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"has a head of 11221 classes, not of 1000"):
        load_model(name, tmp_path / "w.safetensors")


def test_without_the_network_auto_says_what_to_do(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    words = ["--data", str(photos), "--model", f"timm:{SMALL}", "--output", str(tmp_path / "out")]
    assert main([*words, "--quiet"]) == 4
    error = capsys.readouterr().err
    assert error.startswith("error: timm/test_efficientnet.r160_in1k could not be downloaded")
    assert error.endswith("Give a file with --weights.\n")
    assert error.count("\n") == 2


# What timm published


def test_timms_result_is_shown_and_not_compared(
    photos: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "results-imagenet.csv"
    table.write_text(
        HEADER + "test_resnet.r160_in1k,160,1,99,2,98,0.5,0.95,bicubic\n"
        "test_efficientnet.r160_in1k,192,46.426,53.574,71.128,28.872,0.36,1.0,bicubic\n"
    )
    output = tmp_path / "out"
    words = ["--timm-results", str(table), "--image-set", "val"]
    assert run(SMALL, photos, files[SMALL], output, *words) == 0
    shown = capsys.readouterr().out
    assert "46.426" in shown
    assert "71.128" in shown
    assert "results-imagenet.csv: 192 pixels, crop_pct 1.0, bicubic" in shown
    page = (output / "report.html").read_text()
    assert "46.4" in page
    assert "timm&#39;s test_efficientnet.r160_in1k on ILSVRC2012 validation as stated by" in page
    assert rows_of(output / "summary.csv")[0]["reference_top1"] == ""


def table_of(folder: Path, row: str) -> Path:
    (folder / "results-imagenet.csv").write_text(f"{HEADER}{row}\n")
    return folder / "results-imagenet.csv"


def test_a_tolerance_judges_by_timms_result(tmp_path: Path) -> None:
    """46.426 and 71.128 % are 23,213 and 35,564 of 50,000."""
    row = "test_efficientnet.r160_in1k,160,46.426,53.574,71.128,28.872,0.36,0.95,bicubic"
    found = {}
    for tolerance in (10, 9, None):
        request = Request(
            data="x",
            model=f"timm:{SMALL}",
            timm_results=table_of(tmp_path, row),
            tolerance=tolerance,
        )
        source = open_source(request)
        own = published_of(source)
        assert (own.others == ()) == (tolerance is not None)
        recipe = source.own_preprocess().name
        (result,) = judge(counted(23_203, 35_564), own, recipe, "fp32").forms
        found[tolerance] = str(result.verdict)
    assert found == {10: "PASS", 9: "FAIL", None: "NO_REFERENCE"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("test_efficientnet.r160_in1k,192,46,54,71,29,0.36,0.95,bicubic", "192 pixels, crop_pct"),
        ("test_efficientnet.r160_in1k,160,46,54,71,29,0.36,1.0,bicubic", "evaluated at 160 pixels"),
        ("test_efficientnet.r160_in1k,160,46,54,71,29,0.36,0.95,nearest", "0.95, nearest, but"),
    ],
)
def test_a_result_of_another_pipeline_judges_nothing(
    row: str, message: str, tmp_path: Path
) -> None:
    table = table_of(tmp_path, row)
    with pytest.raises(UsageError, match=message):
        open_source(Request(data="x", model=f"timm:{SMALL}", timm_results=table, tolerance=1))
    open_source(Request(data="x", model=f"timm:{SMALL}", timm_results=table))


def test_a_tolerance_needs_a_figure(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no published accuracy of test_eff.*\nOmit it; for a tim"
    ):
        open_source(Request(data="x", model=f"timm:{SMALL}", tolerance=1))
    for options in ({"variant": "base"}, {}, {"model": f"timm:{SMALL}", "config": "x.toml"}):
        with pytest.raises(UsageError, match="--tolerance is for --model timm:NAME"):
            Request(data="x", tolerance=1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column model"),
        ("model,top1,top5\nx,1,2\n", "has no column img_size"),
        (HEADER + "x,160,1,99,2,98,0.5,0.95,bicubic\n", "has 0 rows for y, not one"),
        (HEADER + "y,160,1,99,-,98,0.5,0.95,bicubic\n", "are not numbers"),
        (HEADER + 2 * "y,160,1,99,2,98,0.5,0.95,bicubic\n", "has 2 rows for y"),
    ],
)
def test_results_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    table = tmp_path / "results.csv"
    table.write_text(text)
    with pytest.raises(UsageError, match=message):
        published(table, "y")
    with pytest.raises(UsageError, match="cannot be read"):
        published(tmp_path / "none.csv", "y")


def test_bad_images_are_reported_as_ever(
    photos: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "val" / "n01440764"
    root.mkdir(parents=True)
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    (root / "cut.JPEG").write_bytes(file.getvalue()[:400])
    assert run(SMALL, root.parent, files[SMALL], tmp_path / "out") == 3
    assert "cut.JPEG cannot be decoded" in capsys.readouterr().err
