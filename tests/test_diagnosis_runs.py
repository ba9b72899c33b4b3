"""What a diagnosis finds runs by the argument that it names, with the counts that it announced."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from known_answer import IMAGES, folder_of_images, labels_of_chosen
from safetensors.torch import save_file
from torch import nn

from eval import Request, evaluate
from eval.diagnose import main
from eval.images.preprocess import PREPROCESS, Preprocess
from eval.jobs.diagnose import diagnose_subject
from eval.recipe import parse

MODEL = "test_resnet"  # 160 pixels; mean and std 0.5
TAIL = "crop=160,mean=0.5,std=0.5"


def fitted(path: Path, files: list[Path], right: str, wrong: str) -> None:
    """A checkpoint whose head is correct with one recipe and wrong with another."""
    torch.manual_seed(3)
    model = timm.create_model(MODEL).eval()
    features, targets = [], []
    labels = np.array(labels_of_chosen())
    for text, wanted in ((right, labels), (wrong, np.roll(labels, 1))):
        preprocess = Preprocess.of(parse(text))
        crops = np.stack([preprocess.crop(file.read_bytes()) for file in files])
        images = torch.from_numpy(preprocess.normalize(crops)).permute(0, 3, 1, 2).contiguous()
        with torch.inference_mode():
            features.append(model.forward_head(model.forward_features(images), pre_logits=True))
        targets.append(torch.nn.functional.one_hot(torch.from_numpy(wanted), 1000).double())
    x = torch.cat(features).double()
    center = x.mean(0)
    inverse = torch.linalg.pinv(x - center)
    weight = inverse @ (torch.cat(targets) - 0.5)
    head = model.get_classifier()
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.copy_(weight.T)
        head.bias.copy_(0.5 - center @ weight)
    save_file(model.state_dict(), path)


@pytest.mark.parametrize(
    ("configured", "true", "changes", "library"),
    [
        # Made for torchvision's Resize((160, 160)), and evaluated with OpenCV.
        (f"paddle,resize=168,{TAIL}", f"torchvision,resize=160x160,{TAIL}", "squash", "Pillow"),
        pytest.param(
            f"torchvision,resize=168,{TAIL}", f"paddle,resize=160x160,{TAIL}", "squash", "OpenCV",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_the_argument_that_is_named_runs_it(
    configured: str, true: str, changes: str, library: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    root = folder_of_images(tmp_path, labels_of_chosen())
    files = sorted(root.glob("*/*"), key=lambda path: int(path.stem.split("_")[1]))
    weights = tmp_path / "w.safetensors"
    fitted(weights, files, true, configured)
    options = {"data": root, "model": f"timm:{MODEL}", "weights": weights}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    found = tmp_path / "d.json"
    code = main([*words, "--preprocess", configured, "--json", str(found), "--quiet"])
    told = json.loads(found.read_text())
    printed = capsys.readouterr().out
    assert (code, told["outcome"], told["changes"]) == (1, "explained", {"resize": changes})
    assert f"resize: {changes} by {library}" in printed
    assert f"It runs with --preprocess {true}" in " ".join(printed.split())
    assert told["preprocess"] == true
    assert told["with_changes"]["top1_correct"] >= IMAGES - 1
    for text, announced in ((true, "with_changes"), (configured, "as_is")):
        (counted,) = evaluate(Request(**options, preprocess=text)).summary["top1_correct"]
        assert counted == told[announced]["top1_correct"]


@pytest.mark.parametrize("processes", [None, 4])
def test_it_has_a_thread_for_each_core_however_large_the_set_is(
    processes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of 50,000 images has processes of a few threads each; a diagnosis is one process."""
    seen: list[Any] = []

    def stop(_subject: Any, _valset: Any, machine: Any, *_: Any) -> None:
        seen.append(machine)
        raise InterruptedError

    monkeypatch.setattr("eval.measure.cores.usable_cores", lambda: 64)
    monkeypatch.setattr("eval.jobs.diagnose.ModelBench", stop)
    source = SimpleNamespace(
        request=Request(data="val", processes=processes),
        backend="torch",
        own_preprocess=lambda: PREPROCESS["torchvision"],
    )
    valset = SimpleNamespace(samples=range(50_000))
    with pytest.raises(InterruptedError):
        diagnose_subject(SimpleNamespace(precision=None), valset, source, 500)  # type: ignore[arg-type]
    assert seen[0].workers == 64
