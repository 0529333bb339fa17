"""How far judges agree beyond what chance would give: Krippendorff's alpha, for labels without an order.

Alpha is 1 - D_o/D_e: the disagreement of the votes on one sample, over that of votes which do not belong together
(Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"). 1 is full agreement, 0 what chance gives, below 0 is
less than that. Any number of votes may be missing: a sample with fewer than two says nothing of agreement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rambla_ray.scoring.undefined import Undefined

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

ONE_LABEL = Undefined("all votes are for one label, so that nothing is left to chance")
NOTHING = Undefined("no sample has two votes")
NO_SPREAD = Undefined("the votes on each sample are alike, so that nothing says how far another draw may be")
FEW_ITEMS = Undefined("an interval needs two items")


@dataclass(frozen=True, slots=True)
class Ballots:
    """The votes on n samples of one cell.

    Args:
        counts: how many votes each sample has for each label, (n, labels).
        items: n names of items; samples of one item are not independent.
    """

    counts: Counts
    items: NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class Alpha:
    """Krippendorff's alpha and its 95 % interval, as far as they exist, and over how many samples it is."""

    n: int
    value: float | Undefined
    ci95: list[float] | Undefined


def krippendorff(cells: Sequence[Ballots]) -> Alpha:
    """Alpha over the samples of some cells with at least two votes, chance being that of votes within a cell.

    With one cell it is Krippendorff's nominal alpha: 1 - A/E, where A = Σ (m² - Σ n_c²) / (m - 1) over samples with m
    votes, n_c of them for label c, and E = (N² - Σ N_c²) / (N - 1) of their sums. Of several cells, A and E are added
    up, so that labels of different tasks are never taken for disagreement.

    The interval is that of the linearised variance over items (the infinitesimal jackknife; Efron 1982), on the scale
    of log(1 - alpha), by Student's t. `benchmarks/judge_correction.py` measures how often it holds the truth.
    """
    disagreement, expected = 0.0, 0.0
    parts: list[tuple[Floats, Floats, NDArray[np.object_]]] = []
    for cell in cells:
        paired = cell.counts.sum(axis=1) >= 2
        counts = cell.counts[paired].astype(np.float64)
        if not len(counts):
            continue
        own, chance, change = _disagreements(counts)
        disagreement, expected = disagreement + float(own.sum()), expected + chance
        parts.append((own, change, cell.items[paired]))
    n = sum(len(own) for own, _, _ in parts)
    if not n:
        return Alpha(0, NOTHING, NOTHING)
    if not expected:
        return Alpha(n, ONE_LABEL, ONE_LABEL)
    influence = np.concatenate([disagreement * change - expected * own for own, change, _ in parts]) / expected**2
    ratio = disagreement / expected
    return Alpha(n, 1 - ratio, _interval(ratio, influence, np.concatenate([items for _, _, items in parts])))


def _disagreements(counts: Floats) -> tuple[Floats, float, Floats]:
    """The disagreement of each of n samples, that which chance gives for all, and how one sample more changes that."""
    votes, sums = counts.sum(axis=1), counts.sum(axis=0)
    own = (votes**2 - (counts**2).sum(axis=1)) / (votes - 1)
    total = float(votes.sum())
    chance = float((total**2 - (sums**2).sum()) / (total - 1))
    return own, chance, (2 * (total * votes - counts @ sums) - chance * votes) / (total - 1)


def _interval(ratio: float, influence: Floats, items: NDArray[np.object_]) -> list[float] | Undefined:
    if not ratio:
        return NO_SPREAD
    _, numbers = np.unique(items, return_inverse=True)
    of_items = np.bincount(numbers, weights=influence)
    if len(of_items) < 2:
        return FEW_ITEMS
    error = float(np.sqrt((of_items**2).sum() * len(of_items) / (len(of_items) - 1)))
    reach = float(stats.t.ppf(0.975, len(of_items) - 1)) * error / ratio
    return [1 - ratio * float(np.exp(reach)), 1 - ratio * float(np.exp(-reach))]
