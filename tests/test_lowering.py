"""A lowered network answers as the network does, or is not used."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import randomize_bn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from eval.backends import lowering, pytorch
from eval.backends.lowering import (
    BranchSum,
    ChannelScale,
    PackedConv2d,
    PackedLinear,
    PackedPixel,
    ScaleShift,
    lower,
)
from eval.backends.onecall import OneCall, in_one_call
from eval.backends.pytorch import TorchPredictor, part_size
from eval.backends.tracing import CannotTrace, trace
from eval.images.preprocess import PREPROCESS, Crop

CPU = torch.device("cpu")
CUT = "lowered, early layers image by image"
PREPROCESSING = PREPROCESS["torchvision"]


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


def count(module: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(m, kind) for m in module.modules())


def predictor(model: nn.Module, batch_size: int = 2) -> TorchPredictor:
    return TorchPredictor({"unfused": model}, PREPROCESSING, CPU, batch_size=batch_size)


@pytest.fixture(scope="module")
def crops() -> Crop:
    return np.random.default_rng(1).integers(0, 256, (20, 224, 224, 3), dtype=np.uint8)


class Small(nn.Module):
    """Two layers of each kind that is lowered, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8), nn.ReLU())
        self.wide = nn.Conv2d(8, 8, 5, 2, 2, groups=8)
        self.narrow = nn.Sequential(nn.Conv2d(8, 8, 1, 2, bias=False), nn.BatchNorm2d(8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(self.wide(x) + self.narrow(x))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def small() -> nn.Module:
    model = Small().eval()
    randomize_bn(model)
    return model


def test_no_operation_is_left_out_and_the_model_stays_as_it_is(model: nn.Module) -> None:
    values = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = [set(vars(module)) for module in model.modules()]
    lowered, _ = lower(model, channels_last(2, 3, 64, 64))
    assert count(lowered, ScaleShift) == count(model, nn.BatchNorm2d) > 0
    convolutions = sum(count(lowered, kind) for kind in (PackedConv2d, PackedPixel, ChannelScale))
    assert convolutions == count(model, nn.Conv2d) > 0
    assert type(lowered.get_submodule("linear0")) is PackedLinear
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert model.state_dict().keys() == values.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, values[name])


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "repvgg_a0", "mobilenetv3_small_050", "repvit_m0_9"]
)
@pytest.mark.parametrize("images", [1, 3])
def test_other_networks_are_lowered_by_the_same_rules(name: str, images: int) -> None:
    network = timm.create_model(name, num_classes=10).eval()
    randomize_bn(network)
    x = channels_last(images, 3, 64, 64)
    lowered, recorded = lower(network.to(memory_format=torch.channels_last), x)
    packed = sum(count(lowered, kind) for kind in (PackedConv2d, PackedPixel, ChannelScale))
    assert packed == count(network, nn.Conv2d)
    assert count(lowered, PackedLinear) == count(lowered, PackedPixel) + count(network, nn.Linear)
    with torch.inference_mode():
        expected = network(x)
        assert torch.equal(recorded, expected)
        other = channels_last(images, 3, 64, 64)  # one that was not recorded
        for batch in (x, other):
            wanted = network(batch)
            assert (lowered(batch) - wanted).abs().max() < 1e-4 * wanted.abs().max()


