"""The precision of a file is that of all its tensors, and `unknown` where they cannot be read."""

from __future__ import annotations

import itertools
import pickle
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
import pytest
import torch
from conftest import FILES, MakeVal, rows_of
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file
from test_runtimes import graph, needs

from eval.backends import child
from eval.backends.formats import companions, precision_of
from eval.backends.precision import describe
from eval.errors import ModelError
from eval.flatbuffer import Damaged, Table
from eval.imagenet import main
from eval.models import timm, torchvision
from eval.models.stored import stored_precision

WEIGHTS = np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5)


def test_one_word_for_many_tensors() -> None:
    assert describe(["fp32", ""], ["fp32"]) == "fp32"
    assert describe([], ["fp32", "fp16"]) == "fp16 weights"
    assert describe([], ["bf16", "fp16", "int4", "int8"]) == "int4 weights"
    assert describe(["fp16"], ["int8"]) == "fp16"
    assert describe(["int8", "unknown"], ["fp32"]) == "unknown"


# ONNX: x (n, 3, 224, 224), mean over pixels, times a matrix (3, 5).


def classifier(path: Path, nodes: Sequence[onnx.NodeProto], tensors: Sequence[TensorProto],
               mean: Sequence[onnx.NodeProto] = (), **more: object) -> Path:  # fmt: skip
    """A graph whose `nodes` make ``w`` from `tensors`, or use ``m`` and make ``y`` themselves."""
    first = mean or [helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0)]
    last = [helper.make_node("MatMul", ["m", "w"], ["y"])]
    made = [each for node in nodes for each in node.output]
    graph(path, [tensors, *first, *nodes, *([] if "y" in made else last)], ["n", 5])
    model = onnx.load(path, load_external_data=False)
    for key, value in more.items():
        helper.set_model_props(model, {key: str(value)})
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    return path


def initializer(name: str, values: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(values, name)


def bfloat(name: str) -> TensorProto:
    return helper.make_tensor(name, TensorProto.BFLOAT16, WEIGHTS.shape, WEIGHTS.ravel())


def cast(source: str, target: str, to: int = TensorProto.FLOAT) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=to)


HALF = initializer("h", WEIGHTS.astype(np.float16))
WHOLE = initializer("q", np.arange(15, dtype=np.int8).reshape(3, 5))
SCALE = [initializer("s", np.float32(0.1)), initializer("z", np.int8(0))]
PLAIN = initializer("w", WEIGHTS)
DEQUANTIZED = helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"])


def branch() -> onnx.NodeProto:
    """An ``If`` whose branches make ``w`` from halves of their own."""
    made = helper.make_tensor_value_info("w_", TensorProto.FLOAT, [3, 5])
    body = helper.make_graph([cast("h", "w_")], "b", [], [made], [HALF])
    return helper.make_node("If", ["c"], ["w"], then_branch=body, else_branch=body)


