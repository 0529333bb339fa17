"""Models behind OpenAI's Responses API: what is sent, and what is read from answers and errors."""

from __future__ import annotations

import json
from typing import Any

import anthropic_models
import pytest
from anthropic_models import Responses, ask, build, error, responses_params
from faults import Fault
from pause_clock import PauseClockPolicy
from pydantic import ValidationError
from responses_server import SUMMARY, ResponsesServer

from rambla_ray.actors.api.openai_params import PLAIN_URL
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.errors import CallError, ErrorKind, UserError
from rambla_ray.schema import GenerationOptions, Message, ReplyDetails, Request, Response, canonical_json

keys = anthropic_models.keys  # It runs by itself before each test of this file.

PLAIN = {"model": "gpt-x", "input": "Is it so?", "store": False}
FORMAT = {"type": "json_object"}


def sent(request: Request | str = "Is it so?", **given: Any) -> dict[str, Any]:
    """The body that is sent for a request."""
    with ResponsesServer() as server:
        ask(build(server, **given), request)
    (body,) = server.bodies
    return body


@pytest.mark.parametrize(
    ("given", "members"),
    [
        ({}, {}),
        ({"temperature": None, "max_output_tokens": None, "system": None, "reasoning_effort": None}, {}),
        ({"temperature": 0.0, "top_p": 0.5}, {"temperature": 0.0, "top_p": 0.5}),
        ({"max_output_tokens": 9}, {"max_output_tokens": 9}),
        ({"system": "Be brief."}, {"instructions": "Be brief."}),
        ({"reasoning_effort": "low"}, {"reasoning": {"effort": "low"}}),
        (
            {"reasoning_effort": "low", "reasoning_summary": "auto"},
            {"reasoning": {"effort": "low", "summary": "auto"}},
        ),
        ({"verbosity": "low"}, {"text": {"verbosity": "low"}}),
        ({"response_format": FORMAT}, {"text": {"format": FORMAT}}),
        ({"service_tier": "flex"}, {"service_tier": "flex"}),
        (
            {"temperature": 0.5, "extra_body": {"temperature": 0.1, "prompt_cache_key": "a"}},
            {"temperature": 0.1, "prompt_cache_key": "a"},
        ),
    ],
)
def test_a_body_holds_the_prompt_and_the_params_that_are_given_and_nothing_else(
    given: dict[str, Any], members: dict[str, Any]
) -> None:
    assert sent(**given) == {**PLAIN, **members}


SYSTEM, ASKED = Message("system", "Be kind."), Message("user", "Is it so?")


@pytest.mark.parametrize(
    ("request_", "members"),
    [
        (Request("Is it so?", system="Be brief."), {"instructions": "Be brief."}),
        (
            Request("", messages=(SYSTEM, ASKED, Message("assistant", "No."), ASKED)),
            {
                "instructions": "Be kind.",
                "input": [
                    {"role": "user", "content": "Is it so?"},
                    {"role": "assistant", "content": "No."},
                    {"role": "user", "content": "Is it so?"},
                ],
            },
        ),
        (
            Request("Is it so?", options=GenerationOptions(7, 0.0, 0.5)),
            {"instructions": "Be exact.", "max_output_tokens": 7, "temperature": 0.0, "top_p": 0.5},
        ),
    ],
)
def test_a_request_may_have_a_system_prompt_a_conversation_and_options_of_its_own(
    request_: Request, members: dict[str, Any]
) -> None:
    assert sent(request_, system="Be exact.") == {**PLAIN, **members}


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("Go on", verbatim=True), "continues no bare text"),
        (Request("Go on", options=GenerationOptions(seed=1)), "takes no seed"),
        (Request("Go on", options=GenerationOptions(stop=("END",))), "takes no stop"),
        (Request("", messages=(SYSTEM,)), "needs a turn of the user's"),
    ],
)
def test_what_the_api_cannot_do_is_refused_before_it_is_asked(request_: Request, words: str) -> None:
    with ResponsesServer() as server:
        failed = error(build(server), request_)
        assert (failed.kind, server.requests) == (ErrorKind.BAD_REQUEST, [])
    assert words in failed.message


@pytest.mark.parametrize(
    ("given", "path"), [({}, "/v1/responses"), ({"api_type": "azure", "api_version": "v"}, "/openai/responses")]
)
def test_the_endpoint_is_the_plain_one_or_azures(given: dict[str, str], path: str) -> None:
    with ResponsesServer() as server:
        assert ask(build(server, **given)).text
        assert [record.path for record in server.requests] == [path]


