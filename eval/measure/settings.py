"""Settings of the process and its threads that predictions depend on.

They are set for an evaluation, checked at its end, and put back afterwards, whatever they were.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from eval.ambient import Setting, attribute, held
from eval.errors import UsageError
from eval.images.decoders import SETTINGS as DECODERS

_CHATTY = ("torch.onnx", "nncf", "onnxscript")  # loggers of exporters and quantizers
_AUTOCAST = ("cpu", "cuda", "xpu", "mps")

# Torch's switches of float32: a part that says "none" follows its backend, and that the whole.
_WHOLE, *_BACKENDS = (("generic", "all"), ("cuda", "all"), ("mkldnn", "all"))
_CONVOLUTIONS = (("cuda", "conv"), ("cuda", "rnn"))
_PRODUCTS = (("cuda", "matmul"), ("mkldnn", "matmul"))
_PARTS = (*_CONVOLUTIONS, *_PRODUCTS, ("mkldnn", "conv"), ("mkldnn", "rnn"))
_EXACT = "ieee"


def _new_switches() -> bool:
    """Whether this torch has them (since 2.9), beside ``allow_tf32`` and its like."""
    return hasattr(torch._C, "_get_fp32_precision_getter")


def _get(part: tuple[str, str]) -> str:
    return str(torch._C._get_fp32_precision_getter(*part))


def _set(part: tuple[str, str], value: str) -> None:
    torch._C._set_fp32_precision_setter(*part, value)


def _cudnn_allows_tf32() -> bool:
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # it contradicts the new switches
        return False


def _read_float32() -> dict[Any, Any]:
    """All switches of float32, old and new, so that `_write_float32` restores each of them.

    A switch that says "none" shows what it follows, and an old one that contradicts a new one
    cannot be read. So all are set to "none", from the whole to its parts, and read by the way.
    """
    if not _new_switches():
        return {
            "matmul": torch.get_float32_matmul_precision(),
            "cudnn": torch.backends.cudnn.allow_tf32,
        }
    found: dict[Any, Any] = {}
    shown = {part: _get(part) for part in _PARTS}
    for parts in ((_WHOLE,), _BACKENDS, _PARTS):
        found |= {part: _get(part) for part in parts}
        for part in parts:
            _set(part, "none")
    found["matmul"] = torch.get_float32_matmul_precision()
    for part in _CONVOLUTIONS:
        _set(part, "tf32")
    found["cudnn"] = _cudnn_allows_tf32()
    # A part that shows another value than its own has none: torch starts with TF32 convolutions
    # that follow the whole nevertheless.
    found |= {part: "none" for part in _PARTS if found[part] != shown[part]}
    _write_float32(found)
    return found


def _write_float32(values: Mapping[Any, Any]) -> None:
    if _new_switches():  # while they contradict the old ones, those cannot be set
        for part in (_WHOLE, *_BACKENDS, *_PARTS):
            _set(part, "none")
    torch.set_float32_matmul_precision(values["matmul"])
    torch.backends.cudnn.allow_tf32 = values["cudnn"]
    if _new_switches():
        for part in (_WHOLE, *_BACKENDS, *_PARTS):
            _set(part, values[part])


def _look_at_float32() -> dict[Any, Any]:
    """The switches as they are now, in the form of `_EXACT_FLOAT32`."""
    new = (_WHOLE, *_BACKENDS, *_PARTS) if _new_switches() else ()
    try:
        old = {
            "matmul": torch.get_float32_matmul_precision(),
            "cudnn": torch.backends.cudnn.allow_tf32,
        }
    except RuntimeError:  # they contradict the new ones
        old = {}
    return {**old, **{part: _get(part) for part in new}}


_EXACT_FLOAT32: dict[Any, Any] = {"matmul": "highest", "cudnn": False}
if _new_switches():
    _EXACT_FLOAT32 |= dict.fromkeys((_WHOLE, *_BACKENDS, *_PARTS), _EXACT)


class _Threads(Setting):
    """Torch's number of threads: of the process, and of each thread that has asked.

    oneDNN lays a model's weights out for it, and a batch of one takes five times as long on
    another: so it is set before any model is prepared.
    """

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it at one."""
        before = torch.get_num_threads()
        try:
            with super().held():
                torch.set_num_threads(1)
                yield
        finally:
            torch.set_num_threads(before)
            if self._users:  # the process's own number is that of whoever set one last
                other = threading.Thread(target=torch.set_num_threads, args=(1,))
                other.start()
                other.join()


def _level(name: str) -> Setting:
    """The level of a logger, put back: exporters and quantizers change it."""
    logger = logging.getLogger(name)
    return Setting(f"logging.{name}", None, lambda: logger.level, logger.setLevel)


