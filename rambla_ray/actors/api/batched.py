"""A model whose requests go to its provider in batches."""

from __future__ import annotations

from dataclasses import replace

from rambla_ray.actors.api.answer_length import cut
from rambla_ray.actors.api.batch_provider import BatchLine
from rambla_ray.actors.api.batch_queue import BatchQueue
from rambla_ray.actors.api.batch_run import BatchResult
from rambla_ray.actors.api.engine import REASON_CHARACTERS
from rambla_ray.actors.api.forbidden import Forbidden
from rambla_ray.actors.api.http_model import HTTPModel
from rambla_ray.actors.model import Emit, Model, RunContext, Size
from rambla_ray.config.sections import Batch, Rate
from rambla_ray.errors import RETRYABLE, CallError, ErrorKind
from rambla_ray.schema import NO_CALL, CallTrace, Request, Response, Try


class BatchedModel(Model):
    """Another model, which is asked in batches, and live for what those do not answer, if `terms` say so.

    What it is, what its requests are and what its replies mean is the other's affair.

    Args:
        live: the other model.
        terms: how long a batch is waited for, and what becomes of what it does not answer.
    """

    def __init__(self, live: HTTPModel, terms: Batch) -> None:
        super().__init__(live.params, live.pool, live.rate)
        self._live, self._terms = live, terms
        self._queue: BatchQueue | None = None

    def attach(self, context: RunContext) -> None:
        super().attach(context)
        self._live.attach(context)
        if context.batches is not None:
            self._queue = BatchQueue(
                *(self._live.batches(), context.batches, self._terms),
                *((self._live.rate or Rate()).give_up_after_s, context.notify),
            )

    def identity(self) -> dict[str, object]:
        return self._live.identity()

    def request_identity(self, request: Request) -> dict[str, object]:
        return self._live.request_identity(request)

    def max_answer_tokens(self, request: Request) -> int:
        return self._live.max_answer_tokens(request)

    def size(self, request: Request) -> Size:
        return self._live.size(request)

    def drain(self) -> None:
        self._live.drain()
        if self._queue is not None:
            self._queue.drain()

    def resume(self) -> None:
        self._live.resume()

    async def settle(self) -> None:
        if self._queue is not None:
            await self._queue.settle()

    async def generate(self, request: Request, emit: Emit | None = None) -> Response:
        if self._queue is None or self.context.batches is None:
            return await self._live.generate(request, emit)
        line = BatchLine(self.context.batches.asked(), self._live.body(request))
        result = await self._queue.ask(line)
        try:
            return self._answer(request, result)
        except CallError as error:
            if self._terms.then == "fail" or error.kind not in RETRYABLE:
                raise
            return await self._live_answer(request, error.trace)

    def _answer(self, request: Request, result: BatchResult) -> Response:
        """The answer in what came of a request. Raises CallError, whose trace says whether it was asked."""
        if result.reply is None:
            error = CallError(ErrorKind.TIMEOUT, result.why)
            error.trace = NO_CALL
            raise error
        try:
            response = self._live.read_reply(request, result.reply)
        except CallError as failed:
            # A key that was rejected gets no batch: it is this prompt that is forbidden.
            error = failed.as_error(ErrorKind.REFUSED) if isinstance(failed, Forbidden) else failed
            error.trace = _trace(result, str(error)[:REASON_CHARACTERS], error)
            raise error from None
        response = cut(response)
        return replace(
            response,
            latency_s=result.took_s,
            trace=_trace(result),
            details=replace(response.details, batch=result.batch),
        )

    async def _live_answer(self, request: Request, before: CallTrace) -> Response:
        """The answer of a live call; what was tried in the batch stands before it in its trace.

        What the budget holds for the call in the batch, at the batch's price, is let go for what a live one may cost.
        """
        self.context.charge(before.failed_prompt_tokens, before.failed_completion_tokens)
        while not await self.context.reserve():
            pass  # It waits a moment each time.
        try:
            response = await self._live.generate(request)
        except CallError as error:
            error.trace = _joined(before, error.trace)
            raise
        return replace(response, trace=_joined(before, response.trace))


def _trace(result: BatchResult, reason: str = "", error: CallError | None = None) -> CallTrace:
    """How the one call of a request in a batch went."""
    cost = (error.prompt_tokens, error.completion_tokens) if error else (0, 0)
    return CallTrace(0.0, 1, 0, (Try(result.began, result.took_s, reason),), *cost)


def _joined(first: CallTrace, then: CallTrace) -> CallTrace:
    """The trace of a request that was tried in a batch, and then live."""
    return CallTrace(
        first.waited_s + then.waited_s,
        first.attempts + then.attempts,
        then.hedged,
        first.tries + then.tries,
        first.failed_prompt_tokens + then.failed_prompt_tokens,
        first.failed_completion_tokens + then.failed_completion_tokens,
    )