ONNX = {
    "fp32": ([], [PLAIN], "fp32"),
    "unused halves": ([], [PLAIN, HALF], "fp32"),
    "halves behind a cast": ([cast("h", "w")], [HALF], "fp16 weights"),
    "bfloat16 behind a cast": ([cast("h", "w")], [bfloat("h")], "bf16 weights"),
    "halves of a Constant": (
        [helper.make_node("Constant", [], ["k"], value=HALF), cast("k", "w")], [], "fp16 weights",
    ),
    "halves in a branch": ([branch()], [initializer("c", np.array(True))], "fp16 weights"),
    "rounded on the way": (
        [cast("f", "h", TensorProto.FLOAT16), cast("h", "w")], [initializer("f", WEIGHTS)],
        "fp16 weights",
    ),
    "computed in halves": (
        [cast("m", "mh", TensorProto.FLOAT16), helper.make_node("MatMul", ["mh", "h"], ["yh"]),
         cast("yh", "y")], [HALF], "fp16",
    ),
    "int8 weights": ([DEQUANTIZED], [WHOLE, *SCALE], "int8 weights"),
    "int8 activations": (
        [DEQUANTIZED, helper.make_node("QuantizeLinear", ["m", "s", "z"], ["mq"]),
         helper.make_node("DequantizeLinear", ["mq", "s", "z"], ["md"]),
         helper.make_node("MatMul", ["md", "w"], ["y"])], [WHOLE, *SCALE], "int8",
    ),
    "integer product": (
        [helper.make_node("DynamicQuantizeLinear", ["m"], ["mq", "ms", "mz"]),
         helper.make_node("MatMulInteger", ["mq", "q"], ["yi"]), cast("yi", "y")], [WHOLE], "int8",
    ),
    "4 bits": (
        [helper.make_node("MatMulNBits", ["m", "b", "s"], ["y"], domain="com.microsoft",
                          K=3, N=5, bits=4, block_size=16)],
        [initializer("b", np.zeros((5, 1, 8), np.uint8)), initializer("s", np.ones(5, np.float32))],
        "int4 weights",
    ),
    "an operator of somebody": (
        [helper.make_node("Mine", ["m"], ["y"], domain="mine")], [], "unknown",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ONNX)
def test_onnx(name: str, tmp_path: Path) -> None:
    nodes, tensors, expected = ONNX[name]
    assert precision_of(classifier(tmp_path / "x.onnx", nodes, tensors)) == expected


def test_a_word_in_the_metadata_says_nothing(tmp_path: Path) -> None:
    path = classifier(tmp_path / "x.onnx", [], [PLAIN], tool="QuantizeLinear float16 int8")
    assert precision_of(path) == "fp32"


def test_halves_in_a_file_of_their_own(tmp_path: Path) -> None:
    """Also those that only a branch names."""
    half = TensorProto()
    half.CopyFrom(HALF)
    onnx.external_data_helper.set_external_data(half, "apart.bin")
    half.ClearField("raw_data")
    half.data_location = TensorProto.EXTERNAL
    made = branch()
    for attribute in made.attribute:
        attribute.g.initializer[0].CopyFrom(half)
    condition = initializer("c", np.array(True))
    for nodes, tensors in (([cast("h", "w")], [half]), ([made], [condition])):
        (tmp_path / "apart.bin").write_bytes(HALF.raw_data)
        path = tmp_path / "x.onnx"
        classifier(path, nodes, tensors)
        model = onnx.load(path, load_external_data=False)
        assert b"apart.bin" in model.SerializeToString()
        assert [each.name for each in companions(path)] == ["apart.bin"]
        assert precision_of(path) == "fp16 weights"


def test_ortmodules_own_converter_to_halves(tmp_path: Path) -> None:
    needs("onnxruntime")
    from onnxruntime.transformers.float16 import convert_float_to_float16

    source = classifier(tmp_path / "x.onnx", [], [PLAIN])
    for keep in (True, False):
        model = convert_float_to_float16(onnx.load(source), keep_io_types=keep)
        onnx.save(model, tmp_path / "half.onnx")
        assert precision_of(tmp_path / "half.onnx") == "fp16"


# OpenVINO


def openvino_file(path: Path, kind: str) -> Path:
    import openvino
    from openvino import opset13 as op

    x = op.parameter([-1, 3, 224, 224], np.float32, name="x")
    mean = op.reduce_mean(x, op.constant(np.array([2, 3])))
    weights = op.constant(openvino.Tensor(getattr(openvino.Type, kind), [3, 5]))
    if kind != "f32":
        weights = op.convert(weights, "f32")
    model = openvino.Model([op.matmul(mean, weights, False, False)], [x])
    openvino.serialize(model, path)
    return path


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("f32", "fp32"), *((f, f"{e} weights") for f, e in {
        "f16": "fp16", "bf16": "bf16", "u8": "int8", "i8": "int8", "u4": "int4", "i4": "int4",
        "nf4": "fp4"}.items())],
)  # fmt: skip
def test_openvino(kind: str, expected: str, tmp_path: Path) -> None:
    assert precision_of(openvino_file(tmp_path / "x.xml", kind)) == expected


def test_openvino_activations_and_types_that_are_new(tmp_path: Path) -> None:
    import openvino
    from openvino import opset13 as op

    x = op.parameter([-1, 3, 224, 224], np.float32, name="x")
    ends = [op.constant(np.float32(value)) for value in (0, 1, 0, 1)]
    mean = op.reduce_mean(op.fake_quantize(x, *ends, levels=256), op.constant(np.array([2, 3])))
    openvino.serialize(openvino.Model([mean], [x]), tmp_path / "x.xml")
    assert precision_of(tmp_path / "x.xml") == "int8"
    half = op.convert(op.reduce_mean(op.convert(x, "f16"), op.constant(np.array([2, 3]))), "f32")
    openvino.serialize(openvino.Model([half], [x]), tmp_path / "h.xml")
    assert precision_of(tmp_path / "h.xml") == "fp16"
    path = openvino_file(tmp_path / "n.xml", "u8")
    path.write_text(path.read_text().replace('element_type="u8"', 'element_type="u7"'))
    assert precision_of(path) == "unknown"
    path.write_text("<net><layers>")
    assert precision_of(path) == "unknown"


