"""Exported files: the kinds there are, what belongs to them, and the precision of each."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from eval.backends import BACKENDS, missing_extra
from eval.errors import ModelError

if TYPE_CHECKING:
    pass


T = TypeVar("T")


UNKNOWN = "unknown"  # precision of a file that does not say


class Format(NamedTuple):
    """One kind of exported file.

    Attributes:
        title: what it is called.
        starts: whether a file begins as its format does; given its first `_HEAD` bytes.
        beside: the other files of a model of this kind.
        precision: ``fp32``, ``fp16``, ``int8`` or `UNKNOWN`, from the file.
    """

    title: str
    starts: Callable[[bytes], bool]
    beside: Callable[[Path], tuple[Path, ...]]
    precision: Callable[[Path], str]


_HEAD = 64


def _alone(_path: Path) -> tuple[Path, ...]:
    return ()


def _with_bin(path: Path) -> tuple[Path, ...]:
    return (path.with_suffix(".bin"),)


def _external_data(path: Path) -> tuple[Path, ...]:
    """The files that tensors of an ONNX graph are kept in: the graph names them."""
    data = path.read_bytes()
    if b"location" not in data:  # the key under which a file is named
        return ()
    try:
        import onnx
        from onnx.external_data_helper import ExternalDataInfo, uses_external_data
    except ImportError as error:
        raise missing_extra("onnxruntime", "onnx", error) from error
    try:
        model = onnx.load_model_from_string(data)
    except Exception:  # damaged: the runtime says so
        return ()
    attributes = [a for node in model.graph.node for a in node.attribute]
    tensors = [*model.graph.initializer, *(a.t for a in attributes if a.HasField("t"))]
    names = {ExternalDataInfo(t).location for t in tensors if uses_external_data(t)}
    return tuple(path.parent / name for name in sorted(names))


def _onnx_precision(path: Path) -> str:
    return "int8" if b"QuantizeLinear" in path.read_bytes() else "fp32"


def _openvino_precision(path: Path) -> str:
    data = path.read_bytes()
    if b'type="FakeQuantize"' in data or b'element_type="i8"' in data:
        return "int8"
    return "fp16" if re.search(rb'element_type="f16"', data) else "fp32"


def _litert_precision(path: Path) -> str:
    from eval.backends import check_installed
    from eval.backends.child import quiet

    check_installed("litert")
    from eval.backends.litert import LiteRtGraph

    check_file(path)
    try:
        with quiet():
            return LiteRtGraph(path).precision
    except (ValueError, RuntimeError):  # damaged: the probe says so, with the reason
        return UNKNOWN


def _ncnn_precision(path: Path) -> str:
    """``8=`` is the int8 scale of a layer; halves are marked where the weights begin."""
    layers = r"^(?:Convolution|ConvolutionDepthWise|InnerProduct)\b.* 8=[1-9]"
    if re.search(layers, path.read_text("utf-8", errors="replace"), re.MULTILINE):
        return "int8"
    try:
        with path.with_suffix(".bin").open("rb") as file:
            tag = int.from_bytes(file.read(4), "little")
    except OSError:
        return UNKNOWN
    return {0x01306B47: "fp16", 0x0002C056: "fp32", 0: "fp32"}.get(tag, UNKNOWN)


def _marked(path: Path) -> str:
    """What `eval.export` has left in a file of a format that does not say it."""
    found = re.search(rb"pplcnet-eval-(fp32|fp16|int8)", path.read_bytes())
    return found[1].decode() if found else UNKNOWN


FORMATS = {
    ".onnx": Format("ONNX", lambda head: head[:1] in b"\x08\x12\x1a", _external_data,
                    _onnx_precision),
    ".xml": Format("OpenVINO", lambda head: head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"),
                   _with_bin, _openvino_precision),
    ".tflite": Format("LiteRT", lambda head: head[4:8] == b"TFL3", _alone, _litert_precision),
    ".param": Format("ncnn", lambda head: head.split(maxsplit=1)[:1] == [b"7767517"], _with_bin,
                     _ncnn_precision),
    ".mnn": Format("MNN", lambda head: 8 <= int.from_bytes(head[:4], "little") < 1 << 31, _alone,
                   _marked),
    ".pte": Format("ExecuTorch", lambda head: re.match(rb"ET\d\d", head[4:8]) is not None, _alone,
                   _marked),
}  # fmt: skip


# Suffix to the backends that run it, the default first.
RUNTIMES = {
    suffix: tuple(
        sorted(
            (name for name, row in BACKENDS.items() if suffix in row.suffixes),
            key=lambda name: BACKENDS[name].suffixes.index(suffix),
        )
    )
    for suffix in FORMATS
}


def is_exported(path: str | Path) -> bool:
    """Whether a weights file is a graph of its own."""
    return Path(path).suffix.lower() in FORMATS


def check_file(path: Path) -> None:
    """Refuse a file that is not of the kind that its name says, or whose other files are missing.

    Raises:
        ModelError: see above.
    """
    kind = _format(path)
    head = _readable(path, _head)
    if not head or not kind.starts(head):
        found = f"not a valid {kind.title} file" if head else "empty"
        raise ModelError(
            f"{path} is {found}: no runtime can load it.\n"
            "Export the model again, or get an intact copy."
        )
    for beside in companions(path):
        if not beside.is_file():
            raise ModelError(
                f"{path} keeps its weights in {beside.name}, which is not beside it.\n"
                "Copy all files of the model into one folder."
            )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def companions(path: Path) -> tuple[Path, ...]:
    """The other files of an exported model: all that its runtime reads besides `path`.

    Raises:
        ModelError: the file cannot be read.
    """
    return _readable(path, _format(path).beside)


def files_of(path: Path) -> tuple[Path, ...]:
    """Every file that an exported model consists of."""
    return (path, *companions(path))


def size_of(path: Path) -> int:
    """Size of all files of the model, in bytes."""
    return sum(file.stat().st_size for file in files_of(path) if file.exists())


def precision_of(path: Path) -> str:
    """``int8`` for a quantized model, ``fp16`` for one whose weights are halves, else ``fp32``.

    Found in the file: the operators, the types or the marks that quantizers leave. `UNKNOWN` where
    a format does not show it; such a file is measured, but not judged.

    Raises:
        ModelError: it cannot be read.
    """
    return _readable(path, _format(path).precision)


def _format(path: Path) -> Format:
    return FORMATS[path.suffix.lower()]


def _readable(path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except OSError as error:
        raise ModelError(
            f"--weights {path} cannot be read: {error.strerror or error}.\nGive an exported file."
        ) from error


# What can be written: its backend, and the ending of the file.
EXPORTS = {
    "onnx": ("onnxruntime", ".onnx"),
    "openvino": ("openvino", ".xml"),
    "litert": ("litert", ".tflite"),
    "ncnn": ("ncnn", ".ncnn.param"),
    "mnn": ("mnn", ".mnn"),
    "executorch": ("executorch", ".pte"),
}
