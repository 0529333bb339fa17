"""Which of two models is better, and how sure that is: from their answers to the same samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
        baseline: the one that the other is measured against.
        model: the other.
    """

    baseline: str
    model: str
    _cells: list[dict[str, Any]] = field(default_factory=list)
    _all: list[_Common] = field(default_factory=list)

    def add(self, task: str, variant: str, baseline: Marks, model: Marks) -> None:
        """Compare them in one more cell."""
        common = _Common.of(baseline, model)
        if baseline.gives_scores or model.gives_scores:
            numbers: dict[str, Any] = dict.fromkeys(common.numbers(), GIVES_SCORES)
        else:
            numbers = common.numbers()
            self._all.append(common)
        p = numbers["p"]
        self._cells.append({"task": task, "variant": variant, **numbers, "p_holm": p})

    def numbers(self) -> dict[str, Any]:
        """What metrics.json holds of them; each `p_holm` is still to be adjusted, see `adjust`."""
        suite = _Common.together(self._all).numbers()
        del suite["won"]  # The cells name them.
        return {
            "baseline": self.baseline,
            "model": self.model,
            "cells": self._cells,
            "suite": {**suite, "p_holm": suite["p"]},
        }


def pairs_of(models: Sequence[str], baseline: str | None) -> list[Pair]:
    """Who is compared with whom: each two models, in their order, or each with the baseline."""
    if baseline is not None:
        return [Pair(baseline, model) for model in models if model != baseline]
    return [Pair(first, second) for place, first in enumerate(models) for second in models[place + 1 :]]


def adjust(comparisons: Iterable[Mapping[str, Any]]) -> None:
    """Adjust the p-values of a run's comparisons (Holm 1979): those of all cells together, and those of the suites."""
    pairs = list(comparisons)
    for family in ([cell for pair in pairs for cell in pair["cells"]], [pair["suite"] for pair in pairs]):
        tests = {str(number): one for number, one in enumerate(family) if isinstance(one["p"], float)}
        for number, adjusted in holm({number: one["p"] for number, one in tests.items()}).items():
            tests[number]["p_holm"] = adjusted


@dataclass(frozen=True, slots=True)
class _Common:
    """The samples that both models have: n root_ids, and of each model which were scored, and which right."""

    items: pa.Array
    scored: tuple[Mask, Mask]
    right: tuple[Mask, Mask]

    @classmethod
    def of(cls, baseline: Marks, model: Marks) -> _Common:
        place = model.draws.places_in(baseline.draws)
        first, second = place.drop_null().to_numpy(), as_mask(place.is_valid())
        return cls(
            model.draws.items.filter(pa.array(second)),
            (baseline.scored[first], model.scored[second]),
            (baseline.right[first], model.right[second]),
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

        `difference` is the accuracy of the model less that of the baseline on the samples that were scored of both,
        with the score interval over items of `stats.mean`. `p` is that of McNemar's exact test where each item
        stands once, and else that of the same score test over items. `detectable` is the smallest difference that
        so many samples show with 80 % power (Connor 1987). `bounds` are what the difference could be if all that was
        not scored had been, right or wrong.
        """
        both = self.scored[0] & self.scored[1]
        items = self.items.filter(pa.array(both))
        before, after = (right[both] for right in self.right)
        lost, won = before & ~after, after & ~before
        groups = items.dictionary_encode().indices.to_numpy()
        change = after.astype(np.float64) - before
        estimate = mean(change, groups, -1, 1)
        each_once = len(items.unique()) == len(items)
        test = no_difference(change, groups) if len(change) else NoDifference(1.0, 0.0)
        discordant = int((lost | won).sum())
        # Where each item's gains and losses cancel out, there is no variance to compare with.
        is_known = not each_once and test.variance > 0 and discordant > 0
        design_effect = test.variance * len(change) ** 2 / discordant if is_known else 1.0
        p = mcnemar_exact(int(lost.sum()), int(won.sum())) if each_once else test.p
        return {
            "n": int(both.sum()),
            "scored_alone": {
                "baseline": int((self.scored[0] & ~both).sum()),
                "model": int((self.scored[1] & ~both).sum()),
                "neither": int((~self.scored[0] & ~self.scored[1]).sum()),
            },
            "difference": {"value": estimate.value, "ci95": list(estimate.ci95)} if estimate else NO_COMMON,
            "bounds": self._bounds(),
            "won": {"baseline": _named(items, lost), "model": _named(items, won)},
            "right_alone": {"baseline": int(lost.sum()), "model": int(won.sum())},
            "p": p if estimate else NO_COMMON,
            "detectable": detectable(len(change), discordant, design_effect) or TOO_FEW,
        }

    def _bounds(self) -> list[float] | Undefined:
        if not len(self.items):
            return NO_COMMON
        (least, most), (model_least, model_most) = (
            (right.mean(), (right | ~scored).mean()) for right, scored in zip(self.right, self.scored, strict=True)
        )
        return [float(model_least - most), float(model_most - least)]


def _named(items: pa.Array, chosen: Mask) -> list[str]:
    names: list[str] = sorted(items.filter(pa.array(chosen)).unique().to_pylist())
    return names[:MOST_ITEMS]
