"""What is read from the replies of Anthropic's Messages API: answers, thoughts, tokens, errors, limits."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import anthropic_models
import pytest
from anthropic_models import ask, build, error
from anthropic_server import THOUGHT, AnthropicServer, error_body
from faults import Fault
from pause_clock import PauseClockPolicy

from rambla_ray.actors.api.waits import limit_reset_s, requested_wait_s
from rambla_ray.config.sections import Rate
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import ReplyDetails, Request, Response

keys = anthropic_models.keys  # It runs by itself before each test of this file.

USAGE = {"input_tokens": 10, "cache_read_input_tokens": 200, "cache_creation_input_tokens": 3000, "output_tokens": 40}
TEXT = {"type": "text", "text": "Yes"}
THINKING = {"type": "thinking", "thinking": "Let me see.", "signature": "EqQ="}
REDACTED = {"type": "redacted_thinking", "data": "EmwKAhgB"}
TOOL = {"type": "tool_use", "id": "toolu_1", "name": "search", "input": {}}
FORMS = "the form of the question"


def reply(content: Any, reason: Any, **members: Any) -> dict[str, Any]:
    return {
        "type": "message",
        "model": "claude-x-1",
        "content": content,
        "stop_reason": reason,
        "usage": USAGE,
        **members,
    }


def replied(body: Any, **given: Any) -> Response:
    with AnthropicServer(faults=[Fault("reply", body=json.dumps(body).encode())]) as server:
        return ask(build(server, **given))


def failed(body: Any, status: int = 200, times: int = -1, **fault: Any) -> tuple[CallError, int]:
    """What comes of a call that always gets this reply, and how many there were."""
    script = Fault("reply", status=status, body=json.dumps(body).encode(), times=times, **fault)
    with AnthropicServer(faults=[script]) as server:
        model = build(server, rate=Rate(give_up_after_s=0.2))
        model.retry = PauseClockPolicy(attempts=2, first_pause_s=0.02, longest_pause_s=0.1)
        return error(model), len(server.requests)


@pytest.mark.parametrize(
    ("content", "reason", "text", "ending"),
    [
        ([TEXT], "end_turn", "Yes", "stop"),
        ([TEXT], "stop_sequence", "Yes", "stop"),
        ([TEXT], None, "Yes", "stop"),
        ("Yes", "end_turn", "Yes", "stop"),
        ([{"type": "text", "text": "<think>No?</think>Yes"}], "end_turn", "Yes", "stop"),
        ([TEXT, {"type": "text", "text": ", it is."}], "end_turn", "Yes, it is.", "stop"),
        ([THINKING, TEXT], "end_turn", "Yes", "stop"),
        ([TEXT], "max_tokens", "Yes", "length"),
        ([TEXT], "model_context_window_exceeded", "Yes", "length"),
        ([TEXT], "pause_turn", "Yes", "length"),
        ([TEXT], "refusal", "Yes", "content_filter"),
        ([TEXT, TOOL], "tool_use", "Yes", "stop"),
        ([TEXT, {"type": "server_tool_use", "text": "No"}], "end_turn", "Yes", "stop"),
        ([THINKING], "max_tokens", "", "length"),
        ([THINKING, {"type": "text", "text": " "}], "end_turn", " ", "length"),
        ([REDACTED], "end_turn", "", "length"),
        ([], "max_tokens", "", "length"),
        ([TOOL], "tool_use", "", "stop"),
        ([THINKING, TOOL], "tool_use", "", "stop"),
        ([], "end_turn", "", "stop"),
        (None, "end_turn", "", "stop"),
    ],
)
def test_an_answer_is_its_texts_and_how_it_ended(content: Any, reason: Any, text: str, ending: str) -> None:
    response = replied(reply(content, reason))
    assert (response.text, response.finish_reason, response.trace.attempts) == (text, ending, 1)
    assert (response.prompt_tokens, response.completion_tokens) == (3210, 40)


def test_what_stands_beside_a_text_is_kept_beside_it() -> None:
    usage = {**USAGE, "output_tokens_details": {"thinking_tokens": 30}}
    response = replied(reply([THINKING, REDACTED, {**THINKING, "thinking": "So."}, TEXT], "end_turn", usage=usage))
    assert response.details == ReplyDetails(
        reasoning="Let me see.\n\nSo.",
        reasoning_tokens=30,
        cached_tokens=200,
        cache_write_tokens=3000,
        served_model="claude-x-1",
    )


@pytest.mark.parametrize("reason", ["refusal", "REFUSAL"])
@pytest.mark.parametrize("content", [[], [THINKING]])
def test_a_refusal_without_a_text_is_refused_and_what_it_cost_is_counted(content: Any, reason: str) -> None:
    refused, calls = failed(reply(content, reason))
    assert (refused.kind, calls) == (ErrorKind.REFUSED, 1)
    assert (refused.prompt_tokens, refused.completion_tokens) == (3210, 40)


@pytest.mark.parametrize(
    "body",
    [
        *(None, [], {}, "text", {"content": 7, "stop_reason": "end_turn"}, reply(["Yes"], "end_turn")),
        *(reply([{"type": "text"}], "end_turn"), reply([{"type": "text", "text": None}], "end_turn")),
        *(reply([], None), reply([THINKING], 7)),
    ],
)
def test_a_reply_that_is_not_what_the_api_promises_is_garbage(body: Any) -> None:
    garbage, calls = failed(body)
    assert (garbage.kind, calls) == (ErrorKind.GARBAGE, 2)


@pytest.mark.parametrize("usage", [None, [], {"input_tokens": "1"}, {"input_tokens": -1, "output_tokens": 2**40}])
def test_a_usage_that_is_none_counts_no_tokens(usage: Any) -> None:
    response = replied(reply([TEXT], "end_turn", usage=usage, model=7))
    assert (response.prompt_tokens, response.completion_tokens, response.details) == (0, 0, ReplyDetails())


# Errors

TOO_LONG, REFUSED, SERVER = ErrorKind.TOO_LONG, ErrorKind.REFUSED, ErrorKind.SERVER
RATE_LIMITED = ErrorKind.RATE_LIMITED
LARGEST = "max_tokens: 900000 > 64000, which is the maximum allowed number of output tokens for claude-x"
TAG = "thinking: Input tag 'adaptive' found using 'type' does not match any of the expected tags"
BOTH = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
ERRORS = [
    (400, "prompt is too long: 210000 tokens > 200000 maximum", TOO_LONG, 1),
    (400, "input length and `max_tokens` exceed context limit: 199000 + 20000 > 200000", TOO_LONG, 1),
    (413, "Request exceeds the maximum allowed number of bytes.", TOO_LONG, 1),
    (400, "Your credit balance is too low to access the Anthropic API.", ErrorKind.QUOTA, 1),
    (402, "There is an issue with your billing.", ErrorKind.QUOTA, 1),
    (400, "Output blocked by content filtering policy", REFUSED, 1),
    (401, "invalid x-api-key", ErrorKind.AUTH, 1),
    (404, "model: claude-x", ErrorKind.NOT_FOUND, 1),
    (400, "messages: text content blocks must be non-empty", ErrorKind.BAD_REQUEST, 1),
    (429, "This request would exceed your organization's rate limit of 50 requests per minute", RATE_LIMITED, 2),
    (500, "Internal server error", SERVER, 2),
    (529, "Overloaded", SERVER, 2),
]


@pytest.mark.parametrize(("status", "message", "kind", "calls"), ERRORS)
def test_an_error_is_read_as_what_it_is(status: int, message: str, kind: ErrorKind, calls: int) -> None:
    read, asked = failed(error_body(status, message), status)
    assert (read.kind, min(asked, 2)) == (kind, calls)
    assert read.message.startswith(f"HTTP {status} {error_body(status, '')['error']['type']}: {message[:20]}")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((401, ErrorKind.AUTH), (404, ErrorKind.NOT_FOUND), (413, TOO_LONG), (429, ErrorKind.RATE_LIMITED)),
        *((500, SERVER), (529, SERVER), (400, ErrorKind.BAD_REQUEST)),
    ],
)
def test_an_error_inside_a_200_is_read_as_its_type(status: int, kind: ErrorKind) -> None:
    assert failed(error_body(status, "Something went wrong."))[0].kind == kind


def test_an_overloaded_endpoint_is_asked_again_when_it_says() -> None:
    body = json.dumps(error_body(529, "Overloaded")).encode()
    busy = Fault("reply", status=529, body=body, headers=(("retry-after", "0.3"),))
    with AnthropicServer(faults=[busy]) as server:
        response = ask(build(server))
        first, second = server.requests
    assert response.trace.attempts == 2
    assert second.time - first.time >= 0.3


NULL = "set params.{}: null"
NEWER = {"modern": True}


@pytest.mark.parametrize(
    ("engine", "given", "way_out"),
    [
        *((NEWER, {name: 1}, NULL.format(name)) for name in ("temperature", "top_p", "top_k")),
        (NEWER, {"thinking_budget": 1024}, "set params.thinking: adaptive in place of params.thinking_budget"),
        (NEWER, {"thinking": {"type": "enabled", "budget_tokens": 9}}, "set params.thinking: adaptive"),
        ({}, {"thinking": "adaptive"}, NULL.format("thinking")),
        ({}, {"thinking_budget": 1024, "temperature": 0.0}, NULL.format("temperature")),
        ({}, {"extra_body": {"nonsense": 1}}, "remove nonsense from params.extra_body"),
    ],
)
def test_a_param_that_an_engine_refuses_is_asked_for_once_and_the_line_says_what_to_write(
    engine: dict[str, Any], given: dict[str, Any], way_out: str
) -> None:
    with AnthropicServer(**engine) as server:
        refused = error(build(server, **given))
        assert (refused.kind, len(server.requests)) == (ErrorKind.UNSUPPORTED, 1)
    assert refused.message.startswith("engine claude-x does not take ")
    assert f": {way_out} (HTTP 400" in refused.message


@pytest.mark.parametrize(
    ("message", "given", "way_out"),
    [
        (LARGEST, {"max_tokens": 900_000}, "set params.max_tokens: 64000"),
        ("This model does not support the effort parameter.", {"effort": "low"}, NULL.format("effort")),
        ("output_config.effort: Extra inputs are not permitted", {"effort": "low"}, NULL.format("effort")),
        (TAG, {"thinking": "adaptive"}, NULL.format("thinking")),
        ("thinking is not supported for this model", {"thinking_budget": 9}, NULL.format("thinking_budget")),
        (BOTH, {"temperature": 0, "top_p": 1}, NULL.format("top_p")),
    ],
)
def test_what_engines_say_of_other_params_is_understood(message: str, given: dict[str, Any], way_out: str) -> None:
    body = json.dumps(error_body(400, message)).encode()
    with AnthropicServer(faults=[Fault("reply", status=400, body=body)]) as server:
        refused = error(build(server, **given))
    assert refused.kind == ErrorKind.UNSUPPORTED
    assert f": {way_out} (HTTP 400" in refused.message


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        *(("http429", RATE_LIMITED), ("http500", SERVER), ("garbage", ErrorKind.GARBAGE)),
        ("reset", ErrorKind.CONNECTION),
    ],
)
def test_a_fault_that_chaos_makes_up_is_read_like_a_reply(fault: str, kind: ErrorKind) -> None:
    with AnthropicServer() as server, pytest.raises(CallError) as caught:
        asyncio.run(build(server).faulty_call(Request("Is it so?"), fault))
    assert (caught.value.kind, server.requests) == (kind, [])


def test_no_error_shows_the_key_or_the_prompt() -> None:
    prompt = f"{FORMS} is quite long, and it is a patient's own"
    body = json.dumps(error_body(400, f"{anthropic_models.KEY}: cannot read {prompt}")).encode()
    with AnthropicServer(faults=[Fault("reply", status=400, body=body)]) as server:
        message = error(build(server), prompt).message
    assert anthropic_models.KEY not in message
    assert FORMS not in message


# Thinking and limits


def test_thinking_that_uses_up_the_answer_is_cut_off_after_one_call() -> None:
    with AnthropicServer(modern=True) as server:
        response = ask(build(server, thinking="adaptive", max_tokens=5))
        assert len(server.requests) == 1
    assert (response.text, response.finish_reason, response.completion_tokens) == ("", "length", 5)
    assert (response.details.reasoning_tokens, response.details.served_model) == (5, "claude-x-20260101")


def test_a_system_prompt_in_the_cache_counts_among_the_tokens_of_the_prompt() -> None:
    with AnthropicServer(answer=lambda prompt: "Yes") as server:
        given = {"system": "Be very brief.", "extra_body": {"cache_control": {"type": "ephemeral"}}}
        response = ask(build(server, thinking_budget=1024, **given), "Is it so?")
    assert (response.text, response.prompt_tokens) == ("Yes", 6)
    assert (response.details.cached_tokens, response.details.cache_write_tokens) == (3, 3)
    assert response.details.reasoning == THOUGHT


def moment(seconds: float) -> str:
    """A time as the API writes it."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@pytest.mark.parametrize("limit", ["requests", "tokens", "input-tokens", "output-tokens"])
def test_a_limit_that_is_used_up_is_waited_for_until_its_reset(limit: str) -> None:
    left = {f"anthropic-ratelimit-{limit}-{name}": value for name, value in (("limit", "50"), ("remaining", "0"))}
    headers = {**left, f"anthropic-ratelimit-{limit}-reset": moment(20)}
    assert limit_reset_s(headers) == pytest.approx(20, abs=2)
    assert requested_wait_s({**headers, "retry-after": "3"}) == 3
    assert limit_reset_s({**headers, f"anthropic-ratelimit-{limit}-remaining": "1"}) is None


def test_an_answer_that_says_that_a_limit_is_used_up_holds_the_next_call_back() -> None:
    reset = moment(0.6)
    names = {"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": reset}
    with AnthropicServer() as server:
        model = build(server)
        server.limits = names
        ask(model, "first")
        server.limits = {}
        ask(model, "second")
        second = server.requests[1]
    assert time.time() - (time.monotonic() - second.time) >= datetime.fromisoformat(reset).timestamp() - 0.05