def test_the_endpoint_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert responses_params().base_url == PLAIN_URL
    monkeypatch.setenv("OPENAI_API_BASE", "https://here.example/v1/")
    assert responses_params().base_url == "https://here.example/v1"


@pytest.mark.parametrize("name", ["input", "messages", "model", "stream", "store", "background", "instructions"])
def test_extra_body_may_not_say_what_is_asked_and_how_it_is_answered(name: str) -> None:
    with pytest.raises((UserError, ValidationError), match=f"'{name}'"):
        responses_params(extra_body={name: True})


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        *(
            (change, True)
            for change in ({"engine": "y"}, {"max_output_tokens": 9}, {"system": "Hi"}, {"verbosity": "low"})
        ),
        *((change, True) for change in ({"reasoning_effort": "low"}, {"temperature": 0.0}, {"extra_body": {"a": 1}})),
        *((change, False) for change in ({"extra_headers": {"a": "b"}}, {"async_calls": True}, {"top_p": None})),
    ],
)
def test_identity_changes_with_what_may_change_an_answer_only(change: dict[str, Any], differs: bool) -> None:
    one, other = (
        canonical_json(Responses(responses_params(**given), Pool(), None).identity()) for given in ({}, change)
    )
    assert (one != other) == differs


# Replies

USAGE = {
    "input_tokens": 10,
    "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
    "output_tokens": 40,
    "output_tokens_details": {"reasoning_tokens": 30},
}
TEXT = {"type": "output_text", "text": "Yes", "annotations": []}
MESSAGE = {"type": "message", "role": "assistant", "content": [TEXT]}
COMMENTARY = {**MESSAGE, "phase": "commentary", "content": [{"type": "output_text", "text": "First I look."}]}
DECLINED = {**MESSAGE, "content": [{"type": "refusal", "refusal": "I cannot."}]}
BLANK = {**MESSAGE, "content": [{**TEXT, "text": ""}]}
REASONING = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Let me see."}]}
OPEN = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
CALL = {"type": "function_call", "name": "search", "arguments": "{}"}
CUT = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
FILTERED = {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}


def reply(output: Any, **members: Any) -> dict[str, Any]:
    plain = {
        "object": "response",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": "gpt-x-1",
    }
    return {**plain, "output": output, "usage": {"input_tokens": 10, "output_tokens": 40}, **members}


def replied(body: Any) -> Response:
    with ResponsesServer(faults=[Fault("reply", body=json.dumps(body).encode())]) as server:
        return ask(build(server))


def failed(body: Any, status: int = 200) -> tuple[CallError, int]:
    """What comes of a call that always gets this reply, and how many there were."""
    script = Fault("reply", status=status, body=json.dumps(body).encode(), times=-1)
    with ResponsesServer(faults=[script]) as server:
        model = build(server, rate=Rate(give_up_after_s=0.2))
        model.retry = PauseClockPolicy(attempts=2, first_pause_s=0.02, longest_pause_s=0.1)
        return error(model), len(server.requests)


@pytest.mark.parametrize(
    ("body", "text", "ending"),
    [
        (reply([MESSAGE]), "Yes", "stop"),
        (reply([REASONING, MESSAGE]), "Yes", "stop"),
        (reply([COMMENTARY, {**MESSAGE, "phase": "final_answer"}]), "Yes", "stop"),
        (reply([{**MESSAGE, "content": [TEXT, {**TEXT, "text": ", so."}]}]), "Yes, so.", "stop"),
        ({"output": [MESSAGE]}, "Yes", "stop"),
        (reply([MESSAGE], **CUT), "Yes", "length"),
        (reply([MESSAGE], status="incomplete"), "Yes", "length"),
        (reply([MESSAGE], **FILTERED), "Yes", "content_filter"),
        (reply([{**MESSAGE, "content": [TEXT, *DECLINED["content"]]}]), "Yes", "content_filter"),
        (reply([REASONING], **CUT), "", "length"),
        (reply([], **CUT), "", "length"),
        (reply([REASONING]), "", "length"),
        (reply([REASONING, BLANK]), "", "length"),
        (reply([BLANK], usage=USAGE), "", "length"),
        (reply([BLANK]), "", "stop"),
        (reply([REASONING, CALL]), "", "stop"),
    ],
)
def test_an_answer_is_its_texts_and_how_it_ended(body: Any, text: str, ending: str) -> None:
    response = replied(body)
    assert (response.text, response.finish_reason, response.trace.attempts) == (text, ending, 1)


