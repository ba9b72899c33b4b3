"""Attempts at a verdict that was not earned, an error that is not clear, or code that is executed.

    python scripts/hostile.py [--list] [--only WORDS]

A network is fitted so that a run over eight images of noise is a PASS with 8 of 8 and no tolerance.
Then each attempt changes one thing: the weights, the images, the folder, the environment, a file of
the result, the words of the command. It has failed, which is what it should do, if

- the exit code is one of those that the attempt may end with, and documented;
- an error is one or two lines, and no traceback;
- no PASS stands in the folder unless the attempt may end with 0 and a PASS;
- nothing that it planted was executed.

Exits with 1 if an attempt has succeeded, and names it. The attempts run in this process, but for
those about the environment.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

import eval.audit
import eval.imagenet
import eval.regression
import pplcnet
from eval.cli import run_command
from eval.images.classes import imagenet_classes
from eval.images.preprocess import PREPROCESS

IMAGES = 8
DOCUMENTED = {0, 1, 2, 3, 4, 5, 130}
CONFIG = """name = "noise"
model = "small"
images = 8
[reference]
top1 = 100.0
source = "the fit of this script"
[tolerance.torchvision]
images = 0
reason = "it was fitted"
"""


@dataclass
class Place:
    """A copy of everything, which an attempt may spoil.

    Attributes:
        folder: with ``val``, ``weights.safetensors``, ``noise.toml`` and the honest ``result``.
    """

    folder: Path

    @property
    def val(self) -> Path:
        """The eight images."""
        return self.folder / "val"

    @property
    def weights(self) -> Path:
        """The checkpoint."""
        return self.folder / "weights.safetensors"

    @property
    def result(self) -> Path:
        """The honest result."""
        return self.folder / "result"

    @property
    def output(self) -> Path:
        """Where an attempt's run writes."""
        return self.folder / "out"

    @property
    def images(self) -> list[Path]:
        """The image files."""
        return sorted(self.val.glob("*/*"))

    def words(self, *more: str | Path) -> list[str]:
        """The honest command; the last value of an option that is given again counts."""
        words: list[str | Path] = ["--data", self.val, "--config", self.folder / "noise.toml"]
        words += ["--weights", self.weights, "--output", self.output, "--quiet"]
        words += ["--image-set", "val", "--forms", "unfused", "--workers", "1", *more]
        return [str(word) for word in words]


@dataclass(frozen=True)
class Attempt:
    """One attempt.

    Attributes:
        name: what is tried.
        spoil: does it, and gives further words for the command.
        command: which one is run.
        allowed: exit codes that it may end with.
        may_pass: whether a PASS may stand in the folder.
        environment: of a process of its own; None: this process.
        program: what the process runs, in place of ``-m eval.imagenet``.
    """

    name: str
    spoil: Callable[[Place], list[str]]
    command: str = "imagenet"
    allowed: frozenset[int] = frozenset({2, 3, 4, 5})
    may_pass: bool = False
    environment: dict[str, str] | None = None
    program: tuple[str, ...] = ("-m", "eval.imagenet")


UNJUDGED = frozenset({0})  # measured, and compared with nothing
REFUSED = frozenset({2, 3, 4, 5})
ANY = frozenset({0, 1, 2, 3, 4, 5})


# --- The honest run -------------------------------------------------------------------------------


def fitted(paths: list[Path]) -> pplcnet.PPLCNetV2:
    """A network that gives each image a class of its own, and gives it by far."""
    torch.manual_seed(6)
    model = pplcnet.create_model("small").eval()
    preprocess = PREPROCESS["torchvision"]
    crops = np.stack([preprocess.crop(path.read_bytes()) for path in paths])
    pixels = torch.from_numpy(preprocess.normalize(crops)).permute(0, 3, 1, 2)
    kept: list[torch.Tensor] = []
    hook = model.fc.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        model(pixels)
        hook.remove()
        features = kept[0].double()
        target = torch.zeros(len(paths), 1000, dtype=torch.float64)
        target[range(len(paths)), range(len(paths))] = 10.0
        model.fc.weight.copy_((torch.linalg.pinv(features) @ target).T.float())
        model.fc.bias.zero_()
    return model


