"""What every model is, and what every API model shares: deadline, retries, rate, concurrency, hedging."""

from __future__ import annotations

import asyncio
import random
import time
from abc import abstractmethod
from collections import deque
from typing import ClassVar

from rambla_ray.actors.api.admission import Gate, Pass
from rambla_ray.actors.api.governor import Link
from rambla_ray.actors.api.retry import RetryPolicy
from rambla_ray.actors.model import Emit, Model, RunContext
from rambla_ray.config.model import ModelParams
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.errors import FATAL, RETRYABLE, CallError, Draining, ErrorKind, RamblaError
from rambla_ray.schema import CallTrace, Request, Response, Try

REASON_CHARACTERS = 160  # of an attempt's reason
LONGEST_TEXT = 1_000_000  # characters of an answer; the rest is cut off
HEDGE_AFTER = 20  # answers from which it is learnt, time and again, what is slow
HEDGE_QUANTILE = 0.95
RECENT_CALLS = 200
TURNS = 2  # of the event loop, in which those who get freed slots send, before answers are seen to
DEFAULT_PAUSE_S = 1.0  # of those who share a rate, after a 429 that does not say how long
OVERLOAD = frozenset({ErrorKind.SERVER, ErrorKind.TIMEOUT, ErrorKind.CONNECTION})
KEPT = frozenset(  # what was reserved for such a call is not given back: the endpoint may have charged for it, or
    # with a 429, it counts otherwise than we do, and what is kept puts us behind it again
    {ErrorKind.TIMEOUT, ErrorKind.CONNECTION, ErrorKind.GARBAGE, ErrorKind.OVERSIZED, ErrorKind.RATE_LIMITED}
)


class _Story:
    """What happened to one request. Times are seconds by time.monotonic()."""

    __slots__ = ("began", "calling_s", "first_call", "hedged", "latency_s", "tries")

    def __init__(self) -> None:
        self.began = self.first_call = time.monotonic()
        self.tries: list[Try] = []
        self.calling_s = 0.0  # some call was out
        self.latency_s = 0.0  # of the call that answered
        self.hedged = 0

    def trace(self) -> CallTrace:
        """What is known now."""
        waited_s = max(0.0, time.monotonic() - self.began - self.calling_s)
        return CallTrace(waited_s, len(self.tries), self.hedged, tuple(self.tries))


