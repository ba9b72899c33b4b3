"""The models through timm's own calls."""

from __future__ import annotations

import pytest
import timm
import torch
from conftest import randomize_bn

import pplcnet
from pplcnet._timm import _own_names
from pplcnet._weights import names_in


@pytest.mark.parametrize("variant", ["small", "base", "large"])
def test_same_network(variant: str) -> None:
    ours = pplcnet.create_model(variant, num_classes=7).eval()
    theirs = timm.create_model(f"pplcnetv2_{variant}", num_classes=7).eval()
    randomize_bn(ours)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(x), theirs(x))


def test_configuration() -> None:
    model = timm.create_model("pplcnetv2_base")
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (3, 224, 224)
    assert config["crop_pct"] == 0.875
    assert config["interpolation"] == "bilinear"
    assert model.default_cfg["hf_hub_id"] == "timm/lcnetv2_base.ssld_in1k"
    assert timm.list_pretrained("pplcnetv2_*") == [
        "pplcnetv2_base.paddle_in1k",
        "pplcnetv2_base.ssld_in1k",
        "pplcnetv2_large.paddle_in1k",
        "pplcnetv2_small.paddle_in1k",
    ]


def test_features() -> None:
    model = timm.create_model("pplcnetv2_base", features_only=True, out_indices=(1, 3))
    assert model.feature_info.channels() == [256, 1024]
    assert model.feature_info.reduction() == [8, 32]
    with torch.inference_mode():
        shapes = [tuple(f.shape) for f in model.eval()(torch.zeros(1, 3, 64, 64))]
    assert shapes == [(1, 256, 8, 8), (1, 1024, 2, 2)]


def test_head_can_be_replaced_and_removed() -> None:
    model = timm.create_model("pplcnetv2_small", num_classes=5, in_chans=1).eval()
    x = torch.zeros(2, 1, 64, 64)
    with torch.inference_mode():
        assert model(x).shape == (2, 5)
        model.reset_classifier(3)
        assert model(x).shape == (2, 3)
        assert model.get_classifier().out_features == 3
        model.reset_classifier(0)
        assert model(x).shape == (2, model.head_hidden_size)
        assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, 1280)
        model.reset_classifier(0, global_pool="")
        assert model(x).shape == (2, 1280, 2, 2)
    assert timm.create_model("pplcnetv2_small", num_classes=0).num_classes == 0


def test_timm_weights_are_converted_on_the_way_in() -> None:
    """`pretrained=True` gets the files of timm's own lcnetv2: the filter renames them."""
    ours = pplcnet.create_model("small", num_classes=7).eval()
    randomize_bn(ours)
    names = names_in(ours.state_dict(), "timm")
    state = {theirs: ours.state_dict()[mine] for mine, theirs in names.items()}
    state["conv_head.weight"] = state["conv_head.weight"] * 0.8
    model = timm.create_model("pplcnetv2_small", num_classes=7).eval()
    converted = _own_names(state, model)
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), ours(x))


def test_timm_reparameterizes_it() -> None:
    model = timm.create_model("pplcnetv2_small", num_classes=7).eval()
    randomize_bn(model)
    deploy = timm.models.reparameterize_model(model)
    assert pplcnet.is_reparameterized(deploy)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(deploy(x), model(x), rtol=1e-4, atol=1e-5)


def test_device_and_dtype_are_those_that_timm_asks_for() -> None:
    model = timm.create_model("pplcnetv2_small", device="meta", dtype=torch.float16)
    tensors = [*model.parameters(), *model.buffers()]
    assert all(tensor.is_meta for tensor in tensors)
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float16}
    model.eval().reset_classifier(7, global_pool="max")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model.get_classifier().weight.dtype == torch.float16
    assert not any(module.training for module in model.modules())