def test_what_stands_beside_a_text_is_kept_beside_it() -> None:
    response = replied(reply([REASONING, OPEN, COMMENTARY, MESSAGE], usage=USAGE, provider="Azure"))
    assert (response.prompt_tokens, response.completion_tokens) == (10, 40)
    assert response.details == ReplyDetails(
        reasoning="Let me see.\n\nHm.\n\nFirst I look.",
        reasoning_tokens=30,
        cached_tokens=4,
        cache_write_tokens=3,
        served_model="gpt-x-1",
        provider="Azure",
    )


@pytest.mark.parametrize("body", [reply([DECLINED]), reply([], **FILTERED), reply([REASONING], **FILTERED)])
def test_an_answer_that_is_declined_or_withheld_is_refused_and_what_it_cost_is_counted(body: Any) -> None:
    refused, calls = failed(body)
    assert (refused.kind, calls) == (ErrorKind.REFUSED, 1)
    assert (refused.prompt_tokens, refused.completion_tokens) == (10, 40)


GARBAGE, SERVER, REFUSED = ErrorKind.GARBAGE, ErrorKind.SERVER, ErrorKind.REFUSED


@pytest.mark.parametrize(
    ("body", "kind", "calls"),
    [
        *((body, GARBAGE, 2) for body in (None, [], {}, reply([]), reply(["Yes"]), reply("Yes"))),
        *((reply([], status=status), GARBAGE, 2) for status in ("queued", "in_progress", 7, None)),
        (reply([{**MESSAGE, "content": [{"type": "output_text", "text": None}]}]), GARBAGE, 2),
        *((reply([MESSAGE], status=status), SERVER, 2) for status in ("failed", "cancelled")),
    ],
)
def test_a_reply_that_is_no_answer_is_asked_for_again(body: Any, kind: ErrorKind, calls: int) -> None:
    read, asked = failed(body)
    assert (read.kind, asked) == (kind, calls)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("server_error", SERVER),
        ("rate_limit_exceeded", ErrorKind.RATE_LIMITED),
        ("insufficient_quota", ErrorKind.QUOTA),
        ("invalid_prompt", REFUSED),
        ("bio_policy", REFUSED),
        ("misalignment_policy_violation", REFUSED),
    ],
)
@pytest.mark.parametrize("output", [[], [MESSAGE]], ids=["nothing", "a part"])
def test_an_answer_that_failed_is_read_as_its_code(output: Any, code: str, kind: ErrorKind) -> None:
    message = "The prompt was flagged." if code == "invalid_prompt" else "It did not work."
    assert failed(reply(output, status="failed", error={"code": code, "message": message}))[0].kind == kind


def test_an_error_with_a_status_is_read_as_that_of_the_other_apis() -> None:
    body = {"error": {"message": "The input is too long.", "code": "context_length_exceeded", "param": "input"}}
    assert failed(body, 400)[0].kind == ErrorKind.TOO_LONG


def test_a_param_that_an_engine_refuses_is_asked_for_once() -> None:
    with ResponsesServer(modern=True) as server:
        refused = error(build(server, temperature=0.0))
        assert (refused.kind, len(server.requests)) == (ErrorKind.UNSUPPORTED, 1)
    assert refused.message.startswith("engine gpt-x does not take temperature: set params.temperature: null (")


@pytest.mark.parametrize(
    ("given", "member", "way_out"),
    [
        ({"reasoning_effort": "max"}, "reasoning.effort", "set params.reasoning_effort: null"),
        ({"reasoning_summary": "auto"}, "reasoning.summary", "set params.reasoning_summary: null"),
        ({"verbosity": "low"}, "text.verbosity", "set params.verbosity: null"),
        ({"response_format": FORMAT}, "text.format", "set params.response_format: null"),
        ({"extra_body": {"user": "a"}}, "user", "remove user from params.extra_body"),
    ],
)
def test_a_param_that_is_refused_is_named_as_the_config_has_it(given: Any, member: str, way_out: str) -> None:
    said = {"message": f"Unsupported value: '{member}'.", "code": "unsupported_value", "param": member}
    script = Fault("reply", status=400, body=json.dumps({"error": said}).encode())
    with ResponsesServer(faults=[script]) as server:
        refused = error(build(server, **given))
    assert refused.kind == ErrorKind.UNSUPPORTED
    assert refused.message.startswith(f"engine gpt-x does not take {member}: {way_out} (")


def test_reasoning_that_uses_up_the_answer_is_cut_off_after_one_call() -> None:
    given = {"reasoning_effort": "low", "reasoning_summary": "auto", "max_output_tokens": 3}
    with ResponsesServer() as server:
        response = ask(build(server, **given))
        assert len(server.requests) == 1
    assert (response.text, response.finish_reason, response.completion_tokens) == ("", "length", 3)
    assert (response.details.reasoning, response.details.reasoning_tokens) == (SUMMARY, 3)
