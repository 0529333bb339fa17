"""Statistics: textbook values, agreement with scipy and scikit-learn, and intervals that hold what they promise."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from scipy.optimize import minimize
from sklearn.metrics import roc_auc_score

from rambla_ray.scoring.significance import holm, mcnemar_exact
from rambla_ray.scoring.stats import Estimate, mean, roc_auc, slope

BENCHMARK = Path(__file__).resolve().parent.parent / "benchmarks" / "interval_coverage.py"
Z2 = scipy_stats.norm.ppf(0.975) ** 2
MUTATIONS = [0, 1, 3, 10, 20, 50]


def own_ids(count: int, rows: int = 1) -> list[str]:
    return [str(number) for number in range(count) for _ in range(rows)]


def of(estimate: Estimate | None) -> Estimate:
    assert estimate is not None
    return estimate


# --- tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 2**5), (1, 9, 22 / 2**10), (9, 1, 22 / 2**10)],
)
def test_mcnemar_exact(only_first: int, only_second: int, p: float) -> None:
    assert mcnemar_exact(only_first, only_second) == pytest.approx(p)


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ({}, {}),
        ({"a": 0.03}, {"a": 0.03}),
        ({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}, {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}),
        ({"a": 0.5, "b": 0.9}, {"a": 1.0, "b": 1.0}),
        ({"a": 0.02, "b": 0.02, "c": 1.0}, {"a": 0.06, "b": 0.06, "c": 1.0}),
    ],
)
def test_holm(p_values: dict[str, float], adjusted: dict[str, float]) -> None:
    found = holm(p_values)
    assert list(found) == list(p_values)
    assert found == pytest.approx(adjusted)


@given(st.lists(st.floats(0, 1), max_size=8))
@settings(deadline=None)
def test_holm_stands_between_no_adjustment_and_bonferroni_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = list(holm(dict(enumerate(p_values))).values())  # type: ignore[arg-type]
    for p, higher in zip(p_values, adjusted, strict=True):
        assert p <= higher <= min(1.0, len(p_values) * p) + 1e-12
    by_p = [higher for _, higher in sorted(zip(p_values, adjusted, strict=True))]
    assert by_p == sorted(by_p)


@pytest.mark.parametrize("p", [math.nan, -0.1, 1.1])
def test_holm_refuses_what_is_no_p_value(p: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm({"a": p})


# --- means of one row an item ----------------------------------------------------------------------------------------


def share(successes: int, trials: int) -> Estimate:
    return of(mean([1] * successes + [0] * (trials - successes), own_ids(trials)))


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
        (5, 10, 0.2366, 0.7634),
    ],
)
def test_a_proportion_has_the_published_interval_of_wilson(
    successes: int, trials: int, low: float, high: float
) -> None:
    assert share(successes, trials).ci95 == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 300), st.data())
@settings(deadline=None, max_examples=60)
def test_a_proportion_has_scipys_interval_of_wilson(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    expected = scipy_stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert share(successes, trials) == Estimate(successes / trials, pytest.approx(tuple(expected), abs=1e-9))


def change(to_wrong: int, to_right: int, pairs: int) -> Estimate:
    values = [-1] * to_wrong + [1] * to_right + [0] * (pairs - to_wrong - to_right)
    return of(mean(values, own_ids(pairs), -1, 1))


def tango(to_wrong: int, to_right: int, pairs: int, at: float) -> float:
    """The score statistic of Tango 1998, equations 5 to 7, squared."""
    b = -to_right - to_wrong + (2 * pairs - to_right + to_wrong) * at
    share_to_wrong = (math.sqrt(b * b + 8 * pairs * to_wrong * at * (1 - at)) - b) / (4 * pairs)
    return (to_right - to_wrong - pairs * at) ** 2 / (pairs * (2 * share_to_wrong + at * (1 - at)))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 200))
@settings(deadline=None, max_examples=100)
def test_a_difference_of_paired_proportions_has_the_interval_of_tango(wrong: int, right: int, same: int) -> None:
    pairs = wrong + right + same
    low, high = change(wrong, right, pairs).ci95
    assert low < (right - wrong) / pairs < high
    assert tango(wrong, right, pairs, high) == pytest.approx(Z2, rel=1e-6)
    assert tango(right, wrong, pairs, -low) == pytest.approx(Z2, rel=1e-6)  # the same with the two sides exchanged


@pytest.mark.parametrize("pairs", [1, 30, 890])
def test_pairs_of_which_none_changed_have_an_interval_with_a_width(pairs: int) -> None:
    edge = Z2 / (pairs + Z2)  # Wilson's upper bound of 0 of n
    assert change(0, 0, pairs) == Estimate(0.0, pytest.approx((-edge, edge)))


def test_pairs_that_all_changed_reach_the_end_of_the_scale() -> None:
    assert change(30, 0, 30).ci95 == pytest.approx((-1, -1 + 2 * Z2 / (30 + Z2)), abs=0.06)
    assert change(30, 0, 30).ci95[0] == -1.0


def log_likelihood(probabilities: np.ndarray, counts: np.ndarray) -> float:
    return float(counts @ np.log(np.maximum(probabilities, 1e-300)))


@pytest.mark.parametrize("counts", [(4, 20, 3, 1), (0, 25, 2, 3), (7, 0, 0, 1)])
def test_at_its_ends_the_variance_is_that_of_the_likeliest_distribution_with_this_mean(
    counts: tuple[int, ...],
) -> None:
    """An optimiser that knows nothing of the dual problem finds the same distribution."""
    values, drawn = np.array([0.0, 0.25, 0.75, 1.0]), np.array(counts)
    n = int(drawn.sum())
    estimate = of(mean(np.repeat(values, drawn), own_ids(n)))
    for end in estimate.ci95:
        best = minimize(
            lambda p: -log_likelihood(p, drawn),
            np.full(4, 0.25),
            bounds=[(0, 1)] * 4,
            constraints=[
                {"type": "eq", "fun": lambda p: p.sum() - 1},
                {"type": "eq", "fun": lambda p, end=end: p @ values - end},
            ],
            options={"maxiter": 500, "ftol": 1e-12},
        )
        variance = best.x @ (values - end) ** 2 / n
        assert (estimate.value - end) ** 2 == pytest.approx(Z2 * variance, rel=1e-3)


# --- several rows an item --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [2, 4])
def test_rows_of_one_item_are_not_new_evidence(rows: int) -> None:
    once = np.arange(200) % 3 == 0
    repeated = of(mean(np.repeat(once, rows), own_ids(200, rows)))
    assert repeated.ci95 == pytest.approx(of(mean(once, own_ids(200))).ci95)
    score = np.arange(200) * 7 % 100
    area = of(roc_auc(np.repeat(once, rows), np.repeat(score, rows), own_ids(200, rows))).ci95
    assert area == pytest.approx(of(roc_auc(once, score, own_ids(200))).ci95, rel=0.1)


def test_items_with_more_rows_weigh_more() -> None:
    estimate = of(mean([1, 1, 1, 0], ["a", "a", "a", "b"]))
    assert estimate.value == 0.75
    assert estimate.ci95[1] - estimate.ci95[0] > 0.75  # two items, of which one is right, say little


ESTIMATORS: dict[str, Callable[[np.ndarray, np.ndarray, list[str]], Estimate | None]] = {
    "mean": lambda x, y, groups: mean(y, groups),
    "slope": slope,
    "roc_auc": lambda x, y, groups: roc_auc([int(group[-1]) % 2 for group in groups], x, groups),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_depend_on_the_rows_and_not_on_their_order(name: str) -> None:
    generator = np.random.default_rng(11)
    x, y = generator.normal(size=90), generator.random(90)
    groups = [f"item-{number}" for number in generator.integers(30, size=90)]
    first = of(ESTIMATORS[name](x, y, groups))
    assert first.ci95[0] < first.value < first.ci95[1]
    assert {type(number) for number in (first.value, *first.ci95)} == {float}
    order = generator.permutation(90)
    assert ESTIMATORS[name](x[order], y[order], [groups[place] for place in order]) == first


def test_clusters_may_be_names_or_numbers() -> None:
    generator = np.random.default_rng(8)
    items, right = generator.integers(40, size=200), generator.random(200) < 0.7
    assert mean(right, items) == mean(right, [f"item {item}" for item in items])


@pytest.mark.parametrize(
    "estimate",
    [
        mean([], []),
        mean([1.0, math.nan], ["a", "b"]),
        slope([], [], []),
        slope([1, 1], [0, 1], ["a", "b"]),
        slope([1, math.nan], [0, 1], ["a", "b"]),
        roc_auc([], [], []),
        roc_auc([1, 1], [0.2, 0.3], ["a", "b"]),
        roc_auc([0, 1], [0.2, math.nan], ["a", "b"]),
    ],
)
def test_what_is_undefined_is_none(estimate: Estimate | None) -> None:
    assert estimate is None


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 groups for columns of shapes"):
        mean([1, 0, 1], ["a", "b"])
    with pytest.raises(ValueError, match="0 or 1, not 2"):
        roc_auc([0, 2], [0.1, 0.2], ["a", "b"])


# --- slope and area --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(MUTATIONS), st.integers(0, 1)), min_size=2, max_size=40), st.integers(1, 6))
@settings(deadline=None, max_examples=100)
def test_the_slope_is_that_of_least_squares_and_inside_its_interval(points: list[tuple[int, int]], rows: int) -> None:
    x, y = zip(*points, strict=True)
    estimate = slope(x, y, [str(number // rows) for number in range(len(x))])
    if len(set(x)) == 1:
        assert estimate is None
    else:
        found = of(estimate)
        assert found.value == pytest.approx(scipy_stats.linregress(x, y).slope, abs=1e-12)
        assert found.ci95[0] - 1e-12 <= found.value <= found.ci95[1] + 1e-12
        assert found.ci95[1] - found.ci95[0] > 1e-6


def test_a_slope_between_two_points_is_the_paired_difference_over_their_distance() -> None:
    generator = np.random.default_rng(4)
    clean, after = generator.random((2, 300)) < [[0.9], [0.8]]
    pairs = np.stack([clean, after], axis=1).astype(float)
    expected = of(mean(pairs[:, 1] - pairs[:, 0], own_ids(300), -1, 1))
    found = of(slope(np.tile([0, 10], 300), pairs.ravel(), own_ids(300, 2)))
    assert (10 * found.value, *(10 * end for end in found.ci95)) == pytest.approx((expected.value, *expected.ci95))


@pytest.mark.parametrize("right", [0, 1])
def test_items_that_never_change_leave_a_doubt_that_falls_with_their_number(right: int) -> None:
    widths = []
    for items in (10, 100, 1000):
        low, high = of(slope(MUTATIONS * items, [right] * 6 * items, own_ids(items, 6))).ci95
        assert low < 0 < high
        widths.append(high - low)
    assert widths[0] > 5 * widths[1] > 25 * widths[2]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=40))
@settings(deadline=None, max_examples=50)
def test_the_area_is_that_of_scikit_learn_and_inside_its_interval(rows: list[tuple[int, int]]) -> None:
    labels, scores = zip(*rows, strict=True)
    estimate = roc_auc(labels, scores, own_ids(len(labels)))
    if len(set(labels)) == 1:
        assert estimate is None
    else:
        found = of(estimate)
        assert found.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
        assert 0 <= found.ci95[0] <= found.value + 1e-12 <= found.ci95[1] + 2e-12 <= 1 + 2e-12


def test_classes_that_scores_divide_have_an_interval_with_a_width() -> None:
    found = of(roc_auc([0] * 20 + [1] * 10, range(30), own_ids(30)))
    assert (found.value, found.ci95[1]) == (1.0, 1.0)
    assert 0.6 < found.ci95[0] < 0.9


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=30))
@settings(deadline=None, max_examples=40)
def test_turning_round_labels_and_scores_turns_round_the_area(rows: list[tuple[int, int]]) -> None:
    labels, scores = map(np.array, zip(*rows, strict=True))
    assume(len(set(labels.tolist())) == 2)
    one, other = of(roc_auc(labels, scores, own_ids(len(rows)))), of(roc_auc(1 - labels, scores, own_ids(len(rows))))
    assert other.value == pytest.approx(1 - one.value)
    assert other.ci95 == pytest.approx((1 - one.ci95[1], 1 - one.ci95[0]), abs=1e-9)


@pytest.mark.parametrize("rows", [1, 3])
def test_with_many_items_the_interval_is_that_of_drawing_items(rows: int) -> None:
    """scipy's bootstrap of a mean, a slope and an area, where it holds what it promises."""
    generator, items = np.random.default_rng(2), 2000
    x = generator.integers(5, size=(items, rows))
    chance = generator.uniform(0.2, 0.9, size=(items, 1))
    y = (generator.random((items, rows)) < chance - 0.03 * x).astype(float)
    labels = np.repeat(generator.integers(2, size=(items, 1)), rows, axis=1)
    scores = generator.normal(size=(items, rows)) + generator.normal(size=(items, 1)) + labels
    groups = own_ids(items, rows)
    found = {
        of(mean(y.ravel(), groups)).ci95: lambda drawn: y[drawn].mean(),
        of(slope(x.ravel(), y.ravel(), groups)).ci95: lambda drawn: np.polyfit(x[drawn].ravel(), y[drawn].ravel(), 1)[
            0
        ],
        of(roc_auc(labels.ravel(), scores.ravel(), groups)).ci95: lambda drawn: roc_auc_score(
            labels[drawn].ravel(), scores[drawn].ravel()
        ),
    }
    for interval, statistic in found.items():
        drawn = np.sort([statistic(generator.integers(items, size=items)) for _ in range(500)])
        low, high = np.percentile(drawn, [2.5, 97.5])
        assert interval == pytest.approx((low, high), abs=0.12 * (high - low))


