"""Paddle Inference on the CPU, the runtime that PP-LCNetV2 was published in.

Paddle is never imported into the process that evaluates: that would change the root logger, the
handlers of signals and the environment. Its ``run`` holds the interpreter's lock, and a predictor
that two threads use gives wrong answers without an error. So each worker has a process of its own
with one predictor in it (``python -m eval.backends.paddle``). It ends with the evaluation, however
that ends: the system ends it as soon as nobody holds the other end of its stderr.

Paddle runs a graph without its weights, a file that is a byte short, and operators that write
files. So our own reader has to accept both files first: see `check`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eval.backends import child
from eval.backends.formats import in_original, name_of
from eval.backends.precision import UNKNOWN
from eval.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from eval.backends.session import Compute, Session
    from eval.backends.signature import Feed

SETTINGS: dict[str, Any] = {"paddle.processes": "one per worker"}
SECONDS = 900  # to load a model, or for a batch
_CACHED_SHAPES = 2  # batch sizes whose oneDNN kernels are kept: memory grows with each


def sources(model: nn.Module, folder: Path, _batches: Sequence[int], size: int) -> dict[int, Path]:
    """A torch model as an inference model for every batch size."""
    from pplcnet import PPLCNetV2
    from pplcnet._paddle_export import Export

    if not isinstance(model, PPLCNetV2) or any(each.training for each in model.modules()):
        raise ModelError(
            f"--backend paddle: this {type(model).__name__} cannot be exported to Paddle; only "
            "PP-LCNetV2 can.\nUse another backend."
        )
    return {0: Export(model, size=size).save(folder)}


def begins(head: bytes) -> bool:
    """Whether a file may be a graph; see `eval.backends.session`."""
    return head[:1] in (b"{", b"\n")


def companions(path: Path) -> tuple[Path, ...]:
    """The parameters; see `eval.backends.session`."""
    return (path.with_suffix(".pdiparams"),)


def check(path: Path) -> None:
    """Refuse a model that is not whole and finite, or has operators of unknown effect."""
    from pplcnet import WeightsError
    from pplcnet._paddle_graph import read_graph

    try:
        read_graph(path)
    except WeightsError as error:
        raise ModelError(in_original(str(error), path)) from error


def precision(path: Path) -> str:
    """From the types of its tensors; see `eval.backends.session`."""
    import torch

    from pplcnet import WeightsError
    from pplcnet._paddle_graph import read_graph

    try:
        found = {tensor.dtype for tensor in read_graph(path).parameters.values()}
    except WeightsError:  # `check` says why
        return UNKNOWN
    return "fp32" if found == {torch.float32} else UNKNOWN


def load(source: Path, how: Compute) -> PaddleGraph:
    """See `eval.backends.session`."""
    return PaddleGraph(source, how)


class PaddleGraph:
    """An inference model, in as many processes as it has sessions.

    Attributes:
        settings: what Paddle was told, as it says itself.
    """

    layout = "NCHW"
    # What the network takes and gives; one batch is tried before a model is used.
    inputs = (("float", [None, 3, None, None]),)
    outputs = (("float", [None, None]),)

    def __init__(self, source: Path, how: Compute) -> None:
        self._source, self._threads = source, how.threads
        first = _Process(source, how.threads)
        self.settings = first.settings()
        self._first = [first]

    def session(self, _feed: Feed, _batch: int) -> Session:
        """A process of its own."""
        process = self._first.pop() if self._first else _Process(self._source, self._threads)
        return process.run


class _Process:
    """A process with one predictor, which loads while others do."""

    def __init__(self, source: Path, threads: int) -> None:
        self._name = name_of(source)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "eval.backends.paddle", str(source), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,  # nothing but why it ended: see `_end_with_parent`
            env=child.environment(),
        )
        self._settings: dict[str, Any] = {}
        weakref.finalize(self, _end, self._process)

    def settings(self) -> dict[str, Any]:
        """What Paddle was told; waits until the model is loaded."""
        if not self._settings:
            self._settings = self._received("load it")[0]["settings"]
        return self._settings

    def run(self, images: NDArray[Any]) -> NDArray[Any]:
        """Float32 images (B, 3, H, W) to what the graph gives, (B, classes)."""
        self.settings()
        assert self._process.stdin is not None
        # A process that has ended shows when its answer is read.
        with contextlib.suppress(BrokenPipeError):
            _send(self._process.stdin, {"shape": images.shape}, images)
        head, data = self._received("compute an image")
        return np.frombuffer(data, np.float32).reshape(head["shape"])

    def _received(self, what: str) -> tuple[dict[str, Any], bytes]:
        assert self._process.stdout is not None
        answer = _receive(self._process.stdout)
        if answer is None:
            assert self._process.stderr is not None
            how = child.ending(self._process.wait(), self._process.stderr.read())
            late = how == "SIGALRM"
            reason = f"no answer within {SECONDS} seconds" if late else f"it ended with {how}"
            raise ModelError(
                f"{self._name}: Paddle's process did not {what}: {reason}.\n"
                "What was measured is kept: the same command with the same --output continues."
            )
        if "error" in answer[0]:
            raise ModelError(
                f"{self._name}: Paddle cannot {what} ({answer[0]['error']}).\n"
                "Export the model again, or use --backend torch."
            )
        return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, whatever it does."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError):
            if stream is not None:
                stream.close()


def _send(stream: IO[bytes], head: dict[str, Any], array: NDArray[Any] | None = None) -> None:
    """A message: a line of JSON, and the bytes of an array."""
    data = memoryview(b"") if array is None else np.ascontiguousarray(array).data.cast("B")
    stream.write(json.dumps({**head, "bytes": len(data)}).encode() + b"\n")
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """A message; None where the other side has ended."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    head: dict[str, Any] = json.loads(line)
    data = stream.read(head["bytes"])
    return (head, data) if len(data) == head["bytes"] else None


