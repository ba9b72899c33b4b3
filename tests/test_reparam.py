"""The deploy form gives the same answers, whatever batch normalization has learned."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from conftest import randomize_bn
from torch import nn

import pplcnet
from pplcnet._model import ConvBN, RepDepthwise
from pplcnet._reparam import fold_bn, sum_kernels
from pplcnet._weights import names_in


def random_model(variant: str) -> pplcnet.PPLCNetV2:
    torch.manual_seed(2)
    model = pplcnet.create_model(variant, num_classes=50).eval()
    randomize_bn(model)
    return model


@pytest.mark.parametrize("variant", ["small", "base", "large"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=["f64", "f32"]
)
def test_both_forms_agree(variant: str, dtype: torch.dtype, tolerance: float) -> None:
    model = random_model(variant).to(dtype)
    deploy = pplcnet.reparameterize(model)
    x = torch.randn(2, 3, 32, 32, dtype=dtype)
    with torch.inference_mode():
        expected, found = model(x), deploy(x)
    assert expected.abs().max() > 1e-3, "a dead network would agree with anything"
    scale = 1.0 if dtype == torch.float64 else expected.abs().max()
    assert (found - expected).abs().max() < tolerance * scale


def test_nothing_is_left_to_fold() -> None:
    model = random_model("small")
    deploy = pplcnet.reparameterize(model)
    assert pplcnet.is_reparameterized(deploy)
    assert not pplcnet.is_reparameterized(model)
    kinds = {type(m) for m in deploy.modules()}
    assert nn.BatchNorm2d not in kinds
    assert not kinds & {ConvBN, RepDepthwise}
    assert deploy.stages[2][0].dw_conv.kernel_size == (5, 5)


def test_the_original_is_not_touched() -> None:
    model = random_model("small").train()
    before = copy.deepcopy(model.state_dict())
    deploy = pplcnet.reparameterize(model)
    assert model.training
    assert not deploy.training
    assert before.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    with torch.no_grad():
        for parameter in deploy.parameters():
            parameter.zero_()
    assert model.fc.weight.abs().max() > 0


def test_a_deploy_model_is_its_own_deploy_form() -> None:
    deploy = pplcnet.reparameterize(random_model("small"))
    again = pplcnet.reparameterize(deploy)
    assert again is not deploy
    for a, b in zip(deploy.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_folding_is_done_in_float64() -> None:
    """Rounded once: within half a unit in the last place of the exact result."""
    torch.manual_seed(3)
    branch = RepDepthwise(16, 5)
    randomize_bn(branch)
    single = branch.fuse().weight
    double = copy.deepcopy(branch).double().fuse().weight
    assert torch.equal(single, double.float())


def test_fold_by_hand() -> None:
    conv = nn.Conv2d(1, 1, 1, bias=False)
    bn = nn.BatchNorm2d(1, eps=0.25)
    with torch.no_grad():
        conv.weight.fill_(3.0)
        bn.weight.fill_(5.0)
        bn.bias.fill_(7.0)
        bn.running_mean.fill_(2.0)
        bn.running_var.fill_(3.75)
    weight, bias = fold_bn(conv, bn)
    # scale = 5 / sqrt(3.75 + 0.25) = 2.5; weight = 3 * 2.5; bias = 7 - 2 * 2.5
    assert weight.item() == 7.5
    assert bias.item() == 2.0


def test_kernels_are_centered() -> None:
    total = sum_kernels([torch.zeros(1, 1, 5, 5), torch.ones(1, 1, 3, 3), torch.ones(1, 1, 1, 1)])
    assert total[0, 0].tolist() == [
        [0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0],
        [0, 1, 2, 1, 0],
        [0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("variant", ["small", "base", "large"])
def test_agrees_with_timm(variant: str) -> None:
    """timm's own implementation, another author's, with the same weights."""
    model = random_model(variant).double()
    other = timm.create_model(f"lcnetv2_{variant}", num_classes=50).double().eval()
    state = {}
    for ours, theirs in names_in(model.state_dict(), "timm").items():
        factor = 0.8 if theirs == "conv_head.weight" else 1.0
        state[theirs] = model.state_dict()[ours] * factor
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.inference_mode():
        expected = other(x)
        assert (model(x) - expected).abs().max() < 1e-10
        assert (pplcnet.reparameterize(model)(x) - expected).abs().max() < 1e-10
        single = pplcnet.reparameterize(model).float()(x.float())
        assert (single - expected).abs().max() < 1e-4 * expected.abs().max()
