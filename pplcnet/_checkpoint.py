"""Read checkpoints as named tensors, without running any code in them."""

from __future__ import annotations

import difflib
import hashlib
import io
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pplcnet._errors import FETCH_AGAIN, SAVE_TENSORS, Refused, WeightsError, one_line, quoted
from pplcnet._pdparams import read_pdparams

SUFFIXES = (".pdparams", ".safetensors", ".pth", ".pt")

_MAX_BYTES = 2**32  # the largest PP-LCNetV2 takes 42 MB
_TORCH_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6
_SAFETENSORS_MAX_HEADER = 100_000_000  # the format's own limit
_WRAPPERS = ("state_dict", "state_dict_ema", "model", "model_ema")


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


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a `.pdparams`, `.safetensors` or `.pth`/`.pt` file; its content decides which it is.

    Args:
        path: the file; its suffix is only used in messages.

    Returns:
        Tensors by their names in the file, with the shapes and dtypes they have there: on the CPU,
        contiguous, in native byte order, each in its own memory. If every name begins with
        `module.`, that prefix is removed.

    Raises:
        WeightsError: the file is missing, damaged, not a checkpoint, or would need to run code.
    """
    data = _read_bytes(path)
    kind = kind_of(data[:512])
    try:
        reader = READERS.get(kind)
        if reader is None:
            raise Refused(*_not_weights(kind, path, data))
        with warnings.catch_warnings():  # the parsers warn about content that is refused below
            warnings.simplefilter("ignore")
            tensors = _without_ddp_prefix(reader(data))
        if not tensors:
            raise Refused("it contains no tensors", SAVE_TENSORS)
        _refuse_complex(tensors)
        return tensors
    except Refused as refusal:
        raise WeightsError(f"{path}: {refusal.found}.\n{refusal.advice}") from None
    except _DAMAGE as error:
        digest = hashlib.sha256(data).hexdigest()
        raise WeightsError(
            f"{path}: truncated or damaged {kind} ({one_line(error)}; {len(data):,} bytes, "
            f"sha256 {digest[:16]}...).\n{FETCH_AGAIN}"
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
    if head[0] == 0x80:  # the PROTO opcode, which begins pickles of protocol 2 and later
        return "old torch file" if _TORCH_MAGIC in head[:32] else "pickle"
    return "unknown file"


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise WeightsError(f"{path}: this is a folder.\nGive the path of the file in it.")
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
    close = difflib.get_close_matches(path.name, there, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return hint + "Give the path of a checkpoint, or use --weights auto to download one."


def _not_weights(kind: str, path: Path, data: bytes) -> tuple[str, str]:
    if kind == "web page":
        return "a web page, not weights (perhaps the server's error or login page)", FETCH_AGAIN
    if kind == "git-lfs pointer":
        return "a git-lfs pointer, not the weights", "Run git lfs pull in its repository."
    if kind == "empty file":
        return "empty file", FETCH_AGAIN
    claim = f"not a {path.suffix} file" if path.suffix in SUFFIXES else "not a weights file"
    return f"{claim}: it begins with {quoted(data[:16])}", f"Supported: {', '.join(SUFFIXES)}."


def _without_ddp_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for name in tensors:
        if not name.isprintable():
            raise Refused(f"it contains a tensor with a bad name: {quoted(name)}", FETCH_AGAIN)
    if all(name.startswith("module.") for name in tensors):  # DistributedDataParallel
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _refuse_complex(tensors: dict[str, Tensor]) -> None:
    """Refuse complex tensors: converting them to float drops the imaginary parts with a warning."""
    for name, tensor in tensors.items():
        if tensor.is_complex():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise Refused(f"its tensor {quoted(name)} is {kind}; weights must be real numbers",
                          "Save the weights as float32.")  # fmt: skip


def _read_torch(data: bytes) -> dict[str, Tensor]:
    if data.startswith(b"PK"):
        _check_archive(data)
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(str(error)) from error
    # torch does not document its exceptions for damaged files; a dozen types have been seen. They
    # all mean the same here, and only torch's code runs in this block.
    except Exception as error:
        raise ValueError(one_line(error)) from error
    return _plain_tensors(_unwrapped(content), budget=4 * len(data))


def _refusal(message: str) -> Refused:
    """One line from torch's long error message."""
    wanted = re.search(r"GLOBAL ([\w.]+)", message)
    if wanted:
        found = f"refused: loading it would use {quoted(wanted[1])}; nothing in it was run"
    else:
        told = re.split(r"error:|trusted source\.", message.partition("Check the docu")[0])[-1]
        found = f"refused: torch.load rejects its content ({one_line(ValueError(told))})"
    return Refused(found, SAVE_TENSORS)


def _check_archive(data: bytes) -> None:
    """Check the checksums that `torch.save` writes and `torch.load` ignores."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        names = [entry.filename.rpartition("/")[2] for entry in entries]
        if "data.pkl" not in names:
            raise Refused("a zip file, but not one written by torch.save", FETCH_AGAIN)
        if "constants.pkl" in names:
            raise Refused("a TorchScript program, not weights", SAVE_TENSORS)
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise Refused("a compressed zip file; torch.save does not compress", FETCH_AGAIN)
        if sum(entry.file_size for entry in entries) > len(data):
            raise ValueError("its entries are larger than the file")
        damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {quoted(damaged)} is wrong")


def _unwrapped(content: object) -> dict[Any, Any]:
    """The state dict; training scripts often store it as one entry of a larger dict."""
    if not isinstance(content, dict):
        raise Refused(f"it contains a {type(content).__name__}, not a state dict", SAVE_TENSORS)
    wrapped = [key for key in _WRAPPERS if isinstance(content.get(key), dict)]
    if len(wrapped) > 1:
        raise Refused(
            f"it contains {' and '.join(wrapped)}, which may differ", "Save only one of them."
        )
    return content[wrapped[0]] if wrapped else content


def _plain_tensors(state: dict[Any, Any], budget: int) -> dict[str, Tensor]:
    """Copy the tensors into their own memory, at most `budget` bytes in all."""
    tensors = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise Refused("a dict with keys that are not strings", SAVE_TENSORS)
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise Refused(f"its entry {quoted(name)} has type {kind}, not a tensor", SAVE_TENSORS)
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
READERS: dict[str, Callable[[bytes], dict[str, Tensor]]] = {
    "pickle": read_pdparams,
    "safetensors file": safetensors.torch.load,
    "torch archive": _read_torch,
    "old torch file": _read_torch,
}
