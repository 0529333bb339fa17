"""Other intervals of a mean that are valid at any time, to put beside ours: for values from 0 to 1, after all of them.

Both are of Waudby-Smith & Ramdas (2024, JRSS-B 86, 1-27), with the intersection over all values so far, and bet by the
variance of what came before:

    hedged       theorem 3: bets of at most half of what keeps wealth positive, on a grid of means
    bernstein    theorem 2: the empirical-Bernstein interval with predictable bets, in closed form
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
GRID = np.arange(0.0005, 1, 0.001)


def hedged(values: Floats, alpha: float) -> tuple[float, float]:
    """The means whose two wealths, a half staked on each, never reached 1/alpha."""
    bets = _bets(values, alpha)[:, None]
    surplus = values[:, None] - GRID
    up = np.log1p(np.minimum(bets, 0.5 / GRID) * surplus).cumsum(axis=0).max(axis=0)
    down = np.log1p(-np.minimum(bets, 0.5 / (1 - GRID)) * surplus).cumsum(axis=0).max(axis=0)
    held = GRID[np.maximum(up, down) < np.log(2 / alpha)]
    return (float(held[0]), float(held[-1])) if len(held) else (0.0, 1.0)


def bernstein(values: Floats, alpha: float) -> tuple[float, float]:
    """The weighted mean of the values, give or take what their deviations from the mean before them allow."""
    bets = np.minimum(_bets(values, alpha), 0.5)
    squares = (values - _means_before(values)) ** 2
    weight = bets.cumsum()
    centre = (bets * values).cumsum() / weight
    radius = (np.log(2 / alpha) + (squares * (-np.log1p(-bets) - bets)).cumsum()) / weight
    return float(max(0.0, (centre - radius).max())), float(min(1.0, (centre + radius).min()))


def _means_before(values: Floats) -> Floats:
    """Before each value the mean of those that came, and of a 1/2."""
    sums = np.concatenate([[0.5], 0.5 + values.cumsum()])
    means: Floats = sums[:-1] / np.arange(1, len(values) + 1)
    return means


def _bets(values: Floats, alpha: float) -> Floats:
    """For each value the bet that those before it suggest (their equation 26)."""
    number = np.arange(1, len(values) + 1)
    means = (0.5 + values.cumsum()) / (number + 1)
    variances = (0.25 + ((values - means) ** 2).cumsum()) / (number + 1)
    before = np.concatenate([[0.25], variances[:-1]])
    bets: Floats = np.sqrt(2 * np.log(2 / alpha) / (before * number * np.log(number + 1)))
    return bets
