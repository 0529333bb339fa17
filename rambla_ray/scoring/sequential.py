"""Intervals and tests that stay valid however often they are looked at, and whenever one stops because of them.

They are made of bets (Waudby-Smith & Ramdas 2024, JRSS-B 86, 1-27). Whoever claims that the mean of values x from 0 to
1 is m offers fair bets on the next one. A bet of size λ ≥ 0 multiplies what was staked by (1 + λx) / (1 + λm), which
is 1 on average if the claim holds, and less if the mean is below m. So what a stake of 1 has become after n values,

    E_n(m) = ∫ Π_i (1 + λ x_i) / (1 + λ m) dF(λ),

reaches 1/α, ever, with a probability of at most α (Ville 1939), and a claim under which it did is rejected. E falls in
m, so what is not rejected is above a bound: the largest that any n so far has given. The bets on 1 - x give the bound
from above. Each side has half of the error.

F spreads the stake over bets, as in the mixtures of Robbins (1970, Ann. Math. Stat. 41, 1397-1409) and of Howard,
Ramdas, McAuliffe & Sekhon (2021, Ann. Stat. 49, 1055-1080), and in Cover's universal portfolio, which gives
narrow intervals of this kind (Orabona & Jun 2024, IEEE Trans. Inf. Theory 70). For values of 0 and 1, a bet is
a likelihood ratio, and 1 + λ the ratio of the odds that it backs to those of m. F is what makes the claim that both
outcomes are alike likely (m = 1/2) face the chances q > 1/2 of a Beta(6, 6): E is then a beta-binomial mixture.

There must be one value for each item, and the items in an order that has nothing to do with the answers. The mean is
that of what the items are drawn from. About the mean over one dataset, asked in a random order to its end, nothing is
proved here, but simulations err less often (benchmarks/early_stop.py).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit

Floats = NDArray[np.float64]

CONCENTRATION = 6.0  # Both parameters of the Beta; benchmarks/early_stop.py has what others would give.
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
    stakes: Floats = density - np.logaddexp.reduce(density)
    return stakes


_LOG_STAKES = _log_stakes(_BETS, CONCENTRATION)


class RunningInterval:
    """The interval of a mean, as values come: it holds the mean at all times, with a probability of 1 - alpha.

    Args:
        alpha: the probability that the mean is ever outside, between 0 and 1.
        low: the least value that there can be.
        high: the greatest.

    Raises:
        ValueError: an alpha that is no error; `high` not above `low`.
    """

    def __init__(self, alpha: float, low: float = 0.0, high: float = 1.0) -> None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is {alpha}, not between 0 and 1")
        if not low < high:
            raise ValueError(f"values from {low} to {high}: the end is not above the beginning")
        self._low, self._high = low, high
        needed = math.log(2 / alpha)
        self._below, self._above = _Side(needed), _Side(needed)

    def add(self, values: ArrayLike) -> None:
        """Take n more numbers, each from `low` to `high`, in the order in which they came.

        Raises:
            ValueError: a number outside, or NaN.
        """
        numbers = _checked(values, self._low, self._high)
        width = self._high - self._low
        self._below.add((numbers - self._low) / width)
        self._above.add((self._high - numbers) / width)

    @property
    def ends(self) -> tuple[float, float]:
        """What is left by the bounds after each value so far, stretched to the mean of the values if that is outside.

        Where they leave nothing, which values with one mean seldom do, it is the interval after all values alone.
        Before any value, it is all from `low` to `high`.
        """
        below, above = self._below.bound, 1 - self._above.bound
        if below > above:
            below, above = self._below.bound_of_all(), 1 - self._above.bound_of_all()
        width, (least, most) = self._high - self._low, (self._below.mean, 1 - self._above.mean)
        return max(self._low, self._low + width * min(below, least)), min(
            self._high, self._low + width * max(above, most)
        )


def mean_interval(values: ArrayLike, alpha: float, low: float = 0.0, high: float = 1.0) -> tuple[float, float]:
    """The ends of a `RunningInterval` after these values, (n,). They are those of the same values in several parts.

    Raises:
        ValueError: a value outside, or NaN; an alpha that is no error; `high` not above `low`.
    """
    interval = RunningInterval(alpha, low, high)
    interval.add(values)
    return interval.ends


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

        2 ∫ from 1/2 to 1 of (2q)^s (2 - 2q)^(k-s) dBeta(q; 6, 6).

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


class _Side:
    """The bets on one side: that the mean of values from 0 to 1 is above m.

    Args:
        needed: the log of what E must reach for m to be rejected.
    """

    def __init__(self, needed: float) -> None:
        self._needed = needed
        self._logs = np.zeros(len(_BETS))  # The sums of log(1 + λx).
        self._count, self._total = 0, 0.0
        self.bound = 0.0  # The largest m that was rejected after any number of values.

    @property
    def mean(self) -> float:
        """The mean of the values; 1 without any."""
        return self._total / self._count if self._count else 1.0

    def add(self, values: Floats) -> None:
        """Take n more values."""
        for begin in range(0, len(values), _AT_ONCE):
            self._add(values[begin : begin + _AT_ONCE])

    def _add(self, values: Floats) -> None:
        """The same. Only those numbers of values are kept in view whose own bound is above the largest so far."""
        logs = np.log1p(np.outer(values, _BETS))
        logs[0] += self._logs
        logs = logs.cumsum(axis=0)
        counts = np.arange(self._count + 1, self._count + len(values) + 1)
        self._logs, self._count = logs[-1], int(counts[-1])
        self._total = math.fsum([self._total, *values])
        while len(counts):
            reached = _log_wealth(logs, counts, self.bound)
            first = int(reached.argmax())
            if reached[first] < self._needed:
                break
            self.bound = self._root(logs[first], int(counts[first]), self.bound)
            in_view = reached >= self._needed
            in_view[first] = False
            logs, counts = logs[in_view], counts[in_view]

    def bound_of_all(self) -> float:
        """The largest m that is rejected after all values alone."""
        is_rejected = _log_wealth(self._logs, self._count, 0.0) >= self._needed
        return self._root(self._logs, self._count, 0.0) if is_rejected else 0.0

    def _root(self, logs: Floats, count: int, rejected: float) -> float:
        """The m above a rejected one at which E is as large as needed. At 1 it is not above 1, since no value is."""

        def surplus(at: float) -> float:
            return float(_log_wealth(logs, count, at)) - self._needed

        return float(brentq(surplus, rejected, 1.0, xtol=_PRECISION))


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
