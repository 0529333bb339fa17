"""Models behind an OpenAI-compatible endpoint, against real local servers."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import re
import struct
import threading
import time
import traceback
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.client import parse_headers
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import Any

import pytest
from openai_server import Fault, FaultKind, OpenAIServer, default_answer, embedding, prompt_sha
from pause_clock import PauseClockPolicy

from rambla_ray.actors.api.adaptive import START
from rambla_ray.actors.api.engine import HEDGE_AFTER
from rambla_ray.actors.api.http import requested_wait_s
from rambla_ray.actors.api.openai_params import PLAIN_URL
from rambla_ray.actors.api.rate_budget import BURST_S
from rambla_ray.actors.api.retry import RetryPolicy
from rambla_ray.actors.base import RunContext
from rambla_ray.actors.openai import OpenAIChat, OpenAICompletion, OpenAIEmbeddings, OpenAIModel
from rambla_ray.config.sections import Chaos, Pool, Rate
from rambla_ray.errors import FATAL, RETRYABLE, CallError, ErrorKind, UserError
from rambla_ray.schema import Request, Response, canonical_json

KEY = "sk-test"
AZURE = {"api_type": "azure", "api_version": "2024-02-01"}
QUICK = RetryPolicy(first_pause_s=0.01, longest_pause_s=0.05)


class Chat(OpenAIChat):
    retry = QUICK


class Completion(OpenAICompletion):
    retry = QUICK


class Embeddings(OpenAIEmbeddings):
    retry = QUICK


class Stubborn(Chat):
    retry = RetryPolicy(attempts=30, first_pause_s=0.001, longest_pause_s=0.01)


KINDS = [Chat, Completion, Embeddings]


@pytest.fixture(autouse=True)
def _only_a_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_BASE", "OPENAI_API_VERSION", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def params(kind: type[OpenAIModel] = Chat, **given: Any) -> Any:
    text = {} if issubclass(kind, OpenAIEmbeddings) else {"temperature": 0.0}
    return kind.Params(**{"engine": "gpt-4", **text, **given}).resolved()


def build(
    where: OpenAIServer | str,
    kind: type[OpenAIModel] = Chat,
    *,
    at_once: int = 64,
    rate: Rate | None = None,
    **given: Any,
) -> Any:
    url = where if isinstance(where, str) else where.azure_base if "api_version" in given else where.base_url
    return kind(params(kind, base_url=url, **given), Pool(max_concurrency=at_once), rate)


def ask(model: OpenAIModel, *prompts: str) -> list[Any]:
    """What became of the prompts, asked together: responses and exceptions."""

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(model.generate(Request(prompt)) for prompt in prompts), return_exceptions=True)

    return asyncio.run(all_at_once())


async def in_turn(model: OpenAIModel, *prompts: str) -> list[Any]:
    return [(await asyncio.gather(model.generate(Request(prompt)), return_exceptions=True))[0] for prompt in prompts]


def ask_in_turn(model: OpenAIModel, *prompts: str) -> list[Any]:
    return asyncio.run(in_turn(model, *prompts))


def answer(model: OpenAIModel, prompt: str) -> Response:
    return asyncio.run(model.generate(Request(prompt)))


def error(model: OpenAIModel, prompt: str = "hello") -> CallError:
    with pytest.raises(CallError) as caught:
        answer(model, prompt)
    return caught.value


@contextmanager
def endpoint(status: int, message: str = "") -> Iterator[tuple[str, list[Any]]]:
    """An endpoint that remembers bodies and replies with one error, `{key}` in its message being the key it got."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            key = self.headers["Authorization"].removeprefix("Bearer ")
            reply = json.dumps({"error": {"message": message.replace("{key}", key), "code": "invalid"}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *args: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", bodies
        finally:
            server.shutdown()
            thread.join()


# What is sent, what comes back


@pytest.mark.parametrize("where", [{}, AZURE], ids=["plain", "azure"])
@pytest.mark.parametrize("kind", [Chat, Completion])
def test_text_models_answer_with_the_engine_and_temperature_they_were_given(
    kind: type[OpenAIModel], where: dict[str, str]
) -> None:
    with OpenAIServer() as server:
        response = answer(build(server, kind, engine="gpt-x", temperature=0.3, **where), "Is this so?\nSay it.")
        assert response.text == default_answer("Is this so?\nSay it.", "gpt-x", 0.3)
        assert (response.finish_reason, response.trace.attempts) == ("stop", 1)
        assert (response.prompt_tokens, response.completion_tokens) == (5, len(response.text.split()))
        assert [record.model for record in server.requests] == ["gpt-x"]


@pytest.mark.parametrize("where", [{}, AZURE], ids=["plain", "azure"])
def test_embeddings_answer_with_the_vector_of_the_text_on_one_line(where: dict[str, str]) -> None:
    with OpenAIServer() as server:
        response = answer(build(server, Embeddings, **where), "two\nlines here")
        assert json.loads(response.text) == list(struct.unpack("<16f", embedding("two lines here")))
        assert (response.prompt_tokens, response.completion_tokens) == (3, 0)
        assert list(server.per_prompt) == [prompt_sha("two lines here")]


OPTIONS = {"temperature": 0.2, "max_tokens": 7, "top_p": 0.5}
DEFAULTS = {"temperature": 0, "max_tokens": 800, "top_p": 0.95}
MESSAGES = [{"role": "user", "content": "a\nb"}]


@pytest.mark.parametrize(
    ("kind", "given", "body"),
    [
        (Chat, OPTIONS, {**OPTIONS, "messages": MESSAGES}),
        (Chat, {}, {**DEFAULTS, "messages": MESSAGES}),
        (Completion, OPTIONS, {**OPTIONS, "prompt": "a\nb"}),
        (Embeddings, {}, {"input": "a b", "encoding_format": "base64"}),
    ],
)
def test_a_body_holds_the_prompt_and_the_parameters_and_nothing_else(
    kind: type[OpenAIModel], given: dict[str, Any], body: dict[str, Any]
) -> None:
    with endpoint(400) as (url, bodies):
        assert error(build(url, kind, **given), "a\nb").kind == ErrorKind.BAD_REQUEST
    assert bodies == [{"model": "gpt-4", **body}]


def test_an_answer_cut_by_max_tokens_says_so() -> None:
    with OpenAIServer(answer=lambda prompt: "The answer is yes.") as server:
        response = answer(build(server, max_tokens=2), "hello")
    assert (response.text, response.finish_reason, response.completion_tokens) == ("The answer", "length", 2)


@pytest.mark.parametrize("at_once", [3, START])
def test_concurrent_prompts_get_their_own_answers_within_max_concurrency(at_once: int) -> None:
    prompts = [f"prompt {number}" for number in range(4 * at_once)]
    with OpenAIServer(answer=str.upper, latency=0.05, together=at_once) as server:
        responses = ask(build(server, at_once=at_once), *prompts)
        assert server.max_in_flight == at_once
    assert [response.text for response in responses] == [prompt.upper() for prompt in prompts]


# What goes wrong


@pytest.mark.parametrize("fault", ["429", "500", "503", "reset", "no_choices", "null_content", "garbage"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_passing_fault_is_tried_again_and_answered(kind: type[OpenAIModel], fault: FaultKind) -> None:
    with OpenAIServer() as server:
        model = build(server, kind)
        right = answer(build(server, kind), "hello").text
        server.reset()
        server.faults = [Fault(fault, times=2)]
        response = answer(model, "hello")
        assert (response.text, response.trace.attempts, len(server.requests)) == (right, 3, 3)


def test_an_empty_vector_is_tried_again_not_given_as_an_answer() -> None:
    with OpenAIServer(faults=[Fault("filtered_finish")]) as server:
        response = answer(build(server, Embeddings), "hello")
    assert (len(json.loads(response.text)), response.trace.attempts) == (16, 2)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("context_length", ErrorKind.TOO_LONG),
        ("content_filter", ErrorKind.REFUSED),
        ("filtered_finish", ErrorKind.REFUSED),
    ],
)
@pytest.mark.parametrize("where", [{}, AZURE], ids=["plain", "azure"])
def test_a_fault_of_the_prompt_ends_that_prompt_at_once_and_no_other(
    fault: FaultKind, kind: ErrorKind, where: dict[str, str]
) -> None:
    with OpenAIServer(answer=str.upper, faults=[Fault(fault, match="bad", times=-1)]) as server:
        bad, good = ask_in_turn(build(server, **where), "bad", "good")
        assert (bad.kind, bad.trace.attempts, good.text) == (kind, 1, "GOOD")
        assert len(server.requests) == 2


FATAL_FAULTS: list[tuple[dict[str, Any], ErrorKind]] = [
    ({"key": "another key"}, ErrorKind.AUTH),
    ({"models": ["gpt-3"]}, ErrorKind.NOT_FOUND),
    ({"faults": [Fault("quota", times=-1)]}, ErrorKind.QUOTA),
]


@pytest.mark.parametrize(("script", "kind"), FATAL_FAULTS)
def test_after_a_fatal_error_no_request_reaches_the_endpoint(script: dict[str, Any], kind: ErrorKind) -> None:
    with OpenAIServer(**script) as server:
        errors = ask_in_turn(build(server), "one", "two", "three")
        assert [error.kind for error in errors] == [kind] * 3
        assert len(server.requests) == 1


@pytest.mark.parametrize(("script", "kind"), FATAL_FAULTS)
def test_requests_that_wait_for_a_slot_are_not_sent_after_a_fatal_error(
    script: dict[str, Any], kind: ErrorKind
) -> None:
    with OpenAIServer(**script) as server:
        errors = ask(build(server, at_once=1), "one", "two", "three")
        assert [error.kind for error in errors] == [kind] * 3
        assert len(server.requests) == 1


def test_a_request_that_was_not_sent_counts_no_attempt() -> None:
    with OpenAIServer(key="another key") as server:
        sent, unsent = ask_in_turn(build(server), "one", "two")
    assert (sent.trace.attempts, unsent.trace.attempts) == (1, 0)


def test_a_fault_that_stays_ends_after_the_allowed_attempts() -> None:
    with OpenAIServer(faults=[Fault("500", times=-1)]) as server:
        failed = error(build(server))
        assert (failed.kind, failed.trace.attempts, len(server.requests)) == (ErrorKind.SERVER, 5, 5)


def test_an_endpoint_that_is_not_there_is_a_connection_error() -> None:
    with OpenAIServer() as server:
        url = server.base_url
    failed = error(build(url))
    assert (failed.kind, failed.trace.attempts) == (ErrorKind.CONNECTION, 5)


class TriesOnce(Chat):
    retry = RetryPolicy(attempts=1)


def test_no_reply_before_the_deadline_is_a_timeout_that_names_the_endpoint_and_the_deadline() -> None:
    with OpenAIServer(faults=[Fault("hang")]) as server:
        failed = error(build(server, TriesOnce, rate=Rate(timeout_s=0.3)))
        assert (failed.kind, failed.trace.attempts) == (ErrorKind.TIMEOUT, 1)
        assert failed.message == f"no reply from {server.base_url} within 0.3 s"


class LateOnce(Chat):
    """Its first call passes its deadline, whatever that is; the others keep it."""

    is_late = True

    async def call(self, request: Request) -> Response:
        if self.is_late:
            self.is_late = False
            raise TimeoutError
        return await super().call(request)


def test_a_timeout_is_tried_again() -> None:
    with OpenAIServer(answer=str.upper) as server:
        response = answer(build(server, LateOnce), "hello")
    assert response.text == "HELLO"
    assert [attempt.reason.partition(":")[0] for attempt in response.trace.tries] == ["timeout", ""]


# Rate limits


class TriesTwice(Chat):
    retry = RetryPolicy(attempts=2, first_pause_s=0.01, longest_pause_s=0.05)


class CountsPauses(Chat):
    """Gives up by the pauses that it made between calls, which are the same on a busy machine."""

    retry = PauseClockPolicy(first_pause_s=0.01, longest_pause_s=0.05)


IMPATIENT = Rate(give_up_after_s=1)


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
    return in_turn(model, *(f"quick {number}" for number in range(HEDGE_AFTER)))


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
        assert len(server.requests) == HEDGE_AFTER + 2
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


# Chaos


CHAOS = [
    ("http429", ErrorKind.RATE_LIMITED, "HTTP 429 rate_limit_exceeded: Made up by chaos."),
    ("http500", ErrorKind.SERVER, "HTTP 500 server_error: Made up by chaos."),
    ("reset", ErrorKind.CONNECTION, "connection failed: ConnectionResetError: made up by chaos"),
    ("garbage", ErrorKind.GARBAGE, "the reply is not what the API promises (JSONDecodeError)"),
]


@pytest.mark.parametrize(("fault", "kind", "message"), CHAOS)
def test_chaos_passes_through_the_reading_of_replies(fault: str, kind: ErrorKind, message: str) -> None:
    with OpenAIServer() as server:
        model = build(server, CountsPauses, rate=IMPATIENT)
        model.attach(RunContext(print, Chaos(**{fault: 1.0})))
        failed = error(model)
        assert (failed.kind, failed.message, server.requests) == (kind, message, [])
    assert failed.trace.attempts > 1


def test_every_prompt_is_answered_through_chaos() -> None:
    prompts = [f"prompt {number}" for number in range(100)]
    with OpenAIServer(answer=str.upper) as server:
        model = build(server, Stubborn)
        model.attach(RunContext(print, Chaos(http429=0.1, http500=0.1, reset=0.1, garbage=0.1)))
        responses = ask(model, *prompts)
        assert [response.text for response in responses] == [prompt.upper() for prompt in prompts]
        assert sum(response.trace.attempts for response in responses) > len(server.requests) == 100


# Replies that mean harm, or no good


SAID = b'{"choices": [%b], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}'
YES = b'{"message": {"content": "Yes"}, "finish_reason": "stop"}'


@pytest.mark.parametrize(
    "body",
    [b"", b"no JSON", b"null", b"[]", b'"text"', b"{}", b'{"choices": null}', b'{"choices": {}}', b"\xff\xfe"]
    + [SAID % said for said in (b"null", b"{}", b'{"message": null}', b'{"message": {"content": ["a"]}}')]
    + [b"[" * 100_000, b'{"choices": ' * 100_000, b'{"choices": [' + b"9" * 5000 + b"]}"],
)
def test_a_reply_that_is_not_what_the_api_promises_is_garbage(body: bytes) -> None:
    with OpenAIServer(faults=[Fault("reply", body=body, times=-1)]) as server:
        failed = error(build(server, TriesOnce))
        assert (failed.kind, failed.trace.attempts) == (ErrorKind.GARBAGE, 1)


def replied(body: bytes, kind: type[OpenAIModel] = Chat, **reply: Any) -> Response:
    with OpenAIServer(faults=[Fault("reply", body=body, times=-1, **reply)]) as server:
        return answer(build(server, kind), "hello")


def test_of_ten_choices_the_first_is_the_answer() -> None:
    choices = b", ".join([YES, *[YES.replace(b"Yes", b"No")] * 9])
    assert replied(SAID % choices).text == "Yes"


def test_an_answer_may_hold_any_character_but_no_lone_surrogate() -> None:
    said = replied(SAID % YES.replace(b"Yes", rb"\u0000 \u001b[31m \ud800 \u2028"))
    assert said.text == "\x00 \x1b[31m \ufffd \u2028"


def test_a_model_that_declines_has_refused() -> None:
    declined = b'{"message": {"content": null, "refusal": "I cannot."}}'
    with OpenAIServer(faults=[Fault("reply", body=SAID % declined)]) as server:
        assert error(build(server)).kind == ErrorKind.REFUSED


@pytest.mark.parametrize("usage", ["null", "[]", "{}", '{"prompt_tokens": "3", "completion_tokens": -1}', "1e999"])
def test_a_usage_that_is_none_counts_no_tokens(usage: str) -> None:
    said = replied(f'{{"choices": [{YES.decode()}], "usage": {usage}}}'.encode())
    assert (said.text, said.prompt_tokens, said.completion_tokens) == ("Yes", 0, 0)


@pytest.mark.parametrize("reason", [b"null", b"7", b'{"a": 1}', b'""'])
def test_a_finish_reason_that_is_none_is_stop(reason: bytes) -> None:
    assert replied(SAID % YES.replace(b'"stop"', reason)).finish_reason == "stop"


def test_an_answer_of_50_megabytes_is_cut() -> None:
    body = SAID % YES.replace(b"Yes", b"word " * 10_000_000)
    said = replied(body)
    assert (said.text, said.finish_reason) == ("word " * 200_000, "length")


@pytest.mark.parametrize("fault", [Fault("endless", "hello"), Fault("reply", "hello", body=b" " * (64 * 2**20 + 1))])
def test_a_reply_beyond_64_mebibytes_is_dropped_and_not_asked_again(fault: Fault) -> None:
    with OpenAIServer(answer=str.upper, faults=[fault]) as server:
        failed, after = ask_in_turn(build(server), "hello", "and after")
        assert (failed.kind, failed.trace.attempts, after.text) == (ErrorKind.OVERSIZED, 1, "AND AFTER")
        assert "64 MiB" in failed.message
        assert server.sent_bytes < 128 * 2**20


def test_a_reply_whose_values_would_fill_the_memory_is_not_parsed() -> None:
    bomb = b'{"choices": [' + b"[]," * 1_500_000 + b"[]]}"
    with OpenAIServer(faults=[Fault("reply", body=bomb)]) as server:
        failed = error(build(server))
    assert (failed.kind, failed.trace.attempts) == (ErrorKind.OVERSIZED, 1)


class Raw(StreamRequestHandler):
    """Reads a request and sends bytes that are no reply, or half of one."""

    says: bytes

    def handle(self) -> None:
        self.rfile.readline()
        headers = parse_headers(self.rfile)
        self.rfile.read(int(headers["Content-Length"]))
        self.wfile.write(self.says)


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        (b"", ErrorKind.CONNECTION),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", ErrorKind.CONNECTION),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd", ErrorKind.CONNECTION),
        (b"no HTTP at all\r\n\r\n", ErrorKind.GARBAGE),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", ErrorKind.GARBAGE),
    ],
    ids=["nothing", "half a body", "broken compression", "no HTTP", "an endless header"],
)
def test_half_a_reply_or_none_is_an_error_of_its_kind(says: bytes, kind: ErrorKind) -> None:
    handler = type("Handler", (Raw,), {"says": says})
    with ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        failed = error(build(f"http://127.0.0.1:{server.server_address[1]}/v1", TriesOnce))
        server.shutdown()
        thread.join()
    assert (failed.kind, failed.trace.attempts) == (kind, 1), failed


