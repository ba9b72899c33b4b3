"""What computes the logits; each runtime stands behind the same interface.

    pytorch.py     torch eager mode and torch.compile
    lowering.py    a network made faster for torch on a CPU
    tracing.py     a network as a graph of torch's basic operations
    onecall.py     such a graph as one call, without the lock of the interpreter
    onnx.py        ONNX Runtime, and the ONNX export
    openvino.py    OpenVINO
    litert.py      LiteRT
    ncnn.py        ncnn
    mnn.py         MNN
    executorch.py  ExecuTorch
    paddle.py      Paddle Inference
    session.py     what all runtimes but torch share: threads, batches, checks
    signature.py   what a graph takes and gives
    child.py       converters, and files that nobody has vouched for, in a process of their own
    formats.py     exported files, whichever runtime's
    precision.py   one word for the precision of many tensors
    quantize.py    post-training int8
    device.py      which device

`BACKENDS` is the table of them. A runtime is one row there and one module, which is imported when
it is asked for: each is an extra of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from eval.errors import UsageError
from eval.values import OneOf

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import nn

    from eval.backends.session import Converted
    from eval.images.preprocess import Crop, Preprocess


class Predictor(Protocol):
    """A backend: uint8 crops (B, size, size, 3) to logits (B, classes) of each form, float32.

    It is called by several threads at once, mostly with batches of the size it was made for. Some
    have `settings`, a mapping of what was set or chosen in the runtime, for ``run.json``; `kinds`,
    what the outputs of a form are, where their values alone do not show it; and `part`, the number
    of images that they compute at a time, where that is less than a batch.
    """

    def __call__(self, crops: Crop) -> Mapping[str, NDArray[Any]]:
        """Answer a batch."""


@dataclass(frozen=True)
class Task:
    """What a predictor is made for: the arguments of `create_predictor`.

    Attributes:
        threads: of each call inside the runtime. Torch has one number for the whole process, which
            `torch.set_num_threads` sets.
        output: the name of the output of a file that counts; None: the only one that can be it.
        background_first: whether the first of the classes is left out, as by `eval.measure.engine`.
        converted: the models as files that the runtime loads, if `prepared` made them.
        chosen: by form, which of its graphs and batch sizes was the fastest, where that is known:
            all processes of a run compute alike.
    """

    backend: str
    models: Mapping[str, nn.Module | Path]
    preprocess: Preprocess
    device: torch.device
    precision: str
    batch_size: int
    workers: int
    classes: int | None = None
    threads: int = 1
    output: str | None = None
    background_first: bool = False
    converted: Mapping[str, Converted] = field(default_factory=dict)
    chosen: Mapping[str, int] = field(default_factory=dict)


def _torch(task: Task) -> Predictor:
    from eval.backends.pytorch import TorchPredictor

    return TorchPredictor(*_in_torch(task))


def _compile(task: Task) -> Predictor:
    from eval.backends.pytorch import CompilePredictor

    return CompilePredictor(*_in_torch(task))


def _in_torch(task: Task) -> tuple[Any, ...]:
    return task.models, task.preprocess, task.device, task.precision, task.batch_size


def _runtime(task: Task) -> Predictor:
    from eval.backends.session import create

    return create(task)


class Int8(NamedTuple):
    """How a runtime's module quantizes.

    Attributes:
        tool: what does it, for reports; or why there is none.
        methods: calibration methods; empty where there is no quantizer.
        keeps: the field of `eval.backends.quantize.Work` by which it can be made to keep the
            accuracy: ``max_drop``, ``exclude`` or "".
    """

    tool: str
    methods: tuple[str, ...] = ()
    keeps: str = ""


_NO_INT8 = Int8("")


@dataclass(frozen=True)
class Backend:
    """One row of the table.

    Attributes:
        title: what the runtime is called.
        extra: the extra of this package that installs it; "" for torch.
        create: makes its predictor.
        module: of this package, for the runtimes that `eval.backends.session` drives.
        suffixes: the kinds of exported file that it runs; the first is its own, and its module
            recognizes it.
        file: what its own kind of file is called.
        export: what `eval.export` calls that, and the ending of the files it writes.
        int8: how it quantizes.
        precisions: what it can compute in; the first is the default.
        devices: kinds of torch device.
        needs: Python modules that must be installed to run it.
        converts: those needed to convert a torch model as well.
        fixed_batch: its graphs have one batch size, so that the faster one is measured.
        silent_batch: its files do not say whether their batch size is fixed.
        keeps_lock: its module computes with the interpreter's lock, so that threads wait for each
            other: a run on many cores has processes of one thread.
        own_process: its sessions are processes of their own, so that no file has to be tried in
            one first.
        official: PP-LCNetV2 was published in it: its files are checkpoints, too, which `pplcnet`
            reads; `eval.diagnose` tries it, and it is the first row of a sweep.
    """

    title: str
    create: Callable[[Task], Predictor] = _runtime
    extra: str = ""
    module: str = ""
    suffixes: tuple[str, ...] = ()
    file: str = ""
    export: tuple[str, str] = ("", "")
    int8: Int8 = _NO_INT8
    precisions: tuple[str, ...] = ("fp32",)
    devices: tuple[str, ...] = ("cpu",)
    needs: tuple[str, ...] = ()
    converts: tuple[str, ...] = ()
    fixed_batch: bool = False
    silent_batch: bool = False
    keeps_lock: bool = False
    own_process: bool = False
    official: bool = False

    def load(self) -> Any:
        """Its module; what is in one is listed in `eval.backends.session`."""
        return importlib.import_module(self.module)


_PRECISIONS = ("fp32", "bf16", "fp16")
_DEVICES = ("cpu", "cuda")

BACKENDS: Mapping[str, Backend] = {
    "torch": Backend("torch", _torch, precisions=_PRECISIONS, devices=_DEVICES),
    "onnxruntime": Backend(
        "ONNX Runtime",
        extra="onnx",
        module="eval.backends.onnx",
        suffixes=(".onnx",),
        file="ONNX",
        export=("onnx", ".onnx"),
        int8=Int8(
            "onnxruntime.quantization, QDQ", ("minmax", "percentile", "entropy"), keeps="exclude"
        ),
        needs=("onnxruntime",),
        converts=("onnx", "onnxscript"),
    ),
    "openvino": Backend(
        "OpenVINO",
        extra="openvino",
        module="eval.backends.openvino",
        suffixes=(".xml", ".onnx", ".pdmodel"),
        file="OpenVINO",
        export=("openvino", ".xml"),
        int8=Int8("NNCF", ("default", "minmax", "percentile", "mse"), keeps="max_drop"),
        precisions=_PRECISIONS,
        needs=("openvino",),
        converts=("onnx", "onnxscript"),
    ),
    "compile": Backend("torch.compile", _compile, precisions=_PRECISIONS, devices=_DEVICES),
    "litert": Backend(
        "LiteRT",
        extra="litert",
        module="eval.backends.litert",
        suffixes=(".tflite",),
        file="LiteRT",
        export=("litert", ".tflite"),
        int8=Int8("ai-edge-quantizer", ("average", "minmax", "mse")),
        needs=("ai_edge_litert",),
        converts=("litert_torch",),
        fixed_batch=True,
    ),
    "ncnn": Backend(
        "ncnn",
        extra="ncnn",
        module="eval.backends.ncnn",
        suffixes=(".param",),
        file="ncnn",
        export=("ncnn", ".ncnn.param"),
        int8=Int8("its int8 tools, ncnn2table and ncnn2int8, are not in the wheels"),
        needs=("ncnn",),
        converts=("pnnx",),
    ),
    "mnn": Backend(
        "MNN",
        extra="mnn",
        module="eval.backends.mnn",
        suffixes=(".mnn",),
        file="MNN",
        export=("mnn", ".mnn"),
        int8=Int8("MNN.nn.compress", ("average", "minmax")),
        needs=("MNN",),
        converts=("onnx", "onnxscript"),
        fixed_batch=True,
        silent_batch=True,
        keeps_lock=True,
    ),
    "executorch": Backend(
        "ExecuTorch",
        extra="executorch",
        module="eval.backends.executorch",
        suffixes=(".pte",),
        file="ExecuTorch",
        export=("executorch", ".pte"),
        int8=Int8("torchao PT2E with XNNPACKQuantizer", ("mse", "minmax")),
        needs=("executorch",),
        converts=("executorch", "torchao"),
        fixed_batch=True,
        keeps_lock=True,
    ),
    "paddle": Backend(
        "Paddle",
        extra="paddle",
        module="eval.backends.paddle",
        suffixes=(".pdmodel", ".json"),
        file="Paddle inference model",
        needs=("paddle",),
        own_process=True,
        official=True,
    ),
}

# What a name of a backend may be.
backend_name = OneOf(
    BACKENDS,
    {
        **dict.fromkeys(("onnx", "ort", "onnx-runtime"), "onnxruntime"),
        **dict.fromkeys(("pytorch", "eager"), "torch"),
        **dict.fromkeys(("torch.compile", "inductor", "torch-compile"), "compile"),
        **dict.fromkeys(("ov", "ir"), "openvino"),
        **dict.fromkeys(("tflite", "tensorflow", "tf"), "litert"),
        **dict.fromkeys(("et", "pte"), "executorch"),
        **dict.fromkeys(("paddlepaddle", "paddle-inference"), "paddle"),
    },
)


def create_predictor(
    backend: str,
    models: Mapping[str, nn.Module | Path],
    preprocess: Preprocess,
    device: torch.device,
    precision: str,
    *,
    batch_size: int,
    workers: int,
    classes: int | None = None,
) -> Predictor:
    """The forms of a model in a runtime.

    Args:
        backend: a key of `BACKENDS`.
        models: form name to model, or to an exported file.
        preprocess: whose normalized input the models take.
        device: where to compute.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        batch_size: images in a batch.
        workers: threads that will call it.
        classes: how many classes an exported file must tell apart; None: any number.

    Raises:
        UsageError: the backend is not installed, has no such device or precision, or does not run
            this kind of file.
        ModelError: an exported file cannot be used.
    """
    return predictor_for(
        Task(backend, models, preprocess, device, precision, batch_size, workers, classes)
    )


def predictor_for(task: Task) -> Predictor:
    """What `create_predictor` does."""
    _check(task)
    return BACKENDS[task.backend].create(task)


@contextlib.contextmanager
def prepared(task: Task) -> Iterator[Task]:
    """The task with its models converted, so that several predictors need not do it again."""
    _check(task)
    if not BACKENDS[task.backend].module:
        yield task
        return
    from eval.backends.session import converted

    with converted(task) as ready:
        yield ready


def _check(task: Task) -> None:
    """Refuse what a backend cannot do, before anything is converted."""
    backend, precision = task.backend, task.precision
    entry = BACKENDS[backend]
    if task.device.type not in entry.devices:
        raise UsageError(f"--backend {backend} computes on the CPU here: use --device cpu.")
    if precision not in entry.precisions:
        others = [name for name, other in BACKENDS.items() if precision in other.precisions]
        raise UsageError(
            f"--backend {backend} --precision {precision}: {entry.title} computes in "
            f"{', '.join(entry.precisions)} only here. Use --backend {' or '.join(others)}."
        )
    for model in task.models.values():
        check_runs(backend, model)
    converting = any(not isinstance(model, Path) for model in task.models.values())
    check_installed(backend, converting=converting)


def check_runs(backend: str, model: nn.Module | Path) -> None:
    """Refuse a file that a backend does not run."""
    if isinstance(model, Path) and model.suffix.lower() not in BACKENDS[backend].suffixes:
        able = [name for name, row in BACKENDS.items() if model.suffix.lower() in row.suffixes]
        advice = f"use {' or '.join(able)}" if able else "no backend runs this kind of file"
        raise UsageError(f"--backend {backend} cannot run {model}: {advice}.")


def check_installed(backend: str, *, converting: bool = False) -> None:
    """Refuse a runtime that is not installed, or that cannot convert torch models."""
    entry = BACKENDS[backend]
    for name in (*entry.needs, *(entry.converts if converting else ())):
        if _is_missing(name):
            raise missing_extra(backend, entry.extra, ImportError(name=name))


def _is_missing(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except ValueError:  # a module that was put in `sys.modules` by hand
        return True


def missing_extra(backend: str, extra: str, error: ImportError) -> UsageError:
    """The error where a runtime is not installed."""
    return UsageError(
        f"--backend {backend} needs {error.name}, which is not installed: "
        f"pip install 'pplcnet-eval[{extra}]' (in a checkout: pip install -e '.[{extra}]')."
    )
