"""Models behind an OpenAI-compatible endpoint, against real local servers."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from openai_server import Fault, FaultKind, OpenAIServer, default_answer, embedding, prompt_sha

from rambla_ray.actors.base import RetryPolicy
from rambla_ray.actors.http import told_wait_s
from rambla_ray.actors.openai import PLAIN_URL, OpenAIChat, OpenAICompletion, OpenAIEmbeddings, OpenAIModel
from rambla_ray.config import Pool, Rate
from rambla_ray.errors import CallError, ErrorKind, UserError
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


KINDS = [Chat, Completion, Embeddings]


@pytest.fixture(autouse=True)
def _only_a_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_BASE", "OPENAI_API_VERSION", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def params(kind: type[OpenAIModel] = Chat, **given: Any) -> Any:
    text = {} if issubclass(kind, OpenAIEmbeddings) else {"temperature": 0.0}
    return kind.settle(kind.Params(**{"engine": "gpt-4", **text, **given}))


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


def ask_in_turn(model: OpenAIModel, *prompts: str) -> list[Any]:
    async def one_by_one() -> list[Any]:
        return [
            (await asyncio.gather(model.generate(Request(prompt)), return_exceptions=True))[0] for prompt in prompts
        ]

    return asyncio.run(one_by_one())


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
        assert (response.finish_reason, response.attempts) == ("stop", 1)
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


def test_concurrent_prompts_get_their_own_answers_within_max_concurrency() -> None:
    prompts = [f"prompt {number}" for number in range(12)]
    with OpenAIServer(answer=str.upper, latency=0.05) as server:
        responses = ask(build(server, at_once=3), *prompts)
        assert server.max_in_flight == 3
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
        assert (response.text, response.attempts, len(server.requests)) == (right, 3, 3)


def test_an_empty_vector_is_tried_again_not_given_as_an_answer() -> None:
    with OpenAIServer(faults=[Fault("filtered_finish")]) as server:
        response = answer(build(server, Embeddings), "hello")
    assert (len(json.loads(response.text)), response.attempts) == (16, 2)


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
        assert (bad.kind, bad.attempts, good.text) == (kind, 1, "GOOD")
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
    assert (sent.attempts, unsent.attempts) == (1, 0)


def test_a_fault_that_stays_ends_after_the_allowed_attempts() -> None:
    with OpenAIServer(faults=[Fault("500", times=-1)]) as server:
        failed = error(build(server))
        assert (failed.kind, failed.attempts, len(server.requests)) == (ErrorKind.SERVER, 5, 5)


def test_an_endpoint_that_is_not_there_is_a_connection_error() -> None:
    with OpenAIServer() as server:
        url = server.base_url
    failed = error(build(url))
    assert (failed.kind, failed.attempts) == (ErrorKind.CONNECTION, 5)


class TriesOnce(Chat):
    retry = RetryPolicy(attempts=1)


HASTY = Rate(timeout_s=0.3)


def test_no_reply_before_the_deadline_is_a_timeout_that_names_the_endpoint_and_the_deadline() -> None:
    with OpenAIServer(faults=[Fault("hang")]) as server:
        failed = error(build(server, TriesOnce, rate=HASTY))
        assert (failed.kind, failed.attempts) == (ErrorKind.TIMEOUT, 1)
        assert failed.message == f"no reply from {server.base_url} within 0.3 s"


def test_a_timeout_is_tried_again() -> None:
    with OpenAIServer(answer=str.upper, faults=[Fault("hang")]) as server:
        response = answer(build(server, rate=HASTY), "hello")
    assert response.text == "HELLO"
    assert response.attempts > 1


# Rate limits


class TriesTwice(Chat):
    retry = RetryPolicy(attempts=2, first_pause_s=0.01, longest_pause_s=0.05)


IMPATIENT = Rate(give_up_after_s=1)


def test_retry_after_is_waited_for_and_counted() -> None:
    with OpenAIServer(faults=[Fault("429", retry_after=0.3)]) as server:
        response = answer(build(server, TriesTwice), "hello")
        first, second = server.requests
    assert response.attempts == 2
    assert response.waited_s >= 0.3
    assert second.time - first.time >= 0.3


def test_rate_limits_do_not_use_up_the_attempts() -> None:
    with OpenAIServer(faults=[Fault("429", times=4, retry_after=0.01), Fault("500")]) as server:
        assert answer(build(server, TriesTwice), "hello").attempts == 6


def test_a_rate_limit_that_stays_ends_as_rate_limited() -> None:
    with OpenAIServer(faults=[Fault("429", times=-1, retry_after=0.05)]) as server:
        failed = error(build(server, rate=IMPATIENT))
        assert failed.kind == ErrorKind.RATE_LIMITED
        assert failed.attempts == len(server.requests) > 1


def test_a_retry_after_beyond_the_allowed_time_is_not_waited_for() -> None:
    with OpenAIServer(faults=[Fault("429", times=-1, retry_after=60)]) as server:
        asked = build(server, rate=IMPATIENT).generate(Request("hello"))
        with pytest.raises(CallError) as caught:
            asyncio.run(asyncio.wait_for(asked, 3))
    assert caught.value.kind == ErrorKind.RATE_LIMITED


def test_a_pause_between_attempts_holds_no_slot() -> None:
    done = []

    async def note(model: OpenAIModel, prompt: str) -> None:
        await model.generate(Request(prompt))
        done.append(prompt)

    async def both(model: OpenAIModel) -> None:
        await asyncio.gather(note(model, "limited"), note(model, "free"))

    with OpenAIServer(faults=[Fault("429", match="limited", retry_after=0.5)]) as server:
        asyncio.run(both(build(server, TriesTwice, at_once=1)))
    assert done == ["free", "limited"]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("2", 2.0), ("0.5", 0.5), ("-3", 0.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0)]
    + [(nonsense, None) for nonsense in ("", "soon", "nan", "inf", "Wed, 99 Oct 2015 07:28:00 GMT")],
)
def test_retry_after_is_read_from_seconds_or_a_date_and_nothing_else(value: str, seconds: float | None) -> None:
    assert told_wait_s({"retry-after": value}) == seconds


def test_retry_after_as_a_date_is_the_time_until_then() -> None:
    then = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert told_wait_s({"retry-after": then}) == pytest.approx(3600, abs=60)


def test_a_reply_without_retry_after_asks_for_no_wait() -> None:
    assert told_wait_s({}) is None


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
        Chat.preflight(given, same_machine=True)
    Chat.preflight(given, same_machine=False)  # the key is needed where the calls are made
    with pytest.raises(CallError, match="MY_KEY") as caught:
        Chat(given, Pool(), None)
    assert caught.value.kind == ErrorKind.AUTH


def test_async_calls_false_is_accepted_with_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    Chat.preflight(params(async_calls=False), same_machine=True)
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
    assert Chat.settle(Chat.Params.model_validate(once.model_dump(mode="json"))) == once


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
