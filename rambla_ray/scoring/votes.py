"""What several judges say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def majority_of(votes: Iterable[str]) -> str:
    """The label that more votes are for than for any other; empty where there is none.

    Args:
        votes: labels; an empty one is no vote.
    """
    (label, most), (_, second), *_ = [*Counter(filter(None, votes)).most_common(2), ("", 0), ("", 0)]
    return label if most > second else ""
