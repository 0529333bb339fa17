"""Ending a run before all items are asked: what has ended is looked at, and no more is asked than that needs.

The items are asked in their order, and none is that is further beyond those that were looked at than keeps the pools
busy. So where it is settled, few answers have been asked in vain: they stay in the ledger, and the run is about the
items up to there alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Self

import pyarrow as pa

from rambla_ray.config.until import Until
from rambla_ray.display import counted
from rambla_ray.results.directory import scoring_spec
from rambla_ray.results.sample_writer import Kept
from rambla_ray.results.settled import until_spec
from rambla_ray.run.blocks import ROWS_PER_BLOCK
from rambla_ray.run.placement import Level, calls_per_actor
from rambla_ray.run.plan import Plan
from rambla_ray.run.streams import Stream
from rambla_ray.scoring.order import BLOCK
from rambla_ray.scoring.settling import Settling

# As many times what its pools have in flight is asked beyond what was looked at: the answers that take twice as long
# as the others hold up none of them.
AHEAD = 2


class EarlyEnd:
    """Ends a run as soon as what it asks is settled.

    Args:
        plan: what to ask.
        rule: when it is settled.
        streams: the run's; the rule is looked at while the last one runs.
        ledger: handle of the run's `LedgerService`.
    """

    def __init__(self, plan: Plan, rule: Until, streams: Sequence[Stream], ledger: Any) -> None:
        self._plan, self._rule, self._ledger = plan, rule, ledger
        self._settling = Settling(
            rule, plan.config.options.seed, list(plan.config.targets), plan.config.options.baseline, plan.cells
        )
        self._streams = streams
        self._ahead = _ahead(plan, streams[-1], len(self._settling.order))
        self._is_stopping = False

    @classmethod
    def of(cls, plan: Plan, streams: Sequence[Stream], ledger: Any) -> Self | None:
        """That of a run; None where it asks all items."""
        rule = plan.config.options.until
        return None if rule is None else cls(plan, rule, streams, ledger)

    @property
    def is_settled(self) -> bool:
        """Whether the run is over."""
        return self._settling.settled is not None

    @property
    def notes(self) -> Iterator[str]:
        """Why more is asked than the rule needs, as a line."""
        if len(self._streams) > 1:
            before = ", ".join(self._plan.config.label(name) for each in self._streams[:-1] for name in each.targets)
            yield f"until is looked at while the last targets answer: {before} come before, and are asked all items"
        if not self._holds(self._streams[-1]):
            yield "until is looked at when the last of a stream's models answer: those before are asked all items"

    def is_held(self, stream: Stream) -> bool:
        """Whether a stream's items are asked no further than is needed: not where others need all of them first."""
        return stream is self._streams[-1] and self._holds(stream)

    def _holds(self, stream: Stream) -> bool:
        return stream.together and stream.head is None

    def add(self, ended: pa.Table) -> None:
        """Look at what has ended, and let the run end, or more items be asked."""
        self._settling.add(ended)
        if not self._settling.look():
            self.advance()
        elif not self._is_stopping:
            self._is_stopping = True
            items = f"{self._settling.settled} of {counted(len(self._settling.order), 'item')}"
            self._ledger.stop.remote("settled", f"settled after {items}")

    def advance(self) -> None:
        """Let as many items be asked as are needed; a ledger service that has started again is told so again."""
        self._ledger.advance.remote(self._settling.looked + self._ahead)

    def spec(self) -> dict[str, Any]:
        """How the samples of the run are scored, as far as it is known how many items it asks."""
        order, settled = self._settling.order, self._settling.settled
        asked = len(order) if settled is None else settled
        cells, prefix = self._plan.cells, self._settling.prefix()
        expected = {
            (task, variant): sum(item in prefix for item in items) * cells.draws[task]
            for (task, variant), items in cells.items.items()
        }
        items = {cell: len(own) for cell, own in cells.items.items()}
        seed = self._plan.config.options.seed
        until = until_spec(self._rule, seed, items, asked, len(order))
        return scoring_spec(self._plan.config, expected, self._plan.calibration, until)

    def kept(self) -> Kept | None:
        """What of the samples the run is about; None where it is not settled, and so about all."""
        return Kept(self.spec(), self._settling.prefix()) if self.is_settled else None

    def saved(self, ended: int) -> dict[str, int]:
        """For calls.json: how many calls all items would have taken, and how many samples ended beyond the prefix."""
        at_most = self._plan.describe()["total"]["calls_at_most"]
        expected = [count for task in self.spec()["tasks"].values() for count in task["expected"].values()]
        kept = sum(expected) * len(self._plan.config.targets)
        return {"calls_at_most": at_most, "beyond": max(0, ended - kept)}


def _ahead(plan: Plan, stream: Stream, items: int) -> int:
    """How many items beyond those that were looked at are asked, so that the pools of a stream have enough to do."""
    samples = max(sum(map(_in_flight, stream.path(branch))) for branch in stream.branches)
    return math.ceil(samples * items / plan.samples_per_target) + BLOCK  # One block more waits, where few are asked.


def _in_flight(level: Level) -> int:
    """How many samples a pool needs; one that may grow does so where enough of them wait."""
    pool = level.pool
    if pool.min_size < pool.largest:
        return 2 * calls_per_actor(pool, ROWS_PER_BLOCK) * ROWS_PER_BLOCK * pool.largest
    return AHEAD * pool.max_concurrency * pool.largest
