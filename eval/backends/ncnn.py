"""ncnn on the CPU: one image at a time.

Unless told otherwise, ncnn keeps weights and activations in half precision. That is off here.
"""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.backends.convert import in_child
from eval.backends.session import Compute, Session
from eval.backends.signature import Feed
from eval.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

SUFFIX = ".ncnn.param"
_OFF = (
    *("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"),
    *("use_bf16_packed", "use_bf16_storage"),
)
SETTINGS: dict[str, Any] = {f"ncnn.{name}": False for name in _OFF}


def convert(model: nn.Module, path: Path, batch: int, size: int) -> None:
    """Write a torch model as ``NAME.ncnn.param`` and ``NAME.ncnn.bin``."""
    import pnnx
    import torch

    assert batch == 1
    stem = path.name.removesuffix(SUFFIX)
    with contextlib.chdir(path.parent):  # pnnx leaves files of its own
        traced = f"{stem}.pt"
        pnnx.export(model, traced, (torch.zeros(1, 3, size, size),), fp16=False)
        names = [traced, f"{stem}_ncnn.py", f"{stem}_pnnx.py"]
        for extra in [*map(Path, names), *Path().glob(f"{stem}.pnnx.*")]:
            extra.unlink(missing_ok=True)
    if not path.exists():
        raise ModelError(f"pnnx cannot convert this {type(model).__name__}: it wrote no file.")


sources = functools.partial(in_child, "ncnn", SUFFIX)


def load(source: Path, how: Compute) -> NcnnGraph:
    """See `eval.backends.session`."""
    return NcnnGraph(source, how.threads)


class NcnnGraph:
    """A ``.param`` file and its ``.bin``.

    Raises:
        ModelError: they cannot be read, or do not belong together.
    """

    layout = "NCHW"

    def __init__(self, source: Path, threads: int = 1) -> None:
        import ncnn

        self._net = net = ncnn.Net()
        net.opt.num_threads = threads
        for name in _OFF:
            setattr(net.opt, name, False)
        binary = source.with_suffix(".bin")
        for read, path in ((net.load_param, source), (net.load_model, binary)):
            # After a failure its own functions crash: nothing may be asked of it any more.
            if read(os.fspath(path)) != 0:
                raise ModelError(
                    f"{path}: ncnn cannot load it.\n"
                    "Get an intact copy of the .param and of the .bin that belongs to it."
                )
        # It knows no shapes: one image is tried before a file is used.
        self.inputs = [("float", [1, 3, None, None]) for _ in net.input_names()]
        self.outputs = [("float", [1, None]) for _ in net.output_names()]

    def session(self, _feed: Feed, _batch: int) -> Session:
        """An extractor for each image."""
        import ncnn

        (entry,), (answer,) = self._net.input_names(), self._net.output_names()

        def run(images: NDArray[Any]) -> NDArray[Any]:
            (image,) = images
            extractor = self._net.create_extractor()
            extractor.input(entry, ncnn.Mat(image))
            code, logits = extractor.extract(answer)
            if code != 0:
                raise RuntimeError(f"code {code}")
            return np.array(logits).reshape(1, -1)

        return run
