"""Statistics: intervals and tests. scipy does the arithmetic."""

from __future__ import annotations

from scipy import stats


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (Wilson 1927). Raises ValueError without a trial."""
    low, high = stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p of McNemar's test, from the two counts of discordant pairs; 1 when there are none."""
    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
