"""When a call is slow, by how long the recent ones took."""

from __future__ import annotations

from collections import deque

LEARN_AFTER = 20  # After so many answers, and each time as many more have come, what counts as slow is computed anew.
QUANTILE = 0.95  # A call is slow when it takes longer than this share of the recent ones.
RECENT_CALLS = 200


class SlowCalls:
    """What counts as slow among the calls of one actor. Times are seconds.

    Attributes:
        after_s: a call that takes longer is slow; None before enough are known.
    """

    def __init__(self) -> None:
        self._answered = 0
        self._recent: deque[float] = deque(maxlen=RECENT_CALLS)
        self.after_s: float | None = None

    def learn(self, took_s: float) -> None:
        """A call has been answered."""
        self._answered += 1
        self._recent.append(took_s)
        if self._answered % LEARN_AFTER == 0:
            self.after_s = sorted(self._recent)[int(QUANTILE * len(self._recent))]
