"""Every layout into the model, strictly."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from conftest import randomize_bn
from safetensors.torch import save_file
from torch import Tensor

import pplcnet
from pplcnet import WeightsError
from pplcnet._weights import model_for, names_in, recognize


@pytest.fixture(scope="module")
def model() -> pplcnet.PPLCNetV2:
    torch.manual_seed(4)
    model = pplcnet.create_model("small", num_classes=10).eval()
    randomize_bn(model)
    return model


def paddle_state(model: pplcnet.PPLCNetV2) -> dict[str, Tensor]:
    """What PaddleClas would store, placeholders included."""
    state = {}
    for ours, theirs in names_in(model.state_dict(), "paddle").items():
        value = model.state_dict()[ours]
        state[theirs] = value.T.contiguous() if theirs == "fc.weight" else value.clone()
    for name in list(state):
        if name.endswith(".dw_conv_list.0.conv.weight"):
            block = name.removesuffix("_list.0.conv.weight")
            state[f"{block}.weight"] = torch.full_like(state[name], 99.0)
            state[f"{block}.bias"] = torch.full((len(state[name]),), 99.0)
    return state


def timm_model(model: pplcnet.PPLCNetV2) -> torch.nn.Module:
    other = timm.create_model("lcnetv2_small", num_classes=10).eval()
    names = names_in(model.state_dict(), "timm")
    state = {theirs: model.state_dict()[ours] for ours, theirs in names.items()}
    state["conv_head.weight"] = state["conv_head.weight"] * 0.8
    other.load_state_dict(state, strict=False)
    return other


def answers(model: torch.nn.Module) -> Tensor:
    torch.manual_seed(5)
    with torch.inference_mode():
        return model.eval()(torch.randn(2, 3, 64, 64))


def test_paddle_names_are_those_of_the_official_file(
    model: pplcnet.PPLCNetV2, shared: Path
) -> None:
    weights = pplcnet.read_weights(shared / "oracle" / "base.pdparams")
    assert (weights.layout, weights.reparameterized) == ("paddle", False)
    expected = set(paddle_state(pplcnet.create_model("base")))
    assert set(weights.tensors) == expected


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_paddle_layout(model: pplcnet.PPLCNetV2, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    state = paddle_state(model)
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    loaded = pplcnet.create_model("small", num_classes=10)
    pplcnet.load_weights(loaded, path)
    assert torch.equal(answers(loaded), answers(model))


def test_timm_layout(model: pplcnet.PPLCNetV2, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    other = timm_model(model)
    save_file(other.state_dict(), path)
    loaded = pplcnet.create_model("small", num_classes=10)
    pplcnet.load_weights(loaded, path)
    torch.testing.assert_close(answers(loaded), answers(other))


def test_timm_reparameterized_layout(model: pplcnet.PPLCNetV2, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    other = timm.models.reparameterize_model(timm_model(model))
    save_file(other.state_dict(), path)
    weights = pplcnet.read_weights(path)
    assert (weights.layout, weights.reparameterized) == ("timm", True)
    loaded = pplcnet.reparameterize(pplcnet.create_model("small", num_classes=10))
    pplcnet.load_weights(loaded, weights)
    torch.testing.assert_close(answers(loaded), answers(other))


def test_paddle_reparameterized_layout(model: pplcnet.PPLCNetV2) -> None:
    state = paddle_state(model)
    for name, module in model.named_modules():
        if name.endswith(".dw_conv") and hasattr(module, "branches"):
            fused = module.fuse()
            state[f"{name}.weight"], state[f"{name}.bias"] = fused.weight.data, fused.bias.data
    state = {name: value for name, value in state.items() if ".dw_conv_list." not in name}
    weights = recognize(state, "merged")
    assert (weights.layout, weights.reparameterized) == ("paddle", True)
    loaded = pplcnet.reparameterize(pplcnet.create_model("small", num_classes=10))
    pplcnet.load_weights(loaded, weights)
    torch.testing.assert_close(answers(loaded), answers(model))


def test_own_layouts(model: pplcnet.PPLCNetV2, tmp_path: Path) -> None:
    deploy = pplcnet.reparameterize(model)
    save_file(model.state_dict(), tmp_path / "unfused.safetensors")
    save_file(deploy.state_dict(), tmp_path / "deploy.safetensors")

    loaded = pplcnet.create_model("small", num_classes=10)
    pplcnet.load_weights(loaded, tmp_path / "unfused.safetensors")
    assert torch.equal(answers(loaded), answers(model))
    for name in ("unfused", "deploy"):
        loaded = pplcnet.reparameterize(pplcnet.create_model("small", num_classes=10))
        pplcnet.load_weights(loaded, tmp_path / f"{name}.safetensors")
        assert torch.equal(answers(loaded), answers(deploy))


def test_half_and_double_precision_files(model: pplcnet.PPLCNetV2) -> None:
    state = {name: value.double() for name, value in paddle_state(model).items()}
    loaded = pplcnet.create_model("small", num_classes=10)
    pplcnet.load_weights(loaded, recognize(state, "double"))
    assert torch.equal(answers(loaded), answers(model))


def test_reparameterized_file_cannot_fill_the_trained_form(model: pplcnet.PPLCNetV2) -> None:
    weights = recognize(pplcnet.reparameterize(model).state_dict(), "deploy.safetensors")
    with pytest.raises(WeightsError, match="--forms reparameterized"):
        pplcnet.load_weights(pplcnet.create_model("small", num_classes=10), weights)


def test_all_differences_in_one_error(model: pplcnet.PPLCNetV2) -> None:
    state = paddle_state(model)
    del state["stem.0.conv.weight"]
    state["surprise"] = torch.zeros(1)
    state["fc.bias"] = torch.zeros(9)
    loaded = pplcnet.create_model("small", num_classes=10)
    before = answers(loaded)
    with pytest.raises(WeightsError) as caught:
        pplcnet.load_weights(loaded, recognize(state, "broken.pdparams"))
    message = str(caught.value)
    assert "1 missing (stem.0.conv.weight)" in message
    assert "1 unexpected (surprise)" in message
    assert "1 with a different shape (fc.bias [9] instead of [10])" in message
    assert message.startswith("broken.pdparams does not fit")
    assert len(message.splitlines()) <= 2
    assert torch.equal(answers(loaded), before), "nothing is changed unless everything fits"


def test_wrong_variant_is_named(model: pplcnet.PPLCNetV2) -> None:
    weights = recognize(paddle_state(model), "small.pdparams")
    with pytest.raises(WeightsError, match="It fits small, with 10 classes and 3 channels"):
        pplcnet.load_weights(pplcnet.create_model("base"), weights)


def test_untransposed_classifier_is_refused() -> None:
    model = pplcnet.create_model("small", num_classes=10)
    state = paddle_state(model)
    state["fc.weight"] = state["fc.weight"].T
    with pytest.raises(WeightsError, match=r"fc.weight \[10, 1280\] instead of \[1280, 10\]"):
        pplcnet.load_weights(model, recognize(state, "torch-like"))


def test_placeholders_are_explained_only_beside_branches(model: pplcnet.PPLCNetV2) -> None:
    state = paddle_state(model)
    state["stages.0.0.dw_conv.weight"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"unexpected \(stages.0.0.dw_conv.weight\)"):
        pplcnet.load_weights(
            pplcnet.create_model("small", num_classes=10), recognize(state, "stray")
        )


def test_nan_is_refused(model: pplcnet.PPLCNetV2) -> None:
    state = paddle_state(model)
    state["fc.bias"][3] = float("nan")
    with pytest.raises(WeightsError, match="NaN"):
        pplcnet.load_weights(pplcnet.create_model("small", num_classes=10), recognize(state, "nan"))


def test_another_network_is_refused() -> None:
    with pytest.raises(WeightsError, match="is not a PP-LCNetV2 checkpoint"):
        recognize({"layer1.0.conv1.weight": torch.zeros(1)}, "resnet.pth")


@pytest.mark.parametrize("deploy", [False, True])
def test_model_for_finds_the_variant(model: pplcnet.PPLCNetV2, deploy: bool) -> None:
    source = pplcnet.reparameterize(model) if deploy else model
    found = model_for(recognize(source.state_dict(), "x"))
    assert (found.scale, found.depths, found.num_classes) == (0.75, (2, 2, 4, 2), 10)
    assert pplcnet.is_reparameterized(found) == deploy
    assert torch.equal(answers(found), answers(source))


def test_loads_into_another_dtype(model: pplcnet.PPLCNetV2) -> None:
    loaded = pplcnet.create_model("small", num_classes=10).double()
    pplcnet.load_weights(loaded, recognize(paddle_state(model), "x"))
    assert loaded.fc.weight.dtype == torch.float64
    assert torch.equal(loaded.fc.weight.float(), model.fc.weight)
