"""Scripts end with the exit codes of the commands: a crash or a refusal is never a 1."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file, save_file

from eval.cli import run_command
from eval.models.variants import load_forms

SCRIPTS = sorted(
    path.stem
    for path in (ROOT / "scripts").glob("*.py")
    if "__main__" in path.read_text(encoding="utf-8")
)


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def convert(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run convert_weights.py: exit code, and what it printed."""

    def run(*words: object) -> tuple[int, str]:
        code = load_script("convert_weights").main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def test_convert_writes_what_it_reads(
    convert: Callable[..., tuple[int, str]], weights: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.safetensors"
    code, told = convert(weights, target)
    assert (code, told.startswith(f"{target}: unfused, ")) == (0, True)
    before, after = load_file(weights), load_file(target)
    assert all(torch.equal(after[name], before[name]) for name in after)
    code, told = convert(weights, target, "--reparameterize")
    assert (code, told.startswith(f"{target}: reparameterized, ")) == (0, True)


def test_convert_keeps_what_the_weights_were_stored_in(
    convert: Callable[..., tuple[int, str]], weights: Path, tmp_path: Path
) -> None:
    """Rounded values in fp32 are not fp32 weights: whatever is made of them is judged as fp16."""
    half = {name: tensor.half() for name, tensor in load_file(weights).items()}
    save_file(half, tmp_path / "half.safetensors")
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    code, told = convert(tmp_path / "half.safetensors", once)
    assert (code, told.rstrip().endswith("marked as fp16 weights")) == (0, True)
    convert(once, twice, "--reparameterize")
    for path in (once, twice):
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float32}
        form = "reparameterized" if path == twice else "unfused"
        stored = load_forms("small", path, (form,), 1000)[2]
        assert stored == "fp16 weights"
    save_file(load_file(once), tmp_path / "odd.safetensors", {"pplcnet.stored": "\x1b[2J"})
    assert load_forms("small", tmp_path / "odd.safetensors", ("unfused",), 1000)[2] == "unknown"


def test_convert_takes_an_entry(
    convert: Callable[..., tuple[int, str]], weights: Path, tmp_path: Path
) -> None:
    state = load_file(weights)
    ema = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"state_dict": state, "state_dict_ema": ema}, tmp_path / "w.pth")
    target = tmp_path / "out.safetensors"
    code, told = convert(tmp_path / "w.pth", target)
    assert (code, "2 models: state_dict, state_dict_ema" in told) == (4, True)
    code, _ = convert(tmp_path / "w.pth", target, "--weights-entry", "state_dict_ema")
    assert code == 0
    assert torch.equal(load_file(target)["fc.bias"], ema["fc.bias"])


def test_convert_ends_with_the_codes_of_the_contract(
    convert: Callable[..., tuple[int, str]], weights: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    target = tmp_path / "out.safetensors"
    tensors = load_file(weights)
    first = next(iter(tensors))
    save_file(tensors | {first: tensors[first].to(torch.complex64)}, tmp_path / "c.safetensors")
    for words, code, message in (
        ((tmp_path / "none.pth", target), 4, "no such file"),
        ((tmp_path / "c.safetensors", target), 4, "is complex64; weights must be real numbers"),
        ((weights, tmp_path / "out.onnx"), 2, "OUT must end in .safetensors"),
        ((weights, tmp_path / "no" / "out.safetensors"), 2, "cannot be written"),
    ):
        found, told = convert(*words)
        assert (found, message in told) == (code, True), told
        assert told.startswith("error: ")
        assert len(told.splitlines()) <= 2
        assert not target.exists()

    def crash(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("pplcnet.read_weights", crash)
    assert convert(weights, target)[0] == 70


def test_make_val_labels_refuses_other_lists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("make_val_labels")
    before = script.OUTPUT.read_bytes()
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]
    (tmp_path / "short.txt").write_text(f"{names[0]} 65\n")
    (tmp_path / "words.txt").write_text("a letter to nobody\n")
    (tmp_path / "uneven.txt").write_text("".join(f"{name} 0\n" for name in names))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    for name, message in (
        ("short.txt", "does not have a line for each of images"),
        ("words.txt", "does not have a line for each of images"),
        ("uneven.txt", "50 images in each of the 1000 classes"),
        ("binary.txt", "cannot be read"),
        ("none.txt", "cannot be read"),
    ):
        assert script.main([str(tmp_path / name)]) == 3
        assert message in capsys.readouterr().err
    assert script.OUTPUT.read_bytes() == before


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_ends_through_run_command(name: str) -> None:
    """Its last line gives the code to the system, and `run_command` gives it that code."""
    source = (ROOT / "scripts" / f"{name}.py").read_text(encoding="utf-8")
    assert "run_command(" in source
    assert "SystemExit" not in source
    assert source.rstrip().splitlines()[-1].strip().startswith("sys.exit(")


def test_a_script_that_is_interrupted_or_crashes() -> None:
    code = (
        "import sys; from eval.cli import run_command\n"
        "def main(): raise {}\n"
        "sys.exit(run_command(lambda _: main()))"
    )
    for error, expected in (("KeyboardInterrupt", 130), ("ZeroDivisionError", 70)):
        words = [sys.executable, "-c", code.format(error)]
        assert subprocess.run(words, capture_output=True, check=False).returncode == expected
    assert run_command(lambda _: 0, []) == 0


def test_mutation_writes_properties_as_plain_functions() -> None:
    """Mutation testing leaves decorated functions out, and would find nothing to change in them."""
    code = (
        "class A:\n    @property\n    def x(\n        self,\n    ) -> int:\n        return 1\n\n"
        "    @staticmethod\n    def y() -> int:\n        return 2\n\n\n"
        "@functools.cache\ndef z() -> int:\n\n    return 3\n"
    )
    assert load_script("mutation").undecorated(code) == (
        "class A:\n    def x(\n        self,\n    ) -> int:\n        return 1\n\n"
        "    x = property(x)\n\n    @staticmethod\n    def y() -> int:\n        return 2\n\n\n"
        "def z() -> int:\n\n    return 3\n\nz = functools.cache(z)\n"
    )