def _read_deterministic() -> tuple[bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _write_deterministic(flags: tuple[bool, bool]) -> None:
    if flags != _read_deterministic():  # torch imports its compiler to write it, for a second
        torch.use_deterministic_algorithms(flags[0], warn_only=flags[1])


SETTINGS: tuple[Setting, ...] = (
    *DECODERS,
    Setting(
        "torch.backends.fp32_precision",
        _EXACT_FLOAT32,
        _read_float32,
        _write_float32,
        _look_at_float32,
    ),
    Setting(
        "torch.get_default_dtype", torch.float32, torch.get_default_dtype, torch.set_default_dtype
    ),
    Setting(
        "torch.use_deterministic_algorithms",
        (False, False),
        _read_deterministic,
        _write_deterministic,
    ),
    attribute("torch.backends.cudnn.enabled", torch.backends.cudnn, True),
    attribute("torch.backends.cudnn.benchmark", torch.backends.cudnn, False),
    attribute("torch.backends.cudnn.deterministic", torch.backends.cudnn, False),
    # What fp16 and bf16 sums are computed in: as torch starts.
    *(
        attribute(f"torch.backends.cuda.matmul.{name}", torch.backends.cuda.matmul, value)
        for name, value in (
            ("allow_fp16_reduced_precision_reduction", True),
            ("allow_bf16_reduced_precision_reduction", True),
            ("allow_fp16_accumulation", False),
        )
        if hasattr(torch.backends.cuda.matmul, name)  # some are newer than the oldest torch
    ),
    attribute("torch.backends.mkldnn.enabled", torch.backends.mkldnn, True),
    attribute("torch.backends.mkldnn.deterministic", torch.backends.mkldnn, False),
    _Threads("torch.set_num_threads", 1, torch.get_num_threads, torch.set_num_threads),
    Setting("torch.get_rng_state", None, torch.get_rng_state, torch.set_rng_state),
    *map(_level, _CHATTY),
)


@contextmanager
def exact_settings() -> Iterator[dict[str, Any]]:
    """Use exact float32, exact decoders and one thread per worker until the context ends.

    Everything is put back, torch's random state, too. Of several evaluations at once, the last to
    end puts it back.

    Yields:
        The settings, by name, for the reports.
    """
    with held(SETTINGS), _plain_thread():
        yield in_effect()


def in_effect() -> dict[str, Any]:
    """The settings of this process that the reports show, by name."""
    return {
        "cuda.matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn.benchmark": torch.backends.cudnn.benchmark,
        **({"fp32_precision": _get(_WHOLE)} if _new_switches() else {}),
        **_math_modes(),
        **freed_memory_kept(),
    }


def check_settings() -> None:
    """Check, inside `exact_settings`, that nobody has changed any of them."""
    changed = [setting.name for setting in SETTINGS if not setting.is_kept]
    if changed:
        raise UsageError(
            f"{', '.join(changed)} changed during the evaluation, so its results cannot be "
            "trusted.\nEvaluate in a process in which nothing else sets it."
        )


def enter_worker() -> None:
    """Prepare a thread that computes: no setting of its own may change what it computes.

    To be called once in each worker of an evaluation.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)  # inherited from the thread that started this one
    torch.set_grad_enabled(True)
    for device in _AUTOCAST:
        torch.set_autocast_enabled(device, False)


@contextmanager
def _plain_thread() -> Iterator[None]:
    """Torch's and numpy's settings of this thread as they are in a new one; put back afterwards."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(True))
        stack.enter_context(np.errstate(all="warn", under="ignore"))
        for device in filter(torch.is_autocast_enabled, _AUTOCAST):
            torch.set_autocast_enabled(device, False)
            stack.callback(partial(torch.set_autocast_enabled, device, True))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        smallest = sys.float_info.min
        # Put back even where it was off: some runtimes switch it on in the thread that calls them.
        stack.callback(partial(torch.set_flush_denormal, smallest / 2 == 0))
        torch.set_flush_denormal(False)
        yield


# In what oneDNN may compute float32, if the environment says so: torch's switches do not undo it.
_MATH = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
_PRECISIONS = {"BF16": "bf16", "F16": "fp16", "TF32": "tf32"}


def precision_in_effect(asked: str) -> tuple[str, str]:
    """What a computation in this precision may be computed in.

    Returns:
        The precision itself; or, for fp32 where the environment allows a lower one, that
        (``unknown`` if this package does not know it), with the assignment that does so.
    """
    for name, value in _math_modes().items():
        if asked == "fp32" and value.upper() != "STRICT":
            return _PRECISIONS.get(value.upper(), "unknown"), f"{name}={value}"
    return asked, ""


def _math_modes() -> dict[str, str]:
    """What the environment asks of oneDNN."""
    return {name: os.environ[name] for name in _MATH if os.environ.get(name)}


_MIB = 2**20


# Numbers from glibc's malloc.h, values in bytes, largest first: old versions refuse large ones.
_OPTIONS = {
    "M_MMAP_THRESHOLD": (-3, (1024 * _MIB, 32 * _MIB)),  # blocks up to this size are not mapped
    "M_TRIM_THRESHOLD": (-1, (2047 * _MIB,)),  # free memory that is kept
    "M_TOP_PAD": (-2, (64 * _MIB,)),  # fetched, and kept by a thread's arena, beyond what is needed
}


_in_effect: dict[str, int] = {}


def keep_freed_memory() -> dict[str, int]:
    """Raise glibc's thresholds, once for a process; with another C library, nothing is done.

    Returns:
        What was set, in bytes, by the name of the option.
    """
    if not _in_effect and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for name, (number, values) in _OPTIONS.items():
            accepted = next((value for value in values if mallopt(number, value) == 1), None)
            if accepted is not None:
                _in_effect[name] = accepted
    return freed_memory_kept()


def give_back_freed_memory() -> None:
    """Return what `keep_freed_memory` has kept so far: making a model frees more than it keeps."""
    if _in_effect:
        ctypes.CDLL(None).malloc_trim(0)


def freed_memory_kept() -> dict[str, int]:
    """What `keep_freed_memory` has set in this process."""
    return dict(_in_effect)
