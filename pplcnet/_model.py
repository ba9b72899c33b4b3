"""PP-LCNetV2, the network in its unfused (training) form.

Source: PaddleClas ``ppcls/arch/backbone/legendary_models/pp_lcnet_v2.py`` and ``PP-LCNetV2.md``.
All convolutions except those in the squeeze-excite gate are bias-free; all of these except the last
one are followed by batch normalization. `pplcnet.reparameterize` makes the deploy form.
"""

# No `from __future__ import annotations`: torch.fx evaluates annotations that are strings.

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pplcnet._reparam import conv_with, fold_bn, sum_kernels
from pplcnet._variants import find_variant

BN_EPS = 1e-5
HEAD_WIDTH = 1280


class Stage(NamedTuple):
    """The options that the blocks of one stage share."""

    width: int  # output channels at scale 1.0
    kernel: int  # depthwise kernel size; with branches, the largest one
    rep: bool  # parallel depthwise branches, merged in the deploy form
    split_pw: bool  # two pointwise convolutions, with half the channels between them
    se: bool  # squeeze-excite after the depthwise convolution
    shortcut: bool  # residual connection where the shape allows it


STAGES = (
    #     width kernel  rep  split_pw  se   shortcut
    Stage(128, 3, False, False, False, False),
    Stage(256, 3, False, False, False, False),
    Stage(512, 5, True, True, True, False),
    Stage(1024, 5, True, False, False, True),
)
STEM_WIDTHS = (32, 64)


