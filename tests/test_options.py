"""What is typed: options declared once, values refused alike, mistakes answered in two lines."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from eval import cli, imagenet, regression
from eval.errors import UsageError
from eval.models import open_source
from eval.options import to_request
from eval.parser import Parser
from eval.request import OPTIONS, Request, option_name
from eval.values import flag

NEEDED = {  # the options without which a command refuses everything else
    "imagenet": ["--data", "x"], "data": ["--data", "x"], "sweep": ["--data", "x"],
    "diagnose": ["--data", "x"], "export": ["--output", "x"], "history": ["x"],
    "audit": ["x", "--data", "x"], "score": ["x", "--data", "x"],
    "regression": ["--baseline", "x", "--candidate", "x"],
}  # fmt: skip


def answer(command: str, words: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr of a command that is refused."""
    assert import_module(f"eval.{command}").main(shlex.split(words)) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    lines = shown.err.removeprefix("error: ").splitlines()
    assert len(lines) <= 2, shown.err
    return lines


@pytest.mark.parametrize(
    ("command", "words", "meant"),
    [
        ("imagenet", "--data-dir V -b 64", "--data V --batch-size 64"),
        ("imagenet", "--data-dir=V -j 8", "--data V --workers 8"),
        ("imagenet", "--data V --checkpoint f.pth", "--data V --weights f.pth"),
        ("imagenet", "--data V --batch_size 4", "--data V --batch-size 4"),
        ("imagenet", "--data V --weight f", "--data V --weights f"),
        ("imagenet", "/val --variant base", "--data /val --variant base"),
        ("imagenet", "/val w.pdparams base", "--data /val --weights w.pdparams --variant base"),
        ("imagenet", "--fp16 /val timm:resnet18",
         "--precision fp16 --data /val --model timm:resnet18"),
        ("imagenet", "-c ppcls/configs/PPLCNetV2_base.yaml -o Global.pretrained_model=F",
         "--variant base --weights F.pdparams --data PATH"),
        ("imagenet", "-c PPLCNetV2_base.yaml -o Global.device=gpu Eval.dataset.image_root=/val",
         "--variant base --device cuda --data /val"),
        ("imagenet", "ILSVRC2012_img_val.tar best.pth.tar",
         "--data ILSVRC2012_img_val.tar --weights best.pth.tar"),
        ("imagenet", "-b", "--batch-size N --data PATH"),
        ("imagenet", "--data 'my val' --limit -1 --out_dir o",
         "--data 'my val' --limit -1 --output o"),
        ("diagnose", "--data-dir V --amp", "--data V --precision fp16"),
        ("audit", "out /val", "out --data /val"),
        ("data", "/val", "--data /val"),
        ("data", "--dat /val", "--data /val"),
        ("score", "p.csv /val", "p.csv --data /val"),
        ("regression", "a b", "--baseline a --candidate b"),
        ("regression", "--baseline a b --tolerance 5",
         "--baseline a --candidate b --max-drop-top1 5"),
        ("sweep", "--data V --weights a.pth b.pth --fp16",
         "--data V --weights a.pth b.pth --precision fp16"),
        ("export", "--output o w.pth --variants base", "--output o --weights w.pth --variant base"),
        ("imagenet", "--data V -b64 -j4", "--data V --batch-size 64 --workers 4"),
        ("imagenet", "--resume w.pth --evaluate --dir V", "--weights w.pth --data V"),
        ("imagenet", "--test-only --data V --seed 1", "--data V"),
        ("imagenet", "--data-path V --dataset imagenet --count 9", "--data V --limit 9"),
        ("imagenet", "--data V --img-size 224", "--data V --preprocess torchvision,crop=224"),
        ("imagenet", "--data V --input-size 3 240 240 --mean 0.5 0.5 0.5 --std 0.5",
         "--data V --preprocess torchvision,crop=240,mean=0.5/0.5/0.5,std=0.5"),
        ("imagenet", "--data V --model timm:a --val-resize-size 232 --interpolation bicubic",
         "--data V --model timm:a --preprocess own,resize=232,interpolation=bicubic"),
        ("imagenet", "--data V --gpu 1", "--data V --device cuda:1"),
        ("imagenet", "--data V --use_gpu False", "--data V --device cpu"),
        ("imagenet", "--data V --dtype float16", "--data V --precision fp16"),
        ("imagenet", "--data V --num-classes 10", "--data V --classes FILE"),
        ("imagenet", "--data V --real-labels real.json", "--data V --real-labels"),
        ("imagenet", "--data V -o out -q", "--data V --output out --quiet"),
        ("imagenet", "data=V variant=base", "--data V --variant base"),
        ("imagenet", "\u2014data V", "--data V"),
        ("sweep", "--data V --model timm:a,timm:b", "--data V --variant timm:a,timm:b"),
        ("diagnose", "--data V --limit 9", "--data V --images 9"),
    ],
)  # fmt: skip
def test_the_command_that_was_meant(
    command: str, words: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    what, advice = answer(command, words, capsys)
    assert what.startswith(f"python -m eval.{command} does not take ")
    assert advice == f"Did you mean: python -m eval.{command} {meant}"
    assert not _unknown(command, shlex.split(meant)), "what is advised is understood"


def _unknown(command: str, words: list[str]) -> str:
    try:
        import_module(f"eval.{command}")._parser().read(words)
    except UsageError as error:
        return str(error) if "does not take" in str(error) else ""
    return ""


def test_shards_that_the_shell_named(capsys: pytest.CaptureFixture[str]) -> None:
    shards = " ".join(f"val/x-{number:02}.tar" for number in range(64))
    assert answer("data", f"--data {shards}", capsys) == [
        "--data names 64 files: val/x-00.tar, val/x-01.tar, val/x-02.tar, ... (64 in all).",
        "Give their folder, --data val, or quote the name: --data 'x-{00..63}.tar'",
    ]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("--data V --zzz", "--zzz"), ("--data V W", "W"), ("--data V --data-dir W", "--data-dir"),
        ("--data V -o Optimizer.lr=3", "-o"), ("--data V -c ResNet50.yaml", "-c"),
        ("--data V --reparam --forms unfused", "--reparam"),
    ],
)  # fmt: skip
def test_what_cannot_be_guessed_is_named(
    words: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer("imagenet", words, capsys) == [
        f"python -m eval.imagenet does not take {what}.",
        "python -m eval.imagenet --help explains the options.",
    ]


@pytest.mark.parametrize(
    ("command", "words", "first", "second"),
    [
        ("imagenet", "--device gpu", "--device gpu: use auto, cpu, cuda or cuda:N.",
         "Did you mean --device cuda?"),
        ("imagenet", "--device GPU:1", "--device GPU:1: use", "Did you mean --device cuda:1?"),
        ("imagenet", "--backend onnx", "--backend onnx: use one of torch, onnxruntime, ",
         "Did you mean --backend onnxruntime?"),
        ("imagenet", "--precision float16", "--precision float16: use one of fp32, bf16, fp16.",
         "Did you mean --precision fp16?"),
        ("imagenet", "--variant PPLCNetV2_base",
         "--variant PPLCNetV2_base: no such variant. Did you mean 'base'?", None),
        ("imagenet", "--model mobileone_s1", "--model mobileone_s1: write timm:NAME ",
         "Did you mean --model timm:mobileone_s1?"),
        ("imagenet", "--model hf_hub:timm/resnet18.a1_in1k", "--model hf_hub:timm/resnet18",
         "Did you mean --model timm:resnet18.a1_in1k?"),
        ("imagenet", "--model torchvision.models.resnet50", "--model torchvision.models",
         "Did you mean --model torchvision:resnet50?"),
        ("imagenet", "--model base", "--model base: write ", "Did you mean --variant base?"),
        ("imagenet", "--model PPLCNetV2_base_ssld", "--model PPLCNetV2_base_ssld: ",
         "Did you mean --variant base_ssld?"),
        ("imagenet", "--limit 10%", "--limit 10%: use a number of images.",
         "Did you mean --limit 5000, of 50,000?"),
        ("imagenet", "--limit", "--limit: expected one argument.",
         "python -m eval.imagenet --help explains the options."),
        ("imagenet", "--limit 0", "--limit 0: use a positive number.", None),
        ("imagenet", "--batch-size 9999", "--batch-size 9999: use at most 4096; larger ", None),
        ("imagenet", "--demo=yes", "--demo: ignored explicit argument 'yes'.",
         "python -m eval.imagenet --help explains the options."),
        ("sweep", "--precision fp32,half", "--precision half: use one of fp32, bf16, fp16.",
         "Did you mean --precision fp16?"),
        ("sweep", "--backend tflite", "--backend tflite: use one of ",
         "Did you mean --backend litert?"),
        ("sweep", "--forms both,unfused", "--forms both,unfused: use unfused, repara", None),
        ("export", "--format onnxruntime", "--format onnxruntime: use one of onnx, openvino, ",
         "Did you mean --format onnx?"),
        ("export", "--int8 --calibrate c --max-drop x", "--max-drop x: write percentage points, ",
         None),
        ("imagenet", "--forms fused", "--forms fused: use unfused, ",
         "Did you mean --forms reparameterized?"),
        ("imagenet", "--image-set validation", "--image-set validation: use one of val.",
         "Did you mean --image-set val?"),
        ("imagenet", "--preprocess resize=232", "--preprocess resize=232: there is no ",
         "Did you mean torchvision,resize=232?"),
        ("imagenet", "--preprocess bicubic", "--preprocess bicubic: there is no ",
         "Did you mean torchvision,interpolation=bicubic?"),
        ("imagenet", "--preprocess torchvision,mean=0.5,0.4,0.3", "--preprocess torchvision,mean=",
         "Write torchvision,mean=0.5/0.4/...,..."),
        ("imagenet", "--weights https://x.y/z.pdparams", "--weights https://x.y/z.pdparams is a ",
         "Download it first, and give its path."),
        ("score", "--tolerance -1", "--tolerance -1: use a number, 0 or more.", None),
        ("audit", "--seed x", "--seed x: use a whole number.", None),
    ],
)  # fmt: skip
def test_a_value_that_is_none(
    command: str, words: str, first: str, second: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = shlex.join(NEEDED[command])
    lines = answer(command, f"{needed} {words}", capsys)
    assert lines[0].startswith(first)
    assert lines[1:] == ([second] if second else [])


def options_with_values(command: str) -> list[str]:
    parser: Parser = import_module(f"eval.{command}")._parser()
    return [name for name in parser.options() if parser.action_of(name).nargs != 0]


@pytest.mark.parametrize("command", list(cli.COMMANDS))
@pytest.mark.parametrize("empty", ["", "  "])
def test_no_value_may_be_empty(
    command: str, empty: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As that of an unset variable: --baseline "$UNSET"."""
    seen = 0
    for option in options_with_values(command):
        needed = NEEDED[command]
        if option in needed:
            at = needed.index(option)
            needed = needed[:at] + needed[at + 2 :]
        what, advice = answer(command, shlex.join([*needed, f"{option}={empty}"]), capsys)
        assert what == f"{option} is empty.", option
        assert advice.startswith("Name a value")
        seen += 1
    assert seen


@pytest.mark.parametrize("words", ["score '' --data x", "history ''", "audit '' --data x"])
def test_no_argument_may_be_empty(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, _, rest = words.partition(" ")
    assert re.fullmatch(r"[A-Z]+ is empty\.", answer(command, rest, capsys)[0])


@pytest.mark.parametrize("name", [name for name, row in OPTIONS.items() if row.kind is not flag])
def test_nor_in_a_request(name: str) -> None:
    with pytest.raises(UsageError, match=f"^{option_name(name)} is empty"):
        Request(**{"data": "x", name: ""})


def test_an_unknown_backend_of_a_request_is_refused_with_the_same_words() -> None:
    with pytest.raises(UsageError, match=r"^--backend onnx: .*\nDid you mean --backend onnxruntim"):
        open_source(Request(data="x", backend="onnx"))


def test_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    request = Request(data="~/val", weights="~/w.pth", baseline="~/h.csv#run", cache=Path("~/c"))
    assert request.data == tmp_path / "val"
    assert request.weights == f"{tmp_path}/w.pth"
    assert request.baseline == f"{tmp_path}/h.csv#run"
    assert request.cache == tmp_path / "c"
    assert Request(data="./~/val").data == Path("~/val"), "a folder of that name"
    assert Request(data="x", weights="auto").weights == "auto"
    for command, words in (
        ("data", ["--data=~/v"]), ("history", ["~/v"]), ("score", ["~/v", "--data=~/v"]),
        ("regression", ["--baseline=~/v", "--candidate=~/v"]), ("audit", ["~/v", "--data=~/v"]),
        ("sweep", ["--data=~/v"]),
    ):  # fmt: skip
        assert import_module(f"eval.{command}").main(words) in (2, 3)
        assert str(tmp_path / "v") in capsys.readouterr().err


def test_both_forms() -> None:
    assert Request(data="x", forms="both").forms == ("unfused", "reparameterized")


@pytest.mark.parametrize("value", [1, "yes", None])
def test_a_flag_is_true_or_false(value: Any) -> None:
    with pytest.raises(UsageError, match="--latency"):
        Request(data="x", latency=value)


def test_a_request_and_its_words_are_the_same() -> None:
    request = Request(
        data="my val", config="c.toml", forms="unfused", batch_size=8, workers=2, limit=5,
        device="cuda:1", precision="bf16", latency=True, backend="compile", classes="c.txt",
        labels="l.txt", on_bad_image="record", real_labels=False, baseline="h.csv#x",
    )  # fmt: skip
    words = request.words("subject", "compute", "run")
    assert to_request(imagenet._parser().read(words), "") == request
    assert Request(data="x").words("subject", "compute", "run") == ["--data", "x"]


def test_an_option_is_declared_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The help, the class's documentation and run.json have all of them."""
    shown = " ".join(imagenet._parser().format_help().split())
    for name, option in OPTIONS.items():
        assert option_name(name) in shown
        assert " ".join(option.about.split()) in shown
        assert f"        {name}: {option.about}." in str(Request.__doc__)
    assert set(Request(data="x").as_dict()) == {*OPTIONS, "command"}


def test_the_results_of_two_commands_mean_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert regression.main(["--baseline", "x#y", "--candidate", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_a_command_is_short(command: str) -> None:
    assert len((ROOT / f"eval/{command}.py").read_text().splitlines()) < 150


def test_jobs_know_no_command_line() -> None:
    for path in (ROOT / "eval/jobs").glob("*.py"):
        assert not re.search(r"\bargparse\b|\bprint\(|\bsys\.std", path.read_text()), path


@pytest.mark.parametrize("option", ["weights", "preprocess", "data", "variant", "model", "backend"])
def test_a_line_break_in_a_value(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing that was typed can add a line to a message."""
    lines = answer("imagenet", f"--{option} 'a\nPASS'", capsys)
    assert "a\\nPASS has a line break" in lines[0]
