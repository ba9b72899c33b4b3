"""``--backend paddle``: the runtime's processes, with a stand-in for Paddle, and Paddle itself."""

from __future__ import annotations

import copy
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HANG, ROOT, MakeVal, randomize_bn
from paddle_exports import Export, Step
from test_backends import CPU, PREPROCESSING, assert_agrees, plain

import pplcnet
from eval import Request, evaluate, sweep
from eval.backends import create_predictor, paddle
from eval.backends.formats import Copy, private_copy
from eval.backends.session import Compute
from eval.diagnosis.bench import _official_runtimes
from eval.errors import ModelError
from eval.imagenet import main
from eval.jobs.sweep import combinations
from eval.metrics import Kind, as_logits, kind_of
from pplcnet import PPLCNetV2

BATCH = 3
OVER = ("n01440764", "n01443537")

# It answers with the mean of each image in each of the classes, plus the class. What it does at its
# n-th run is in the environment: it must not depend on anything in the parent's memory.
STAND_IN = """
import logging, os, pathlib, signal, sys, time
pathlib.Path(os.environ["STARTED"]).open("a").write(f"{os.getpid()}\\n")
logging.getLogger().setLevel(1)
os.environ["OMP_NUM_THREADS"] = "1"
print("hello from native code")
assert not any(name.startswith("FLAGS_") for name in os.environ)

def disable_signal_handler():
    pass

class inference:
    class Config:
        def __init__(self, graph, parameters):
            data = pathlib.Path(parameters).read_bytes()
            if pathlib.Path(os.environ["STARTED"] + ".refuse").exists():
                raise ValueError("(InvalidArgument) Type is not right.\\n  [Hint: more]")
        def __getattr__(self, name):
            return lambda *words: True

    class create_predictor:
        def __init__(self, config):
            self.runs = 0
        def get_input_names(self):
            return ["x"]
        get_output_names = get_input_names
        def get_input_handle(self, name):
            return self
        get_output_handle = get_input_handle
        def copy_from_cpu(self, images):
            self.images = images
        def run(self):
            self.runs += 1
            end = pathlib.Path(os.environ["STARTED"] + ".end")
            if end.exists() and self.runs == 3:
                how = end.read_text()
                end.unlink()
                if how == "hang":
                    time.sleep(1000)
                os.kill(os.getpid(), getattr(signal, how))
        def copy_to_cpu(self):
            import numpy
            return self.images.mean((1, 2, 3))[:, None] + numpy.arange(10, dtype="f4")
"""


