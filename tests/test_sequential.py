"""When a run may end early: error rate, exact stopping point, and how soon."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from small_evaluations import counted

from eval.config import Reference, Tolerance, VariantConfig
from eval.judge.gate import Limit, Limits
from eval.judge.sequential import BaselineStop, EarlyStop, Exchange, Figure, references
from eval.judge.verdict import expected_counts, judge
from eval.metrics import anytime_interval, evidence_against, possible_totals

TOP1, TOP5 = Figure("unfused", 1), Figure("unfused", 5)


def ratio(total: int, right: int, images: int, population: int) -> Fraction | None:
    """Prior-posterior ratio in whole numbers; None where the counts are impossible."""
    if not right <= total <= population - images + right:
        return None
    ways = comb(total, right) * comb(population - total, images - right)
    return Fraction(comb(population, images), (images + 1) * ways)


def certain(right: int, images: int, population: int, window: range, alpha: Fraction) -> bool:
    """Every total of the window is rejected, one by one."""
    ratios = (ratio(total, right, images, population) for total in window)
    return all(r is None or r >= 1 / alpha for r in ratios)


def test_the_evidence_is_beta_binomial_against_hypergeometric() -> None:
    from scipy.stats import betabinom, hypergeom

    for total, right, images in ((38_520, 2, 20), (38_520, 255, 380), (20, 5, 9)):
        expected = betabinom.logpmf(right, images, 1, 1)
        expected -= hypergeom.logpmf(right, 50_000, total, images)
        assert evidence_against(total, right, images, 50_000) == pytest.approx(expected)
    assert evidence_against(3, 4, 5, 10) == np.inf  # four of three


@pytest.mark.parametrize(("reference", "tolerance"), [(20, 0), (24, 2), (40, 3), (1, 0)])
def test_stops_exactly_where_brute_force_does(reference: int, tolerance: int) -> None:
    population, alpha = 40, Fraction(1, 20)
    stop = EarlyStop(population, {TOP1: reference}, tolerance, float(alpha))
    window = range(reference - tolerance, reference + tolerance + 1)
    decisions = set()
    for images in range(1, population + 1):
        for right in range(images + 1):
            expected = certain(right, images, population, window, alpha)
            found = stop.update({TOP1: right}, images) is not None
            assert found == expected, (right, images)
            decisions.add(found)
    assert decisions == {True, False}


def test_the_error_is_split_over_the_figures() -> None:
    population, alpha = 40, 0.05
    for images in range(1, 30):
        for right in range(images + 1):
            counts = {TOP1: right, TOP5: images}
            both = EarlyStop(population, {TOP1: 24, TOP5: 40}, 2, alpha).update(counts, images)
            half = EarlyStop(population, {TOP1: 24}, 2, alpha / 2).update(counts, images)
            assert (both is None) == (half is None)


def test_a_full_run_is_judged_as_the_verdict_judges_it() -> None:
    stop = EarlyStop(40, {TOP1: 24}, 2)
    for right in range(41):
        assert (stop.update({TOP1: right}, 40) is None) == (abs(right - 24) <= 2)


def wrongly_stopped(alpha: float, runs: int, seed: int) -> float:
    """Share of right setups that are ever refused, looking after every image.

    The true total stands at the edge of the tolerance, where an error is likeliest.
    """
    population, reference, tolerance = 150, 115, 2
    stop = EarlyStop(population, {TOP1: reference}, tolerance, alpha)
    images = np.arange(1, population + 1)
    refused = np.zeros((population + 1, population + 1), dtype=bool)
    for t in images:
        for s in range(t + 1):
            refused[t, s] = stop.update({TOP1: s}, int(t)) is not None
    rng = np.random.default_rng(seed)
    truth = np.arange(population) < reference + tolerance
    errors = 0
    for _ in range(runs):
        right = rng.permutation(truth).cumsum()
        errors += bool(refused[images, right].any())
    return errors / runs


def test_error_rate_is_what_was_promised() -> None:
    # 3,000 runs at 0.05: a test that errs in 0.07 of them is found out with 0.9999.
    rate = wrongly_stopped(0.05, 3000, seed=1)
    assert rate <= 0.05 + 3 * (0.05 * 0.95 / 3000) ** 0.5
    assert rate > 0  # the table is not simply empty


def test_medians_of_fifty_thousand_images() -> None:
    """With 50,000 images, reference 38,520, tolerance 10; top-1 and top-5 of two forms."""
    from scipy.stats import hypergeom

    population, reference, tolerance = 50_000, 38_520, 10
    rng = np.random.default_rng(3)
    medians = {}
    for percent in (2, 67, 72, 75, 76):
        truth = np.arange(population) < population * percent // 100
        stops = []
        for _ in range(21):
            right = rng.permutation(truth).cumsum()
            images = np.arange(1, population + 1)
            peak = right * (population + 1) // images
            total = np.clip(peak, reference - tolerance, reference + tolerance)
            log_ratio = -np.log1p(images) - hypergeom.logpmf(right, population, total, images)
            stops.append(int(np.argmax(log_ratio >= np.log(4 / 0.001))) + 1)
        medians[percent] = np.median(stops)
        stop = EarlyStop(population, dict.fromkeys((TOP1, TOP5), reference), tolerance, 0.0005)
        at = int(stops[-1])  # of the last run: the class decides as the vectors do
        for t in (at - 1, at):
            said = stop.update({TOP1: int(right[t - 1]), TOP5: round(t * 0.7704)}, t)
            assert (said is not None) == (t == at)
    assert medians[2] <= 20
    assert medians[67] == pytest.approx(380, rel=0.35)
    assert medians[72] == pytest.approx(1750, rel=0.35)
    assert medians[75] == pytest.approx(9000, rel=0.35)
    assert medians[76] == pytest.approx(27_500, rel=0.35)


def test_possible_totals_are_those_that_brute_force_keeps() -> None:
    population, confidence = 40, Fraction(19, 20)
    for images in range(1, population + 1):
        for right in range(images + 1):
            ratios = {k: ratio(k, right, images, population) for k in range(population + 1)}
            kept = [k for k, r in ratios.items() if r is not None and r < 1 / (1 - confidence)]
            assert possible_totals(right, images, population, 0.95) == (kept[0], kept[-1])
            assert kept == list(range(kept[0], kept[-1] + 1))


def test_interval_is_wider_than_wilson_and_ends_in_the_figure() -> None:
    from eval.metrics import wilson_interval

    low, high = anytime_interval(385, 500, 50_000)
    wilson = wilson_interval(385, 500)
    assert low < wilson[0] < 77 < wilson[1] < high
    assert anytime_interval(38_520, 50_000, 50_000) == (77.04, 77.04)


def test_references_are_those_that_the_verdict_compares_with() -> None:
    config = VariantConfig(
        "base", "base", 50_000,
        {"": Reference("doc", 77.04, 93.27)}, {"paddle": Tolerance(10, "so")},
    )  # fmt: skip
    assert references(config, "paddle", ("unfused",)) == {TOP1: 38_520, TOP5: 46_635}
    assert references(config, "squash", ("unfused",)) == {}
    shown = VariantConfig(
        "s", "small", 50_000,
        {"": Reference("doc", 73.97, gated=False)}, {"paddle": Tolerance(10, "so")},
    )  # fmt: skip
    assert references(shown, "paddle", ("unfused",)) == {}
    assert EarlyStop(50_000, {}, 10).update({}, 1000) is None


def test_stop_early_and_verdict_count_every_reference_alike() -> None:
    """Every reference of two decimals, every number of images to 2,000; by hand in whole numbers.

    r hundredths of a percent of n images are r n / 10,000; a half is rounded up.
    """
    images = np.arange(1, 2001)
    for hundredths in range(1, 10_001):
        reference = Reference("doc", hundredths / 100)
        nearest = (2 * hundredths * images + 10_000) // 20_000
        config = VariantConfig("x", "base", images, {"": reference},  # type: ignore[arg-type]
                               {"paddle": Tolerance(0, "so")})  # fmt: skip
        stop = references(config, "paddle", ("unfused",))[TOP1]
        np.testing.assert_array_equal(stop, nearest, str(hundredths))
        np.testing.assert_array_equal(expected_counts(reference, images)[1], nearest)  # type: ignore[arg-type]


@pytest.mark.parametrize("images", [1, 2, 8, 40, 1000, 2000])
@pytest.mark.parametrize("hundredths", [1, 1250, 3205, 7625, 9999, 10_000])
def test_stop_early_and_verdict_agree_on_whole_sets(hundredths: int, images: int) -> None:
    """76.25 % of 1,000 are 763 to both; `round` gives 762."""
    tolerance = images // 20
    config = VariantConfig("x", "base", images, {"": Reference("doc", hundredths / 100)},
                           {"paddle": Tolerance(tolerance, "so")})  # fmt: skip
    wanted = references(config, "paddle", ("unfused",))
    stop = EarlyStop(images, wanted, tolerance)
    for edge in (wanted[TOP1] - tolerance, wanted[TOP1] + tolerance):
        for right in {edge - 1, edge, edge + 1} & set(range(images + 1)):
            (form,) = judge(counted(right, images, images), config, "paddle", "fp32").forms
            assert form.verdict in ("PASS", "FAIL")
            said = stop.update({TOP1: right}, images)
            assert (said is not None) == (form.verdict == "FAIL"), (right, form.reason)


def test_what_is_said_and_kept() -> None:
    stop = EarlyStop(50_000, {TOP1: 38_520}, 10)
    said = stop.update({TOP1: 1}, 40)
    assert said is not None
    assert "unfused top-1: 1 of 40 images are correct (2.50 %), the reference is 77.04 %" in said
    assert stop.bound["images"] == 40
    assert stop.bound["possible_correct"][1] < 38_510
    assert stop.bound["error_probability"] == 0.001


def limits(drop: int, flips: int | None = None) -> Limits:
    return Limits(Limit(Fraction(drop)), Limit(Fraction(drop)), flips)


def test_flips_that_were_counted_are_certain() -> None:
    stop = BaselineStop(1000, {TOP1: 700}, limits(50, flips=5))
    even = {TOP1: Exchange(30, 2, 2)}
    assert stop.update(even, {"unfused": 5}, 40) is None
    assert "6 images changed" in (stop.update(even, {"unfused": 6}, 40) or "")
    assert BaselineStop(1000, {TOP1: 700}, limits(50)).update(even, {"unfused": 9}, 40) is None


def test_a_drop_is_certain_when_losses_cannot_be_made_up() -> None:
    stop = BaselineStop(10_000, {TOP1: 7700}, limits(10))
    assert stop.update({TOP1: Exchange(1500, 150, 5)}, {}, 2000) is not None
    assert stop.update({TOP1: Exchange(300, 2, 1)}, {}, 400) is None
    assert stop.update({TOP1: Exchange(300, 1, 30)}, {}, 400) is None
    # Everything measured: exactly the gate's own rule.
    for lost, gained in ((30, 20), (31, 20), (11, 0), (10, 0)):
        said = stop.update({TOP1: Exchange(7700, lost, gained)}, {}, 10_000)
        assert (said is not None) == (lost - gained > 10)


def test_a_harmless_candidate_is_hardly_ever_stopped() -> None:
    """The true drop is exactly the limit; looked at after every 20 images."""
    rng = np.random.default_rng(5)
    before = np.arange(600) < 420
    after = before.copy()
    after[:25], after[420:440] = False, True  # 25 lost, 20 gained: a drop of 5
    stop = BaselineStop(600, {TOP1: 420}, limits(5), alpha=0.1)
    stopped = 0
    for _ in range(60):
        order = rng.permutation(600)
        looks = range(20, 601, 20)
        stopped += any(
            stop.update({TOP1: Exchange.of(before[order[:n]], after[order[:n]])}, {}, n)
            for n in looks
        )
    assert stopped <= 12  # 0.1 of 60 is 6; more than 12 has a chance of 0.006
