"""A verdict stands only where this run, on these bytes, earned it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import FILES, HANG, ROOT, MakeVal, jpeg, rows_of, start
from safetensors.torch import save_file

import pplcnet
from eval import Request, evaluate
from eval.errors import ModelError, UsageError
from eval.imagenet import main
from eval.metrics import Kind
from eval.models import combined_sha256, identify, open_source
from eval.progress import ignore
from eval.results.folder import OutputFolder

Run = Callable[..., int]
BOTH = "unfused,reparameterized"


@pytest.fixture
def val(val_folder: MakeVal) -> Path:
    return val_folder(FILES)


def config(folder: Path, top1: float = 0.0, images: int = 4, tolerance: int = 4) -> Path:
    """By default, one with which four images of any accuracy pass."""
    path = folder / f"own-{top1}-{images}-{tolerance}.toml"
    path.write_text(
        f'name = "own"\nmodel = "small"\nimages = {images}\n'
        f'[reference]\ntop1 = {top1}\nsource = "test"\n'
        f'[tolerance.torchvision]\nimages = {tolerance}\nreason = "test"\n'
        f'[tolerance.paddle]\nimages = {tolerance}\nreason = "test"\n'
    )
    return path


@pytest.fixture
def run(val: Path, weights: Path, tmp_path: Path) -> Run:
    """The command on four images; the last value of an option that is given again counts."""

    def run(
        output: str, *more: str | Path, configuration: Path | None = None, forms: str = "unfused"
    ) -> int:
        words = ["--data", val, "--config", configuration or config(tmp_path)]
        words += ["--image-set", "val", "--weights", weights]
        words += ["--forms", forms] if forms else []
        words += ["--output", tmp_path / output, "--quiet", *more]
        return main([str(word) for word in words])

    return run


@pytest.fixture(scope="module")
def disagreeing(model: pplcnet.PPLCNetV2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mean and a bias that cancel exactly, and cost the fused form its last digits."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    scale = state["stem.0.bn.weight"] / (state["stem.0.bn.running_var"] + 1e-5).sqrt()
    state["stem.0.bn.running_mean"] += 1e7
    state["stem.0.bn.bias"] += 1e7 * scale
    path = tmp_path_factory.mktemp("disagreeing") / "w.safetensors"
    save_file(state, path)
    return path


def verdicts(folder: Path) -> set[str]:
    """Every verdict that the files of a result name."""
    document = json.loads((folder / "run.json").read_text())
    page = (folder / "report.html").read_text()
    found = {row["verdict"] for row in rows_of(folder / "summary.csv")}
    found |= {document["verdict"], *(row["verdict"] for row in document["results"])}
    return found | {page.partition('class="verdict ')[2].partition('"')[0]}


# 1. Forms that disagree


def test_forms_that_disagree_pass_nowhere(
    run: Run, disagreeing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = tmp_path / "history.csv"
    assert run("fine", forms=BOTH) == 0
    assert verdicts(tmp_path / "fine") == {"PASS"}, "the configuration lets all else pass"
    capsys.readouterr()
    assert run("out", "--weights", disagreeing, "--history", history, forms=BOTH) == 5
    shown = capsys.readouterr()
    assert shown.out.count("DISAGREE  ") == 2
    assert "PASS" not in shown.out
    assert "a logit differs by" in shown.err
    assert verdicts(tmp_path / "out") == {"DISAGREE"}
    assert [row["verdict"] for row in rows_of(history)] == ["DISAGREE"] * 2
    assert json.loads((tmp_path / "out" / "run.json").read_text())["exit_code"] == 5


def test_a_history_that_is_a_folder_is_refused_before_anything_is_measured(
    run: Run, disagreeing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("out", "--weights", disagreeing, "--history", tmp_path) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_baseline_that_cannot_be_compared_is_refused_before_anything_is_measured(
    run: Run, tmp_path: Path
) -> None:
    assert run("other", "--preprocess", "paddle") == 0
    assert run("out", "--baseline", tmp_path / "other") == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("verdict", "code"), [("DISAGREE", 5), ("FAIL", 1)])
def test_a_comparison_that_fails_at_the_end_hides_no_verdict(
    verdict: str, code: int, run: Run, disagreeing: Path, val: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Other images than the baseline's: known only once they are hashed."""
    forms = BOTH if verdict == "DISAGREE" else "unfused"
    assert run("base", forms=forms) == 0
    image = val / "n15075141" / "d.JPEG"
    image.write_bytes(jpeg(np.full((60, 60, 3), 90, np.uint8)))
    failing = config(tmp_path, top1=100.0, tolerance=0)
    more: dict[str, Any] = {"configuration": failing} if verdict == "FAIL" else {}
    words = ["--weights", disagreeing] if verdict == "DISAGREE" else []
    assert run("out", *words, "--baseline", tmp_path / "base", forms=forms, **more) == code
    assert verdicts(tmp_path / "out") == {verdict}
    assert "error: " in capsys.readouterr().err, "the comparison that failed is named, too"


