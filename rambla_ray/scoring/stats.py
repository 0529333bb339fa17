"""Statistics: intervals and tests. numpy and scipy do the arithmetic.

Rows of one dataset item (its variants, its repeats) are not independent, so the bootstrap draws items, not rows: the
clusters are the root_ids. Its intervals are 95 % percentile intervals (Efron & Tibshirani 1993, chapter 13), from a
generator of their own. Rows are put in one order first, so the same rows give the same numbers in whatever order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

_CELLS = 2**16  # The matrix of counts is made in blocks of so many cells, so that it stays in the processor's cache.
_CLUSTERS_PER_KIND = 8  # From so many on, a multinomial draw, which takes one binomial draw for each kind, is faster.


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
    statistic: Callable[[Floats], Floats], sizes: ArrayLike, seed: int, draws: int = 2000
) -> tuple[float, float] | None:
    """The 95 % percentile interval of a statistic over resampled clusters (Efron & Tibshirani 1993, §13.3).

    Clusters that are alike, so that the statistic cannot tell one from the other, are a kind. Drawing n clusters with
    replacement and counting the kinds is one draw from a multinomial distribution (the same work for few kinds,
    however many clusters there are).

    Args:
        statistic: from counts of shape (d, kinds), how often each of d draws holds a cluster of each kind (every row
            sums to the number of clusters), to d values. It is called once for a block of draws. NaN means that it is
            undefined for a draw (one class only, say): the interval is then over the draws where it is defined.
        sizes: the number of clusters of each kind.
        seed: the seed of the draws.
        draws: the number of draws.

    Returns:
        (low, high), or None with fewer than two clusters, or when the statistic is undefined for every draw.
    """
    kind_sizes = np.asarray(sizes, dtype=np.int64)
    if kind_sizes.sum() < 2:
        return None
    generator = np.random.default_rng(seed)
    block = max(1, _CELLS // len(kind_sizes))
    values = [
        np.asarray(statistic(_draw_counts(generator, kind_sizes, size)), dtype=np.float64)
        for size in np.diff([*range(0, draws, block), draws])
    ]
    defined = np.concatenate(values)
    defined = defined[~np.isnan(defined)]
    if not len(defined):
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def _draw_counts(generator: np.random.Generator, kind_sizes: NDArray[np.int64], draws: int) -> Floats:
    """How often each kind of cluster is drawn in each of several draws, shape (draws, kinds)."""
    clusters, kinds = int(kind_sizes.sum()), len(kind_sizes)
    if kinds * _CLUSTERS_PER_KIND <= clusters:
        return generator.multinomial(clusters, kind_sizes / clusters, size=draws).astype(np.float64)
    kind = np.repeat(np.arange(kinds), kind_sizes)[generator.integers(clusters, size=(draws, clusters))]
    cells = kind + kinds * np.arange(draws)[:, None]
    return np.bincount(cells.ravel(), minlength=draws * kinds).reshape(draws, kinds).astype(np.float64)


def bootstrap_mean(values: ArrayLike, groups: ArrayLike, seed: int, draws: int = 2000) -> Estimate | None:
    """The mean over rows, with a cluster bootstrap interval; None without rows, or with a NaN or infinity in them.

    The values decide what it is the mean of: right (1 or 0) gives an accuracy; right when perturbed minus right when
    clean, a paired difference; answered c (1 or 0) minus target is c (1 or 0), the bias for label c; answer changed
    (1 or 0), a flip rate. When every row is equal the interval has no width, and with few items near 0 or 1 it is
    too short: `wilson` is then the better choice, for a proportion with one row per item.

    Args:
        values: n numbers.
        groups: n names or numbers of clusters, such as the root_id of each row.
        seed: the seed of the bootstrap.
        draws: the number of its draws.
    """
    cluster, (column,) = _in_order(groups, values)
    if not len(column) or not np.isfinite(column).all():
        return None
    kinds, sizes = _alike(_per_cluster(cluster, column, np.ones_like(column)))

    def mean(counts: Floats) -> Floats:
        total, n = np.transpose(counts @ kinds)
        means: Floats = total / n
        return means

    return Estimate(float(column.sum() / len(column)), bootstrap(mean, sizes, seed, draws))


def slope(x: ArrayLike, y: ArrayLike, groups: ArrayLike, seed: int, draws: int = 2000) -> Estimate | None:
    """The slope of the least-squares line of y on x, sum((x - mean x)(y - mean y)) / sum((x - mean x)²).

    With the number of mutations as x and 1 for right, 0 for wrong as y: the change of accuracy per mutation. The
    interval is a cluster bootstrap, which needs neither equal variances nor independent rows (Cameron, Gelbach &
    Miller 2008). None without rows, with a NaN or infinity in them, or when all x are equal.

    Args:
        x: n numbers.
        y: n numbers.
        groups: n names or numbers of clusters, such as the root_id of each row.
        seed: the seed of the bootstrap.
        draws: the number of its draws.
    """
    cluster, (across, up) = _in_order(groups, x, y)
    if not len(across) or not np.isfinite([across, up]).all() or (across == across[0]).all():
        return None
    # A shift changes no slope, and sums of small whole numbers are exact.
    across, up = across - across.min(), up - up.min()
    kinds, sizes = _alike(_per_cluster(cluster, np.ones_like(across), across, up, across * across, across * up))

    def least_squares(counts: Floats) -> Floats:
        n, sum_x, sum_y, sum_xx, sum_xy = np.transpose(counts @ kinds)
        spread = n * sum_xx - sum_x**2
        spread[spread <= 1e-12 * n * sum_xx] = np.nan  # In such a draw all x are equal.
        slopes: Floats = (n * sum_xy - sum_x * sum_y) / spread
        return slopes

    value = float(least_squares(sizes[None].astype(np.float64))[0])
    return Estimate(value, bootstrap(least_squares, sizes, seed, draws))


def roc_auc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, seed: int, draws: int = 2000) -> Estimate | None:
    """The area under the ROC curve: how often a positive scores above a negative, a tie counting half.

    That is the Mann-Whitney U over the number of pairs (Hanley & McNeil 1982), here of every draw. None when all
    labels are of one class, or with a NaN or infinity among the scores.

    Args:
        labels: n of 0 (negative) and 1 (positive).
        scores: n numbers, larger for what is more likely positive.
        groups: n names or numbers of clusters, such as the root_id of each row.
        seed: the seed of the bootstrap.
        draws: the number of its draws.

    Raises:
        ValueError: a label other than 0 and 1.
    """
    cluster, (label, score) = _in_order(groups, labels, scores)
    if not np.isin(label, (0, 1)).all():
        raise ValueError(f"labels are 0 or 1, not {sorted(set(label.tolist()) - {0.0, 1.0})[0]}")
    if len(set(label.tolist())) < 2 or not np.isfinite(score).all():
        return None
    if int(cluster[-1]) + 1 == len(cluster):  # Every cluster is one row, so that equal rows are of one kind.
        rows, sizes = _alike(np.stack([score, label], axis=1))
        kind, (score, label) = np.arange(len(rows)), np.transpose(rows)
    else:
        by_score = np.argsort(score, kind="stable")
        kind, label, score = cluster[by_score], label[by_score], score[by_score]
        sizes = np.ones(int(cluster[-1]) + 1, dtype=np.int64)
    negative, positive = kind[label == 0], kind[label == 1]
    below, not_above = (np.searchsorted(score[label == 0], score[label == 1], side=side) for side in ("left", "right"))

    def area(counts: Floats) -> Floats:
        weights = counts[:, positive]
        negatives = np.zeros((len(counts), len(negative) + 1))  # Their number among the lowest 0, 1, 2, ... rows.
        np.cumsum(counts[:, negative], axis=1, out=negatives[:, 1:])
        beaten = negatives[:, below] + negatives[:, not_above]  # Twice the number below, a tie counting half.
        pairs = weights.sum(axis=1) * negatives[:, -1]
        pairs[pairs == 0] = np.nan  # Such a draw has one class only.
        areas: Floats = np.einsum("ij,ij->i", weights, beaten) / (2 * pairs)
        return areas

    value = float(area(sizes[None].astype(np.float64))[0])
    return Estimate(value, bootstrap(area, sizes, seed, draws))


def _in_order(groups: ArrayLike, *columns: ArrayLike) -> tuple[NDArray[np.intp], list[Floats]]:
    """Each row's cluster, numbered from 0, and the columns as floats, rows sorted by all of these."""
    _, cluster = np.unique(np.asarray(groups), return_inverse=True)
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    if any(array.shape != cluster.shape for array in arrays):
        raise ValueError(f"{len(cluster)} groups for columns of shapes {[array.shape for array in arrays]}")
    order = np.lexsort([*arrays, cluster])
    return cluster[order], [array[order] for array in arrays]


def _per_cluster(cluster: NDArray[np.intp], *columns: Floats) -> Floats:
    """Sums of the columns over the rows of each cluster, shape (clusters, columns)."""
    return np.stack([np.bincount(cluster, weights=column) for column in columns], axis=1)


def _alike(rows: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """The distinct rows, sorted, shape (kinds, columns), and how often each occurs."""
    ordered = rows[np.lexsort(rows.T[::-1])]
    new = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
    begins = np.flatnonzero(new)
    return ordered[begins], np.diff(begins, append=len(ordered))
