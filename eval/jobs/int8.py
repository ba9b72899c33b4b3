"""int8 files that are worth shipping: ranges chosen by measuring, accuracy kept by excluding."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eval.backends import BACKENDS, child
from eval.backends.device import int8_note
from eval.backends.formats import EXPORTS
from eval.backends.quantize import Work
from eval.errors import ModelError, UsageError
from eval.jobs.convert import HELD_OUT, Model, answers, move, sample_of
from eval.metrics import log_softmax
from eval.progress import Event, Observer

_SHOWN = 12  # rows of the table of layers


@dataclass(frozen=True)
class Calibration:
    """The images that int8 is made with, and judged on.

    Attributes:
        model: what is quantized.
        folder: where files are made.
        data: see `eval.backends.quantize.Work`.
        held_out: uint8 crops that no quantizer calibrates on.
        labels: theirs.
        expected: torch's logits of them.
        method: the one that was asked for; None: the best.
        max_drop: as a share; None: any.
        progress: receives a message about each attempt.
    """

    model: Model
    folder: Path
    data: Path
    held_out: NDArray[np.uint8]
    labels: NDArray[np.int64]
    expected: NDArray[np.float32]
    method: str | None
    max_drop: float | None
    progress: Observer

    @classmethod
    def read(
        cls,
        model: Model,
        folder: Path,
        data: Path,
        *,
        images: int,
        method: str | None,
        max_drop: float | None,
        progress: Observer,
    ) -> Calibration:
        """Read images to calibrate on, of a validation set; a quarter of them is held out."""
        crops, labels = sample_of(data, images, model.preprocess)
        count = round(len(crops) * HELD_OUT)
        if count < 1:
            raise UsageError(
                f"--calibrate {data}: needs at least 4 images; 300 or more recommended."
            )
        arrays = folder / "images.npz"
        np.savez(
            arrays,
            calibration=crops[count:],
            held_out=crops[:count],
            labels=np.array(labels[:count]),
            table=model.preprocess.table,
        )
        torch.save(model.model, folder / "model.pickle")
        told = (
            f"int8: calibrated on {len(crops) - count} images of {data}, judged on {count} others; "
            f"reduce_range off; {int8_note()}"
        )
        progress(Event(message=told))
        return cls(
            model,
            folder,
            arrays,
            crops[:count],
            np.array(labels[:count]),
            answers("torch", model.model, model.preprocess, crops[:count]),
            method,
            max_drop,
            progress,
        )

    def tell(self, message: str) -> None:
        """A line about what is done."""
        self.progress(Event(message=message))

    @property
    def correct(self) -> int:
        """How many held-out images the fp32 model predicts correctly."""
        return int((self.expected.argmax(1) == self.labels).sum())


@dataclass(frozen=True)
class Int8File:
    """One int8 file, measured on the held-out images.

    Attributes:
        path: the file.
        method: how its ranges were found.
        divergence: mean Kullback-Leibler divergence from the fp32 probabilities, in nats.
        same: images with the same top-1 prediction as in fp32.
        correct: images with the correct top-1 prediction.
    """

    path: Path
    method: str
    divergence: float
    same: int
    correct: int


def quantize(kind: str, source: Path, calibration: Calibration) -> Path:
    """The best int8 file of a format, within `max_drop` if that was asked for."""
    backend, ending = EXPORTS[kind]
    tool = BACKENDS[backend].int8
    methods = tool.methods
    if calibration.method:
        methods = (calibration.method,)
    results = []
    for method in methods:
        try:
            results.append(_attempt(kind, source, calibration, method))
        except ModelError as error:  # one method that fails is no reason not to try the others
            calibration.tell(f"{kind} int8, {method}: {str(error).splitlines()[0]}")
    if not results:
        raise ModelError(f"{kind}: {tool.tool} cannot quantize this model; see above.")
    best = min(results, key=lambda result: result.divergence)
    if calibration.max_drop is not None:
        best = _within(kind, source, calibration, best)
    final = source.with_name(f"model-int8{ending}")
    move(best.path, final)
    count = len(calibration.labels)
    calibration.tell(
        f"{final.name}: {tool.tool}, {best.method}; {best.correct} of {count} held-out images "
        f"correct, fp32 {calibration.correct}"
    )
    return final


def _attempt(
    kind: str,
    source: Path,
    calibration: Calibration,
    method: str,
    options: dict[str, Any] | None = None,
) -> Int8File:
    """Quantize in one way, and measure the file."""
    backend, ending = EXPORTS[kind]
    options = options or {}
    name = "-".join([kind, method, *(f"{key}{len(str(v))}" for key, v in options.items())])
    folder = calibration.folder / name
    folder.mkdir()
    target = folder / f"int8{ending}"
    work = Work(
        onnx=str(calibration.folder / "graph.onnx"),
        source=str(source),
        pickled=str(calibration.folder / "model.pickle"),
        target=str(target),
        data=str(calibration.data),
        method=method,
        **options,
    )
    child.call(
        f"{kind} int8, {BACKENDS[backend].int8.tool}",
        "eval.backends.quantize:quantize_here",
        backend=backend,
        work=asdict(work),
    )
    found = answers(backend, target, calibration.model.preprocess, calibration.held_out)
    expected = calibration.expected
    result = Int8File(
        target,
        method,
        divergence(expected, found),
        int((found.argmax(1) == expected.argmax(1)).sum()),
        int((found.argmax(1) == calibration.labels).sum()),
    )
    excluded = options.get("exclude", ())
    calibration.tell(
        f"{kind} int8, {method}{f', {len(excluded)} layers in fp32' if excluded else ''}: "
        f"divergence {result.divergence:.4f}, {result.same} of {len(expected)} held-out images as "
        f"in fp32, {result.correct} correct"
    )
    return result


def divergence(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Mean Kullback-Leibler divergence of softmax(found) from softmax(expected), in nats.

    Args:
        expected: logits (N, classes).
        found: the same shape.
    """
    log_p, log_q = log_softmax(expected), log_softmax(found)
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


