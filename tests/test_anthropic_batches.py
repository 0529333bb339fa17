"""Anthropic's Message Batches: what is sent, what lines mean, and a batch that is found without a name there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import batch_models
import pytest
from anthropic_models import ask, build
from batch_models import MODEL, RUN, Asker, request_id
from batch_server import ClaudeBatches, ResponsesBatches, Script
from faults import Fault
from yarl import URL

from rambla_ray.actors.api.anthropic_batches import AnthropicBatches
from rambla_ray.actors.api.batch_http import BatchWire
from rambla_ray.actors.api.batch_provider import BatchLine
from rambla_ray.actors.api.http import HttpReply, Wire
from rambla_ray.config.sections import Rate
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.ledger.batches import BatchMark

hurried = batch_models.hurried
pytestmark = pytest.mark.usefixtures("hurried")
PROMPTS = ("Is it so?", "Is it refused?", "Is it late?")


def body(prompt: str) -> bytes:
    return json.dumps({"model": "c", "max_tokens": 10, "messages": [{"role": "user", "content": prompt}]}).encode()


RATE = Rate(give_up_after_s=2, timeout_s=5)
LINES = [BatchLine(request_id(prompt), body(prompt)) for prompt in PROMPTS]
Scenario = Callable[[AnthropicBatches], Coroutine[Any, Any, None]]


def mark(at: float = 0.0) -> BatchMark:
    return BatchMark.new(RUN, MODEL, [line.request_id for line in LINES], at)


def run(server: ClaudeBatches, scenario: Scenario) -> None:
    """A scenario with the batches of one model."""

    async def whole() -> None:
        await scenario(
            AnthropicBatches(
                BatchWire(URL(f"{server.base_url}/v1"), Wire(server.own_headers(), 1), lambda: server.key, 5, 1)
            )
        )

    asyncio.run(whole())


async def read(batches: AnthropicBatches, name: str) -> dict[str, HttpReply | None]:
    found: dict[str, HttpReply | None] = {}
    await batches.read(await batches.state(name), found.__setitem__)
    return found


def test_each_line_is_the_reply_that_a_live_call_would_get() -> None:
    async def scenario(batches: AnthropicBatches) -> None:
        name = await batches.create(mark(), LINES)
        state = await batches.state(name)
        assert (state.is_over, state.done, state.requests) == (True, 3, 3)
        answered, refused, late = [(await read(batches, name))[line.request_id] for line in LINES]
        assert answered is not None
        assert refused is not None
        assert answered.status == 200
        assert json.loads(answered.body)["content"][0]["type"] == "text"
        assert (refused.status, json.loads(refused.body)["error"]["type"]) == (400, "invalid_request_error")
        assert late is None

    with ClaudeBatches(Script(expires=("late",)), faults=[Fault("context_length", match="refused")]) as server:
        run(server, scenario)
        (batch,) = server.batches.values()
    assert [line["params"] for line in batch.lines] == [json.loads(line.body) for line in LINES]


def test_a_batch_that_goes_on_can_be_cancelled_and_has_what_it_did() -> None:
    async def scenario(batches: AnthropicBatches) -> None:
        name = await batches.create(mark(), LINES)
        assert not (await batches.state(name)).is_over
        await batches.cancel(name)
        assert [reply is not None for reply in (await read(batches, name)).values()] == [True, False, True]

    with ClaudeBatches(Script(takes_s=3600)) as server:
        run(server, scenario)


def test_a_batch_is_found_by_its_time_its_number_of_requests_and_its_lines() -> None:
    async def scenario(batches: AnthropicBatches) -> None:
        ours = mark(at=0.0)
        assert await batches.find(ours) == ""
        name = await batches.create(ours, LINES)
        other = [replace_id(line, "other") for line in LINES]
        await batches.create(mark(), other)
        await batches.create(mark(), LINES[:2])
        assert await batches.find(ours) == name
        assert await batches.find(replace(ours, at=4e9)) == ""

    with ClaudeBatches() as server:
        run(server, scenario)


def replace_id(line: BatchLine, prefix: str) -> BatchLine:
    return line._replace(request_id=request_id(prefix + line.request_id))


def test_an_endpoint_without_them_says_so() -> None:
    async def scenario(batches: AnthropicBatches) -> None:
        with pytest.raises(CallError) as caught:
            await batches.create(mark(), LINES)
        assert caught.value.kind is ErrorKind.NOT_FOUND

    with ClaudeBatches(Script(status=404)) as server:
        run(server, scenario)


def test_claude_is_asked_in_a_batch_as_it_is_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ClaudeBatches() as server:
        monkeypatch.setenv("ANTHROPIC_API_KEY", server.key)
        live = [ask(build(server), prompt) for prompt in PROMPTS]
        asked = server.live_calls
        in_batch = Asker(build(server, rate=RATE), tmp_path).ask(*PROMPTS)
        assert (server.live_calls, len(server.batches)) == (asked, 1)
        assert server.bodies[:3] == server.bodies[3:]
        assert [server.seen[f"DELETE /v1/messages/batches/{name}"] for name in server.batches] == [1]
    for alone, together in zip(live, in_batch, strict=True):
        details = replace(together.details, batch="")
        assert (together.text, together.prompt_tokens, details) == (alone.text, alone.prompt_tokens, alone.details)
        assert together.details.batch == "batch_0"


@pytest.mark.parametrize("lines", [1, 2])
def test_a_run_that_dies_before_the_batchs_name_is_stored_finds_it(
    lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ClaudeBatches() as server:
        monkeypatch.setenv("ANTHROPIC_API_KEY", server.key)
        dead = Asker(build(server, rate=RATE), tmp_path)
        dead.book.dies_after = lines
        dead.ask(*PROMPTS)
        assert len(server.batches) == lines - 1
        ended = Asker(build(server, rate=RATE), tmp_path).ask(*PROMPTS)
        assert [response.details.batch for response in ended] == ["batch_0"] * 3
        assert (len(server.batches), server.live_calls) == (1, 0)


def test_a_batch_of_somebody_else_is_let_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was created just after a run died, and goes on when the next run looks for its own."""

    async def scenario(batches: AnthropicBatches) -> None:
        await batches.create(mark(), [replace_id(line, "other") for line in LINES])

    with ClaudeBatches(Script(takes_s=1.0)) as server:
        monkeypatch.setenv("ANTHROPIC_API_KEY", server.key)
        dead = Asker(build(server, rate=RATE), tmp_path)
        dead.book.dies_after = 1
        dead.ask(*PROMPTS)
        run(server, scenario)
        server.script.takes_s = 0.0
        ended = Asker(build(server, rate=RATE), tmp_path, max_wait_s=0.5).ask(*PROMPTS)
        others = server.batches["batch_0"]
        assert not others.is_cancelled
        assert server.seen["DELETE /v1/messages/batches/batch_0"] == 0
    assert [response.details.batch for response in ended] == ["batch_1"] * 3


def test_the_responses_api_has_batches_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ResponsesBatches() as server:
        monkeypatch.setenv("OPENAI_API_KEY", server.key)
        ended = Asker(build(server, rate=RATE), tmp_path).ask(*PROMPTS)
        assert [response.details.batch for response in ended] == ["batch_0"] * 3
        (batch,) = server.batches.values()
    assert batch.asked["endpoint"] == "/v1/responses"
