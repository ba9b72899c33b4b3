"""A tiny network whose head is fitted so that one setup of a diagnosis is right, and no other.

Its features are random. The head is solved for, so that every image has its own class under the
setup that is to be found, and another class under every other setup that a diagnosis tries.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from eval.config import VariantConfig
from eval.diagnosis.bench import Machine, ModelBench
from eval.diagnosis.hypotheses import TABLE
from eval.diagnosis.search import single_trials
from eval.diagnosis.setups import Setup
from eval.images.classes import IMAGENET
from eval.images.preprocess import PREPROCESS, Preprocess
from eval.images.valset import ValSet, open_valset
from eval.models import Subject
from eval.models.demo import demo_image
from eval.progress import ignore
from pplcnet._model import ConvDropout

IMAGES = 24
GAIN = 200.0  # of the features: so much that every setup gives others
FEATURES = 1000  # as many as classes: the classifier is square
TURNED = 16  # of the images have an EXIF tag that turns them


class TinyNet(nn.Module):
    """Convolution, batch normalization, Paddle's dropout, and a square classifier."""

    def __init__(self, outputs: int = 1000, norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 6, stride=4, bias=not norm)
        # Variances near epsilon, so that epsilon matters.
        self.norm1: nn.Module = nn.BatchNorm2d(24) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(24, 48, 4, stride=4)
        self.drop = ConvDropout(48, 48, 0.2)
        self.project = nn.Linear(48 * 36, FEATURES)
        self.fc = nn.Linear(FEATURES, outputs)

    def features(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        y = torch.relu(self.conv2(y))
        y = torch.relu(self.drop(y))
        y = nn.functional.adaptive_avg_pool2d(y, 6).flatten(1)
        return torch.cos(GAIN * self.project(y))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(x))
        return logits


def tiny_net(outputs: int = 1000) -> TinyNet:
    torch.manual_seed(5)
    net = TinyNet(outputs).eval()
    with torch.no_grad():
        net.conv1.weight *= 0.02
        assert isinstance(net.norm1, nn.BatchNorm2d)
        assert net.norm1.running_var is not None
        net.norm1.running_var.fill_(3e-4)
    return net


def sizes() -> Iterator[tuple[int, int]]:
    """(short, long) for which it matters how the long side and the place of a crop are rounded."""
    for short in range(290, 400):
        for long in range(short + 4, short + 90, 9):
            exact = 256 * long / short
            if int(exact) % 4 == 3 and exact % 1 > 0.5:
                yield short, long


def photo(index: int, size: tuple[int, int]) -> bytes:
    """One of the demo's images, of another size; some are turned by EXIF, one is CMYK."""
    with Image.open(io.BytesIO(demo_image(40 + index % 8))) as opened:
        picture = opened.convert("RGB").rotate(index * 15).resize(size)
    if index == IMAGES - 1:
        picture = picture.convert("CMYK")
    exif = Image.Exif()
    if index < TURNED:
        exif[0x0112] = 2 + index % 7
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=60, exif=exif)
    return file.getvalue()


def folder_of_images(root: Path, labels: Sequence[int]) -> Path:
    """A validation set: one image for each label, in its synset folder."""
    for index, (label, size) in enumerate(
        zip(labels, itertools.islice(sizes(), IMAGES), strict=True)
    ):
        folder = root / "val" / IMAGENET.rows[label].folder
        folder.mkdir(parents=True)
        (folder / f"photo_{index}.JPEG").write_bytes(photo(index, size))
    return root / "val"


def subject_of(
    forms: Mapping[str, nn.Module], preprocess: Preprocess = PREPROCESS["torchvision"]
) -> Subject:
    return Subject(
        name="tiny",
        title="a tiny network",
        weights="none",
        layout="tiny",
        files=(),
        forms=forms,
        preprocess=preprocess,
        published=VariantConfig("tiny", "tiny", 50_000, {}, {}),
        params={},
        macs={},
    )


def machine(
    preprocess: Preprocess, precision: str = "fp32", own: Preprocess | None = None
) -> Machine:
    return Machine("torch", precision, torch.device("cpu"), 10, 1, own or preprocess)


def bench_of(subject: Subject, valset: ValSet, how: Machine) -> ModelBench:
    return ModelBench(subject, valset, how, len(valset.samples), ignore)


@dataclass
class KnownAnswers:
    """The features of every setup, once for all tests."""

    valset: ValSet
    preprocess: Preprocess
    features: dict[Setup, np.ndarray]  # (IMAGES, FEATURES)
    as_is: Setup
    bench: ModelBench

    def head(self, right: Setup) -> tuple[Tensor, Tensor]:
        """A classifier that is right under one setup alone."""
        plain = replace(right, labels="")
        order = self.bench._orders[right.labels]
        labels = np.array([sample.label for sample in self.bench.valset.samples])
        rows, wanted = [], []
        for number, (setup, features) in enumerate(self.features.items()):
            shift = 0 if setup == plain else 1 + number % (IMAGES - 1)
            # An image that the setup does not touch cannot be right and wrong at once.
            other = (features != self.features[plain]).any(axis=1) | (setup == plain)
            rows.append(features[other])
            wanted.append(order[np.roll(labels, shift)][other])
        x = np.concatenate(rows).astype(np.float64)
        target = np.full((len(x), 1000), -1.0)
        target[np.arange(len(x)), np.concatenate(wanted)] = 1.0
        center = x.mean(0)
        inverse = np.linalg.solve((x - center) @ (x - center).T + 1e-6 * np.eye(len(x)), target)
        weight = (x - center).T @ inverse
        return (
            torch.tensor(weight.T, dtype=torch.float32),
            torch.tensor(-center @ weight, dtype=torch.float32),
        )

    def fitted(self, right: Setup) -> TinyNet:
        net = tiny_net()
        weight, bias = self.head(right)
        net.fc.weight, net.fc.bias = nn.Parameter(weight), nn.Parameter(bias)
        return net


class _Features(nn.Module):
    """Gives features in place of logits."""

    def __init__(self, net: TinyNet) -> None:
        super().__init__()
        self.net = net
        self.fc = net.fc  # so that its edits are found

    def forward(self, x: Tensor) -> Tensor:
        return self.net.features(x)


def known_answers(valset: ValSet, preprocess: Preprocess) -> KnownAnswers:
    """Compute the features of all setups that a diagnosis of this preprocessing tries."""
    subject = subject_of({"unfused": _Features(tiny_net())}, preprocess)
    bench = bench_of(subject, valset, machine(preprocess))
    as_is = bench.as_is["unfused"]
    setups = [as_is, *(trial.setup for trial in single_trials(bench, as_is, TABLE))]
    plain = list(dict.fromkeys(replace(setup, labels="") for setup in setups))
    everything = range(len(valset.samples))
    features = {
        setup: bench._predict(setup, bench._crops([setup], everything)[setup.recipe.pixels])
        for setup in plain
        if "transposed-classifier" not in setup.edits
    }
    return KnownAnswers(valset, preprocess, features, as_is, bench)


def labels_of_chosen() -> list[int]:
    return [(41 * place + 3) % 1000 for place in range(IMAGES)]


def chosen_valset(root: Path) -> ValSet:
    return open_valset(folder_of_images(root, labels_of_chosen()))