def _within(kind: str, source: Path, calibration: Calibration, best: Int8File) -> Int8File:
    """A file that loses no more than `max_drop` on the held-out images."""
    assert calibration.max_drop is not None
    allowed = calibration.correct - calibration.max_drop * len(calibration.labels)
    keeps = BACKENDS[EXPORTS[kind][0]].int8.keeps
    if keeps == "max_drop" and best.correct < allowed:
        options = {"max_drop": calibration.max_drop}
        best = _attempt(kind, source, calibration, best.method, options)
    if keeps == "exclude":
        best = _without_costly_layers(kind, source, calibration, best, allowed)
    if best.correct < allowed:
        raise ModelError(
            f"{kind} int8: {best.correct} of {len(calibration.labels)} held-out images "
            f"correct, fp32 {calibration.correct}: more than --max-drop allows.\n"
            "Allow more, calibrate on more images, or leave this format out."
        )
    return best


def _without_costly_layers(
    kind: str, source: Path, calibration: Calibration, best: Int8File, allowed: float
) -> Int8File:
    """Keep the layers with the largest errors in fp32: one, two, four, ... until it suffices."""
    row = BACKENDS[EXPORTS[kind][0]]
    rows = child.call(
        f"{row.title}'s error table",
        f"{row.module}:layer_errors",
        onnx_file=str(calibration.folder / "graph.onnx"),
        int8=str(best.path),
        data=str(calibration.data),
    )
    calibration.tell(f"{kind} int8, noise to signal of each layer, the largest first:")
    for name, error in rows[:_SHOWN]:
        calibration.tell(f"  {error:9.2e} {name}")
    if len(rows) > _SHOWN:
        calibration.tell(f"  and {len(rows) - _SHOWN} more layers below {rows[_SHOWN][1]:.2e}")
    count = 1
    while best.correct < allowed and count < len(rows):
        options = {"exclude": tuple(name for name, _ in rows[:count])}
        best = _attempt(kind, source, calibration, best.method, options)
        count *= 2
    return best
