"""What is asked again, how often and after which pause, and what ends a request or the whole run."""

from __future__ import annotations

import asyncio
import json
import re
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import openai_models
import pytest
from faults import Fault, FaultKind
from openai_models import (
    AZURE,
    IMPATIENT,
    KINDS,
    Chat,
    CountsPauses,
    Embeddings,
    Stubborn,
    TriesOnce,
    answer,
    ask,
    ask_in_turn,
    build,
    error,
)
from openai_server import OpenAIServer

from rambla_ray.actors.api.retry import RetryPolicy
from rambla_ray.actors.api.waits import requested_wait_s
from rambla_ray.actors.base import RunContext
from rambla_ray.actors.openai import OpenAIModel
from rambla_ray.config.sections import Chaos, Rate
from rambla_ray.errors import FATAL, RETRYABLE, CallError, ErrorKind
from rambla_ray.schema import Request, Response

only_a_key = openai_models.only_a_key  # It runs by itself before each test of this file.


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


@pytest.mark.parametrize(("script", "kind"), FATAL_FAULTS)
def test_what_is_served_goes_on_after_a_fatal_error(script: dict[str, Any], kind: ErrorKind) -> None:
    with OpenAIServer(**script) as server:
        model = build(server)
        model.attach(RunContext(stops=False))
        errors = ask_in_turn(model, "one", "two")
        assert [(error.kind, error.trace.attempts) for error in errors] == [(kind, 1)] * 2


def test_a_request_that_was_not_sent_counts_no_attempt() -> None:
    with OpenAIServer(key="another key") as server:
        sent, unsent = ask_in_turn(build(server), "one", "two")
    assert (sent.trace.attempts, unsent.trace.attempts) == (1, 0)


def test_a_fault_that_stays_ends_after_the_allowed_attempts() -> None:
    with OpenAIServer(faults=[Fault("500", times=-1)]) as server:
        failed = error(build(server))
        assert (failed.kind, failed.trace.attempts, len(server.requests)) == (ErrorKind.SERVER, 5, 5)


def test_an_endpoint_that_is_not_there_is_tried_until_it_is_given_up() -> None:
    with OpenAIServer() as server:
        url = server.base_url
    failed = error(build(url, rate=IMPATIENT))
    assert failed.kind == ErrorKind.UNAVAILABLE
    assert failed.message.startswith(f"{url} has let nobody through for 1 s (rate.give_up_after_s): connection failed")
    assert failed.trace.attempts == len(failed.trace.tries) >= 1
    assert {attempt.reason.partition(":")[0] for attempt in failed.trace.tries} == {"connection"}


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


class NeverConnects(Chat):
    """Each attempt to connect takes longer than a request may."""

    async def call(self, request: Request) -> Response:
        await asyncio.sleep(1.1 * IMPATIENT.give_up_after_s)
        raise CallError(ErrorKind.CONNECTION, "connection failed", unsent=True)


def test_a_host_that_never_takes_a_connection_is_unavailable_however_little_time_there_is() -> None:
    assert error(build("http://127.0.0.1:9/v1", NeverConnects, rate=IMPATIENT)).kind == ErrorKind.UNAVAILABLE


# Chaos


CHAOS = [
    ("http429", ErrorKind.RATE_LIMITED, "HTTP 429 rate_limit_exceeded: Made up by chaos."),
    ("http500", ErrorKind.SERVER, "HTTP 500 server_error: Made up by chaos."),
    ("reset", ErrorKind.CONNECTION, "connection failed: ConnectionResetError: made up by chaos"),
    ("garbage", ErrorKind.GARBAGE, 'the reply is no JSON: {"id": "made-up-by-chaos", "choices": [{"ind'),
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


@pytest.mark.parametrize(
    ("status", "kind", "attempts"),
    [(status, ErrorKind.BAD_REQUEST, 1) for status in (400, 418, 422)]
    + [(402, ErrorKind.QUOTA, 1)]
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


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SOON = NOW + timedelta(hours=1)


@pytest.mark.parametrize("header", ["retry-after", "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"])
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (format_datetime(SOON, usegmt=True), 3600),
        (SOON.isoformat(), 3600),
        ("2026-01-02T04:04:05Z", 3600),
        ("2026-01-02T04:04:05.500", 3600.5),
        ("2026-01-02T05:04:05+01:00", 3600),
        ("2025-12-31T00:00:00Z", 0),
        (f"{SOON.timestamp():.0f}", 3600),
        (f"{SOON.timestamp() * 1000:.0f}", 3600),
        (f"{NOW.timestamp() - 60:.0f}", 0),
        ("26h", 93600),
        ("1d", 86400),
        ("1h1m1.5s", 3661.5),
        ("250us", 0.00025),
        ("90000", 90000),
        (" 7 ", 7),
        ("in a while", None),
        ("1e400", None),
        ("١٢", 12),
    ],
)
def test_a_wait_may_be_seconds_a_duration_a_date_or_a_unix_time(
    monkeypatch: pytest.MonkeyPatch, header: str, value: str, seconds: float | None
) -> None:
    monkeypatch.setattr(time, "time", NOW.timestamp)
    headers = {header: value, header.replace("reset", "remaining"): "0" if "reset" in header else value}
    asked_s = requested_wait_s(headers)
    assert asked_s == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("prefix", ["x-ratelimit", "ratelimit"])
def test_a_limit_without_a_unit_counts_when_nothing_remains(prefix: str) -> None:
    assert requested_wait_s({f"{prefix}-remaining": "0", f"{prefix}-reset": "9"}) == 9
    assert requested_wait_s({f"{prefix}-remaining": "3", f"{prefix}-reset": "9"}) is None


def test_a_reply_without_retry_after_asks_for_no_wait() -> None:
    assert requested_wait_s({}) is None
