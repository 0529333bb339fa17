"""The tokens of a key command in an actor: when each is replaced, by how many commands, and what a failure does."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Sequence

import pytest
from batch_server import BatchServer
from waiting import DEADLINE_S
from yarl import URL

from rambla_ray.actors.api.batch_http import BatchWire
from rambla_ray.actors.api.batch_provider import BatchLine
from rambla_ray.actors.api.http import Wire
from rambla_ray.actors.api.key_tokens import KeyTokens
from rambla_ray.actors.api.openai_batches import OpenAIBatches
from rambla_ray.config.printed_token import Token
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.ledger.batches import BatchMark

FAILS = CallError(ErrorKind.AUTH, "az ended with status 1")
Outcome = Token | CallError


class Commands:
    """Stands for a command that is run again and again: what each run gives, and how many there were.

    From the second on, each run waits until it is let go on; after the last outcome, every run has that one.
    """

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes: Sequence[Outcome] = outcomes
        self.runs = 0
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self) -> Token:
        self.runs += 1
        if self.runs > 1:
            assert self.go_on.wait(DEADLINE_S)
        outcome = self.outcomes[min(self.runs, len(self.outcomes)) - 1]
        if isinstance(outcome, CallError):
            raise outcome
        return outcome


def tokens(commands: Commands) -> KeyTokens:
    return KeyTokens(commands, lambda token: {"Authorization": f"Bearer {token}"})


def lasting(text: str, seconds: float) -> Token:
    return Token(text, time.time() + seconds)


async def ended(held: KeyTokens, true: Callable[[], bool]) -> None:
    """Wait until what replaces a token in the background has done so."""
    async with asyncio.timeout(DEADLINE_S):
        while not true():
            await held.headers()
            await asyncio.sleep(0.005)


def test_a_token_that_holds_is_used_again_without_a_command() -> None:
    commands = Commands(lasting("one", 3600))

    async def many() -> set[int]:
        held = tokens(commands)
        return {id(await held.headers()) for _ in range(100)}

    assert len(asyncio.run(many())) == 1  # Nothing is made anew for a call.
    assert commands.runs == 1


def test_a_token_that_never_expires_is_never_replaced_unasked() -> None:
    commands = Commands(Token("one", math.inf))
    asyncio.run(tokens(commands).headers())
    assert commands.runs == 1


def test_calls_go_on_with_the_present_token_while_one_command_replaces_it() -> None:
    commands = Commands(lasting("one", 3600), lasting("two", 3600))

    async def late() -> None:
        held = tokens(commands)
        held.replace_at = 0.0  # as after most of its time
        commands.go_on.clear()
        answers = await asyncio.gather(*(held.headers() for _ in range(64)))
        assert {headers["Authorization"] for headers in answers} == {"Bearer one"}
        commands.go_on.set()
        await ended(held, lambda: held.token.text == "two")

    asyncio.run(late())
    assert commands.runs == 2


def test_it_is_replaced_before_it_expires() -> None:
    for lasts_s, before_s in ((0.9, 0.3), (90, 30), (3600, 300), (86400, 300)):
        held = tokens(Commands(lasting("one", lasts_s)))
        assert held.token.expires_at - held.replace_at == pytest.approx(before_s, abs=0.2)


@pytest.mark.parametrize("calls", [1, 64])
def test_calls_wait_for_one_command_when_the_token_has_expired(calls: int) -> None:
    commands = Commands(lasting("one", -1), lasting("two", 3600))

    async def all_at_once() -> set[str]:
        held = tokens(commands)
        return {headers["Authorization"] for headers in await asyncio.gather(*(held.headers() for _ in range(calls)))}

    assert asyncio.run(all_at_once()) == {"Bearer two"}
    assert commands.runs == 2


def test_a_command_that_fails_is_tried_again_while_the_token_holds() -> None:
    commands = Commands(lasting("one", 3600), FAILS, FAILS, lasting("two", 3600))

    async def patient() -> None:
        held = tokens(commands)
        for failed in (1, 2):
            held.replace_at = 0.0  # as after most of its time, and after each pause
            await ended(held, lambda: commands.runs > failed and held.replace_at > 0)  # noqa: B023 - it ends here
            assert (await held.headers())["Authorization"] == "Bearer one"
            assert held.replace_at > time.time() + 20  # It does not run with every call.
        held.replace_at = 0.0
        await ended(held, lambda: held.token.text == "two")

    asyncio.run(patient())
    assert commands.runs == 4


def test_after_it_has_expired_the_failure_is_every_calls() -> None:
    commands = Commands(lasting("one", -1), FAILS)

    async def all_at_once() -> list[object]:
        held = tokens(commands)
        first = await asyncio.gather(*(held.headers() for _ in range(9)), return_exceptions=True)
        return [*first, *await asyncio.gather(held.headers(), return_exceptions=True)]

    errors = asyncio.run(all_at_once())
    assert {str(error) for error in errors} == {"auth: az ended with status 1; the token before it has expired"}
    assert commands.runs == 2  # The call after them does not run it again at once.


@pytest.mark.parametrize("calls", [1, 64])
def test_of_many_calls_that_are_refused_one_replaces_the_token(calls: int) -> None:
    commands = Commands(Token("one"), Token("two"), Token("three"))

    async def all_at_once() -> set[str]:
        held = tokens(commands)
        refused = await held.headers()
        replaced = await asyncio.gather(*(held.headers_after(refused) for _ in range(calls)))
        return {headers["Authorization"] for headers in [*replaced, await held.headers_after(refused)]}

    assert asyncio.run(all_at_once()) == {"Bearer two"}
    assert commands.runs == 2


def test_a_refused_token_that_cannot_be_replaced_says_why() -> None:
    async def refused() -> None:
        held = tokens(Commands(Token("one"), FAILS))
        await held.headers_after(await held.headers())

    with pytest.raises(CallError, match="az ended with status 1; the token before it is refused") as caught:
        asyncio.run(refused())
    assert caught.value.kind == ErrorKind.AUTH


def test_a_call_that_is_cancelled_does_not_take_the_command_from_the_others() -> None:
    commands = Commands(lasting("one", -1), lasting("two", 3600))
    commands.go_on.clear()

    async def one_leaves() -> str:
        held = tokens(commands)
        calls = [asyncio.create_task(held.headers()) for _ in range(2)]
        await asyncio.sleep(0)
        calls[0].cancel()
        commands.go_on.set()
        return (await calls[1])["Authorization"]

    assert asyncio.run(one_leaves()) == "Bearer two"
    assert commands.runs == 2


def test_the_event_loop_goes_on_while_a_command_runs() -> None:
    commands = Commands(lasting("one", -1), lasting("two", 3600))
    commands.go_on.clear()

    async def beside() -> str:
        call = asyncio.create_task(tokens(commands).headers())
        async with asyncio.timeout(DEADLINE_S):
            while commands.runs < 2:  # It does not end before the loop has seen that it runs.
                await asyncio.sleep(0.005)
        commands.go_on.set()
        return (await call)["Authorization"]

    assert asyncio.run(beside()) == "Bearer two"


def test_another_event_loop_begins_anew() -> None:
    commands = Commands(lasting("one", 3600), lasting("two", 3600))
    held = tokens(commands)
    held.replace_at = 0.0
    commands.go_on.clear()
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(held.headers())["Authorization"] == "Bearer one"  # It has begun a command.
    commands.go_on.set()
    asyncio.run(ended(held, lambda: held.token.text == "two"))
    loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(loop)))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_without_a_first_token_there_is_nothing_to_hold() -> None:
    with pytest.raises(CallError, match="az ended with status 1"):
        tokens(Commands(FAILS))
    assert "one" not in repr(tokens(Commands(Token("one"))))


def test_the_input_of_a_batch_is_sent_whole_again_after_a_token_is_refused() -> None:
    lines = [BatchLine(f"{number:064x}", b'{"model":"m"}') for number in range(3)]

    async def upload(commands: Commands) -> str:
        wire = Wire({}, 1, None, tokens(commands))
        batches = OpenAIBatches(BatchWire(URL(server.base_url), wire, lambda: "", 5, 5), "/chat/completions")
        try:
            return await batches.upload(BatchMark.new("run", "m", [line.request_id for line in lines], 0.0), lines)
        finally:
            wire.close()

    with BatchServer() as server:
        commands = Commands(lasting("old", 600), lasting(server.key, 600))
        name = asyncio.run(upload(commands))
        assert [line[14:78].decode() for line in server.files[name].splitlines()] == [
            line.request_id for line in lines
        ]
        assert (commands.runs, len(server.files)) == (2, 1)