def test_a_model_that_is_dropped_closes_its_connections(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    async def asked_and_dropped(server: OpenAIServer) -> None:
        await build(server).generate(Request("hello"))
        gc.collect()

    with OpenAIServer() as server:
        asyncio.run(asked_and_dropped(server))
        answer(build(server), "hello")  # dropped when the loop has gone
        gc.collect()
    assert caplog.records == []
    assert [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)] == []


def test_large_replies_are_all_read() -> None:
    with OpenAIServer(answer=lambda prompt: prompt * 300_000) as server:
        responses = ask(build(server), *"abcdefgh")
    assert [response.text for response in responses] == [letter * 300_000 for letter in "abcdefgh"]


def test_a_compressed_reply_is_read() -> None:
    assert replied(gzip.compress(SAID % YES), headers=(("Content-Encoding", "gzip"),)).text == "Yes"


def test_a_prompt_of_a_million_characters_is_answered() -> None:
    with OpenAIServer(answer=lambda prompt: str(len(prompt))) as server:
        assert answer(build(server), "\u00b5" * 1_000_000).text == "1000000"


def test_a_redirect_is_not_followed() -> None:
    with OpenAIServer() as other:
        away = Fault("reply", status=307, headers=(("Location", f"{other.base_url}/chat/completions"),))
        with OpenAIServer(faults=[away]) as server:
            failed = error(build(server))
        assert (failed.kind, other.requests) == (ErrorKind.NOT_FOUND, [])
        assert other.base_url in failed.message


