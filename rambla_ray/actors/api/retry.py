"""When a call is tried again: one policy, as a value of tenacity."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import tenacity

from rambla_ray.actors.api.waits import LONGEST_WAIT_S
from rambla_ray.errors import RETRYABLE, CallError, ErrorKind


@dataclass(frozen=True)
class RetryPolicy:
    """When a call is tried again, by the kind of its error.

    | kind | tried again |
    | --- | --- |
    | rate_limited | for as long as `rate.give_up_after_s` of wall clock, counted from the first call, allow |
    | connection that nobody gets | when the actor's outage lets it probe, until that is over or given up for all |
    | other connection, timeout, server, garbage | up to `attempts` calls, and within the same time |
    | all others | never: they end the sample, and auth, not_found, quota and unavailable stop the run |

    The pause before the next call is what the endpoint asked for (`Retry-After` and its like, at most
    `LONGEST_WAIT_S`), else exponential with full jitter: between 0 and `first_pause_s`, then twice that, up to
    `longest_pause_s`. A pause that would not end in time is not waited for.
    """

    attempts: int = 5
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0

    def retrying(
        self,
        began: float,
        give_up_after_s: float,
        sleep: Callable[[float], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> tenacity.AsyncRetrying:
        """The policy as tenacity's value, for one request.

        Args:
            began: when its first call began, by `clock`.
            give_up_after_s: how long after that a call may still begin, in seconds.
            sleep: waits so many seconds.
            clock: monotonic seconds.
        """
        jitter = tenacity.wait_random_exponential(multiplier=self.first_pause_s, max=self.longest_pause_s)
        other_failures = 0

        def wait(state: tenacity.RetryCallState) -> float:
            error = _error_of(state)
            if error.in_outage:
                return 0.0  # Admission holds it back.
            return jitter(state) if error.retry_after_s is None else min(error.retry_after_s, LONGEST_WAIT_S)

        def give_up(state: tenacity.RetryCallState) -> bool:
            nonlocal other_failures
            error = _error_of(state)
            if error.in_outage:
                return False  # It is given up for all at once.
            if clock() - began + state.upcoming_sleep > give_up_after_s:
                return True
            if error.kind == ErrorKind.RATE_LIMITED:
                return False
            other_failures += 1
            return other_failures >= self.attempts

        return tenacity.AsyncRetrying(
            sleep=sleep,
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, CallError) and error.kind in RETRYABLE),
            wait=wait,
            stop=give_up,
            reraise=True,
        )


def _error_of(state: tenacity.RetryCallState) -> CallError:
    error = state.outcome.exception() if state.outcome else None
    if not isinstance(error, CallError):  # The `retry` above lets nothing else through.
        raise TypeError(f"not a CallError: {error!r}")
    return error
