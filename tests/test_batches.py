"""Batches of a provider: what comes of each request, whatever becomes of its batch, and what is paid for it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import batch_models
import pytest
from batch_models import Asker
from batch_server import BatchServer, Script
from faults import Fault
from openai_models import Completion, Embeddings
from openai_server import default_answer

from rambla_ray.actors.api import batch_run
from rambla_ray.actors.api.batch_provider import Limits
from rambla_ray.actors.api.openai_batches import OpenAIBatches
from rambla_ray.errors import CallError, Draining, ErrorKind
from rambla_ray.schema import Response

hurried, only_a_key = batch_models.hurried, batch_models.only_a_key
pytestmark = pytest.mark.usefixtures("hurried")
PROMPTS = [f"Is it so, number {number}?" for number in range(6)]


def texts(ended: list[Any]) -> list[str]:
    return [response.text if isinstance(response, Response) else f"{response!r}" for response in ended]


@pytest.fixture
def answers() -> list[str]:
    return [default_answer(prompt, "gpt-4", 0.0) for prompt in PROMPTS]


def paid(server: BatchServer) -> int:
    return sum(server.snapshot()["per_prompt"].values())


WHAT_GOES_WRONG = {
    "nothing": (Script(), [], 0),
    "a look fails": (Script(polls=[429, 500, 503, 200, 500]), [], 0),
    "it is made, and the reply is an error": (Script(creations=[500]), [], 0),
    "results are backwards, twice, and among what is none": (Script(is_messy=True), [], 0),
    "some requests are not asked": (Script(expires=("number 1?", "number 4?")), [], 2),
    "a line fails": (Script(), [Fault("500", match="number 2?", times=1)], 1),
    "a line gets a 429": (Script(), [Fault("429", match="number 2?", times=1)], 1),
    "a line is garbage": (Script(), [Fault("no_choices", match="number 2?", times=1)], 1),
    "a request has no line": (Script(missing=(batch_models.request_id(PROMPTS[3]),)), [], 1),
}


@pytest.mark.parametrize("name", WHAT_GOES_WRONG)
def test_every_request_has_its_answer_and_one_batch_is_made(name: str, tmp_path: Path, answers: list[str]) -> None:
    script, faults, live = WHAT_GOES_WRONG[name]
    with BatchServer(script, faults=faults) as server:
        asker = Asker(server, tmp_path)
        ended = asker.ask(*PROMPTS)
        assert texts(ended) == answers
        assert (len(server.batches), server.live_calls) == (1, live)
    in_batch = [response for response in ended if response.details.batch == "batch_0"]
    assert len(in_batch) == len(PROMPTS) - live
    assert {response.trace.attempts for response in in_batch} == {1}
    assert not asker.book.ledger.batches


FAILS = {
    "a line fails": (Script(), Fault("500"), ErrorKind.SERVER, 1),
    "a line gets a 429": (Script(), Fault("429"), ErrorKind.RATE_LIMITED, 1),
    "a request is not asked": (Script(expires=("number",)), Fault("none"), ErrorKind.TIMEOUT, 0),
}


@pytest.mark.parametrize("name", FAILS)
def test_what_a_batch_does_not_answer_fails_where_that_is_asked_for(name: str, tmp_path: Path) -> None:
    script, fault, kind, attempts = FAILS[name]
    with BatchServer(script, faults=[fault]) as server:
        (error,) = Asker(server, tmp_path, then="fail").ask(PROMPTS[0])
        assert (error.kind, error.trace.attempts, server.live_calls) == (kind, attempts, 0)


@pytest.mark.parametrize("then", ["live", "fail"])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [("context_length", ErrorKind.TOO_LONG), ("content_filter", ErrorKind.REFUSED), ("quota", ErrorKind.QUOTA)],
)
def test_an_error_that_no_other_call_would_escape_is_the_end_of_a_request(
    fault: Any, kind: ErrorKind, then: str, tmp_path: Path
) -> None:
    with BatchServer(faults=[Fault(fault, match="number 0")]) as server:
        error, answer = Asker(server, tmp_path, then=then).ask(*PROMPTS[:2])
        assert (error.kind, error.trace.attempts, server.live_calls) == (kind, 1, 0)
        assert isinstance(answer, Response)


def test_an_attempt_in_a_batch_stands_before_the_live_ones(tmp_path: Path) -> None:
    with BatchServer(faults=[Fault("500", times=2)]) as server:
        (answer,) = Asker(server, tmp_path).ask(PROMPTS[0])
    assert answer.trace.attempts == len(answer.trace.tries) == 3
    assert [bool(attempt.reason) for attempt in answer.trace.tries] == [True, True, False]


@pytest.mark.parametrize(
    ("script", "faults"),
    [(Script(expires=("number",)), []), (Script(), [Fault("500", times=1)])],
    ids=["expires", "500"],
)
def test_a_live_call_has_its_own_place_in_the_budget_after_that_of_the_batch_is_let_go(
    script: Script, faults: list[Fault], tmp_path: Path
) -> None:
    with BatchServer(script, faults=faults) as server:
        asker, asked = Asker(server, tmp_path), []

        async def reserve() -> bool:
            assert server.live_calls == 0
            asked.append("reserve")
            return len(asked) == 4

        charge = lambda *tokens: asked.append(tokens)  # noqa: E731
        asker.model.attach(replace(asker.model.context, charge=charge, reserve=reserve))
        (answer,) = asker.ask(PROMPTS[0])
        assert isinstance(answer, Response)
        assert server.live_calls == 1
    assert asked == [(0, 0), "reserve", "reserve", "reserve"]


def test_a_batch_that_takes_too_long_is_cancelled_and_what_it_did_is_taken(tmp_path: Path, answers: list[str]) -> None:
    with BatchServer(Script(takes_s=3600)) as server:
        asker = Asker(server, tmp_path, max_wait_s=0.2)
        assert texts(asker.ask(*PROMPTS)) == answers
        assert (len(server.batches), server.live_calls, paid(server)) == (1, 3, 6)
    assert asker.notes[1:] == [
        "batch batch_0 has not ended within batch.max_wait_s=0.2, and is cancelled: what it has is taken",
        "batch batch_0 ended as cancelled, with replies to 3 of 6 requests",
    ]


@pytest.mark.parametrize("then", ["live", "fail"])
def test_a_batch_that_does_not_end_though_it_is_cancelled_is_given_up(
    then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_run, "LEAST_CANCEL_S", 0.2)
    with BatchServer(Script(takes_s=3600, cannot_cancel=True)) as server:
        ended = Asker(server, tmp_path, max_wait_s=0.2, then=then).ask(*PROMPTS)
        assert server.live_calls == (6 if then == "live" else 0)
    assert [isinstance(end, Response) for end in ended] == [then == "live"] * 6


def test_a_provider_that_cannot_be_reached_for_longer_than_a_batch_may_take_fails_no_request(
    tmp_path: Path, answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_run, "LEAST_CANCEL_S", 0.2)
    with BatchServer(Script(polls=[503] * 1000)) as server:
        errors = Asker(server, tmp_path, max_wait_s=0.2).ask(*PROMPTS)
        assert {error.kind for error in errors} == {ErrorKind.LOAD}
        server.script.polls = []
        assert texts(Asker(server, tmp_path).ask(*PROMPTS)) == answers
        assert (len(server.batches), server.live_calls) == (1, 0)


def test_a_batch_is_split_at_the_providers_limits(
    tmp_path: Path, answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with BatchServer() as server:
        monkeypatch.setattr(OpenAIBatches, "limits", Limits(lines=4, size=10**6))
        assert texts(Asker(server, tmp_path).ask(*PROMPTS)) == answers
        assert sorted(len(batch.lines) for batch in server.batches.values()) == [2, 4]
        monkeypatch.setattr(OpenAIBatches, "limits", Limits(lines=4, size=len(server.files["file-0"]) // 2))
        Asker(server, tmp_path).ask("One more of them?", "And another one?", "And one more yet?")
        assert len(server.batches) == 4


@pytest.mark.parametrize("kind", [Completion, Embeddings])
def test_the_other_apis_have_batches_too(kind: type[Any], tmp_path: Path) -> None:
    with BatchServer() as server:
        asker = Asker(server, tmp_path, kind=kind)
        ended = asker.ask(*PROMPTS[:2])
        assert [response.details.batch for response in ended] == ["batch_0"] * 2
        assert (len(server.batches), server.live_calls) == (1, 0)


@pytest.mark.parametrize("status", [404, 405])
def test_an_endpoint_without_batches_is_one_line_and_nothing_is_paid(status: int, tmp_path: Path) -> None:
    with BatchServer(Script(status=status)) as server:
        errors = Asker(server, tmp_path).ask(*PROMPTS)
        assert {error.kind for error in errors} == {ErrorKind.LOAD}
        assert len({error.message for error in errors}) == 1
        assert "the endpoint has no batch API (HTTP" in errors[0].message
        assert (paid(server), server.batches) == (0, {})


def test_a_batch_that_is_refused_as_a_whole_is_one_line_and_the_next_run_sends_another(tmp_path: Path) -> None:
    with BatchServer(Script(refusal="Enqueued token limit reached.")) as server:
        errors = Asker(server, tmp_path).ask(*PROMPTS)
        reason = "batch: the provider refuses batch batch_0: Enqueued token limit reached. (line 1)"
        assert {error.message for error in errors} == {reason}
        server.script.refusal = ""
        assert all(isinstance(response, Response) for response in Asker(server, tmp_path).ask(*PROMPTS))
        assert (len(server.batches), paid(server)) == (2, 6)


async def stopped(asker: Asker) -> list[Any]:
    """What becomes of the prompts when the run is stopped once their batch was sent."""
    asking = asyncio.create_task(asker.ask_all(PROMPTS))
    while not any("was sent" in note for note in asker.notes):
        await asyncio.sleep(0.01)
    asker.model.drain()
    return await asking


def test_a_run_that_is_stopped_leaves_its_batch_and_the_next_one_attaches(tmp_path: Path, answers: list[str]) -> None:
    with BatchServer(Script(takes_s=3600)) as server:
        first = Asker(server, tmp_path)
        assert all(isinstance(ended, Draining) for ended in asyncio.run(stopped(first)))
        assert first.notes[-1] == "1 batch goes on at the provider; the same command takes the answers from there"
        server.batches["batch_0"].ends_at = 0
        second = Asker(server, tmp_path, run="another")
        assert texts(second.ask(*PROMPTS)) == answers
        assert (len(server.batches), server.live_calls, paid(server)) == (1, 0, 6)
    assert second.notes[0] == "batch batch_0 goes on, with 6 requests of this run"


def test_a_batch_that_is_found_long_after_its_time_is_cancelled_and_what_it_did_is_taken(
    tmp_path: Path, answers: list[str]
) -> None:
    with BatchServer(Script(takes_s=3600)) as server:
        first = Asker(server, tmp_path)
        asyncio.run(stopped(first))
        (mark,) = first.book.ledger.batches.among([batch_models.request_id(PROMPTS[0])])
        asyncio.run(first.book.write(replace(mark, created=1.0).line_of("batch", "created")))
        assert texts(Asker(server, tmp_path).ask(*PROMPTS)) == answers
        assert (len(server.batches), server.live_calls, paid(server)) == (1, 3, 6)


def test_a_batch_that_vanishes_at_the_provider_is_one_line_and_the_next_run_sends_another(
    tmp_path: Path, answers: list[str]
) -> None:
    with BatchServer(Script(takes_s=3600)) as server:
        server.on_reply = lambda what: server.batches.clear() if what == "POST /v1/batches" else None
        errors = Asker(server, tmp_path).ask(*PROMPTS)
        reason = "batch: the provider has batch batch_0 no more; the same command sends another"
        assert {error.message for error in errors} == {reason}
        server.on_reply, server.script.takes_s = lambda what: None, 0.0
        assert texts(Asker(server, tmp_path).ask(*PROMPTS)) == answers
        assert (server.live_calls, paid(server)) == (0, 6)


# After so many lines about its batch, the run is dead: what it has written, and whether the batch was made.
DEATHS = [(0, False), (1, False), (2, True), (3, True)]


@pytest.mark.parametrize(("lines", "is_made"), DEATHS)
def test_a_run_that_dies_at_any_moment_pays_once(
    lines: int, is_made: bool, tmp_path: Path, answers: list[str]
) -> None:
    with BatchServer() as server:
        dead = Asker(server, tmp_path)
        dead.book.dies_after = lines
        ended = dead.ask(*PROMPTS)
        if lines < 3:
            assert all(isinstance(error, CallError) for error in ended)
        assert len(server.batches) == is_made
        alive = Asker(server, tmp_path)
        if lines < 3:
            assert texts(alive.ask(*PROMPTS)) == answers
        assert (len(server.batches), server.live_calls, paid(server)) == (1, 0, 6)
        assert not alive.book.ledger.batches


def test_what_failed_in_a_batch_is_asked_again_by_the_next_run(tmp_path: Path) -> None:
    with BatchServer(faults=[Fault("500", times=1)]) as server:
        (error,) = Asker(server, tmp_path, then="fail").ask(PROMPTS[0])
        assert error.kind is ErrorKind.SERVER
        (answer,) = Asker(server, tmp_path, then="fail").ask(PROMPTS[0])
        assert (answer.details.batch, len(server.batches)) == ("batch_1", 2)


def test_a_batch_that_the_provider_no_longer_knows_is_sent_again(tmp_path: Path, answers: list[str]) -> None:
    with BatchServer() as server:
        dead = Asker(server, tmp_path)
        dead.book.dies_after = 3
        mark = dead.book.new(map(batch_models.request_id, PROMPTS))
        asyncio.run(dead.book.write(mark.first_line()))
        asyncio.run(dead.book.write(replace(mark, batch="batch_gone", created=1.0).line_of("batch", "created")))
        alive = Asker(server, tmp_path)
        assert texts(alive.ask(*PROMPTS)) == answers
        assert (list(server.batches), paid(server)) == (["batch_0"], 6)


def test_progress_and_notes_say_how_far_batches_are(tmp_path: Path) -> None:
    with BatchServer() as server:
        asker = Asker(server, tmp_path)
        asker.ask(*PROMPTS)
    assert asker.notes == [
        "batch batch_0 of 6 requests was sent",
        "batch batch_0 ended as completed, with replies to 6 of 6 requests",
    ]
    assert (1, 0, 6) in asker.book.counts
    assert asker.book.counts[-1] == (0, 0, 0)


def test_files_are_deleted_once_the_answers_are_stored(tmp_path: Path) -> None:
    with BatchServer() as server:
        Asker(server, tmp_path).ask(*PROMPTS)
        assert sorted(server.deleted) == sorted(server.files)