def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with OpenAIServer(answer=str.upper) as proxy:
        monkeypatch.setenv("http_proxy", proxy.azure_base)
        monkeypatch.setenv("no_proxy", "")
        assert answer(build("http://elsewhere.example/v1"), "hello").text == "HELLO"


@pytest.mark.parametrize(
    ("status", "kind", "attempts"),
    [(status, ErrorKind.BAD_REQUEST, 1) for status in (400, 402, 418, 422)]
    + [(401, ErrorKind.AUTH, 1), (403, ErrorKind.AUTH, 1), (404, ErrorKind.NOT_FOUND, 1), (413, ErrorKind.TOO_LONG, 1)]
    + [(status, ErrorKind.SERVER, 5) for status in (408, 409, 500, 502, 503, 504, 529)],
)
@pytest.mark.parametrize("body", [b"", b"<html>", b'{"error": "no"}', b'{"detail": []}'])
def test_a_status_decides_whether_a_call_is_tried_again(
    status: int, kind: ErrorKind, attempts: int, body: bytes
) -> None:
    with OpenAIServer(faults=[Fault("reply", status=status, body=body, times=-1)]) as server:
        failed = error(build(server))
        assert (failed.kind, failed.trace.attempts, len(server.requests)) == (kind, attempts, attempts)
    assert failed.message.startswith(f"HTTP {status}")