# ncnn

FP32, HALVES, TABLE = 0, 0x01306B47, 77


def tagged(tag: int, count: int) -> bytes:
    size = 2 * count if tag == HALVES else count if tag == TABLE else 4 * count
    table = bytes(1024) if tag == TABLE else b""
    return struct.pack("<I", tag) + table + bytes(-(-size // 4) * 4)


def ncnn_file(folder: Path, *tags: int, more: bytes = b"", scale: str = "") -> Path:
    """Convolutions of 3 channels, 3 x 3, each with 3 biases, and a classifier."""
    path = folder / "m.param"
    layers = ["Input i 0 1 t0 0=224"]
    data = b""
    for number, tag in enumerate(tags):
        layers.append(f"Convolution c 1 1 t{number} t{number + 1} 0=3 1=3 5=1 6=81{scale}")
        data += tagged(tag, 81) + bytes(12) + bytes(16 if scale else 0)
    path.write_text("\n".join(["7767517", f"{len(layers)} {len(layers)}", *layers]) + "\n")
    path.with_suffix(".bin").write_bytes(data + more)
    return path


def test_ncnn(tmp_path: Path) -> None:
    for tags, expected in {
        (FP32, FP32): "fp32",
        (HALVES, HALVES): "fp16 weights",
        (FP32, HALVES): "fp16 weights",
        (FP32, FP32, TABLE): "int8 weights",
    }.items():
        assert precision_of(ncnn_file(tmp_path, *tags)) == expected
    assert precision_of(ncnn_file(tmp_path, FP32, scale=" 8=1")) == "int8"
    assert precision_of(ncnn_file(tmp_path, FP32, more=bytes(4))) == "unknown"
    assert precision_of(ncnn_file(tmp_path, FP32, FP32).with_suffix(".param")) == "fp32"
    (tmp_path / "m.bin").unlink()
    assert precision_of(tmp_path / "m.param") == "unknown"


# LiteRT: x (1, 224, 224, 3), mean over pixels, fully connected to 5.

F32, F16, INT32, UINT8, INT8 = 0, 1, 2, 3, 9
MEAN, FULLY_CONNECTED, DEQUANTIZE, CAST = 40, 9, 6, 53


class Tensor:
    """One tensor of a graph: type, shape, and content where it is a constant."""

    def __init__(self, kind: int, shape: Sequence[int], data: bytes = b"",
                 scale: float = 0, zero: int = 0) -> None:  # fmt: skip
        self.kind, self.shape, self.data, self.scale, self.zero = kind, shape, data, scale, zero
        self.signature: Sequence[int] | None = None  # the shape, with -1 where it may change


def litert_file(path: Path, tensors: Sequence[Tensor],
                operators: Sequence[tuple[int, Sequence[int], int]]) -> Path:  # fmt: skip
    """Tensor 0 is the input, the last one the output; operators as (code, inputs, output)."""
    b = flatbuffers.Builder(0)

    def vector(items: Sequence[int], kind: str = "Int32", width: int = 4) -> int:
        b.StartVector(width, len(items), width)
        for item in reversed(items):
            getattr(b, f"Prepend{kind}")(item)
        return b.EndVector()

    def table(fields: Sequence[tuple[int, str, float]], count: int) -> int:
        b.StartObject(count)
        for number, kind, value in fields:
            getattr(b, f"Prepend{kind}Slot")(number, value, 0)
        return b.EndObject()

    codes = sorted({code for code, _, _ in operators})
    contents = [b""] + [t.data for t in tensors if t.data]
    buffers = []
    for data in contents:
        raw = b.CreateByteVector(data) if data else 0
        buffers.append(table([(0, "UOffsetTRelative", raw)] if data else [], 3))
    made, buffer = [], itertools.count(1)
    for number, t in enumerate(tensors):
        shape, name = vector(t.shape), b.CreateString(f"t{number}")
        quantized = 0
        if t.scale:
            scales, zeros = vector([t.scale], "Float32"), vector([t.zero], "Int64", 8)
            fields = [(2, "UOffsetTRelative", scales), (3, "UOffsetTRelative", zeros)]
            quantized = table(fields, 7)
        ranges = [(4, "UOffsetTRelative", quantized)] if quantized else []
        if t.signature:
            ranges.append((7, "UOffsetTRelative", vector(t.signature)))
        made.append(table([(0, "UOffsetTRelative", shape), (1, "Int8", t.kind),
                           (2, "Uint32", next(buffer) if t.data else 0),
                           (3, "UOffsetTRelative", name), *ranges], 8))  # fmt: skip
    steps = []
    for code, inputs, output in operators:
        given, found = vector(inputs), vector([output])
        options = {MEAN: 27, FULLY_CONNECTED: 8}.get(code, 0)
        if options:
            body = table([], 1)
        steps.append(table([(0, "Uint32", codes.index(code)), (1, "UOffsetTRelative", given),
                            (2, "UOffsetTRelative", found),
                            *([(3, "Uint8", options), (4, "UOffsetTRelative", body)]
                              if options else [])], 9))  # fmt: skip
    parts = [vector(made, "UOffsetTRelative"), vector([0]), vector([len(tensors) - 1]),
             vector(steps, "UOffsetTRelative")]  # fmt: skip
    subgraph = table([(n, "UOffsetTRelative", part) for n, part in enumerate(parts)], 5)
    kinds = [table([(0, "Int8", code), (3, "Int32", code), (2, "Int32", 1)], 4) for code in codes]
    tables = [vector(each, "UOffsetTRelative") for each in (kinds, [subgraph])]
    words = b.CreateString("QuantizeLinear float16 int8")
    stored = vector(buffers, "UOffsetTRelative")
    root = table([(0, "Uint32", 3), (1, "UOffsetTRelative", tables[0]),
                  (2, "UOffsetTRelative", tables[1]), (3, "UOffsetTRelative", words),
                  (4, "UOffsetTRelative", stored)], 8)  # fmt: skip
    b.Finish(root, b"TFL3")
    path.write_bytes(bytes(b.Output()))
    return path


def litert(path: Path, weights: Sequence[Tensor], steps: Sequence[tuple[int, Sequence[int], int]],
           pixels: Sequence[Tensor] = (), kind: int = F32) -> Path:  # fmt: skip
    """The mean of the pixels of ``pixels`` through `weights`; the last of them is used."""
    axes = Tensor(INT32, [2], np.array([1, 2], np.int32).tobytes())
    base = list(pixels) or [Tensor(F32, [1, 224, 224, 3])]
    given = len(base) - 1
    start = len(base)
    tensors = [*base, axes, Tensor(kind, [1, 3]), *weights, Tensor(kind, [1, 5])]
    shifted = [(code, [each + start + 2 for each in inputs], output + start + 2)
               for code, inputs, output in steps]  # fmt: skip
    cast_first = [(CAST if base[0].kind == UINT8 and not base[0].scale else DEQUANTIZE, [0], 1)]
    mean = (MEAN, [given, start], start + 1)
    last = (FULLY_CONNECTED, [start + 1, len(tensors) - 2, -1], len(tensors) - 1)
    operators = [*(cast_first if given else []), mean, *shifted, last]
    return litert_file(path, tensors, operators)


ROWS = WEIGHTS.T.copy()
FLOATS = Tensor(F32, [5, 3], ROWS.tobytes())
LITERT: dict[str, tuple[Callable[[Path], Path], str]] = {
    "fp32": (lambda path: litert(path, [FLOATS], []), "fp32"),
    "halves": (
        lambda path: litert(path, [Tensor(F16, [5, 3], ROWS.astype(np.float16).tobytes()),
                                   Tensor(F32, [5, 3])], [(DEQUANTIZE, [0], 1)]),
        "fp16 weights",
    ),
    "int8 weights": (
        lambda path: litert(path, [Tensor(INT8, [5, 3], bytes(15), 0.1), Tensor(F32, [5, 3])],
                            [(DEQUANTIZE, [0], 1)]),
        "int8 weights",
    ),
    "pixels": (
        lambda path: litert(path, [FLOATS], [], [Tensor(UINT8, [1, 224, 224, 3]),
                                                 Tensor(F32, [1, 224, 224, 3])]),
        "fp32",
    ),
    "an input of whole numbers": (
        lambda path: litert(path, [FLOATS], [], [Tensor(UINT8, [1, 224, 224, 3], b"", 0.0187, 114),
                                                 Tensor(F32, [1, 224, 224, 3])]),
        "int8",
    ),
    "all uint8": (
        lambda path: litert(path, [Tensor(UINT8, [5, 3], bytes(15), 0.1)], [],
                            [Tensor(UINT8, [1, 224, 224, 3], b"", 0.1, 3)], UINT8),
        "int8",
    ),
    "a new type": (lambda path: litert(path, [Tensor(99, [5, 3], bytes(15))], []), "unknown"),
}  # fmt: skip


@pytest.mark.parametrize("name", LITERT)
def test_litert(name: str, tmp_path: Path) -> None:
    make, expected = LITERT[name]
    assert precision_of(make(tmp_path / "x.tflite")) == expected


def test_a_damaged_flatbuffer_ends(tmp_path: Path) -> None:
    """Every cut and every wild offset: an answer, never an error or a long wait."""
    whole = litert(tmp_path / "x.tflite", [FLOATS], []).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "y.tflite"
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 8):
            data[place] = rng.integers(0, 256)
        path.write_bytes(bytes(data[: rng.integers(8, len(data) + 1)]))
        precision_of(path)
    with pytest.raises(Damaged):
        list(Table.root(whole[:40]).tables(2))


def test_tables_that_are_named_again_and_again_end() -> None:
    """A vector of a million offsets to one vector of a million offsets."""
    b = flatbuffers.Builder(0)
    b.StartObject(0)
    leaf = b.EndObject()
    b.StartVector(4, 1000, 4)
    for _ in range(1000):
        b.PrependUOffsetTRelative(leaf)
    leaves = b.EndVector()
    b.StartObject(1)
    b.PrependUOffsetTRelativeSlot(0, leaves, 0)
    middle = b.EndObject()
    b.StartVector(4, 1000, 4)
    for _ in range(1000):
        b.PrependUOffsetTRelative(middle)
    middles = b.EndVector()
    b.StartObject(1)
    b.PrependUOffsetTRelativeSlot(0, middles, 0)
    b.Finish(b.EndObject())
    root = Table.root(bytes(b.Output()))
    with pytest.raises(Damaged, match="more tables"):
        list(itertools.chain.from_iterable(table.tables(0) for table in root.tables(0)))


# MNN and ExecuTorch


@pytest.fixture(scope="module")
def mnn_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs("mnn")
    folder = tmp_path_factory.mktemp("mnn")
    classifier(folder / "x.onnx", [], [PLAIN])
    child.call("MNN", "test_precision:convert", folder=str(folder))
    return folder


MNN = {
    "fp32": ((), "fp32"),
    "halves": (("--fp16",), "fp16 weights"),
    "eight": (("--weightQuantBits", "8"), "int8 weights"),
    "four": (("--weightQuantBits", "4"), "int4 weights"),
}


def convert(folder: str) -> None:
    """In a child process: our own file, and what MNN's converter makes of it."""
    from eval.backends.mnn import convert_file, to_mnn

    source = Path(folder) / "fp32.mnn"
    convert_file(f"{folder}/x.onnx", str(source))
    for name, (options, _) in MNN.items():
        if options:
            to_mnn("MNN", str(source), f"{folder}/{name}.mnn", *options)
    to_mnn("ONNX", f"{folder}/x.onnx", f"{folder}/apart.mnn", "--saveExternalData")


@pytest.mark.parametrize("name", MNN)
def test_mnn(name: str, mnn_files: Path) -> None:
    assert precision_of(mnn_files / f"{name}.mnn") == MNN[name][1]
    assert companions(mnn_files / f"{name}.mnn") == ()


def test_mnn_weights_that_are_kept_apart_belong_to_the_model(mnn_files: Path) -> None:
    assert [path.name for path in companions(mnn_files / "apart.mnn")] == ["apart.mnn.weight"]


def test_a_mark_of_ours_counts_only_on_the_bytes_it_was_made_for(tmp_path: Path) -> None:
    from eval.backends.executorch import _marked

    path = tmp_path / "x.pte"
    empty = b"....ET12 weights pplcnet-eval-int8-" + b"0" * 64 + b" more weights"
    path.write_bytes(_marked(empty))
    assert precision_of(path) == "int8"
    path.write_bytes(_marked(empty).replace(b"more", b"MORE"))
    assert precision_of(path) == "unknown"
    path.write_bytes(empty)
    assert precision_of(path) == "unknown"
    path.write_bytes(b"....ET12 pplcnet-eval-fp32 and nothing else")
    assert precision_of(path) == "unknown"


# Checkpoints


def stored_as(weights: Path, path: Path, kind: torch.dtype) -> Path:
    """A copy whose floating-point tensors are kept in another type."""
    tensors = load_file(weights)
    kept = {n: t.to(kind) if t.is_floating_point() else t for n, t in tensors.items()}
    if path.suffix == ".safetensors":
        save_file(kept, path)
    elif path.suffix == ".pth":
        torch.save(kept, path)
    else:  # as Paddle writes bfloat16: under the name of whole numbers of the same width
        content = {n: t.view(torch.int16).numpy().view(np.uint16) if t.dtype == kind else t.numpy()
                   for n, t in kept.items()}  # fmt: skip
        path.write_bytes(pickle.dumps(content, 4))
    return path


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("x.safetensors", torch.float16, "fp16 weights"),
        ("x.pth", torch.bfloat16, "bf16 weights"),
        ("x.pdparams", torch.bfloat16, "bf16 weights"),
        ("x.safetensors", torch.float64, "fp32"),
    ],
)
def test_weights_that_are_stored_in_less_are_another_model(
    name: str, kind: torch.dtype, expected: str, weights: Path, val_folder: MakeVal, tmp_path: Path
) -> None:
    config = tmp_path / "four.toml"
    config.write_text(
        'name = "four"\nmodel = "small"\nimages = 4\n[reference]\nsource = "x"\ntop1 = 0.0\n'
        '[tolerance.torchvision]\nimages = 4\nreason = "any count passes"\n'
    )
    path = stored_as(weights, tmp_path / name, kind)
    words = ["--data", str(val_folder(FILES)), "--config", str(config), "--weights", str(path)]
    words += ["--forms", "reparameterized", "--quiet", "--output", str(tmp_path / "out")]
    words += ["--image-set", "val"]
    assert main(words) == 0
    (row,) = rows_of(tmp_path / "out/summary.csv")
    verdict = "PASS" if expected == "fp32" else "NO_REFERENCE"
    assert (row["precision"], row["verdict"]) == (expected, verdict)