# 2. References that do not fit


def test_more_images_than_the_reference_is_of(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("out", configuration=config(tmp_path, images=3, tolerance=3)) == 3
    assert "4 images, but the reported figures are for 3" in capsys.readouterr().err
    assert not (tmp_path / "out" / "summary.csv").exists()


def test_a_reference_without_figures(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = config(tmp_path)
    own.write_text(own.read_text().replace("top1 = 0.0\n", ""))
    assert run("out", configuration=own) == 2
    assert "reference" in capsys.readouterr().err


# 3. A folder never shows another run's result


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--weights", "nowhere.safetensors"], 4),
        (["--variant", "base"], 4),  # the file is small's
        (["--data", "nowhere"], 3),
        (["--backend", "onnxruntime", "--precision", "bf16"], 2),
        (["--forms", "fused"], 2),
        (["--form"], 2),
    ],
)
def test_a_run_that_fails_leaves_no_earlier_pass(
    words: list[str], code: int, run: Run, val: Path, weights: Path, tmp_path: Path
) -> None:
    assert run("out") == 0
    output = tmp_path / "out"
    assert verdicts(output) == {"PASS"}
    files = {path.name for path in output.iterdir()}
    again = ["--data", str(val), "--weights", str(weights), "--output", str(output), "--quiet"]
    again += ["--forms", "unfused"]
    if "--variant" not in words:
        again += ["--config", str(config(tmp_path))]
    assert main([*again, *words]) == code
    assert not (output / "summary.csv").exists()
    assert not {path.name for path in output.iterdir()} & files
    assert {path.name for path in (output / "previous").iterdir()} == files
    assert verdicts(output / "previous") == {"PASS"}


def test_a_bad_image_leaves_no_earlier_pass(run: Run, val: Path, tmp_path: Path) -> None:
    assert run("out") == 0
    (val / "n15075141" / "d.JPEG").write_bytes(b"no image")
    assert run("out") == 3
    assert not (tmp_path / "out" / "summary.csv").exists()
    assert (tmp_path / "out" / "previous" / "summary.csv").is_file()


# 4. The identity of a model is all of its files


@pytest.fixture
def openvino_files(tmp_path: Path) -> Path:
    """A graph and its weights: what a run hashes before a runtime reads them."""
    path = tmp_path / "models" / "m.xml"
    path.parent.mkdir()
    path.write_text('<net><data element_type="f32"/></net>')
    path.with_suffix(".bin").write_bytes(b"one")
    return path


def exported_sha256(path: Path) -> str:
    request = Request(data="x", variant="small", weights=path)
    return open_source(request).load(1000, ignore).sha256


def test_another_bin_beside_the_same_xml_is_another_model(openvino_files: Path) -> None:
    before = exported_sha256(openvino_files)
    assert before == exported_sha256(openvino_files)
    openvino_files.with_suffix(".bin").write_bytes(b"two")
    assert exported_sha256(openvino_files) != before


