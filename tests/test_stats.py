"""Statistics: textbook values, agreement with scipy and scikit-learn, and intervals that hold what they promise."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score

from rambla_ray.scoring.stats import Estimate, bootstrap, bootstrap_mean, holm, mcnemar_exact, roc_auc, slope, wilson

BENCHMARK = Path(__file__).resolve().parent.parent / "benchmarks" / "interval_coverage.py"


def own_ids(count: int) -> list[str]:
    return [str(number) for number in range(count)]


# --- proportions and pairs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # (p + z²/2n ± z sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n), z = 1.959964
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_needs_a_trial() -> None:
    with pytest.raises(ValueError, match="n must be"):
        wilson(0, 0)


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


# --- the bootstrap ---------------------------------------------------------------------------------------------------


def drawn(sizes: list[int], draws: int) -> np.ndarray:
    """The counts of each kind that the bootstrap hands to its statistic."""
    seen = []

    def statistic(counts: np.ndarray) -> np.ndarray:
        seen.append(counts.copy())
        return counts[:, 0]

    bootstrap(statistic, sizes, seed=1, draws=draws)
    return np.concatenate(seen)


@pytest.mark.parametrize(
    ("sizes", "draws"),
    [
        ([1] * 7, 2000),
        ([1] * 2, 1),
        ([1] * 3000, 2000),
        ([5, 1, 3], 2000),
        ([4000, 1, 999], 2000),  # few kinds of many clusters: a multinomial draw
        ([700], 3),
    ],
)
def test_the_bootstrap_draws_as_many_clusters_as_there_are(sizes: list[int], draws: int) -> None:
    counts, clusters = drawn(sizes, draws), sum(sizes)
    assert counts.shape == (draws, len(sizes))
    assert (counts.sum(axis=1) == clusters).all()
    if draws == 2000:  # each count is binomial(n, size/n)
        p = np.array(sizes) / clusters
        deviation = np.sqrt(clusters * p * (1 - p))
        assert (abs(counts.mean(axis=0) - sizes) <= 6 * deviation / math.sqrt(draws)).all()
        assert counts.std(axis=0).mean() == pytest.approx(deviation.mean(), rel=0.05)


def test_clusters_that_are_alike_may_be_counted_instead_of_drawn() -> None:
    """Both ways of drawing give the distribution of the number of ones in n draws: binomial(n, p)."""
    few, many = drawn([300, 100], 20_000)[:, 1], drawn([100] + [1] * 300, 20_000)[:, 0]
    for found in (few, many):
        quantiles = [0.025, 0.25, 0.5, 0.75, 0.975]
        expected = scipy_stats.binom.ppf(quantiles, 400, 0.25)
        assert abs(np.quantile(found, quantiles) - expected).max() <= 1


def test_the_bootstrap_of_many_independent_rows_is_the_normal_interval() -> None:
    right = np.arange(10_000) % 5 != 0  # 0.8
    estimate = bootstrap_mean(right, own_ids(10_000), seed=3)
    assert estimate is not None
    assert estimate.ci95 is not None
    width = 1.959964 * math.sqrt(0.8 * 0.2 / 10_000)
    assert estimate.value == 0.8
    assert estimate.ci95 == pytest.approx((0.8 - width, 0.8 + width), abs=0.1 * width)


def test_rows_of_one_item_are_not_new_evidence() -> None:
    once = np.arange(200) % 3 == 0
    single = bootstrap_mean(once, own_ids(200), seed=5)
    repeated = bootstrap_mean(np.repeat(once, 4), np.repeat(own_ids(200), 4).tolist(), seed=5)
    assert single == repeated


def test_undefined_draws_are_left_out() -> None:
    def statistic(counts: np.ndarray) -> np.ndarray:
        return np.where(counts[:, 0] > 0, 1.0, np.nan)

    assert bootstrap(statistic, [1, 1, 1], seed=1) == (1.0, 1.0)
    assert bootstrap(lambda counts: np.full(len(counts), np.nan), [1, 1, 1], seed=1) is None
    assert bootstrap(lambda counts: counts[:, 0], [1], seed=1) is None


TABLES: list[tuple[str, Callable[[np.ndarray, np.ndarray, list[str], int], Estimate | None]]] = [
    ("mean", lambda x, y, groups, seed: bootstrap_mean(y, groups, seed)),
    ("slope", lambda x, y, groups, seed: slope(x, y, groups, seed)),
    ("roc_auc", lambda x, y, groups, seed: roc_auc(y > 0.5, x, groups, seed)),
]


@pytest.mark.parametrize("estimator", [made for _, made in TABLES], ids=[name for name, _ in TABLES])
def test_estimates_depend_on_the_rows_and_the_seed_alone(
    estimator: Callable[[np.ndarray, np.ndarray, list[str], int], Estimate | None],
) -> None:
    generator = np.random.default_rng(11)
    x, y = generator.normal(size=90), generator.random(90)
    groups = [f"item-{number}" for number in generator.integers(30, size=90)]
    first = estimator(x, y, groups, 17)
    assert first is not None
    assert first.ci95 is not None
    assert first.ci95[0] < first.value < first.ci95[1]
    assert {type(number) for number in (first.value, *first.ci95)} == {float}
    order = generator.permutation(90)
    np.random.seed(3)
    assert estimator(x[order], y[order], [groups[place] for place in order], 17) == first
    other = estimator(x, y, groups, 18)
    assert other is not None
    assert (other.value, other.ci95) != (first.value, first.ci95)
    assert other.value == first.value


@pytest.mark.parametrize(
    "estimate",
    [
        bootstrap_mean([], [], 1),
        bootstrap_mean([1.0, math.nan], ["a", "b"], 1),
        slope([], [], [], 1),
        slope([1, 1], [0, 1], ["a", "b"], 1),
        slope([1, math.nan], [0, 1], ["a", "b"], 1),
        roc_auc([], [], [], 1),
        roc_auc([1, 1], [0.2, 0.3], ["a", "b"], 1),
        roc_auc([0, 1], [0.2, math.nan], ["a", "b"], 1),
    ],
)
def test_what_is_undefined_is_none(estimate: Estimate | None) -> None:
    assert estimate is None


def test_one_cluster_has_a_value_and_no_interval() -> None:
    assert bootstrap_mean([1, 0], ["a", "a"], 1) == Estimate(0.5, None)
    assert slope([1, 3], [0, 1], ["a", "a"], 1) == Estimate(0.5, None)
    assert roc_auc([0, 1], [0.1, 0.2], ["a", "a"], 1) == Estimate(1.0, None)


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 groups for columns of shapes"):
        bootstrap_mean([1, 0, 1], ["a", "b"], 1)
    with pytest.raises(ValueError, match="0 or 1, not 2"):
        roc_auc([0, 2], [0.1, 0.2], ["a", "b"], 1)


# --- slope and area --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from([0, 1, 3, 10, 20, 50]), st.integers(0, 1)), min_size=2, max_size=40))
@settings(deadline=None, max_examples=50)
def test_the_slope_is_that_of_least_squares(points: list[tuple[int, int]]) -> None:
    x, y = zip(*points, strict=True)
    estimate = slope(x, y, own_ids(len(x)), seed=1, draws=50)
    if len(set(x)) == 1:
        assert estimate is None
    else:
        assert estimate is not None
        assert estimate.value == pytest.approx(scipy_stats.linregress(x, y).slope, abs=1e-12)


def test_points_on_a_line_give_its_slope_in_every_draw() -> None:
    x = np.tile([0, 1, 3, 10, 20, 50], 20)
    estimate = slope(x + 1e6, 0.9 - 0.004 * x, np.repeat(own_ids(20), 6).tolist(), seed=1)
    assert estimate is not None
    assert estimate.ci95 is not None
    assert (estimate.value, *estimate.ci95) == pytest.approx((-0.004, -0.004, -0.004), rel=1e-9)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=40))
@settings(deadline=None, max_examples=50)
def test_the_area_is_that_of_scikit_learn(rows: list[tuple[int, int]]) -> None:
    labels, scores = zip(*rows, strict=True)
    estimate = roc_auc(labels, scores, own_ids(len(labels)), seed=1, draws=50)
    if len(set(labels)) == 1:
        assert estimate is None
    else:
        assert estimate is not None
        assert estimate.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("rows_each", [1, 3])
def test_the_interval_of_the_area_is_that_of_drawing_items_and_asking_scikit_learn(rows_each: int) -> None:
    generator = np.random.default_rng(2)
    items = 60
    labels = generator.integers(2, size=(items, rows_each))
    scores = generator.integers(7, size=(items, rows_each)) + labels
    groups = np.repeat(own_ids(items), rows_each).tolist()
    estimate = roc_auc(labels.ravel(), scores.ravel(), groups, seed=9, draws=4000)
    areas = []
    for _ in range(4000):
        rows = generator.integers(items, size=items)
        areas.append(roc_auc_score(labels[rows].ravel(), scores[rows].ravel()))
    assert estimate is not None
    spread = float(np.std(areas))
    assert estimate.ci95 == pytest.approx(np.percentile(areas, [2.5, 97.5]), abs=0.15 * spread)


@pytest.mark.parametrize("rows_each", [1, 2])
def test_the_interval_of_a_mean_is_that_of_drawing_items(rows_each: int) -> None:
    generator = np.random.default_rng(4)
    values = generator.choice([-1.0, 0.0, 1.0], p=[0.2, 0.7, 0.1], size=(500, rows_each))
    groups = np.repeat(own_ids(500), rows_each).tolist()
    estimate = bootstrap_mean(values.ravel(), groups, seed=9, draws=4000)
    means = values[generator.integers(500, size=(4000, 500))].mean(axis=(1, 2))
    assert estimate is not None
    assert estimate.ci95 == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.15 * float(np.std(means)))


def test_clusters_may_be_names_or_numbers() -> None:
    generator = np.random.default_rng(8)
    items, right = generator.integers(40, size=200), generator.random(200) < 0.7
    assert bootstrap_mean(right, items, seed=1) == bootstrap_mean(right, [f"item {item}" for item in items], seed=1)


# --- the intervals hold the truth ------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_wilson_covers_the_truth_exactly_summed(p: float) -> None:
    trials = 445
    held = [low <= p <= high for low, high in (wilson(successes, trials) for successes in range(trials + 1))]
    assert 0.94 < scipy_stats.binom.pmf(range(trials + 1), trials, p) @ held < 0.965


@pytest.mark.parametrize(
    "setting",
    [
        "accuracy 0.80, 445 items, Wilson",
        "accuracy 0.80, 200 items, bootstrap",
        "accuracy 0.80, 150 items x 4 variants, by item",
        "paired difference -0.072, 300 items",
        "flip rate 0.10, 300 items, Wilson",
        "label bias +0.10, 150 items x 4 orders",
        "slope -0.004, 150 items x 6 mutation counts",
        "ROC AUC 0.760, 200 items",
    ],
)
def test_intervals_cover_the_truth(setting: str) -> None:
    coverage = runpy.run_path(str(BENCHMARK))["coverage"](setting, repetitions=400, draws=400)
    assert abs(coverage - 0.95) <= 3 * math.sqrt(0.95 * 0.05 / 400)  # three standard errors of 400 repetitions


def test_taking_rows_for_items_covers_too_little() -> None:
    name = "accuracy 0.80, 150 items x 4 variants, by row *"
    assert runpy.run_path(str(BENCHMARK))["coverage"](name, repetitions=400, draws=400) < 0.92


@pytest.mark.parametrize("q", [0.02, 0.1, 0.4])
def test_a_flip_probability_is_recovered(q: float) -> None:
    generator = np.random.default_rng(6)
    items, repeats = 400, 250
    clean = generator.random((repeats, items)) < 0.8
    flips = (clean != (clean ^ (generator.random(clean.shape) < q))).sum(axis=1)
    intervals = [wilson(int(count), items) for count in flips]
    assert flips.mean() / items == pytest.approx(q, abs=4 * math.sqrt(q * (1 - q) / items / repeats))
    assert 0.93 <= np.mean([low <= q <= high for low, high in intervals]) <= 0.97
