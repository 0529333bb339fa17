"""A clock that stands still while this process does."""

from __future__ import annotations

import time
from collections.abc import Callable

LONGEST_GAP_S = 2.0  # Two readings of a process that runs are not further apart.


class WakingClock:
    """Seconds in which this process ran: a longer gap between two readings counts as `LONGEST_GAP_S`.

    Whoever is silent for long is held to be dead. A process that was stopped, or whose disk hung, has been deaf: what
    others sent meanwhile is still to be read, and its own absence must not count as their silence.

    Args:
        read: seconds of a clock that does not go back.
    """

    def __init__(self, read: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._last, self._now = read(), 0.0

    def now(self) -> float:
        """The time, which is to be read more often than every `LONGEST_GAP_S`."""
        last, self._last = self._last, self._read()
        self._now += min(self._last - last, LONGEST_GAP_S)
        return self._now
