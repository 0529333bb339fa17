"""A retry policy that measures the pauses between calls, not the calls, so that no busy machine makes it give up."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import tenacity

from rambla_ray.actors.api.retry import RetryPolicy


class PauseClockPolicy(RetryPolicy):
    """Gives up when the pauses add up to `give_up_after_s`."""

    def retrying(
        self,
        began: float,
        give_up_after_s: float,
        sleep: Callable[[float], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> tenacity.AsyncRetrying:
        paused_s = 0.0

        async def counted_sleep(seconds: float) -> None:
            nonlocal paused_s
            await sleep(seconds)
            paused_s += seconds

        return super().retrying(0.0, give_up_after_s, counted_sleep, lambda: paused_s)