class Block(nn.Module):
    """Branches as RepVGG and PP-LCNetV2 have them, and a shortcut as ResNet has it."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(8, 8, k, padding=k // 2, groups=8, bias=False) for k in (5, 3, 1)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(4))
        self.last = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (norm(conv(x)) for conv, norm in zip(self.convs, self.norms[:3], strict=True))
        y = a + b + c
        return F.hardswish(x + self.norms[3](self.last(F.relu(y))))


@pytest.mark.parametrize("piece", [2**19, 2048])
def test_a_sum_of_branches_is_one_pass_with_the_same_bits(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = Block().eval()
    randomize_bn(block)
    monkeypatch.setattr(lowering, "PIECE", piece)
    x = channels_last(3, 8, 21, 17)
    lowered, expected = lower(block, x)
    assert count(lowered, BranchSum) == 2
    assert (count(lowered, ChannelScale), count(lowered, ScaleShift)) == (1, 4)
    before = x.clone()
    monkeypatch.setattr(lowering, "_merge_sums", lambda module: None)
    separate, _ = lower(block, x)
    assert count(separate, BranchSum) == 0
    with torch.inference_mode():
        assert torch.equal(lowered(x), separate(x))
        assert torch.allclose(lowered(x), expected, atol=1e-5)
    assert torch.equal(x, before), "the input is not written to"


ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [
    F.relu, F.relu6, F.hardswish, F.hardsigmoid, F.silu, F.gelu, torch.sigmoid, torch.tanh,
    lambda x: F.gelu(x, approximate="tanh"), lambda x: F.hardtanh(x, -0.25, 0.5),
    F.leaky_relu, F.elu,  # these two are not among those of a convolution
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 8, 3), (2, 3, 9, 9)),
        (nn.Conv2d(6, 6, 3, groups=3, padding=1, stride=2), (2, 6, 9, 9)),
        (nn.Conv2d(3, 8, 1), (2, 3, 1, 1)),
        (nn.Conv2d(3, 8, 1, bias=False), (1, 3, 1, 1)),
        (nn.Conv2d(4, 4, 1, groups=2), (2, 4, 1, 1)),
        (nn.Conv2d(3, 8, 1, padding=1), (2, 3, 1, 1)),
        (nn.BatchNorm2d(8), (3, 8, 65, 65)),
        (nn.BatchNorm2d(8, affine=False), (3, 8, 5, 5)),
        (nn.BatchNorm1d(8), (3, 8)),
        (nn.BatchNorm1d(8), (3, 8, 5)),
        (nn.Linear(3, 8), (2, 3)),
        (nn.Linear(3, 8), (2, 5, 3)),
    ],
)
def test_activations_after_a_layer(
    layer: nn.Module,
    shape: tuple[int, ...],
    activation: Callable[[Tensor], Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return activation(self.layer(x))

    net = Net().eval()
    for name, statistic in net.named_buffers():
        if "running" in name:
            statistic.uniform_(0.5, 1.5)
    monkeypatch.setattr(lowering, "PIECE", 4096)  # several pieces, the last one smaller
    x = channels_last(*shape) if len(shape) == 4 else torch.randn(shape)
    lowered, expected = lower(net, x)
    with torch.inference_mode():
        assert torch.allclose(lowered(x), expected, atol=1e-5)


def added_in_place(a: Tensor, b: Tensor) -> Tensor:
    """`b` added to `a`, as torch allows it: not from the memory of `a` in another order."""
    same_memory = a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    return a.add_(b.clone() if same_memory and a.stride() != b.stride() else b)


# Programs of a few operations: which values they read, and whether they overwrite them.
OPERATIONS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "conv": lambda net, a, _: net.conv(a),
    "norm": lambda net, a, _: net.norm(a),
    "relu": lambda _, a, __: F.relu(a),
    "relu_": lambda _, a, __: F.relu_(a),
    "hardswish": lambda _, a, __: F.hardswish(a),
    "add": lambda _, a, b: a + b,
    "add_": lambda _, a, b: added_in_place(a, b),
    "mul": lambda _, a, b: F.hardtanh(a * b),  # bounded: a power of a power is infinite
    "sub": lambda _, a, b: a - b,
    "gate": lambda _, a, b: a * torch.sigmoid(b.mean((2, 3), keepdim=True)),
    "flip": lambda _, a, __: a.transpose(2, 3),
    "half": lambda _, a, __: torch.cat([a[:, :2], a[:, :2]], 1),
    "view": lambda _, a, __: a.flatten(2).reshape(a.shape),
    "scaled": lambda _, a, __: a * 0.5,
}


class Program(nn.Module):
    """Applies operations to earlier values, and adds up all of them."""

    def __init__(self, steps: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.steps = steps
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        values = [x * 1.0]
        for name, first, second in self.steps:
            a, b = (values[number % len(values)] for number in (first, second))
            values.append(OPERATIONS[name](self, a, b))
        return torch.stack([value * (number + 1) for number, value in enumerate(values)]).sum(0)


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 9), st.integers(0, 9)),
        min_size=1,
        max_size=9,
    )
)
def test_nothing_is_overwritten_that_is_still_needed(steps: list[tuple[str, int, int]]) -> None:
    torch.manual_seed(3)
    program, x = Program(steps).eval(), channels_last(2, 4, 4, 4)
    randomize_bn(program)
    before = x.clone()
    with torch.no_grad():
        expected = program(x)
    try:
        lowered, recorded = lower(program, x)
    except CannotTrace as error:
        assert "through a view" in str(error)  # noqa: PT017
        assert any(name.endswith("_") for name, _, __ in steps)
        return
    assert torch.equal(recorded, expected)
    with torch.inference_mode():
        for _ in range(2):  # the constants have not been changed either
            assert (lowered(x) - expected).abs().max() <= 1e-4 * expected.abs().max().clamp(min=1)
    assert torch.equal(x, before)


class ReadsValues(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(-x if x.sum() > 0 else x)


class IsRandom(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.rand(1) * 0)


class GivesTwo(Small):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class ChangesItsView(Small):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        first = x[:, :1]
        x += 1
        return super().forward(x * first)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (ReadsValues, "reads a value"),
        (IsRandom, "random"),
        (GivesTwo, "tuple"),
        (ChangesItsView, "through a view"),
    ],
)
def test_what_cannot_be_recorded_says_why(kind: type[nn.Module], words: str) -> None:
    with pytest.raises(CannotTrace, match=words):
        trace(kind().eval(), channels_last(2, 3, 64, 64))


def test_a_network_that_cannot_be_recorded_runs_in_eager_mode(crops: Crop) -> None:
    model = ReadsValues().eval()
    found = predictor(model)
    assert "eager mode (not lowered: CannotTrace: " in found.settings["torch, unfused"]
    pixels = torch.from_numpy(PREPROCESSING.normalize(crops[:2])).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model(pixels).numpy()
    assert np.allclose(found(crops[:2])["unfused"], expected, atol=1e-6)


def test_a_network_that_answers_differently_when_lowered_runs_in_eager_mode(
    small: nn.Module, crops: Crop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predictor(small).settings == {"torch, unfused": f"{CUT}; micro-batches of 2"}
    right = predictor(small)(crops[:2])["unfused"]
    monkeypatch.setattr(ScaleShift, "forward", lambda self, x: x * self._alpha[0])
    found = predictor(small)
    assert "eager mode (lowered, it answered differently: by " in found.settings["torch, unfused"]
    assert np.allclose(found(crops[:2])["unfused"], right, atol=1e-5)


def in_fp16(model: nn.Module) -> None:
    model.half().float()


def with_larger_eps(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps *= 1.01


def transformer() -> nn.Module:
    return timm.models.VisionTransformer(
        patch_size=32, num_classes=100, embed_dim=96, depth=3, num_heads=3
    )


def normalized_network() -> nn.Module:
    """With variances that a batch normalization's eps is of some weight beside."""
    network: nn.Module = timm.create_model("resnet10t", num_classes=100)
    for name, value in network.named_buffers():
        if name.endswith("running_var"):
            value.uniform_(0.005, 0.02)
    return network


