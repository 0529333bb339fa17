"""Intervals and tests that stay valid however often they are looked at, and whenever one stops because of them.

They are made of bets (Waudby-Smith & Ramdas 2024, JRSS-B 86, 1-27). Whoever claims that the mean of values x from 0 to
1 is m offers fair bets on the next one. A bet of size λ ≥ 0 multiplies what was staked by (1 + λx) / (1 + λm), which
is 1 on average if the claim holds, and less if the mean is below m. So what a stake of 1 has become after n values,

    E_n(m) = ∫ Π_i (1 + λ x_i) / (1 + λ m) dF(λ),

reaches 1/α, ever, with a probability of at most α (Ville 1939), and a claim under which it did is rejected. E falls in
m, so what is not rejected is above a bound: the largest that any n so far has given. The bets on 1 - x give the bound
from above. Each side has half of the error.

F spreads the stake over bets, as in the mixtures of Robbins (1970, Ann. Math. Stat. 41, 1397-1409) and of Howard,
Ramdas, McAuliffe & Sekhon (2021, Ann. Stat. 49, 1055-1080), and in Cover's universal portfolio, whose bets give the
narrowest intervals of this kind (Orabona & Jun 2024, IEEE Trans. Inf. Theory 70, 436-455). For values of 0 and 1, a
bet is a likelihood ratio, and 1 + λ the ratio of the odds that it backs to those of m. F is what makes the claim that
both outcomes are alike likely (m = 1/2) face the chances q > 1/2 of a Beta(8, 8): E is then a beta-binomial mixture.

The values must be drawn at random from the items that one asks about, or be asked in a random order, and not depend on
each other: one value for each item.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, logsumexp

Floats = NDArray[np.float64]

CONCENTRATION = 8.0  # Both parameters of the Beta; benchmarks/early_stop.py has what others would give.
_BETS = np.geomspace(1 / 1000, 2000, 49)  # The bets λ, near enough to each other to stand for all between them.
_AT_ONCE = 2048  # So many values are worked on at once, which a core's cache holds.
_PRECISION = 1e-12


def _log_stakes(bets: Floats, concentration: float) -> Floats:
    """The logarithm of the stake on each bet, (bets,), of 1 in all.

    Where q = (1 + λ) / (2 + λ) has the density of a Beta(a, a), log λ has one that is proportional to λ (q (1-q))^a /
    (1 + λ).
    """
    chance = expit(np.log1p(bets))
    density = np.log(bets) - np.log1p(bets) + concentration * (np.log(chance) + np.log1p(-chance))
    stakes: Floats = density - logsumexp(density)
    return stakes


_LOG_STAKES = _log_stakes(_BETS, CONCENTRATION)


def mean_interval(values: ArrayLike, alpha: float, low: float = 0.0, high: float = 1.0) -> tuple[float, float]:
    """The interval of the mean after these values: all intervals, one after each value, hold it with 1 - alpha.

    It is what is left by the bounds after every value so far, stretched to the mean of the values where that is
    outside. If they leave nothing, which values with one mean seldom do, it is the interval after all values alone.

    Args:
        values: n numbers, each from `low` to `high`, in the order in which they came; without any, the interval is
            all of that.
        alpha: the probability that the mean is ever outside, between 0 and 1.
        low: the least value that there can be.
        high: the greatest.

    Raises:
        ValueError: a value outside, or NaN; an alpha that is no error; `high` not above `low`.
    """
    numbers = _checked(values, low, high)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}, not between 0 and 1")
    if not len(numbers):
        return low, high
    width, needed = high - low, math.log(2 / alpha)
    sides = [(numbers - low) / width, (high - numbers) / width]
    below, above = (_bound(side, needed) for side in sides)
    if below > 1 - above:
        below, above = (_bound_of_all(side, needed) for side in sides)
    centre = min(max(float(numbers.mean()), low), high)
    return min(low + width * below, centre), max(high - width * above, centre)


def difference_interval(differences: ArrayLike, alpha: float, most: float = 1.0) -> tuple[float, float]:
    """The interval of the mean difference, as `mean_interval`; it leaves 0 out when `no_difference_p` is below alpha.

    Two models are as good as each other but for a margin if it is within ±margin. To err there with at most alpha, an
    interval of 2 alpha is enough, since only one of its ends can be wrong (two one-sided tests, Schuirmann 1987).

    Args:
        differences: n numbers from -most to most, in the order in which they came.
        alpha: the probability that the mean is ever outside.
        most: the greatest difference that there can be.

    Raises:
        ValueError: as `mean_interval`.
    """
    return mean_interval(differences, alpha, -most, most)


def no_difference_p(differences: ArrayLike, most: float = 1.0) -> float:
    """The p of the mean difference being 0, valid at any time: it is ever α or less with a probability of at most α.

    It is 2 / max E_n, over all n so far and over both sides: the bets that the mean is above 0 and those that it is
    below. A difference of 0 changes nothing. So where differences are -1, 0 or 1, those of 0 are left out, and the
    claim about the others is that both signs are alike likely: of k others, s of them positive, E is

        2 ∫ from 1/2 to 1 of (2q)^s (2 - 2q)^(k-s) dBeta(q; 8, 8).

    Args:
        differences: n numbers from -most to most, in the order in which they came; without any, p is 1.
        most: the greatest difference that there can be.

    Raises:
        ValueError: a value outside, or NaN; a `most` that is not above 0.
    """
    numbers = _checked(differences, -most, most)
    numbers = numbers[numbers != 0] / most
    largest = 0.0
    for side in (numbers, -numbers) if len(numbers) else ():
        # (1 + λx) / (1 + λm) for x = (1 + d) / 2 and m = 1/2.
        gains = np.log1p(np.outer(side, _BETS / (2 + _BETS)))
        largest = max(largest, float(_log_sum(gains.cumsum(axis=0) + _LOG_STAKES).max()))
    return min(1.0, 2 * math.exp(-largest))


def _bound(values: Floats, needed: float) -> float:
    """The largest m that is rejected after any number of the values, from 0 to 1: where log E reaches `needed`.

    Only those numbers of values are kept in view whose own bound is above the largest so far: few, after a first look.
    """
    largest = 0.0
    before, seen = np.zeros(len(_BETS)), 0
    for begin in range(0, len(values), _AT_ONCE):
        part = values[begin : begin + _AT_ONCE]
        logs = np.log1p(np.outer(part, _BETS))
        logs[0] += before
        logs = logs.cumsum(axis=0)
        counts = np.arange(seen + 1, seen + len(part) + 1)
        before, seen = logs[-1], seen + len(part)
        while len(counts):
            reached = _log_wealth(logs, counts, largest)
            first = int(reached.argmax())
            if reached[first] < needed:
                break
            largest = _root(logs[first], int(counts[first]), largest, needed)
            in_view = reached >= needed
            in_view[first] = False
            logs, counts = logs[in_view], counts[in_view]
    return largest


def _bound_of_all(values: Floats, needed: float) -> float:
    """The same after all values alone."""
    logs = np.log1p(np.outer(values, _BETS)).sum(axis=0)
    if float(_log_wealth(logs, len(values), 0.0)) < needed:
        return 0.0
    return _root(logs, len(values), 0.0, needed)


def _root(logs: Floats, count: int, lower: float, needed: float) -> float:
    """The m above `lower`, which is rejected, where log E is `needed`. At 1 it is no more than 0."""

    def surplus(at: float) -> float:
        return float(_log_wealth(logs, count, at)) - needed

    return float(brentq(surplus, lower, 1.0, xtol=_PRECISION))


def _log_wealth(logs: Floats, counts: int | NDArray[np.int64], at: float) -> Floats:
    """The log of E after some counts of values, (k,), from the sums of log(1 + λx), (k, bets)."""
    return _log_sum(logs - np.multiply.outer(counts, np.log1p(_BETS * at)) + _LOG_STAKES)


def _log_sum(logs: Floats) -> Floats:
    """The log of the sum over bets: scipy's logsumexp, in a third of its time for a million numbers."""
    top = logs.max(axis=-1, keepdims=True)
    total: Floats = np.log(np.exp(logs - top).sum(axis=-1)) + top[..., 0]
    return total


def _checked(values: ArrayLike, low: float, high: float) -> Floats:
    """The values as floats, (n,), each from `low` to `high`."""
    if not low < high:
        raise ValueError(f"values from {low} to {high}: the end is not above the beginning")
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise ValueError(f"values of shape {numbers.shape}, not (n,)")
    outside = numbers[~((numbers >= low) & (numbers <= high))]
    if len(outside):
        raise ValueError(f"{outside[0]} is not from {low} to {high}")
    return numbers
