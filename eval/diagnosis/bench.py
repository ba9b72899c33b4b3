"""The predictions of setups on a sample, each image decoded once for all of them.

What is kept of a prediction is the rank of the label under every order of the classes, so
that changes of labels need no inference at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from eval.backends import BACKENDS, Task, check_installed
from eval.diagnosis.orders import orders
from eval.diagnosis.pixels import CropMaker, recognize
from eval.diagnosis.setups import Facts, Setup
from eval.errors import EvalError, UsageError
from eval.images.preprocess import Crop, Preprocess, Table, table_of
from eval.images.valset import ValSet
from eval.measure.engine import Engine
from eval.measure.reading import decoding, worker_threads
from eval.metrics import rank_of_label
from eval.progress import Event, Observer
from eval.recipe import OWN, Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

    from eval.measure.given import Answers
    from eval.models import Subject

Ranks = NDArray[np.int64]
RankOf = Callable[[NDArray[np.int64]], Ranks]
RECOGNIZED_BY = 24  # images that a library's transform is recognized by
CROP_MEMORY = 768 << 20  # bytes of crops that are kept at a time


class Bench(Protocol):
    """What the search needs: setups, and how they rank the label.

    Attributes:
        as_is: the setups as configured, one per form.
        facts: what changes may depend on.
        images: of the sample.
        screen: how many of them, the first ones, are enough to see which changes are promising.
    """

    as_is: Mapping[str, Setup]
    facts: Facts
    images: int
    screen: int

    def measure(self, setups: Sequence[Setup], images: int, stage: str) -> None:
        """Predict the first images of the sample with each setup, unless that was done."""

    def ranks(self, setup: Setup, images: int) -> Ranks | None:
        """Classes ahead of the label, int64 (images,); None where the setup cannot be run."""

    def measured(self, setup: Setup) -> int:
        """How many of the first images the setup has predicted, whatever its labels mean."""

    @property
    def refused(self) -> Mapping[Setup, str]:
        """Setups that cannot be run here, and why."""


def sample_of(valset: ValSet, images: int, screen: int) -> ValSet:
    """The first images of the fixed shuffled order, those of the screen in front."""
    first = set(valset.limited(screen).samples)
    rest = [sample for sample in valset.limited(images).samples if sample not in first]
    return replace(valset, samples=(*valset.limited(screen).samples, *rest))


def rank_of(
    logits: NDArray[np.float32], target: NDArray[np.int64], among: NDArray[np.int64] | None = None
) -> Ranks:
    """Classes before the target, as `eval.metrics.rank_of_label` counts them.

    Args:
        logits: (B, C); a row that is not finite puts every class before the target.
        target: (B,); -1 where the model has no output for the class.
        among: the outputs that count, ascending, every target among them; all if None.
    """
    rank: Ranks = np.full(len(logits), logits.shape[1])
    usable = (target >= 0) & np.isfinite(logits).all(axis=1)
    if among is not None:
        logits, target = logits[:, among], np.searchsorted(among, target)
    rank[usable] = rank_of_label(logits[usable], target[usable])
    return rank


@dataclass
class RanksByOrder:
    """Ranks under every order, and what cannot be run."""

    images: int
    by_order: dict[tuple[Setup, str], Ranks] = field(default_factory=dict)
    refused: dict[Setup, str] = field(default_factory=dict)

    def get(self, setup: Setup, images: int) -> Ranks | None:
        """Of the first images; None if they were not measured."""
        found = self.by_order.get((replace(setup, labels=""), setup.labels))
        if found is None or (found[:images] < 0).any():
            return None
        return found[:images]


@dataclass(frozen=True)
class Machine:
    """How the logits are computed, as configured.

    Attributes:
        own: the model's own preprocessing.
        output, background_first: see `eval.backends.Task`.
    """

    backend: str
    precision: str
    device: torch.device
    batch_size: int
    workers: int
    own: Preprocess
    output: str | None = None
    background_first: bool = False


class Switched(Preprocess):
    """Normalizes by a table that can be changed, so that one prepared model serves all tables.

    It works where images are normalized before the model is called: on a CPU.
    """

    def __init__(self, like: Preprocess) -> None:
        super().__init__(like.name, like.description, like.crop, like.table, like.size)
        object.__setattr__(self, "chosen", [like])

    def choose(self, table: Table) -> None:
        """From now on, by this one."""
        self.chosen[:] = [replace(self.chosen[0], table=table)]  # type: ignore[attr-defined]

    def normalize(self, crops: Crop) -> NDArray[np.float32]:
        """As `Preprocess.normalize`, by the chosen table."""
        chosen: Preprocess = self.chosen[0]  # type: ignore[attr-defined]
        return chosen.normalize(crops)


def arranged(crops: Crop, setup: Setup) -> Crop:
    """RGB crops (B, size, size, 3), with channels and axes as the setup has them."""
    if setup.recipe.channels == "bgr":
        crops = crops[..., ::-1]
    if setup.axes == "wh":
        crops = crops.transpose(0, 2, 1, 3)
    elif setup.axes == "flat":
        count, size = crops.shape[:2]
        crops = np.ascontiguousarray(crops).reshape(count, 3, size, size).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(crops)


def _official_runtimes(model: nn.Module) -> Iterator[str]:
    """Those that the network was published in, where they are installed."""
    from pplcnet import PPLCNetV2

    for name, row in BACKENDS.items():
        if row.official and isinstance(model, PPLCNetV2):
            with suppress(UsageError):
                check_installed(name)
                yield name


def in_order(answers: Answers, rows: NDArray[np.int64]) -> RankOf:
    """Ranks of labels in predictions, whose rows are put into the order of the images."""
    return lambda labels: answers.scores(rows[: len(labels)], labels).rank


class AnswersBench:
    """Predictions that were made elsewhere: only what they mean can be changed.

    Args:
        rank_of: gives the rank of labels (N,) in the predictions for the first N images.
        valset: the whole validation set.
        answered: indices of the images that were predicted, in the order of `rank_of`.
        outputs: how many classes the predictions are about.
    """

    def __init__(
        self, rank_of: RankOf, valset: ValSet, answered: Sequence[int], outputs: int
    ) -> None:
        setup = Setup(Recipe(), "scored")
        self.as_is: Mapping[str, Setup] = {setup.form: setup}
        self.images = self.screen = len(answered)
        self._rank_of, self._outputs = rank_of, outputs
        found = orders(valset, outputs)
        self._orders = {"": np.arange(len(valset.classes)), **found}
        self.facts = Facts(setup.recipe, (setup.form,), orders=found)
        self._labels = np.array([valset.samples[i].label for i in answered])

    @property
    def refused(self) -> Mapping[Setup, str]:
        """Nothing needs to be run."""
        return {}

    def measure(self, setups: Sequence[Setup], images: int, stage: str) -> None:
        """Nothing needs to be computed."""

    def measured(self, setup: Setup) -> int:  # noqa: ARG002
        """All of them: nothing needs to be computed."""
        return self.images

    def ranks(self, setup: Setup, images: int) -> Ranks | None:
        """See `Bench.ranks`."""
        target = self._orders[setup.labels][self._labels[:images]]
        ranks = self._rank_of(np.maximum(target, 0))
        ranks[target < 0] = self._outputs
        return ranks


class _Prepared(NamedTuple):
    """A model that is ready to compute."""

    key: Any
    engine: Engine
    preprocess: Switched


class ModelBench:
    """A model on a sample of a validation set: the first images of its fixed shuffled order."""

    def __init__(
        self, subject: Subject, valset: ValSet, machine: Machine, images: int, observer: Observer
    ) -> None:
        self._subject, self._machine, self._observer = subject, machine, observer
        self.images = min(images, len(valset.samples))
        self.screen = min(100, max(20, self.images // 5), self.images)
        self._whole = valset
        self._sample = sample_of(valset, self.images, self.screen)
        self._labels = np.array([sample.label for sample in self._sample.samples])
        self._ranked = RanksByOrder(self.images)
        self._last: _Prepared | None = None
        files = self._files(range(min(RECOGNIZED_BY, self.images)))
        self._configured, self._is_exact = recognize(subject.preprocess, files)
        self._own = recognize(machine.own, files)[0]
        self.as_is: Mapping[str, Setup] = {
            form: Setup(self._configured, form, machine.backend, machine.precision)
            for form in subject.forms
        }
        self.facts = self._facts(valset)

    def _facts(self, valset: ValSet) -> Facts:
        from eval.backends.formats import RUNTIMES
        from eval.diagnosis.edits import possible_edits

        first = next(iter(self.as_is.values()))
        model = self._subject.forms[first.form]
        exported = isinstance(model, Path)
        backends = (
            RUNTIMES[model.suffix.lower()]
            if isinstance(model, Path)
            else ("torch", *_official_runtimes(model))
        )
        crops = self._crops([first], range(min(self._machine.batch_size, self.images)))
        logits = self._predict(first, crops[first.recipe.pixels])
        self._orders = {"": np.arange(len(valset.classes)), **orders(valset, logits.shape[1])}
        return Facts(
            own=self._own,
            forms=tuple(self.as_is),
            edits={form: possible_edits(model) for form, model in self._subject.forms.items()},
            backends=backends,
            has_precisions=not exported,
            orders={name: order for name, order in self._orders.items() if name},
        )

    @property
    def refused(self) -> Mapping[Setup, str]:
        """Setups that cannot be run here, and why."""
        return self._ranked.refused

    @property
    def valset(self) -> ValSet:
        """The sample."""
        return self._sample

    def argument(self, setup: Setup) -> str | None:
        """The ``--preprocess`` that makes the input of a setup; None if there is none.

        A library's transform that no recipe can say is only the model's own as it is.
        """
        if not self._is_exact and setup.recipe.pixels == self._configured.pixels:
            return OWN if setup.recipe == self._configured else None
        return setup.recipe.text

    def ranks(self, setup: Setup, images: int) -> Ranks | None:
        """See `Bench.ranks`."""
        return self._ranked.get(setup, images)

    def measure(self, setups: Sequence[Setup], images: int, stage: str) -> None:
        """See `Bench.measure`."""
        plain = dict.fromkeys(replace(setup, labels="") for setup in setups)
        todo = [s for s in plain if s not in self.refused and self.ranks(s, images) is None]
        if not todo:
            return
        start = min(self.measured(setup) for setup in todo)
        size = self._subject.preprocess.size
        recipes = len({setup.recipe.pixels for setup in todo})
        chunk = max(self._machine.batch_size, CROP_MEMORY // (recipes * size * size * 3))
        done, total = 0, len(todo) * (images - start)
        for begin in range(start, images, chunk):
            indices = range(begin, min(begin + chunk, images))
            crops = self._crops(todo, indices)
            for setup in sorted(todo, key=lambda setup: setup.model):  # each prepared once
                self._put(setup, indices, crops[setup.recipe.pixels])
                done += len(indices)
                self._observer(Event(stage=stage, done=done, total=total))

    def _files(self, indices: range) -> list[bytes]:
        """The bytes of images."""
        return [self._sample.read(self._sample.samples[index].path) for index in indices]

    def measured(self, setup: Setup) -> int:
        """See `Bench.measured`."""
        found = self._ranked.by_order.get((replace(setup, labels=""), ""))
        return 0 if found is None else int((found >= 0).sum())

    def _put(self, setup: Setup, indices: range, crops: Crop) -> None:
        """Predict, and keep the ranks; a setup that cannot be run is remembered as such."""
        if setup in self.refused:
            return
        try:
            logits = self._predict(setup, crops)
        except (EvalError, ImportError, RuntimeError) as error:
            if setup in self.as_is.values():
                raise
            self._ranked.refused[setup] = str(error).partition("\n")[0]
            return
        labels = self._labels[indices.start : indices.stop]
        counted = self._sample.among
        for name, order in self._orders.items():
            among = None if counted is None else np.unique(order[np.array(counted)])
            among = among if among is None else among[among >= 0]
            kept = self._ranked.by_order.setdefault((setup, name), np.full(self.images, -1))
            kept[indices.start : indices.stop] = rank_of(logits, order[labels], among)

    def _crops(self, setups: Iterable[Setup], indices: range) -> dict[Recipe, Crop]:
        """The RGB crops (len(indices), size, size, 3) of each `Recipe.pixels`."""
        recipes = list(dict.fromkeys(setup.recipe.pixels for setup in setups))
        size = self._subject.preprocess.size
        crops = {recipe: np.zeros((len(indices), size, size, 3), np.uint8) for recipe in recipes}

        def prepare(row: int) -> None:
            path = self._sample.samples[indices[row]].path
            data = self._sample.read(path)
            maker = CropMaker(data)
            with decoding(self._sample, path):
                for recipe in recipes:
                    is_given = recipe == self._configured.pixels and not self._is_exact
                    crops[recipe][row] = self._given(data) if is_given else maker.crop(recipe)

        with worker_threads(self._machine.workers) as pool:
            for _ in pool.map(prepare, range(len(indices))):
                pass
        return crops

    def _given(self, data: bytes) -> Crop:
        """The RGB crop of a library's transform."""
        crop = self._subject.preprocess.crop(data)
        return crop[:, :, ::-1] if self._configured.channels == "bgr" else crop

    def _table(self, setup: Setup) -> Table:
        if setup.recipe.normalized_as(self._configured) == setup.recipe:
            return self._subject.preprocess.table
        return table_of(setup.recipe)

    def _predict(self, setup: Setup, crops: Crop) -> NDArray[np.float32]:
        """Logits (N, C) of crops (N, size, size, 3)."""
        engine = self._engine(setup, self._table(setup))
        return engine.logits(arranged(crops, setup))[setup.form]

    def _engine(self, setup: Setup, table: Table) -> Engine:
        """What computes the logits; the last one is kept, so that chunks share it."""
        preprocess = Switched(self._subject.preprocess)
        switchable = self._machine.device.type == "cpu"
        key = (setup.model, None if switchable else table.tobytes())
        if self._last is None or self._last.key != key:
            task = Task(
                setup.backend,
                {setup.form: self._model(setup)},
                preprocess if switchable else replace(self._subject.preprocess, table=table),
                self._machine.device,
                setup.precision,
                self._machine.batch_size,
                self._machine.workers,
                output=self._machine.output,
                background_first=self._machine.background_first,
            )
            self._last = _Prepared(key, Engine(task, self._observer), preprocess)
        self._last.preprocess.choose(table)
        return self._last.engine

    def _model(self, setup: Setup) -> nn.Module | Path:
        """The form, with the edits of the setup made."""
        model = self._subject.forms[setup.form]
        if isinstance(model, Path) or not setup.edits:
            return model
        from eval.diagnosis.edits import CALIBRATION, edited

        plain = replace(setup, edits=(), labels="")
        crops = self._crops([plain], range(min(CALIBRATION, self.images)))[plain.recipe.pixels]
        preprocess = replace(self._subject.preprocess, table=self._table(plain))
        images = preprocess.normalize(arranged(crops, plain))
        return edited(model, setup.edits, np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
