"""Statistics: intervals and tests. numpy and scipy do the arithmetic.

Rows of one dataset item (its variants, its repeats) are not independent, so the bootstrap draws items, not rows: the
clusters are the root_ids. Its intervals are 95 % percentile intervals (Efron & Tibshirani 1993, chapter 13), from a
generator of their own. Rows are put in one order first, so the same rows give the same numbers in whatever order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

_CELLS = 2**16  # of the matrix of counts made at a time, so that it stays in the cache


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its 95 % interval; no interval when there are fewer than two clusters to draw from."""

    value: float
    ci95: tuple[float, float] | None


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (Wilson 1927). Raises ValueError without a trial."""
    low, high = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p of McNemar's test, from the two counts of discordant pairs; 1 when there are none."""
    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values that hold the family-wise error rate under any dependence (Holm 1979), under the same keys.

    The k-th smallest of m is multiplied by m - k + 1, made no smaller than those before it, and at most 1.

    Raises:
        ValueError: a value outside 0 ≤ p ≤ 1, or NaN.
    """
    if not all(0 <= p <= 1 for p in p_values.values()):
        raise ValueError(f"not all are p-values between 0 and 1: {dict(p_values)}")
    largest, adjusted = 0.0, {}
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def bootstrap(
    statistic: Callable[[Floats], Floats], clusters: int, seed: int, draws: int = 2000
) -> tuple[float, float] | None:
    """The 95 % percentile interval of a statistic over resampled clusters (Efron & Tibshirani 1993, §13.3).

    Args:
        statistic: from counts of shape (d, clusters), how often each of d draws holds each cluster (every row sums
            to `clusters`), to d values. It is called once for a block of draws. NaN means that it is undefined for a
            draw (one class only, say): the interval is then over the draws where it is defined.
        clusters: how many there are.
        seed: of the draws.
        draws: how many.

    Returns:
        (low, high), or None with fewer than two clusters, or when the statistic is undefined for every draw.
    """
    if clusters < 2:
        return None
    generator = np.random.default_rng(seed)
    values = []
    block = max(1, _CELLS // clusters)
    for size in np.diff([*range(0, draws, block), draws]):
        drawn = generator.integers(clusters, size=(size, clusters)) + clusters * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * clusters).reshape(size, clusters)
        values.append(np.asarray(statistic(counts.astype(np.float64)), dtype=np.float64))
    defined = np.concatenate(values)
    defined = defined[~np.isnan(defined)]
    if not len(defined):
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def bootstrap_mean(values: ArrayLike, groups: Sequence[str], seed: int, draws: int = 2000) -> Estimate | None:
    """The mean over rows, with a cluster bootstrap interval; None without rows, or with a NaN or infinity in them.

    The values decide what it is the mean of: right (1 or 0) gives an accuracy; right when perturbed minus right when
    clean, a paired difference; answered c (1 or 0) minus target is c (1 or 0), the bias for label c; answer changed
    (1 or 0), a flip rate. When every row is equal the interval has no width, and with few items near 0 or 1 it is
    too short: `wilson` is then the better choice, for a proportion with one row per item.

    Args:
        values: n numbers.
        groups: n cluster names, the root_id of each row.
        seed: of the bootstrap.
        draws: of the bootstrap.
    """
    cluster, (column,) = _in_order(groups, values)
    if not len(column) or not np.isfinite(column).all():
        return None
    sums = _per_cluster(cluster, column, np.ones_like(column))

    def mean(counts: Floats) -> Floats:
        total, n = np.transpose(counts @ sums)
        means: Floats = total / n
        return means

    return Estimate(float(column.sum() / len(column)), bootstrap(mean, len(sums), seed, draws))


def slope(x: ArrayLike, y: ArrayLike, groups: Sequence[str], seed: int, draws: int = 2000) -> Estimate | None:
    """The slope of the least-squares line of y on x, sum((x - mean x)(y - mean y)) / sum((x - mean x)²).

    With the number of mutations as x and 1 for right, 0 for wrong as y: the change of accuracy per mutation. The
    interval is a cluster bootstrap, which needs neither equal variances nor independent rows (Cameron, Gelbach &
    Miller 2008). None without rows, with a NaN or infinity in them, or when all x are equal.

    Args:
        x: n numbers.
        y: n numbers.
        groups: n cluster names, the root_id of each row.
        seed: of the bootstrap.
        draws: of the bootstrap.
    """
    cluster, (across, up) = _in_order(groups, x, y)
    if not len(across) or not np.isfinite([across, up]).all() or (across == across[0]).all():
        return None
    across, up = across - across.min(), up - up.min()  # the slope stays; whole numbers stay whole, their sums exact
    sums = _per_cluster(cluster, np.ones_like(across), across, up, across * across, across * up)

    def least_squares(counts: Floats) -> Floats:
        n, sum_x, sum_y, sum_xx, sum_xy = np.transpose(counts @ sums)
        spread = n * sum_xx - sum_x**2
        spread[spread <= 1e-12 * n * sum_xx] = np.nan  # a draw in which all x are equal
        slopes: Floats = (n * sum_xy - sum_x * sum_y) / spread
        return slopes

    value = float(least_squares(np.ones((1, len(sums))))[0])
    return Estimate(value, bootstrap(least_squares, len(sums), seed, draws))


def roc_auc(
    labels: ArrayLike, scores: ArrayLike, groups: Sequence[str], seed: int, draws: int = 2000
) -> Estimate | None:
    """The area under the ROC curve: how often a positive scores above a negative, a tie counting half.

    That is the Mann-Whitney U over the number of pairs (Hanley & McNeil 1982), here of every draw. None when all
    labels are of one class, or with a NaN or infinity among the scores.

    Args:
        labels: n of 0 (negative) and 1 (positive).
        scores: n numbers, larger for what is held to be positive.
        groups: n cluster names, the root_id of each row.
        seed: of the bootstrap.
        draws: of the bootstrap.

    Raises:
        ValueError: a label other than 0 and 1.
    """
    cluster, (label, score) = _in_order(groups, labels, scores)
    if not np.isin(label, (0, 1)).all():
        raise ValueError(f"labels are 0 or 1, not {sorted(set(label.tolist()) - {0.0, 1.0})[0]}")
    if len(set(label.tolist())) < 2 or not np.isfinite(score).all():
        return None
    by_score = np.argsort(score, kind="stable")
    cluster, label, score = cluster[by_score], label[by_score], score[by_score]
    levels = np.flatnonzero(np.diff(score, prepend=-math.inf))  # where each distinct score begins

    def area(counts: Floats) -> Floats:
        weights = counts[:, cluster]
        positive = np.add.reduceat(weights * label, levels, axis=1)
        negative = np.add.reduceat(weights * (1 - label), levels, axis=1)
        wins = (positive * (np.cumsum(negative, axis=1) - negative / 2)).sum(axis=1)
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        pairs[pairs == 0] = np.nan  # a draw with one class only
        areas: Floats = wins / pairs
        return areas

    clusters = int(cluster.max()) + 1
    value = float(area(np.ones((1, clusters)))[0])
    return Estimate(value, bootstrap(area, clusters, seed, draws))


def _in_order(groups: Sequence[str], *columns: ArrayLike) -> tuple[NDArray[np.intp], list[Floats]]:
    """Each row's cluster, numbered from 0, and the columns as floats, rows sorted by all of these."""
    _, cluster = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    if any(array.shape != cluster.shape for array in arrays):
        raise ValueError(f"{len(cluster)} groups for columns of shapes {[array.shape for array in arrays]}")
    order = np.lexsort([*arrays, cluster])
    return cluster[order], [array[order] for array in arrays]


def _per_cluster(cluster: NDArray[np.intp], *columns: Floats) -> Floats:
    """Sums of the columns over the rows of each cluster, shape (clusters, columns)."""
    return np.stack([np.bincount(cluster, weights=column) for column in columns], axis=1)
