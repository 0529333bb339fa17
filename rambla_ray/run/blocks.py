"""Blocks: the units in which a target's samples stream."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rambla_ray.config.model import ModelConfig
from rambla_ray.scoring.order import Cells, ends

ROWS_PER_BLOCK = 16  # A block has at most so many rows.
MOST_ROWS_PER_BLOCK = 256  # The same, for a model that answers many requests at once.
PLACE = "place"  # In a run that may end early, where in its order the first item of a block stands.
MOST_BLOCKS_AT_ONCE = 32  # Of each (task, variant) one more: each block in an actor takes a thread there.


def source_blocks(targets: Sequence[str], of_each: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The blocks of targets that share their actors, in the order in which a stream is given them.

    Args:
        targets: their names.
        of_each: the blocks of each of them, in their order; see `blocks_of`.
    """
    blocks = [{"target": target, **block} for target in targets for block in of_each]
    return sorted(blocks, key=lambda block: block.get(PLACE, 0))


def blocks_of(
    expected: Mapping[tuple[str, str], int],
    first: ModelConfig,
    *,
    items: Mapping[tuple[str, str], int] | None = None,
    in_batches: bool = False,
) -> list[dict[str, Any]]:
    """One target's samples as blocks: `count` of them from `first` on, of a task and variant.

    Sample number n of m items is item n % m in epoch n // m. All items of an epoch come before those of the next.

    For a local model, the same items' blocks of all tasks follow each other: what their prompts begin with alike is
    computed once.

    A block is the unit of streaming, of retry and of overhead: small enough that each actor gets some and a slow
    model's answers come in steadily, large enough that its own cost is small beside that of its calls.

    Args:
        expected: how many samples each (task, variant) has.
        items: how many items, where that is less.
        first: the model of the stream's first pool, which is settled.
        in_batches: a model of the stream asks in batches of its provider, and so has all blocks at once.
    """
    rows = _rows_per_block(sum(expected.values()), first, in_batches=in_batches)
    blocks = [
        {"task": name, "variant": variant, "first": start, "count": min(rows, count - start)}
        for (name, variant), count in expected.items()
        for start in range(0, count, rows)
    ]
    of_epoch = items or expected

    def place(block: Mapping[str, Any]) -> tuple[int, int]:
        epoch = block["first"] // of_epoch[block["task"], block["variant"]]
        return epoch, block["first"] if first.params.is_local else 0

    return sorted(blocks, key=place)


def _rows_per_block(total: int, first: ModelConfig, *, in_batches: bool = False) -> int:
    most = ROWS_PER_BLOCK
    if not first.params.is_local:
        most = max(most, min(MOST_ROWS_PER_BLOCK, max(first.pool.max_concurrency, total // 512)))
    rows = max(1, min(most, math.ceil(total / (2 * first.pool.largest))))
    return max(rows, math.ceil(total / MOST_BLOCKS_AT_ONCE)) if in_batches else rows


def ordered_blocks(cells: Cells, order: Sequence[str], first: ModelConfig) -> list[dict[str, Any]]:
    """The blocks of one target in a run that may end early: by the places where it is looked, then by cell and epoch.

    They are as in `blocks_of`, and each has its `PLACE`: that of the first item of the look that it belongs to.

    Args:
        cells: what the target is asked, the items of each cell in the run's order.
        order: all items.
        first: the model of the stream's first pool, which is settled.
    """
    place_of = {root_id: place for place, root_id in enumerate(order)}
    places = {cell: [place_of[root_id] for root_id in items] for cell, items in cells.items.items()}
    samples = sum(len(own) * cells.draws[task] for (task, _), own in places.items())
    rows = min(ROWS_PER_BLOCK, _rows_per_block(samples, first))
    blocks = []
    for begin, end in pairwise([0, *ends(len(order))]):
        for (task, variant), own in places.items():
            start, stop = bisect_left(own, begin), bisect_left(own, end)
            blocks += [
                {
                    "task": task,
                    "variant": variant,
                    "first": epoch * len(own) + row,
                    "count": min(rows, stop - row),
                    PLACE: begin,
                }
                for epoch in range(cells.draws[task])
                for row in range(start, stop, rows)
            ]
    return blocks
