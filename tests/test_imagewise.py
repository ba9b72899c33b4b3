"""Early layers see one image at a time, late ones the whole batch; answers stay the same."""

from __future__ import annotations

from collections import Counter

import pytest
import timm
import torch
from conftest import randomize_bn
from torch import Tensor, fx, nn

import pplcnet
from eval.backends.imagewise import imagewise
from eval.backends.lowering import lower
from eval.backends.onecall import OneCall, in_one_call

BATCH = 3


def batch_of(side: int, channels: int = 3) -> Tensor:
    return torch.randn(BATCH, channels, side, side).to(memory_format=torch.channels_last)


def joined(model: nn.Module, batch: Tensor) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The network lowered for the batch, and with its early layers image by image."""
    model = model.eval().to(memory_format=torch.channels_last)
    whole = lower(model, batch)[0]
    return whole, imagewise(whole, lower(model, batch[:1])[0])


def calls(module: fx.GraphModule) -> dict[str, int]:
    """How often each module is called."""
    return dict(Counter(str(n.target) for n in module.graph.nodes if n.op == "call_module"))


class Narrows(nn.Module):
    """For an image of 8 x 8, bytes of results and weights: 1,024, 432; 256, 144; 64, 256."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.depthwise = nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False)
        self.shrink = nn.Conv2d(4, 4, 2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shrink(self.depthwise(self.stem(x).relu())).flatten(1)
        return y


def test_layers_with_more_results_than_weights_are_called_for_each_image() -> None:
    whole, parts = joined(Narrows(), batch_of(8))
    assert calls(whole) == {"conv0": 1, "conv1": 1, "conv2": 1}
    assert calls(parts) == {"early.conv0": BATCH, "early.conv1": BATCH, "late.conv2": 1}


def test_each_image_keeps_its_place_and_the_batch_its_values() -> None:
    batch = batch_of(8)
    _, parts = joined(model := Narrows(), batch)
    before = batch.clone()
    with torch.inference_mode():
        for images in (batch, batch.flip(0)):
            assert torch.allclose(parts(images), model(images), atol=1e-5)
    assert torch.equal(batch, before)


class Shortcut(Narrows):
    """What the first layer gives is read again at the end."""

    def forward(self, x: Tensor) -> Tensor:
        early = self.stem(x)
        return super().forward(x) + early.mean((2, 3)).sum() + early.amax((2, 3)).repeat(1, 4)


class ReadsTheBatch(Narrows):
    """The batch itself is read again at the end."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean((1, 2, 3))[:, None]


class WideFirst(nn.Sequential):
    """More weights than results from the first layer on."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 8), nn.Flatten())


@pytest.mark.parametrize("model", [Shortcut, ReadsTheBatch, WideFirst])
def test_a_network_that_cannot_be_cut_there_stays_whole(model: type[nn.Module]) -> None:
    whole, parts = joined(model(), batch_of(8))
    assert parts is whole


class OtherAlone(Narrows):
    """After the first layer, a single image goes another way than a batch."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = self.shrink(self.depthwise(y.sin() if len(x) == 1 else y.cos()))
        return y.flatten(1)


class Transposes(Narrows):
    """After the second layer, images are the second axis; ``big`` has more values than it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("big", torch.randn(100, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.stem(x)).mean((2, 3)).t()
        y = y.clone(memory_format=torch.contiguous_format)
        return torch.mm(self.big, y).t()


class SharesAConstant(Narrows):
    """One constant is read by an early layer and by a late one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.full((4, 1, 1), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shrink(self.depthwise(self.stem(x) * self.factor)) * self.factor
        return y.flatten(1)


@pytest.mark.parametrize(
    ("kind", "early"),
    [(OtherAlone, 1), (Transposes, 2), (SharesAConstant, 2)],
)
def test_the_cut_is_where_both_parts_can_go_on(kind: type[nn.Module], early: int) -> None:
    batch = batch_of(8)
    _, parts = joined(model := kind(), batch)
    called = {name: times for name, times in calls(parts).items() if name.startswith("early.")}
    assert called == {f"early.conv{number}": BATCH for number in range(early)}
    with torch.inference_mode():
        assert torch.allclose(parts(batch), model(batch), atol=1e-5)


def test_an_operation_may_give_several_results() -> None:
    """Layer normalization gives its means as well."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LayerNorm(14), nn.Conv2d(8, 8, 14))
    whole, parts = joined(network, batch_of(16))
    found = [
        sum(node.target is torch.ops.aten.native_layer_norm.default for node in module.graph.nodes)
        for module in (whole, parts)
    ]
    assert found == [1, BATCH]


class Multiplies(Narrows):
    """A product with a constant of 1,600 bytes, which gives 400 for an image."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.randn(4, 100))

    def forward(self, x: Tensor) -> Tensor:
        return torch.mm(self.depthwise(self.stem(x)).mean((2, 3)), self.matrix)


def test_constants_count_as_weights() -> None:
    whole, parts = joined(Multiplies(), batch_of(8))
    assert parts is not whole
    products = [n for n in parts.graph.nodes if n.target is torch.ops.aten.mm.default]
    assert len(products) == 1


class Turns(Narrows):
    """After the second layer, images are transposed, which no layout of a batch is."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.stem(x)).transpose(2, 3).neg()
        return self.shrink(y).flatten(1)  # type: ignore[no-any-return]


class OtherLayoutAlone(Narrows):
    """After the second layer, a single image gets another layout than a batch."""

    def forward(self, x: Tensor) -> Tensor:
        layout = torch.contiguous_format if len(x) == 1 else torch.channels_last
        y = self.depthwise(self.stem(x)).neg().clone(memory_format=layout)
        return self.shrink(y).amax((2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "name"), [(Turns, "neg"), (OtherLayoutAlone, "clone")])
def test_images_are_put_together_only_in_the_layout_of_a_batch(
    kind: type[nn.Module], name: str
) -> None:
    batch = batch_of(8)
    _, parts = joined(model := kind(), batch)
    assert calls(parts)["early.conv1"] == BATCH
    assert sum(name in str(node.target) for node in parts.graph.nodes) == 1
    with torch.inference_mode():
        assert torch.allclose(parts(batch), model(batch), atol=1e-5)


def test_the_network_itself_is_cut_before_the_first_attention() -> None:
    """Whose weights are 65,536 bytes, for 256 of results."""
    network = pplcnet.create_model("base").eval()
    randomize_bn(network)
    whole, parts = joined(network, batch := batch_of(224))
    early = {name.partition(".")[2] for name in calls(parts) if name.startswith("early.")}
    layers = {*(f"conv{n}" for n in range(13)), *(f"batch_norm{n}" for n in range(11))}
    assert early == {*layers, "sum7"}
    assert set(calls(parts).values()) == {1, BATCH}
    with torch.inference_mode():
        expected = whole(batch)
        assert (parts(batch) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "repvgg_a0", "mobilenetv3_small_050"])
def test_it_is_one_call_with_the_same_bits(name: str) -> None:
    network = timm.create_model(name, num_classes=10).eval()
    randomize_bn(network)
    batch = batch_of(224)
    whole, parts = joined(network, batch)
    assert parts is not whole
    at_once = in_one_call(parts)
    assert isinstance(at_once, OneCall)
    with torch.inference_mode():
        expected = network(batch)
        assert torch.equal(at_once(batch), parts(batch))
        assert (parts(batch) - expected).abs().max() < 1e-4 * expected.abs().max()
