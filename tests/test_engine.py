"""The engine on a real, tiny network: its answers are those of torch on the same pixels."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import MakeVal
from numpy.typing import NDArray
from tiny_task import FORM, Tiny, tiny_task

from eval.errors import DataError
from eval.images.valset import ValSet, open_valset
from eval.measure import reading
from eval.measure.engine import Engine
from eval.measure.settings import exact_settings
from eval.metrics import Kind, rank_of_label
from eval.progress import Event

NAMES = {"n01440764": ["1.JPEG", "2.JPEG"], "n01443537": ["3.JPEG"]}


@pytest.fixture
def valset(val_folder: MakeVal) -> ValSet:
    return open_valset(val_folder(NAMES))


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    with exact_settings():
        yield


def plain(valset: ValSet) -> NDArray[np.float32]:
    """The network's outputs by torch alone."""
    task = tiny_task()
    crops = np.stack([task.preprocess.crop(valset.read(s.path)) for s in valset.samples])
    pixels = torch.from_numpy(task.preprocess.normalize(crops)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        return np.asarray(task.models[FORM](pixels).numpy())  # type: ignore[operator]


def test_ranks_are_those_of_plain_torch(valset: ValSet) -> None:
    seen: list[Event] = []
    made = Engine(tiny_task(), seen.append)
    measured = made.measure(valset)
    expected = plain(valset)
    labels = np.array([0, 0, 1])
    assert measured.scores[FORM].rank.tolist() == rank_of_label(expected, labels).tolist()
    assert measured.scores[FORM].top[:, 0].tolist() == expected.argmax(1).tolist()
    done = [event.done for event in seen if event.stage == "evaluating"]
    assert done in ([2, 3], [1, 3]), "whichever batch is done first"
    assert made.kinds == {FORM: Kind.LOGITS}
    assert "outputs" not in made.settings
    made.close()


def test_logits_are_those_of_plain_torch(valset: ValSet) -> None:
    found = Engine(tiny_task()).logits_of(valset)[FORM]
    assert np.allclose(found, plain(valset), atol=1e-4)


class Softmax(Tiny):
    """As an exporter leaves it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).softmax(1)


def test_probabilities_are_seen_and_used_as_such(valset: ValSet) -> None:
    torch.manual_seed(1)
    made = Engine(tiny_task(models={FORM: Softmax().eval()}))
    assert made.kinds == {FORM: Kind.PROBABILITIES}
    assert made.settings["outputs"][FORM].startswith("probabilities")
    expected = torch.from_numpy(plain(valset)).log_softmax(1).numpy()
    assert np.allclose(made.logits_of(valset)[FORM], expected, atol=1e-4)
    scores = made.measure(valset).scores[FORM]
    assert np.allclose(scores.nll, -expected[[0, 1, 2], [0, 0, 1]], atol=1e-4)


def test_a_background_class_is_dropped(valset: ValSet) -> None:
    made = Engine(dataclasses.replace(tiny_task(), background_first=True))
    assert np.allclose(made.logits_of(valset)[FORM], plain(valset)[:, 1:], atol=1e-4)


def test_images_are_hashed_as_they_are(valset: ValSet) -> None:
    seen: list[Event] = []
    contents = [(valset.root / sample.path).read_bytes() for sample in valset.samples]
    assert reading.hash_images(valset, seen.append) == [
        hashlib.sha256(data).hexdigest() for data in contents
    ]
    assert [event.done for event in seen] == [1, 2, 3]


def test_an_image_that_cannot_be_decoded_is_named(valset: ValSet) -> None:
    (valset.root / valset.samples[1].path).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2\.JPEG cannot be decoded"):
        Engine(tiny_task()).logits_of(valset)
