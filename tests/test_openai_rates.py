"""Calls keep to rate limits, share the budget of a key, and are asked a second time when they are slow."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Coroutine
from typing import Any

import openai_models
from faults import Fault
from openai_models import IMPATIENT, Chat, Completion, CountsPauses, answer, ask, ask_in_turn, build, error, in_turn
from openai_server import OpenAIServer, prompt_sha

from rambla_ray.actors.api.rate_budget import BURST_S
from rambla_ray.actors.api.retry import RetryPolicy
from rambla_ray.actors.api.slow_calls import LEARN_AFTER
from rambla_ray.actors.base import RunContext
from rambla_ray.actors.openai import OpenAIModel
from rambla_ray.config.sections import Rate
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Request, Response

only_a_key = openai_models.only_a_key  # It runs by itself before each test of this file.


class TriesTwice(Chat):
    retry = RetryPolicy(attempts=2, first_pause_s=0.01, longest_pause_s=0.05)


def test_retry_after_is_waited_for_and_counted() -> None:
    with OpenAIServer(faults=[Fault("429", retry_after=0.3)]) as server:
        response = answer(build(server, TriesTwice), "hello")
        first, second = server.requests
    assert response.trace.attempts == 2
    assert response.trace.waited_s >= 0.3
    assert second.time - first.time >= 0.3


def test_rate_limits_do_not_use_up_the_attempts() -> None:
    with OpenAIServer(faults=[Fault("429", times=4, retry_after=0.01), Fault("500")]) as server:
        assert answer(build(server, TriesTwice), "hello").trace.attempts == 6


def test_a_rate_limit_that_stays_ends_as_rate_limited() -> None:
    with OpenAIServer(faults=[Fault("429", times=-1, retry_after=1 / 16)]) as server:
        failed = error(build(server, CountsPauses, rate=IMPATIENT))
        assert failed.kind == ErrorKind.RATE_LIMITED
        assert failed.trace.attempts == len(server.requests) == 17  # with 16 pauses of 1/16 s between them


def test_a_retry_after_beyond_the_allowed_time_is_not_waited_for() -> None:
    with OpenAIServer(faults=[Fault("429", times=-1, retry_after=3600)]) as server:
        failed = error(build(server, rate=IMPATIENT))
        assert (failed.kind, failed.trace.attempts, len(server.requests)) == (ErrorKind.RATE_LIMITED, 1, 1)


def test_a_pause_between_attempts_holds_no_slot() -> None:
    done = []

    async def note(model: OpenAIModel, prompt: str) -> None:
        await model.generate(Request(prompt))
        done.append(prompt)

    async def both(model: OpenAIModel) -> None:
        await asyncio.gather(note(model, "limited"), note(model, "free"))

    with OpenAIServer(faults=[Fault("429", match="limited")]) as server:
        asyncio.run(both(build(server, TriesTwice, at_once=1)))
        sent = [record.prompt_sha for record in server.requests]
    assert sent == [prompt_sha(prompt) for prompt in ("limited", "free", "limited")]
    assert done == ["free", "limited"]


def test_a_limit_used_up_is_waited_for_before_anything_else_is_sent() -> None:
    used_up = (("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", "400ms"))
    with OpenAIServer(faults=[Fault("none", match="one", headers=used_up)]) as server:
        ask_in_turn(build(server), "one", "two")
        first, second = server.requests
    assert second.time - first.time >= 0.4


def test_calls_stay_within_the_rate_of_all_models_that_share_a_key() -> None:
    prompts = [f"prompt {number}" for number in range(15)]

    async def both(models: list[OpenAIModel]) -> None:
        await asyncio.gather(*(model.generate(Request(prompt)) for model in models for prompt in prompts))

    with OpenAIServer() as server:
        rate = Rate(requests_per_minute=600)
        models = [build(server, rate=rate), build(server, Completion, rate=Rate(requests_per_minute=6000))]
        began = time.monotonic()
        asyncio.run(both(models))
        times = [record.time - began for record in server.requests]
        last_of_strict = max(record.time - began for record in server.requests if "chat" in record.path)
    assert len(times) == 30
    in_force = [at for at in times if at <= last_of_strict]
    assert len(in_force) > 15
    for count, at in enumerate(in_force):  # a call that comes late is no harm
        assert count <= 10 * (at + BURST_S)


def test_an_estimate_above_the_budget_is_told_once_and_sent() -> None:
    notes: list[str] = []
    with OpenAIServer(answer=str.upper) as server:
        model = build(server, rate=Rate(tokens_per_minute=1000))
        model.attach(RunContext(notes.append))
        first, second = ask_in_turn(model, "a" * 4000, "b" * 8000)
    assert (first.text, second.text) == ("A" * 4000, "B" * 8000)
    assert len(notes) == 1
    assert "tokens_per_minute=1000" in notes[0]


def test_prompts_that_an_endpoint_refuses_as_too_many_at_once_are_all_answered() -> None:
    prompts = [f"prompt {number}" for number in range(600)]
    with OpenAIServer(answer=str.upper, latency=0.02, at_once=10) as server:
        responses = ask(build(server, at_once=512), *prompts)
    assert [response.text for response in responses] == [prompt.upper() for prompt in prompts]


# Hedging


def warm_up(model: OpenAIModel) -> Coroutine[Any, Any, list[Any]]:
    """As many quick calls as it takes to know what is slow."""
    return in_turn(model, *(f"quick {number}" for number in range(LEARN_AFTER)))


def test_a_slow_call_is_asked_a_second_time_and_the_first_answer_wins() -> None:
    complaints: list[Any] = []

    async def hedged(model: OpenAIModel) -> Response:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        await warm_up(model)
        response = await model.generate(Request("hello"))
        gc.collect()
        return response

    with OpenAIServer(answer=str.upper, faults=[Fault("hang", match="hello")]) as server:
        response = asyncio.run(hedged(build(server, rate=Rate(hedge=True))))
        assert (response.text, response.trace.attempts, response.trace.hedged) == ("HELLO", 2, 1)
        assert [attempt.reason.partition(":")[0] for attempt in response.trace.tries] == ["cancelled", ""]
        assert len(server.requests) == LEARN_AFTER + 2
    assert complaints == []


async def slow(model: OpenAIModel, server: OpenAIServer) -> Response:
    """The answer to a call that takes longer than any before it."""
    await warm_up(model)
    server.latency = 0.3
    return await model.generate(Request("hello"))


def test_without_hedging_a_slow_call_is_waited_for() -> None:
    with OpenAIServer() as server:
        assert asyncio.run(slow(build(server), server)).trace.attempts == 1


def test_a_second_call_waits_for_a_slot_of_its_own() -> None:
    with OpenAIServer() as server:
        response = asyncio.run(slow(build(server, rate=Rate(hedge=True), at_once=1), server))
        assert (response.trace.attempts, response.trace.hedged, server.max_in_flight) == (1, 0, 1)


class LateAfterItsDouble(Chat):
    """The first call for "hello" passes its deadline, whatever that is, once the second has failed."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.second_failed = asyncio.Event()
        self.asked = 0

    async def call(self, request: Request) -> Response:
        self.asked += request.prompt == "hello"
        if request.prompt == "hello" and self.asked == 1:
            await self.second_failed.wait()
            raise TimeoutError
        try:
            return await super().call(request)
        except CallError:
            self.second_failed.set()
            raise


def test_when_both_calls_fail_the_request_is_tried_again() -> None:
    async def hedged(model: OpenAIModel) -> Response:
        await warm_up(model)
        return await model.generate(Request("hello"))

    with OpenAIServer(answer=str.upper, faults=[Fault("500", match="hello")]) as server:
        response = asyncio.run(hedged(build(server, LateAfterItsDouble, rate=Rate(hedge=True))))
    assert (response.text, response.trace.hedged) == ("HELLO", 1)
    assert [attempt.reason.partition(":")[0] for attempt in response.trace.tries] == ["timeout", "server", ""]
