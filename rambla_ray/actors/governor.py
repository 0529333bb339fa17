"""The governor: one actor per endpoint and key that holds the rate budget for the whole cluster.

It never makes a caller wait inside itself. `Budget.reserve` answers at once with the time at which the caller may
send (virtual scheduling, GCRA), and the caller sleeps; so nothing piles up in the actor and its death loses little.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any

from rambla_ray.config import Rate

NAMESPACE = "rambla_ray"
BURST_S = 0.25  # how far ahead of the steady rate a burst may run, in seconds of budget
HORIZON_S = 1.0  # how far ahead a slot is promised; beyond it the caller asks again
DEFAULT_PAUSE_S = 5.0  # after a 429 that does not say how long


class Budget:
    """Requests and tokens per minute by virtual scheduling. Times are monotonic seconds, given by the caller.

    Starts empty: the first slot is free, the burst has to be earned, so a restarted governor grants nothing twice.
    """

    def __init__(self, rate: Rate, now: float) -> None:
        self._request_s = 60.0 / rate.requests_per_minute if rate.requests_per_minute else 0.0
        self._token_s = 60.0 / rate.tokens_per_minute if rate.tokens_per_minute else 0.0
        self._most_tokens = rate.tokens_per_minute or 0
        self._next_request = now + BURST_S
        self._next_token = now + BURST_S

    def reserve(self, tokens: int, now: float) -> tuple[bool, float]:
        """Ask for one request of about `tokens`.

        Returns:
            (granted, wait_s): granted, send after `wait_s`; not granted, ask again after `wait_s`. An estimate above
            a whole minute's budget counts as that budget, so that it is sent at some time.
        """
        start = max(now, self._next_request - BURST_S, self._next_token - BURST_S)
        wait = start - now
        if wait > HORIZON_S:
            return False, wait - HORIZON_S / 2
        self._next_request = max(self._next_request, start) + self._request_s
        self._next_token = max(self._next_token, start) + self._cost(tokens)
        return True, wait

    def settle(self, estimate: int, used: int) -> None:
        """Correct a reservation once the reply says what it really cost."""
        self._next_token += self._cost(used) - self._cost(estimate)

    def penalise(self, seconds: float, now: float) -> None:
        """Promise no slot before `seconds` have passed: the endpoint said so."""
        self._next_request = max(self._next_request, now + seconds + BURST_S)

    def _cost(self, tokens: int) -> float:
        return min(tokens, self._most_tokens) * self._token_s


class Governor:
    """`Budget` behind a clock, as a Ray actor."""

    def __init__(self, rate: Rate) -> None:
        self._budget = Budget(rate, time.monotonic())

    def reserve(self, tokens: int) -> tuple[bool, float]:
        return self._budget.reserve(tokens, time.monotonic())

    def settle(self, estimate: int, used: int) -> None:
        self._budget.settle(estimate, used)

    def penalise(self, seconds: float) -> None:
        self._budget.penalise(seconds, time.monotonic())


class RateLimit:
    """A model's access to its governor, which is created on first use and shared by name.

    Args:
        scope: what shares the limit; never holds a key.
        rate: requests and tokens per minute.
    """

    def __init__(self, scope: str, rate: Rate) -> None:
        import ray

        digest = hashlib.sha256(f"{scope} {rate.model_dump_json()}".encode()).hexdigest()[:16]
        self._governor: Any = (
            ray.remote(Governor)
            .options(
                name=f"governor-{digest}",
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
            )
            .remote(rate)
        )

    async def acquire(self, tokens: int) -> None:
        """Return when one request of about `tokens` may be sent."""
        while True:
            granted, wait = await self._governor.reserve.remote(tokens)
            await asyncio.sleep(wait)
            if granted:
                return

    def settle(self, estimate: int, used: int) -> None:
        """Tell what a request really cost, in tokens."""
        self._governor.settle.remote(estimate, used)

    def penalise(self, retry_after_s: float | None) -> None:
        """Tell everyone who shares the limit that the endpoint said 429."""
        self._governor.penalise.remote(DEFAULT_PAUSE_S if retry_after_s is None else retry_after_s)
