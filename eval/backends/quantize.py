"""Post-training int8, with the quantizers of the runtimes themselves.

Weights per channel, activations per tensor, both calibrated on images that the user names. Each
runtime's module has its own ``quantize``, which runs in a child process, see `eval.backends.child`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.backends import BACKENDS

Batch = NDArray[np.float32]


@dataclass(frozen=True)
class Work:
    """One quantization.

    Attributes:
        onnx: the fp32 model as ONNX.
        source: its fp32 file in the format of the runtime.
        pickled: the torch model.
        target: the file to write.
        data: an ``.npz`` with uint8 ``calibration`` (N, size, size, 3), ``held_out`` (M, ...), its
            ``labels`` (M,) and the float32 ``table`` (256, 3) that normalizes the levels.
        method: one of the runtime's `eval.backends.Int8.methods`.
        max_drop: allowed loss of top-1 on the held-out images, as a share; None: any.
        exclude: names of ONNX nodes that stay fp32.
    """

    onnx: str
    source: str
    pickled: str
    target: str
    data: str
    method: str
    max_drop: float | None = None
    exclude: tuple[str, ...] = ()

    def images(self, kind: str = "calibration") -> Iterator[Batch]:
        """Normalized inputs, float32 (1, 3, size, size) each."""
        with np.load(self.data) as arrays:
            crops, table = arrays[kind], arrays["table"]
        for crop in crops:
            image = np.stack([table[crop[..., c], c] for c in range(3)])
            yield image[np.newaxis]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Of the held-out images."""
        with np.load(self.data) as arrays:
            labels: NDArray[np.int64] = arrays["labels"]
            return labels


def quantize_here(backend: str, work: Mapping[str, Any]) -> None:
    """Run a backend's quantizer; what `eval.backends.child` is asked for."""
    BACKENDS[backend].load().quantize(Work(**{**work, "exclude": tuple(work.get("exclude", ()))}))
