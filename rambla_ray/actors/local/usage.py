"""What a local model's actor has done, and how its time was spent."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(slots=True)
class LocalUsage:
    """What a local model's actor has done so far. Times are seconds.

    Args:
        computed_tokens: positions of prompts that were computed: with padding, and once where rows share them.
        padding_tokens: the part of these that was padding.
        out_of_memory: batches that did not fit.
        busy_s: the time spent answering.
        idle_s: the time spent waiting for requests.
        free_bytes: memory that was free where the weights go, before they were loaded.
        peak_bytes: the most memory that this actor has used.
    """

    batches: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    computed_tokens: int = 0
    padding_tokens: int = 0
    out_of_memory: int = 0
    busy_s: float = 0.0
    idle_s: float = 0.0
    load_s: float = 0.0
    weights_bytes: int = 0
    free_bytes: int = 0
    peak_bytes: int = 0


class UsageClock:
    """Divides a local model's time, from when the clock is made, into busy and idle.

    Args:
        usage: where the time is added.
    """

    def __init__(self, usage: LocalUsage) -> None:
        self._usage = usage
        self._since = time.monotonic()

    def count(self, *, busy: bool) -> None:
        """Count the time since the last call as busy or idle."""
        before, self._since = self._since, time.monotonic()
        if busy:
            self._usage.busy_s += self._since - before
        else:
            self._usage.idle_s += self._since - before
