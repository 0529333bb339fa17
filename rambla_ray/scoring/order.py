"""The order in which a run that may end early asks its items, and where it is looked at.

The order follows from the run's seed and the root_ids alone, so that nothing of it is stored: whoever has the samples
knows where each stands, and which of two items came first never depends on which others there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

# It is looked after so many items: what a block of a stream holds of one cell at most, so that none is asked in vain
# that a smaller number would have spared, or a thirty-second of what there is, so that the looks at n items cost
# n log n and not n², and the last one comes at most 3 % too late.
BLOCK = 16
GROWTH = 32


@lru_cache(maxsize=2**17)
def place(seed: int, root_id: str) -> bytes:
    """What items are sorted by: sha256 of the seed and the root_id."""
    return hashlib.sha256(f"{seed}\n{root_id}".encode()).digest()


def in_order(root_ids: Iterable[str], seed: int) -> list[str]:
    """Root_ids, each once, in the order of a seed."""
    return sorted(set(root_ids), key=lambda root_id: place(seed, root_id))


def ends(items: int) -> list[int]:
    """After how many of so many items it is looked: the end of each block, the last one being all of them."""
    found, end = [], 0
    while end < items:
        end = min(items, end + max(BLOCK, end // GROWTH))
        found.append(end)
    return found


class Cells(NamedTuple):
    """What each target of a run is asked.

    Args:
        items: per (task, variant), the root_ids.
        draws: per task, how often each item is asked.
        labels: per task, what may be answered: a score is no answer, and neither right nor wrong.
        planned: per (task, variant), how many items there are to ask, where that is more than `items` has.
    """

    items: Mapping[tuple[str, str], Sequence[str]]
    draws: Mapping[str, int]
    labels: Mapping[str, Sequence[str]]
    planned: Mapping[tuple[str, str], int] = MappingProxyType({})