# --- the intervals hold the truth ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [30, 100, 890])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
def test_a_proportion_is_covered_exactly_summed(n: int, p: float) -> None:
    successes = np.arange(n + 1)
    ends = [scipy_stats.binomtest(int(k), n).proportion_ci(0.95, method="wilson") for k in successes]
    held = [low <= p <= high for low, high in ends]
    assert 0.93 < scipy_stats.binom.pmf(successes, n, p) @ held < 0.97


@pytest.mark.parametrize(
    ("to_wrong", "to_right", "most"),
    [(0.0375, 0.0125, 0.998), (0.0475, 0.0025, 0.998), (0.375, 0.125, 0.96), (0.7, 0.25, 0.96), (0.095, 0.0025, 0.98)],
)
def test_a_paired_difference_is_covered_exactly_summed(to_wrong: float, to_right: float, most: float) -> None:
    """Of few pairs that seldom flip it holds the truth more often than it promises, and never much less often."""
    n = 30
    covered = 0.0
    for wrong in range(n + 1):
        for right in range(n + 1 - wrong):
            low, high = change(wrong, right, n).ci95
            if low <= to_right - to_wrong <= high:
                covered += scipy_stats.multinomial.pmf(
                    [wrong, right, n - wrong - right], n, [to_wrong, to_right, 1 - to_wrong - to_right]
                )
    assert 0.93 < covered < most


SETTINGS = [
    *("accuracy, 4 rows an item", "paired difference, 4 pairs an item", "label bias"),
    *("slope, 6 rows an item", "area", "area, 4 rows an item"),
]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("n", [30, 100])
def test_intervals_cover_the_truth(name: str, n: int) -> None:
    ((share, _),) = runpy.run_path(str(BENCHMARK))["coverage"](name, n, 0.5, repetitions=400)
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / 400) <= share <= 0.995  # three standard errors of 400 repetitions


def test_taking_rows_for_items_covers_too_little() -> None:
    generator, held = np.random.default_rng(3), []
    for _ in range(300):
        right = generator.random((50, 4)) < generator.beta(1, 1, size=(50, 1))
        low, high = of(mean(right.ravel(), own_ids(200))).ci95
        held.append(low <= 0.5 <= high)
    assert np.mean(held) < 0.9