@pytest.mark.parametrize(
    "error_body",
    [
        b'{"error": {"message": "This model\'s maximum context length is 4096 tokens.", "code": 400}}',
        b'{"error": {"message": "the request exceeds the available context size", "type": "x"}}',
    ],
    ids=["vllm", "llama.cpp"],
)
def test_other_servers_words_for_too_long_are_understood(error_body: bytes) -> None:
    with OpenAIServer(faults=[Fault("reply", status=400, body=error_body)]) as server:
        assert error(build(server)).kind == ErrorKind.TOO_LONG


def test_the_table_of_the_docs_says_what_is_tried_again_and_what_stops_a_run() -> None:
    page = (Path(__file__).parent.parent / "docs" / "api_calls.md").read_text()
    rows = re.findall(r"^\| .* \| `(\w+)` \| (.*) \| (.*) \|$", page, flags=re.MULTILINE)
    assert {kind for kind, again, _ in rows if again != "no"} == RETRYABLE
    assert {kind for kind, _, end in rows if end == "the run stops"} == FATAL - {ErrorKind.LOAD}
    assert {again for _, again, _ in rows if "calls" in again} == {f"up to {RetryPolicy().attempts} calls"}
    assert all(str(int(Rate().model_dump()[key])) in page for key in ("timeout_s", "give_up_after_s"))


