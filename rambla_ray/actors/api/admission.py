"""Admission of one actor's calls: who is let in and when, by slots, permits, pauses and closing."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from rambla_ray.errors import RamblaError

EARLY_S = 0.001  # A timer may go off so much before its time, since uvloop rounds.
FIRST_CALL_S = 2.0  # The first call of all goes alone for so long at most.
SAME_PAUSE_S = 0.05  # A pause that is reported a second time may seem longer by what the message took.


class Permit(NamedTuple):
    """Leave to make one call. `Admission.release` takes it back."""

    epoch: int = 0  # The epoch of the allowance that it was issued under.
    estimate: int = 0  # The call's estimated tokens, where tokens are reserved for it.
    reserved: int = 0  # The tokens that the rate budget reserves for it.
    is_probe: bool = False  # Nobody else is let in before this call has ended.


class _Waiter:
    __slots__ = ("again", "estimate", "future", "least", "reserved", "starts_at", "timer")

    def __init__(self, estimate: int, least: int, again: bool) -> None:
        self.again = again
        self.future: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        self.estimate = estimate
        self.least = least
        self.reserved = 0
        self.starts_at = 0.0  # When its promised permit becomes valid, by the loop's clock.
        self.timer: asyncio.TimerHandle | None = None


class Admission:
    """Lets calls in, in order; those that are tried again go first.

    Limits from outside come as `allowed`, `metered` and `promise`; `on_change` and `on_unused` inform their source.

    Args:
        allowed: calls that may be in flight at once.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.first_goes_alone = False  # Until it has ended, or for `FIRST_CALL_S`: what is wrong with all costs one.
        self.metered = False  # A call needs a free slot and a permit that `promise` issues.
        self.is_held: Callable[[], bool] = lambda: False  # Nobody is let in while it is true, until `resume`.
        self.on_change: Callable[[], None] = lambda: None  # Called when slots or the queue have changed.
        self.on_unused: Callable[[int], None] = lambda reserved: None  # Takes the tokens of an unused permit.
        self.on_pause: Callable[[float], None] = lambda until: None  # Takes the end of a pause, by the loop's clock.
        self._shared_permit = Permit()  # Of every call that reserves no tokens.
        self._in_flight = 0
        self._waiting: deque[_Waiter] = deque()
        self._promised: set[_Waiter] = set()  # Each has a slot, and a permit that becomes valid later.
        self.paused_until = 0.0  # Nobody is let in before then, by the loop's clock.
        self._probe_at: float | None = None  # When one call may be let in, while there is an outage.
        self._probe_is_out = False
        self._refusal: Callable[[], RamblaError] | None = None  # Set by `close`.
        self._sleeping: set[asyncio.Future[None]] = set()
        self._peak = self._peak_demand = 0

    # The calls

    async def acquire(self, estimate: int, least: int = 0, *, again: bool = False) -> Permit:
        """Return when a call may be made.

        Args:
            estimate: of its tokens, the answer as long as it may be; what calls really cost corrects that.
            least: its tokens without an answer.
            again: this is not the request's first call.

        Raises:
            RamblaError: what `close` was given, once admission is closed.
        """
        if self._refusal is not None:
            raise self._refusal()
        if (
            self._in_flight < self.allowed
            and not (self._waiting or self.metered or self.first_goes_alone)
            and not (self.paused_until and self._is_paused())
            and self._probe_at is None
            and not self.is_held()
        ):
            self._in_flight += 1
            self._peak = max(self._peak, self._in_flight)
            return self._shared_permit
        waiter = _Waiter(estimate, least, again)
        if again and not self.is_probing:  # In an outage requests take turns to probe.
            self._waiting.appendleft(waiter)
        else:
            self._waiting.append(waiter)
        self._peak_demand = max(self._peak_demand, self.demand)
        self.resume()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter in self._promised:
                self._withdraw(waiter)
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            elif waiter.future.done() and not waiter.future.cancelled() and not waiter.future.exception():
                self.release(waiter.future.result(), unused=True)
            self.resume()
            raise

    def release(self, permit: Permit, *, unused: bool = False) -> None:
        """Take a permit back: its call has ended, or was not made at all where it is `unused`."""
        self._in_flight -= 1
        if permit.is_probe:
            self._probe_is_out = False
        self.first_goes_alone &= unused
        if unused and permit.reserved:
            self.on_unused(permit.reserved)
        self.resume()

    async def sleep(self, seconds: float) -> None:
        """Wait outside of any slot, no longer than until admission is closed."""
        closed = asyncio.get_running_loop().create_future()
        self._sleeping.add(closed)
        try:
            async with asyncio.timeout(0 if self.is_closed else seconds):
                await closed
        except TimeoutError:
            pass
        finally:
            self._sleeping.discard(closed)

    # What holds calls back

    def resume(self) -> None:
        """Let in what may be let in now, after a change of slots, of `allowed` or of `is_held`."""
        if self._waiting and not self.metered:
            self._let_in()
        self.on_change()

    def pause(self, seconds: float) -> None:
        """Let nobody in for so long; permits that would become valid before then are void."""
        loop = asyncio.get_running_loop()
        now, until = loop.time(), loop.time() + seconds
        if now < self.paused_until and until <= self.paused_until + SAME_PAUSE_S:
            return
        self.paused_until = until
        self._take_back_promises(until)
        loop.call_at(until + EARLY_S, self.resume)
        self.on_pause(until)

    def probe_after(self, seconds: float) -> None:
        """Let nobody in for so long, and then one call, after whose end this is called again, or `end_probing`."""
        loop = asyncio.get_running_loop()
        self._probe_at = loop.time() + seconds
        self._take_back_promises(math.inf)
        loop.call_at(self._probe_at + EARLY_S, self.resume)

    def end_probing(self) -> None:
        """Let everybody in again."""
        self._probe_at, self._probe_is_out = None, False
        self.resume()

    def _end_first_call(self) -> None:
        self.first_goes_alone = False
        self.resume()

    def _take_back_promises(self, until: float) -> None:
        """Let those whose permits would become valid before `until` wait again, in their order."""
        for waiter in sorted(self._promised, key=lambda waiter: waiter.starts_at, reverse=True):
            if waiter.starts_at < until:
                self._withdraw(waiter)
                if not waiter.future.done():
                    self._waiting.appendleft(waiter)

    def close(self, refusal: Callable[[], RamblaError]) -> None:
        """Let nobody in any more: calls that wait, and later ones, get an error that `refusal` makes."""
        self._refusal = refusal
        self.refuse(refusal)
        for sleeping in self._sleeping:
            if not sleeping.done():
                sleeping.set_result(None)

    def refuse(self, refusal: Callable[[], RamblaError], *, first_calls_only: bool = False) -> None:
        """Let calls that wait get an error that `refusal` makes; later ones may wait again."""
        self._take_back_promises(math.inf)
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            if first_calls_only and waiter.again:
                self._waiting.append(waiter)
            elif not waiter.future.done():
                waiter.future.set_exception(refusal())

    @property
    def is_closed(self) -> bool:
        """Whether nobody is let in any more."""
        return self._refusal is not None

    @property
    def is_probing(self) -> bool:
        """Whether there is an outage, in which one call at a time is let in."""
        return self._probe_at is not None

    @property
    def is_shut(self) -> bool:
        """Whether the endpoint's state alone keeps everybody out at this moment."""
        return self._is_paused() or (self.is_probing and self.free <= 0)

    def _is_paused(self) -> bool:
        if asyncio.get_running_loop().time() < self.paused_until:
            return True
        self.paused_until = 0.0
        return False

    def _let_in(self) -> None:
        if (self.paused_until and self._is_paused()) or self.is_held():
            return
        while self._waiting and self.free > 0:
            waiter = self._waiting.popleft()
            if not waiter.future.done():
                self._admit(waiter, self._shared_permit)

    def _admit(self, waiter: _Waiter, permit: Permit) -> None:
        self._in_flight += 1
        self._peak = max(self._peak, self._in_flight)
        if self.first_goes_alone:
            asyncio.get_running_loop().call_later(FIRST_CALL_S, self._end_first_call)
        if self.is_probing:
            self._probe_is_out = True
            permit = permit._replace(is_probe=True)
        waiter.future.set_result(permit)

    # Limits from outside

    @property
    def demand(self) -> int:
        """Calls in flight or waiting."""
        return self._in_flight + len(self._promised) + len(self._waiting)

    @property
    def free(self) -> int:
        """Slots that no call and no promise takes; negative after `allowed` has shrunk. In an outage, a probe's."""
        if self._probe_at is not None:
            is_due = asyncio.get_running_loop().time() >= self._probe_at
            return 1 if is_due and not self._probe_is_out and not self._promised else 0
        return min(self.allowed, 1 if self.first_goes_alone else self.allowed) - self._in_flight - len(self._promised)

    @property
    def lacks_permits(self) -> bool:
        """Whether calls wait for permits, and for nothing else."""
        return self.metered and bool(self._waiting) and self.free > 0 and not self.is_held()

    def take_peaks(self) -> tuple[int, int]:
        """The most calls in flight, and in flight or waiting, since this was called last."""
        peaks = self._peak, max(self._peak_demand, self._peak)
        self._peak, self._peak_demand = self._in_flight, self.demand
        return peaks

    def without_permit(self, most: int) -> list[tuple[int, int]]:
        """(estimate, least) of the first calls that lack a permit, in their order; `most` of them at most."""
        if not self.lacks_permits:
            return []
        waiting = (waiter for waiter in self._waiting if not waiter.future.done())
        return [(waiter.estimate, waiter.least) for waiter in islice(waiting, min(self.free, most))]

    def enter_epoch(self, epoch: int) -> None:
        """Issue permits of another epoch from now on."""
        if epoch != self._shared_permit.epoch:
            self._shared_permit = Permit(epoch)

    def promise(self, reserved: int, wait_s: float) -> None:
        """Give the first call that waits a permit, with so many tokens, that becomes valid in `wait_s` seconds."""
        while self._waiting and self._waiting[0].future.done():
            self._waiting.popleft()
        if not self._waiting:
            self.on_unused(reserved)
            return
        loop = asyncio.get_running_loop()
        waiter = self._waiting.popleft()
        waiter.reserved, waiter.starts_at = reserved, loop.time() + wait_s
        self._promised.add(waiter)
        waiter.timer = loop.call_at(waiter.starts_at, self._redeem, waiter)

    def _redeem(self, waiter: _Waiter) -> None:
        self._promised.discard(waiter)
        if waiter.future.done():
            return
        if self.is_held():  # The permit is valid now, not later.
            self.on_unused(waiter.reserved)
            self._waiting.appendleft(waiter)
            return
        self._admit(waiter, Permit(self._shared_permit.epoch, waiter.estimate, waiter.reserved))

    def _withdraw(self, waiter: _Waiter) -> None:
        if waiter.timer:
            waiter.timer.cancel()
        self.on_unused(waiter.reserved)
        self._promised.discard(waiter)
