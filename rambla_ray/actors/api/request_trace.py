"""What has happened to one request so far: its attempts, how long they took, what they cost."""

from __future__ import annotations

import time

from rambla_ray.errors import CallError
from rambla_ray.schema import CallTrace, Try


class RequestTrace:
    """What has happened to one request so far. Times are seconds by time.monotonic()."""

    __slots__ = ("began", "calling_s", "charged", "failed", "first_call", "hedged", "latency_s", "reserved", "tries")

    def __init__(self) -> None:
        self.began = self.first_call = time.monotonic()
        self.tries: list[Try] = []
        self.calling_s = 0.0  # The time in which at least one call was in flight.
        self.latency_s = 0.0  # How long the call took that answered.
        self.hedged = 0
        self.charged = (0, 0)  # Tokens of prompts and of answers, for attempts that gave no answer.
        self.failed: CallError | None = None  # How the last of these ended.
        self.reserved = 1  # So many calls at once the run's budget bears: each that is charged for uses one up.

    def charge(self, error: CallError) -> int:
        """Count what an attempt cost that gave no answer; returns its tokens."""
        self.failed = error
        prompt_tokens, completion_tokens = self.charged
        self.charged = (prompt_tokens + error.prompt_tokens, completion_tokens + error.completion_tokens)
        tokens = error.prompt_tokens + error.completion_tokens
        self.reserved -= tokens > 0
        return tokens

    def snapshot(self) -> CallTrace:
        """The trace up to now, as it is stored."""
        waited_s = max(0.0, time.monotonic() - self.began - self.calling_s)
        return CallTrace(waited_s, len(self.tries), self.hedged, tuple(self.tries), *self.charged)
