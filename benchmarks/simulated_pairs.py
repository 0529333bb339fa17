"""Two simulated models, and the looks at their answers, for the benchmarks of stopping early."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Options:
    """How much is simulated.

    Args:
        runs: how often.
        block: the items between two looks.
        seed: what all is drawn from.
    """

    runs: int
    block: int
    seed: int

    def generators(self, *place: float) -> Iterator[np.random.Generator]:
        """One for each run of what has these numbers, the same whenever it is simulated."""
        key = [self.seed, *(round(1000 * number) for number in place)]
        return (np.random.default_rng([*key, run]) for run in range(self.runs))

    def looks(self, items: int) -> list[int]:
        """After how many items there is a look: after each block, and after all."""
        return sorted({*range(self.block, items, self.block), items})

    def share(self, count: int) -> str:
        """A share of the runs in percent, with its exact 95 % interval."""
        low, high = stats.binomtest(count, self.runs).proportion_ci()
        return f"{100 * count / self.runs:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models by the share of items that the second alone has right, and that the first alone has.

    Args:
        won: the first of these shares.
        lost: the other.
    """

    won: float
    lost: float

    @classmethod
    def of(cls, first: float, second: float, correlation: float) -> Pair:
        """Of two accuracies and the correlation of the marks."""
        both = first * second + correlation * math.sqrt(first * (1 - first) * second * (1 - second))
        return cls(second - both, first - both)

    @classmethod
    def apart(cls, difference: float, discordance: float) -> Pair:
        """Of a difference of accuracies and the share of discordant items."""
        return cls((discordance + difference) / 2, (discordance - difference) / 2)

    @property
    def discordance(self) -> float:
        """The share of discordant items."""
        return self.won + self.lost

    def draw(self, generator: np.random.Generator, items: int, cells: int = 1) -> Floats:
        """The differences of items, (items,): each the mean over cells that are drawn alone."""
        chance = generator.random((items, cells))
        marks = np.where(chance < self.won, 1.0, np.where(chance < self.discordance, -1.0, 0.0))
        differences: Floats = marks.mean(axis=1)
        return differences