# Every attempt is told


def test_every_attempt_of_an_answer_is_told() -> None:
    began = time.time()
    with OpenAIServer(faults=[Fault("500"), Fault("429", retry_after=0.01)]) as server:
        response = answer(build(server), "hello")
    assert [attempt.reason for attempt in response.trace.tries] == [
        "server: HTTP 500 server_error: The server had an error while processing your request.",
        "rate_limited: HTTP 429 rate_limit_exceeded: Rate limit reached for requests.",
        "",
    ]
    starts = [attempt.at for attempt in response.trace.tries]
    assert began - 1 < starts[0] < starts[1] < starts[2] < time.time() + 1
    assert all(attempt.took_s > 0 for attempt in response.trace.tries)
    assert response.latency_s == response.trace.tries[-1].took_s


def test_every_attempt_of_a_failure_is_told() -> None:
    with OpenAIServer(faults=[Fault("500", times=-1)]) as server:
        failed = error(build(server))
    assert len(failed.trace.tries) == failed.trace.attempts == 5
    assert failed.trace.waited_s > 0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "20ms"}, 0.02),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s"}, 1.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-remaining-tokens": "-1", "x-ratelimit-reset-tokens": "1h1m1.5s"}, 3661.5),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "2.5"}, 2.5),
        ({"x-ratelimit-remaining-tokens": "1", "x-ratelimit-reset-tokens": "6m0s"}, None),
        ({"x-ratelimit-remaining-tokens": "0"}, None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "soon"}, None),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "3s",
            },
            3.0,
        ),
        ({"retry-after": "2", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "9s"}, 2.0),
    ],
)
def test_other_headers_say_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert requested_wait_s(headers) == seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("2", 2.0), ("0.5", 0.5), ("-3", 0.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)]
    + [(nonsense, None) for nonsense in ("", "soon", "nan", "inf", "Wed, 99 Oct 2015 07:28:00 GMT")],
)
def test_retry_after_is_read_from_seconds_or_a_date_and_nothing_else(value: str, seconds: float | None) -> None:
    assert requested_wait_s({"retry-after": value}) == seconds