def scaled_width(width: int, scale: float, divisor: int = 8) -> int:
    """Scale a number of channels and round it to a multiple of `divisor`, losing at most 10 %."""
    target = width * scale
    rounded = max(divisor, int(target + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * target else rounded


class ConvBN(nn.Module):
    """Bias-free convolution, "same" padding for stride 1, then batch normalization."""

    def __init__(
        self, in_chans: int, out_chans: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_chans, out_chans, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_chans, eps=BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to (B, out_chans, H / stride, W / stride)."""
        return self.bn(self.conv(x))  # type: ignore[no-any-return]

    def fuse(self) -> nn.Conv2d:
        """One convolution, with bias, that gives the same result in inference."""
        return conv_with(self.conv, *fold_bn(self.conv, self.bn))


class RepDepthwise(nn.Module):
    """Sum of parallel depthwise ConvBN branches of kernel k, k - 2, ..., 1.

    There is no 1x1 branch when the stride is not 1 (pp_lcnet_v2.py, ``RepDepthwiseSeparable``).
    """

    def __init__(self, chans: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        kernels = [k for k in range(kernel, 0, -2) if k > 1 or stride == 1]
        self.branches = nn.ModuleList(
            ConvBN(chans, chans, k, stride, groups=chans) for k in kernels
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H / stride, W / stride)."""
        y: Tensor = self.branches[0](x)
        for index, branch in enumerate(self.branches):  # TorchScript can neither slice nor unpack
            if index > 0:
                y = y + branch(x)
        return y

    def fuse(self) -> nn.Conv2d:
        """One depthwise convolution, with bias, that gives the same result in inference."""
        branches = [branch for branch in self.branches if isinstance(branch, ConvBN)]
        folded = [fold_bn(branch.conv, branch.bn) for branch in branches]
        weight = sum_kernels([weight for weight, _ in folded])
        bias = torch.stack([bias for _, bias in folded]).sum(0)
        return conv_with(branches[0].conv, weight, bias)


class SqueezeExcite(nn.Module):
    """Squeeze-excite gate with a quarter of the channels inside and a plain sigmoid."""

    def __init__(self, chans: int, reduction: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(chans, chans // reduction, 1)
        self.fc2 = nn.Conv2d(chans // reduction, chans, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W), scaled per image and channel."""
        gate = F.adaptive_avg_pool2d(x, 1)
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(gate), inplace=True)))
        return x * gate


class DepthwiseSeparable(nn.Module):
    """Depthwise convolution, optional gate, one or two pointwise convolutions.

    A ReLU follows each convolution, and a shortcut adds the input where shapes and stride allow it.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        stride: int,
        *,
        kernel: int = 3,
        rep: bool = False,
        split_pw: bool = False,
        se: bool = False,
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.has_shortcut = shortcut and stride == 1 and in_chans == out_chans
        self.dw_conv: nn.Module = (
            RepDepthwise(in_chans, kernel, stride)
            if rep
            else ConvBN(in_chans, in_chans, kernel, stride, groups=in_chans)
        )
        self.se: nn.Module = SqueezeExcite(in_chans) if se else nn.Identity()
        middle = [out_chans // 2] if split_pw else []
        widths = [in_chans, *middle, out_chans]
        self.pw_conv = nn.ModuleList(ConvBN(a, b, 1) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to (B, out_chans, H / stride, W / stride)."""
        y: Tensor = self.se(F.relu(self.dw_conv(x), inplace=True))
        for conv in self.pw_conv:
            y = F.relu(conv(y), inplace=True)
        return y + x if self.has_shortcut else y


class ConvDropout(nn.Module):
    """Bias-free 1x1 convolution, then Paddle's ``downscale_in_infer`` dropout.

    That dropout does not scale the kept values in training, but multiplies all values by ``1 - p``
    in inference (``torch.nn.Dropout`` scales in training instead). Without the factor, the accuracy
    hardly changes, but every logit does. In Paddle the ReLU comes before the dropout; here it comes
    after it, with bit-identical results, because the factors are not negative.
    """

    def __init__(self, in_chans: int, out_chans: int, p: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chans, out_chans, 1, bias=False)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to (B, out_chans, H, W)."""
        x = self.conv(x)
        if self.training:
            return x * torch.empty_like(x).bernoulli_(1 - self.p)
        return x * (1 - self.p)

    def fuse(self) -> nn.Conv2d:
        """One convolution that gives the same result in inference."""
        return conv_with(self.conv, self.conv.weight.double() * (1 - self.p), None)


class PPLCNetV2(nn.Module):
    """PP-LCNetV2 for images of any size divisible by 32.

    Args:
        scale: channel multiplier.
        depths: number of blocks in each of the four stages.
        num_classes: number of logits.
        in_chans: channels of the input.
    """

    DROP_RATE = 0.2

    def __init__(
        self,
        scale: float,
        depths: tuple[int, ...],
        num_classes: int = 1000,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.depths = depths
        self.num_classes = num_classes
        self.in_chans = in_chans
        stem, width = (scaled_width(w, scale) for w in STEM_WIDTHS)
        self.stem = nn.Sequential(
            ConvBN(in_chans, stem, 3, stride=2), nn.ReLU(), DepthwiseSeparable(stem, width, 1)
        )
        stages = []
        for depth, row in zip(depths, STAGES, strict=True):
            in_width, width = width, scaled_width(row.width, scale)
            options = {key: value for key, value in row._asdict().items() if key != "width"}
            stages.append(
                nn.Sequential(
                    DepthwiseSeparable(in_width, width, 2, **options),
                    *(DepthwiseSeparable(width, width, 1, **options) for _ in range(depth - 1)),
                )
            )
        self.stages = nn.Sequential(*stages)
        self.last_conv = ConvDropout(width, HEAD_WIDTH, self.DROP_RATE)
        self.fc: nn.Module = nn.Linear(HEAD_WIDTH, num_classes)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to (B, C, H / 32, W / 32)."""
        return self.stages(self.stem(x))  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor) -> Tensor:
        """(B, C, H / 32, W / 32) to logits (B, num_classes)."""
        x = F.adaptive_avg_pool2d(x, 1)
        x = F.relu(self.last_conv(x), inplace=True)
        return self.fc(x.flatten(1))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def create_model(variant: str = "base", *, num_classes: int = 1000, in_chans: int = 3) -> PPLCNetV2:
    """Create a model with random weights, in training mode.

    Args:
        variant: a key of `VARIANTS`.
        num_classes: number of logits.
        in_chans: channels of the input.

    Raises:
        ValueError: there is no such variant.
    """
    row = find_variant(variant)
    return PPLCNetV2(row.scale, row.depths, num_classes, in_chans)


def count_parameters(model: nn.Module) -> int:
    """Number of learned values, without the running statistics of batch normalization."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, input_size: tuple[int, int, int] = (3, 224, 224)) -> int:
    """Count the multiply-accumulates (MACs) of the convolutions and the classifier for one image.

    Each use of a weight counts as one, and so does each bias added to an output value. Batch
    normalization, activations, pooling and the multiplication by the gate are not counted. The
    model is run once on zeros.

    The published figures (base: 603.4 M in timm's table, 604 M in Paddle's) are for a third form:
    branches merged, but batch normalization kept and counted as two MACs per value.

    Args:
        model: any module; its ``Conv2d`` and ``Linear`` layers are counted.
        input_size: (channels, height, width) of the image, in pixels.

    Returns:
        The number of MACs.
    """
    macs = 0

    def add(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        assert isinstance(module, nn.Conv2d | nn.Linear)
        positions = output[0].numel() // output.shape[1]  # each weight is used once per position
        values = module.weight.numel() + (0 if module.bias is None else module.bias.numel())
        macs += values * positions

    handles = [
        module.register_forward_hook(add)
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    was_training = model.training
    first = next(model.parameters())
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, *input_size, dtype=first.dtype, device=first.device))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return macs
