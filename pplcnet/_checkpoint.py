"""Read checkpoints as named tensors, without running any code in them."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import json
import pickle
import pickletools
import re
import struct
import threading
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pplcnet._entries import Checkpoint, choose
from pplcnet._errors import FETCH_AGAIN, SAVE_TENSORS, Refused, WeightsError, one_line, quoted
from pplcnet._folder import files_of
from pplcnet._inert import INERT
from pplcnet._pdparams import read_pdparams

SUFFIXES = (".pdparams", ".safetensors", ".pth", ".pt")

_MAX_BYTES = 2**32  # the largest PP-LCNetV2 takes 42 MB
_TORCH_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6
_SAFETENSORS_MAX_HEADER = 100_000_000  # the format's own limit
STORED_KEY = "pplcnet.stored"  # of a safetensors file: see `Checkpoint.stored`
_HDF5 = b"\x89HDF\r\n\x1a\n"
_ENTRIES = ("state_dict", "model", "model_state_dict", "net", "ema", "state_dict_ema", "model_ema")
KERAS = (
    "Export it for LiteRT (model.export(DIR), then tf.lite.TFLiteConverter.from_saved_model(DIR)) "
    "and give the .tflite."
)
_LOADING = threading.Lock()

# The exceptions that damaged bytes cause in the parsers: bad numbers and text (ValueError,
# struct.error), missing stack and table entries (LookupError), wrong types, impossible sizes.
_DAMAGE = (
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    RuntimeError,
    EOFError,
    struct.error,
    zipfile.BadZipFile,
    safetensors.SafetensorError,
)


def read_checkpoint(path: Path, entry: str = "") -> Checkpoint:
    """Read a checkpoint of any format; the content of a file decides which it is.

    Args:
        path: a file, or what `pplcnet._folder.files_of` takes; suffixes are only used in messages.
        entry: which of the models in it, see `pplcnet._entries.choose`; "" for the only one.

    Returns:
        Its tensors have the shapes and dtypes of the file: on the CPU, contiguous, in native byte
        order, each in its own memory.

    Raises:
        WeightsError: the file is missing, damaged, not a checkpoint, or would need to run code; or
            there are several models in it, and none of them is the wanted one.
    """
    paths = files_of(path)
    if len(paths) == 1:
        return _read(paths[0], entry)
    shards = [_read(each, "", whole=True) for each in paths]
    tensors = {name: tensor for shard in shards for name, tensor in shard.tensors.items()}
    if len(tensors) < sum(len(shard.tensors) for shard in shards):
        raise WeightsError(f"{path}: a tensor is in two shards.\n{FETCH_AGAIN}")
    try:
        return choose(tensors, entry)
    except Refused as refusal:
        raise WeightsError(f"{path}: {refusal.found}.\n{refusal.advice}") from None


def _read(path: Path, entry: str, *, whole: bool = False) -> Checkpoint:
    """A file; `whole`: all of its tensors as they are, since it is a part of a checkpoint."""
    data = _read_bytes(path)
    kind = kind_of(data[:512])
    try:
        reader = READERS.get(kind)
        if reader is None:
            raise Refused(*_not_weights(kind, path, data))
        with warnings.catch_warnings():  # the parsers warn about content that is refused below
            warnings.simplefilter("ignore")
            content = reader(data)
        if whole and isinstance(content, dict):
            found = Checkpoint(content)
        else:
            found = choose(content, entry)
        tensors = found.tensors
        if "torch" in kind:
            tensors = _plain_tensors(tensors, budget=4 * len(data))
        if not tensors:
            raise Refused("it contains no tensors", SAVE_TENSORS)
        _check_names(tensors)
        _refuse_complex(tensors)
        if quantized := next((name for name in tensors if name.endswith("zero_point")), ""):
            raise Refused(
                f"quantized weights of torch ({quoted(quantized)})",
                "Give the checkpoint from before the quantization, or export the quantized model "
                "to ONNX.",
            )
        stored = _mark(data) if kind == "safetensors file" else ""
        return replace(found, tensors=tensors, stored=stored)
    except Refused as refusal:
        raise WeightsError(f"{path}: {refusal.found}.\n{refusal.advice}") from None
    except _DAMAGE as error:
        digest = hashlib.sha256(data).hexdigest()
        raise WeightsError(
            f"{path}: truncated or damaged {kind} ({one_line(error)}; {len(data):,} bytes, "
            f"sha256 {digest[:16]}...).\n{FETCH_AGAIN}"
        ) from error


def read_values(path: Path) -> dict[str, Any]:
    """What torch.save wrote, be it weights or not: tensors, and lists of text.

    Args:
        path: of a file with a tensor, a list of tensors (batches), or a dict of tensors and lists.

    Returns:
        Tensors and lists of `str` by name; a tensor that is alone has the name "". Other entries
        are left out.

    Raises:
        WeightsError: the file is missing, damaged, or would need to run code.
    """
    data = _read_bytes(path)
    kind = kind_of(data[:512])
    try:
        if "torch" not in kind:
            raise Refused(f"not a file of torch.save ({kind})", "Save it as .npz.")
        content = _read_torch(data)
        entries = content if isinstance(content, dict) else {"": content}
        tensors, texts = {}, {}
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[str(name)] = value
            elif isinstance(value, list) and value and all(isinstance(v, Tensor) for v in value):
                batches = {str(number): batch for number, batch in enumerate(value)}
                parts = _plain_tensors(batches, budget=4 * len(data)).values()
                tensors[str(name)] = torch.cat(list(parts))
            elif isinstance(value, list) and all(isinstance(v, str) for v in value):
                texts[str(name)] = value
        return {**_plain_tensors(tensors, budget=4 * len(data)), **texts}
    except Refused as refusal:
        raise WeightsError(f"{path}: {refusal.found}.\n{refusal.advice}") from None
    except _DAMAGE as error:
        raise WeightsError(
            f"{path}: truncated or damaged {kind} ({one_line(error)}).\n{FETCH_AGAIN}"
        ) from error


def kind_of(head: bytes) -> str:
    """The kind of a file, in words, from its first bytes (512 are enough)."""
    if not head:
        return "empty file"
    # Checked first: the length that a safetensors file begins with can look like any other format.
    if int.from_bytes(head[:8], "little") <= _SAFETENSORS_MAX_HEADER and head[8:9] == b"{":
        return "safetensors file"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        return "web page"
    if head.startswith(b"version https://git-lfs"):
        return "git-lfs pointer"
    if head.startswith(b"PK\x03\x04"):
        return "torch archive"
    if head.startswith(_HDF5):
        return "HDF5 file"
    if head[0] == 0x80:  # the PROTO opcode, which begins pickles of protocol 2 and later
        return "old torch file" if _TORCH_MAGIC in head[:32] else "pickle"
    if not any(head[:16]) and head[20:21] == b"\x08":  # see `pplcnet._paddle_graph`
        return "Paddle's tensors"
    return "unknown file"


def _read_bytes(path: Path) -> bytes:
    if path.suffix == ".pdstates":
        raise WeightsError(
            f"{path}: what Paddle keeps of the training, without the weights.\n"
            f"Give the file beside it: {path.with_suffix('.pdparams')}"
        )
    try:
        if not path.exists():
            raise WeightsError(f"{path}: no such file.\n{_missing_advice(path)}")
        if not path.is_file():
            raise WeightsError(f"{path}: not a regular file.\n{FETCH_AGAIN}")
        with path.open("rb") as file:
            head = file.read(512)
            size = path.stat().st_size
            if kind_of(head) not in READERS:
                return head  # enough to say what it is
            if size > _MAX_BYTES:
                raise WeightsError(
                    f"{path}: {size:,} bytes; a PP-LCNetV2 checkpoint takes less than 50 million.\n"
                    "Use a file that contains only the weights."
                )
            return head + file.read()
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}.\nCheck the path.") from error


def _missing_advice(path: Path) -> str:
    try:
        there = [entry.name for entry in path.parent.iterdir() if entry.suffix in SUFFIXES]
    except OSError:
        there = []
    if str(path).startswith(("hf_hub:", "hf-hub:")):
        name = str(path).partition(":")[2]
        return f"A model of the hub is named as one: --model timm:{name.rpartition('/')[2]}"
    # PaddleClas names checkpoints without the suffix.
    close = [name for name in there if Path(name).stem == path.name]
    close = close or difflib.get_close_matches(path.name, there, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return hint + "Give the path of a checkpoint, or use --weights auto to download one."


def _not_weights(kind: str, path: Path, data: bytes) -> tuple[str, str]:
    if kind == "web page":
        return "a web page, not weights (perhaps the server's error or login page)", FETCH_AGAIN
    if kind == "git-lfs pointer":
        return "a git-lfs pointer, not the weights", "Run git lfs pull in its repository."
    if kind == "empty file":
        return "empty file", FETCH_AGAIN
    if kind == "HDF5 file":
        return "a Keras model (HDF5)", KERAS
    if kind == "Paddle's tensors":
        return "tensors without names, as .pdiparams and use_binary_format have them", (
            "Give the graph that belongs to them, inference.json or inference.pdmodel, or a state "
            "dict (paddle.save without use_binary_format)."
        )
    for (begin, magic), found, advice in _OTHER_KINDS:
        if data[begin:].startswith(magic):
            return found, advice
    for suffixes, found in _OTHER_SUFFIXES:
        if path.suffix.lower() in suffixes:
            return found, (
                "Run it there, and score what it predicts: python -m eval.score PREDICTIONS --data "
                "PATH; or give the checkpoint or ONNX file that it was made from."
            )
    graph = next((path.with_suffix(s) for s in (".xml", ".param") if path.suffix == ".bin"
                  and path.with_suffix(s).is_file()), None)  # fmt: skip
    if graph is not None:
        return "the tensors of an exported model", f"Give its graph: --weights {graph}"
    claim = f"not a {path.suffix} file" if path.suffix in SUFFIXES else "not a weights file"
    return f"{claim}: it begins with {quoted(data[:16])}", f"Supported: {', '.join(SUFFIXES)}."


# What else is taken for weights: where its first bytes are, what it is, and what to do.
_OTHER_KINDS = (
    ((0, b"\x93NUMPY"), "a NumPy array", "Save tensors by their names, as safetensors."),
    ((0, b"GGUF"), "a GGUF file, whose weights are quantized", "Give the weights it was made of."),
    ((0, b"\x1f\x8b"), "compressed with gzip", "Unpack it first: gunzip FILE"),
    ((4, b"TFL3"), "a model of LiteRT", "Name it .tflite, and add --backend litert."),
    ((1, b"\xa6params"), "weights of Flax (msgpack)", "Convert them to safetensors."),
)


_OTHER_SUFFIXES = (
    ((".engine", ".trt", ".plan"), "an engine of TensorRT"),
    ((".mlmodel", ".mlpackage"), "a model of Core ML"),
    ((".pb",), "a graph of TensorFlow"),
    ((".caffemodel",), "a model of Caffe"),
    ((".om",), "a model of Ascend's CANN"),
    ((".rknn",), "a model of Rockchip's NPU"),
    ((".ort",), "a model in ONNX Runtime's own format"),
    ((".dlc",), "a model of Qualcomm's SNPE"),
    ((".hef",), "a model of Hailo"),
)


def _check_names(tensors: Mapping[str, Tensor]) -> None:
    for name in tensors:
        if not name.isprintable():
            raise Refused(f"it contains a tensor with a bad name: {quoted(name)}", FETCH_AGAIN)


def _refuse_complex(tensors: Mapping[str, Tensor]) -> None:
    """Refuse complex tensors: converting them to float drops the imaginary parts with a warning."""
    for name, tensor in tensors.items():
        if tensor.is_complex():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise Refused(f"its tensor {quoted(name)} is {kind}; weights must be real numbers",
                          "Save the weights as float32.")  # fmt: skip


def _mark(data: bytes) -> str:
    """What a safetensors file of ours says about the weights that it was made from."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return quoted(str(header.get("__metadata__", {}).get(STORED_KEY, "")))[1:-1]