def test_retry_after_as_a_date_is_the_time_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    monkeypatch.setattr(time, "time", now.timestamp)
    then = format_datetime(now + timedelta(hours=1), usegmt=True)
    assert requested_wait_s({"retry-after": then}) == 3600


def test_a_reply_without_retry_after_asks_for_no_wait() -> None:
    assert requested_wait_s({}) is None


# The key


@pytest.mark.parametrize("padding", [0, 445, 600], ids=["at the start", "where the message is cut", "after the cut"])
def test_an_endpoint_that_echoes_the_key_does_not_put_it_into_the_error(
    monkeypatch: pytest.MonkeyPatch, padding: int
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0123456789-0123456789")
    with endpoint(401, "x" * padding + " Incorrect key {key}.") as (url, _):
        failed = error(build(url))
    assert failed.message.startswith("HTTP 401 invalid: ")
    assert "sk-secret" not in "".join([repr(failed), *traceback.format_exception(failed)])


PROMPT = "Is it so that the quick brown fox jumps\nover  the lazy dog, and if it is, why does it do so at all?"


@pytest.mark.parametrize("around", ["{prompt}", "{prompt}{prompt}", "x{prompt}", "{key}{prompt}{key}"])
@pytest.mark.parametrize("prompt", [PROMPT, PROMPT * 10_000, "a" * 1000])
def test_an_endpoint_that_echoes_the_prompt_does_not_put_it_into_the_error(
    monkeypatch: pytest.MonkeyPatch, around: str, prompt: str
) -> None:
    body = json.dumps({"error": {"message": f"Not: {around} !", "code": "bad"}}).encode()
    with OpenAIServer(key="sk-secret-0123456789", faults=[Fault("reply", status=400, body=body)]) as server:
        monkeypatch.setenv("OPENAI_API_KEY", server.key)
        failed = error(build(server), prompt)
    shown = failed.message
    assert shown.startswith("HTTP 400 bad: Not: ")
    assert "sk-secret" not in shown
    line = " ".join(prompt.split())
    assert not [start for start in range(len(shown) - 39) if shown[start : start + 40] in line]


def test_what_follows_an_echo_is_shown() -> None:
    body = json.dumps({"error": {"message": "The prompt '{prompt}' is not allowed.", "code": "bad"}}).encode()
    with OpenAIServer(faults=[Fault("reply", status=400, body=body)]) as server:
        failed = error(build(server), PROMPT)
    assert failed.message == "HTTP 400 bad: The prompt '[prompt]' is not allowed."


def test_control_characters_of_an_endpoint_s_words_are_shown_as_escapes() -> None:
    body = rb'{"error": {"message": "a\u001b[31mred\u0000\u202e\n\ud800", "code": "\u0007"}}'
    with OpenAIServer(faults=[Fault("reply", status=400, body=body)]) as server:
        failed = error(build(server))
    assert failed.message == r"HTTP 400 \x07: a\x1b[31mred\x00\u202e \ud800"


@pytest.mark.parametrize("key", ["sk\n-test", "sk-t\u00e9st"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(CallError, match="OPENAI_API_KEY") as caught:
        build("http://127.0.0.1:1/v1")
    assert caught.value.kind == ErrorKind.AUTH
    assert "sk" not in str(caught.value)


def test_a_key_with_spaces_around_it_is_used_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    with OpenAIServer(answer=str.upper) as server:
        assert answer(build(server), "hello").text == "HELLO"


def test_no_text_about_a_model_holds_the_key() -> None:
    model = build("http://127.0.0.1:1/v1")
    assert KEY not in repr([model, model.params, model.identity(), model.scope(), vars(model.pool)])


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_key_is_refused_on_the_driver_naming_its_variable(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    given = params(api_key_var="MY_KEY")
    with pytest.raises(UserError, match="MY_KEY"):
        given.preflight(same_machine=True)
    given.preflight(same_machine=False)  # the key is needed where the calls are made
    with pytest.raises(CallError, match="MY_KEY") as caught:
        Chat(given, Pool(), None)
    assert caught.value.kind == ErrorKind.AUTH


def test_async_calls_false_is_accepted_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    params(async_calls=False).preflight(same_machine=True)
    assert "async_calls has no effect" in capsys.readouterr().err


# Identity and settings


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"engine": "gpt-5"}, True),
        ({"temperature": 0.1}, True),
        ({"max_tokens": 9}, True),
        ({"top_p": 0.5}, True),
        ({"base_url": "https://elsewhere.example"}, True),
        ({"api_version": "2025-01-01"}, True),
        ({"api_key_var": "MY_KEY"}, False),
        ({"async_calls": False}, False),
    ],
)
def test_identity_changes_with_what_may_change_an_answer_only(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], differs: bool
) -> None:
    monkeypatch.setenv("MY_KEY", "another key")
    given = {"base_url": "https://here.example", **AZURE}
    one, other = (Chat(params(**it), Pool(), None).identity() for it in (given, {**given, **change}))
    assert (canonical_json(one) != canonical_json(other)) == differs