# ---------------------------------------------------------------- in the process itself


def main() -> None:
    """Load the model that the command line names; then an answer for each batch on stdin."""
    graph, threads = Path(sys.argv[1]), int(sys.argv[2])
    _end_with_parent(os.dup(2))
    answers = os.fdopen(os.dup(1), "wb")
    for printed in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), printed)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the evaluation's to handle
    child.limit_memory()
    try:
        with _deadline():
            predictor, settings = _predictor(graph, threads)
        _send(answers, {"settings": settings})
        while (request := _receive(sys.stdin.buffer)) is not None:
            head, data = request
            with _deadline():
                answer = _answer(predictor, np.frombuffer(data, np.float32).reshape(head["shape"]))
            _send(answers, {"shape": answer.shape}, answer)
    except BrokenPipeError:  # nobody is there any more
        pass
    except Exception as error:
        with contextlib.suppress(BrokenPipeError):
            _send(answers, {"error": child.first_line(error)})
    os._exit(0)


def _end_with_parent(pipe: int) -> None:
    """Let the system end this process once the other end of a pipe is closed, whatever it does.

    Its stdin ends then, too, but Paddle may never return, and lets no other thread run.
    """
    try:
        import fcntl
        import select

        fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(pipe, fcntl.F_SETFL, os.O_ASYNC)  # SIGIO, which ends a process
    except (ImportError, OSError):  # not on this system
        return
    poll = select.poll()
    poll.register(pipe, select.POLLERR)
    if any(event & select.POLLERR for _, event in poll.poll(0)):  # it is closed already
        os._exit(0)


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    """End this process if something takes too long, even where nobody waits for it any more."""
    if not hasattr(signal, "alarm"):  # not on this system
        yield
        return
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)


def _predictor(graph: Path, threads: int) -> tuple[Any, dict[str, Any]]:
    """A model in Paddle, and the settings in effect."""
    for name in [name for name in os.environ if name.startswith("FLAGS_")]:
        del os.environ[name]  # they change what Paddle computes with
    with tempfile.TemporaryDirectory() as home:  # it makes a folder there
        before = os.environ.get("HOME")
        os.environ["HOME"] = home
        import paddle

        if before is not None:
            os.environ["HOME"] = before
    paddle.disable_signal_handler()
    config = paddle.inference.Config(str(graph), str(companions(graph)[0]))
    config.disable_gpu()
    config.enable_mkldnn()
    config.set_mkldnn_cache_capacity(_CACHED_SHAPES)
    config.set_cpu_math_library_num_threads(threads)
    config.disable_glog_info()
    if graph.suffix == ".json":
        config.enable_new_ir(True)
        config.enable_new_executor(True)
    config.enable_memory_optim()
    predictor = paddle.inference.create_predictor(config)
    return predictor, {"paddle.onednn": bool(config.mkldnn_enabled())}


def _answer(predictor: Any, images: NDArray[np.float32]) -> NDArray[np.float32]:
    entry = predictor.get_input_handle(predictor.get_input_names()[0])
    entry.copy_from_cpu(images)
    predictor.run()
    result = predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()
    return np.asarray(result, np.float32)


if __name__ == "__main__":
    main()
