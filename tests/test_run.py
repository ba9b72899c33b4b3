"""The engine with a predictor that is known by heart: what is asked, scored, kept and refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from eval.errors import DataError, LogitsError, UsageError
from eval.images.preprocess import PREPROCESS, Crop
from eval.images.valset import ValSet, open_valset
from eval.measure import batch, engine, measurement
from eval.measure.journal import Journal, Records

PREPROCESSING = PREPROCESS["torchvision"]
MakeVal = Callable[..., Path]


class Fake:
    """Answers with a function of each image's pixels alone, and remembers the batches it saw."""

    def __init__(self, forms: Sequence[str] = ("a", "b"), shift: float = 0.0) -> None:
        self.forms, self.shift = forms, shift
        self.batches: list[int] = []

    def __call__(self, crops: Crop) -> dict[str, NDArray[np.float32]]:
        self.batches.append(len(crops))
        pixels = crops.reshape(len(crops), -1)[:, :1000].astype(np.float32)
        pixels[:, 0] += 0.5  # a batch is filled up with black images, which must not be constant
        return {form: pixels + self.shift * i for i, form in enumerate(self.forms)}


@pytest.fixture
def valset(val_folder: MakeVal) -> ValSet:
    names = {"n01440764": 3, "n01443537": 4, "n15075141": 4}
    return open_valset(val_folder({s: [f"{i}.JPEG" for i in range(n)] for s, n in names.items()}))


def measured(
    valset: ValSet,
    output: Path,
    predictor: engine.Predictor,
    *,
    forms: Sequence[str] = ("a", "b"),
    batch_size: int = 4,
    workers: int = 2,
    record_bad: bool = False,
    shares: int = 1,
) -> measurement.Measurement:
    parts = []
    for number in range(shares):
        plan = batch.Plan(
            PREPROCESSING,
            tuple(forms),
            batch_size,
            workers,
            share=(number, shares),
            record_bad=record_bad,
        )
        with Journal(output, {}, forms, number) as journal:
            parts.append(engine.measure(valset, predictor, plan, journal=journal))
    return measurement.assemble(valset, parts, forms)


def assert_same(one: measurement.Measurement, other: measurement.Measurement) -> None:
    assert one.scores.keys() == other.scores.keys()
    for form in one.scores:
        for name in ("rank", "top", "prob", "nll"):
            a, b = getattr(one.scores[form], name), getattr(other.scores[form], name)
            assert np.array_equal(a, b, equal_nan=name in ("prob", "nll")), (form, name)
    assert one.digests == other.digests
    assert np.array_equal(one.logit_diff, other.logit_diff, equal_nan=True)


def test_answers_go_to_their_images(valset: ValSet, tmp_path: Path) -> None:
    result = measured(valset, tmp_path / "out", Fake())
    for index, sample in enumerate(valset.samples):
        logits = Fake()(PREPROCESSING.crop(valset.read(sample.path))[np.newaxis])["a"][0]
        order = sorted(range(1000), key=lambda c: (-logits[c], c))
        assert result.scores["a"].top[index].tolist() == order[:5]
        assert result.scores["a"].rank[index] == order.index(sample.label)
    assert result.measured_now == 11


@pytest.mark.parametrize("batch_size", [1, 3, 11, 64])
@pytest.mark.parametrize("workers", [1, 3])
def test_batch_size_and_workers_change_nothing(
    valset: ValSet, tmp_path: Path, batch_size: int, workers: int
) -> None:
    expected = measured(valset, tmp_path / "one", Fake())
    found = measured(valset, tmp_path / "two", Fake(), batch_size=batch_size, workers=workers)
    assert_same(found, expected)


def test_the_last_batch_is_kept_and_as_large_as_the_others(valset: ValSet, tmp_path: Path) -> None:
    fake = Fake()
    assert len(measured(valset, tmp_path / "out", fake, batch_size=4).scores["a"].rank) == 11
    assert fake.batches == [4, 4, 4]


