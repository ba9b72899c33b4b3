"""Read Paddle's checkpoint format, `.pdparams`, without Paddle and without running code in a file.

The format (PaddlePaddle, ``python/paddle/framework/io.py`` and ``io_utils.py``) is a pickle of
``{name: ndarray}``, protocol 2 to 4. Paddle adds two entries:

- ``StructuredToParameterName@@``: Paddle's internal names, not needed elsewhere;
- ``UnpackBigParamInfor@@`` (PR #29988, protocols 2 and 3): how large arrays were split into flat
  pieces ``name@@.0``, ``name@@.1``, ...

Such a pickle needs about thirty opcodes and seven globals, and stand-ins for a few more
(`pplcnet._inert`). They are interpreted here, on top of
the standard library's parser (`pickletools.genops`). No name in a file ever becomes a Python
callable, and no number in it can make us allocate more memory than the file itself takes.
"""

from __future__ import annotations

import math
import pickletools
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplcnet._errors import FETCH_AGAIN, SAVE_TENSORS, Refused, quoted
from pplcnet._inert import INERT, Inert

_MAX_OPCODES = 200_000  # the largest PP-LCNetV2 takes 10,000
_NAME_TABLE = "StructuredToParameterName@@"
_SPLIT_TABLE = "UnpackBigParamInfor@@"


def read_pdparams(data: bytes) -> object:
    """Read a pickled dict of arrays, or of dicts of arrays.

    Args:
        data: the bytes of the file.

    Returns:
        What was pickled, with tensors in place of arrays, contiguous and in native byte order, with
        the shapes and dtypes of the file; uint16, in which Paddle keeps bfloat16, becomes that.
        Names that share an array in the file share a tensor here.

    Raises:
        Refused: the content would need to run code.
        ValueError, LookupError, TypeError, ...: the file is damaged.
    """
    return _Tensors(len(data)).of(_Unpickler(data).load())


