"""How many items a design needs that asks a fixed number and looks once, at 5 %, where the truth is known before."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

ALPHA = 0.05


def mcnemar_power(won: float, lost: float, items: int) -> float:
    """How often McNemar's exact test rejects, two-sided.

    Args:
        won: the chance that the second of two models alone is right.
        lost: that of the first.
        items: how many are asked.
    """
    discordant = np.arange(items + 1)
    most = stats.binom.ppf(ALPHA / 2, discordant, 0.5)  # So many of one sign, or fewer, are rejected.
    most -= stats.binom.cdf(most, discordant, 0.5) > ALPHA / 2
    share = won / (won + lost)
    rejects = stats.binom.cdf(most, discordant, share) + stats.binom.cdf(most, discordant, 1 - share)
    return float(stats.binom.pmf(discordant, items, won + lost) @ rejects)


def mcnemar_items(won: float, lost: float, power: float) -> int:
    """The items with which it rejects so often."""
    return _first(lambda items: mcnemar_power(won, lost, items) >= power)


def wilson_items(accuracy: float, width: float) -> int:
    """The items after which Wilson's interval is so narrow, if that share of them is right."""
    z2 = float(stats.norm.isf(ALPHA / 2)) ** 2

    def wide(items: int) -> float:
        return 2 * math.sqrt(z2 * (accuracy * (1 - accuracy) / items + z2 / (4 * items**2))) / (1 + z2 / items)

    return _first(lambda items: wide(items) <= width)


def equivalence_items(discordance: float, margin: float, power: float) -> int:
    """The items with which two one-sided tests show equal models to be within ± margin, by the normal distribution."""
    reach = float(stats.norm.isf(ALPHA) + stats.norm.isf((1 - power) / 2))
    return math.ceil(reach**2 * discordance / margin**2)


def _first(is_enough: Callable[[int], bool]) -> int:
    """The smallest number that is enough, where more is enough too."""
    few, enough = 0, 1
    while not is_enough(enough):
        few, enough = enough, 2 * enough
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if is_enough(middle) else (middle, enough)
    return enough
