"""Post-training int8, with the quantisers of the runtimes themselves.

Weights per channel, activations per tensor, both calibrated on images that the user names: NNCF for
OpenVINO, ONNX Runtime's own quantiser for ONNX Runtime.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.backends import missing_extra
from eval.images.preprocess import Crop, Preprocess

Batch = NDArray[np.float32]


def batches(crops: Sequence[Crop], preprocess: Preprocess) -> list[Batch]:
    """Calibration images as inputs of a model: float32 (1, 3, 224, 224) each."""
    return [
        np.ascontiguousarray(preprocess.normalize(crop[np.newaxis]).transpose(0, 3, 1, 2))
        for crop in crops
    ]


def quantize_onnx(source: Path, target: Path, calibration: Sequence[Batch]) -> None:
    """An int8 ONNX file (QDQ format) from a float32 one.

    Raises:
        UsageError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime.quantization as ort
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise missing_extra("onnxruntime", "onnx", error) from error

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self._inputs: Iterator[dict[str, Batch]] = ({name: batch} for batch in calibration)

        def get_next(self) -> dict[str, Batch] | None:
            return next(self._inputs, None)

    import onnx

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        name = onnx.load(str(prepared), load_external_data=False).graph.input[0].name
        ort.quantize_static(
            str(prepared),
            str(target),
            Reader(name),
            quant_format=ort.QuantFormat.QDQ,
            per_channel=True,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
        )


def quantize_openvino(source: Path, target: Path, calibration: Sequence[Batch]) -> None:
    """An int8 OpenVINO file (``.xml``, with its ``.bin``) from a float32 ONNX one.

    Raises:
        UsageError: OpenVINO or NNCF is not installed.
    """
    try:
        import nncf
        import openvino
    except ImportError as error:
        raise missing_extra("openvino", "openvino", error) from error
    nncf.set_log_level(logging.ERROR)
    model: Any = nncf.quantize(
        openvino.Core().read_model(source),
        nncf.Dataset(calibration),
        subset_size=len(calibration),
    )
    openvino.save_model(model, target, compress_to_fp16=False)