class BaseAPIModel(Model):
    """A model behind an endpoint. A subclass gives `scope`, `identity`, and `call`: one attempt, no retries."""

    retry: ClassVar[RetryPolicy] = RetryPolicy()
    adaptive: ClassVar[bool] = True  # without a rate, the number of calls in flight is found out by trying

    def __init__(self, params: ModelParams, pool: Pool, rate: Rate | None) -> None:
        super().__init__(params, pool, rate)
        self._rate = rate or Rate()
        self._adapts = self.adaptive and not self._rate.is_set
        governed = self._adapts or self._rate.is_set
        self._gate = Gate(
            pool.max_concurrency,
            Link(self.scope()) if governed else None,
            self._rate,
            self._adapts,
        )
        self._disturbed = False
        self._answered = 0
        self._recent: deque[float] = deque(maxlen=RECENT_CALLS)  # seconds that answers took
        self._slow_s: float | None = None  # what takes longer is asked a second time

    def attach(self, context: RunContext) -> None:
        super().attach(context)
        self._gate.note, self._gate.is_held = context.notify, context.is_held
        chaos = context.chaos
        self._disturbed = bool(chaos.http429 or chaos.http500 or chaos.reset or chaos.garbage)

    @abstractmethod
    def scope(self) -> str:
        """What shares the limits: the endpoint, a space, and the *name* of the key."""

    @abstractmethod
    async def call(self, request: Request) -> Response:
        """One attempt. Raises CallError; anything else it raises is taken for a fault of its own."""

    async def faulty_call(self, request: Request, fault: str) -> Response:
        """What `call` would do if a fault of `config.Chaos`, by its field's name, struck it; nothing is sent."""
        wait = random.uniform(0.05, 0.3) if fault == "http429" else None
        raise CallError(_KIND_OF_FAULT[fault], f"made up by chaos.{fault}", retry_after_s=wait)

    def estimate_tokens(self, request: Request) -> int:
        """Tokens this request may cost, for the rate budget: about four characters each, and the longest answer."""
        return len(request.text) // 4 + 1 + self.max_answer_tokens(request)

    def max_answer_tokens(self, request: Request) -> int:
        """The longest answer that may come, in tokens."""
        return 0

    def drain(self) -> None:
        self._gate.close(Draining)

    def resume(self) -> None:
        self._gate.resume()

    def pause(self, seconds: float) -> None:
        """The endpoint said, beside an answer, that its limit is used up: nobody who shares it calls for so long."""
        self._gate.pause(seconds)

    async def generate(self, request: Request, emit: Emit | None = None) -> Response:
        story = _Story()
        try:
            try:
                answer = await self._attempt(request, story, again=False)
            except CallError as error:
                answer = await self._try_again(request, story, error)
        except CallError as error:
            error.trace = story.trace()
            raise
        for _ in range(TURNS):
            await asyncio.sleep(0)
        text, reason = answer.text, answer.finish_reason
        if len(text) > LONGEST_TEXT:
            text, reason = text[:LONGEST_TEXT], "length"
        return Response(
            text=text,
            finish_reason=reason,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            latency_s=story.latency_s,
            trace=story.trace(),
        )

    async def _try_again(self, request: Request, story: _Story, first: CallError) -> Response:
        """After a first attempt that failed: what the policy says. Entered only then, since it costs 20 µs."""
        failed: CallError | None = first
        async for attempt in self.retry.retrying(story.first_call, self._rate.give_up_after_s, self._gate.rest):
            with attempt:
                if failed:
                    error, failed = failed, None
                    raise error
                return await self._attempt(request, story, again=True)
        raise first  # never: the policy raises what was raised last

    async def _attempt(self, request: Request, story: _Story, *, again: bool) -> Response:
        """One call, or two that race each other."""
        estimate = self.estimate_tokens(request)
        given = await self._gate.enter(estimate, estimate - self.max_answer_tokens(request), again=again)
        began = time.monotonic()
        if not story.tries:
            story.first_call = began
        try:
            if self._slow_s is not None:
                return await self._race(request, story, estimate, given)
            return await self._call(request, story, given)
        finally:
            story.calling_s += time.monotonic() - began

    async def _race(self, request: Request, story: _Story, estimate: int, given: Pass) -> Response:
        """A call, and if it is slow a second one in a slot of its own: the first answer wins."""
        calls = [asyncio.create_task(self._call(request, story, given))]
        try:
            running: set[asyncio.Task[Response]]
            done, running = await asyncio.wait(calls, timeout=self._slow_s)
            if running:
                calls.append(asyncio.create_task(self._second_call(calls[0], request, story, estimate)))
                running = set(calls)
            while running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for call in done:
                    error = call.exception()
                    if error is None or not (isinstance(error, CallError) and error.kind in RETRYABLE):
                        return call.result()
            return calls[0].result()
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            story.tries.sort()

    async def _second_call(
        self, first: asyncio.Task[Response], request: Request, story: _Story, estimate: int
    ) -> Response:
        try:
            given = await self._gate.enter(estimate, estimate - self.max_answer_tokens(request))
        except RamblaError:  # nobody is let in any more, but the first call goes on
            await asyncio.wait([first])
            return first.result()
        if first.done():  # maybe it is its slot that was waited for
            self._gate.leave(given, used=0)
            return first.result()
        story.hedged += 1
        return await self._call(request, story, given)

    async def _call(self, request: Request, story: _Story, given: Pass) -> Response:
        """One call in the slot that it was given, which it leaves."""
        at, began = time.time(), time.monotonic()
        response: Response | None = None
        kind, reason, told_s = "", "cancelled: the answer was not needed any more", None
        try:
            async with asyncio.timeout(self._rate.timeout_s):
                if self._disturbed and (fault := self._fault()):
                    response = await self.faulty_call(request, fault)
                else:
                    response = await self.call(request)
            reason = ""
            return response
        except TimeoutError:
            where, _, _ = self.scope().partition(" ")
            error = CallError(ErrorKind.TIMEOUT, f"no reply from {where} within {self._rate.timeout_s:g} s")
            kind, reason = error.kind, str(error)
            raise error from None
        except CallError as error:
            kind, reason, told_s = error.kind, str(error), error.retry_after_s
            if error.kind in FATAL:
                self._close(error)
            raise
        except Exception as error:
            kind, reason = ErrorKind.INTERNAL, f"{ErrorKind.INTERNAL}: {type(error).__name__}"
            raise
        finally:
            took = time.monotonic() - began
            story.tries.append(Try(at, took, reason[:REASON_CHARACTERS]))
            used: int | None = 0
            if response is not None:
                story.latency_s = took
                if self._rate.hedge:
                    self._learn_what_is_slow(took)
                used = response.prompt_tokens + response.completion_tokens or None
            elif kind in KEPT or not kind:
                used = None
            limited = kind == ErrorKind.RATE_LIMITED
            if told_s is None and limited and not self._adapts:
                told_s = DEFAULT_PAUSE_S
            self._gate.pause(told_s or 0.0)
            self._gate.leave(
                given, used=used, answered=response is not None, troubled=kind in OVERLOAD, limited=limited
            )

    def _close(self, fatal: CallError) -> None:
        """After an error that stops the run, every request ends in it."""
        kind, message = fatal.kind, fatal.message
        self._gate.close(lambda: CallError(kind, message))

    def _learn_what_is_slow(self, took_s: float) -> None:
        self._answered += 1
        self._recent.append(took_s)
        if self._answered % HEDGE_AFTER == 0:
            self._slow_s = sorted(self._recent)[int(HEDGE_QUANTILE * len(self._recent))]

    def _fault(self) -> str | None:
        """The fault that chaos has drawn for a call, if any."""
        draw = random.random()
        for fault in _KIND_OF_FAULT:
            draw -= getattr(self.context.chaos, fault)
            if draw < 0:
                return fault
        return None


_KIND_OF_FAULT = {
    "http429": ErrorKind.RATE_LIMITED,
    "http500": ErrorKind.SERVER,
    "reset": ErrorKind.CONNECTION,
    "garbage": ErrorKind.GARBAGE,
}