class _Tensors:
    """Puts tensors in place of arrays; Paddle's own tables are used up, or dropped.

    Args:
        budget: how many bytes arrays that were split may take: a malicious file could use one piece
            many times.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._done: dict[int, dict[str, Any]] = {}  # by the identity of the dict that they are from

    def of(self, content: object) -> object:
        """The same, with tensors."""
        match content:
            case _Array(tensor=Tensor() as tensor) | (str(), _Array(tensor=Tensor() as tensor)):
                return tensor
            case dict() if id(content) in self._done:
                return self._done[id(content)]
            case dict():
                entries = self._done[id(content)] = {}
                for key, value in content.items():
                    if key not in (_NAME_TABLE, _SPLIT_TABLE):
                        entries[key] = self.of(value)
                self._join(entries, content.get(_SPLIT_TABLE, {}))
                return entries
        return content

    def _join(self, entries: dict[str, Any], split: object) -> None:
        """Rejoin the arrays that Paddle split into flat pieces."""
        if not isinstance(split, dict):
            raise TypeError("a table of pieces that is not a dict")
        for name, entry in split.items():
            match entry:
                case {"OriginShape": shape, "slices": list() as names}:
                    pieces = [entries.pop(_checked_name(piece)) for piece in names]
                    if not all(isinstance(piece, Tensor) for piece in pieces):
                        raise TypeError(f"pieces of {quoted(name)} that are no arrays")
                    self._budget -= sum(piece.nbytes for piece in pieces)
                    kinds = {piece.dtype for piece in pieces}
                    if name in entries or len(kinds) != 1 or self._budget < 0:
                        raise ValueError(f"pieces of {quoted(name)} that do not belong together")
                    entries[name] = torch.cat(pieces).reshape(_checked_shape(shape))
                case _:
                    raise TypeError(f"a malformed table of the pieces of {quoted(name)}")


class _Global(Enum):
    """The globals that a pickle may refer to."""

    NDARRAY = "ndarray"
    RECONSTRUCT = "_reconstruct"
    SCALAR = "scalar"
    DTYPE = "dtype"
    ENCODE = "encode"
    BYTES = "bytes"
    TUPLE = "tuple"
    DICT = "OrderedDict"
    INERT = "inert"  # see `pplcnet._inert`


_GLOBALS = {
    ("numpy", "ndarray"): _Global.NDARRAY,
    ("numpy", "dtype"): _Global.DTYPE,
    ("numpy.core.multiarray", "_reconstruct"): _Global.RECONSTRUCT,  # numpy 1
    ("numpy.core.multiarray", "scalar"): _Global.SCALAR,
    ("numpy._core.multiarray", "_reconstruct"): _Global.RECONSTRUCT,  # numpy 2
    ("numpy._core.multiarray", "scalar"): _Global.SCALAR,
    ("_codecs", "encode"): _Global.ENCODE,  # protocol 2 stores bytes as encoded text
    ("__builtin__", "bytes"): _Global.BYTES,  # ... and empty bytes as a call of bytes()
    ("__builtin__", "tuple"): _Global.TUPLE,  # Paddle 2.1: (name, array)
    ("builtins", "tuple"): _Global.TUPLE,
    ("collections", "OrderedDict"): _Global.DICT,
}

_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_ITEM_TYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class _DType:
    """Stands for a `numpy.dtype` while its pickle is read."""

    def __init__(self, spec: str) -> None:
        if spec not in _ITEM_TYPES:
            raise Refused(
                f"refused: it contains values of type {quoted(spec)}, which are not real numbers",
                SAVE_TENSORS,
            )
        self.spec = spec
        self.resolved: np.dtype[Any] | None = None

    def build(self, state: object) -> None:
        match state:
            case (3, ("<" | ">" | "|") as order, None, None, None, -1, -1, 0):
                self.resolved = np.dtype(f"{order}{self.spec}")
            case _:
                raise ValueError("a dtype with an unknown state")


class _Array:
    """Stands for a `numpy.ndarray` while its pickle is read."""

    def __init__(self) -> None:
        self.tensor: Tensor | None = None

    def build(self, shape: object, dtype: object, fortran: bool, raw: bytes) -> None:
        if not isinstance(dtype, _DType) or dtype.resolved is None:
            raise TypeError("an array without a dtype")
        shape = _checked_shape(shape)
        if math.prod(shape) * dtype.resolved.itemsize != len(raw):
            raise ValueError(f"{len(raw)} bytes for an array of shape {quoted(shape)}")
        array: np.ndarray[Any, Any] = np.ndarray(
            shape, dtype.resolved, buffer=raw, order="F" if fortran else "C"
        )
        native = array.astype(dtype.resolved.newbyteorder("="), order="C", copy=True)
        # Paddle has no other use for uint16: numpy has no bfloat16.
        if dtype.spec == "u2":
            self.tensor = torch.from_numpy(native.view(np.int16)).view(torch.bfloat16)
        else:
            self.tensor = torch.from_numpy(native)


def _checked_shape(shape: object) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise TypeError("an array without a shape")
    return shape


def _checked_name(name: object) -> str:
    if not isinstance(name, str):  # before hashing it: deeply nested tuples would take forever
        raise TypeError("a name that is not a string")
    return name


class _Unpickler:
    """Interprets a pickle of plain values and arrays; refuses every other opcode and global.

    Unlike `pickle.Unpickler` with a filtering `find_class`, it never has a callable in hand: a
    global is a member of `_Global`. Memo, keys and sizes cannot exhaust time or memory.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        # A file contains the bytes of each array once, either raw or as text to be encoded.
        self.budget = 2 * len(data)

    def load(self) -> object:
        position = 0
        for count, (opcode, arg, at) in enumerate(pickletools.genops(self.data)):
            if count > _MAX_OPCODES:
                raise Refused(f"refused: a pickle of over {_MAX_OPCODES:,} opcodes", SAVE_TENSORS)
            self._step(opcode.name, arg)
            position = at or 0
        if position + 1 != len(self.data):
            raise ValueError(f"{len(self.data) - position - 1} bytes after the end of the pickle")
        (result,) = self.stack
        return result

    def _step(self, name: str, arg: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO":
                if not 2 <= arg <= 4:
                    raise Refused(
                        f"a pickle of protocol {arg}, not 2 to 4", "Save it with protocol 4."
                    )
            case "FRAME" | "STOP":
                pass
            case _ if name in _LITERALS:
                stack.append(arg)
            case _ if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "MARK":
                self.marks.append(len(stack))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(name[-1]))))
            case "TUPLE":
                stack.append(tuple(self._pop_to_mark()))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND":
                self._extend(self._pop(1))
            case "APPENDS":
                self._extend(self._pop_to_mark())
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                self._update(self._pop(2))
            case "SETITEMS":
                self._update(self._pop_to_mark())
            case "EMPTY_SET":
                stack.append(Inert())
            case "ADDITEMS":
                self._extend(self._pop_to_mark())
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                self.memo[arg] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[arg])
            case "GLOBAL":
                stack.append(_find_global(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                stack.append(_find_global(*self._pop(2)))
            case "REDUCE":
                function, args = self._pop(2)
                stack.append(self._reduce(function, args))
            case "NEWOBJ" if stack[-2:-1] == [_Global.INERT]:
                self._pop(2)
                stack.append(Inert())
            case "BUILD":
                (state,) = self._pop(1)
                self._build(stack[-1], state)
            case _:
                raise Refused(f"refused: a pickle with the opcode {name}", SAVE_TENSORS)

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            raise IndexError("an opcode without its operands")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], Inert):
            return
        if type(self.stack[-1]) is not list:
            raise TypeError("items added to something that is not a list")
        self.stack[-1].extend(items)

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Inert):
            return
        if type(target) is not dict or len(items) % 2:
            raise TypeError("entries added to something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                raise Refused("refused: a dict with keys that are not strings", SAVE_TENSORS)
            if key in target:
                raise ValueError(f"{quoted(key)} appears twice")
            target[key] = value

    def _reduce(self, function: object, args: object) -> object:
        match function, args:
            case _Global.RECONSTRUCT, (_Global.NDARRAY, tuple(), bytes() | str()):
                return _Array()
            case _Global.DTYPE, (str() as spec, _, _):
                return _DType(spec)
            case _Global.SCALAR, (dtype, bytes() | str() as raw):
                array = _Array()
                array.build((), dtype, False, self._raw(raw))
                return array
            case _Global.ENCODE, (str() as text, "latin1"):
                return self._raw(text)
            case _Global.BYTES, ():
                return b""
            case _Global.TUPLE, (tuple() as items,):
                return items
            case _Global.DICT, ():
                return {}
            case _Global.INERT, tuple():
                return Inert()
            case _Global(), _:
                raise ValueError(f"{function.value} with unknown arguments")
            case _:
                raise TypeError("a call to something that cannot be called")

    def _build(self, target: object, state: object) -> None:
        match target, state:
            case Inert(), _:
                pass
            case _DType(), _:
                target.build(state)
            case _Array(), (1, shape, dtype, bool() as fortran, bytes() | str() as raw):
                target.build(shape, dtype, fortran, self._raw(raw))
            case _:
                raise TypeError("state set on something that has none")

    def _raw(self, raw: bytes | str) -> bytes:
        """The bytes of an array; Python 2 and protocol 2 store them as latin1 text."""
        self.budget -= len(raw)
        if self.budget < 0:
            raise Refused("refused: its arrays are larger than the file", SAVE_TENSORS)
        return raw.encode("latin1") if isinstance(raw, str) else raw


def _find_global(module: object, name: object) -> _Global:
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a global without a name")
    found = _GLOBALS.get((module, name))
    full = f"{module.replace('__builtin__', 'builtins')}.{name}"
    if found is None and full in INERT and "." not in name:
        return _Global.INERT
    if found is None and module == "torch._utils":
        raise Refused(
            "refused: a pickle of torch's tensors that torch.save did not write; nothing in it was "
            "run",
            "If you trust it, save it again: torch.save(pickle.load(open(FILE, 'rb')), NEW)",
        )
    if found is None:
        raise Refused(
            f"refused: loading it would use {quoted(f'{module}.{name}')}, which weights do not "
            "need; nothing in it was run",
            "Do not trust this file. " + FETCH_AGAIN,
        )
    return found
