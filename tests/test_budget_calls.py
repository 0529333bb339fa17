"""Which calls of a request ask the run's budget: those beside the first that was let out, and those after a charge."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai_models
import pytest
from faults import Fault
from openai_models import IMPATIENT, Chat, build
from openai_server import OpenAIServer
from test_openai_rates import slow

from rambla_ray.actors.api.retry import RetryPolicy
from rambla_ray.actors.base import RunContext
from rambla_ray.config.sections import Rate
from rambla_ray.errors import CallError, Draining, ErrorKind
from rambla_ray.schema import Request

only_a_key = openai_models.only_a_key  # It runs by itself before each test of this file.

BROKEN = json.dumps(
    {
        "choices": [{"finish_reason": "abort", "message": {"content": "Yes, bec"}}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 10},
    }
).encode()
CHARGED = Fault("reply", body=BROKEN, times=2)


class Hasty(Chat):
    retry = RetryPolicy(attempts=5, first_pause_s=0.001, longest_pause_s=0.001)


class Purse:
    """A run's budget that says what it is told to; None is the end of the run."""

    def __init__(self, *replies: bool | None) -> None:
        self.replies = list(replies)
        self.charged: list[tuple[int, int]] = []

    @property
    def context(self) -> RunContext:
        return RunContext(charge=lambda *tokens: self.charged.append(tokens), reserve=self.reserve)

    async def reserve(self) -> bool:
        reply = self.replies.pop(0)
        if reply is None:
            raise Draining
        return reply


@pytest.mark.parametrize(
    ("fault", "replies", "charged"),
    [
        (Fault("500", times=3), [], 0),  # It was not charged for: what was reserved is the next attempt's.
        (Fault("429", times=3, retry_after=0.001), [], 0),
        (CHARGED, [True, True], 2),
        (CHARGED, [False, False, True, False, True], 2),  # There is no room at first.
    ],
    ids=["500", "429", "charged", "charged, no room"],
)
def test_an_attempt_after_one_that_was_charged_waits_for_the_budget(
    fault: Fault, replies: list[bool | None], charged: int
) -> None:
    purse = Purse(*replies)
    with OpenAIServer(answer=str.upper, faults=[fault]) as server:
        model = build(server, Hasty, rate=IMPATIENT)
        model.attach(purse.context)
        assert asyncio.run(model.generate(Request("hello"))).text == "HELLO"
    assert (purse.replies, purse.charged) == ([], [(30, 10)] * charged)


def test_what_was_charged_is_not_lost_when_the_budget_bears_no_other_attempt() -> None:
    purse = Purse(True, False, None)
    with OpenAIServer(faults=[CHARGED]) as server:
        model = build(server, Hasty, rate=IMPATIENT)
        model.attach(purse.context)
        with pytest.raises(CallError) as failed:
            asyncio.run(model.generate(Request("hello")))
        assert len(server.requests) == 2
    trace = failed.value.trace
    assert (trace.attempts, trace.failed_prompt_tokens, trace.failed_completion_tokens) == (2, 60, 20)
    assert failed.value.kind in (ErrorKind.SERVER, ErrorKind.GARBAGE)


@pytest.mark.parametrize(("reply", "hedged"), [(True, 1), (False, 0), (None, 0)])
def test_a_second_call_beside_a_slow_one_is_made_where_the_budget_bears_it(reply: Any, hedged: int) -> None:
    purse = Purse(reply)
    with OpenAIServer() as server:
        model = build(server, rate=Rate(hedge=True))
        model.attach(purse.context)
        response = asyncio.run(slow(model, server))
    assert (response.trace.hedged, response.trace.attempts, purse.replies) == (hedged, 1 + hedged, [])
