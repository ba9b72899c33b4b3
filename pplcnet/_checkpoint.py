"""Weights files into named tensors, without running anything that is in them."""

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

_MAX_BYTES = 2**32  # the largest of these models takes 42 MB
_TORCH_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6
_SAFETENSORS_MAX_HEADER = 100_000_000  # the format's own limit
_WRAPPERS = ("state_dict", "state_dict_ema", "model", "model_ema")


# What parsing damaged bytes raises: bad numbers and text (ValueError, struct.error), stacks and
# tables without the entry (LookupError), values of the wrong type, and sizes beyond memory.
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
    """Read `.pdparams`, `.safetensors` or `.pth`/`.pt`, told apart by content.

    Args:
        path: the file; its suffix serves only in messages.

    Returns:
        Name in the file to tensor, of the shape and dtype in the file: on the CPU, contiguous,
        in native byte order, in memory of its own. `module.` before every name is removed.

    Raises:
        WeightsError: missing, damaged, not a weights file, or asking for code to be run.
    """
    data = _read_bytes(path)
    kind = kind_of(data[:512])
    try:
        reader = READERS.get(kind)
        if reader is None:
            raise Refused(*_not_weights(kind, path, data))
        with warnings.catch_warnings():  # the parsers' own, about what is refused below anyway
            warnings.simplefilter("ignore")
            tensors = _without_ddp_prefix(reader(data))
        if not tensors:
            raise Refused("it holds no tensors", SAVE_TENSORS)
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
    """Name what a file is by its first bytes (512 are enough)."""
    if not head:
        return "empty file"
    # First, as the length that it begins with may look like anything.
    if int.from_bytes(head[:8], "little") <= _SAFETENSORS_MAX_HEADER and head[8:9] == b"{":
        return "safetensors file"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        return "web page"
    if head.startswith(b"version https://git-lfs"):
        return "git-lfs pointer"
    if head.startswith(b"PK\x03\x04"):
        return "torch archive"
    if head[0] == 0x80:  # PROTO, with which protocol 2 and later begin
        return "old torch file" if _TORCH_MAGIC in head[:32] else "pickle"
    return "unknown file"


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise WeightsError(f"{path}: a folder.\nName the weights file in it.")
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
                    f"{path}: {size:,} bytes; weights of this family take less than 50 million.\n"
                    "Name the file that holds only the weights."
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
    return hint + "Give the path of a weights file, or --weights auto to download them."


def _not_weights(kind: str, path: Path, data: bytes) -> tuple[str, str]:
    if kind == "web page":
        return "a web page, not weights (the server sent an error or log-in page)", FETCH_AGAIN
    if kind == "git-lfs pointer":
        return "a git-lfs pointer, not the weights that it stands for", "Run git lfs pull there."
    if kind == "empty file":
        return "empty file", FETCH_AGAIN
    claim = f"not a {path.suffix} file" if path.suffix in SUFFIXES else "not a weights file"
    return f"{claim}: it begins with {quoted(data[:16])}", f"Readable are {', '.join(SUFFIXES)}."


def _without_ddp_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for name in tensors:
        if not name.isprintable():
            raise Refused(f"it holds a tensor by the name of {quoted(name)}", FETCH_AGAIN)
    if all(name.startswith("module.") for name in tensors):  # DistributedDataParallel
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _refuse_complex(tensors: dict[str, Tensor]) -> None:
    """A conversion to float would drop the imaginary parts, and only warn."""
    for name, tensor in tensors.items():
        if tensor.is_complex():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise Refused(f"its tensor {quoted(name)} is {kind}; weights are real numbers",
                          "Save the weights as float32.")  # fmt: skip


def _read_torch(data: bytes) -> dict[str, Tensor]:
    if data.startswith(b"PK"):
        _check_archive(data)
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(str(error)) from error
    # torch documents no exceptions for damaged files, which have raised a dozen types. They all
    # mean the same here, and nothing of ours runs in this block.
    except Exception as error:
        raise ValueError(one_line(error)) from error
    return _plain_tensors(_unwrapped(content), budget=4 * len(data))


def _refusal(message: str) -> Refused:
    """What torch says in half a page, in a line."""
    wanted = re.search(r"GLOBAL ([\w.]+)", message)
    if wanted:
        found = f"refused: the file asks for {quoted(wanted[1])}; nothing of it was run"
    else:
        told = re.split(r"error:|trusted source\.", message.partition("Check the docu")[0])[-1]
        found = f"refused: not plain tensors to torch.load ({one_line(ValueError(told))})"
    return Refused(found, SAVE_TENSORS)


def _check_archive(data: bytes) -> None:
    """Check the sums that `torch.save` writes and `torch.load` does not look at."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        names = [entry.filename.rpartition("/")[2] for entry in entries]
        if "data.pkl" not in names:
            raise Refused("a zip file, but not one that torch.save has written", FETCH_AGAIN)
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
    """The state dict, which training scripts like to keep as one entry among others."""
    if not isinstance(content, dict):
        raise Refused(f"it holds a {type(content).__name__}, not a state dict", SAVE_TENSORS)
    wrapped = [key for key in _WRAPPERS if isinstance(content.get(key), dict)]
    if len(wrapped) > 1:
        raise Refused(
            f"it holds {' and '.join(wrapped)}, which may differ", "Save the one that you mean."
        )
    return content[wrapped[0]] if wrapped else content


def _plain_tensors(state: dict[Any, Any], budget: int) -> dict[str, Tensor]:
    """Tensors in memory of their own; `budget` is the most that they may take, in bytes."""
    tensors = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise Refused("a dict whose keys are not names", SAVE_TENSORS)
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise Refused(
                f"its entry {quoted(name)} is of the type {kind}, not a tensor", SAVE_TENSORS
            )
        exotic = value.is_quantized or value.is_nested or value.layout != torch.strided
        if exotic or value.device.type != "cpu":
            raise Refused(f"its entry {quoted(name)} is not a plain tensor", SAVE_TENSORS)
        # A tensor may claim any shape by repeating its values (stride 0).
        budget -= value.numel() * value.element_size()
        if budget < 0:
            raise Refused("refused: its tensors are larger than the file", SAVE_TENSORS)
        plain = value.detach().resolve_conj().resolve_neg()
        tensors[name] = plain.clone(memory_format=torch.contiguous_format)
    return tensors


# By what `kind_of` says; other kinds are not weights.
READERS: dict[str, Callable[[bytes], dict[str, Tensor]]] = {
    "pickle": read_pdparams,
    "safetensors file": safetensors.torch.load,
    "torch archive": _read_torch,
    "old torch file": _read_torch,
}
