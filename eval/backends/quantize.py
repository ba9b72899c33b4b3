"""Post-training int8, with the quantizers of the runtimes themselves.

Weights per channel, activations per tensor, both calibrated on images that the user names. Every
function here runs in a child process, see `eval.backends.child`; `QUANTIZERS` is the table of them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eval.errors import ModelError

Batch = NDArray[np.float32]
_MNN_BATCH = 4  # images that a moving average takes together


class Quantizer(NamedTuple):
    """How int8 is made for a backend.

    Attributes:
        function: of this module, see `Work`; "" where there is none.
        methods: how the ranges of activations can be found.
        tool: what does it, for reports; or why there is none.
    """

    function: str
    methods: tuple[str, ...]
    tool: str


QUANTIZERS = {
    "onnxruntime": Quantizer(
        "quantize_onnx", ("minmax", "percentile", "entropy"), "onnxruntime.quantization, QDQ"
    ),
    "openvino": Quantizer("quantize_openvino", ("default", "minmax", "percentile", "mse"), "NNCF"),
    "litert": Quantizer("quantize_litert", ("average", "minmax", "mse"), "ai-edge-quantizer"),
    "mnn": Quantizer("quantize_mnn", ("average", "minmax"), "MNN.nn.compress"),
    "executorch": Quantizer(
        "quantize_executorch", ("mse", "minmax"), "torchao PT2E with XNNPACKQuantizer"
    ),
    "ncnn": Quantizer("", (), "its int8 tools, ncnn2table and ncnn2int8, are not in the wheels"),
}


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
        method: one of the quantizer's own.
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


def quantize_here(name: str, work: Mapping[str, Any]) -> Any:
    """Run a quantizer; what `eval.backends.child` is asked for."""
    return globals()[name](Work(**{**work, "exclude": tuple(work.get("exclude", ()))}))


def quantize_onnx(work: Work) -> None:
    """An int8 ONNX file (QDQ format)."""
    import onnx
    import onnxruntime.quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    methods = ort.CalibrationMethod
    prepared = Path(work.target).with_suffix(".prepared.onnx")
    quant_pre_process(work.onnx, str(prepared), skip_symbolic_shape=True)
    name = onnx.load(str(prepared), load_external_data=False).graph.input[0].name

    class Reader(ort.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._inputs = ({name: batch} for batch in work.images())

        def get_next(self) -> dict[str, Batch] | None:
            return next(self._inputs, None)

    ort.quantize_static(
        str(prepared),
        work.target,
        Reader(),
        quant_format=ort.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=False,
        activation_type=ort.QuantType.QUInt8,
        weight_type=ort.QuantType.QInt8,
        nodes_to_exclude=list(work.exclude),
        calibrate_method={
            "minmax": methods.MinMax,
            "percentile": methods.Percentile,
            "entropy": methods.Entropy,
        }[work.method],
    )
    prepared.unlink()


def layer_errors(onnx_file: str, int8: str, data: str, images: int = 16) -> list[list[Any]]:
    """How much each layer loses by quantization: [node, error], the largest first.

    The error is the noise of the layer's output relative to its signal, both as energies, with the
    errors of the layers before it: what ONNX Runtime's debugger compares tensor by tensor.
    """
    import onnx
    import onnxruntime.quantization.qdq_loss_debug as debug
    from onnxruntime.quantization import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    work = Work(onnx_file, "", "", int8, data, "")
    folder = Path(int8).parent
    prepared = folder / "layers.onnx"
    quant_pre_process(onnx_file, str(prepared), skip_symbolic_shape=True)
    name = onnx.load(str(prepared), load_external_data=False).graph.input[0].name

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            batches = [{name: b} for b, _ in zip(work.images(), range(images), strict=False)]
            self._inputs = iter(batches)

        def get_next(self) -> dict[str, Batch] | None:
            return next(self._inputs, None)

    found = []
    for source in (str(prepared), int8):
        augmented = folder / f"augmented-{Path(source).name}"
        debug.modify_model_output_intermediate_tensors(source, str(augmented))
        found.append(debug.collect_activations(str(augmented), Reader()))
        augmented.unlink()
    matching = debug.create_activation_matching(found[1], found[0])
    rows = []
    for node in onnx.load(str(prepared)).graph.node:
        pair = matching.get(node.output[0])
        if node.op_type not in ("Conv", "Gemm", "MatMul") or not pair or not pair.get("float"):
            continue
        signal = np.concatenate([np.ravel(x) for x in pair["float"]]).astype(np.float64)
        noise = np.concatenate([np.ravel(x) for x in pair["post_qdq"]]).astype(np.float64) - signal
        rows.append([node.name, float((noise**2).sum() / max((signal**2).sum(), 1e-30))])
    prepared.unlink()
    return sorted(rows, key=lambda row: -row[1])


def quantize_openvino(work: Work) -> None:
    """An int8 OpenVINO file (``.xml``, with its ``.bin``); with `max_drop`, within that."""
    import nncf
    import openvino
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet as Ranges

    nncf.set_log_level(logging.ERROR)
    ranges = {
        "default": None,  # NNCF's own choice for each layer
        "minmax": Ranges.MINMAX,
        "percentile": Ranges.MEAN_QUANTILE,
        "mse": Ranges.HISTOGRAM,
    }[work.method]
    advanced = AdvancedQuantizationParameters(activations_range_estimator_params=ranges)
    source = openvino.Core().read_model(work.onnx)
    calibration = list(work.images())
    options = {"subset_size": len(calibration), "advanced_parameters": advanced}
    if work.max_drop is None:
        model = nncf.quantize(source, nncf.Dataset(calibration), **options)
    else:

        def top1(compiled: Any, images: Any) -> float:
            answers = [np.argmax(compiled(image)[0]) for image, _ in images]
            return float(np.mean(np.array(answers) == [label for _, label in images]))

        held_out = list(zip(work.images("held_out"), work.labels.tolist(), strict=True))
        model = nncf.quantize_with_accuracy_control(
            source,
            nncf.Dataset(calibration),
            nncf.Dataset(held_out, lambda item: item[0]),
            lambda compiled, _: top1(compiled, held_out),
            max_drop=work.max_drop,
            drop_type=nncf.DropType.ABSOLUTE,
            subset_size=len(calibration),
            advanced_quantization_parameters=advanced,
        )
    openvino.save_model(model, work.target, compress_to_fp16=False)


def quantize_litert(work: Work) -> None:
    """An int8 LiteRT file: int8 weights and activations, float input and output.

    `work.method`: ``mse`` chooses the ranges of the weights; ``minmax`` takes the extremes of the
    activations over all images, the other two the tool's own moving average.
    """
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    algorithm = {"mse": AlgorithmName.MSE}.get(work.method, AlgorithmName.MIN_MAX_UNIFORM_QUANT)
    runner = quantizer.Quantizer(work.source)
    runner.load_quantization_recipe(recipe.static_wi8_ai8(algorithm_key=algorithm))
    ((signature, ports),) = Interpreter(work.source).get_signature_list().items()
    (name,) = ports["inputs"]
    inputs = ({name: image} for image in work.images())
    if work.method == "minmax":
        ranges = _extremes(runner.calibrate({signature: [image]}) for image in inputs)
    else:  # the tool's own moving average over the images
        ranges = runner.calibrate({signature: list(inputs)})
    runner.quantize(ranges).export_model(work.target)


def _extremes(found: Iterator[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The range of each tensor over all images, from its ranges in each of them."""
    ranges: dict[str, dict[str, Any]] = {}
    for one in found:
        for tensor, new in one.items():
            known = ranges.setdefault(tensor, new)
            if "min" in new:
                low = np.minimum(known["min"], new["min"])
                high = np.maximum(known["max"], new["max"])
                ranges[tensor] = {**known, "min": low, "max": high}
    return ranges


