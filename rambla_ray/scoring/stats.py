"""Statistics: intervals and tests. numpy and scipy do the arithmetic.

Every interval is a score interval: the values that a test at 5 % would not reject, where the test takes the standard
error that would hold if the value were true, not that of the data. For a proportion that is Wilson's interval (1927),
for a difference of paired proportions Tango's (1998). Such intervals hold the truth about as often as they promise
with few items, too, and have a width when nothing has happened; `benchmarks/interval_coverage.py` measures it, beside
the percentile bootstrap. Nothing is drawn at random.

Rows of one dataset item (its variants, its repeats) are not independent, so what is counted is items: the clusters are
the root_ids. Rows are put in one order first, so the same rows give the same numbers in whatever order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import brentq

Floats = NDArray[np.float64]

_Z2 = float(stats.norm.ppf(0.975)) ** 2
_PRECISION = 1e-12  # How near the ends of an interval come to where the test changes its mind.


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    ci95: tuple[float, float]


def mean(values: ArrayLike, groups: ArrayLike, lowest: float = 0, highest: float = 1) -> Estimate | None:
    """The mean over rows, with a score interval over clusters; None without rows, or with a NaN or infinity in them.

    The values decide what it is the mean of: right (1 or 0) gives an accuracy; right when perturbed minus right when
    clean, a paired difference; answered c (1 or 0) minus target is c (1 or 0), the bias for label c. With one row in
    each cluster, 0 or 1, the interval is Wilson's (1927); with -1, 0 or 1 it is Tango's (1998).

    Args:
        values: n numbers.
        groups: n names or numbers of clusters, such as the root_id of each row.
        lowest: the least value that a row can have, whether or not one has it.
        highest: the greatest.
    """
    cluster, (column,) = _in_order(groups, values)
    if not len(column) or not np.isfinite(column).all():
        return None
    count = np.ones_like(column)
    return _Clusters.of(cluster, column, count, lowest * count, highest * count).estimate()


@dataclass(frozen=True, slots=True)
class NoDifference:
    """The score test of whether the mean of differences is 0.

    Args:
        p: its two-sided p; 1 where nothing differs.
        variance: that of the mean, if it is 0 in truth.
    """

    p: float
    variance: float


def no_difference(values: ArrayLike, groups: ArrayLike) -> NoDifference:
    """Test whether the mean of differences, each from -1 to 1, is 0: whether `mean`'s interval holds 0, at any level.

    With one row in each cluster it is McNemar's test without a correction.

    Args:
        values: n differences, at least one.
        groups: n names or numbers of clusters.
    """
    cluster, (column,) = _in_order(groups, values)
    count = np.ones_like(column)
    variance = _Clusters.of(cluster, column, count, -count, count).variance(0)
    mean_ = float(column.mean())
    return NoDifference(float(stats.chi2.sf(mean_**2 / variance, 1)) if mean_ else 1.0, variance)


def slope(x: ArrayLike, y: ArrayLike, groups: ArrayLike) -> Estimate | None:
    """The slope of the least-squares line of y on x, sum((x - mean x)(y - mean y)) / sum((x - mean x)²).

    With the number of mutations as x and 1 for right, 0 for wrong as y: the change of accuracy per mutation. The
    interval is a score interval over clusters; it needs neither equal variances nor independent rows. None without
    rows, with a NaN or infinity in them, or when all x are equal.

    Args:
        x: n numbers.
        y: n numbers from 0 to 1.
        groups: n names or numbers of clusters, such as the root_id of each row.
    """
    cluster, (across, up) = _in_order(groups, x, y)
    if not len(across) or not np.isfinite([across, up]).all() or (across == across[0]).all():
        return None
    across = across - across.mean()
    if_zero, if_one = -across * up.mean(), across * (1 - up.mean())  # What a row adds when its y is 0, and when 1.
    added = across * (up - up.mean())
    least, most = np.minimum(if_zero, if_one), np.maximum(if_zero, if_one)
    return _Clusters.of(cluster, added, across**2, least, most).estimate()


def roc_auc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> Estimate | None:
    """The area under the ROC curve: how often a positive scores above a negative, a tie counting half.

    It is the mean over positives of the share of negatives that each beats, and the mean over negatives of the share
    of positives that beat each; its variance is the sum of those of the two means (DeLong et al. 1988), each taken as
    in `mean`. With one row in each cluster it is no less than that of the distributions of Hanley & McNeil (1982),
    whose score interval is method 5 of Newcombe (2006): a few rows of one class say little of their own variance.
    None when all labels are of one class, or with a NaN or infinity among the scores.

    Args:
        labels: n of 0 (negative) and 1 (positive).
        scores: n numbers, larger for what is more likely positive.
        groups: n names or numbers of clusters, such as the root_id of each row; the rows of one have one label.

    Raises:
        ValueError: a label other than 0 and 1.
    """
    cluster, (label, score) = _in_order(groups, labels, scores)
    if not np.isin(label, (0, 1)).all():
        raise ValueError(f"labels are 0 or 1, not {sorted(set(label.tolist()) - {0.0, 1.0})[0]}")
    if len(set(label.tolist())) < 2 or not np.isfinite(score).all():
        return None
    is_positive = label == 1
    negative, positive = score[~is_positive], score[is_positive]
    beats, beaten_by = _share_below(positive, negative), 1 - _share_below(negative, positive)
    sides = [
        _Clusters.of(cluster[chosen], share, np.ones_like(share), np.zeros_like(share), np.ones_like(share))
        for chosen, share in ((is_positive, beats), (~is_positive, beaten_by))
    ]
    area, rows_are_items = float(beats.mean()), int(cluster[-1]) + 1 == len(cluster)

    def variance(at: float) -> float:
        least = _hanley_mcneil(at, len(positive), len(negative)) if rows_are_items else 0.0
        return max(least, sum(side.variance(at) for side in sides))

    return Estimate(area, _score_interval(area, 0, 1, variance))


def _share_below(scores: Floats, others: Floats) -> Floats:
    """For each score the share of the others that are below it, a tie counting half."""
    ordered = np.sort(others)
    below, not_above = (np.searchsorted(ordered, scores, side=side) for side in ("left", "right"))
    shares: Floats = (below + not_above) / (2 * len(others))
    return shares


def _hanley_mcneil(area: float, positives: int, negatives: int) -> float:
    """The variance of the area where scores are exponential, alike in both classes (Newcombe 2006, method 5)."""
    others = (positives + negatives) / 2 - 1
    shared = others * ((1 - area) / (2 - area) + area / (1 + area))  # Pairs that share a row vary together.
    return area * (1 - area) * (1 + shared) / (positives * negatives)


@dataclass(frozen=True, slots=True)
class _Clusters:
    """Clusters by kind, and a number that is the sum of their amounts over the sum of their weights.

    Each array has one entry per kind; clusters of one kind are alike in all of them.

    Args:
        sizes: the number of clusters of the kind.
        amounts: what each cluster adds to the sum.
        weights: its weight, not negative.
        least: the least amount that it could have had.
        most: the greatest.
    """

    sizes: NDArray[np.int64]
    amounts: Floats
    weights: Floats
    least: Floats
    most: Floats

    @classmethod
    def of(cls, cluster: NDArray[np.intp], *columns: Floats) -> _Clusters:
        """From the cluster of each row, and columns of rows whose sums are amounts, weights, least and most."""
        _, cluster = np.unique(cluster, return_inverse=True)
        sums = np.stack([np.bincount(cluster, weights=column) for column in columns], axis=1)
        ordered = sums[np.lexsort(sums.T)]
        begins = np.flatnonzero(np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)]))
        return cls(np.diff(begins, append=len(ordered)), *np.ascontiguousarray(ordered[begins].T))

    def estimate(self) -> Estimate:
        """The number and its interval."""
        value = float(self.sizes @ self.amounts / (self.sizes @ self.weights))
        weighs = self.weights > 0
        lowest = float((self.least[weighs] / self.weights[weighs]).min())
        highest = float((self.most[weighs] / self.weights[weighs]).max())
        return Estimate(value, _score_interval(value, lowest, highest, self.variance))

    def variance(self, at: float) -> float:
        """The variance of the number if its true value were `at`.

        It is that of the likeliest distribution of clusters with this value: the one that gives what was drawn the
        greatest probability, among those whose surplus, amount - `at` * weight, is 0 on average (Owen 1988). A cluster
        may also have the least or the greatest surplus, although none of those that were drawn has.
        """
        surplus = self.amounts - at * self.weights
        low, high = float((self.least - at * self.weights).min()), float((self.most - at * self.weights).max())
        if self.sizes @ surplus < 0:
            surplus, low, high = -surplus, -high, -low
        if low >= 0:
            return 0.0  # No distribution has this value.
        shares = self.sizes / self.sizes.sum()
        probability = shares / (1 + _tilt(shares, surplus, low) * surplus)
        squares = probability @ surplus**2 + max(0.0, 1 - probability.sum()) * low**2
        return float(squares * self.sizes.sum() / (self.sizes @ self.weights) ** 2)


def _tilt(shares: Floats, surplus: Floats, low: float) -> float:
    """The λ for which shares / (1 + λ surplus), and what is left of 1 at `low`, have the mean 0 (Owen 1988).

    The mean surplus must not be negative, and no surplus less than `low` < 0.
    """

    def mean_of(tilt: float) -> float:
        return float(np.sum(shares * surplus / (1 + tilt * surplus)))

    steepest = (1 - _PRECISION) / -low
    if mean_of(0) <= 0:
        return 0.0
    return steepest if mean_of(steepest) >= 0 else float(brentq(mean_of, 0, steepest, xtol=_PRECISION * steepest))


def _score_interval(
    value: float, lowest: float, highest: float, variance: Callable[[float], float]
) -> tuple[float, float]:
    """From `lowest` to `highest`, those numbers t with (value - t)² ≤ z² variance(t), z being that of 95 %."""

    def excess(at: float) -> float:
        if at == value:
            return -_Z2
        spread, squared = variance(at), (value - at) ** 2
        return min(squared / spread, 2 * _Z2) - _Z2 if spread > 0 else _Z2

    def limit(end: float) -> float:
        if end == value or excess(end) <= 0:
            return end
        return float(brentq(excess, *sorted((value, end)), xtol=_PRECISION * abs(end - value)))

    return limit(lowest), limit(highest)


def _in_order(groups: ArrayLike, *columns: ArrayLike) -> tuple[NDArray[np.intp], list[Floats]]:
    """Each row's cluster, numbered from 0, and the columns as floats, rows sorted by all of these."""
    _, cluster = np.unique(np.asarray(groups), return_inverse=True)
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    if any(array.shape != cluster.shape for array in arrays):
        raise ValueError(f"{len(cluster)} groups for columns of shapes {[array.shape for array in arrays]}")
    order = np.lexsort([*arrays, cluster])
    return cluster[order], [array[order] for array in arrays]