def test_an_xml_without_its_bin_says_what_is_missing(
    openvino_files: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    openvino_files.with_suffix(".bin").unlink()
    with pytest.raises(ModelError, match=r"m\.bin"):
        exported_sha256(openvino_files)
    assert run("out", "--weights", openvino_files, forms="") == 4
    error = capsys.readouterr().err
    assert "m.bin" in error
    assert "beside" in error
    assert len(error.splitlines()) <= 2


def test_the_hash_of_several_files_does_not_depend_on_their_folder(tmp_path: Path) -> None:
    import hashlib

    hashes = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths = [tmp_path / folder / name for name in ("m.xml", "m.bin")]
        for path in paths:
            path.write_bytes(path.name.encode())
        hashes += [combined_sha256(identify(paths)), combined_sha256(identify(paths[::-1]))]
        assert combined_sha256(identify(paths[:1])) == hashlib.sha256(b"m.xml").hexdigest()
    assert len(set(hashes)) == 1
    (tmp_path / "a" / "m.bin").rename(tmp_path / "a" / "n.bin")
    renamed = identify([tmp_path / "a" / "m.xml", tmp_path / "a" / "n.bin"])
    assert combined_sha256(renamed) != hashes[0]


class Interrupted:
    """Stands for OpenVINO: answers some batches, then Ctrl-C is pressed."""

    kinds: ClassVar = {"exported": Kind.LOGITS}  # known, so that no images of noise are shown

    def __init__(self, batches: int) -> None:
        self.left = batches

    def __call__(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return {"exported": np.tile(np.arange(1000, dtype=np.float32), (len(crops), 1))}


def test_an_interrupted_run_does_not_continue_with_another_bin(
    openvino_files: Path, val: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(data=val, variant="small", weights=openvino_files, batch_size=1, workers=1,
                      output=tmp_path / "out")  # fmt: skip
    monkeypatch.setattr("eval.measure.engine.prepared", nullcontext)
    monkeypatch.setattr("eval.measure.engine.predictor_for", lambda *_, **__: Interrupted(2))
    with pytest.raises(KeyboardInterrupt):
        evaluate(request)
    monkeypatch.setattr("eval.measure.engine.predictor_for", lambda *_, **__: Interrupted(9))
    right = openvino_files.with_suffix(".bin").read_bytes()
    openvino_files.with_suffix(".bin").write_bytes(b"two")
    with pytest.raises(UsageError, match=r"unfinished run .*: files was"):
        evaluate(request)
    openvino_files.with_suffix(".bin").write_bytes(right)
    assert evaluate(request).measured.measured_now == 2


def test_weights_that_change_while_they_are_evaluated_are_refused(
    openvino_files: Path, val: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changing(*_: object, **__: object) -> Interrupted:
        openvino_files.with_suffix(".bin").write_bytes(b"two")
        return Interrupted(9)

    monkeypatch.setattr("eval.measure.engine.prepared", nullcontext)
    monkeypatch.setattr("eval.measure.engine.predictor_for", changing)
    request = Request(data=val, variant="small", weights=openvino_files, output=tmp_path / "out")
    with pytest.raises(ModelError, match=r"m\.bin changed during the evaluation"):
        evaluate(request)
    assert not (tmp_path / "out" / "summary.csv").exists()


# 5. A journal belongs to its run


@pytest.mark.parametrize("forgery", ["no run.json", "records of another run"])
def test_a_journal_that_is_not_this_runs_is_measured_again(
    forgery: str, run: Run, val: Path, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    save_file(pplcnet.create_model("small").state_dict(), tmp_path / "other.safetensors")
    other = ("--weights", tmp_path / "other.safetensors")
    image = val / "n15075141" / "d.JPEG"
    intact = image.read_bytes()
    image.write_bytes(b"no image")  # the last one: those before it are in the journal
    slowly = ("--batch-size", "1", "--workers", "1")
    assert run("out", *slowly) == 3
    assert run("another", *slowly, *other) == 3
    image.write_bytes(intact)
    journal = tmp_path / "out" / "journal"
    assert (journal / "0.bin").stat().st_size
    if forgery == "no run.json":
        (journal / "run.json").unlink()
        used = other
    else:
        forged = tmp_path / "another" / "journal" / "0.bin"
        (journal / "0.bin").write_bytes(forged.read_bytes())
        used = ()
    assert run("out", *slowly, *used) == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["images_measured_now"] == 4
    assert run("clean", *slowly, *used) == 0
    tables = [(tmp_path / name / "predictions.csv").read_bytes() for name in ("out", "clean")]
    assert tables[0] == tables[1]


# Two runs in one folder


def test_a_folder_is_used_by_one_run_at_a_time(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with OutputFolder(tmp_path / "out") as held:
        held.claim()
        assert run("out") == 2
        error = capsys.readouterr().err
        assert "is in use by another run" in error
        assert f"process {os.getpid()}" in error
        assert not (tmp_path / "out" / "summary.csv").exists()
    assert run("out") == 0
    assert not list((tmp_path / "out").glob(".lock*"))


# Streams


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("redirection", "top1", "code"),
    [pytest.param("| true", 100.0, 1, marks=pytest.mark.slow), (">/dev/full", 0.0, 2)],
)
def test_a_lost_stdout_loses_neither_the_verdict_nor_the_history(
    redirection: str, top1: float, code: int, val: Path, weights: Path, tmp_path: Path
) -> None:
    own = config(tmp_path, top1=top1, tolerance=0)
    words = [sys.executable, "-m", "eval.imagenet", "--data", val, "--config", own]
    words += ["--weights", weights, "--output", tmp_path / "out", "--forms", "unfused", "--quiet"]
    words += ["--history", tmp_path / "history.csv", "--image-set", "val"]
    line = f"{{ {shlex.join(map(str, words))}; echo $? > {tmp_path / 'code'}; }} {redirection}"
    ran = subprocess.run(
        ["sh", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert (tmp_path / "code").read_text() == f"{code}\n", ran.stderr
    verdict = "FAIL" if code == 1 else "PASS"
    assert [row["verdict"] for row in rows_of(tmp_path / "history.csv")] == [verdict]
    assert verdicts(tmp_path / "out") == {verdict}
    assert json.loads((tmp_path / "out" / "run.json").read_text())["exit_code"] == code


# Bad images, interruptions, torchrun


def test_all_images_bad_in_both_forms(
    run: Run, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in val.glob("*/*"):
        path.write_bytes(b"no image")
    assert run("out", "--on-bad-image", "record", forms=BOTH) == 3
    assert "INCOMPLETE" in capsys.readouterr().out
    assert verdicts(tmp_path / "out") == {"INCOMPLETE"}
    assert len(rows_of(tmp_path / "out" / "bad_images.csv")) == 4


def press_ctrl_c(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("eval.jobs.evaluate._open_images", "interrupted: nothing was measured yet\n"),
        ("eval.measure.engine.assemble", "is kept in {output}.\nThe same command"),
        (
            "eval.jobs.evaluate.append_history",
            "interrupted: the reports in {output} are complete\n",
        ),
    ],
)
def test_ctrl_c_says_what_was_kept(
    where: str, message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(where, press_ctrl_c)
        assert run("out", "--history", tmp_path / "history.csv") == 130
    assert message.format(output=tmp_path / "out") in capsys.readouterr().err
    assert run("out", "--history", tmp_path / "history.csv") == 0


def test_under_torchrun_the_code_is_printed(tmp_path: Path) -> None:
    words = ["--nproc-per-node", "2", "-m", "eval.imagenet", "--data", str(tmp_path / "nowhere")]
    shown = start("torch.distributed.run", *words, "--variant", "small", "--quiet")
    assert shown.returncode == 1
    assert "exit code 3 (torchrun itself exits with 1)" in shown.stderr
