"""What several judges say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def majority_of(votes: Iterable[str]) -> str:
    """The label that more votes are for than for any other; empty where there is none.

    Args:
        votes: labels; an empty one is no vote.
    """
    first, *others = [*Counter(filter(None, votes)).most_common(2), ("", 0)]
    return first[0] if first[1] > others[0][1] else "" if others else first[0]