def prepare(folder: Path) -> Place:
    """Images, a network, and the honest run over them.

    Raises:
        RuntimeError: it is no PASS.
    """
    place = Place(folder)
    random = np.random.RandomState(0)
    for number in range(IMAGES):
        path = place.val / imagenet_classes()[number].synset / f"{number}.JPEG"
        path.parent.mkdir(parents=True)
        small = random.randint(0, 256, (9, 9, 3), np.uint8)
        Image.fromarray(small).resize((260, 256)).save(path, quality=95)
    safetensors.torch.save_file(fitted(place.images).state_dict(), place.weights)
    (folder / "noise.toml").write_text(CONFIG)
    code, shown = in_process("imagenet", place.words("--output", place.result))
    if code != 0 or "PASS" not in (place.result / "summary.csv").read_text():
        raise RuntimeError(f"the honest run is no PASS ({code}):\n{shown}")
    return place


# --- Weights --------------------------------------------------------------------------------------


class Command:
    """What a hostile pickle calls."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def state(place: Place) -> dict[str, torch.Tensor]:
    """The tensors of the checkpoint."""
    return dict(safetensors.torch.load_file(place.weights))


def stored(place: Place, tensors: dict[str, torch.Tensor], suffix: str) -> list[str]:
    """Write a checkpoint of a format, and name it."""
    path = place.folder / f"other{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    elif suffix == ".pth":
        torch.save(tensors, path)
    else:
        path.write_bytes(pickle.dumps({name: t.numpy() for name, t in tensors.items()}, 4))
    return ["--weights", str(path)]


def rounded(dtype: torch.dtype, which: str, suffix: str) -> Callable[[Place], list[str]]:
    """Some tensors in another type."""

    def spoil(place: Place) -> list[str]:
        tensors = state(place)
        for name, tensor in tensors.items():
            if which in name and tensor.is_floating_point():
                tensors[name] = tensor.to(dtype)
        return stored(place, tensors, suffix)

    return spoil


def edited(name: str, edit: Callable[[torch.Tensor], Any]) -> Callable[[Place], list[str]]:
    """One tensor with other values."""

    def spoil(place: Place) -> list[str]:
        tensors = state(place)
        changed = edit(tensors[name].clone())
        tensors[name] = changed
        return stored(place, tensors, ".safetensors")

    return spoil


def set_first(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Change the first value of a tensor."""

    def edit(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[0] = value
        return tensor

    return edit


def content(data: bytes | Callable[[bytes], bytes], name: str) -> Callable[[Place], list[str]]:
    """A file with other bytes in place of the checkpoint."""

    def spoil(place: Place) -> list[str]:
        path = place.folder / name
        path.write_bytes(data(place.weights.read_bytes()) if callable(data) else data)
        return ["--weights", str(path)]

    return spoil


def header(text: bytes, body: bytes = b"") -> bytes:
    """A .safetensors file of a header and a body."""
    return struct.pack("<Q", len(text)) + text + body


BODIES: dict[str, bytes] = {
    "an empty file": b"",
    "a web page": b"<!DOCTYPE html><html>404</html>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    "gzip": b"\x1f\x8b\x08" + bytes(100),
    "zeros": bytes(5000),
    "a hostile pickle": pickle.dumps({"fc.weight": Command()}),
    "a hostile pickle of protocol 0": pickle.dumps({"fc.weight": Command()}, 0),
    "eval in a pickle": b'cbuiltins\neval\n(S\'open("executed","w")\'\ntR.',
    "an opcode that does not exist": b"\x80\x04\xff.",
    "a pickle that refers to itself": b"\x80\x04}\x94\x8c\x01ah\x00s.",
    "a deep pickle": b"(" * 200_000 + b".",
    "a pickle of a huge array": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
}
HEADERS = {
    "a header of 2^63 bytes": struct.pack("<Q", 2**63),
    "a header that is no JSON": header(b"{not json"),
    "offsets that overlap": header(
        b'{"fc.bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b'"fc.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        bytes(8),
    ),
    "offsets beyond the end": header(
        b'{"fc.bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(4)
    ),
    "a shape of 10^18": header(
        b'{"fc.bias":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,8]}}',
        bytes(8),
    ),
    "a negative shape": header(
        b'{"fc.bias":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', bytes(8)
    ),
    "names with escape sequences": header(
        b'{"\\u001b[2Jfc":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)
    ),
}


def types_attempts() -> Iterator[Attempt]:
    """Tensors that were stored in another type."""
    half, brain = torch.float16, torch.bfloat16
    for suffix, dtype, which in itertools.product(
        (".safetensors", ".pth"), (half, brain), ("", "fc.weight", "stem.0.conv", "bn.bias")
    ):
        what = which or "all"
        yield Attempt(
            f"{what} stored in {dtype} in {suffix}", rounded(dtype, which, suffix), allowed=UNJUDGED
        )
    yield Attempt(
        "all stored in fp16 in .pdparams",
        rounded(half, "", ".pdparams"),
        allowed=UNJUDGED | REFUSED,
    )
    for suffix, dtype in itertools.product(
        (".safetensors", ".pth"), (torch.int8, torch.uint8, torch.int64, torch.bool)
    ):
        yield Attempt(
            f"fc.weight stored in {dtype} in {suffix}", rounded(dtype, "fc.weight", suffix)
        )
    yield Attempt(
        "all stored in fp8",
        rounded(torch.float8_e4m3fn, "", ".safetensors"),
        allowed=UNJUDGED | REFUSED,
    )


def values_attempts() -> Iterator[Attempt]:
    """Other numbers under the same name."""
    for value in (float("nan"), float("inf"), float("-inf"), -1e38):
        for name in ("fc.bias", "stem.0.conv.weight", "stem.0.bn.running_mean"):
            yield Attempt(
                f"{name} begins with {value}", edited(name, set_first(value)), allowed=REFUSED | {1}
            )
    yield Attempt("a variance is negative", edited("stem.0.bn.running_var", set_first(-1.0)))
    yield Attempt("all logits are the same", edited("fc.weight", lambda t: t * 0), allowed=REFUSED)
    yield Attempt("a tensor has another shape", edited("fc.bias", lambda t: t[:-1].clone()))
    yield Attempt("the classifier is transposed", edited("fc.weight", lambda t: t.T.contiguous()))


def files_attempts() -> Iterator[Attempt]:
    """Checkpoints that are damaged, or none."""
    for cut in (1, 8, 1000, 100_000):
        yield Attempt(
            f"the checkpoint lacks its last {cut} bytes",
            content(lambda data, cut=cut: data[:-cut], "cut.safetensors"),
        )
        yield Attempt(
            f"the checkpoint has {cut} bytes more",
            content(lambda data, cut=cut: data + bytes(cut), "l.safetensors"),
        )
    for name in ("w.pth", "w.pt", "w.pdparams", "w.onnx", "w.xml", "w.tflite", "w.json"):
        yield Attempt(
            f"a .safetensors file is called {name}",
            content(lambda data: data, name),
            allowed=REFUSED | {0},
            may_pass=True,
        )
    for (what, data), suffix in itertools.product(BODIES.items(), (".pdparams", ".pth")):
        yield Attempt(f"{what} as a {suffix}", content(data, f"bad{suffix}"))
    for what, data in HEADERS.items():
        yield Attempt(f"{what} in .safetensors", content(data, "bad.safetensors"))


# --- Images ---------------------------------------------------------------------------------------


def image(change: Callable[[Path], object]) -> Callable[[Place], list[str]]:
    """One image is changed."""

    def spoil(place: Place) -> list[str]:
        change(place.images[0])
        return []

    return spoil


def replaced(path: Path, target: str | Path) -> None:
    """A link in place of a file."""
    path.unlink()
    path.symlink_to(target)


def saved(mode: str, kind: str) -> Callable[[Path], None]:
    """The image in another mode and format."""

    def change(path: Path) -> None:
        Image.new(mode, (300, 260)).save(path, kind)

    return change


def images_attempts() -> Iterator[Attempt]:
    """Files that are no images, other images, and files beside them."""
    changes: dict[str, Callable[[Path], object]] = {
        "is empty": lambda p: p.write_bytes(b""),
        "lacks its second half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
        "lacks its last 2 bytes and 100": lambda p: p.write_bytes(p.read_bytes()[:-102]),
        "is text": lambda p: p.write_text("no image"),
        "is a web page": lambda p: p.write_text("<html>"),
        "is a link to nothing": lambda p: replaced(p, "nowhere"),
        "is a link to itself": lambda p: replaced(p, p.name),
        "is a link to /dev/zero": lambda p: replaced(p, "/dev/zero"),
        "is a pipe": lambda p: (p.unlink(), os.mkfifo(p)),
        "is a folder": lambda p: (p.unlink(), p.mkdir()),
        "claims to be 65,500 pixels wide": lambda p: p.write_bytes(
            p.read_bytes().replace(
                struct.pack(">HH", 256, 260), struct.pack(">HH", 65500, 65500), 1
            )
        ),
        "is a GIF": saved("P", "GIF"),
        "is a gray PNG of another picture": saved("L", "PNG"),
        "is a TIFF of 16 bits": saved("I;16", "TIFF"),
        "is a bitmap": saved("RGB", "BMP"),
        "is one of another class": lambda p: p.write_bytes(
            sorted(p.parents[1].glob("*/*"))[1].read_bytes()
        ),
        "is deleted": lambda p: p.unlink(),
        "is in another class's folder": lambda p: p.rename(
            sorted(p.parents[1].iterdir())[1] / p.name
        ),
        "has another class's official name": lambda p: p.rename(
            p.with_name("ILSVRC2012_val_00000001.JPEG")
        ),
        "is black": saved("RGB", "JPEG"),
    }
    for what, change in changes.items():
        yield Attempt(f"an image {what}", image(change), allowed=REFUSED | {0, 1})
    beside: dict[str, Callable[[Path], object]] = {
        "a copy under another name": lambda p: shutil.copy(p, p.with_name("copy.JPEG")),
        "a hard link": lambda p: p.with_name("hard.JPEG").hardlink_to(p),
        "a link to it": lambda p: p.with_name("soft.JPEG").symlink_to(p.name),
        "a copy in another class": lambda p: shutil.copy(
            p, sorted(p.parents[1].iterdir())[3] / "copy.JPEG"
        ),
        "a .heic file": lambda p: shutil.copy(p, p.with_suffix(".heic")),
        "a file without a suffix": lambda p: shutil.copy(p, p.with_suffix("")),
        "a folder of images": lambda p: shutil.copytree(
            p.parents[1] / p.parent.name, p.parent / "s"
        ),
        "a folder that is no class": lambda p: shutil.copytree(p.parent, p.parents[1] / "extra"),
        "a .cls file of another class": lambda p: p.with_suffix(".cls").write_text("7"),
        "a .json of another class": lambda p: p.with_suffix(".json").write_text('{"label": 7}'),
        "a name with a line break": lambda p: shutil.copy(p, p.with_name("a\nPASS.JPEG")),
        "a name with an escape sequence": lambda p: shutil.copy(p, p.with_name("\x1b[2J.JPEG")),
        "a name that is no UTF-8": lambda p: shutil.copy(
            os.fsencode(p), os.fsencode(p.parent) + b"/\xff.JPEG"
        ),
        "a name that is a formula": lambda p: shutil.copy(p, p.with_name("=1+1.JPEG")),
    }
    for what, change in beside.items():
        yield Attempt(f"beside an image is {what}", image(change), allowed=REFUSED | {0, 1})


# --- The state of folder and process --------------------------------------------------------------


# Requests that are refused; "{}" is the folder of the attempt.
REQUESTS = {
    "weights are missing": ("--weights", "{}/nowhere.pth"),
    "images are missing": ("--data", "{}/nowhere"),
    "options contradict": ("--backend", "onnxruntime", "--precision", "bf16"),
    "a baseline is missing": ("--baseline", "{}/nowhere"),
    "a form is unknown": ("--forms", "fused"),
    "the cache is a file": ("--cache", "{}/noise.toml"),
    "the history is a folder": ("--history", "{}/val"),
}
LINKED = (
    "summary.csv",
    "run.json",
    "report.html",
    "journal/0.bin",
    "journal/run.json",
    ".lock",
    ".lock-owner",
    "predictions.csv",
)


def planted(make: Callable[[Place], object], *more: str) -> Callable[[Place], list[str]]:
    """Something is made first; "{}" in the words is the folder of the attempt."""

    def spoil(place: Place) -> list[str]:
        make(place)
        return [str(word).replace("{}", str(place.folder)) for word in more]

    return spoil


def honest_pass(place: Place) -> None:
    """The result of an earlier run is in the output folder."""
    shutil.copytree(place.result, place.output)


def victim(place: Place) -> Path:
    """A file that must stay as it is."""
    path = place.folder / "victim"
    path.write_text("precious")
    return path


def linked(name: str) -> Callable[[Place], object]:
    """A file of the output folder is a link to one that is none of it."""

    def make(place: Place) -> None:
        target = place.output / name
        target.parent.mkdir(parents=True)
        target.symlink_to(victim(place))

    return make


def folder_attempts() -> Iterator[Attempt]:
    """What is found where results are written."""
    for what, words in REQUESTS.items():
        yield Attempt(f"a PASS is in the folder, and {what}", planted(honest_pass, *words))
    yield Attempt(
        "a PASS is in the folder, and an image is bad",
        planted(lambda p: (honest_pass(p), p.images[0].write_bytes(b"x"))),
    )
    for name in LINKED:
        yield Attempt(
            f"{name} is a link to another file",
            planted(linked(name)),
            allowed=REFUSED | {0},
            may_pass=True,
        )
    yield Attempt("the output is a file", planted(lambda p: p.output.write_text("")))
    yield Attempt(
        "the output is the folder of the images",
        planted(lambda _: None, "--output", "{}/val"),
        allowed=REFUSED | {0},
        may_pass=True,
    )
    yield Attempt(
        "the journal is of another model",
        planted(
            lambda p: (
                (p.output / "journal").mkdir(parents=True),
                (p.output / "journal/0.bin").write_bytes(os.urandom(4096)),
                (p.output / "journal/run.json").write_text("{}"),
            )
        ),
        allowed=REFUSED | {0},
        may_pass=True,
    )


ENVIRONMENTS: dict[str, tuple[dict[str, str], frozenset[int]]] = {
    "RANK=1 alone": ({"RANK": "1"}, frozenset({0, 2})),
    "RANK is empty": ({"RANK": ""}, frozenset({0, 2})),
    "WORLD_SIZE=abc": ({"WORLD_SIZE": "abc", "RANK": "0"}, frozenset({2})),
    "WORLD_SIZE without RANK": ({"WORLD_SIZE": "2"}, frozenset({2})),
    "WORLD_SIZE=-1": ({"WORLD_SIZE": "-1", "RANK": "0"}, frozenset({2})),
    "RANK=5 of 2": ({"WORLD_SIZE": "2", "RANK": "5"}, frozenset({2})),
    "no assertions": ({"PYTHONOPTIMIZE": "1"}, frozenset({0})),
    "no documentation": ({"PYTHONOPTIMIZE": "2"}, frozenset({0})),
    "plain ASCII": ({"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, frozenset({0})),
    "one column": ({"COLUMNS": "1"}, frozenset({0})),
    "no home": ({"HOME": "/nonexistent"}, frozenset({0})),
    "oneDNN in bf16": ({"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}, frozenset({0})),
    "TF32 for all": ({"NVIDIA_TF32_OVERRIDE": "1"}, frozenset({0})),
    "a hostile matplotlib": ({"MPLBACKEND": "nonsense"}, frozenset({0})),
    "no threads": ({"OMP_NUM_THREADS": "0"}, frozenset({0, 2})),
    "warnings are errors": ({"PYTHONWARNINGS": "ignore"}, frozenset({0})),
}


def environment_attempts() -> Iterator[Attempt]:
    """An honest run and a failing one, with variables that change what is computed or said."""

    def failing(place: Place) -> list[str]:
        text = (place.folder / "noise.toml").read_text().replace("100.0", "50.0")
        (place.folder / "noise.toml").write_text(text)
        return []

    for what, (environment, allowed) in ENVIRONMENTS.items():
        judged = "oneDNN" not in what
        yield Attempt(
            f"the environment has {what}",
            lambda _: [],
            allowed=allowed,
            may_pass=judged,
            environment=environment,
        )
        worse = frozenset({1} if 0 in allowed and judged else {0}) | (allowed & {2})
        yield Attempt(
            f"the environment has {what}, and the accuracy is not the reported one",
            failing,
            allowed=worse,
            environment=environment,
        )


# --- Results that were edited ---------------------------------------------------------------------


def cell(column: str, value: Callable[[str], str]) -> Callable[[Place], list[str]]:
    """A cell of the summary is edited."""

    def spoil(place: Place) -> list[str]:
        path = place.result / "summary.csv"
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        rows[0][column] = value(rows[0][column])
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return []

    return spoil


def entry(key: str, value: Any) -> Callable[[Place], list[str]]:
    """An entry of ``run.json`` is edited."""

    def spoil(place: Place) -> list[str]:
        path = place.result / "run.json"
        document = json.loads(path.read_text())
        document[key] = value
        path.write_text(json.dumps(document))
        return []

    return spoil


def row(change: Callable[[list[dict[str, str]]], object]) -> Callable[[Place], list[str]]:
    """Rows of the predictions are edited."""

    def spoil(place: Place) -> list[str]:
        path = place.result / "predictions.csv"
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        names = list(rows[0])
        change(rows)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
        return []

    return spoil


CELLS: dict[str, Callable[[str], str]] = {
    "run_id": lambda _: "another",
    "started_at": lambda _: "yesterday",
    "variant": lambda _: "base_ssld",
    "form": lambda _: "reparameterized",
    "backend": lambda _: "onnxruntime",
    "device": lambda _: "cuda:0",
    "precision": lambda _: "int8",
    "preprocess": lambda _: "paddle",
    "images": lambda _: "9",
    "images_expected": lambda _: "50000",
    "bad_images": lambda _: "1",
    "top1_correct": lambda _: "7",
    "top5_correct": lambda _: "7",
    "top1": lambda _: "99.0",
    "top5": lambda _: "99.0",
    "top1_ci_low": lambda _: "100.0",
    "top1_ci_high": lambda _: "1.0",
    "reference_top1": lambda _: "50.0",
    "reference_source": lambda _: "the paper",
    "delta_top1": lambda _: "3.0",
    "tolerance": lambda _: "1000000000",
    "verdict": lambda _: "NO_REFERENCE",
    "nll": lambda _: "0.1",
    "params": lambda _: "1",
    "macs": lambda _: "1",
    "weights": lambda _: "other.pth",
    "weights_sha256": lambda _: "0" * 64,
    "dataset_sha256": lambda _: "0" * 64,
    "torch": lambda _: "1.0",
    "git_commit": lambda _: "0" * 40,
}
ENTRIES: dict[str, Any] = {
    "verdict": "FAIL",
    "exit_code": 1,
    "run_id": "another",
    "weights_sha256": "0" * 64,
    "dataset_sha256": "0" * 64,
    "results": [],
    "precision": "int8",
    "preprocess": "paddle",
    "image_set": "another",
}
ROWS: dict[str, Callable[[list[dict[str, str]]], object]] = {
    "the first row is left out": lambda rows: rows.pop(0),
    "the last row is a copy of the first": lambda rows: rows.__setitem__(-1, dict(rows[0])),
    "a label is edited": lambda rows: rows[0].update(label="5"),
    "a rank is edited": lambda rows: rows[0].update(unfused_rank="1"),
    "a rank is negative": lambda rows: rows[0].update(unfused_rank="-1"),
    "a rank is 10^30": lambda rows: rows[0].update(unfused_rank="1" + "0" * 30),
    "a prediction is edited": lambda rows: rows[0].update(unfused_top1="5"),
    "a prediction is twice in its five": lambda rows: rows[0].update(
        unfused_top2=rows[0]["unfused_top1"]
    ),
    "a probability is 2": lambda rows: rows[0].update(unfused_prob1="2.0"),
    "a probability is made up": lambda rows: rows[0].update(unfused_prob1="0.123456"),
    "a path leads elsewhere": lambda rows: rows[0].update(path="../../etc/passwd"),
    "a path is a formula": lambda rows: rows[0].update(path="=cmd|' /C calc'!A0"),
    "two rows are swapped": lambda rows: rows.__setitem__(slice(0, 2), rows[1::-1]),
    "an index is edited": lambda rows: rows[0].update(index="3"),
}


def results_attempts() -> Iterator[Attempt]:
    """Results that were edited are not confirmed, and cannot pass for what they were."""
    for column, value in CELLS.items():
        yield Attempt(
            f"summary.csv: {column} is {value('')[:20]}",
            cell(column, value),
            "audit",
            allowed=REFUSED | {1},
            may_pass=True,
        )
    for key, value in ENTRIES.items():
        yield Attempt(
            f"run.json: {key} is {str(value)[:20]}",
            entry(key, value),
            "audit",
            allowed=REFUSED | {1},
            may_pass=True,
        )
    for what, change in ROWS.items():
        harmless = {0} if "swapped" in what else set()  # rows may have any order with their index
        yield Attempt(
            f"predictions.csv: {what}",
            row(change),
            "audit",
            allowed=REFUSED | {1} | harmless,
            may_pass=True,
        )
        yield Attempt(
            f"the gate; predictions.csv: {what}",
            row(change),
            "regression",
            allowed=REFUSED | {0, 1},
            may_pass=True,
        )
    gated = {
        "top1_correct",
        "top1",
        "images",
        "verdict",
        "tolerance",
        "delta_top1",
        "top1_ci_low",
        "weights_sha256",
        "dataset_sha256",
        "precision",
        "preprocess",
        "started_at",
    }
    for column in sorted(gated):
        yield Attempt(
            f"the gate; summary.csv: {column} is edited",
            cell(column, CELLS[column]),
            "regression",
            allowed=REFUSED | {1},
            may_pass=True,
        )


# --- Words ----------------------------------------------------------------------------------------

STRANGE = ("", " ", "-1", "nan", "1e9", "0x10", "1_0", "٣", "9" * 40, "a\nb", "../..", "\x1b[2J")
OPTIONS = (
    "--limit",
    "--batch-size",
    "--workers",
    "--device",
    "--precision",
    "--backend",
    "--forms",
    "--preprocess",
    "--on-bad-image",
    "--image-set",
    "--config",
    "--weights",
    "--data",
    "--cache",
    "--history",
    "--baseline",
    "--labels",
    "--classes",
    "--output",
)
PLACES = {"--cache", "--history", "--output"}  # some strange words are names of files like others


def words_attempts() -> Iterator[Attempt]:
    """Values that are none."""
    for option, value in itertools.product(OPTIONS, STRANGE):
        allowed = ANY if option in PLACES and value.strip() else REFUSED
        if option == "--workers" or (option, value) == ("--limit", "9" * 40):
            allowed = ANY
        yield Attempt(
            f"{option} {value!r}",
            lambda _, o=option, v=value: [f"{o}={v}"],
            allowed=allowed,
            may_pass=allowed is ANY,
        )


def attempts() -> list[Attempt]:
    """All of them."""
    return [
        *types_attempts(),
        *values_attempts(),
        *files_attempts(),
        *images_attempts(),
        *folder_attempts(),
        *environment_attempts(),
        *results_attempts(),
        *words_attempts(),
    ]


# --- Running them ---------------------------------------------------------------------------------

MAINS = {
    "imagenet": eval.imagenet.main,
    "audit": eval.audit.main,
    "regression": eval.regression.main,
}


def in_process(command: str, words: list[str]) -> tuple[int, str]:
    """The exit code of a command, and its stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = MAINS[command](words)
    return code, err.getvalue()


def run(attempt: Attempt, place: Place) -> tuple[int, str]:
    """Try it; the exit code and stderr."""
    more = attempt.spoil(place)
    if attempt.command == "audit":
        words = [str(place.result), "--data", str(place.val), "--weights", str(place.weights)]
        words += ["--config", str(place.folder / "noise.toml"), "--images", "8", "--quiet", *more]
    elif attempt.command == "regression":
        honest = str(place.folder / "honest")
        words = ["--baseline", honest, "--candidate", str(place.result), *more]
    else:
        words = place.words(*more)
    if attempt.environment is None:
        return in_process(attempt.command, words)
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, *attempt.program, *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment | attempt.environment | {"PYTHONPATH": str(Path(__file__).parents[1])},
        errors="replace",
    )
    return done.returncode, done.stderr


def problems_of(attempt: Attempt, place: Place) -> list[str]:
    """What the attempt achieved; nothing, as it should be."""
    shutil.copytree(place.result, place.folder / "honest")
    try:
        code, shown = run(attempt, place)
    except BaseException as error:
        return [f"raised {error!r}"[:300]]
    found = []
    if code not in DOCUMENTED or code not in attempt.allowed:
        found.append(f"exit code {code}, not of {sorted(attempt.allowed)}: {shown.strip()[:300]}")
    errors = [line for line in shown.splitlines() if line.strip()]
    if "Traceback" in shown or "bug" in shown.lower():
        found.append(f"a traceback or a bug: {shown.strip()[-300:]}")
    if code in (2, 3, 4, 5) and not 1 <= len(errors) <= 2:
        found.append(f"{len(errors)} lines of error: {shown.strip()[:300]}")
    if "\x1b" in shown:
        found.append("an escape sequence reached the terminal")
    summary = place.output / "summary.csv"
    if summary.is_file() and not attempt.may_pass and ",PASS," in summary.read_text():
        found.append("a PASS stands in the folder")
    if list(Path.cwd().glob("executed")) or list(place.folder.rglob("executed")):
        found.append("planted code was executed")
    victim = place.folder / "victim"
    if victim.exists() and victim.read_text() != "precious":
        found.append("a file outside of the folder was written")
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the attempts; 1 if one of them succeeds."""
    parser = argparse.ArgumentParser(prog="hostile.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--list", action="store_true", help="only print what is tried")
    parser.add_argument("--only", default="", help="those that have these words in their names")
    args = parser.parse_args(argv)
    chosen = [attempt for attempt in attempts() if args.only in attempt.name]
    if args.list:
        print(*(attempt.name for attempt in chosen), sep="\n")
        return 0
    succeeded = 0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        whole = prepare(Path(name) / "whole")
        here = Path(name) / "here" / "below"  # so that ../.. is still a folder of these attempts
        here.mkdir(parents=True)
        os.chdir(here)
        for number, attempt in enumerate(chosen):
            place = Place(Path(name) / str(number))
            shutil.copytree(whole.folder, place.folder)
            for problem in problems_of(attempt, place):
                succeeded += 1
                print(f"{attempt.name}: {problem}", flush=True)
            shutil.rmtree(place.folder, ignore_errors=True)
        os.chdir("/")
    seconds = time.perf_counter() - started
    print(f"{len(chosen)} attempts, {succeeded} problems, {seconds:.0f} s")
    return int(succeeded > 0)


if __name__ == "__main__":
    sys.exit(run_command(lambda _: main()))