def test_the_last_batch_has_only_the_parts_that_are_needed(valset: ValSet, tmp_path: Path) -> None:
    """Of a predictor that works in parts: its last part is as large as the others."""
    fake = Fake()
    fake.part = 3  # type: ignore[attr-defined]
    careful = batch.ShrinkOnOutOfMemory(fake, print)
    found = measured(valset, tmp_path / "out", careful, batch_size=9, workers=1)
    assert fake.batches == [9, 3]
    assert_same(found, measured(valset, tmp_path / "other", Fake()))


@pytest.mark.parametrize("shares", [2, 3, 5])
def test_shares_make_a_whole(valset: ValSet, tmp_path: Path, shares: int) -> None:
    expected = measured(valset, tmp_path / "one", Fake())
    found = measured(valset, tmp_path / "many", Fake(), shares=shares)
    assert_same(found, expected)
    assert found.measured_now == 11


def test_a_missing_share_is_noticed(valset: ValSet, tmp_path: Path) -> None:
    with Journal(tmp_path / "out", {}, ("a",)) as journal:
        plan = batch.Plan(PREPROCESSING, ("a",), batch_size=4, workers=1, share=(0, 2))
        part = engine.measure(valset, Fake(("a",)), plan, journal=journal)
    with pytest.raises(DataError, match="4 images were not measured and 0 more than once"):
        measurement.assemble(valset, [part], ("a",))
    with pytest.raises(DataError, match="4 images were not measured and 7 more than once"):
        measurement.assemble(valset, [part, part], ("a",))


class Bell:
    """A stopper that stops after some batches, and remembers what it was asked."""

    def __init__(self, batches: int) -> None:
        self.batches, self.asked = batches, list[object]()

    def begin(self, kept: Records, batches: int) -> bool:
        self.asked.append(("begin", len(kept), batches))
        return self.batches == 0

    def after(self, records: Records) -> bool:
        self.asked.append(("after", len(records)))
        self.batches -= 1
        return self.batches == 0

    def finish(self) -> None:
        self.asked.append("finish")