@pytest.fixture(scope="module")
def network() -> PPLCNetV2:
    torch.manual_seed(2)
    model = pplcnet.create_model("small", num_classes=10).eval()
    randomize_bn(model)
    return model


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for Paddle; the file has the number of each process that imported it."""
    (tmp_path / "stand_in").mkdir()
    (tmp_path / "stand_in" / "paddle.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path / "stand_in")
    monkeypatch.setenv("STARTED", str(tmp_path / "started"))
    monkeypatch.setenv("FLAGS_use_mkldnn", "0")
    return tmp_path / "started"


def numbers(started: Path) -> list[int]:
    return [int(line) for line in started.read_text().split()] if started.exists() else []


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"  # ended; nobody has asked how


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def predictor(backend: str, model: object, classes: int | None = 10):
    return create_predictor(
        backend, {"f": model}, PREPROCESSING, CPU, "fp32", batch_size=BATCH, workers=2,  # type: ignore[dict-item]
        classes=classes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def crops() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), dtype=np.uint8)


def test_each_worker_has_a_process_and_nothing_stays(
    started: Path, network: PPLCNetV2, crops: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    import logging

    level, environment = logging.getLogger().level, dict(os.environ)
    made = predictor("paddle", network)
    found = made(crops)["f"]
    means = PREPROCESSING.normalize(crops).mean((1, 2, 3))[:, None]
    assert np.allclose(found, means + np.arange(10), atol=1e-5)
    assert made.settings["paddle.onednn"] is True
    assert len(set(numbers(started))) == 2
    assert (logging.getLogger().level, dict(os.environ)) == (level, environment)
    assert "paddle" not in sys.modules
    assert capfd.readouterr().out == ""
    del made
    assert all(map(gone, numbers(started)))


def test_nothing_is_given_to_paddle_that_our_reader_refuses(
    started: Path, network: PPLCNetV2, val_folder: MakeVal, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    export = Export(network)
    data = val_folder({OVER[0]: ["a.JPEG"]})
    words = ["--data", str(data), "--variant", "small", "--backend", "paddle", "--quiet"]
    for name, wanted in (
        ("short", "inference.pdiparams: ends in the middle of a tensor"),
        ("long", "inference.pdiparams is damaged"),
        ("missing", "inference.pdiparams: there is no such file"),
        ("save", "inference.json: the operator 'save' is not one of PP-LCNetV2's"),
        ("int8", "inference.json: the operator 'quantize_linear' is of an int8 model"),
        ("json", "inference.json is damaged"),
    ):
        folder = tmp_path / name
        graph = export.save(folder)
        parameters = graph.with_suffix(".pdiparams")
        if name == "short":
            parameters.write_bytes(parameters.read_bytes()[:-1])
        elif name == "long":
            parameters.write_bytes(parameters.read_bytes() + b"\0")
        elif name == "missing":
            parameters.unlink()
        elif name in ("save", "int8"):
            changed = copy.copy(export)
            kind = "save" if name == "save" else "quantize_linear"
            made = Step(kind, (export.steps[3].output,), "v0", (), {"file_path": "written"})
            changed.steps = [*export.steps[:4], made, *export.steps[4:]]
            changed.save(folder)
        else:
            graph.write_text('{"base_code": {"magic": "pir"}}')
        output = str(tmp_path / f"{name}-out")
        assert main([*words, "--weights", str(folder), "--output", output]) == 4
        error = capfd.readouterr().err
        assert wanted in error
        assert str(folder) in error  # not the copy's
        assert error.count("\n") <= 2
    assert not numbers(started)
    for model in (torch.nn.Linear(3, 3), pplcnet.create_model("small")):  # another; in training
        with pytest.raises(ModelError, match="cannot be exported to Paddle") as caught:
            predictor("paddle", model)
        assert str(caught.value).count("\n") == 1


def test_paddle_is_asked_for_its_own_form_of_the_very_bytes(
    started: Path, network: PPLCNetV2, tmp_path: Path, val_folder: MakeVal
) -> None:
    """The file's form is the file; another form of it is exported again."""
    from eval.models import open_source

    data = val_folder({OVER[0]: ["a.JPEG"]})
    full = pplcnet.create_model("small").eval()
    for merged, own in ((True, "reparameterized"), (False, "unfused")):
        graph = Export(full, merged=merged).save(tmp_path / own)
        for backend in ("paddle", "torch"):
            request = Request(data=data, variant="small", weights=graph.parent, backend=backend)
            subject = open_source(request).load(1000, lambda _: None)
            files = {f for f, model in subject.forms.items() if isinstance(model, Path)}
            assert files == ({own} if backend == "paddle" else set())
            assert ("read by Paddle itself" in subject.layout) == (backend == "paddle")
            assert [file.path for file in subject.files] == [
                graph, graph.with_suffix(".pdiparams")
            ]  # fmt: skip
            before = graph.read_bytes()
            if backend == "paddle":
                graph.write_bytes(b"{}")
                assert subject.forms[own].read_bytes() == before
                with pytest.raises(ModelError, match="changed during the evaluation"):
                    subject.check_unchanged()
                graph.write_bytes(before)