@pytest.mark.parametrize(
    ("network", "fault", "how"),
    [(transformer, in_fp16, "lowered"), (normalized_network, with_larger_eps, CUT)],
)
def test_a_small_fault_of_the_lowered_graph_is_noticed(
    network: Callable[[], nn.Module],
    fault: Callable[[nn.Module], None],
    how: str,
    crops: Crop,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of less than a thousandth of the largest logit."""
    model = network().eval()
    honest = predictor(model)
    assert honest.settings == {"torch, unfused": f"{how}; micro-batches of 2"}
    expected = honest(crops)["unfused"]

    def wrongly_lowered(model: nn.Module, batch: Tensor) -> tuple[nn.Module, Tensor]:
        other = copy.deepcopy(model)
        fault(other)
        _, answer = lower(model, batch)
        return lower(other, batch)[0], answer

    monkeypatch.setattr(pytorch, "lower", wrongly_lowered)
    with monkeypatch.context() as patch:
        patch.setattr(pytorch, "TOLERATED", 1e9)
        wrong = predictor(model)
    assert wrong.settings == honest.settings
    assert 1e-6 < np.abs(wrong(crops)["unfused"] - expected).max() / np.abs(expected).max() < 1e-3
    told = predictor(model).settings["torch, unfused"]
    assert re.search(r"differently: by \d\.\de-0[4-6] of the largest logit from float64, \d+", told)


@pytest.mark.parametrize(("batch_size", "how"), [(1, "lowered"), (8, CUT)])
def test_the_network_itself_is_lowered(model: nn.Module, batch_size: int, how: str) -> None:
    settings = predictor(model, batch_size).settings
    assert settings == {"torch, unfused": f"{how}; micro-batches of {batch_size}"}


def test_a_torch_without_the_operators_runs_in_eager_mode(
    small: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytorch, "usable", lambda *_: False)
    assert "eager mode (this torch has no oneDNN" in predictor(small).settings["torch, unfused"]


def test_a_batch_in_parts_is_the_whole_batch(small: nn.Module, crops: Crop) -> None:
    whole = predictor(small, batch_size=20)  # three parts of seven, the last with one of zeros
    one = predictor(small, batch_size=1)
    found = whole(crops)["unfused"]
    assert found.shape == (20, 5)
    for image in range(20):
        alone = one(crops[image : image + 1])["unfused"]
        assert np.allclose(found[image], alone[0], atol=1e-5)
        assert np.array_equal(found[image], whole(crops[image : image + 1])["unfused"][0])


@pytest.mark.parametrize(
    ("batch", "part"),
    [(1, 1), (2, 2), (8, 8), (9, 5), (12, 6), (16, 8), (20, 7), (64, 8), (65, 8)],
)
def test_parts_are_equal_and_small(batch: int, part: int) -> None:
    assert part_size(batch) == part


def test_a_batch_of_one_keeps_its_channels_together(small: nn.Module, crops: Crop) -> None:
    batch = predictor(small, 1)._batch(crops[:1])
    assert batch.stride() == (224 * 224 * 3, 1, 224 * 3, 3)
    lowered, _ = lower(small, batch)
    images = [n.meta["tensor"] for n in lowered.graph.nodes if n.name.startswith("conv")]
    assert len(images) == 3
    assert all(image.stride(1) == 1 for image in images)


def test_importing_changes_nothing_and_lowering_imports_no_compiler() -> None:
    code = """
import sys, torch
def state():
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
            torch.get_rng_state().tolist(), cuda.allow_tf32, cudnn.allow_tf32,
            torch.backends.mkldnn.enabled, torch.jit.onednn_fusion_enabled())
