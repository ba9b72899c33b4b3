"""Which setups are tried on how many images, and what follows.

Every single change is tried on a few images, the promising ones on more and the best on the whole
sample; then pairs of the promising ones. What libraries do differently is tried in the configured
library and, on fewer images, in the other one. What counts in the end is paired: the images that a
change gains against those that it loses, by McNemar's exact test, corrected for the number of
setups that were tried (Bonferroni-Holm; half of the error for single changes, half for pairs).
Dropping a setup early can only cost power: it stays in the number that is corrected for.

The work is limited, so that a search takes no more than 15 times one pass over the sample: where a
stage would make more predictions than it may, its least promising setups are left out.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from eval.diagnosis.bench import Bench
from eval.diagnosis.hypotheses import TABLE, Hypothesis
from eval.diagnosis.setups import Setup
from eval.metrics import mcnemar

ERROR = 0.05  # probability that a sound setup is called wrong
FIRST_LOOK = 20  # images that every change is tried on
ELSEWHERE_LOOK = 5  # images that every change is tried on in the other library
ELSEWHERE_ON_FIRST_LOOK = 6  # of those, changes that are then tried like all others
ON_SCREEN = 16  # changes that are tried on the images of the screen
ON_SAMPLE = 6  # changes that are tried on the whole sample
PAIRED = 5  # promising changes that pairs are made of
PAIRS_ON_SCREEN = 6
PAIRS_ON_SAMPLE = 2
# Predictions, in passes over the sample, of 100 images at least. The first pass is the setup as
# configured; preparing the models of the others takes the rest of 15.
PASSES_FOR_SINGLES, PASSES_FOR_PAIRS = 11, 2
AT_LEAST = 3  # changes that are tried on the whole sample, whatever it costs
LIBRARIES = {"pillow": "Pillow", "opencv": "OpenCV", "tensor": "torchvision"}
POWER = 0.8  # of the number of images that would decide
MOST_IMAGES = 50_000  # beyond that, a difference does not matter


@dataclass
class Trial:
    """A setup that was tried.

    Attributes:
        changes: one hypothesis, or two.
        setup: what they make of the setup as configured.
        is_elsewhere: whether that is with the other library.
        images: how many it was tried on.
        is_correct: of those; whether each is correct, bool (images,).
        gained, lost: images that only it, or only the setup as configured, predicts correctly.
        p_value: of McNemar's exact test on them.
        p_corrected: for the number of setups that were tried.
        score: mean gain of the logarithm of the rank: promise, never proof.
    """

    changes: tuple[Hypothesis, ...]
    setup: Setup
    is_elsewhere: bool = False
    images: int = 0
    is_correct: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    gained: int = 0
    lost: int = 0
    p_value: float = 1.0
    p_corrected: float = 1.0
    score: float = 0.0

    @property
    def name(self) -> str:
        """Such as ``channels: bgr + labels: plus-1``."""
        words = " + ".join(change.name for change in self.changes)
        return f"{words} by {self.library}" if self.is_elsewhere else words

    @property
    def size(self) -> int:
        """How many changes these are; the other library is one."""
        return len(self.changes) + self.is_elsewhere

    @property
    def library(self) -> str:
        """What resizes the images."""
        return LIBRARIES[self.setup.recipe.resizer]

    @property
    def as_json(self) -> dict[str, str]:
        """The changes, key to value."""
        return {change.key: change.value for change in self.changes}

    @property
    def correct(self) -> int:
        """Images that are correct."""
        return int(self.is_correct.sum())

    @property
    def net(self) -> int:
        """Images gained less those lost."""
        return self.gained - self.lost

    @property
    def is_better(self) -> bool:
        """Better than the setup as configured, beyond chance."""
        return self.net > 0 and self.p_corrected < ERROR


@dataclass(frozen=True)
class Undecided:
    """Two setups that the sample cannot tell apart.

    Attributes:
        trial: the one that was tried.
        gained, lost: images that only it, or only the other one, predicts correctly.
        images: how many would tell them apart; None: more than anybody has.
    """

    trial: Trial
    gained: int
    lost: int
    images: int | None


@dataclass
class Findings:
    """What a search found out.

    Attributes:
        as_is: the setup as configured.
        is_correct: whether each image of the sample is correct as configured, bool (images,).
        trials: all that was tried, the most promising first.
        best: the smallest set of changes that explains the accuracy, if any does.
        alternatives: sets of as many changes that the sample cannot tell from the best.
        undecided: the best that is not better beyond chance, where nothing is.
        refused: names of changes that could not be tried, and why.
        pass_seconds: one pass over the sample as configured.
        seconds: the whole search.
    """

    as_is: Setup
    is_correct: NDArray[np.bool_]
    trials: list[Trial] = field(default_factory=list)
    best: Trial | None = None
    alternatives: list[Undecided] = field(default_factory=list)
    undecided: Undecided | None = None
    refused: dict[str, str] = field(default_factory=dict)
    pass_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def images(self) -> int:
        """Of the sample."""
        return len(self.is_correct)

    @property
    def passes(self) -> float:
        """Time of the search in passes over the sample as configured."""
        return self.seconds / self.pass_seconds if self.pass_seconds else math.nan


def search(bench: Bench, table: Sequence[Hypothesis] = TABLE) -> Findings:
    """Try all hypotheses on a sample, and judge."""
    started = time.perf_counter()
    bench.measure(list(bench.as_is.values()), bench.images, "as configured")
    pass_seconds = time.perf_counter() - started
    as_is = _form_as_is(bench)
    ranks = bench.ranks(as_is, bench.images)
    assert ranks is not None
    findings = Findings(as_is, ranks == 0, pass_seconds=pass_seconds)
    stages, first_look = _Stages(bench, findings, ranks), min(FIRST_LOOK, bench.screen)

    singles = list(single_trials(bench, as_is, table))
    elsewhere = list(trials_elsewhere(bench, as_is, table, singles))
    stages.narrow(singles, elsewhere)
    singles += elsewhere
    pairs = list(_pair_trials(bench, singles))
    stages.narrow_pairs(pairs, singles)
    for group in (singles, pairs):
        _correct(group, ERROR / 2)
    findings.trials = sorted(
        [*singles, *pairs], key=lambda t: (t.images >= first_look, *_promise(t)), reverse=True
    )
    _judge(findings)
    findings.seconds = time.perf_counter() - started
    return findings


def single_trials(bench: Bench, setup: Setup, table: Sequence[Hypothesis]) -> Iterator[Trial]:
    """Every reading of every change that makes a difference, each setup once."""
    seen = {setup}
    for row in table:
        for changed in row.change(setup, bench.facts):
            if changed not in seen:
                seen.add(changed)
                yield Trial((row,), changed)


def trials_elsewhere(
    bench: Bench, setup: Setup, table: Sequence[Hypothesis], singles: Sequence[Trial]
) -> Iterator[Trial]:
    """The changes in the other library, where that makes a setup that is not among the singles."""
    seen = {setup, *(trial.setup for trial in singles)}
    for row in table:
        for changed in row.elsewhere(setup, bench.facts) if row.elsewhere else ():
            if changed not in seen:
                seen.add(changed)
                yield Trial((row,), changed, is_elsewhere=True)


def _form_as_is(bench: Bench) -> Setup:
    """The setup that is to be explained: the worse form, if one is worse beyond chance."""
    first, *others = bench.as_is.values()
    for other in others:
        ranks = bench.ranks(first, bench.images), bench.ranks(other, bench.images)
        assert ranks[0] is not None
        assert ranks[1] is not None
        lost, gained = _exchange(ranks[0] == 0, ranks[1] == 0)
        if lost > gained and mcnemar(lost, gained) < ERROR:
            first = other
    return first


def _promise(trial: Trial) -> tuple[float, float, float]:
    """What puts a trial in front: the share of images that it gains, then better ranks."""
    return trial.net / max(trial.images, 1), trial.score, -trial.size


def _score(trial: Trial) -> tuple[float, int]:
    """What a few images show: better ranks."""
    return trial.score, trial.net


class _Stages:
    """Trials on more and more images, fewer and fewer of them."""

    def __init__(self, bench: Bench, findings: Findings, ranks: NDArray[np.int64]) -> None:
        self._bench, self._findings, self._ranks = bench, findings, ranks
        self._pass = max(bench.images, 100) * len(bench.as_is)  # predictions
        self._left = 0  # predictions that may still be made

    def narrow(self, trials: Sequence[Trial], elsewhere: Sequence[Trial]) -> None:
        """Single changes: all on a few images, the promising ones on more."""
        images, screen = self._bench.images, self._bench.screen
        self._left += PASSES_FOR_SINGLES * self._pass
        first_look = min(FIRST_LOOK, screen)
        self._try(elsewhere, min(ELSEWHERE_LOOK, screen), "first look", least=len(elsewhere))
        promising = sorted(elsewhere, key=_score, reverse=True)[:ELSEWHERE_ON_FIRST_LOOK]
        trials = [*trials, *promising]
        self._try(trials, first_look, "first look", least=len(trials))
        free = [trial for trial in trials if trial.changes[0].is_about_labels]
        self._try(free, images, "labels")
        costly = [trial for trial in trials if not trial.changes[0].is_about_labels]
        costly.sort(key=_score, reverse=True)
        self._try(costly[:ON_SCREEN], screen, "screening")
        tried = [trial for trial in costly if trial.images == screen and trial.net >= 0]
        tried.sort(key=_promise, reverse=True)
        self._try(tried[:ON_SAMPLE], images, "whole sample", least=AT_LEAST)

    def narrow_pairs(self, pairs: list[Trial], singles: Sequence[Trial]) -> None:
        """Pairs on a few images, the best on more, and those that beat every single change on all.

        An order of the classes costs nothing where the other change was tried.
        """
        images, screen = self._bench.images, self._bench.screen
        self._left += PASSES_FOR_PAIRS * self._pass
        self._try(pairs, min(FIRST_LOOK, screen), "pairs")
        better = sorted((t for t in pairs if t.net > 0), key=_promise, reverse=True)
        self._try(better[:PAIRS_ON_SCREEN], screen, "pairs")
        best = max((self._right(trial, screen) for trial in singles), default=0)
        better = [trial for trial in pairs if trial.images == screen and trial.correct > best]
        better.sort(key=_promise, reverse=True)
        self._try(better[:PAIRS_ON_SAMPLE], images, "pairs on the whole sample")

    def _right(self, trial: Trial, images: int) -> int:
        ranks = self._bench.ranks(trial.setup, images)
        return 0 if ranks is None else int((ranks == 0).sum())

    def _affordable(self, trials: Sequence[Trial], images: int, least: int) -> Sequence[Trial]:
        """The first ones, as many as may be tried, but `least` in any case."""
        new: set[Setup] = set()
        for count, trial in enumerate(trials):
            plain = replace(trial.setup, labels="")
            cost = 0 if plain in new else max(images - self._bench.measured(plain), 0)
            if cost > self._left and count >= least:
                return trials[:count]
            self._left -= cost
            new.add(plain)
        return trials

    def _try(self, trials: Sequence[Trial], images: int, stage: str, least: int = 0) -> None:
        """Measure, and count what each trial gains and loses."""
        trials = self._affordable(trials, images, least)
        self._bench.measure([trial.setup for trial in trials], images, stage)
        before = self._ranks[:images]
        for trial in trials:
            ranks = self._bench.ranks(trial.setup, images)
            if ranks is None:
                reason = self._bench.refused.get(trial.setup, "it could not be computed")
                self._findings.refused[trial.name] = reason
                continue
            trial.images = images
            trial.is_correct = ranks == 0
            trial.gained, trial.lost = _exchange(trial.is_correct, before == 0)
            trial.p_value = mcnemar(trial.lost, trial.gained)
            trial.score = float((np.log1p(before) - np.log1p(ranks)).mean())


def _pair_trials(bench: Bench, singles: Sequence[Trial]) -> Iterator[Trial]:
    """Two changes of different kinds at once.

    Of the promising ones, and of every change with every order of the classes: where both are
    wrong, neither alone shows anything, and an order costs nothing.
    """
    costly = [t for t in singles if not (t.changes[0].is_about_labels or t.is_elsewhere)]
    labels = [trial for trial in singles if trial.changes[0].is_about_labels]
    looked = [t for t in singles if t.is_elsewhere and t.images > ELSEWHERE_LOOK]
    tried = [trial for trial in [*costly, *looked] if trial.images]
    promising = sorted(tried, key=_promise, reverse=True)[:PAIRED]
    chosen = [*itertools.combinations(promising, 2), *itertools.product(costly, labels)]
    seen = {trial.setup for trial in singles} | set(bench.as_is.values())
    for first, second in chosen:
        if first.changes[0].key != second.changes[0].key:
            for changed in second.changes[0].change(first.setup, bench.facts):
                if changed not in seen:
                    seen.add(changed)
                    both = (*first.changes, *second.changes)
                    yield Trial(both, changed, is_elsewhere=first.is_elsewhere)


def _correct(trials: Sequence[Trial], share: float) -> None:
    """Holm's correction, of trials that have `share` of the error among them."""
    largest = 0.0
    for place, trial in enumerate(sorted(trials, key=lambda trial: trial.p_value)):
        largest = max(largest, trial.p_value * (len(trials) - place) * ERROR / share)
        trial.p_corrected = min(1.0, largest)


