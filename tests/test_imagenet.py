"""The real command line on a small val set: reports, exit codes, and one clear message each."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FILES, HANG, ROOT, MakeVal, jpeg, rows_of, start
from safetensors.torch import save_file

import pplcnet
from eval.imagenet import main
from eval.judge.early import SequentialStopper
from eval.measure.journal import Records
from eval.results.schema import SUMMARY_COLUMNS

PAUSED = str(ROOT / "tests" / "paused_run.py")
OURS = {**os.environ, "PYTHONPATH": str(ROOT)}


def arguments(data: Path, weights: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--data", str(data), "--variant", "small", "--weights", str(weights)),
        *("--image-set", "val", "--output", str(output), "--quiet", *more),
    ]


def test_reports(
    val_folder: MakeVal, weights: Path, model: pplcnet.PPLCNetV2, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output = tmp_path / "out"
    assert main(arguments(val_folder(FILES), weights, output)) == 0
    assert sorted(path.name for path in output.iterdir()) == [
        "confusions.csv", "per_class.csv", "predictions.csv", "report.html", "run.json",
        "summary.csv",
    ]  # fmt: skip
    assert not (output / "journal").exists()

    summary = rows_of(output / "summary.csv")
    assert tuple(summary[0]) == SUMMARY_COLUMNS
    assert [row["form"] for row in summary] == ["unfused", "reparameterized"]
    for row in summary:
        assert row["verdict"] == "PARTIAL"
        assert (row["images"], row["images_expected"], row["bad_images"]) == ("4", "50000", "0")
        assert float(row["top1"]) == 100 * int(row["top1_correct"]) / 4
        assert row["reference_top1"] == "73.97"
        assert row["reference_top5"] == ""
        assert float(row["max_abs_logit_diff"]) < 1e-3
        assert len(row["dataset_sha256"]) == len(row["weights_sha256"]) == 64
    assert int(summary[0]["params"]) == pplcnet.count_parameters(model)
    assert int(summary[1]["macs"]) == pplcnet.count_macs(pplcnet.reparameterize(model))

    predictions = rows_of(output / "predictions.csv")
    assert [row["index"] for row in predictions] == ["0", "1", "2", "3"]
    assert [row["path"] for row in predictions] == [
        "n01440764/a.JPEG", "n01440764/b.JPEG", "n01443537/c.JPEG", "n15075141/d.JPEG",
    ]  # fmt: skip
    assert [row["label"] for row in predictions] == ["0", "0", "1", "999"]
    for form in ("unfused", "reparameterized"):
        names = ["rank", *(f"top{k}" for k in range(1, 6)), *(f"prob{k}" for k in range(1, 6))]
        assert {f"{form}_{name}" for name in names} <= set(predictions[0])
        for row in predictions:
            probabilities = [float(row[f"{form}_prob{k}"]) for k in range(1, 6)]
            assert probabilities == sorted(probabilities, reverse=True)

    classes = rows_of(output / "per_class.csv")
    assert len(classes) == 1000
    assert (classes[0]["synset"], classes[0]["images"]) == ("n01440764", "2")
    assert sum(int(row["images"]) for row in classes) == 4
    assert sum(int(row["unfused_correct@5"]) for row in classes) == int(summary[0]["top5_correct"])

    run = json.loads((output / "run.json").read_text())
    assert run["settings"]["cudnn.allow_tf32"] is False
    assert run["versions"]["torch"]
    assert run["flips"] == []

    shown = capsys.readouterr().out
    assert "PARTIAL  unfused: 4 of 50,000 images" in shown
    assert str(output) in shown


def test_one_form(val_folder: MakeVal, weights: Path, tmp_path: Path) -> None:
    data = val_folder(FILES)
    assert main(arguments(data, weights, tmp_path / "out", "--forms", "reparameterized")) == 0
    (row,) = rows_of(tmp_path / "out" / "summary.csv")
    assert row["form"] == "reparameterized"
    assert row["max_abs_logit_diff"] == row["prediction_flips"] == ""


def test_reparameterized_weights(
    val_folder: MakeVal, model: pplcnet.PPLCNetV2, weights: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data, deploy = val_folder(FILES), tmp_path / "deploy.safetensors"
    save_file(pplcnet.reparameterize(model).state_dict(), deploy)
    assert main(arguments(data, deploy, tmp_path / "a")) == 4
    assert "--forms reparameterized" in capsys.readouterr().err
    form = ("--forms", "reparameterized")
    assert main(arguments(data, deploy, tmp_path / "a", *form)) == 0
    assert main(arguments(data, weights, tmp_path / "b", *form)) == 0
    predictions = [(tmp_path / n / "predictions.csv").read_bytes() for n in "ab"]
    assert predictions[0] == predictions[1]


def test_limit_is_nested_and_says_partial(
    val_folder: MakeVal, weights: Path, tmp_path: Path
) -> None:
    data = val_folder(FILES)
    paths = []
    for n in (1, 2, 3, 9):
        words = arguments(data, weights, tmp_path / str(n), "--forms", "unfused")
        assert main([*words, "--limit", str(n)]) == 0
        paths.append({row["path"] for row in rows_of(tmp_path / str(n) / "predictions.csv")})
        assert rows_of(tmp_path / str(n) / "summary.csv")[0]["verdict"] == "PARTIAL"
    assert [len(p) for p in paths] == [1, 2, 3, 4]
    assert paths[0] < paths[1] < paths[2] < paths[3]


def own_config(tmp_path: Path, top1: float, images: int = 4) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(
        f'name = "own"\nmodel = "small"\nimages = {images}\n'
        f'[reference]\ntop1 = {top1}\nsource = "test"\n'
        '[tolerance.torchvision]\nimages = 1\nreason = "test"\n'
    )
    return path


@pytest.mark.parametrize(("top1", "code", "verdict"), [(0.0, 0, "PASS"), (100.0, 1, "FAIL")])
def test_verdict_becomes_the_exit_code(
    val_folder: MakeVal, weights: Path, tmp_path: Path, top1: float, code: int, verdict: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = arguments(val_folder(FILES), weights, tmp_path / "out")
    words[2:4] = ["--config", str(own_config(tmp_path, top1))]  # instead of --variant
    found = main(words)
    row = rows_of(tmp_path / "out" / "summary.csv")[0]
    assert row["top1_correct"] == "0", "the weights are random"
    assert (found, row["verdict"]) == (code, verdict)
    assert f"{verdict}  unfused: top-1" in capsys.readouterr().out


def test_bad_image(val_folder: MakeVal, weights: Path, tmp_path: Path,
                   capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    data = val_folder(FILES)
    broken = data / "n01443537" / "c.JPEG"
    broken.write_bytes(broken.read_bytes()[:500])
    assert main(arguments(data, weights, tmp_path / "fail")) == 3
    assert str(broken) in capsys.readouterr().err
    assert main(arguments(data, weights, tmp_path / "out", "--on-bad-image", "record")) == 3
    assert "INCOMPLETE" in capsys.readouterr().out
    (bad,) = rows_of(tmp_path / "out" / "bad_images.csv")
    assert (bad["index"], bad["path"]) == ("2", "n01443537/c.JPEG")
    assert "truncated" in bad["reason"].lower()
    summary = rows_of(tmp_path / "out" / "summary.csv")
    assert (summary[0]["images"], summary[0]["bad_images"]) == ("4", "1")
    row = rows_of(tmp_path / "out" / "predictions.csv")[2]
    assert row["unfused_rank"] == row["unfused_top1"] == row["unfused_prob1"] == ""


def test_non_finite_answers(
    val_folder: MakeVal, model: pplcnet.PPLCNetV2, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["stem.0.bn.running_var"][:] = -1.0
    save_file(state, tmp_path / "w.safetensors")
    assert main(arguments(val_folder(FILES), tmp_path / "w.safetensors", tmp_path / "out")) == 5
    assert "NaN or infinity" in capsys.readouterr().err


def test_disagreeing_forms_are_reported_before_the_exit(
    val_folder: MakeVal, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def wrong(model: pplcnet.PPLCNetV2) -> pplcnet.PPLCNetV2:
        deploy = right(model)
        with torch.no_grad():
            deploy.fc.bias[3] += 5.0
        return deploy

    right = pplcnet.reparameterize
    monkeypatch.setattr(pplcnet, "reparameterize", wrong)
    assert main(arguments(val_folder(FILES), weights, tmp_path / "out")) == 5
    shown = capsys.readouterr()
    assert "disagree: a logit differs by 5" in shown.err
    assert len(rows_of(tmp_path / "out" / "summary.csv")) == 2


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"stem.0.conv.weight": Hostile()}), "refused"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"", "empty"),
        (pickle.dumps({"a": np.zeros(3, np.float32)})[:-20], "w.pdparams"),
        (pickle.dumps({"a": np.zeros(3, np.float32)}), "is not a PP-LCNetV2 checkpoint"),
    ],
    ids=["hostile", "html", "empty", "truncated", "another model"],
)
def test_weights_that_are_refused(
    val_folder: MakeVal, tmp_path: Path, content: bytes, message: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    data = val_folder(FILES)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pdparams").write_bytes(content)
    assert main(arguments(data, tmp_path / "w.pdparams", tmp_path / "out")) == 4
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) <= 2
    assert not (tmp_path / "executed").exists()


def test_wrong_variant_and_missing_weights(
    val_folder: MakeVal, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = val_folder(FILES)
    base = ["--data", str(data), "--variant", "base", "--output", str(tmp_path / "out")]
    assert main([*base, "--weights", str(weights)]) == 4
    assert "It fits small" in capsys.readouterr().err
    assert main([*base, "--weights", str(tmp_path / "nowhere.pdparams")]) == 4
    assert "nowhere.pdparams" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--variant", "base"], "--data PATH, or use --demo"),
        (["--data", ".", "--demo"], "--data PATH, or use --demo"),
        (["--demo", "--variant", "base"], "--demo brings its own model"),
        (["--data", ".", "--variant", "bas"], "Did you mean 'base'"),
        (["--data", ".", "--forms", "fused"], "--forms fused"),
        (["--data", ".", "--forms", "unfused,unfused"], "--forms unfused,unfused"),
        (["--data", ".", "--config", "nowhere.toml"], "there is no such configuration file"),
        (["--data", ".", "--config", "x", "--variant", "base"], "--config and --variant"),
    ],
)
def test_usage(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "nowhere")]) == 3
    assert "nowhere" in capsys.readouterr().err


def test_unwritable_output(
    val_folder: MakeVal, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(arguments(val_folder(FILES), weights, tmp_path / "file" / "out")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_help_is_complete() -> None:
    """That it is quick is tested with the console script."""
    shown = start("eval.imagenet", "--help")
    assert shown.returncode == 0
    for option in ("--data", "--variant", "--weights", "--forms", "--preprocess", "--limit"):
        assert option in shown.stdout


def many(val_folder: MakeVal, images: int) -> Path:
    synsets = ("n01440764", "n01443537", "n15075141", "n01484850")
    return val_folder({s: [f"{i:03}.JPEG" for i in range(images // 4)] for s in synsets})


def test_results_on_stdout_progress_on_stderr(
    val_folder: MakeVal, weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = many(val_folder, 4)
    words = [w for w in arguments(data, weights, tmp_path / "out") if w != "--quiet"]
    assert main(words) == 0
    shown = capfd.readouterr()
    assert "img/s" in shown.err
    assert "top-1" in shown.err
    assert "img/s" not in shown.out
    assert "unfused" in shown.out
    assert main([*words, "--quiet"]) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "kind",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_continues_to_the_same_bytes(
    val_folder: MakeVal, weights: Path, tmp_path: Path, kind: signal.Signals
) -> None:
    data = many(val_folder, 30)
    whole = arguments(data, weights, tmp_path / "whole", "--batch-size", "2")
    assert main(whole) == 0
    words = arguments(data, weights, tmp_path / "out", "--batch-size", "2")
    process = subprocess.Popen(
        [sys.executable, PAUSED, str(tmp_path), *words],
        cwd=ROOT, env=OURS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell's background job ignores Ctrl-C, and so would what it starts.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    journal = tmp_path / "out" / "journal" / "0.bin"
    while process.poll() is None and not (tmp_path / str(process.pid)).exists():
        time.sleep(0.01)
    process.send_signal(kind)
    _, error = process.communicate(timeout=HANG)
    if kind == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert f"--output {tmp_path / 'out'} continues" in error
    assert journal.stat().st_size
    assert not (tmp_path / "out" / "summary.csv").exists()

    assert main(words) == 0
    for name in ("predictions.csv", "per_class.csv"):
        expected = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == expected
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert 0 < run["images_measured_now"] < 28


def test_an_unfinished_run_of_other_weights_is_refused(
    val_folder: MakeVal, weights: Path, model: pplcnet.PPLCNetV2, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = val_folder(FILES)
    output = tmp_path / "out"
    (data / "n15075141" / "d.JPEG").write_bytes(b"broken")
    assert main(arguments(data, weights, output, "--batch-size", "1")) == 3
    (data / "n15075141" / "d.JPEG").write_bytes(jpeg(np.zeros((9, 9, 3), np.uint8)))
    assert main(arguments(data, weights, output, "--preprocess", "paddle")) == 2
    assert "preprocess was torchvision, is paddle" in capsys.readouterr().err
    assert main(arguments(data, weights, output, "--batch-size", "1")) == 0


def test_history_and_baseline(
    val_folder: MakeVal, weights: Path, model: pplcnet.PPLCNetV2, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data, history = val_folder(FILES), tmp_path / "history.csv"
    assert main(arguments(data, weights, tmp_path / "a", "--history", str(history))) == 0
    more = ("--history", str(history), "--baseline", str(tmp_path / "a"))
    assert main(arguments(data, weights, tmp_path / "b", *more)) == 0
    assert len(rows_of(history)) == 4
    assert (tmp_path / "b" / "regression.md").is_file()
    one = ("--baseline", str(tmp_path / "a"), "--forms", "unfused")
    assert main(arguments(data, weights, tmp_path / "c", *one)) == 0
    other = ("--baseline", str(tmp_path / "a"), "--preprocess", "paddle")
    assert main(arguments(data, weights, tmp_path / "d", *other)) == 2
    assert "torchvision" in capsys.readouterr().err
    assert not (tmp_path / "d").exists(), "refused before anything is measured"


@pytest.mark.slow  # test_ranks has two processes every day
@pytest.mark.parametrize("processes", [2, 3])
def test_torchrun_gives_the_same_rows(
    val_folder: MakeVal, weights: Path, tmp_path: Path, processes: int
) -> None:
    data = many(val_folder, 40)
    assert main(arguments(data, weights, tmp_path / "one", "--batch-size", "4")) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    words = arguments(data, weights, tmp_path / "many", "--batch-size", "4")
    shown = subprocess.run(
        [*torchrun, "-m", "eval.imagenet", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("PARTIAL  unfused") == 1
    for name in ("predictions.csv", "per_class.csv"):
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


# --- --stop-early -------------------------------------------------------------------------------

EARLY = 120  # images; random weights have none right, and half of them is the reference


def early_words(val_folder: MakeVal, weights: Path, tmp_path: Path, name: str) -> list[str]:
    data = tmp_path / "val"
    if not data.is_dir():
        data = many(val_folder, EARLY)
    words = arguments(data, weights, tmp_path / name, "--stop-early", "--batch-size", "1")
    words[2:4] = ["--config", str(own_config(tmp_path, 50.0, EARLY))]
    return [*words, "--workers", "1", "--forms", "unfused"]


def stopped_after(output: Path) -> int:
    (row,) = rows_of(output / "summary.csv")
    assert (row["verdict"], row["images_expected"]) == ("FAIL", str(EARLY))
    assert len(rows_of(output / "predictions.csv")) == int(row["images"])
    return int(row["images"])


def test_an_interrupted_run_stops_where_an_unbroken_one_does(
    val_folder: MakeVal, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(early_words(val_folder, weights, tmp_path, "unbroken")) == 1
    images = stopped_after(tmp_path / "unbroken")
    assert 5 < images < EARLY / 2

    words, after, asked = (
        early_words(val_folder, weights, tmp_path, "broken"),
        SequentialStopper.after,
        [],
    )

    def interrupted(stopper: SequentialStopper, records: Records) -> bool:
        asked.append(len(records))
        if len(asked) == 5:
            raise KeyboardInterrupt
        return after(stopper, records)

    with monkeypatch.context() as patch:
        patch.setattr(SequentialStopper, "after", interrupted)
        assert main(words) == 130
    assert not (tmp_path / "broken" / "summary.csv").exists()
    assert main(words) == 1
    assert stopped_after(tmp_path / "broken") == images
    for name in ("predictions.csv", "per_class.csv"):
        assert (tmp_path / "broken" / name).read_bytes() == (
            tmp_path / "unbroken" / name
        ).read_bytes()


@pytest.mark.slow
def test_processes_stop_together(val_folder: MakeVal, weights: Path, tmp_path: Path) -> None:
    """On the merged counts: with two processes, after a round of 8 batches of each."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    words = early_words(val_folder, weights, tmp_path, "two")
    shown = subprocess.run(
        [*torchrun, "-m", "eval.imagenet", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert "exit code 1 (torchrun itself exits with 1)" in shown.stderr
    assert shown.stdout.count("ended early") == 1
    images = stopped_after(tmp_path / "two")
    assert images % 16 == 0
    assert images < EARLY
    assert main(early_words(val_folder, weights, tmp_path, "one")) == 1
    assert stopped_after(tmp_path / "one") <= images < stopped_after(tmp_path / "one") + 16


def rank_processes(output: Path) -> dict[int, int]:
    """Rank to process id of the processes of a run that writes to `output`."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is another user's
            continue
        ranks = [int(row[5:]) for row in environment if row.startswith(b"RANK=")]
        if str(output).encode() in words and ranks:
            found[ranks[0]] = int(folder.name)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.slow  # `test_a_killed_run_continues_to_the_same_bytes` has a process alone
def test_a_rank_that_dies_ends_the_run_and_loses_nothing(
    val_folder: MakeVal, weights: Path, tmp_path: Path
) -> None:
    data = many(val_folder, 200)
    assert main(arguments(data, weights, tmp_path / "whole", "--batch-size", "2")) == 0
    words = arguments(data, weights, tmp_path / "out", "--batch-size", "2")
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    run = ["-m", "torch.distributed.run", "--nproc-per-node", "2", PAUSED, str(waiting), *words]
    process = subprocess.Popen(
        [sys.executable, *run],
        cwd=ROOT, env=OURS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    journals = [tmp_path / "out" / "journal" / f"{rank}.bin" for rank in (0, 1)]
    while process.poll() is None and len(list(waiting.iterdir())) < 2:
        time.sleep(0.01)
    os.kill(rank_processes(tmp_path / "out")[1], signal.SIGKILL)
    _, error = process.communicate(timeout=HANG)
    assert process.returncode == 1
    assert "exitcode  : -9" in error.replace("exitcode : -9", "exitcode  : -9")
    assert "rank      : 1" in error
    assert all(journal.stat().st_size for journal in journals)
    assert not (tmp_path / "out" / "summary.csv").exists()

    assert main(words) == 0, "one process continues what two began"
    run_facts = json.loads((tmp_path / "out" / "run.json").read_text())
    assert 0 < run_facts["images_measured_now"] < 200
    for name in ("predictions.csv", "per_class.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
