"""Blocks: the units in which a target's samples stream."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rambla_ray.config.model import ModelConfig

ROWS_PER_BLOCK = 16  # A block has at most so many rows.
MOST_ROWS_PER_BLOCK = 256  # The same, for a model that answers many requests at once.
MOST_BLOCKS_AT_ONCE = 32  # Of each (task, variant) one more: each block in an actor takes a thread there.


def source_blocks(targets: Sequence[str], of_each: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The blocks of targets that share their actors, in the order in which a stream is given them.

    Args:
        targets: their names.
        of_each: the blocks of each of them, in their order; see `blocks_of`.
    """
    return [{"target": target, **block} for target in targets for block in of_each]


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
    total, most, is_local = sum(expected.values()), ROWS_PER_BLOCK, first.params.is_local
    if not is_local:
        most = max(most, min(MOST_ROWS_PER_BLOCK, max(first.pool.max_concurrency, total // 512)))
    rows = max(1, min(most, math.ceil(total / (2 * first.pool.largest))))
    if in_batches:
        rows = max(rows, math.ceil(total / MOST_BLOCKS_AT_ONCE))
    blocks = [
        {"task": name, "variant": variant, "first": start, "count": min(rows, count - start)}
        for (name, variant), count in expected.items()
        for start in range(0, count, rows)
    ]
    of_epoch = items or expected

    def place(block: Mapping[str, Any]) -> tuple[int, int]:
        return block["first"] // of_epoch[block["task"], block["variant"]], block["first"] if is_local else 0

    return sorted(blocks, key=place)
