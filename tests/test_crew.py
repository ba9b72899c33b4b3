"""Several processes in a run: the same records, one place that keeps them, nothing left behind."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import HANG, ROOT, MakeVal
from numpy.typing import NDArray
from small_valsets import folders, parquet, tar
from tiny_task import FORM, tiny_task
from torch import nn

from eval.backends import Task, session
from eval.errors import DataError, EvalError, UsageError
from eval.images.cache import CropCache
from eval.images.preprocess import PREPROCESS
from eval.images.valset import ValSet, open_valset
from eval.measure import cores, crew, engine
from eval.measure.batch import BatchEvaluator
from eval.measure.engine import Engine
from eval.measure.journal import Journal, Records
from eval.measure.measurement import Measurement
from eval.measure.settings import exact_settings
from eval.processes import usable_cores

NAMES = {f"n{n:08}": ["1.JPEG", "2.JPEG"] for n in (1440764, 1443537, 1484850, 1491361, 1494475)}
FORMS = (FORM,)


@pytest.fixture
def valset(val_folder: MakeVal) -> ValSet:
    return open_valset(val_folder(NAMES))


@pytest.fixture(scope="module")
def two() -> Iterator[Engine]:
    with exact_settings():
        both = Engine(tiny_task(), processes=2)
        yield both
        both.close()


def processes_of(both: Engine) -> list[subprocess.Popen[bytes]]:
    assert both._crew
    return [member.process for member in both._crew._members]


def assert_same(one: Measurement, other: Measurement) -> None:
    for name in ("rank", "top", "prob", "nll"):
        a, b = (getattr(each.scores[FORM], name) for each in (one, other))
        assert np.array_equal(a, b), name
    assert one.digests == other.digests
    assert (one.measured_now, one.bad) == (other.measured_now, other.bad)


def test_two_processes_measure_what_one_does(two: Engine, valset: ValSet, tmp_path: Path) -> None:
    """To the bit, whichever process has which batch; one journal, one cache."""
    alone = Engine(tiny_task())
    expected = alone.measure(valset)
    (tmp_path / "out").mkdir()
    for turn in range(3):
        with (
            CropCache(tmp_path / "cache", valset, PREPROCESS["torchvision"]) as cache,
            Journal(tmp_path / "out", {}, FORMS) as journal,
        ):
            found = two.measure(valset, journal=journal, cache=cache)
            assert [path.name for path in (tmp_path / "out/journal").glob("*.bin")] == ["0.bin"]
            assert len(journal.read(len(valset.samples))) == len(valset.samples)
            journal.remove()
        assert_same(found, expected)
        assert found.from_cache == (len(valset.samples) if turn else 0)


def test_the_first_process_alone_writes_the_index(
    two: Engine, valset: ValSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[int] = []
    enter = CropCache.enter

    def noted(self: CropCache, index: int, record: bytes) -> None:
        entered.append(index)
        enter(self, index, record)

    monkeypatch.setattr(CropCache, "enter", noted)
    with CropCache(tmp_path, valset, PREPROCESS["torchvision"]) as cache:
        two.measure(valset, cache=cache)
    assert sorted(entered) == list(range(10))


def test_every_process_has_its_share(two: Engine, valset: ValSet) -> None:
    """Of ten batches, as many as the other can have at a time, at least."""
    assert two._crew
    seen: list[int] = []
    ask = two._crew.ask

    def counted(*given: object) -> object:
        seen.append(1)
        return ask(*given)  # type: ignore[arg-type]

    two._crew.ask = counted  # type: ignore[method-assign,assignment]
    try:
        two.measure(open_valset(valset.root))
    finally:
        two._crew.ask = ask  # type: ignore[method-assign]
    assert seen


def test_an_error_of_another_process_is_that_of_the_run(valset: ValSet) -> None:
    """With its class, so with its exit code; wherever the damaged images are."""
    for sample in valset.samples:
        (valset.root / sample.path).write_bytes(b"\xff\xd8damaged")
    with exact_settings():
        both = Engine(tiny_task(), processes=2)
        with pytest.raises(DataError, match=r"cannot be decoded: .*\nReplace"):
            both.measure(valset)
        assert [process.poll() for process in processes_of(both)] == [-signal.SIGKILL]


def test_a_process_that_ends_ends_the_run_and_what_was_measured_is_kept(
    valset: ValSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process answers once; it is ended when it is asked again."""
    (tmp_path / "out").mkdir()
    ended = threading.Event()
    evaluate = BatchEvaluator.__call__

    def wait(self: BatchEvaluator, indices: NDArray[np.int64]) -> Records:
        ended.wait()
        return evaluate(self, indices)

    with exact_settings():
        both = Engine(tiny_task(workers=1), processes=2)
        assert both._crew
        (other,) = processes_of(both)
        ask, asked = both._crew.ask, itertools.count()

        def end_second(*given: Any) -> Records:
            if next(asked):
                other.kill()
                other.wait()
                ended.set()
            return ask(*given)

        monkeypatch.setattr(both._crew, "ask", end_second)
        message = "Process 1 of this run was ended by SIGKILL.\nThe same"
        monkeypatch.setattr(BatchEvaluator, "__call__", wait)
        with (
            Journal(tmp_path / "out", {}, FORMS) as journal,
            pytest.raises(EvalError, match=message),
        ):
            both.measure(valset, journal=journal)
        with Journal(tmp_path / "out", {}, FORMS) as journal:
            kept = len(journal.read(10))
            found = Engine(tiny_task()).measure(valset, journal=journal)
        assert kept in (2, 4)  # the first batch, and perhaps the second
        assert found.measured_now == 10 - kept
        expected = Engine(tiny_task()).measure(valset)
        assert np.array_equal(found.scores[FORM].top, expected.scores[FORM].top)


