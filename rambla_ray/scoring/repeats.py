"""Several draws of each item: how alike they are, what a majority of them answers, and how often any or all are right.

Only scored draws count. An item has n of them, of which c are right; items that have too few for a number are left
out of it, and each number says over how many `items` it is. With all draws scored, n is the number of epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import comb

from rambla_ray.scoring.cells import Cell, as_mask
from rambla_ray.scoring.stats import mean
from rambla_ray.scoring.undefined import Undefined

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

EVERY_K = 16  # Up to so many draws there is a number for each k; of more, for powers of two and for all of them.
GIVES_SCORES = Undefined("the model gives scores, not answers")
TOO_FEW = Undefined("no item has so many scored draws")
NO_SPREAD = Undefined("the variances need two items with scored draws, and one with two of them")
ALL_ALIKE = Undefined("all draws are right, or all wrong")


@dataclass(frozen=True, slots=True)
class AnswerCounts:
    """The scored draws of m items.

    Args:
        answers: how often each item was answered with each label, (m, labels).
        target: the number of each item's right label.
    """

    answers: Counts
    target: Counts

    @property
    def n(self) -> Counts:
        """How many draws each item has."""
        counts: Counts = self.answers.sum(axis=1)
        return counts

    @property
    def right(self) -> Counts:
        """How many of them are right."""
        counts: Counts = self.answers[np.arange(len(self.target)), self.target]
        return counts


def cell_repeats(cell: Cell, labels: Sequence[str], epochs: int) -> dict[str, Any]:
    """What metrics.json holds of a cell whose items were asked several times.

    Args:
        cell: the samples.
        labels: the possible answers.
        epochs: how often each item was to be asked.
    """
    known = pa.array(labels, pa.string())
    scored = pa.array(cell.scored)
    answered, target = (pc.index_in(cell[name].filter(scored), value_set=known) for name in ("answer", "target"))
    if not as_mask(answered.is_valid()).all():
        names = ("consistency", "majority", "pass@k", "pass^k", "variance")
        return {"epochs": epochs, **dict.fromkeys(names, GIVES_SCORES)}
    items = cell["root_id"].filter(scored).dictionary_encode().indices.to_numpy()
    draws = counts_of(items, answered.to_numpy(), target.to_numpy(), len(labels))
    return {"epochs": epochs, **repeats(draws, epochs)}


def counts_of(items: Counts, answered: Counts, target: Counts, labels: int) -> AnswerCounts:
    """From the number of the item, of the answer and of the right answer of each scored sample."""
    _, first, row = np.unique(items, return_index=True, return_inverse=True)
    counts = np.zeros((len(first), labels), np.int64)
    np.add.at(counts, (row, answered), 1)
    return AnswerCounts(counts, target[first])


def repeats(draws: AnswerCounts, epochs: int) -> dict[str, Any]:
    """The numbers of some draws, each with a score interval over items."""
    ks = [k for k in range(1, epochs + 1) if epochs <= EVERY_K or k & (k - 1) == 0 or k == epochs]
    return {
        "consistency": _over_items(consistency(draws), draws.n >= 2),
        "majority": {**_over_items(majority(draws), draws.n >= 1), "ties": int(_is_tied(draws).sum())},
        "pass@k": {str(k): _over_items(pass_at(draws, k), draws.n >= k) for k in ks},
        "pass^k": {str(k): _over_items(pass_hat(draws, k), draws.n >= k) for k in ks},
        "variance": variance(draws),
    }


def consistency(draws: AnswerCounts) -> Floats:
    """Of each item, the share of pairs of draws with the same answer; NaN with fewer than two draws."""
    return _share(comb(draws.answers, 2).sum(axis=1), comb(draws.n, 2))


def majority(draws: AnswerCounts) -> Floats:
    """Of each item, whether most draws give the right answer; NaN without a draw.

    Where t answers are given most often, and the right one is among them, that counts 1/t: so often it would be right
    if one of them was drawn.
    """
    most = draws.answers.max(axis=1, initial=0)
    leaders = (draws.answers == most[:, None]).sum(axis=1)
    return np.where(draws.n > 0, (draws.right == most) / leaders, np.nan)


def _is_tied(draws: AnswerCounts) -> NDArray[np.bool_]:
    most = draws.answers.max(axis=1, initial=0)
    tied: NDArray[np.bool_] = (draws.n > 0) & ((draws.answers == most[:, None]).sum(axis=1) > 1)
    return tied


def pass_at(draws: AnswerCounts, k: int) -> Floats:
    """Of each item, the chance that one of k draws is right: 1 - C(n-c, k) / C(n, k), unbiased (Chen et al. 2021,
    arXiv 2107.03374); NaN with fewer than k draws."""
    return 1 - _share(comb(draws.n - draws.right, k), comb(draws.n, k))


def pass_hat(draws: AnswerCounts, k: int) -> Floats:
    """Of each item, the chance that k draws are all right: C(c, k) / C(n, k), unbiased (Yao et al. 2024, arXiv
    2406.12045); NaN with fewer than k draws."""
    return _share(comb(draws.right, k), comb(draws.n, k))


def variance(draws: AnswerCounts) -> dict[str, Any] | Undefined:
    """The variance of right (1 or 0) within and between items: one-way random effects, by analysis of variance.

    `within` is MSW; `between` (MSB - MSW) / n0, n0 being the draws of an item, or where items differ in them
    (N - Σn²/N) / (m - 1) (Searle, Casella & McCulloch 1992); `icc` is between / (between + within), the correlation of
    two draws of an item. The variances are unbiased, so that `between` and `icc` are below 0 at times where items
    hardly differ.
    """
    has_draws = draws.n > 0
    n, right = draws.n[has_draws].astype(np.float64), draws.right[has_draws].astype(np.float64)
    total, items = n.sum(), len(n)
    if items < 2 or total == items:
        return NO_SPREAD
    within = float((right * (n - right) / n).sum() / (total - items))
    of_items = float((n * (right / n - right.sum() / total) ** 2).sum() / (items - 1))
    between = float((of_items - within) / ((total - (n**2).sum() / total) / (items - 1)))
    is_spread = 0 < right.sum() < total
    return {"within": within, "between": between, "icc": between / (between + within) if is_spread else ALL_ALIKE}


def _share(part: Floats, whole: Floats) -> Floats:
    shares: Floats = np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
    return shares


def _over_items(values: Floats, chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """The mean over those items that have draws enough."""
    kept = values[chosen]
    estimate = mean(kept, np.arange(len(kept)))
    number = (
        {"value": estimate.value, "ci95": list(estimate.ci95)} if estimate else {"value": TOO_FEW, "ci95": TOO_FEW}
    )
    return {**number, "items": len(kept)}
