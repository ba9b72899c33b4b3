"""The network as published: sizes, stages, and what makes it PP-LCNetV2."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pplcnet
from pplcnet._model import (
    STAGES,
    ConvBN,
    ConvDropout,
    DepthwiseSeparable,
    RepDepthwise,
    SqueezeExcite,
    scaled_width,
)


@pytest.mark.parametrize(
    ("variant", "unfused", "branches_merged"),
    [
        # timm's own lcnetv2, and its published table (fused): 4.09 M, 6.62 M, 10.44 M
        ("small", 4_128_552, 4_092_840),
        ("base", 6_687_208, 6_624_232),
        ("base_ssld", 6_687_208, 6_624_232),
        ("large", 10_542_120, 10_444_200),
    ],
)
def test_parameters_are_the_published_ones(
    variant: str, unfused: int, branches_merged: int
) -> None:
    model = pplcnet.create_model(variant)
    assert pplcnet.count_parameters(model) == unfused

    for module in list(model.modules()):
        if isinstance(module, DepthwiseSeparable) and isinstance(module.dw_conv, RepDepthwise):
            module.dw_conv = module.dw_conv.fuse()
    assert pplcnet.count_parameters(model) == branches_merged


@pytest.mark.parametrize(
    ("variant", "published"), [("small", 287.0), ("base", 603.4), ("large", 1094.7)]
)
def test_macs_explain_the_published_ones(variant: str, published: float) -> None:
    """timm's table: branches merged, batch normalization counted twice per value, and the pool."""
    model = pplcnet.create_model(variant).eval()
    for module in list(model.modules()):
        if isinstance(module, DepthwiseSeparable) and isinstance(module.dw_conv, RepDepthwise):
            module.dw_conv = module.dw_conv.fuse()
            module.dw_conv.bias = None
        if isinstance(module, SqueezeExcite):
            module.fc1.bias = module.fc2.bias = None
    model.fc.bias = None
    extra = 0

    def count(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal extra
        extra += 2 * output.numel()

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(count)
    convolutions = pplcnet.count_macs(model)
    pool = model.last_conv.conv.in_channels * 7 * 7
    assert round((convolutions + extra + pool) / 1e6, 1) == published


def test_macs_of_a_known_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(32, 5))
    # 4x4 in, 2x2 out: 4 positions of 8 * (3 * 9 weights + 1 bias); 32 * 5 + 5
    assert pplcnet.count_macs(model, (3, 4, 4)) == 4 * 8 * 28 + 165


def test_macs_leave_the_model_as_it_was() -> None:
    model = pplcnet.create_model("small")
    pplcnet.count_macs(model)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("width", "scale", "expected"),
    [(32, 0.75, 24), (32, 1.25, 40), (64, 0.75, 48), (10, 1.0, 16), (1, 1.0, 8), (100, 0.9, 88)],
)
def test_scaled_width(width: int, scale: float, expected: int) -> None:
    assert scaled_width(width, scale) == expected


def test_stage_table_is_what_is_built() -> None:
    model = pplcnet.create_model("base")
    assert [len(stage) for stage in model.stages] == [2, 2, 6, 2]
    for index, (stage, row) in enumerate(zip(model.stages, STAGES, strict=True)):
        for position, block in enumerate(stage):
            first = position == 0
            assert isinstance(block, DepthwiseSeparable)
            assert isinstance(block.dw_conv, RepDepthwise) == (index >= 2)
            assert isinstance(block.se, SqueezeExcite) == (index == 2)
            assert len(block.pw_conv) == (2 if index == 2 else 1)
            assert block.has_shortcut == (index == 3 and not first)
            assert block.pw_conv[-1].conv.out_channels == row.width
            if isinstance(block.dw_conv, RepDepthwise):
                kernels = [branch.conv.kernel_size[0] for branch in block.dw_conv.branches]
                assert kernels == ([5, 3] if first else [5, 3, 1])
    assert all(m.eps == 1e-5 for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_split_pointwise_goes_through_half_the_channels() -> None:
    block = DepthwiseSeparable(16, 32, 1, split_pw=True)
    assert [conv.conv.out_channels for conv in block.pw_conv] == [16, 32]


def test_shortcut_adds_the_input() -> None:
    torch.manual_seed(1)
    with_shortcut = DepthwiseSeparable(8, 8, 1, shortcut=True).eval()
    without = DepthwiseSeparable(8, 8, 1).eval()
    without.load_state_dict(with_shortcut.state_dict())
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(with_shortcut(x), without(x) + x)


def test_squeeze_excite_by_hand() -> None:
    gate = SqueezeExcite(4)
    for parameter in gate.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(gate.fc2.bias, 2.0)
    x = torch.randn(1, 4, 3, 3)
    # A plain sigmoid: 1 / (1 + e^-2) = 0.8808; a hard one would give 0.8333 or 0.9.
    torch.testing.assert_close(gate(x), x * 0.8807970779778823)


def test_dropout_scales_in_inference_and_not_in_training() -> None:
    layer = ConvDropout(4, 64, 0.2)
    x = torch.randn(16, 4, 1, 1)
    plain = layer.conv(x)
    torch.testing.assert_close(layer.eval()(x), plain * 0.8)
    dropped = layer.train()(x)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], plain[kept])
    assert 0.7 < kept.float().mean() < 0.9


@pytest.mark.parametrize(("classes", "channels"), [(10, 1), (1, 4), (1000, 3)])
def test_any_number_of_classes_and_channels(classes: int, channels: int) -> None:
    model = pplcnet.create_model("small", num_classes=classes, in_chans=channels).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, channels, 64, 96)).shape == (2, classes)


def test_features_are_one_in_32() -> None:
    model = pplcnet.create_model("base").eval()
    with torch.inference_mode():
        assert model.forward_features(torch.zeros(1, 3, 64, 96)).shape == (1, 1024, 2, 3)


def test_unknown_variant_suggests_a_near_one() -> None:
    with pytest.raises(ValueError, match="Did you mean 'base_ssld'"):
        pplcnet.create_model("base_sslds")


def test_public_names_exist_and_are_all_there_are() -> None:
    for name in pplcnet.__all__:
        assert getattr(pplcnet, name)
    public = {name for name in vars(pplcnet) if not name.startswith("_")}
    assert public == set(pplcnet.__all__)


def test_conv_bn_keeps_the_size_at_stride_1_and_halves_it_at_2() -> None:
    x = torch.zeros(1, 3, 8, 8)
    for kernel in (1, 3, 5):
        assert ConvBN(3, 4, kernel)(x).shape == (1, 4, 8, 8)
    assert ConvBN(3, 4, 5, stride=2)(x).shape == (1, 4, 4, 4)
