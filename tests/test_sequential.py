"""Intervals and tests that are valid at any time: by integration, by counting all sequences, by simulation."""

from __future__ import annotations

import itertools
import math
import runpy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import integrate
from scipy import stats as scipy_stats

from rambla_ray.scoring.sequential import (
    CONCENTRATION,
    RunningInterval,
    difference_interval,
    mean_interval,
    no_difference_p,
)

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
QUADRATURE = 0.005  # The stake is on 49 bets, not on all: the p's are so near to those of the integral.

unit_values = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=60)
signs = st.lists(st.sampled_from([-1, 0, 1]), max_size=60)


def wealth(values: Sequence[float], mean: float) -> float:
    """What the bets that the mean of values is above a claimed one have made of 1, by integration."""
    stake = scipy_stats.beta(CONCENTRATION, CONCENTRATION)

    def after(chance: float) -> float:
        bet = (2 * chance - 1) / (1 - chance)  # chance = (1 + bet) / (2 + bet)
        return float(2 * stake.pdf(chance) * math.prod((1 + bet * x) / (1 + bet * mean) for x in values))

    return float(integrate.quad(after, 0.5, 1 - 1e-12, epsabs=1e-12, limit=200)[0])


def prefixes(values: Sequence[float]) -> list[Sequence[float]]:
    return [values[:count] for count in range(1, len(values) + 1)]


def beta_binomial(won: int, lost: int) -> float:
    """What the bets have made of 1 that the first of two signs is the likelier one, by integration."""
    stake = scipy_stats.beta(CONCENTRATION, CONCENTRATION)
    found = integrate.quad(lambda q: 2 * stake.pdf(q) * (2 * q) ** won * (2 - 2 * q) ** lost, 0.5, 1, epsabs=1e-12)
    return float(found[0])


# --- against integration ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "differences",
    [[1] * 6, [1] * 12, [-1] * 12, [1, 1, -1] * 10, [-1] * 9 + [1] * 9, [1, -1] * 5, [1, 0, 0, 1] * 8],
)
def test_p_is_that_of_a_beta_binomial_mixture(differences: list[int]) -> None:
    counts = [tuple(some.count(sign) for sign in (1, -1)) for some in prefixes(differences)]
    largest = max(beta_binomial(*pair) for won, lost in counts for pair in ((won, lost), (lost, won)))
    assert no_difference_p(differences) == pytest.approx(min(1, 2 / largest), rel=QUADRATURE)


def test_p_of_pairs_that_are_all_alike_by_hand() -> None:
    # Over all q from 0 to 1, the mean of q^20 is a moment of the Beta; below 1/2 there is next to nothing of it.
    moment = math.prod((CONCENTRATION + i) / (2 * CONCENTRATION + i) for i in range(20))
    assert no_difference_p([1] * 20) == pytest.approx(2 / (2 * 2**20 * moment), rel=QUADRATURE)


def test_p_of_other_differences_is_that_of_bets() -> None:
    differences = [0.25, 1, 0.5, -0.25, 0.75, 0, 1, 0.5] * 3
    moved = [(1 + difference) / 2 for difference in differences]
    largest = max(wealth(some, 0.5) for some in prefixes(moved))
    assert no_difference_p(differences) == pytest.approx(2 / largest, rel=QUADRATURE)


@pytest.mark.parametrize(
    "values", [[1] * 12, [0] * 10, [1, 1, 1, 0] * 4, [1] * 8 + [0] * 4, [0.2, 0.4, 0.9, 0.3, 0.35] * 3]
)
def test_at_the_ends_of_an_interval_the_largest_wealth_is_2_over_alpha(values: list[float]) -> None:
    low, high = mean_interval(values, 0.2)
    flipped = [1 - x for x in values]
    for end, some in ((low, values), (1 - high, flipped)):
        largest = max(wealth(part, end) for part in prefixes(some))
        assert largest == pytest.approx(10, rel=QUADRATURE) if end else largest <= 10


# --- errors, by counting all sequences -------------------------------------------------------------------------------


def test_p_errs_no_more_than_it_says_of_all_sequences_of_signs() -> None:
    found = np.array([no_difference_p(one) for one in itertools.product([-1, 1], repeat=12)])
    for alpha in (0.02, 0.05, 0.1, 0.2, 0.5):
        assert (found <= alpha).mean() <= alpha
    assert (found <= 0.2).any()


def test_p_errs_no_more_than_it_says_of_differences_that_lean_but_have_the_mean_0() -> None:
    chance = {-1.0: 0.2, 0.5: 0.4, 0.0: 0.4}
    sequences = list(itertools.product(chance, repeat=7))
    weights = np.array([math.prod(chance[d] for d in one) for one in sequences])
    found = np.array([no_difference_p(one) for one in sequences])
    for alpha in (0.05, 0.2, 0.5):
        assert weights[found <= alpha].sum() <= alpha
    assert (found <= 0.5).any()


