"""Which of two models is better, and how sure that is: from their answers to the same samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rambla_ray.config.sections import ALL_TASKS
from rambla_ray.scoring.cells import Cell, DrawIds, Mask, as_mask
from rambla_ray.scoring.significance import detectable, holm, mcnemar_exact
from rambla_ray.scoring.stats import NoDifference, mean, no_difference
from rambla_ray.scoring.undefined import Undefined

MOST_ITEMS = 1000  # So many of the items that one of the two alone has right are named.
NO_COMMON = Undefined("no sample was scored of both")
TOO_FEW = Undefined("so few samples show no difference")
GIVES_SCORES = Undefined("a model gives scores, not answers")


@dataclass(frozen=True, slots=True)
class Marks:
    """How one model did in one cell: n samples, of which each is another draw.

    Args:
        draws: which of which item.
        scored: whether each was scored.
        right: whether it was also right.
        gives_scores: the model gave scores instead of answers, which are neither right nor wrong.
    """

    draws: DrawIds
    scored: Mask
    right: Mask
    gives_scores: bool

    @classmethod
    def of(cls, cell: Cell, labels: Sequence[str]) -> Marks:
        """Of a cell, whose answers have these labels."""
        known = as_mask(pc.is_in(cell["answer"], value_set=pa.array(labels, pa.string())))
        return cls(cell.draws, cell.scored, cell.correct, not known[cell.scored].all())


@dataclass(slots=True)
class Pair:
    """Two models, cell by cell.

    Args:
        a: the one whose accuracy less that of the other is the difference.
        b: the other; the baseline, where there is one.
    """

    a: str
    b: str
    _cells: list[dict[str, Any]] = field(default_factory=list)
    _all: list[_Common] = field(default_factory=list)

    def add(self, task: str, variant: str, a: Marks, b: Marks) -> None:
        """Compare them in one more cell."""
        common = _Common.of(a, b)
        numbers = common.numbers()
        if a.gives_scores or b.gives_scores:
            numbers = dict.fromkeys(numbers, GIVES_SCORES)
        else:
            self._all.append(common)
        self._cells.append(self._entry(task, variant, numbers))

    def entries(self) -> list[dict[str, Any]]:
        """What metrics.json holds of them: the cells, and last all of them together.

        Each `holm_p` is still to be adjusted, see `adjusted`.
        """
        whole = _Common.together(self._all).numbers()
        if self._cells and not self._all:
            whole = dict.fromkeys(whole, GIVES_SCORES)
        del whole["a_items"], whole["b_items"]  # The cells name them.
        return [*self._cells, self._entry(ALL_TASKS, "", whole)]

    def _entry(self, task: str, variant: str, numbers: Mapping[str, Any]) -> dict[str, Any]:
        names = {"a": self.a, "b": self.b, "task": task, "variant": variant}
        return {**names, **numbers, "holm_p": numbers["mcnemar_p"]}


def pairs_of(models: Sequence[str], baseline: str | None) -> list[Pair]:
    """Who is compared with whom: each two models, in their order, or each with the baseline."""
    if baseline is not None:
        return [Pair(model, baseline) for model in models if model != baseline]
    return [Pair(first, second) for place, first in enumerate(models) for second in models[place + 1 :]]


def adjusted(comparisons: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A run's comparisons with their p-values adjusted (Holm 1979): cells together, and those over all tasks."""
    entries = list(comparisons)
    for over_all in (False, True):
        tests = {
            str(number): entry
            for number, entry in enumerate(entries)
            if (entry["task"] == ALL_TASKS) == over_all and isinstance(entry["mcnemar_p"], float)
        }
        for number, p in holm({number: entry["mcnemar_p"] for number, entry in tests.items()}).items():
            tests[number]["holm_p"] = p
    return entries


@dataclass(frozen=True, slots=True)
class _Common:
    """The samples that both models have: n root_ids, and of a and b which were scored, and which right."""

    items: pa.Array
    scored: tuple[Mask, Mask]
    right: tuple[Mask, Mask]

    @classmethod
    def of(cls, a: Marks, b: Marks) -> _Common:
        place = a.draws.places_in(b.draws)
        of_a, of_b = as_mask(place.is_valid()), place.drop_null().to_numpy()
        return cls(
            a.draws.items.filter(pa.array(of_a)),
            (a.scored[of_a], b.scored[of_b]),
            (a.right[of_a], b.right[of_b]),
        )

    @classmethod
    def together(cls, cells: Sequence[_Common]) -> _Common:
        def joined(masks: Sequence[Mask]) -> Mask:
            return np.concatenate([np.zeros(0, bool), *masks])

        return cls(
            pa.concat_arrays([pa.array([], pa.string()), *(cell.items for cell in cells)]),
            (joined([cell.scored[0] for cell in cells]), joined([cell.scored[1] for cell in cells])),
            (joined([cell.right[0] for cell in cells]), joined([cell.right[1] for cell in cells])),
        )

    def numbers(self) -> dict[str, Any]:
        """The comparison.

        `difference` is the accuracy of a less that of b on the samples that were scored of both, with the score
        interval over items of `stats.mean`. `mcnemar_p` is that of McNemar's exact test where each item stands once,
        and else that of the same score test over items. `detectable` is the smallest difference that so many samples
        show with 80 % power (Connor 1987). `bounds` are what the difference could be if all that was not scored had
        been, right or wrong.
        """
        both = self.scored[0] & self.scored[1]
        items = self.items.filter(pa.array(both))
        a, b = (right[both] for right in self.right)
        a_alone, b_alone = a & ~b, b & ~a
        groups = items.dictionary_encode().indices.to_numpy()
        change = a.astype(np.float64) - b
        estimate = mean(change, groups, -1, 1)
        each_once = len(items.unique()) == len(items)
        test = no_difference(change, groups) if len(change) else NoDifference(1.0, 0.0)
        discordant = int((a_alone | b_alone).sum())
        # Where each item's gains and losses cancel out, there is no variance to compare with.
        is_known = not each_once and test.variance > 0 and discordant > 0
        design_effect = test.variance * len(change) ** 2 / discordant if is_known else 1.0
        p = mcnemar_exact(int(a_alone.sum()), int(b_alone.sum())) if each_once else test.p
        return {
            "n": int(both.sum()),
            "difference": {"value": estimate.value, "ci95": list(estimate.ci95)} if estimate else NO_COMMON,
            "a_only": int(a_alone.sum()),
            "b_only": int(b_alone.sum()),
            "a_items": _named(items, a_alone),
            "b_items": _named(items, b_alone),
            "scored_alone": {
                "a": int((self.scored[0] & ~both).sum()),
                "b": int((self.scored[1] & ~both).sum()),
                "neither": int((~self.scored[0] & ~self.scored[1]).sum()),
            },
            "mcnemar_p": p if estimate else NO_COMMON,
            "bounds": self._bounds(),
            "detectable": detectable(len(change), discordant, design_effect) or TOO_FEW,
        }

    def _bounds(self) -> list[float] | Undefined:
        if not len(self.items):
            return NO_COMMON
        (a_least, a_most), (b_least, b_most) = (
            (right.mean(), (right | ~scored).mean()) for right, scored in zip(self.right, self.scored, strict=True)
        )
        return [float(a_least - b_most), float(a_most - b_least)]


def _named(items: pa.Array, chosen: Mask) -> list[str]:
    names: list[str] = sorted(items.filter(pa.array(chosen)).unique().to_pylist())
    return names[:MOST_ITEMS]