def _judge(findings: Findings) -> None:
    """The smallest set of changes that is sufficient, and what cannot be told from it."""
    whole = [trial for trial in findings.trials if trial.images == findings.images]
    better = [trial for trial in whole if trial.is_better]
    if not better:
        hopeful = [trial for trial in whole if trial.net > 0]
        if hopeful:
            best = max(hopeful, key=lambda trial: trial.net)
            needed = images_to_decide(best.gained, best.lost, findings.images, len(whole))
            findings.undecided = Undecided(best, best.gained, best.lost, needed)
        return
    top = max(better, key=lambda trial: trial.correct)
    sufficient = [trial for trial in better if not _is_worse(trial, top, len(better))]
    fewest = min(trial.size for trial in sufficient)
    sufficient = [trial for trial in sufficient if trial.size == fewest]
    best = max(sufficient, key=lambda trial: trial.correct)
    findings.best = best
    names = {best.name}
    for trial in sufficient:
        if trial.name not in names:
            names.add(trial.name)
            gained, lost = _exchange(trial.is_correct, best.is_correct)
            needed = images_to_decide(lost, gained, findings.images, len(better))
            findings.alternatives.append(Undecided(trial, gained, lost, needed))


def _exchange(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[int, int]:
    """Images that only the one, and only the other, predicts correctly."""
    return int((one & ~other).sum()), int((other & ~one).sum())


def _is_worse(trial: Trial, top: Trial, compared: int) -> bool:
    """Beyond chance, of so many comparisons."""
    gained, lost = _exchange(trial.is_correct, top.is_correct)
    return lost > gained and mcnemar(lost, gained) * compared < ERROR


def images_to_decide(gained: int, lost: int, images: int, compared: int = 1) -> int | None:
    """On how many images McNemar's test would see a difference of this size.

    The normal approximation of the test, with `POWER` (Connor, Biometrics 43, 1987).

    Args:
        gained: images that the second run gained.
        lost: images that it lost.
        images: among how many.
        compared: setups that the error is split over.

    Returns:
        None where it would take more than `MOST_IMAGES`.
    """
    if gained == lost:
        return None
    normal = NormalDist()
    z = normal.inv_cdf(1 - ERROR / compared / 2) + normal.inv_cdf(POWER)
    needed = images * z**2 * (gained + lost) / (gained - lost) ** 2
    rounded = math.ceil(needed / 100) * 100
    return rounded if rounded <= MOST_IMAGES else None
