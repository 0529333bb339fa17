"""How many calls an endpoint takes at once: found out by trying, and shared among the actors that call it.

Slow start, additive growth, a cut when the endpoint says 429. Each answered call adds one to the limit at first, so
that it doubles with every round of calls; after the first 429, a round adds 5 %. One limit holds for all actors, and
each has a lease on a part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

START = 64  # calls in flight to begin with
CUT = 0.8  # what is left of the limit after a 429
GROWTH = 0.05  # per round of calls, when the first 429 has been seen
FULL = 0.8  # the share of a lease that must have been in use for the limit to grow
LEASE_S = 5.0  # without a report, a lease is free again
FORGET_S = 60.0  # without any holder, what was found out no longer holds
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 30.0  # after cuts without an answer between them


class Usage(NamedTuple):
    """What a holder did since its last report."""

    done: int = 0  # calls answered
    peak: int = 0  # calls in flight at most
    want: int = 0  # calls that were in flight or could have been, at most
    troubled: bool = False  # a call failed for another reason than a 429
    limited: bool = False  # a call that began in `epoch` was told 429
    epoch: int = 0  # the last cut the holder knew of


@dataclass
class _Holder:
    most: int
    want: int
    lease: int
    until: float


class Concurrency:
    """The limit on calls in flight, and the leases on it. Times are monotonic seconds, given by the caller."""

    def __init__(self) -> None:
        self._holders: dict[str, _Holder] = {}
        self._forget_at = float("inf")
        self._reset()

    def _reset(self) -> None:
        self.limit = float(START)
        self.epoch = 0  # how often it has been cut
        self._slow_start = True
        self._answered = True  # a call, since the last cut
        self._barren = 0  # cuts in a row without an answer between them

    def report(self, name: str, most: int, usage: Usage, now: float) -> tuple[int, float]:
        """Take in what a holder did, and give it a new lease.

        Args:
            name: of the holder.
            most: calls it can have in flight.
            usage: what it did since its last report.
            now: the time.

        Returns:
            (lease, pause_s): how many calls it may have in flight, at least one, and how long nobody should call.
        """
        self._expire(now)
        holder = self._holders.setdefault(name, _Holder(most, 0, 0, now))
        holder.most, holder.want, holder.until = most, min(most, usage.want), now + LEASE_S
        pause = self._adapt(holder, usage)
        others = sum(other.lease for other in self._holders.values() if other is not holder)
        holder.lease = max(1, min(self._share(holder), int(self.limit) - others))
        return holder.lease, pause

    def leave(self, name: str, now: float) -> None:
        """A holder has nothing to ask: its lease is free."""
        if name in self._holders:
            del self._holders[name]
            self._forget_at = now + FORGET_S

    def _expire(self, now: float) -> None:
        for name in [name for name, holder in self._holders.items() if holder.until <= now]:
            self.leave(name, self._holders[name].until)
        if not self._holders and self._forget_at <= now:
            self._reset()

    def _adapt(self, holder: _Holder, usage: Usage) -> float:
        if usage.done:
            self._answered = True
        if usage.limited:
            return self._cut() if usage.epoch == self.epoch else 0.0  # else the last cut was for this one, too
        if usage.peak >= FULL * holder.lease and not usage.troubled:
            most = sum(other.most for other in self._holders.values())
            grown = self.limit + usage.done * (1.0 if self._slow_start else GROWTH)
            self.limit = max(self.limit, min(most, grown))
        return 0.0

    def _cut(self) -> float:
        self.limit = max(1.0, self.limit * CUT)
        self.epoch += 1
        self._barren = 0 if self._answered else self._barren + 1
        self._answered = self._slow_start = False
        return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self._barren - 1)) if self._barren else 0.0

    def _share(self, holder: _Holder) -> int:
        """A holder's fair part: those who want less than an equal part leave the rest to the others."""
        left = int(self.limit)
        wanted = sorted(self._holders.values(), key=_need)
        for place, other in enumerate(wanted):
            part = min(_need(other), left // (len(wanted) - place))
            if other is holder:
                return part
            left -= part
        return left


def _need(holder: _Holder) -> int:
    return min(holder.most, holder.want + holder.want // 4 + 1)  # with some room, so that demand can show itself