def test_chat_and_completion_of_one_engine_are_different_models() -> None:
    one, other = (build("https://here.example", kind).identity() for kind in (OpenAIChat, OpenAICompletion))
    assert one != other


BASE, VERSION = "https://here.example", "2024-02-01"


@pytest.mark.parametrize(
    ("environment", "given", "settled"),
    [
        ({}, {}, ("openai", PLAIN_URL, None)),
        ({"BASE": f"{BASE}/v1/"}, {}, ("openai", f"{BASE}/v1", None)),
        ({"BASE": f"{BASE}/", "VERSION": VERSION}, {}, ("azure", BASE, VERSION)),
        ({"BASE": BASE, "VERSION": VERSION}, {"api_type": "openai"}, ("openai", BASE, None)),
        ({"BASE": BASE, "VERSION": VERSION}, {"api_version": "v2"}, ("azure", BASE, "v2")),
        ({"BASE": "https://other.example"}, {"base_url": BASE}, ("openai", BASE, None)),
        ({}, {**AZURE, "base_url": BASE}, ("azure", BASE, VERSION)),
    ],
)
def test_the_endpoint_comes_from_the_config_then_the_environment_then_the_default(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], given: dict[str, str], settled: tuple[str, ...]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"OPENAI_API_{name}", value)
    once = params(**given)
    assert (once.api_type, once.base_url, once.api_version) == settled
    assert Chat.Params.model_validate(once.model_dump(mode="json")).resolved() == once


@pytest.mark.parametrize(
    ("environment", "given", "names"),
    [
        ({"VERSION": VERSION}, {}, "OPENAI_API_BASE"),
        ({}, AZURE, "OPENAI_API_BASE"),
        ({"BASE": BASE}, {"api_type": "azure"}, "OPENAI_API_VERSION"),
    ],
)
def test_azure_without_an_endpoint_or_a_version_is_refused_naming_the_variable(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], given: dict[str, str], names: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(f"OPENAI_API_{name}", value)
    with pytest.raises(UserError, match=names):
        params(**given)
