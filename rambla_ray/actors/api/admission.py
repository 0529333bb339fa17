"""The gate of one actor: where its calls wait for a slot, for their permit and for the end of a pause."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from rambla_ray.actors.api.adaptive import CUT, START, Usage
from rambla_ray.actors.api.governor import Limits, Link, News, Orders, Unreachable
from rambla_ray.config.sections import Rate
from rambla_ray.errors import CallError, ErrorKind, RamblaError

TICK_S = 0.5  # how often an active gate talks to its governor at least
GROUP_S = 0.003  # what there is to say is gathered for so long
SMALLEST_ROUND = 8  # calls after which a round of them is reported, where fewer are allowed at once
SAME_PAUSE_S = 0.05  # a pause that is told again seems longer by what the message took
MOST_ASKED = 256  # permits asked for in one go


class Pass(NamedTuple):
    """Leave to make one call. `leave` takes it back."""

    epoch: int = 0
    estimate: int = 0  # of its tokens, where it has a permit
    reserved: int = 0  # tokens taken from the budget for it


class _Waiter:
    __slots__ = ("at", "estimate", "future", "least", "reserved", "timer")

    def __init__(self, estimate: int, least: int) -> None:
        self.future: asyncio.Future[Pass] = asyncio.get_running_loop().create_future()
        self.estimate = estimate
        self.least = least
        self.reserved = 0
        self.at = 0.0  # when its permit is good, by the loop's clock
        self.timer: asyncio.TimerHandle | None = None


class _Ratio:
    """What recent calls cost, by what they were estimated to; until there are any, as others found it, or 1."""

    def __init__(self) -> None:
        self._used = self._estimated = 0.0
        self._count = 0
        self.of_others = 1.0

    def learn(self, estimate: int, used: int) -> None:
        self._count += 1
        weight = max(0.05, 1 / self._count)
        self._used += weight * (used - self._used)
        self._estimated += weight * (estimate - self._estimated)

    @property
    def own(self) -> float | None:
        return self._used / self._estimated if self._count else None

    def of(self, estimate: int, least: int) -> int:
        return max(least, math.ceil(estimate * self.of_others)) if self.own is None else math.ceil(estimate * self.own)


class Gate:
    """Lets calls in, in order; those that are tried again go first.

    Args:
        most: calls in flight at most.
        link: the way to the governor; None for a model that nothing but `most` limits.
        rate: the endpoint's limits, if it has any.
        adaptive: the governor finds out how many calls may be in flight; needs a link.
    """

    def __init__(self, most: int, link: Link | None, rate: Rate, adaptive: bool) -> None:
        self.note: Callable[[str], None] = print  # takes a line that the user should see
        self.is_held: Callable[[], bool] = lambda: False  # whether nobody is let in, until `resume`
        self._most = most
        self._link = link
        self._rate = rate
        self._adaptive = adaptive
        self._holder = uuid.uuid4().hex
        self._allowed = 0 if adaptive else most
        self._metered = link is not None and rate.is_set
        self._pass = Pass()
        self._in_flight = 0
        self._waiting: deque[_Waiter] = deque()
        self._promised: set[_Waiter] = set()  # with a permit for a moment to come, and a slot
        self._paused_until = 0.0
        self._ask_at = 0.0
        self._refusal: Callable[[], RamblaError] | None = None  # once the gate is closed
        self._resting: set[asyncio.Future[None]] = set()
        self._talk: asyncio.Task[None] | None = None
        self._due = asyncio.Event()
        self._done = 0
        self._peak = self._wanted = 0
        self._troubled = self._limited = False
        self._pause_to_tell = 0.0
        self._settled: list[tuple[int, int]] = []
        self._ratio = _Ratio()
        self._noted: set[str] = set()

    async def enter(self, estimate: int, least: int = 0, *, again: bool = False) -> Pass:
        """Return when a call may be made. Raises what `close` was given once the gate is closed.

        Args:
            estimate: of its tokens, the answer as long as it may be; what calls really cost corrects that.
            least: its tokens without an answer.
            again: this is not the request's first call.
        """
        if self._refusal is not None:
            raise self._refusal()
        if self._link is not None and (self._talk is None or self._talk.done()):
            self._start_talking()
        if (
            self._in_flight < self._allowed
            and not (self._waiting or self._metered)
            and not (self._paused_until and self._is_paused())
            and not self.is_held()
        ):
            self._in_flight += 1
            if self._in_flight > self._peak:
                self._peak = self._in_flight
            return self._pass
        waiter = _Waiter(estimate, least)
        (self._waiting.appendleft if again else self._waiting.append)(waiter)
        self._wanted = max(self._wanted, self._demand())
        self._consider()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter in self._promised:
                self._take_back(waiter)
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            elif waiter.future.done() and not waiter.future.cancelled() and not waiter.future.exception():
                self.leave(waiter.future.result(), used=0)
            self._consider()
            raise

    def leave(
        self,
        given: Pass,
        *,
        used: int | None = None,
        answered: bool = False,
        troubled: bool = False,
        limited: bool = False,
    ) -> None:
        """The call has ended.

        Args:
            given: what `enter` returned.
            used: tokens it cost, None where nobody knows.
            answered: it got its answer.
            troubled: it failed for a reason that has to do with the endpoint's load, perhaps.
            limited: it was told 429.
        """
        self._in_flight -= 1
        if answered:
            self._done += 1
        if troubled:
            self._troubled = True
        if limited and given.epoch == self._pass.epoch and not self._limited:
            self._limited = True
            if self._adaptive:  # until the governor has heard of it
                self._allowed = max(1, int(self._allowed * CUT))
        if given.reserved and used is not None:
            self._settled.append((given.reserved, used))
            if answered:
                self._ratio.learn(given.estimate, used)
        if self._link is None:
            if self._waiting:
                self._let_in()
        else:
            self._consider()

    def resume(self) -> None:
        """Look whether the gate is held still."""
        if self._waiting:
            self._consider()

    def pause(self, seconds: float) -> None:
        """The endpoint asked everybody to wait."""
        if self._link is not None and seconds > 0:
            self._pause_to_tell = max(self._pause_to_tell, seconds)
            self._hold(seconds)
            self._due.set()

    async def rest(self, seconds: float) -> None:
        """Wait, outside of any slot; the end of the wait is the closing of the gate, if that comes first."""
        closed = asyncio.get_running_loop().create_future()
        self._resting.add(closed)
        try:
            async with asyncio.timeout(0 if self._refusal else seconds):
                await closed
        except TimeoutError:
            pass
        finally:
            self._resting.discard(closed)

    def close(self, refusal: Callable[[], RamblaError]) -> None:
        """Let nobody in any more: those who wait, and who come, get an error of `refusal`."""
        self._refusal = refusal
        for waiter in self._promised:
            self._disarm(waiter)
        waiting = [*self._promised, *self._waiting]
        self._promised.clear()
        self._waiting.clear()
        for waiter in waiting:
            if not waiter.future.done():
                waiter.future.set_exception(refusal())
        for resting in self._resting:
            if not resting.done():
                resting.set_result(None)

    # Who is let in, and when

    def _is_paused(self) -> bool:
        if asyncio.get_running_loop().time() < self._paused_until:
            return True
        self._paused_until = 0.0
        return False

    def _consider(self) -> None:
        """Let in who can be, and see whether there is something to say."""
        if self._waiting and not self._metered:
            self._let_in()
        free = self._allowed - self._in_flight - len(self._promised)
        asking = self._metered and self._waiting and free > 0 and not self.is_held()
        if (
            self._limited
            or self._done >= max(self._allowed, SMALLEST_ROUND)
            or (asking and asyncio.get_running_loop().time() >= self._ask_at)
        ):
            self._due.set()

    def _let_in(self) -> None:
        if (self._paused_until and self._is_paused()) or self.is_held():
            return
        while self._waiting and self._in_flight < self._allowed:
            waiter = self._waiting.popleft()
            if not waiter.future.done():
                self._admit(waiter, self._pass)

    def _admit(self, waiter: _Waiter, given: Pass) -> None:
        self._in_flight += 1
        self._peak = max(self._peak, self._in_flight)
        waiter.future.set_result(given)

    def _promise(self, reserved: int, wait: float) -> None:
        """Give a permit to the first who waits."""
        while self._waiting and self._waiting[0].future.done():
            self._waiting.popleft()
        if not self._waiting:
            self._settled.append((reserved, 0))
            return
        loop = asyncio.get_running_loop()
        waiter = self._waiting.popleft()
        waiter.reserved, waiter.at = reserved, loop.time() + wait
        self._promised.add(waiter)
        waiter.timer = loop.call_at(waiter.at, self._redeem, waiter)

    def _redeem(self, waiter: _Waiter) -> None:
        self._promised.discard(waiter)
        if waiter.future.done():
            return
        if self.is_held():  # its permit is for now, not for later
            self._settled.append((waiter.reserved, 0))
            self._waiting.appendleft(waiter)
            return
        self._admit(waiter, Pass(self._pass.epoch, waiter.estimate, waiter.reserved))

    def _take_back(self, waiter: _Waiter) -> None:
        self._disarm(waiter)
        self._promised.discard(waiter)

    def _disarm(self, waiter: _Waiter) -> None:
        if waiter.timer:
            waiter.timer.cancel()
        self._settled.append((waiter.reserved, 0))

    def _hold(self, seconds: float) -> None:
        """Begin a pause, or lengthen it: permits for a moment inside it are void."""
        loop = asyncio.get_running_loop()
        now, until = loop.time(), loop.time() + seconds
        if now < self._paused_until and until <= self._paused_until + SAME_PAUSE_S:
            return
        self._paused_until = until
        for waiter in sorted(self._promised, key=lambda waiter: waiter.at, reverse=True):
            if waiter.at < until:
                self._take_back(waiter)
                if not waiter.future.done():
                    self._waiting.appendleft(waiter)
        loop.call_at(until, self._consider)

    # The talk with the governor

    def _start_talking(self) -> None:
        self._due = asyncio.Event()
        self._talk = asyncio.create_task(self._keep_in_touch())
        self._talk.add_done_callback(self._stopped_talking)

    def _stopped_talking(self, talk: asyncio.Task[None]) -> None:
        if not talk.cancelled() and (error := talk.exception()) is not None:  # a fault of ours: nobody must wait on
            reason = f"the gate broke: {type(error).__name__}: {error}"
            self.close(lambda: CallError(ErrorKind.INTERNAL, reason))

    async def _keep_in_touch(self) -> None:
        """Tell and hear for as long as there are calls, and say goodbye when there were none for a while."""
        quiet = False
        while True:
            wait = TICK_S
            leaving = quiet and not self._demand()
            try:
                wait = min(TICK_S, await self._tell(leaving) or TICK_S)
            except Unreachable as error:
                self._carry_on(str(error))
            if leaving and not self._demand():
                self._allowed = 0 if self._adaptive else self._most
                return
            if leaving:
                continue
            quiet = not self._demand()
            await asyncio.sleep(GROUP_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, wait - GROUP_S)):
                    await self._due.wait()

    def _demand(self) -> int:
        return self._in_flight + len(self._promised) + len(self._waiting)

    async def _tell(self, leaving: bool) -> float:
        """One exchange; returns when to ask again for permits that were not given, in seconds.

        Raises Unreachable; what could not be told is told the next time.
        """
        if self._link is None:
            raise Unreachable("there is none")
        self._due.clear()
        free = self._allowed - self._in_flight - len(self._promised)
        asks: list[int] = []
        for waiter in self._waiting if self._metered and not self.is_held() else ():
            if len(asks) >= min(free, MOST_ASKED):
                break
            if not waiter.future.done():
                asks.append(self._charge(waiter))
        want = max(self._wanted, self._peak)
        usage = Usage(self._done, self._peak, want, self._troubled, self._limited, self._pass.epoch)
        settled, pause = self._settled, self._pause_to_tell
        self._done, self._peak, self._wanted = 0, self._in_flight, self._demand()
        self._troubled = self._limited = False
        self._settled, self._pause_to_tell = [], 0.0
        try:
            orders = await self._link.tell(
                News(
                    holder=self._holder,
                    most=self._most,
                    limits=Limits(self._rate.requests_per_minute, self._rate.tokens_per_minute),
                    usage=usage if self._adaptive else None,
                    asks=tuple(asks),
                    settled=tuple(settled),
                    ratio=self._ratio.own,
                    pause_s=pause,
                    leaving=leaving,
                )
            )
        except Unreachable:
            self._settled[:0] = settled
            self._pause_to_tell = max(pause, self._pause_to_tell)
            raise
        if not leaving:
            self._obey(orders, asks)
        return orders.again_s

    def _obey(self, orders: Orders, asks: Sequence[int]) -> None:
        self._allowed, self._metered, self._ratio.of_others = orders.allowed, orders.metered, orders.ratio
        if orders.epoch != self._pass.epoch:
            self._pass = Pass(orders.epoch)
        if orders.pause_s:
            self._hold(orders.pause_s)
        for reserved, wait in zip(asks, orders.permits, strict=False):
            self._promise(reserved, wait)
        self._ask_at = asyncio.get_running_loop().time() + orders.again_s
        self._consider()

    def _carry_on(self, reason: str) -> None:
        """Without a governor: a budget cannot be kept, so calls that need a permit wait; others go on."""
        self._note_once("silent", f"the governor of the rate limits does not answer ({reason}); trying again")
        if not self._metered:
            self._allowed = max(self._allowed, min(START, self._most))
            self._consider()

    def _charge(self, waiter: _Waiter) -> int:
        """Tokens to reserve for a call."""
        tokens, most = self._ratio.of(waiter.estimate, waiter.least), self._rate.tokens_per_minute
        if most is not None and tokens > most:
            self._note_once(
                "clamped",
                f"a request of about {tokens} tokens is above tokens_per_minute={most} and is counted as {most}",
            )
            return most
        return tokens

    def _note_once(self, about: str, line: str) -> None:
        if about not in self._noted:
            self._noted.add(about)
            self.note(line)