def _read_torch(data: bytes) -> object:
    program = _check_archive(data) if data.startswith(b"PK") else b""
    try:
        # The stand-ins are known to torch as long as this lasts, in all threads.
        with _LOADING, torch.serialization.safe_globals(list(INERT.values())):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(str(error), program) from error
    # torch does not document its exceptions for damaged files; a dozen types have been seen. They
    # all mean the same here, and only torch's code runs in this block.
    except Exception as error:
        raise ValueError(one_line(error)) from error


def _refusal(message: str, program: bytes) -> Refused:
    """One line from torch's long error message, and what can be done with this file.

    Args:
        message: torch's.
        program: the pickle; nothing of it is run.
    """
    names, words = _in_pickle(program)
    wanted = re.search(r"GLOBAL ([\w.]+)", message)
    is_module = any(name.startswith("torch.nn.modules.") for name in names)
    if is_module:
        found = "refused: a whole pickled module, which only its own code can load"
    elif wanted:
        found = f"refused: loading it would use {quoted(wanted[1])}"
    else:
        told = re.split(r"error:|trusted source\.", message.partition("Check the docu")[0])[-1]
        found = f"refused: torch.load rejects its content ({one_line(ValueError(told))})"
        return Refused(found, "Save it again with torch.save(model.state_dict(), FILE).")
    entry = next((f'["{word}"]' for word in words if word in _ENTRIES), "")
    state = ".state_dict()" if is_module else ""
    return Refused(
        f"{found}; nothing in it was run",
        "If you trust it, save its weights alone, where its code is installed: "
        f"torch.save(torch.load(FILE, weights_only=False){entry}{state}, NEW)",
    )