def quantize_executorch(work: Work) -> None:
    """An int8 ExecuTorch program for XNNPACK."""
    from dataclasses import replace

    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    from eval.backends.executorch import write

    class Quantizer(XNNPACKQuantizer):  # type: ignore[misc]
        """Takes ReLU6 as it takes ReLU: as a part of the convolution before it.

        XNNPACK's kernels clamp as they write, but the quantizer knows only ReLU. The output before
        the clamp would be quantized, whose range can be ten times as wide.
        """

        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            aten = torch.ops.aten
            clamps = (aten.hardtanh, aten.hardtanh_, aten.relu6, aten.relu6_)
            targets = [operator.default for operator in clamps]
            found = [(node, node.target) for node in model.graph.nodes if node.target in targets]
            for node, _ in found:
                node.target = aten.relu.default
            super().annotate(model)
            for node, target in found:
                node.target = target
            return model

    config = get_symmetric_quantization_config(is_per_channel=True)
    if work.method == "minmax":  # the default is a histogram with the least squared error
        observer = MinMaxObserver.with_args(eps=2**-12)
        spec = replace(config.input_activation, observer_or_fake_quant_ctr=observer)
        config = replace(config, input_activation=spec, output_activation=spec)
    model = torch.load(work.pickled, weights_only=False).cpu().float().eval()
    example = (torch.zeros(next(work.images()).shape),)  # numpy's own strides can be 0
    prepared = prepare_pt2e(
        torch.export.export(model, example).module(), Quantizer().set_global(config)
    )
    with torch.no_grad():
        for image in work.images():
            prepared(torch.from_numpy(image))
    write(torch.export.export(convert_pt2e(prepared), example), Path(work.target), "int8")