@pytest.mark.parametrize("how", ["SIGSEGV", "SIGKILL"])
def test_a_process_that_ends_keeps_what_was_measured(
    how: str, started: Path, network: PPLCNetV2, tmp_path: Path, val_folder: MakeVal
) -> None:
    data = val_folder({OVER[0]: [f"{n}.JPEG" for n in range(5)]})
    classes = tmp_path / "classes.txt"
    classes.write_text("".join(f"{name}\n" for name in (*OVER, *"abcdefgh")))
    graph = Export(network).save(tmp_path / "m")
    request = Request(
        data=data, variant="small", weights=graph, backend="paddle", workers=1, batch_size=1,
        classes=classes, output=tmp_path / "out",
    )  # fmt: skip
    # Two runs as the predictor is made, and one image.
    end = Path(f"{started}.end")
    end.write_text(how)
    with pytest.raises(ModelError) as caught:
        evaluate(request)
    what, advice = str(caught.value).splitlines()
    assert what == f"{graph}: Paddle's process did not compute an image: it ended with {how}."
    assert advice == (
        "What was measured is kept: the same command with the same --output continues."
    )
    del caught
    assert all(map(gone, numbers(started)))
    evaluation = evaluate(request)
    assert len(evaluation.measured.digests) == 5


def test_a_process_that_hangs_is_ended(
    started: Path, network: PPLCNetV2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = paddle.load(Export(network).save(tmp_path), Compute())
    Path(f"{started}.end").write_text("SIGALRM")  # as the deadline does
    run = graph.session(None, 1)  # type: ignore[arg-type]
    images = np.zeros((1, 3, 8, 8), np.float32)
    run(images), run(images)
    with pytest.raises(ModelError, match=f"no answer within {paddle.SECONDS} seconds"):
        run(images)


def test_what_paddle_refuses_is_said(started: Path, network: PPLCNetV2, tmp_path: Path) -> None:
    Path(f"{started}.refuse").touch()
    with pytest.raises(ModelError) as caught:
        paddle.load(Export(network).save(tmp_path), Compute())
    assert str(caught.value).splitlines()[0] == (
        f"{tmp_path / 'inference.json'}: Paddle cannot load it "
        "(ValueError: (InvalidArgument) Type is not right.)."
    )


PARENT = """
import sys
from pathlib import Path
import numpy as np
from eval.backends import paddle
from eval.backends.session import Compute
from eval.diagnosis.bench import _official_runtimes

run = paddle.load(Path(sys.argv[1]), Compute()).session(None, 1)
for _ in range(3):
    run(np.zeros((1, 3, 8, 8), np.float32))
"""


def test_no_process_survives_its_parent(started: Path, network: PPLCNetV2, tmp_path: Path) -> None:
    """Neither is the parent told, nor does the child ever come back to look."""
    end = Path(f"{started}.end")
    end.write_text("hang")
    graph = Export(network).save(tmp_path)
    paths = os.pathsep.join([str(tmp_path / "stand_in"), str(ROOT)])
    words = [sys.executable, "-c", PARENT, str(graph)]
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": paths}) as parent:
        try:
            wait_until(lambda: bool(numbers(started)) and not end.exists())
            (child,) = numbers(started)
            assert not gone(child)
        finally:
            parent.send_signal(signal.SIGKILL)
    wait_until(lambda: gone(child))


def test_openvino_reads_the_older_format_itself(
    network: PPLCNetV2, tmp_path: Path, crops: np.ndarray
) -> None:
    export = Export(network)
    graph = export.save(tmp_path, "inference.pdmodel")
    found = predictor("openvino", private_copy(graph))(crops)["f"]
    assert kind_of(found) is Kind.PROBABILITIES
    found = as_logits(found, Kind.PROBABILITIES)
    logits = torch.from_numpy(plain(network, crops)).log_softmax(1).numpy()
    assert_agrees(found, logits, within=1e-4)
    parameters = graph.with_suffix(".pdiparams")
    parameters.write_bytes(parameters.read_bytes() + b"\0")  # OpenVINO would not mind
    with pytest.raises(ModelError, match=r"inference\.pdiparams is damaged") as caught:
        predictor("openvino", private_copy(graph))
    assert str(tmp_path) in str(caught.value)


def test_only_what_needs_paddle_imports_it(tmp_path: Path) -> None:
    (tmp_path / "paddle.py").write_text("raise SystemExit(99)\n")
    code = (
        "import eval, eval.backends.paddle, eval.imagenet, eval.models.variants, eval.jobs.sweep\n"
        "from eval.backends import check_installed\n"
        "check_installed('paddle')\n"
        "import sys; assert 'paddle' not in sys.modules; eval.imagenet.main(['--help'])"
    )
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, check=False,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()


def test_flips_of_a_sweep_are_counted_against_paddle(network: PPLCNetV2, tmp_path: Path) -> None:
    folder = Export(network).save(tmp_path / "infer").parent
    words = ["--data", ".", "--variant", "small", "--preprocess", "paddle,torchvision"]
    words += ["--weights", str(folder), str(tmp_path / "x.pdparams")]
    asked = sweep.to_sweep(sweep.parse([*words, "--backend", "torch,paddle,openvino"]))
    planned, left_out = combinations(asked)
    rows = [(row.preprocess, row.backend, row.model) for row in planned]
    first, second = "small-infer", "small-x.pdparams"
    assert [row[1:] for row in rows[:6]] == [
        ("paddle", first), ("paddle", second), ("torch", first), ("openvino", first),
        ("torch", second), ("openvino", second),
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["paddle"] * 6 + ["torchvision"] * 6
    assert not left_out


@pytest.mark.usefixtures("started")
def test_a_diagnosis_tries_the_official_runtime(network: PPLCNetV2) -> None:
    assert list(_official_runtimes(network)) == ["paddle"]
    assert list(_official_runtimes(torch.nn.Linear(1, 1))) == []


# ---------------------------------------------------------------- Paddle itself


@pytest.fixture
def _installed() -> None:
    if importlib.util.find_spec("paddle") is None:
        pytest.skip("paddle is not installed: pip install '.[paddle]'")


@pytest.mark.slow
@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("form", ["unfused", "reparameterized", "merged, with softmax"])
def test_paddle_agrees_with_torch(
    form: str, network: PPLCNetV2, crops: np.ndarray, tmp_path: Path
) -> None:
    expected = plain(network, crops)
    if form == "merged, with softmax":
        made = predictor("paddle", Copy(Export(network).save(tmp_path)))
        expected = torch.from_numpy(expected).softmax(1).numpy()
    else:
        model = network if form == "unfused" else pplcnet.reparameterize(network)
        made = predictor("paddle", model)
    for batch in (crops, crops[:1], np.concatenate([crops, crops])):
        wanted = np.concatenate([expected] * 2)[: len(batch)]
        assert_agrees(made(batch)["f"], wanted, within=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("name", ["inference.json", "inference.pdmodel", "base.pdparams"])
def test_the_official_runtime_on_real_photos(name: str, shared: Path, tmp_path: Path) -> None:
    """Against the logits of the official implementation, on every photo."""
    oracle = shared / "oracle"
    known = np.load(oracle / "base_logits.npz")
    folder = oracle if name.endswith(".pdparams") else oracle / "paddle_inference"
    for preprocess in ("paddle", "torchvision"):
        evaluation = evaluate(
            Request(
                data=shared / "imagenet-sample" / "val", variant="base", weights=folder / name,
                backend="paddle", forms="reparameterized", preprocess=preprocess,
            )
        )  # fmt: skip
        (scores,) = evaluation.measured.scores.values()
        assert np.array_equal(scores.top[:, 0], known[preprocess].argmax(1))
        assert [(scores.rank < k).sum() for k in (1, 5)] == [301, 372]