class Dies(Fake):
    """Is interrupted when it is asked for the n-th time."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def __call__(self, crops: Crop) -> dict[str, NDArray[np.float32]]:
        if len(self.batches) == self.after:
            raise KeyboardInterrupt
        return super().__call__(crops)


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_an_interrupted_run_continues(valset: ValSet, tmp_path: Path, after: int) -> None:
    expected = measured(valset, tmp_path / "whole", Fake(), batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        measured(valset, tmp_path / "out", Dies(after), batch_size=3, workers=1)
    rest = Fake()
    found = measured(valset, tmp_path / "out", rest, batch_size=3)
    assert len(rest.batches) == 4 - after
    assert found.measured_now == 11 - 3 * after
    assert_same(found, expected)


class HeldUp(Fake):
    """Its first batch is interrupted, not before the others are done and two are in the journal.

    Args:
        journal: of 11 images.
        first: the first crop of the first batch.
        patience: seconds for the latter.
    """

    def __init__(self, journal: Journal, first: Crop, patience: float) -> None:
        super().__init__()
        self.journal, self.first, self.patience = journal, first, patience
        self.others, self.kept = threading.Semaphore(0), 0

    def __call__(self, crops: Crop) -> dict[str, NDArray[np.float32]]:
        answers = super().__call__(crops)
        if (crops[0] == self.first).all():
            for _ in range(3):
                self.others.acquire()
            until = time.monotonic() + self.patience
            while self.kept < 6 and time.monotonic() < until:
                time.sleep(0.01)
                self.kept = len(self.journal.read(11))
            raise KeyboardInterrupt
        self.others.release()
        return answers


@pytest.mark.parametrize("stopper", [None, Bell(9)])
def test_records_are_kept_although_an_earlier_batch_is_held_up(
    valset: ValSet, tmp_path: Path, stopper: Bell | None
) -> None:
    plan = batch.Plan(PREPROCESSING, ("a", "b"), batch_size=3, workers=2)
    first = PREPROCESSING.crop(valset.read(valset.samples[0].path))
    with Journal(tmp_path, {}, plan.forms) as journal:
        held = HeldUp(journal, first, patience=0.1 if stopper else 60)
        with pytest.raises(KeyboardInterrupt):
            engine.measure(valset, held, plan, journal=journal, stopper=stopper)
        kept = set(journal.read(11)["index"].tolist())
    if stopper:  # it decides by the images in their order
        assert not kept
        return
    assert held.kept >= 6, "and not at the end only"
    assert not kept & {0, 1, 2}
    expected = measured(valset, tmp_path / "whole", Fake(), batch_size=3)
    rest = Fake()
    assert_same(measured(valset, tmp_path, rest, batch_size=3), expected)
    assert len(rest.batches) <= 2


def test_continues_with_another_number_of_processes(valset: ValSet, tmp_path: Path) -> None:
    expected = measured(valset, tmp_path / "whole", Fake(), batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        measured(valset, tmp_path / "out", Dies(3), batch_size=2, workers=1)
    rest = Fake()
    found = measured(valset, tmp_path / "out", rest, batch_size=2, shares=3)
    assert len(rest.batches) == 3
    assert_same(found, expected)


def test_an_image_that_changed_meanwhile_is_refused(valset: ValSet, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        measured(valset, tmp_path / "out", Dies(1), workers=1)
    changed = valset.root / valset.samples[2].path
    changed.write_bytes(changed.read_bytes() + b"\0")
    with pytest.raises(UsageError, match=r"2\.JPEG has changed since"):
        measured(valset, tmp_path / "out", Fake())


def break_image(valset: ValSet, index: int) -> Path:
    path = valset.root / valset.samples[index].path
    path.write_bytes(path.read_bytes()[:-100])
    return path


def test_a_bad_image_ends_the_run(valset: ValSet, tmp_path: Path) -> None:
    path = break_image(valset, 5)
    with pytest.raises(DataError) as caught:
        measured(valset, tmp_path / "out", Fake())
    assert str(path) in str(caught.value)
    assert "truncated" in str(caught.value)
    assert "--on-bad-image record" in str(caught.value)


def test_a_recorded_bad_image_is_wrong_and_the_others_are_as_before(
    valset: ValSet, tmp_path: Path
) -> None:
    expected = measured(valset, tmp_path / "one", Fake())
    break_image(valset, 5)
    (valset.root / valset.samples[9].path).unlink()
    found = measured(valset, tmp_path / "two", Fake(), record_bad=True)
    assert list(found.bad) == [5, 9]
    assert "truncated" in found.bad[5]
    assert "No such file" in found.bad[9]
    others = [i for i in range(11) if i not in (5, 9)]
    for form in ("a", "b"):
        assert found.scores[form].rank[[5, 9]].tolist() == [-1, -1]
        assert np.isnan(found.scores[form].nll[[5, 9]]).all()
        assert np.array_equal(found.scores[form].rank[others], expected.scores[form].rank[others])
        assert found.scores[form].correct(1000) == 9, "a bad image is never right"
    again = measured(valset, tmp_path / "two", Fake(), record_bad=True)
    assert again.measured_now == 0
    assert_same(again, found)


def test_logit_difference_and_flips(valset: ValSet, tmp_path: Path) -> None:
    result = measured(valset, tmp_path / "out", Fake(shift=0.25))
    assert result.max_logit_diff == 0.25
    assert result.flips.tolist() == []

    class Flips(Fake):
        def __call__(self, crops: Crop) -> dict[str, NDArray[np.float32]]:
            logits = super().__call__(crops)
            logits["b"][:, 999] += (crops[:, 0, 0, 0] > 128) * 1000
            return logits

    flipped = [
        index
        for index, sample in enumerate(valset.samples)
        if PREPROCESSING.crop(valset.read(sample.path))[0, 0, 0] > 128
    ]
    assert 0 < len(flipped) < 11
    assert measured(valset, tmp_path / "flips", Flips()).flips.tolist() == flipped


def test_a_single_form_has_no_difference(valset: ValSet, tmp_path: Path) -> None:
    result = measured(valset, tmp_path / "out", Fake(("a",)), forms=("a",))
    assert result.max_logit_diff is None
    assert result.flips.tolist() == []


def test_non_finite_answers_end_the_run(valset: ValSet, tmp_path: Path) -> None:
    class NaN(Fake):
        def __call__(self, crops: Crop) -> dict[str, NDArray[np.float32]]:
            logits = super().__call__(crops)
            logits["b"][1, 7] = np.nan
            return logits

    with pytest.raises(LogitsError, match="NaN or infinity"):
        measured(valset, tmp_path / "out", NaN())


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
              RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")],
    ids=["cuda", "python", "cpu"],
)  # fmt: skip
def test_smaller_batches_when_memory_is_short(
    valset: ValSet, tmp_path: Path, error: Exception
) -> None:
    class Small(Fake):
        def __call__(self, crops: Crop) -> dict[str, NDArray[np.float32]]:
            if len(crops) > 2:
                raise error
            return super().__call__(crops)

    small, told = Small(), list[str]()
    shrinking = batch.ShrinkOnOutOfMemory(small, told.append)
    found = measured(valset, tmp_path / "out", shrinking, batch_size=8, workers=1)
    assert_same(found, measured(valset, tmp_path / "whole", Fake()))
    assert set(small.batches) == {2}
    assert told[0] == "Out of memory: batches of 4 from now on"


def test_other_errors_are_not_taken_for_a_lack_of_memory(valset: ValSet, tmp_path: Path) -> None:
    class Broken(Fake):
        def __call__(self, crops: Crop) -> dict[str, NDArray[np.float32]]:
            self.batches.append(len(crops))
            raise RuntimeError("expected scalar type Float but found Half")

    broken = Broken()
    shrinking = batch.ShrinkOnOutOfMemory(broken, lambda _: None)
    with pytest.raises(RuntimeError, match="Float but found Half"):
        measured(valset, tmp_path / "out", shrinking, batch_size=11)
    assert len(broken.batches) == 1, "not tried again"


def part(valset: ValSet, output: Path, bell: Bell | None, told: list[object]) -> measurement.Part:
    plan = batch.Plan(PREPROCESSING, ("a", "b"), batch_size=4, workers=1)
    with Journal(output, {}, ("a", "b")) as journal:
        return engine.measure(
            valset,
            Fake(),
            plan,
            journal=journal,
            progress=lambda *counts: told.append(counts),
            stopper=bell,
        )


def test_a_run_can_be_stopped_and_continued(valset: ValSet, tmp_path: Path) -> None:
    told: list[object] = []
    bell = Bell(2)
    first = part(valset, tmp_path, bell, told)
    assert bell.asked == [("begin", 0, 3), ("after", 4), ("after", 4)]
    assert first.records["index"].tolist() == list(range(8))
    counts = [int((first.records["b"]["rank"][4 * i : 4 * i + 4] == 0).sum()) for i in (0, 1)]
    assert told == [(4, counts[0]), (4, counts[1])]

    stopped = measurement.assemble(valset, [first], ("a", "b"), "certain", {"limit": 3})
    assert [sample.path for sample in stopped.valset.samples] == [
        sample.path for sample in valset.samples[:8]
    ]
    assert (stopped.stopped, stopped.bound, len(stopped.digests)) == ("certain", {"limit": 3}, 8)

    told.clear()
    bell = Bell(0)  # certain at once: nothing is measured
    again = part(valset, tmp_path, bell, told)
    assert bell.asked == [("begin", 8, 1)]
    assert told == [(8, sum(counts))]
    assert (len(again.records), again.measured_now) == (8, 0)

    bell = Bell(9)  # never: the run ends by itself, and says so
    last = part(valset, tmp_path, bell, [])
    assert bell.asked == [("begin", 8, 1), ("after", 3), "finish"]
    whole = measured(valset, tmp_path / "x", Fake())
    assert_same(measurement.assemble(valset, [last], ("a", "b")), whole)
    late = measurement.assemble(
        valset, [last], ("a", "b"), "certain in the last batch", {"limit": 3}
    )
    assert (late.stopped, late.bound) == ("", {}), "every image was measured: the counts decide"


def test_one_form_differs_nowhere(valset: ValSet, tmp_path: Path) -> None:
    result = measured(valset, tmp_path / "out", Fake(("a",)), forms=("a",))
    assert result.where_logits_differ == ""
