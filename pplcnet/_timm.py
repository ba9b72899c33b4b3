"""The models in timm's registry: ``timm.create_model("pplcnetv2_base", ...)``.

timm's ``tests/test_models.py`` shows what it expects of a classifier: a feature extractor, a
removable head, and a configuration with the preprocessing and the location of the weights.
"""

# No `from __future__ import annotations`: torch.fx evaluates annotations that are strings.

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import timm.data
import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from pplcnet._model import HEAD_WIDTH, STAGES, PPLCNetV2, scaled_width
from pplcnet._variants import VARIANTS
from pplcnet._weights import own_state, recognize


class TimmPPLCNetV2(PPLCNetV2):
    """PP-LCNetV2 with timm's interface.

    Args:
        scale: channel multiplier.
        depths: number of blocks in each of the four stages.
        num_classes: number of logits; 0 removes the last layer.
        in_chans: channels of the input.
        global_pool: ``avg``, another timm pool that keeps the number of channels, or "" for none.
    """

    def __init__(
        self,
        scale: float,
        depths: tuple[int, ...],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        with torch.device(device) if device is not None else nullcontext():
            super().__init__(scale, depths, num_classes or 1, in_chans)
        self.to(dtype=dtype)
        widths = [scaled_width(stage.width, scale) for stage in STAGES]
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**i, "module": f"stages.{i}"}
            for i, width in enumerate(widths)
        ]
        self.num_features = widths[-1]
        self.head_hidden_size = HEAD_WIDTH
        self.reset_classifier(num_classes, global_pool)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a new, random one; remove it if `num_classes` is 0."""
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool).train(self.training)
        if num_classes != self.num_classes or num_classes == 0:
            self.num_classes = num_classes
            fc = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
            self.fc = fc.to(self.last_conv.conv.weight).train(self.training)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, H, W) to logits (B, num_classes), or to the last layer's input (B, 1280).

        Without pooling and without a last layer, the result is a map (B, 1280, H, W).
        """
        x = F.relu(self.last_conv(self.global_pool(x)), inplace=True)
        if not self.global_pool.is_identity():
            x = x.flatten(1)
        return x if pre_logits else self.fc(x)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Gradient checkpointing is not supported, because the network is small.

        Raises:
            NotImplementedError: `enable` is true.
        """
        if enable:
            raise NotImplementedError("PP-LCNetV2 has no gradient checkpointing")

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that group parameters by depth, for layer-wise learning rates."""
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^stem", "blocks": blocks}


def _own_names(state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Convert pretrained weights from the layout of timm's own lcnetv2."""
    return own_state(recognize(state, "the pretrained weights"), model.state_dict())


def _cfg(hub: str) -> dict[str, Any]:
    return {
        "hf_hub_id": hub,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": timm.data.IMAGENET_DEFAULT_MEAN,
        "std": timm.data.IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0.conv",
        "classifier": "fc",
        "license": "apache-2.0",
        "origin_url": "https://github.com/PaddlePaddle/PaddleClas",
    }


default_cfgs = generate_default_cfgs(
    {
        "pplcnetv2_small.paddle_in1k": _cfg("timm/lcnetv2_small.paddle_in1k"),
        "pplcnetv2_base.ssld_in1k": _cfg("timm/lcnetv2_base.ssld_in1k"),
        "pplcnetv2_base.paddle_in1k": _cfg("timm/lcnetv2_base.paddle_in1k"),
        "pplcnetv2_large.paddle_in1k": _cfg("timm/lcnetv2_large.paddle_in1k"),
    }
)


def _create(name: str, pretrained: bool, **options: Any) -> nn.Module:
    row = VARIANTS[name]
    # timm passes a drop rate to every model; this network's own rate is part of its inference.
    options.pop("drop_rate", None)
    return build_model_with_cfg(  # type: ignore[no-any-return]
        TimmPPLCNetV2,
        f"pplcnetv2_{name}",
        pretrained,
        pretrained_filter_fn=_own_names,
        feature_cfg={"flatten_sequential": True, "out_indices": (0, 1, 2, 3)},
        scale=row.scale,
        depths=row.depths,
        **options,
    )


@register_model
def pplcnetv2_small(pretrained: bool = False, **options: Any) -> nn.Module:
    """PP-LCNetV2 small."""
    return _create("small", pretrained, **options)


@register_model
def pplcnetv2_base(pretrained: bool = False, **options: Any) -> nn.Module:
    """PP-LCNetV2 base."""
    return _create("base", pretrained, **options)


@register_model
def pplcnetv2_large(pretrained: bool = False, **options: Any) -> nn.Module:
    """PP-LCNetV2 large."""
    return _create("large", pretrained, **options)