def quantize_mnn(work: Work) -> None:
    """An int8 MNN file, for a batch of one; the classifier keeps float activations.

    By MNN's training of quantized networks, where nothing is trained: forward passes alone set the
    ranges, as in MNN's ``tools/MNNPythonOfflineQuant``. Its other tool, ``mnnquant``, aborts with
    ``std::length_error`` in the wheel 3.6.1 (alibaba/MNN issue 2849). That wheel's kernels leave
    some outputs of an int8 classifier of 1000 classes unset (seen on x86 with AVX-512): its
    weights are int8 and its arithmetic is not.
    """
    import MNN
    from MNN import expr, nn

    from eval.backends.mnn import to_mnn

    if hasattr(os, "sched_setaffinity"):  # MNN's threads spin: on a busy machine, for minutes
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    graph = expr.load_as_dict(work.source)
    names = nn.load_module_from_file(work.source, [], []).get_info()
    (entry,), (answer,) = names["inputNames"], names["outputNames"]
    features = graph[answer]
    while features.op_type != "Convolution" and features.inputs:
        features = features.inputs[0]
    if not features.inputs:
        raise ModelError("MNN: int8 is made only for a network whose classifier is linear.")
    features = features.inputs[0]
    body = nn.load_module([graph[entry]], [features], True)
    head = nn.load_module([features], [graph[answer]], True)
    optimizer = MNN.optim.SGD(body, 0.0)
    methods = nn.compress.Scale_Update_Method
    method = {"average": methods.MOVING_AVERAGE, "minmax": methods.MAXIMUM}[work.method]
    nn.compress.train_quant(body, quant_bits=8, scale_update_method=method)
    body.train(True)
    images = list(work.images())
    for start in range(0, len(images), _MNN_BATCH):
        batch = np.concatenate(images[start : start + _MNN_BATCH])
        given = expr.placeholder(list(batch.shape), expr.NCHW)
        given.write(batch)
        found = body.forward(given)
        optimizer.step(expr.const(np.zeros(1, np.float32), [1]))  # or no range is kept
        found.read()
    body.train(False)
    head.train(False)
    given = expr.placeholder(list(images[0].shape), expr.NCHW)
    given.name = entry
    logits = head.forward(body.forward(given))
    logits.name = answer
    raw = Path(work.target).with_suffix(".raw.mnn")
    expr.save([logits], str(raw))
    to_mnn("MNN", str(raw), work.target, "int8", "--weightQuantBits", "8")
    raw.unlink()
