"""What every model is, and what every API model shares: deadline, retries, rate, concurrency."""

from __future__ import annotations

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import tenacity
from pydantic import BaseModel, ConfigDict

from rambla_ray.actors.governor import RateLimit
from rambla_ray.config import Pool, Rate
from rambla_ray.errors import FATAL, RETRYABLE, CallError, ErrorKind
from rambla_ray.schema import Request, Response


class ModelParams(BaseModel):
    """Base of every model's `params`: closed, frozen, each field with a description."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Model(ABC):
    """One model in one actor. Subclasses say what their params are and how a request is answered.

    Args:
        params: this model's own, already checked.
        pool: resources and concurrency of one actor; `num_cpus` and `num_gpus` are settled.
        rate: the endpoint's limits; None for a model without any.
    """

    Params: ClassVar[type[ModelParams]]
    produces: ClassVar[Literal["text", "score"]] = "text"  # a score compares a request's two texts
    is_local: ClassVar[bool] = False  # runs on the cluster's own CPUs and GPUs

    def __init__(self, params: ModelParams, pool: Pool, rate: Rate | None) -> None:
        self.pool = pool
        self.rate = rate

    @classmethod
    def settle(cls, params: Any) -> Any:
        """`params` with what comes from the environment filled in, on the driver, so that a run explains itself."""
        return params

    @classmethod
    def preflight(cls, params: Any, *, same_machine: bool) -> None:
        """Check on the driver what can be checked without a call.

        Raises:
            UserError: a key or a file is missing. Files are looked for only if the model runs on this machine.
        """
        return None

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """Everything about this model that may change an answer, as JSON values."""

    def request_identity(self, request: Request) -> dict[str, object]:
        """Everything about this request, and this model, that may change the answer."""
        texts = {"prompt": request.prompt}
        return {**self.identity(), **texts, **({"pair": request.pair} if request.pair is not None else {})}

    @abstractmethod
    async def generate(self, request: Request) -> Response:
        """Answer one request. Raises CallError when there is no answer."""


@dataclass(frozen=True)
class RetryPolicy:
    """When a call is tried again.

    A 429 is repeated for as long as `rate_limited_for_s` of wall clock allow; other retryable errors (connection,
    timeout, 408, 409, 5xx, garbage) up to `attempts` calls, with exponential back-off and full jitter. A
    Retry-After from the endpoint goes before our own pause; one that would not end in time is not waited for.
    Anything else ends the sample at once.
    """

    attempts: int = 5
    rate_limited_for_s: float = 900.0
    first_pause_s: float = 0.5
    longest_pause_s: float = 30.0

    def retrying(self) -> tenacity.AsyncRetrying:
        """The policy as tenacity's value; one per request."""
        jitter = tenacity.wait_random_exponential(multiplier=self.first_pause_s, max=self.longest_pause_s)
        other_failures = 0

        def wait(state: tenacity.RetryCallState) -> float:
            error = _error_of(state)
            return jitter(state) if error.retry_after_s is None else error.retry_after_s

        def give_up(state: tenacity.RetryCallState) -> bool:
            nonlocal other_failures
            if (state.seconds_since_start or 0.0) + state.upcoming_sleep > self.rate_limited_for_s:
                return True
            if _error_of(state).kind == ErrorKind.RATE_LIMITED:
                return False
            other_failures += 1
            return other_failures >= self.attempts

        return tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, CallError) and error.kind in RETRYABLE),
            wait=wait,
            stop=give_up,
            reraise=True,
        )


def _error_of(state: tenacity.RetryCallState) -> CallError:
    error = state.outcome.exception() if state.outcome else None
    if not isinstance(error, CallError):  # `retry` above lets nothing else through
        raise TypeError(f"not a CallError: {error!r}")
    return error


class BaseAPIModel(Model):
    """A model behind an endpoint. A subclass gives `scope`, `identity`, and `call`: one attempt, no retries."""

    retry: ClassVar[RetryPolicy] = RetryPolicy()
    deadline_s: ClassVar[float] = 180.0  # of one attempt

    def __init__(self, params: ModelParams, pool: Pool, rate: Rate | None) -> None:
        super().__init__(params, pool, rate)
        self._slots = asyncio.Semaphore(pool.max_concurrency)
        self._limit = RateLimit(self.scope(), rate) if rate and rate.is_set else None
        self._fatal: CallError | None = None

    @abstractmethod
    def scope(self) -> str:
        """What shares a rate limit: the endpoint and the *name* of the key."""

    @abstractmethod
    async def call(self, request: Request) -> Response:
        """One attempt. Raises CallError; anything else it raises is taken for a fault of its own."""

    def estimate_tokens(self, request: Request) -> int:
        """Tokens this request may cost, for the rate budget: about four characters each, and the longest answer."""
        return len(request.prompt) // 4 + 1 + self.max_answer_tokens()

    def max_answer_tokens(self) -> int:
        """The longest answer that may come, in tokens."""
        return 0

    async def generate(self, request: Request) -> Response:
        began, calling, attempts = time.monotonic(), 0.0, 0
        try:
            async for attempt in self.retry.retrying():
                with attempt:
                    estimate = self.estimate_tokens(request)
                    if self._limit:
                        await self._limit.acquire(estimate)
                    async with self._slots:
                        if self._fatal:
                            raise CallError(self._fatal.kind, self._fatal.message)
                        attempts += 1
                        started = time.monotonic()
                        try:
                            response = await self._in_time(request)
                        except CallError as error:
                            if self._limit and error.kind == ErrorKind.RATE_LIMITED:
                                self._limit.penalise(error.retry_after_s)
                            raise
                        finally:
                            calling += time.monotonic() - started
                    if self._limit:
                        self._limit.settle(estimate, response.prompt_tokens + response.completion_tokens)
        except CallError as error:
            error.attempts = attempts
            if error.kind in FATAL:
                self._fatal = error
            raise
        return replace(
            response,
            attempts=attempts,
            latency_s=time.monotonic() - started,
            waited_s=max(0.0, time.monotonic() - began - calling),
        )

    async def _in_time(self, request: Request) -> Response:
        try:
            return await asyncio.wait_for(self.call(request), self.deadline_s)
        except TimeoutError:
            raise CallError(ErrorKind.TIMEOUT, f"no reply within {self.deadline_s:g} s") from None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long a reply asks us to wait: `Retry-After` in seconds or as an HTTP date. None if it does not say."""
    from email.utils import parsedate_to_datetime

    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
