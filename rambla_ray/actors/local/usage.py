"""What a local model's actor has done, and how its time was spent."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(slots=True)
class LocalUsage:
    """What a local model's actor has done so far. Times are seconds."""

    batches: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    computed_tokens: int = 0  # positions of prompts that were computed: with padding, without what rows share
    padding_tokens: int = 0  # of these
    out_of_memory: int = 0  # batches that did not fit
    busy_s: float = 0.0  # answering
    idle_s: float = 0.0  # waiting for requests
    load_s: float = 0.0
    weights_bytes: int = 0
    free_bytes: int = 0  # where the weights go, before they came
    peak_bytes: int = 0  # that this actor has had


class UsageClock:
    """Shares out a local model's time, from when it was made, into busy and idle.

    Args:
        work: where it is counted.
    """

    def __init__(self, work: LocalUsage) -> None:
        self._work = work
        self._since = time.monotonic()

    def count(self, *, busy: bool) -> None:
        """The time since this was called last was spent so."""
        before, self._since = self._since, time.monotonic()
        if busy:
            self._work.busy_s += self._since - before
        else:
            self._work.idle_s += self._since - before