def test_interrupts_are_for_the_first_process(
    valset: ValSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They reach all of a terminal or a container; another one does not end, not even at birth."""
    popen, interrupts = subprocess.Popen, (signal.SIGINT, signal.SIGTERM)

    def interrupted(*given: Any, **named: Any) -> subprocess.Popen[bytes]:
        process = popen(*given, **named)
        for number in interrupts:
            process.send_signal(number)
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with exact_settings():
        both = Engine(tiny_task(), processes=2)
        assert both.measure(valset).measured_now == 10
        both.close()
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()).intersection(interrupts)


def test_a_process_that_cannot_be_started_is_said_and_those_before_it_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def no_more(*given: Any, **named: Any) -> subprocess.Popen[bytes]:
        if started:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(popen(*given, **named))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", no_more)
    with pytest.raises(UsageError, match=r"^--processes 3: process 2 cannot [^(]*\(ulimit"):
        Engine(tiny_task(), processes=3)
    assert started[0].returncode == -signal.SIGKILL


FIRST = """
import os, sys, time
from tiny_task import tiny_task
from eval.measure.engine import Engine
from eval.measure.settings import exact_settings
with exact_settings():
    both = Engine(tiny_task(), processes=2)
    print(*(m.process.pid for m in both._crew._members), flush=True)
    time.sleep(600)
"""


IMPORTING = """
import time
from eval.measure import crew
crew._PROGRAM = crew._PROGRAM.replace("from eval.measure", "import time; time.sleep(600)\\n#")
others = crew.Crew(2, 1, print)
print(*(m.process.pid for m in others._members), flush=True)
time.sleep(600)
"""


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("program", [FIRST, IMPORTING], ids=["ready", "importing"])
def test_no_process_outlives_the_first(program: str) -> None:
    """Not even one that is stopped when the first is killed, or has just begun."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": paths},
    ) as first:  # fmt: skip
        assert first.stdout
        (other,) = map(int, first.stdout.readline().split())
        assert is_running(other)
        if program == FIRST:
            os.kill(other, signal.SIGSTOP)
        first.kill()
    deadline = time.monotonic() + HANG
    while is_running(other) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(other)


def test_processes_that_differ_do_not_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "code_sha256", lambda: "another")
    with (
        exact_settings(),
        pytest.raises(UsageError, match=r"Process 1 does not .*: code_sha256 is"),
    ):
        Engine(tiny_task(), processes=2)


def test_what_cannot_be_sent_is_said() -> None:
    odd = dataclasses.replace(PREPROCESS["torchvision"], crop=lambda data: data)  # type: ignore[return-value,arg-type]
    with exact_settings(), pytest.raises(UsageError, match=r"--processes: .*\nUse --processes 1"):
        Engine(tiny_task(preprocess=odd), processes=2)


def test_weights_are_shared_and_the_same() -> None:
    model = nn.Sequential(nn.Conv2d(3, 500, 3), nn.BatchNorm2d(500), nn.Linear(7, 2).bfloat16())
    model.register_buffer("none", torch.empty(0, 4))
    model.register_buffer("turned", torch.randn(4, 6).t())
    sent = tiny_task(models={FORM: model.eval()})
    with tempfile.TemporaryFile() as store:
        store.write(b"before")
        length = crew._write(store, sent)
        assert length < 10_000
        found = crew.read_task(store.fileno(), length).models[FORM]
    assert isinstance(found, nn.Module)
    assert found.state_dict().keys() == model.state_dict().keys()
    for name, value in found.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
        assert value.dtype == model.state_dict()[name].dtype
        assert value.stride() == model.state_dict()[name].stride()
    assert not found.training


def zipped(path: Path) -> Path:
    source = folders(path.with_name("source"))
    with zipfile.ZipFile(path, "w") as archive:
        for file in source.rglob("*.JPEG"):
            archive.write(file, file.relative_to(source))
    return path