def test_p_errs_no_more_than_it_says_of_all_orders_of_one_dataset() -> None:
    ups = itertools.combinations(range(12), 6)
    found = np.array([no_difference_p([1 if place in up else -1 for place in range(12)]) for up in ups])
    for alpha in (0.1, 0.2, 0.5):
        assert (found <= alpha).mean() <= alpha
    assert (found <= 0.5).any()


def intervals_after_each(values: Sequence[float], alpha: float) -> Iterator[tuple[float, float]]:
    interval = RunningInterval(alpha)
    for value in values:
        interval.add([value])
        yield interval.ends


@pytest.mark.parametrize(("values", "count"), [((0.0, 1.0), 8), ((0.0, 0.4, 1.0), 5)])
def test_interval_leaves_the_mean_out_no_more_often_than_it_says_whatever_the_distribution(
    values: tuple[float, ...], count: int
) -> None:
    alpha = 0.5
    sequences = list(itertools.product(range(len(values)), repeat=count))
    ends = np.array([list(intervals_after_each([values[k] for k in one], alpha)) for one in sequences])
    drawn = np.array(sequences)
    largest = 0.0
    for weights in itertools.product([0.02, 0.3, 0.6, 1.5], repeat=len(values)):
        chances = np.array(weights) / sum(weights)
        mean = chances @ values
        left_out = ((ends[..., 0] > mean) | (ends[..., 1] < mean)).any(axis=1)
        largest = max(largest, float(chances[drawn].prod(axis=1)[left_out].sum()))
    assert 0.01 < largest <= alpha


# --- what holds for all values ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(unit_values, st.floats(0.001, 0.9))
def test_interval_lies_inside_and_holds_the_mean_of_the_values(values: list[float], alpha: float) -> None:
    low, high = mean_interval(values, alpha)
    assert 0 <= low <= np.mean(values) + 1e-12
    assert np.mean(values) - 1e-12 <= high <= 1


@settings(deadline=None, max_examples=40)
@given(st.floats(-3, 5), st.integers(1, 300))
def test_more_of_the_same_value_never_widens_the_interval(value: float, count: int) -> None:
    low, high = mean_interval([value] * count, 0.05, -3, 5)
    after_low, after_high = mean_interval([value] * (count + 100), 0.05, -3, 5)
    assert -3 <= low <= after_low <= value + 1e-12
    assert value - 1e-12 <= after_high <= high <= 5


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from([0, 0.25, 0.5, 1]), min_size=1, max_size=12), st.integers(1, 20))
def test_more_of_the_same_evidence_never_widens_the_interval(values: list[float], times: int) -> None:
    low, high = mean_interval(values * times, 0.05)
    after_low, after_high = mean_interval(values * (times + 1), 0.05)
    assert after_high - after_low <= high - low + 1e-9


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-2, 2, allow_subnormal=False), max_size=40))
def test_models_that_change_places_change_signs_alone(differences: list[float]) -> None:
    swapped = [-difference for difference in differences]
    assert no_difference_p(swapped, 2) == no_difference_p(differences, 2)
    low, high = difference_interval(differences, 0.05, 2)
    assert difference_interval(swapped, 0.05, 2) == pytest.approx((-high, -low), abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(signs)
def test_pairs_without_a_difference_leave_p_as_it_is(differences: list[int]) -> None:
    assert no_difference_p(differences) == no_difference_p([sign for sign in differences if sign])


@settings(deadline=None, max_examples=40)
@given(signs, signs)
def test_p_only_falls(before: list[int], more: list[int]) -> None:
    assert no_difference_p(before + more) <= no_difference_p(before)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from([0.1, 0.5, 0.65, 0.9]))
def test_interval_leaves_out_0_where_p_is_below_alpha(seed: int, up: float) -> None:
    generator = np.random.default_rng(seed)
    differences = np.where(generator.random(80) < up, 1, -1) * (generator.random(80) < 0.6)
    p = no_difference_p(differences)
    assume(abs(p - 0.05) > 1e-9)
    low, high = difference_interval(differences, 0.05)
    assume(min(abs(low), abs(high)) != abs(differences.mean()))  # The interval was stretched to the mean.
    assert (low > 0 or high < 0) == (p < 0.05)


@settings(deadline=None, max_examples=40)
@given(unit_values, st.integers(5, 30))
def test_values_in_parts_give_the_interval_of_the_whole(values: list[float], block: int) -> None:
    interval = RunningInterval(0.1)
    for begin in range(0, len(values), block):
        interval.add(values[begin : begin + block])
    assert interval.ends == pytest.approx(mean_interval(values, 0.1), abs=1e-9)


