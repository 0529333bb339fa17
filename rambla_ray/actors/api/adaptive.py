"""How many calls an endpoint takes at once: found out by trying, and shared among the actors that call it.

Slow start, additive growth, a cut after a reply with 429. Each answered call adds one to the limit at first, so
that it doubles with every round of calls; after the first 429, a round adds 5 %. One limit holds for all actors, and
each has a lease on a part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

START = 64  # The limit begins with so many calls in flight.
CUT = 0.8  # A 429 leaves this share of the limit.
GROWTH = 0.05  # The limit grows by this share with each round of calls, once the first 429 has come.
FULL = 0.8  # The limit grows only when this share of a lease was in use.
LEASE_S = 5.0  # A client that sends no report for so long loses its lease.
FORGET_S = 60.0  # The limit is found out anew when there was no client for so long.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 30.0  # Nobody calls for so long after cuts without an answer between them.


class Usage(NamedTuple):
    """What a client, an actor that calls the endpoint, did since its last report."""

    done: int = 0  # Calls answered.
    peak: int = 0  # The most calls in flight.
    want: int = 0  # The most calls that were in flight or waited.
    troubled: bool = False  # A call failed for another reason than a 429.
    limited: bool = False  # A call that began in `epoch` was answered with 429.
    epoch: int = 0  # The number of cuts that the client knows of.


@dataclass
class _Client:
    most: int
    want: int
    lease: int
    until: float


class Concurrency:
    """The limit on calls in flight, and the leases on it. Times are monotonic seconds, given by the caller."""

    def __init__(self) -> None:
        self._clients: dict[str, _Client] = {}
        self._forget_at = float("inf")
        self._reset()

    def _reset(self) -> None:
        self.limit = float(START)
        self.epoch = 0  # How often the limit has been cut.
        self._slow_start = True
        self._answered = True  # A call has been answered since the last cut.
        self._barren_cuts = 0  # Cuts in a row without an answer between them.

    def report(self, name: str, most: int, usage: Usage, now: float) -> tuple[int, float]:
        """Take in what a client did, and give it a new lease.

        Args:
            name: of the client.
            most: calls it can have in flight.
            usage: what it did since its last report.
            now: the time.

        Returns:
            (lease, pause_s): how many calls it may have in flight, at least one, and how long nobody should call.
        """
        self._expire(now)
        client = self._clients.setdefault(name, _Client(most, 0, 0, now))
        client.most, client.want, client.until = most, min(most, usage.want), now + LEASE_S
        pause = self._adapt(client, usage)
        others = sum(other.lease for other in self._clients.values() if other is not client)
        client.lease = max(1, min(self._share(client), int(self.limit) - others))
        return client.lease, pause

    def is_short(self, name: str) -> bool:
        """Whether a client's lease is below its part only since others, who have more than theirs, report later."""
        client = self._clients.get(name)
        return client is not None and client.lease < self._share(client)

    def leave(self, name: str, now: float) -> None:
        """A client has no calls any more: its lease is free."""
        if name in self._clients:
            del self._clients[name]
            self._forget_at = now + FORGET_S

    def _expire(self, now: float) -> None:
        for name in [name for name, client in self._clients.items() if client.until <= now]:
            self.leave(name, self._clients[name].until)
        if not self._clients and self._forget_at <= now:
            self._reset()

    def _adapt(self, client: _Client, usage: Usage) -> float:
        if usage.done:
            self._answered = True
        if usage.limited:
            return self._cut() if usage.epoch == self.epoch else 0.0  # The last cut was for an older call's 429, too.
        if usage.peak >= FULL * client.lease and not usage.troubled:
            most = sum(other.most for other in self._clients.values())
            grown = self.limit + usage.done * (1.0 if self._slow_start else GROWTH)
            self.limit = max(self.limit, min(most, grown))
        return 0.0

    def _cut(self) -> float:
        self.limit = max(1.0, self.limit * CUT)
        self.epoch += 1
        self._barren_cuts = 0 if self._answered else self._barren_cuts + 1
        self._answered = self._slow_start = False
        return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self._barren_cuts - 1)) if self._barren_cuts else 0.0

    def _share(self, client: _Client) -> int:
        """A client's fair part: those who want less than an equal part leave the rest to the others."""
        left = int(self.limit)
        by_need = sorted(self._clients.values(), key=_need)
        for place, other in enumerate(by_need):
            part = min(_need(other), left // (len(by_need) - place))
            if other is client:
                return part
            left -= part
        return left


def _need(client: _Client) -> int:
    return min(client.most, client.want + client.want // 4 + 1)  # The extra room lets demand show itself.