@pytest.mark.parametrize("make", [folders, tar, zipped, parquet])
def test_images_of_every_layout_can_be_read_by_another_process(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    valset = open_valset(make(tmp_path / "val"))
    sent = pickle.loads(pickle.dumps(valset))
    assert sent.samples == valset.samples
    for sample in valset.samples:
        assert sent.read(sample.path) == valset.read(sample.path)


@pytest.mark.parametrize(
    ("usable", "images", "processes", "workers"),
    [
        (2, 50_000, 1, 2), (4, 50_000, 1, 4), (5, 50_000, 2, 3), (16, 50_000, 4, 4),
        (64, 50_000, 16, 4), (64, 300, 1, 64), (64, 3000, 3, 22), (1, 50_000, 1, 1),
    ],
)  # fmt: skip
def test_how_many_processes(
    usable: int, images: int, processes: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.measure.cores.usable_cores", lambda: usable)
    assert cores.choose_processes(images, torch.device("cpu")) == processes
    assert cores.choose_workers(processes) == workers


@pytest.mark.parametrize("backend", ["mnn", "executorch"])
@pytest.mark.parametrize(
    ("usable", "images", "processes"),
    [(2, 50_000, 2), (16, 50_000, 16), (16, 3000, 3), (2, 999, 1)],
)
def test_a_runtime_that_keeps_the_lock_gets_processes_of_one_thread(
    usable: int, images: int, processes: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.measure.cores.usable_cores", lambda: usable)
    assert cores.choose_processes(images, torch.device("cpu"), backend) == processes


V2 = {"proc/self/cgroup": "0::/pod/run\n"}
V1 = {"proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/pod\n0::/\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        (V2 | {"cpu.max": "max 100000\n"}, 8),
        (V2 | {"cpu.max": "200000 100000\n"}, 2),  # a container: the rest of the path is not there
        (V2 | {"pod/cpu.max": "150000 100000\n", "pod/run/cpu.max": "max 100000\n"}, 2),
        (V2 | {"pod/cpu.max": "500000 100000\n", "pod/run/cpu.max": "300000 100000\n"}, 3),
        (V2 | {"cpu.max": "50000 100000\n"}, 1),
        (V2 | {"cpu.max": "6400000 100000\n"}, 8),
        (V2 | {"cpu.max": "nonsense\n"}, 8),
        (V2 | {"cpu.max": "100000 0\n"}, 8),
        (V1 | {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        (V1 | {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        (V1 | {"cpu/pod/cpu.cfs_quota_us": "300000\n", "cpu/pod/cpu.cfs_period_us": "100000\n"}, 3),
        (V1 | {"cpu.max": "100000 100000\n"}, 1),
        # A group of another controller, of which this process is no part.
        (V1 | {"cpu/x/cpu.cfs_quota_us": "100000\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, 8),
    ],
)
def test_cores_that_one_may_use(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, text in files.items():
        path = tmp_path / (name if name.startswith("proc") else f"sys/fs/cgroup/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert usable_cores(tmp_path) == expected


def test_the_smaller_of_affinity_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(V2["proc/self/cgroup"])
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("400000 100000\n")
    assert usable_cores(tmp_path) == 1


class Graph:
    """A graph of a runtime that takes one image, or two, at a time, and is slow with two."""

    layout = "NCHW"
    outputs = (("float", [None, 5]),)

    def __init__(self, batch: int) -> None:
        self.inputs = (("float", [batch, 3, 224, 224]),)
        self.outputs = (("float", [batch, 5]),)

    def session(self, _feed: Any, _batch: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
        return lambda images: images[:, :1, 0, :5].reshape(-1, 5) + np.arange(5, dtype=np.float32)


@pytest.mark.parametrize("told", [None, 0, 1])
def test_what_is_found_out_by_timing_is_told_to_the_others(
    told: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MNN, LiteRT and ExecuTorch take the faster batch size: processes of a run the same one."""
    seconds = {1: 0.5, 2: 0.25}
    timed: list[int] = []

    def time_it(_self: Any, _label: str, _loaded: Any, _feed: Any, _layout: str, n: int) -> float:
        timed.append(n)
        return seconds[n]

    monkeypatch.setattr(session.RuntimePredictor, "_seconds", time_it)
    task = tiny_task(backend="mnn", classes=5, chosen={} if told is None else {FORM: told})
    graphs = [Graph(1), Graph(2)]
    form = session._Candidates(FORM, graphs, session.Converted(FORM, {}))
    made = session.RuntimePredictor(task, [form], {})
    assert timed == ([1, 2] if told is None else [])
    assert made.chosen == {FORM: 1 if told is None else told}
    assert made.settings["batch"] == {FORM: 2 if told is None else told + 1}

    sent: list[Task] = []

    class Others:
        processes = 2

        def __init__(self, *_: Any) -> None: ...

        def take(self, task: Task) -> None:
            sent.append(task)

        def ready(self, *_: Any) -> None: ...

    monkeypatch.setattr(engine, "Crew", Others)
    monkeypatch.setattr(engine, "prepared", nullcontext)
    monkeypatch.setattr(engine, "predictor_for", lambda _: made)
    Engine(task, processes=2)
    assert sent[0].chosen == made.chosen
