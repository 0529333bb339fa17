"""The governor: one actor per endpoint and key that holds the rate budget, and the concurrency, for the whole cluster.

It never makes a caller wait inside itself. `Governor.hear` answers at once with the times at which the caller may
send (virtual scheduling, GCRA) and with its lease, and the caller sleeps; so nothing piles up in the actor and its
death loses little.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from rambla_ray.actors.api.adaptive import FORGET_S, LEASE_S, Concurrency, Usage

NAMESPACE = "rambla_ray"
PROTOCOL = 3  # of `hear`: actors of another version have a governor of their own
BURST_S = 0.25  # how far ahead of the steady rate a burst may run, in seconds of budget
HORIZON_S = 1.0  # how far ahead a slot is promised; beyond it the caller asks again
SLACK_S = 0.1  # after a pause, so that the next calls do not come the moment the endpoint has just enough again
SOONEST_S = 0.05  # after which it may ask
LONGEST_PAUSE_S = 300.0  # of what one reply can impose on everybody
REPLY_S = 20.0  # how long a governor may take to answer; its process has to start first


class Limits(NamedTuple):
    """What an endpoint allows in any minute; None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class Budget:
    """Requests and tokens per minute by virtual scheduling. Times are monotonic seconds, given by the caller.

    Starts empty: the first slot is free, the burst has to be earned, so a restarted governor grants nothing twice.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        self.set_limits(limits)
        self._next_request = now + BURST_S
        self._next_token = now + BURST_S
        self._last = now  # when the last request that was granted is sent
        self._floor = now  # nothing given back goes beyond it

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

    def settle(self, estimate: int, used: int) -> None:
        """Correct a reservation once the reply says what it really cost.

        What comes back brings the next request forward to its place after the last one that was granted, as if that
        cost as much, and no further: budget that nobody used in its time is lost at the endpoint, too.
        """
        settled = self._next_token + self._cost(used) - self._cost(estimate)
        floor = max(self._floor, self._last + self._cost(used) + BURST_S)
        self._next_token = max(settled, min(self._next_token, floor))

    def penalise(self, seconds: float, now: float) -> None:
        """Promise no slot before `seconds` have passed, and no burst then: the endpoint said that nothing is left."""
        self._floor = max(self._floor, now + seconds + BURST_S)
        self._next_request = max(self._next_request, self._floor)
        self._next_token = max(self._next_token, self._floor)

    def _cost(self, tokens: int) -> float:
        return min(tokens, self._most_tokens) * self._token_s


class News(NamedTuple):
    """What a holder, an actor that calls the endpoint, tells its governor."""

    holder: str
    most: int  # calls it can have in flight
    limits: Limits
    usage: Usage | None  # None: its concurrency does not adapt
    asks: tuple[int, ...] = ()  # tokens of each request that waits for a permit
    settled: tuple[tuple[int, int], ...] = ()  # (reserved, used) tokens of those that have ended
    ratio: float | None = None  # of the tokens that its calls use to those that they are estimated to
    pause_s: float = 0.0  # the endpoint asked everybody to wait
    leaving: bool = False  # it has nothing to ask


class Orders(NamedTuple):
    """What the governor answers."""

    allowed: int  # calls in flight
    epoch: int  # cuts so far
    metered: bool  # each call needs a permit
    permits: tuple[float, ...]  # for the first of those asked: seconds until it may be sent
    again_s: float  # when to ask for the others
    pause_s: float  # nobody is to send before these are over
    ratio: float  # what a holder found that told its own: a first guess for one that has none


class Governor:
    """Budget and concurrency of one endpoint and key. Every holder's rate counts: the strictest holds for all.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._budget = Budget(Limits(), clock())
        self._concurrency = Concurrency()
        self._limits: dict[str, tuple[Limits, float]] = {}  # of each holder, and until when they count
        self._waiting: dict[str, float] = {}  # who was not given all permits it asked for, and until when that counts
        self._served: dict[str, float] = {}  # when each was last given a permit
        self._paused_until = 0.0
        self._ratio = 1.0

    def hear(self, news: News) -> Orders:
        """Take in a holder's news, and tell it what it may do. Needs no lock: an actor does one thing at a time."""
        now = self._clock()
        if news.ratio is not None:
            self._ratio = news.ratio
        pause = news.pause_s
        allowed = news.most
        if news.leaving:
            self._concurrency.leave(news.holder, now)
        elif news.usage is not None:
            allowed, barren = self._concurrency.report(news.holder, news.most, news.usage, now)
            pause = pause or barren
        metered = self._hold_to_limits(news, now)
        if pause:
            self._paused_until = max(self._paused_until, now + min(pause, LONGEST_PAUSE_S))
            self._budget.penalise(self._paused_until - now + SLACK_S, now)
        for reserved, used in news.settled:
            self._budget.settle(reserved, used)
        permits, again = self._permits(news.holder, news.asks, now) if metered else ([], 0.0)
        left = max(0.0, self._paused_until - now)
        return Orders(allowed, self._concurrency.epoch, metered, tuple(permits), again, left, self._ratio)

    def _permits(self, holder: str, asks: tuple[int, ...], now: float) -> tuple[list[float], float]:
        """Permits for the first of `asks`, and when to ask for the others.

        Of several that wait, the one that was served the longest ago is promised the furthest ahead, so that they
        take turns.
        """
        self._waiting = {name: until for name, until in self._waiting.items() if until > now}
        self._served = {name: at for name, at in self._served.items() if at + FORGET_S > now}
        turn = min({holder, *self._waiting}, key=lambda name: self._served.get(name, 0.0))
        horizon = HORIZON_S if turn == holder else HORIZON_S / 2
        permits: list[float] = []
        for tokens in asks:
            granted, wait = self._budget.reserve(tokens, now, horizon)
            if not granted:
                self._waiting[holder] = now + wait + HORIZON_S
                return permits, wait
            permits.append(wait)
            self._served[holder] = now
        self._waiting.pop(holder, None)
        return permits, 0.0

    def _hold_to_limits(self, news: News, now: float) -> bool:
        """Keep the strictest limits of those present; returns whether there are any."""
        before = {limits for limits, _ in self._limits.values()}
        if news.leaving:
            self._limits.pop(news.holder, None)
            self._served.pop(news.holder, None)
        elif any(news.limits):
            self._limits[news.holder] = (news.limits, now + LEASE_S)
        self._limits = {holder: held for holder, held in self._limits.items() if held[1] > now}
        present = {limits for limits, _ in self._limits.values()}
        if present != before:
            requests = min((one.requests_per_minute for one in present if one.requests_per_minute), default=None)
            tokens = min((one.tokens_per_minute for one in present if one.tokens_per_minute), default=None)
            self._budget.set_limits(Limits(requests, tokens))
        return bool(present)


