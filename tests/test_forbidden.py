"""A 403: of one prompt that a filter turns down, or of the key; what others get decides which."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import openai_models
import pytest
from faults import Fault
from openai_models import ask, ask_in_turn, build, in_turn
from openai_server import OpenAIServer

from rambla_ray.actors.api.forbidden import MANY
from rambla_ray.actors.base import RunContext
from rambla_ray.actors.model import Answered
from rambla_ray.errors import Draining, ErrorKind
from rambla_ray.schema import Request

only_a_key = openai_models.only_a_key  # It runs by itself before each test of this file.

REFUSED, AUTH = ErrorKind.REFUSED, ErrorKind.AUTH
REASONS = json.dumps(
    {
        "error": {
            "code": 403,
            "message": "The model requires moderation. Your input was flagged.",
            "metadata": {"reasons": ["violence"], "flagged_input": "bad", "provider_name": "x"},
        }
    }
).encode()
PAGE = b"<!DOCTYPE html>\n<html><title>Attention Required!</title><body>You have been blocked.</body></html>"
PLAIN = b'{"error": {"message": "Forbidden"}}'
BODIES = {"reasons": REASONS, "page": PAGE, "plain": PLAIN}
every_body = pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())


def forbidding(body: bytes, match: str = "bad", **script: Any) -> OpenAIServer:
    """An endpoint that replies 403 to prompts with a word."""
    return OpenAIServer(answer=str.upper, faults=[Fault("reply", match, status=403, body=body, times=-1)], **script)


def kinds(ends: list[Any]) -> list[Any]:
    return [getattr(end, "kind", None) or end.text for end in ends]


@every_body
@pytest.mark.parametrize("at_once", [1, 64])
def test_the_first_reply_may_be_the_403_of_one_prompt(body: bytes, at_once: int) -> None:
    good = [f"prompt {number}" for number in range(6)]
    with forbidding(body, latency=0.01) as server:
        ends = ask(build(server, at_once=at_once), "bad", *good)
        assert kinds(ends) == [REFUSED, *map(str.upper, good)]
        assert (ends[0].trace.attempts, len(server.requests)) == (1, 7)
    assert ends[0].message.startswith("HTTP 403")


@every_body
def test_of_a_403_after_an_answer_only_that_prompt_is_refused(body: bytes) -> None:
    with forbidding(body) as server:
        assert kinds(ask_in_turn(build(server), "good", "bad", "good")) == ["GOOD", REFUSED, "GOOD"]


@every_body
def test_a_403_for_every_prompt_is_a_rejected_key(body: bytes) -> None:
    with forbidding(body, match="") as server:
        ends = ask(build(server), *(f"prompt {number}" for number in range(20)))
        assert kinds(ends) == [AUTH] * 20
        assert len(server.requests) == 20


@pytest.mark.parametrize(("body", "kind"), [(REASONS, REFUSED), (PAGE, AUTH), (PLAIN, AUTH), (b"", AUTH)])
def test_a_403_for_the_only_prompt_is_taken_by_its_words(body: bytes, kind: ErrorKind) -> None:
    with forbidding(body) as server:
        assert kinds(ask(build(server), "bad")) == [kind]


def test_a_key_that_the_endpoint_names_as_wrong_is_no_matter_of_the_prompt() -> None:
    body = b'{"error": {"message": "No.", "code": "invalid_api_key"}}'
    with forbidding(body, latency=0.01) as server:
        assert kinds(ask(build(server, at_once=1), "bad", "good")) == [AUTH, AUTH]


def knowing(answered: Answered) -> Callable[[], Awaitable[Answered]]:
    async def knows() -> Answered:
        return answered

    return knows


@pytest.mark.parametrize(
    ("answered", "body", "count", "kind"),
    [
        (Answered.NOW, PLAIN, 1, REFUSED),
        (Answered.NOW, PLAIN, MANY, REFUSED),
        (Answered.BEFORE, PLAIN, 1, REFUSED),
        (Answered.BEFORE, PLAIN, 3, AUTH),
        (Answered.BEFORE, PAGE, 3, REFUSED),
        (Answered.BEFORE, REASONS, 3, REFUSED),
        (Answered.BEFORE, REASONS, MANY, AUTH),
        (Answered.NEVER, REASONS, 2, AUTH),
    ],
)
def test_what_the_run_knows_decides_where_all_that_is_left_is_forbidden(
    answered: Answered, body: bytes, count: int, kind: ErrorKind
) -> None:
    with forbidding(body) as server:
        model = build(server)
        model.attach(RunContext(answered=knowing(answered)))
        assert kinds(ask(model, *(f"bad {number}" for number in range(count)))) == [kind] * count


def test_what_comes_while_the_run_is_asked_counts_too() -> None:
    async def scenario(server: OpenAIServer) -> list[Any]:
        model = build(server)
        asked, told = asyncio.Event(), asyncio.Event()

        async def knows() -> Answered:
            asked.set()
            await told.wait()
            return Answered.NEVER

        model.attach(RunContext(answered=knows))
        bad = asyncio.create_task(model.generate(Request("bad")))
        await asked.wait()
        good = asyncio.create_task(model.generate(Request("good")))
        await asyncio.sleep(0)
        told.set()
        return list(await asyncio.gather(bad, good, return_exceptions=True))

    with forbidding(PLAIN) as server:
        assert kinds(asyncio.run(scenario(server))) == [REFUSED, "GOOD"]


def test_a_key_that_is_withdrawn_is_noticed_after_many_403s_in_a_row() -> None:
    with forbidding(PLAIN) as server:
        model = build(server)

        async def scenario() -> list[Any]:
            (first,) = await in_turn(model, "good")
            prompts = [f"bad {number}" for number in range(2 * MANY)]
            asked = (model.generate(Request(prompt)) for prompt in prompts)
            return [first, *await asyncio.gather(*asked, return_exceptions=True)]

        ends = kinds(asyncio.run(scenario()))
    assert (ends[0], ends.count(REFUSED), ends.count(AUTH)) == ("GOOD", MANY - 1, MANY + 1)


def test_a_run_that_is_stopped_waits_for_no_verdict() -> None:
    async def scenario(server: OpenAIServer) -> list[Any]:
        model = build(server)
        calls = [asyncio.create_task(model.generate(Request(prompt))) for prompt in ("bad", "slow")]
        while [record.status for record in server.requests].count(403) < 1 or len(server.requests) < 2:
            await asyncio.sleep(0)
        model.drain()
        (end,) = await asyncio.gather(calls[0], return_exceptions=True)
        calls[1].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        return [end]

    with forbidding(PLAIN) as server:
        server.faults = [*server.faults, Fault("hang", "slow")]
        (end,) = asyncio.run(scenario(server))
    assert isinstance(end, Draining)
