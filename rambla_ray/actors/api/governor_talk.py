"""The talk of one actor with its governor: reports of what its calls did, and grants that its admission follows."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress

from rambla_ray.actors.api.adaptive import CUT, START, Usage
from rambla_ray.actors.api.admission import Admission, Permit
from rambla_ray.actors.api.governor import Grant, Report
from rambla_ray.actors.api.governor_client import GovernorClient, Unreachable
from rambla_ray.actors.api.rate_budget import Limits
from rambla_ray.actors.api.waits import LONGEST_WAIT_S
from rambla_ray.config.sections import Rate
from rambla_ray.errors import CallError, ErrorKind

TICK_S = 0.5  # An active client exchanges reports with its governor at least this often.
GROUP_S = 0.003  # What there is to report is gathered for so long.
SMALLEST_ROUND = 8  # A round of calls is reported after so many answers, where fewer calls are allowed at once.
MOST_ASKED = 256  # One report asks for no more permits than these.


class _TokenRatio:
    """The ratio of the tokens that recent calls used to their estimates; until there is any, that of other clients."""

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

    def expected(self, estimate: int, least: int) -> int:
        """The tokens that a call is expected to use; at least `least` before the first own call has ended."""
        if self.own is None:
            return max(least, math.ceil(estimate * self.of_others))
        return math.ceil(estimate * self.own)


class GovernorTalk:
    """Keeps an actor's admission within what its governor grants.

    Args:
        admission: whose `allowed`, permits and pauses follow the governor.
        client: the way to the governor.
        most: calls in flight at most.
        rate: the endpoint's limits, if it has any.
        adaptive: the governor finds out how many calls may be in flight.
    """

    def __init__(self, admission: Admission, client: GovernorClient, most: int, rate: Rate, adaptive: bool) -> None:
        self.notify: Callable[[str], None] = print  # Takes a line that the user should see.
        self._admission = admission
        self._client = client
        self._name = uuid.uuid4().hex
        self._most = most
        self._rate = rate
        self._adaptive = adaptive
        self._allowed_at_first = 0 if adaptive else most
        self._task: asyncio.Task[None] | None = None
        self._due = asyncio.Event()  # There is something to report now.
        self._epoch = 0
        self._ask_at = 0.0  # When permits that were not granted may be asked for again, by the loop's clock.
        self._done = 0
        self._troubled = self._limited = False
        self._pause_s = 0.0
        self._corrections: list[tuple[int, int]] = []
        self._ratio = _TokenRatio()
        self._notified: set[str] = set()
        admission.allowed, admission.metered = self._allowed_at_first, rate.is_set
        admission.on_change = self._report_if_due
        admission.on_unused = self._give_back

    def start(self) -> None:
        """Exchange reports from now on for as long as there are calls; a talk that is under way goes on."""
        if (self._task is None or self._task.done()) and not self._admission.is_closed:
            self._due = asyncio.Event()
            self._task = asyncio.create_task(self._keep_exchanging())
            self._task.add_done_callback(self._stopped)

    def record(self, permit: Permit, *, used: int | None, answered: bool, troubled: bool, limited: bool) -> None:
        """Note how a call ended, for the next report. Its permit is released afterwards.

        Args:
            permit: what admission issued for it.
            used: tokens it cost, None where that is unknown.
            answered: it got its answer.
            troubled: it failed for a reason that may have to do with the endpoint's load.
            limited: its reply was 429.
        """
        if answered:
            self._done += 1
        if troubled:
            self._troubled = True
        if limited and permit.epoch == self._epoch and not self._limited:
            self._limited = True
            if self._adaptive:  # The governor's own cut follows with its next grant.
                self._admission.allowed = max(1, int(self._admission.allowed * CUT))
        if permit.reserved and used is not None:
            self._corrections.append((permit.reserved, used))
            if answered:
                self._ratio.learn(permit.estimate, used)

    def pause(self, seconds: float) -> None:
        """Pause every call, of other clients too: the endpoint asked for it. `LONGEST_WAIT_S` is the longest pause."""
        seconds = min(seconds, LONGEST_WAIT_S)
        if seconds > 0:
            self._pause_s = max(self._pause_s, seconds)
            self._admission.pause(seconds)
            self._due.set()

    def _give_back(self, reserved: int) -> None:
        self._corrections.append((reserved, 0))

    def _report_if_due(self) -> None:
        if (
            self._limited
            or self._done >= max(self._admission.allowed, SMALLEST_ROUND)
            or (self._admission.lacks_permits and asyncio.get_running_loop().time() >= self._ask_at)
        ):
            self._due.set()

    def _stopped(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:  # A bug here must not keep calls waiting.
            reason = f"the talk with the governor broke: {type(error).__name__}: {error}"
            self._admission.close(lambda: CallError(ErrorKind.INTERNAL, reason))

    async def _keep_exchanging(self) -> None:
        """Exchange reports for as long as there are calls, and leave when there were none for a while."""
        quiet = False
        while True:
            wait = TICK_S
            leaving = quiet and not self._admission.demand
            try:
                wait = min(TICK_S, await self._exchange(leaving) or TICK_S)
            except Unreachable as error:
                self._carry_on(str(error))
            if leaving and not self._admission.demand:
                self._admission.allowed = self._allowed_at_first
                return
            if leaving:
                continue
            quiet = not self._admission.demand
            await asyncio.sleep(GROUP_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, wait - GROUP_S)):
                    await self._due.wait()

    async def _exchange(self, leaving: bool) -> float:
        """One exchange; returns when to ask again for permits that were not granted, in seconds.

        Raises Unreachable; corrections and a pause that did not get through are in the next report.
        """
        self._due.clear()
        report = self._collect(leaving)
        try:
            grant = await self._client.exchange(report)
        except Unreachable:
            self._corrections[:0] = report.corrections
            self._pause_s = max(report.pause_s, self._pause_s)
            raise
        if not leaving:
            self._obey(grant, report.asks)
        return grant.ask_again_s

    def _collect(self, leaving: bool) -> Report:
        """The next report; what it holds is counted anew from now on."""
        asks = [self._tokens_to_reserve(*tokens) for tokens in self._admission.without_permit(MOST_ASKED)]
        peak, want = self._admission.take_peaks()
        usage = Usage(self._done, peak, want, self._troubled, self._limited, self._epoch)
        report = Report(
            client=self._name,
            most=self._most,
            limits=Limits(self._rate.requests_per_minute, self._rate.tokens_per_minute),
            usage=usage if self._adaptive else None,
            asks=tuple(asks),
            corrections=tuple(self._corrections),
            ratio=self._ratio.own,
            pause_s=self._pause_s,
            leaving=leaving,
        )
        self._done = 0
        self._troubled = self._limited = False
        self._corrections, self._pause_s = [], 0.0
        return report

    def _obey(self, grant: Grant, asks: Sequence[int]) -> None:
        admission = self._admission
        admission.allowed, admission.metered, self._ratio.of_others = grant.allowed, grant.metered, grant.ratio
        self._epoch = grant.epoch
        admission.enter_epoch(grant.epoch)
        if grant.pause_s:
            admission.pause(grant.pause_s)
        for reserved, wait in zip(asks, grant.permits, strict=False):
            admission.promise(reserved, wait)
        self._ask_at = asyncio.get_running_loop().time() + grant.ask_again_s
        admission.resume()

    def _carry_on(self, reason: str) -> None:
        """Without a governor: a budget cannot be kept, so calls that need a permit wait; others go on."""
        self._notify_once("silent", f"the governor of the rate limits does not answer ({reason}); trying again")
        if not self._admission.metered:
            self._admission.allowed = max(self._admission.allowed, min(START, self._most))
            self._admission.resume()

    def _tokens_to_reserve(self, estimate: int, least: int) -> int:
        tokens, most = self._ratio.expected(estimate, least), self._rate.tokens_per_minute
        if most is not None and tokens > most:
            self._notify_once(
                "clamped",
                f"a request of about {tokens} tokens is above tokens_per_minute={most} and is counted as {most}",
            )
            return most
        return tokens

    def _notify_once(self, about: str, line: str) -> None:
        if about not in self._notified:
            self._notified.add(about)
            self.notify(line)
