"""Tests of pairs, what they could show, and many of them at once. scipy does the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping

from scipy import stats
from scipy.optimize import brentq

_POWER = 0.8  # What can be shown is shown so often.
_PRECISION = 1e-12


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


def detectable(n: int, discordant: int, design_effect: float = 1.0) -> float | None:
    """The smallest difference of two shares that n pairs would show: McNemar's test at 5 %, with a power of 80 %; None
    where even the largest would not be shown so often.

    The share of discordant pairs is what was seen, or as large as the difference, if that is more (Connor 1987,
    Biometrics 43, 207-211).

    Args:
        n: pairs.
        discordant: those in which one of the two alone was right.
        design_effect: by which n is divided.
    """
    effective, reach, power = n / design_effect, *map(float, stats.norm.ppf([0.975, _POWER]))

    def surplus(difference: float) -> float:
        share = max(discordant / n, difference)
        spread = reach * math.sqrt(share) + power * math.sqrt(share - difference**2)
        return float(difference * math.sqrt(effective) - spread)

    if not n or surplus(1) <= 0:
        return None
    return float(brentq(surplus, _PRECISION, 1))