class Unreachable(Exception):
    """The governor's actor does not answer."""


_of_this_process: weakref.WeakValueDictionary[str, Governor] = weakref.WeakValueDictionary()


def governor_name(scope: str) -> str:
    """The name of the actor that governs a scope, in `NAMESPACE`."""
    return f"governor-{hashlib.sha256(f'{PROTOCOL} {scope}'.encode()).hexdigest()[:16]}"


class Link:
    """A model's way to its governor, which is shared by name, and created if there is none.

    In a Ray cluster it is an actor that ends with the holder that created it: the others then find, or create, the
    next one, and nothing is left behind. In a process outside of Ray it is an object of that process.

    Args:
        scope: what shares the limits; never holds a key.
    """

    def __init__(self, scope: str) -> None:
        self._name = governor_name(scope)
        self._here: Governor | None = None
        self._actor: Any = None
        ray = sys.modules.get("ray")  # not imported where nothing has: it takes a second
        if ray is not None and ray.is_initialized():
            self._actor = self._find(ray)  # its process starts while the model loads

    async def tell(self, news: News) -> Orders:
        """What the governor answers. Raises Unreachable."""
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            if self._here is None:
                self._here = _of_this_process.setdefault(self._name, Governor())
            return self._here.hear(news)
        try:
            if self._actor is None:
                self._actor = self._find(ray)
            async with asyncio.timeout(REPLY_S):
                orders: Orders = await self._actor.hear.remote(news)
                return orders
        except (TimeoutError, ray.exceptions.RayError) as error:
            self._actor = None
            raise Unreachable(type(error).__name__) from None

    def _find(self, ray: Any) -> Any:
        return (
            ray.remote(Governor)
            .options(
                name=self._name,
                namespace=NAMESPACE,
                get_if_exists=True,
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
            )
            .remote()
        )
