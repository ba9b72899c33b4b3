"""Run a function in a process of its own.

Two kinds of work do not belong in the process that evaluates: converters, which print, change
global settings and may abort; and files from elsewhere, which can make a runtime crash or ask for
all the memory there is. In a child process each of these is an error with a message.

``python -m eval.backends.child`` reads one JSON object from stdin: ``function`` (``module:name``),
``arguments`` (its keywords) and ``result`` (the file to write the answer to).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval import errors
from eval.errors import EvalError, ModelError

SECONDS = 1800
SPARE = 48 << 30  # bytes of address space beyond the machine's memory; libraries reserve a lot


def call(what: str, function: str, *, seconds: int = SECONDS, **arguments: Any) -> Any:
    """Call a function in a child process.

    Args:
        what: what it does, for messages: ``m.tflite: LiteRT``.
        function: ``module:name``; it takes and returns what JSON can hold.
        seconds: after which it is ended.
        arguments: its keywords.

    Raises:
        EvalError: the error that the function raised.
        ModelError: it failed in another way: an exception, a crash, or no answer in time.
    """
    with tempfile.TemporaryDirectory(prefix="pplcnet-eval-") as folder:
        result = Path(folder) / "result.json"
        request = {"function": function, "arguments": arguments, "result": str(result)}
        try:
            done = subprocess.run(
                [sys.executable, "-m", "eval.backends.child"],
                input=json.dumps(request).encode(),
                capture_output=True,
                timeout=seconds,
                env={**environment(), "TMPDIR": folder},
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ModelError(f"{what} gave no answer within {seconds} seconds.") from None
        if not result.exists():
            raise ModelError(f"{what} crashed ({ending(done.returncode, done.stderr)}).")
        answer = json.loads(result.read_bytes())
    if "error" in answer:
        kind = getattr(errors, answer["error"], None)
        raise (kind or ModelError)(answer["message"] if kind else f"{what}: {answer['message']}")
    return answer["value"]


def environment() -> dict[str, str]:
    """That of a child process.

    What can be imported here can be imported there: a pickled model's own modules, too.
    """
    ours = str(Path(errors.__file__).parents[1])
    paths = [ours, *(path or str(Path.cwd()) for path in sys.path)]
    found = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **found}


def ending(code: int, printed: bytes) -> str:
    """How a process ended without an answer; `printed` is what it wrote to stderr."""
    if code < 0:
        return signal.Signals(-code).name
    lines = printed.decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else f"exit code {code}"


def main() -> None:
    """Answer the request on stdin."""
    request = json.load(sys.stdin)
    limit_memory()
    module, _, name = request["function"].partition(":")
    try:
        answer = {"value": getattr(importlib.import_module(module), name)(**request["arguments"])}
    except EvalError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except BaseException as error:  # converters exit, too
        answer = {"error": "", "message": first_line(error)}
    path = Path(request["result"])
    path.with_suffix(".part").write_text(json.dumps(answer), encoding="utf-8")
    path.with_suffix(".part").replace(path)
    sys.stdout.flush()
    os._exit(0)  # the answer is there: some runtimes crash when they are taken down


# What ONNX Runtime says before its reason: its own name, the path, and the C++ function.
_ONNX_RUNTIMES = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?"
    r"(/\S+:\d+ .*?\) +(?=[A-Z]))?"
    r"(ONNX Runtime only .* (?=Current official support))?"
)


def first_line(error: BaseException) -> str:
    """The kind of an error, and the first line of what it says that is of use."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    line = _ONNX_RUNTIMES.sub("", lines[0])
    return f"{type(error).__name__}: {line[:300]}"


def limit_memory() -> None:
    """Let an allocation that is out of all proportion fail, instead of filling the machine."""
    try:
        import resource

        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") + SPARE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    except (ImportError, AttributeError, OSError, ValueError):
        return  # not on this system: the kernel's own limits hold


if __name__ == "__main__":
    main()


_redirecting = threading.RLock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what native code prints while a runtime is imported or a graph loaded.

    It goes to the file descriptors themselves, past `sys.stdout`, and some of it to stdout, where
    the results belong. Only for moments: other threads' output of the same moment is lost, too.
    """
    with _redirecting:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = [(fd, os.dup(fd)) for fd in (1, 2)]
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            for fd, _ in kept:
                os.dup2(nowhere, fd)
            yield
        finally:
            _flush_native()
            for fd, copy in kept:
                os.dup2(copy, fd)
                os.close(copy)
            os.close(nowhere)


def _flush_native() -> None:
    """Write out what C's own buffers hold."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # the last one on Windows
        ctypes.CDLL(None).fflush(None)
