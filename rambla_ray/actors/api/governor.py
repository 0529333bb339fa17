"""The governor: one actor per endpoint and key that holds the rate budget, and the concurrency, for the whole cluster.

It never makes a caller wait inside itself. `Governor.exchange` answers at once with the times at which the caller may
send (virtual scheduling, GCRA) and with its lease, and the caller sleeps; so nothing piles up in the actor and its
death loses little.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from rambla_ray.actors.api.adaptive import FORGET_S, LEASE_S, Concurrency, Usage
from rambla_ray.actors.api.rate_budget import HORIZON_S, Limits, RateBudget
from rambla_ray.actors.api.waits import LONGEST_WAIT_S

SLACK_S = (
    0.1  # Slots begin so long after a pause, so that no call comes the moment the endpoint has just enough again.
)
SHORT_S = 0.02  # A client whose part of the concurrency others still hold asks for it again after so long.


class Report(NamedTuple):
    """What a client, an actor that calls the endpoint, sends to its governor."""

    client: str
    most: int  # The calls that it can have in flight.
    limits: Limits
    usage: Usage | None  # None where its concurrency does not adapt.
    asks: tuple[int, ...] = ()  # The tokens of each request that waits for a permit.
    corrections: tuple[tuple[int, int], ...] = ()  # (reserved, used) tokens of each request that has ended.
    ratio: float | None = None  # Tokens that its calls use, by the tokens that they are estimated to use.
    pause_s: float = 0.0  # The endpoint asked everybody to wait so long.
    leaving: bool = False  # It has no calls any more.


class Grant(NamedTuple):
    """What the governor answers."""

    allowed: int  # Calls in flight.
    epoch: int  # The number of cuts so far.
    metered: bool  # Each call needs a permit.
    permits: tuple[float, ...]  # For the first of the requests in `asks`, the seconds until each may be sent.
    ask_again_s: float  # When to ask for the other permits, or for more calls in flight; 0 at no certain time.
    pause_s: float  # Nobody is to send before these seconds are over.
    ratio: float  # The ratio that a client reported last: a first guess for a client that has none.


class Governor:
    """Budget and concurrency of one endpoint and key. Every client's rate counts: the strictest holds for all.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._budget = RateBudget(Limits(), clock())
        self._concurrency = Concurrency()
        self._limits: dict[str, tuple[Limits, float]] = {}  # Each client's limits, and until when they count.
        self._waiting: dict[str, float] = {}  # Clients that lack permits, and until when that counts.
        self._served: dict[str, float] = {}  # When each client was last given a permit.
        self._paused_until = 0.0
        self._ratio = 1.0

    def exchange(self, report: Report) -> Grant:
        """Take a client's report and return what it may do. Needs no lock: an actor does one thing at a time."""
        now = self._clock()
        if report.ratio is not None:
            self._ratio = report.ratio
        pause = report.pause_s
        allowed = report.most
        if report.leaving:
            self._concurrency.leave(report.client, now)
        elif report.usage is not None:
            allowed, adaptive_pause = self._concurrency.report(report.client, report.most, report.usage, now)
            pause = pause or adaptive_pause
        metered = self._hold_to_limits(report, now)
        if pause:
            self._paused_until = max(self._paused_until, now + min(pause, LONGEST_WAIT_S))
            self._budget.penalise(self._paused_until - now + SLACK_S, now)
        for reserved, used in report.corrections:
            self._budget.correct(reserved, used)
        permits, again = self._permits(report.client, report.asks, now) if metered else ([], 0.0)
        if self._concurrency.is_short(report.client):
            again = min(again or SHORT_S, SHORT_S)
        left = max(0.0, self._paused_until - now)
        return Grant(allowed, self._concurrency.epoch, metered, tuple(permits), again, left, self._ratio)

    def _permits(self, client: str, asks: tuple[int, ...], now: float) -> tuple[list[float], float]:
        """Permits for the first of `asks`, and when to ask for the others.

        Of several clients that wait, the one that was served the longest ago is promised the furthest ahead, so that
        they take turns.
        """
        self._waiting = {name: until for name, until in self._waiting.items() if until > now}
        self._served = {name: at for name, at in self._served.items() if at + FORGET_S > now}
        turn = min({client, *self._waiting}, key=lambda name: self._served.get(name, 0.0))
        horizon = HORIZON_S if turn == client else HORIZON_S / 2
        permits: list[float] = []
        for tokens in asks:
            granted, wait = self._budget.reserve(tokens, now, horizon)
            if not granted:
                self._waiting[client] = now + wait + HORIZON_S
                return permits, wait
            permits.append(wait)
            self._served[client] = now
        self._waiting.pop(client, None)
        return permits, 0.0

    def _hold_to_limits(self, report: Report, now: float) -> bool:
        """Keep the strictest limits of those present; returns whether there are any."""
        before = {limits for limits, _ in self._limits.values()}
        if report.leaving:
            self._limits.pop(report.client, None)
            self._served.pop(report.client, None)
        elif any(report.limits):
            self._limits[report.client] = (report.limits, now + LEASE_S)
        self._limits = {client: held for client, held in self._limits.items() if held[1] > now}
        present = {limits for limits, _ in self._limits.values()}
        if present != before:
            requests = min((each.requests_per_minute for each in present if each.requests_per_minute), default=None)
            tokens = min((each.tokens_per_minute for each in present if each.tokens_per_minute), default=None)
            self._budget.set_limits(Limits(requests, tokens))
        return bool(present)
