"""Accuracies that a judge measured, corrected for how often the judge errs.

Where a judge says of each sample whether it is right, it finds p = π Se + (1 - π)(1 - Sp) of them right, π being the
share that is right in truth, Se the judge's sensitivity (how often it finds a right one right) and Sp its specificity
(how often a wrong one wrong). So π = (p + Sp - 1) / (Se + Sp - 1) (Rogan & Gladen 1978). Se and Sp are measured on
texts whose truth is known: the calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import brentq

from rambla_ray.scoring.cells import Cell
from rambla_ray.scoring.stats import Estimate, mean
from rambla_ray.scoring.undefined import Undefined

_Z2 = float(stats.norm.ppf(0.975)) ** 2
_EDGE = 1e-12  # A share that is looked for is at least so far from 0 and 1, where it has no variance.
_STEPS = 300  # The likeliest shares are found in 50 steps on average.
NOT_SCORED = Undefined("no sample was scored")
OTHER_TARGETS = Undefined("the right answers differ, so that the judge's errors mean one thing here and another there")
GIVES_SCORES = Undefined("the judge gives scores, not answers")
BEYOND = Undefined(
    "more samples were found right, or wrong, than a judge of this sensitivity and specificity can find"
)


@dataclass(frozen=True, slots=True)
class Tally:
    """How often something was so, by items of one kind: so many items have so many rows, of which so many are hits.

    Args:
        kinds: rows, hits and items of each kind, (kinds, 3), sorted.
    """

    kinds: NDArray[np.int64]

    @classmethod
    def of(cls, items: ArrayLike, hits: ArrayLike) -> Tally:
        """From the item of each of n rows, and whether each is a hit."""
        _, number = np.unique(np.asarray(items), return_inverse=True)
        of_items = np.stack([np.bincount(number), np.bincount(number, weights=np.asarray(hits))], axis=1)
        kinds, count = np.unique(of_items.astype(np.int64), axis=0, return_counts=True)
        return cls(np.column_stack([kinds, count]))

    @property
    def n(self) -> int:
        """How many rows there are."""
        return int(self.kinds[:, 0] @ self.kinds[:, 2])

    @property
    def share(self) -> float:
        """The share of hits."""
        return float(self.kinds[:, 1] @ self.kinds[:, 2]) / self.n

    @property
    def effective(self) -> float:
        """How many independent rows would say as much of the share: n over the design effect (Kish 1965), at most n.

        The design effect is the variance of the share over items, by that of as many independent rows. Where all rows
        are hits, or none is, they are taken to be as good as one for each item.
        """
        rows, hits, items = self.kinds.T.astype(np.float64)
        count = float(items.sum())
        if (rows == 1).all():
            return count
        share, n = self.share, float(self.n)
        effect = float(items @ rows**2) / n
        if 0 < share < 1 and count > 1:
            spread = float(items @ (hits - share * rows) ** 2) * count / (count - 1)
            effect = spread / (n * share * (1 - share))
        return n / max(1.0, effect)

    def estimate(self) -> Estimate:
        """The share, with its score interval over items."""
        rows, hits, items = np.repeat(self.kinds, self.kinds[:, 2], axis=0).T
        values = np.concatenate([np.repeat([1.0, 0.0], [hit, row - hit]) for row, hit in zip(rows, hits, strict=True)])
        found = mean(values, np.repeat(np.arange(len(items)), rows))
        assert found is not None  # noqa: S101 - A tally has a row.
        return found


def tallies(labels: Sequence[str], verdicts: Sequence[str], items: Sequence[str]) -> dict[str, Tally]:
    """How often a judge is right, by the right label of each row that it judged."""
    right, said, names = (np.asarray(column, dtype=object) for column in (labels, verdicts, items))
    return {label: Tally.of(names[right == label].astype(str), said[right == label] == label) for label in set(labels)}


def corrected(cell: Cell, calibration: Mapping[str, Tally], labels: Sequence[str]) -> dict[str, Any] | Undefined:
    """The accuracy of a cell that a judge scored, corrected; undefined with the reason where that has no meaning.

    Args:
        cell: the samples.
        calibration: by right label, how often the judge is right.
        labels: the two possible verdicts.
    """
    answers, scored = set(cell["answer"].filter(pa.array(cell.scored)).to_pylist()), pa.array(cell.scored)
    targets = set(cell["target"].to_pylist())
    if not answers:
        return NOT_SCORED
    if not answers <= set(labels):
        return GIVES_SCORES
    if len(targets) > 1:
        return OTHER_TARGETS
    if set(calibration) != set(labels):
        return Undefined(f"judge_calibration has the labels {', '.join(sorted(calibration))}")
    (positive,), (negative,) = targets, set(labels) - targets
    found = Tally.of(
        cell["root_id"].filter(scored).to_numpy(zero_copy_only=False).astype(str), cell.correct[cell.scored]
    )
    sensitivity, specificity = calibration[positive], calibration[negative]
    estimate = rogan_gladen(found, sensitivity, specificity)
    number = dict.fromkeys(("value", "ci95"), estimate) if isinstance(estimate, Undefined) else estimate
    return {
        **number,
        "positive": positive,
        "sensitivity": described(sensitivity),
        "specificity": described(specificity),
    }


def described(tally: Tally) -> dict[str, Any]:
    """A share as metrics.json holds it."""
    estimate = tally.estimate()
    return {"n": tally.n, "value": estimate.value, "ci95": list(estimate.ci95)}


def rogan_gladen(found: Tally, sensitivity: Tally, specificity: Tally) -> dict[str, Any] | Undefined:
    """The share that is right in truth, clipped to [0, 1], and its 95 % interval.

    The interval is a score interval, as all others are: those π at which Rao's score test does not reject. The test
    compares r = p - π Se - (1 - π)(1 - Sp) with its variance p'(1-p')/n + π² Se'(1-Se')/n₊ + (1-π)² Sp'(1-Sp')/n₋, in
    which p', Se' and Sp' are the likeliest values for which r would be 0. Where Se and Sp are known it is Wilson's
    interval for p. Rows of one item count as fewer (Rao & Scott 1992). It is undefined where no π in [0, 1] passes,
    and with Se + Sp ≤ 1 there is no number at all.
    """
    p, se, sp = found.share, sensitivity.share, specificity.share
    if se + sp <= 1:
        return Undefined(
            f"the judge's sensitivity {se:.3f} and specificity {sp:.3f} add up to no more than 1: its verdict says "
            "nothing of the truth"
        )
    value = min(1.0, max(0.0, (p + sp - 1) / (se + sp - 1)))
    excess = _score_test(Share(p, found.effective), Share(se, sensitivity.effective), Share(sp, specificity.effective))
    if excess(value) > 0:
        return {"value": value, "ci95": BEYOND}
    return {"value": value, "ci95": [_limit(excess, value, end) for end in (0.0, 1.0)]}


@dataclass(frozen=True, slots=True)
class Share:
    """A share that was found, and of how many independent rows."""

    value: float
    n: float


def _score_test(found: Share, sensitivity: Share, specificity: Share) -> Callable[[float], float]:
    """A function of π: by how much the squared score is above what a test at 5 % lets pass."""

    def excess(at: float) -> float:
        r = found.value - at * sensitivity.value - (1 - at) * (1 - specificity.value)
        se, sp = (_inside((one.value * one.n + 0.5) / (one.n + 1)) for one in (sensitivity, specificity))
        spread = 0.0
        for _ in range(_STEPS):  # Fisher's scoring, damped; a test holds it against the maximum of the likelihood.
            p = _inside(at * se + (1 - at) * (1 - sp))
            of_se, of_sp = se * (1 - se) / sensitivity.n, sp * (1 - sp) / specificity.n
            spread = p * (1 - p) / found.n + at**2 * of_se + (1 - at) ** 2 * of_sp
            next_se = _inside((se + sensitivity.value + at * of_se * r / spread) / 2)
            next_sp = _inside((sp + specificity.value - (1 - at) * of_sp * r / spread) / 2)
            moved, se, sp = abs(next_se - se) + abs(next_sp - sp), next_se, next_sp
            if moved < _EDGE:
                break
        return min(r**2 / spread, 2 * _Z2) - _Z2

    return excess


def _limit(excess: Callable[[float], float], value: float, end: float) -> float:
    if end == value or excess(end) <= 0:
        return end
    return float(brentq(excess, *sorted((value, end)), xtol=_EDGE))


def _inside(share: float) -> float:
    return min(max(share, _EDGE), 1 - _EDGE)


def stored(calibration: Mapping[str, Tally]) -> dict[str, list[list[int]]]:
    """A calibration as plain values: by label, for each kind of item its rows, those judged rightly, and how many."""
    return {label: calibration[label].kinds.tolist() for label in sorted(calibration)}


def from_stored(calibration: Mapping[str, Iterable[Sequence[int]]]) -> dict[str, Tally]:
    """The inverse of `stored`."""
    return {label: Tally(np.array(list(kinds), np.int64).reshape(-1, 3)) for label, kinds in calibration.items()}
