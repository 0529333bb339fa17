"""A stream as a Ray Data dataset: blocks of items go in, tables of samples come out of the last pool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pyarrow as pa
import ray.data

from rambla_ray.actors.pool import PACKED, PoolActor, unpack
from rambla_ray.run.blocks import PLACE, source_blocks
from rambla_ray.run.node_groups import NodeGroups
from rambla_ray.run.placement import Level, blocks_at_once
from rambla_ray.run.plan import Plan
from rambla_ray.run.streams import Branch, Stream

NEVER = -1  # Ray Data's word for no timeout.
STALL_MARGIN_S = 900.0  # Loading and large batches may take so long beyond the slowest request without any progress.


@dataclass(frozen=True)
class Flow:
    """Makes the datasets of a run's streams.

    Args:
        plan: what to ask.
        ledger: handle of the run's `LedgerService`.
        items: per (task, variant), the object reference of its items' table.
        groups: the placement groups of actors that are spread over several nodes.
    """

    plan: Plan
    ledger: Any
    items: Mapping[tuple[str, str], Any]
    groups: NodeGroups = field(default_factory=NodeGroups)

    def tables(self, stream: Stream, *, is_held: bool = False) -> Iterator[pa.Table]:
        """All samples of a stream, as they come out of the last pool, block by block.

        Args:
            stream: the stream.
            is_held: its blocks wait until the ledger service admits their place in the run's order.
        """
        _configure_ray_data(stream, verbose=self.plan.config.options.verbose)
        blocks = {branch.targets: self._blocks(stream, branch, is_held=is_held) for branch in stream.branches}
        sources = {targets: _source(own) for targets, own in blocks.items()}
        everything = [block for own in blocks.values() for block in own]
        if stream.head is not None:
            sources = self._rephrased(stream, stream.head, everything)
        branches = [
            self._branch(stream, branch, sources[branch.targets], blocks[branch.targets]) for branch in stream.branches
        ]
        data = branches[0].union(*branches[1:]) if len(branches) > 1 else branches[0]
        if len(branches) > 1:
            data = self._freed(data, stream)
        for level in stream.shared:
            data = self._freed(self._through(data, level, stream, everything), stream)
        # What is fetched ahead comes out when more has followed it, which may wait for just this.
        ahead = 0 if is_held else 1
        for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=ahead):
            for packed in batch[PACKED]:
                yield unpack(packed.as_buffer())

    def _blocks(self, stream: Stream, branch: Branch, *, is_held: bool) -> list[dict[str, Any]]:
        """The blocks of a branch's targets, in the order in which they are asked."""
        blocks = source_blocks(branch.targets, self.plan.blocks(stream.path(branch)))
        return blocks if is_held else [{key: block[key] for key in block if key != PLACE} for block in blocks]

    def _rephrased(
        self, stream: Stream, head: Level, blocks: list[dict[str, Any]]
    ) -> dict[tuple[str, ...], ray.data.Dataset]:
        """By branch, its samples as they come out of the pool that passes those of all, and has ended by then."""
        rows: dict[str, list[pa.Table]] = {target: [] for target in stream.targets}
        data = self._through(_source(blocks), head, stream, blocks)
        for batch in data.iter_batches(batch_size=None, batch_format="pyarrow"):
            for number, packed in enumerate(batch[PACKED]):
                if (samples := unpack(packed.as_buffer())).num_rows:
                    rows[samples["model"][0].as_py()].append(batch.slice(number, 1))
        self.groups.remove()
        nothing = pa.table({PACKED: pa.array([], pa.binary())})  # Where the run is being stopped.
        return {
            branch.targets: ray.data.from_blocks(
                [row for target in branch.targets for row in rows[target]] or [nothing]
            )
            for branch in stream.branches
        }

    def _branch(
        self, stream: Stream, branch: Branch, data: ray.data.Dataset, blocks: list[dict[str, Any]]
    ) -> ray.data.Dataset:
        """The samples of a branch, as they come out of its last pool."""
        for level in branch.levels:
            data = self._through(data, level, stream, blocks)
            if len(stream.branches) == 1:
                data = self._freed(data, stream)
        return data

    def _freed(self, data: ray.data.Dataset, stream: Stream) -> ray.data.Dataset:
        """The data; where the pools of a stream do not run together, the pools before have ended."""
        if stream.together:
            return data
        data = data.materialize()
        self.groups.remove()
        return data

    def _through(
        self, data: ray.data.Dataset, level: Level, stream: Stream, blocks: list[dict[str, Any]]
    ) -> ray.data.Dataset:
        """The data through one pool, which so many blocks will pass."""
        pool, config = level.pool, self.plan.config
        at_once = blocks_at_once(level, max(block["count"] for block in blocks), len(blocks))
        is_first = any(stream.path(branch)[0] is level for branch in stream.branches)
        is_last = any(stream.path(branch)[-1] is level for branch in stream.branches)
        # None that waits for its place may keep another, whose place comes before, from being worked on. Where a pool
        # may grow, which it does as tasks wait, so many are admitted that none of those waits.
        is_full = PLACE in blocks[0] and pool.min_size == pool.largest
        work = cache(lambda: self.plan.longest_prompt(level)), lambda: self.plan.workload(level)
        params = level.config.params.planned(*work)
        return data.map(
            PoolActor,
            fn_constructor_args=(
                level.names,
                level.config.model_copy(update={"params": params}),
                config.tasks,
                frozenset(level.roles),
                self.ledger,
                config.run_id,
                self.items if is_first else None,
                is_last,
                config.options.chaos,
                config.reader if is_last else None,
                {other.names: other.config.params.planned(*work) for other in level.kin},
                level.seat,
            ),
            compute=ray.data.ActorPoolStrategy(
                min_size=pool.min_size,
                max_size=pool.largest,
                max_concurrent_calls_per_actor=at_once,
                max_tasks_in_flight_per_actor=at_once if is_full else 2 * at_once,
            ),
            **self.groups.options(pool),
        )


def _source(blocks: list[dict[str, Any]]) -> ray.data.Dataset:
    """A dataset of places of items, a row for each block."""
    return ray.data.from_blocks([pa.Table.from_pylist([block]) for block in blocks])


def _configure_ray_data(stream: Stream, *, verbose: bool) -> None:
    """Ray Data's settings for a stream."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None  # Otherwise each block gets a thread that measures memory.
    context.issue_detectors_config.detectors = []  # They ask for an actor's options where none is started.
    context.print_on_execution_start = verbose
    rates = [level.config.rate for level in stream.levels]
    slowest_s = max(rate.give_up_after_s + rate.timeout_s for rate in rates)
    in_batches = any(level.config.batch for level in stream.levels)  # Their own deadline bounds them.
    context.execution_no_progress_timeout_s = NEVER if in_batches else STALL_MARGIN_S + slowest_s