def _in_pickle(program: bytes) -> tuple[list[str], list[str]]:
    """The globals that a pickle names, and its strings, as far as it can be parsed."""
    names: list[str] = []
    words: list[str] = []
    with contextlib.suppress(*_DAMAGE):
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "GLOBAL":
                names.append(str(argument).replace(" ", "."))
            elif opcode.name == "BINUNICODE":
                words.append(str(argument))
    return names, words


def _check_archive(data: bytes) -> bytes:
    """Check the checksums that `torch.save` writes and `torch.load` ignores.

    Returns:
        The pickle in it.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        names = {entry.filename.rpartition("/")[2]: entry for entry in entries}
        if "constants.pkl" in names:
            raise Refused(
                "a TorchScript program, not weights",
                "Save its weights: torch.save(torch.jit.load(FILE).state_dict(), NEW)",
            )
        if "archive_format" in names and "data.pkl" not in names:
            raise Refused(
                "a torch.export program, not weights",
                "Save its weights: torch.save(torch.export.load(FILE).state_dict, NEW)",
            )
        if "model.weights.h5" in names:
            raise Refused("a Keras model", KERAS)
        if "data.pkl" not in names:
            if names and all(name.endswith(".npy") for name in names):
                raise Refused(
                    "arrays of NumPy (.npz)",
                    "Save them as tensors: torch.save({k: torch.from_numpy(v) for k, v in "
                    "numpy.load(FILE).items()}, NEW)",
                )
            inside = next((n for n in names if n.endswith((*SUFFIXES, ".ckpt", ".bin"))), "")
            if inside:
                raise Refused(f"a zip file with {quoted(inside)} in it", "Unpack it: unzip FILE")
            raise Refused("a zip file, but not one written by torch.save", FETCH_AGAIN)
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise Refused("a compressed zip file; torch.save does not compress", FETCH_AGAIN)
        if sum(entry.file_size for entry in entries) > len(data):
            raise ValueError("its entries are larger than the file")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {quoted(damaged)} is wrong")
        return archive.read(names["data.pkl"])


def _plain_tensors(state: Mapping[str, Tensor], budget: int) -> dict[str, Tensor]:
    """Copy the tensors into their own memory, at most `budget` bytes in all."""
    tensors = {}
    for name, value in state.items():
        exotic = value.is_quantized or value.is_nested or value.layout != torch.strided
        if exotic or value.device.type != "cpu":
            raise Refused(f"its entry {quoted(name)} is not a plain tensor", SAVE_TENSORS)
        # With stride 0, a tensor of any shape can be stored in a few bytes.
        budget -= value.numel() * value.element_size()
        if budget < 0:
            raise Refused("refused: its tensors are larger than the file", SAVE_TENSORS)
        plain = value.detach().resolve_conj().resolve_neg()
        tensors[name] = plain.clone(memory_format=torch.contiguous_format)
    return tensors


# Readers by the kind that `kind_of` returns; other kinds are not checkpoints.
READERS: dict[str, Callable[[bytes], object]] = {
    "pickle": read_pdparams,
    "safetensors file": safetensors.torch.load,
    "torch archive": _read_torch,
    "old torch file": _read_torch,
}
