"""A budget of requests and tokens per minute."""

from __future__ import annotations

from typing import NamedTuple

BURST_S = 0.25  # A burst may run ahead of the steady rate by so many seconds of budget.
HORIZON_S = 1.0  # A slot is promised no further ahead than this; beyond it the caller asks again.
SOONEST_S = 0.05  # A caller that got no slot asks again after this time at the earliest.


class Limits(NamedTuple):
    """What an endpoint allows in any minute; None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class RateBudget:
    """Requests and tokens per minute by virtual scheduling. Times are monotonic seconds, given by the caller.

    Starts empty: the first slot is free, the burst has to be earned, so a restarted governor grants nothing twice.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        self.set_limits(limits)
        self._next_request = now + BURST_S
        self._next_token = now + BURST_S
        self._last = now  # When the last request that was granted is sent.
        self._floor = now  # Tokens that are given back never move the next slot before this time.

    def set_limits(self, limits: Limits) -> None:
        """Go on with other limits."""
        self._request_s = 60.0 / limits.requests_per_minute if limits.requests_per_minute else 0.0
        self._token_s = 60.0 / limits.tokens_per_minute if limits.tokens_per_minute else 0.0
        self._most_tokens = limits.tokens_per_minute or 0

    def reserve(self, tokens: int, now: float, horizon_s: float = HORIZON_S) -> tuple[bool, float]:
        """Ask for one request of about `tokens`, to be sent within `horizon_s`.

        Returns:
            (granted, wait_s): granted, send after `wait_s`; not granted, ask again after `wait_s`. An estimate above
            a whole minute's budget counts as that budget, so that it is sent at some time.
        """
        start = max(now, self._next_request - BURST_S, self._next_token - BURST_S)
        wait = start - now
        if wait > horizon_s:
            return False, max(SOONEST_S, wait - HORIZON_S / 2)
        self._next_request = max(self._next_request, start) + self._request_s
        self._next_token = max(self._next_token, start) + self._cost(tokens)
        self._last = max(self._last, start)
        return True, wait

    def correct(self, estimate: int, used: int) -> None:
        """Replace the estimate of a reservation by what the reply says that it really cost.

        What comes back brings the next request forward to its place after the last one that was granted, as if that
        cost as much, and no further: budget that nobody used in its time is lost at the endpoint, too.
        """
        corrected = self._next_token + self._cost(used) - self._cost(estimate)
        floor = max(self._floor, self._last + self._cost(used) + BURST_S)
        self._next_token = max(corrected, min(self._next_token, floor))

    def penalise(self, seconds: float, now: float) -> None:
        """Promise no slot before `seconds` have passed, and no burst then: the endpoint said that nothing is left."""
        self._floor = max(self._floor, now + seconds + BURST_S)
        self._next_request = max(self._next_request, self._floor)
        self._next_token = max(self._next_token, self._floor)

    def _cost(self, tokens: int) -> float:
        return min(tokens, self._most_tokens) * self._token_s