before = state()
from eval.backends.pytorch import TorchPredictor
from eval.images.preprocess import PREPROCESS
from eval.measure.settings import exact_settings, freed_memory_kept
assert freed_memory_kept() == {}
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
before_use = state()
with exact_settings():
    cpu = torch.device("cpu")
    found = TorchPredictor({"unfused": model}, PREPROCESS["torchvision"], cpu, batch_size=2)
assert "image by image" in str(found.settings), found.settings
assert before[:3] + before[4:] == state()[:3] + state()[4:]
assert before_use == state()
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_one_call_gives_the_bits_of_the_graph(model: nn.Module) -> None:
    x, other = channels_last(2, 3, 64, 64), channels_last(2, 3, 64, 64)
    lowered, _ = lower(copy.deepcopy(model).to(memory_format=torch.channels_last), x)
    at_once = in_one_call(lowered)
    assert isinstance(at_once, OneCall)
    with torch.inference_mode():
        for batch in (x, other, x):
            assert torch.equal(at_once(batch), lowered(batch))


def test_one_call_comes_back_to_python_for_no_operation(model: nn.Module) -> None:
    x = channels_last(2, 3, 64, 64)
    lowered, _ = lower(copy.deepcopy(model).to(memory_format=torch.channels_last), x)
    called: list[str] = []

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    lengths = []
    for network in (in_one_call(lowered), lowered):
        called.clear()
        with torch.inference_mode():
            sys.setprofile(note)
            try:
                network(x)
            finally:
                sys.setprofile(None)
        lengths.append(len(called))
    assert lengths[0] < 5
    assert lengths[1] > 200


class AddsToAConstant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(2, 3, 8, 8).add_(x)


def test_what_is_no_operator_on_the_batch_is_not_one_call() -> None:
    x = torch.randn(2, 3, 8, 8)
    lowered, _ = lower(AddsToAConstant(), x)
    at_once = in_one_call(lowered)
    for _ in range(2):
        assert torch.equal(at_once(x), x)
    indexed = fx.symbolic_trace(nn.Sequential(nn.ReLU()))
    assert in_one_call(indexed) is indexed
