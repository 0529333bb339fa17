"""Whether what a run asks is settled, and after how many items: a state machine without clock, network or files.

It is given samples that have ended, in whatever order, and looks at whole blocks of the run's order, one after the
other: so the prefix that it finds follows from the answers alone, however the calls raced.

Only scored samples count, as everywhere: the accuracy of a cell is the mean over items of the share of right among an
item's scored draws, the difference of two targets the mean over items of an item's mean difference, over the draws of
all its cells that were scored of both. An item without any such draw is left out of the number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from functools import reduce
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rambla_ray.config.until import Until
from rambla_ray.schema import Outcome
from rambla_ray.scoring import sequential
from rambla_ray.scoring.cells import Cell, as_mask
from rambla_ray.scoring.comparison import pairs_of
from rambla_ray.scoring.order import Cells, ends, in_order

RIGHT, WRONG, UNSCORED, WAITING, ABSENT = 1, 0, -1, -2, -3  # What is known of a draw; the last one is not planned.
LEVEL = 0.05  # An interval beside a number is one of 95 %.
_WHOLE = 1 - 1e-9  # An error is below 1.
MOST = 1.0  # Two targets differ on an item by no more than this.

Floats = NDArray[np.float64]
Marks = NDArray[np.int8]  # (targets, cells and draws, items)


class Verdict(StrEnum):
    """What is settled between a target and the one that it is compared with."""

    BETTER = "better"
    WORSE = "worse"
    EQUIVALENT = "equivalent"
    OPEN = "open"


class Duel(NamedTuple):
    """What an anytime-valid test says of two targets.

    Args:
        items: those that were scored of both in a cell.
        mean: of their differences; None without any.
        p: of no difference.
        level: the error of the decision.
        interval: of the mean difference, at that level; where the question is whether they are equivalent, at twice
            the level.
        verdict: on a, beside b.
    """

    items: int
    mean: float | None
    p: float
    level: float
    interval: tuple[float, float]
    verdict: Verdict


def duel(differences: Floats, level: float, equivalent: float | None) -> Duel:
    """The verdict on target a beside b.

    Args:
        differences: a's accuracy less b's, of each item, in the order in which they were asked.
        level: the error of the decision.
        equivalent: targets that differ by no more are settled as well; None where they are not. Only one end of an
            interval can be wrong, so that one of twice the error is enough (two one-sided tests, Schuirmann 1987).
    """
    if not len(differences):
        return Duel(0, None, 1.0, level, (-MOST, MOST), Verdict.OPEN)
    mean, p = float(differences.mean()), sequential.no_difference_p(differences, MOST)
    low, high = sequential.difference_interval(differences, level, MOST)
    verdict = Verdict.OPEN
    if p <= level:
        verdict = Verdict.BETTER if mean > 0 else Verdict.WORSE
    elif equivalent is not None:
        low, high = sequential.difference_interval(differences, min(2 * level, _WHOLE), MOST)
        verdict = Verdict.EQUIVALENT if -equivalent <= low and high <= equivalent else Verdict.OPEN
    return Duel(len(differences), mean, p, level, (low, high), verdict)


def accuracy_interval(shares: Floats) -> tuple[float, float]:
    """The anytime-valid 95 % interval of an accuracy, from the share of right of each item, as they were asked."""
    return sequential.mean_interval(shares, LEVEL, 0.0, 1.0) if len(shares) else (0.0, 1.0)


class _Cell(NamedTuple):
    """Where the draws of a cell stand in the marks, and how many items it has, among those that may yet be asked."""

    draws: slice
    planned: int


class Settling:
    """Finds the first prefix of a run's order that settles what it asks.

    Args:
        rule: when it is settled.
        seed: of the order.
        targets: the models under test.
        baseline: the one that the others are compared with; None where each two are.
        cells: what each of them is asked.

    Attributes:
        rivals: who is compared with whom, where the rule compares.
        order: the root_ids as they are to be asked.
        ends: after how many of them it is looked.
        looked: how many of them have been looked at.
        settled: after how many it is settled; None while it is not.
    """

    def __init__(self, rule: Until, seed: int, targets: Sequence[str], baseline: str | None, cells: Cells) -> None:
        self._rule, self._labels = rule, cells.labels
        pairs = pairs_of(targets, baseline) if rule.decided is not None else []
        self.rivals = [(pair.a, pair.b) for pair in pairs]
        self.order = in_order((root_id for items in cells.items.values() for root_id in items), seed)
        self.ends = ends(len(self.order))
        self.looked = 0
        self.settled: int | None = None
        self._place = {root_id: place for place, root_id in enumerate(self.order)}
        self._row = {target: row for row, target in enumerate(targets)}
        self._cells: dict[tuple[str, str], _Cell] = {}
        width = 0
        for cell, items in cells.items.items():
            draws = cells.draws[cell[0]]
            self._cells[cell] = _Cell(slice(width, width + draws), cells.planned.get(cell, len(items)))
            width += draws
        self._marks: Marks = np.full((len(targets), width, len(self.order)), ABSENT, np.int8)
        for cell, items in cells.items.items():
            places = np.array([self._place[root_id] for root_id in items], np.intp)
            self._marks[:, self._cells[cell].draws, places] = WAITING

    def add(self, samples: pa.Table) -> None:
        """Take in samples that have ended, of `SAMPLE_SCHEMA`; those of a draw that is there replace it."""
        names = ("model", "task", "variant")
        for row in samples.group_by(names).aggregate([]).to_pylist():
            is_cell = [pc.equal(samples[name], row[name]) for name in names]
            self.add_cell(row["model"], (row["task"], row["variant"]), samples.filter(reduce(pc.and_, is_cell)))

    def add_cell(self, target: str, cell: tuple[str, str], samples: Cell | pa.Table) -> None:
        """The same for samples of one cell, by their columns root_id, epoch, outcome, answer and target."""
        labels = pa.array(self._labels[cell[0]], pa.string())
        counts = pc.and_(
            pc.equal(samples["outcome"], Outcome.SCORED.value), pc.is_in(samples["answer"], value_set=labels)
        )
        right = pc.equal(samples["answer"], samples["target"])
        places = [self._place[root_id] for root_id in samples["root_id"].to_pylist()]
        draws = samples["epoch"].to_numpy() + self._cells[cell].draws.start
        self._marks[self._row[target], draws, places] = np.where(as_mask(counts), as_mask(right), UNSCORED)

    def look(self) -> bool:
        """Look at each block that has ended as a whole and follows those before; whether it is settled."""
        while self.settled is None and self.looked < len(self.order):
            end = next(end for end in self.ends if end > self.looked)
            if (self._marks[:, :, self.looked : end] == WAITING).any():
                break
            self.looked = end
            if self._holds(end):
                self.settled = end
        return self.settled is not None

    def prefix(self) -> frozenset[str]:
        """The items that the run is about: those that settle it, or all."""
        return frozenset(self.order[: self.settled])

    def shares(self, target: str, cell: tuple[str, str], end: int | None = None) -> Floats:
        """Of each item of a cell that has a scored draw, the share of right, for the first items of the order."""
        return _means(self._marks[self._row[target], self._cells[cell].draws, :end])

    def differences(self, a: str, b: str, cell: tuple[str, str] | None = None, end: int | None = None) -> Floats:
        """Of each item, by how much target a is right more often than b, over one cell or all of them."""
        draws = self._cells[cell].draws if cell else slice(None)
        return _mean_differences(*(self._marks[self._row[name], draws, :end] for name in (a, b)))

    def verdict(self, a: str, b: str, end: int | None = None) -> Duel:
        """What is settled of target a beside b.

        The error of the rule is shared equally among the pairs (Bonferroni), so that it holds for all together.
        """
        level = (self._rule.decided or LEVEL) / len(self.rivals)
        return duel(self.differences(a, b, end=end), level, self._rule.equivalent)

    def wide(self, end: int | None = None) -> Iterator[tuple[str, tuple[str, str], float]]:
        """The cells whose interval is wider than the rule asks for, each with that width; those that have no more
        items to ask are the last."""
        width = self._rule.ci_width
        if width is None:
            return
        for cell in sorted(self._cells, key=lambda cell: self._is_exhausted(cell, end)):
            for target in self._row:
                low, high = accuracy_interval(self.shares(target, cell, end))
                if high - low > width:
                    yield target, cell, high - low

    def _is_exhausted(self, cell: tuple[str, str], end: int | None) -> bool:
        """Whether no item of a cell is left to be asked."""
        asked = int((self._marks[0, self._cells[cell].draws.start, :end] != ABSENT).sum())
        return asked >= self._cells[cell].planned

    def _holds(self, end: int) -> bool:
        """Whether all that the rule asks for holds after so many items.

        A cell without any items left, which cannot become narrower, holds up the others only where none is left.
        """
        wide = next(self.wide(end), None)
        if wide is not None:
            is_last = all(self._is_exhausted(cell, end) for cell in self._cells)
            if is_last or not self._is_exhausted(wide[1], end):
                return False
        return all(self.verdict(*pair, end).verdict is not Verdict.OPEN for pair in self.rivals)


def _means(marks: Marks) -> Floats:
    """Of each item with a scored draw, the share of those that are right; marks are (draws, items)."""
    scored = marks >= WRONG
    counts = scored.sum(axis=0)
    means: Floats = (marks * scored).sum(axis=0)[counts > 0] / counts[counts > 0]
    return means


def _mean_differences(a: Marks, b: Marks) -> Floats:
    """Of each item with a draw that was scored of both, the mean difference; marks are (cells and draws, items)."""
    both = (a >= WRONG) & (b >= WRONG)
    counts = both.sum(axis=0)
    difference = a.astype(np.int64) - b
    means: Floats = (difference * both).sum(axis=0)[counts > 0] / counts[counts > 0]
    return means
