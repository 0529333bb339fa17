"""What models behind endpoints share: deadline, retries, rate, concurrency, hedging."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, ClassVar

from rambla_ray.actors.api.admission import Admission, Permit
from rambla_ray.actors.api.answer_length import cut
from rambla_ray.actors.api.chaos import KIND_OF_FAULT, drawn_fault, drawn_wait_s, strikes_calls
from rambla_ray.actors.api.forbidden import Forbidden, KeyDoubt
from rambla_ray.actors.api.governor_client import GovernorClient
from rambla_ray.actors.api.governor_talk import GovernorTalk
from rambla_ray.actors.api.outage import TROUBLE, EndpointWatch
from rambla_ray.actors.api.request_trace import RequestTrace
from rambla_ray.actors.api.retry import RetryPolicy
from rambla_ray.actors.api.slow_calls import SlowCalls
from rambla_ray.actors.model import Emit, Model, RunContext
from rambla_ray.config.model import ModelParams
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.errors import FATAL, RETRYABLE, CallError, Draining, ErrorKind, RamblaError
from rambla_ray.schema import Request, Response, Try

REASON_CHARACTERS = 160  # The reason of an attempt is cut to this length.
TURNS = 2  # An answer waits so many turns of the event loop, in which calls that got its slot are sent.
DEFAULT_PAUSE_S = 1.0  # Those who share a rate pause so long after a 429 that does not say how long.
# Tokens reserved for a call that ends in one of these are not given back: the endpoint may have charged for it, and a
# 429 shows that the endpoint counts differently, which keeping the reservation makes up for.
KEPT = frozenset(
    {ErrorKind.TIMEOUT, ErrorKind.CONNECTION, ErrorKind.GARBAGE, ErrorKind.OVERSIZED, ErrorKind.RATE_LIMITED}
)


class BaseAPIModel(Model):
    """A model behind an endpoint. A subclass gives `scope`, `identity`, and `call`: one attempt, no retries."""

    retry: ClassVar[RetryPolicy] = RetryPolicy()
    adaptive: ClassVar[bool] = True  # Without a rate, the number of calls in flight is found out by trying.

    def __init__(self, params: ModelParams, pool: Pool, rate: Rate | None) -> None:
        super().__init__(params, pool, rate)
        self._rate = rate or Rate()
        self._adapts = self.adaptive and not self._rate.is_set
        self._admission = Admission(pool.max_concurrency)
        self._talk: GovernorTalk | None = None
        if self._adapts or self._rate.is_set:
            client = GovernorClient(self.scope())
            self._talk = GovernorTalk(self._admission, client, pool.max_concurrency, self._rate, self._adapts)
        self._watch = EndpointWatch(self._endpoint, self._admission, self._rate.give_up_after_s)
        self._doubt = KeyDoubt()
        self._injects_faults = False
        self._slow = SlowCalls()  # They are asked a second time.

    def attach(self, context: RunContext) -> None:
        super().attach(context)
        self._admission.is_held = context.is_held
        self._admission.first_goes_alone = context.stops and self.Params.is_charged
        self._watch.notify = context.notify
        self._doubt.context = context
        if self._talk is not None:
            self._talk.notify = context.notify
        self._injects_faults = strikes_calls(context.chaos)

    @abstractmethod
    def scope(self) -> str:
        """What shares the limits: the endpoint, a space, and the *name* of the key."""

    @property
    def _endpoint(self) -> str:
        """The endpoint's name in messages."""
        return self.scope().partition(" ")[0].partition("?")[0]

    @abstractmethod
    async def call(self, request: Request) -> Response:
        """One attempt. Raises CallError; any other exception counts as a bug of the model's."""

    async def faulty_call(self, request: Request, fault: str) -> Response:
        """What `call` would do if a fault of `config.Chaos`, by its field's name, struck it; nothing is sent."""
        wait_s = drawn_wait_s() if fault == "http429" else None
        raise CallError(KIND_OF_FAULT[fault], f"made up by chaos.{fault}", retry_after_s=wait_s)

    def estimate_tokens(self, request: Request) -> int:
        """Tokens this request may cost, for the rate budget: about four characters each, and the longest answer."""
        return len(request.text) // 4 + 1 + self.max_answer_tokens(request)

    def drain(self) -> None:
        self._admission.close(Draining)
        self._doubt.drain()

    def resume(self) -> None:
        self._admission.resume()

    def pause(self, seconds: float) -> None:
        """Keep everybody who shares the endpoint's limit from calling: a reply says that it is used up."""
        self._watch.asked_to_wait(seconds)
        if self._talk is not None:
            self._talk.pause(seconds)

    async def generate(self, request: Request, emit: Emit | None = None) -> Response:
        trace = RequestTrace()
        self._doubt.asking += 1
        try:
            answer = await self._last_answer(request, trace)
            self._doubt.answer_came()
        finally:
            self._doubt.asking -= 1
            self._doubt.settle()
        for _ in range(TURNS):
            await asyncio.sleep(0)
        return replace(cut(answer), latency_s=trace.latency_s, trace=trace.snapshot())

    async def _last_answer(self, request: Request, trace: RequestTrace) -> Response:
        """The answer of the last attempt, which is the first that gives one."""
        try:
            try:
                return await self._attempt(request, trace, again=False)
            except CallError as error:
                return await self._try_again(request, trace, error)
        except CallError as error:
            last = await self._doubt.judge(error) if isinstance(error, Forbidden) else error
            last.trace = trace.snapshot()
            raise last from None
        except Draining:
            if trace.failed is None or not any(trace.charged):
                raise
            trace.failed.trace = trace.snapshot()  # It is not tried again, but what it has cost is not to be lost.
            raise trace.failed from None

    async def _try_again(self, request: Request, trace: RequestTrace, first: CallError) -> Response:
        """Attempt it again, as the policy says. Entered only after a first failure, since it costs 20 µs."""
        failed: CallError | None = first
        async for attempt in self.retry.retrying(trace.first_call, self._rate.give_up_after_s, self._admission.sleep):
            with attempt:
                if failed:
                    error, failed = failed, None
                    raise error
                return await self._attempt(request, trace, again=True)
        raise first  # Unreachable: the policy raises the last error.

    async def _attempt(self, request: Request, trace: RequestTrace, *, again: bool) -> Response:
        """One call, or two that race each other."""
        while trace.reserved < 1:  # What was reserved for it is spent.
            await self._reserve(trace)
        estimate = self.estimate_tokens(request)
        permit = await self._acquire(request, estimate, again=again)
        began = time.monotonic()
        if not trace.tries:
            trace.first_call = began
        self._doubt.calling += 1
        try:
            if self._slow.after_s is not None and not permit.is_probe:
                return await self._race(request, trace, estimate, permit)
            return await self._call(request, trace, permit)
        finally:
            trace.calling_s += time.monotonic() - began
            self._doubt.calling -= 1

    def _acquire(self, request: Request, estimate: int, *, again: bool = False) -> Coroutine[Any, Any, Permit]:
        if self._talk is not None:
            self._talk.start()
        self._watch.check(again=again)
        return self._admission.acquire(estimate, estimate - self.max_answer_tokens(request), again=again)

    async def _race(self, request: Request, trace: RequestTrace, estimate: int, permit: Permit) -> Response:
        """A call, and if it is slow a second one in a slot of its own: the first answer wins."""
        calls = [asyncio.create_task(self._call(request, trace, permit))]
        try:
            running: set[asyncio.Task[Response]]
            done, running = await asyncio.wait(calls, timeout=self._slow.after_s)
            if running and not self._admission.is_probing:
                calls.append(asyncio.create_task(self._second_call(calls[0], request, trace, estimate)))
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
            trace.tries.sort()

    async def _second_call(
        self, first: asyncio.Task[Response], request: Request, trace: RequestTrace, estimate: int
    ) -> Response:
        try:
            permit = await self._acquire(request, estimate) if await self._may_race(trace) else None
        except RamblaError:  # Admission is closed or the run is being stopped, but the first call goes on.
            permit = None
        if permit is None:
            await asyncio.wait([first])
            return first.result()
        if first.done() or permit.is_probe:  # It may have left the very slot that this call waited for.
            self._admission.release(permit, unused=True)
            await asyncio.wait([first])
            return first.result()
        trace.hedged += 1
        return await self._call(request, trace, permit)

    async def _may_race(self, trace: RequestTrace) -> bool:
        """Whether the run's budget bears a second call beside the first."""
        if trace.reserved < 2:
            await self._reserve(trace)
        return trace.reserved >= 2

    async def _reserve(self, trace: RequestTrace) -> None:
        """Ask the run's budget for one more call; it may not bear one yet. Raises Draining."""
        trace.reserved += await self.context.reserve()

    async def _call(self, request: Request, trace: RequestTrace, permit: Permit) -> Response:
        """One call, at whose end its permit is released."""
        at, began, answers = time.time(), time.monotonic(), self._watch.answers
        response: Response | None = None
        failed: CallError | None = None
        kind, reason, charged = "", "cancelled: the answer was not needed any more", 0
        try:
            async with asyncio.timeout(self._rate.timeout_s):
                if self._injects_faults and (fault := drawn_fault(self.context.chaos)):
                    response = await self.faulty_call(request, fault)
                else:
                    response = await self.call(request)
            reason = ""
            return response
        except TimeoutError:
            failed = CallError(ErrorKind.TIMEOUT, f"no reply from {self._endpoint} within {self._rate.timeout_s:g} s")
            kind, reason = failed.kind, str(failed)
            raise failed from None
        except CallError as error:
            failed, kind, reason = error, error.kind, str(error)
            charged = trace.charge(error)
            if charged:
                self.context.charge(error.prompt_tokens, error.completion_tokens)
            if error.kind in FATAL and self.context.stops and not isinstance(error, Forbidden):
                self._close(error)
            raise
        except Exception as error:
            kind, reason = ErrorKind.INTERNAL, f"{ErrorKind.INTERNAL}: {type(error).__name__}"
            raise
        finally:
            took_s = time.monotonic() - began
            trace.tries.append(Try(at, took_s, reason[:REASON_CHARACTERS]))
            if response is not None:
                trace.latency_s = took_s
                self._watch.answered()
                if self._rate.hedge:
                    self._slow.learn(took_s)
            else:
                self._watch.failed(failed, trace, permit, answers)
            if self._talk is not None:
                wait_s = failed.retry_after_s if failed is not None else None
                self._record(self._talk, permit, response, kind, wait_s, charged)
            self._admission.release(permit)

    def _record(
        self,
        talk: GovernorTalk,
        permit: Permit,
        response: Response | None,
        kind: str,
        requested_wait_s: float | None,
        charged: int,
    ) -> None:
        """Pass on what a call cost and what its end says about the endpoint; `kind` is empty without an error."""
        limited = kind == ErrorKind.RATE_LIMITED
        if requested_wait_s is None and limited and not self._adapts:
            requested_wait_s = DEFAULT_PAUSE_S
        if requested_wait_s:
            self.pause(requested_wait_s)
        used: int | None = charged
        if response is not None:
            used = response.prompt_tokens + response.completion_tokens or None
        elif not charged and (kind in KEPT or not kind):
            used = None
        talk.record(permit, used=used, answered=response is not None, troubled=kind in TROUBLE, limited=limited)

    def _close(self, fatal: CallError) -> None:
        """Let every other request end in the same error, which stops the run."""
        kind, message = fatal.kind, fatal.message
        self._admission.close(lambda: CallError(kind, message))