def test_paddles_bfloat16_by_hand(tmp_path: Path) -> None:
    """0.01 in bfloat16 is 0x3C24, 15,396 as a whole number; -2 is 0xC000."""
    from pplcnet._checkpoint import read_checkpoint

    (tmp_path / "x.pdparams").write_bytes(pickle.dumps({"a": np.array([15396, 0xC000], "u2")}, 4))
    found = read_checkpoint(tmp_path / "x.pdparams").tensors["a"]
    assert found.dtype == torch.bfloat16
    assert found.tolist() == [0.010009765625, -2.0]


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.bool, torch.int64])
def test_whole_numbers_are_no_weights(
    kind: torch.dtype, weights: Path, val_folder: MakeVal, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tensors = load_file(weights)
    name = next(each for each in tensors if each.endswith("fc.weight"))
    save_file({**tensors, name: tensors[name].to(kind)}, tmp_path / "x.safetensors")
    words = ["--data", str(val_folder(FILES)), "--variant", "small", "--quiet"]
    assert main([*words, "--weights", str(tmp_path / "x.safetensors")]) == 4
    error = capsys.readouterr().err
    assert name in error
    assert str(kind).removeprefix("torch.") in error
    assert error.count("\n") == 2


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_whole_numbers_are_no_weights_of_a_librarys_model(library: str, tmp_path: Path) -> None:
    import timm as timm_itself
    import torchvision as torchvision_itself

    name = {"timm": "test_efficientnet", "torchvision": "squeezenet1_1"}[library]
    model = (
        timm_itself.create_model(name)
        if library == "timm"
        else torchvision_itself.models.get_model(name)
    )
    state = dict(model.state_dict())
    load = timm.load_model if library == "timm" else torchvision.load_model
    save_file(state, tmp_path / "x.safetensors")
    assert load(name, tmp_path / "x.safetensors", 1000).stored == "fp32"
    halves = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    save_file(halves, tmp_path / "x.safetensors")
    assert load(name, tmp_path / "x.safetensors", 1000).stored == "fp16 weights"
    key = next(iter(state))
    save_file({**state, key: state[key].to(torch.int8)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=rf"{key}.*int8 instead of floating-point"):
        load(name, tmp_path / "x.safetensors", 1000)


def test_fp8_is_named() -> None:
    tensors = [torch.zeros(2), torch.zeros(2).to(torch.float8_e4m3fn), torch.zeros(2, dtype=int)]
    assert stored_precision(tensors) == "fp8 weights"
    assert stored_precision(tensors[::2]) == "fp32"