def test_many_values_are_worked_on_in_parts() -> None:
    values = np.random.default_rng(3).random(5000)
    whole, some = mean_interval(values, 0.05), RunningInterval(0.05)
    for part in np.split(values, [1, 2047, 2049, 4096]):
        some.add(part)
    assert some.ends == pytest.approx(whole, abs=1e-9)
    assert whole[1] - whole[0] < 0.03


def test_values_that_drift_give_the_interval_of_all_alone() -> None:
    drifting = [0.0] * 200 + [1.0] * 2000
    ends = mean_interval(drifting, 0.05)
    assert ends == pytest.approx(mean_interval(drifting[::-1], 0.05))
    assert ends[0] < 10 / 11 < ends[1]
    assert ends[1] - ends[0] < 0.05


# --- without values, and values that there cannot be -----------------------------------------------------------------


def test_without_values_all_is_possible() -> None:
    assert mean_interval([], 0.05) == (0, 1)
    assert difference_interval([], 0.05, 2) == (-2, 2)
    assert no_difference_p([]) == no_difference_p([0, 0, 0]) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([0.5, 1.5], 0.05), "1.5 is not from 0.0 to 1.0"),
        (lambda: mean_interval([math.nan], 0.05), "nan is not from"),
        (lambda: mean_interval([[0.5]], 0.05), r"shape \(1, 1\)"),
        (lambda: mean_interval([0.5], 0), "alpha is 0"),
        (lambda: mean_interval([0.5], 1), "alpha is 1"),
        (lambda: mean_interval([0.5], 0.05, 1, 1), "from 1 to 1"),
        (lambda: difference_interval([2], 0.05), "2.0 is not from -1.0 to 1.0"),
        (lambda: no_difference_p([-1.1]), "-1.1 is not from"),
        (lambda: no_difference_p([math.inf], 3), "inf is not from -3 to 3"),
    ],
)
def test_what_cannot_be_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- the benchmark, with few runs ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark() -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield runpy.run_path(str(BENCHMARKS / "early_stop.py"))


def test_interval_at_the_stop_holds_an_accuracy_as_often_as_it_says(benchmark: dict[str, Any]) -> None:
    generator = np.random.default_rng(5)
    options, held = benchmark["Options"](100, 32, 5), 0
    for _ in range(100):
        values = (generator.random(1500) < 0.8).astype(float)
        (stop,) = benchmark["stops"](RunningInterval(0.05), values, options, [lambda low, high: high - low <= 0.1])
        assert stop[0] % 32 == 0
        held += stop[1] <= 0.8 <= stop[2]
    assert held >= 89  # With a true 95 %, it is fewer in 4 of 1,000 cases.


def test_a_gap_of_ten_points_takes_less_than_half_of_890_items(benchmark: dict[str, Any]) -> None:
    pair, options = benchmark["Pair"].of(0.7, 0.8, 0.25), benchmark["Options"](60, 32, 5)
    differences = [pair.draw(generator, 890) for generator in options.generators(1)]
    after = [benchmark["decided_after"](one, options) or 890 for one in differences]
    assert np.mean(after) < 890 / 2
    looks = options.looks(890)
    for one, found in list(zip(differences, after, strict=True))[:5]:
        assert found == next(look for look in looks if look == 890 or no_difference_p(one[:look]) <= 0.05)


def test_fixed_designs_are_those_of_hand_computation() -> None:
    designs = runpy.run_path(str(BENCHMARKS / "fixed_designs.py"))
    # Of pairs that are all discordant, 5 of one sign do not reject (2 / 2^5 = 0.06), 6 do, and 8 of 9 or all 9 do.
    power, nine = designs["mcnemar_power"], 0.9**9 + 9 * 0.9**8 * 0.1 + 9 * 0.9 * 0.1**8 + 0.1**9
    assert power(0.9, 0.1, 5) == 0
    assert power(0.9, 0.1, 6) == pytest.approx(0.9**6 + 0.1**6)
    assert power(0.9, 0.1, 9) == pytest.approx(nine)
    items = designs["mcnemar_items"](0.24, 0.14, 0.8)
    assert power(0.24, 0.14, items - 1) < 0.8 <= power(0.24, 0.14, items)
    assert designs["wilson_items"](0.5, 0.06) == 1064
    low, high = scipy_stats.binomtest(532, 1064).proportion_ci(method="wilson")
    assert high - low == pytest.approx(0.06, abs=1e-4)


def test_every_table_has_a_line(benchmark: dict[str, Any]) -> None:
    for name, head, lines in benchmark["tables"](benchmark["Options"](1, 400, 1)):
        assert name
        assert head
        assert lines[0]().strip()
