"""Replies in the shapes of many endpoints: what was thought, what was answered, what it cost, and who answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai_models
import pytest
from faults import Fault
from openai_models import Chat, Completion, Embeddings, answer, ask, build, error
from openai_server import OpenAIServer

from rambla_ray.actors.api.answer_length import LONGEST_TEXT
from rambla_ray.actors.api.reply_details import LONGEST_NAME, details_of
from rambla_ray.actors.api.token_usage import Usage, usage_of
from rambla_ray.actors.model import without_lone_surrogates
from rambla_ray.actors.openai import OpenAIModel
from rambla_ray.schema import NO_DETAILS, ReplyDetails, Response

only_a_key = openai_models.only_a_key  # It runs by itself before each test of this file.

T, A = "The answer is yes.", "No."  # What each model thinks, and what it answers.
PLAIN = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
OPENAI = {
    **PLAIN,
    "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 40, "accepted_prediction_tokens": 0},
}
XAI = {
    **OPENAI,
    "total_tokens": 190,
    "num_sources_used": 0,
    "completion_tokens_details": {"reasoning_tokens": 40, "audio_tokens": 0},
}
GOOGLE = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 190}
DEEPSEEK = {
    **PLAIN,
    "prompt_cache_hit_tokens": 64,
    "prompt_cache_miss_tokens": 36,
    "completion_tokens_details": {"reasoning_tokens": 40},
}
SGLANG = {**PLAIN, "prompt_tokens_details": {"cached_tokens": 64}, "reasoning_tokens": 40}
MOONSHOT = {**PLAIN, "cached_tokens": 64}
CLAUDE = {**PLAIN, "cache_read_input_tokens": 64, "cache_creation_input_tokens": 20}
OPENROUTER = {
    **OPENAI,
    "cost": 0.00012,
    "is_byok": False,
    "prompt_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 20, "audio_tokens": 0},
}


def said(content: Any, **message: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **message}


def mistral(*texts: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [{"type": "text", "text": text} for text in texts]}


ENCRYPTED = {"type": "reasoning.encrypted", "data": "gAAAA", "format": "openai-responses-v1", "index": 0}
HARMONY = f"<|channel|>analysis<|message|>{T}<|end|><|start|>assistant<|channel|>final<|message|>{A}<|return|>"

# By endpoint: a message, its usage, and what the usage says.
WHOLE = Usage(100, 50, 40, 64)
APART = Usage(100, 90, 40, 64)
MESSAGES: dict[str, tuple[dict[str, Any], dict[str, Any], Usage]] = {
    "DeepSeek": (said(A, reasoning_content=T), DEEPSEEK, WHOLE),
    "Qwen": (said(A, reasoning_content=T), OPENAI, WHOLE),
    "vLLM": (said(A, reasoning_content=T, refusal=None, tool_calls=[]), PLAIN, Usage(100, 50)),
    "vLLM, newer": (said(A, reasoning=T, refusal=None, tool_calls=[]), PLAIN, Usage(100, 50)),
    "vLLM, both names": (said(A, reasoning=T, reasoning_content=T), PLAIN, Usage(100, 50)),
    "vLLM without a parser": (said(f"{T}\n</think>\n\n{A}"), PLAIN, Usage(100, 50)),
    "Qwen3 without a parser": (said(f"<think>\n{T}\n</think>\n\n{A}", reasoning_content=None), PLAIN, Usage(100, 50)),
    "SGLang": (said(A, reasoning_content=T), SGLANG, WHOLE),
    "Ollama": (said(A, reasoning=T), PLAIN, Usage(100, 50)),
    "llama.cpp": (said(A, reasoning_content=T), PLAIN, Usage(100, 50)),
    "llama.cpp, deepseek-legacy": (said(f"<think>{T}</think>{A}", reasoning_content=T), PLAIN, Usage(100, 50)),
    "llama.cpp, none": (said(f"<think>{T}</think>{A}"), PLAIN, Usage(100, 50)),
    "OpenRouter": (
        said(A, reasoning=T, reasoning_details=[{"type": "reasoning.text", "text": T, "signature": "x", "index": 0}]),
        OPENROUTER,
        Usage(100, 50, 40, 64, 20),
    ),
    "OpenRouter, summary": (
        said(A, reasoning=None, reasoning_details=[{"type": "reasoning.summary", "summary": T}, ENCRYPTED]),
        OPENROUTER,
        Usage(100, 50, 40, 64, 20),
    ),
    "xAI": (said(A, reasoning_content=T, refusal=None), XAI, APART),
    "Mistral": (said([mistral(T), {"type": "text", "text": A}]), PLAIN, Usage(100, 50)),
    "Mistral, older": (said(f"[THINK]{T}[/THINK]{A}"), PLAIN, Usage(100, 50)),
    "Gemini": (said(f"<thought>\n{T}\n</thought>\n{A}"), GOOGLE, Usage(100, 90, 40)),
    "Gemini, parts": (said([{"text": T, "thought": True}, {"text": A}]), GOOGLE, Usage(100, 90, 40)),
    "Claude, parts": (
        said([{"type": "thinking", "thinking": T, "signature": "x"}, {"type": "text", "text": A}]),
        CLAUDE,
        Usage(100, 50, 0, 64, 20),
    ),
    "Claude, LiteLLM": (
        said(A, reasoning_content=T, thinking_blocks=[{"type": "thinking", "thinking": T, "signature": "x"}]),
        CLAUDE,
        Usage(100, 50, 0, 64, 20),
    ),
    "Claude, blocks alone": (
        said(A, thinking_blocks=[{"type": "redacted_thinking", "data": "x"}, {"type": "thinking", "thinking": T}]),
        CLAUDE,
        Usage(100, 50, 0, 64, 20),
    ),
    "Databricks": (
        said([{"type": "reasoning", "summary": [{"type": "summary_text", "text": T}]}, {"type": "text", "text": A}]),
        PLAIN,
        Usage(100, 50),
    ),
    "gpt-oss, no parser": (said(HARMONY), PLAIN, Usage(100, 50)),
    "gpt-oss, Groq": (said(A, reasoning=T), OPENAI, WHOLE),
    "gpt-oss, Bedrock": (said(f"<reasoning>{T}</reasoning>{A}"), PLAIN, Usage(100, 50)),
    "Moonshot": (said(A, reasoning_content=T), MOONSHOT, Usage(100, 50, 0, 64)),
    "MiniMax": (said(A, reasoning_details=[{"type": "reasoning.text", "text": T}]), PLAIN, Usage(100, 50)),
    "an object": (said(A, reasoning={"effort": "low", "summary": T}), PLAIN, Usage(100, 50)),
    "a field and a block": (said(f"<think>{T}</think>{A}", reasoning="So?"), PLAIN, Usage(100, 50)),
}
SHOWN = {"a field and a block": f"So?\n\n{T}"}
# Without the answer, what is left of them is a thought alone.
ENDLESS = {name: json.loads(json.dumps(message).replace(A, "")) for name, (message, _, _) in MESSAGES.items()} | {
    "an open block": said(f"<think>\n{T}"),
    "an open block, upper case": said(f"<THINK>{T}"),
    "an open channel": said(f"<|channel|>analysis<|message|>{T}"),
    "an open block beside a field": said(f"<think>{T}", reasoning_content=None),
    "no content": said(None, reasoning_content=T),
    "content that is missing": {"role": "assistant", "reasoning": T},
}


THOUGHTS = [(name, message, reason) for name, message in ENDLESS.items() for reason in ("length", "stop")]


def body_of(message: dict[str, Any], usage: Any, reason: str = "stop", **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": reason, "message": message}], "usage": usage, **more}


def replied(bodies: dict[str, Any], kind: type[OpenAIModel] = Chat) -> dict[str, Response]:
    """The answers in replies with these bodies, each asked for once."""
    faults = [Fault("reply", f"[{name}]", body=json.dumps(body).encode(), times=-1) for name, body in bodies.items()]
    with OpenAIServer(faults=faults) as server:
        answers = ask(build(server, kind), *(f"[{name}]" for name in bodies))
        assert len(server.requests) == len(bodies)
    return dict(zip(bodies, answers, strict=True))


@pytest.fixture(scope="module")
def answers() -> Iterator[dict[str, Response]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", openai_models.KEY)
        whole = {name: body_of(message, usage) for name, (message, usage, _) in MESSAGES.items()}
        cut = {f"{name}, {reason}": body_of(message, PLAIN, reason) for name, message, reason in THOUGHTS}
        yield replied({**whole, **cut})


@pytest.mark.parametrize("name", MESSAGES)
def test_a_thought_is_kept_beside_the_answer_and_all_tokens_are_counted(
    answers: dict[str, Response], name: str
) -> None:
    found, usage = answers[name], MESSAGES[name][2]
    assert (found.text, found.finish_reason, found.details.reasoning) == (A, "stop", SHOWN.get(name, T))
    details = found.details
    parts = (details.reasoning_tokens, details.cached_tokens, details.cache_write_tokens)
    assert (found.prompt_tokens, found.completion_tokens, *parts) == usage


@pytest.mark.parametrize("name", [f"{name}, {reason}" for name, _, reason in THOUGHTS])
def test_a_thought_without_an_answer_is_an_answer_that_was_cut_and_asked_for_once(
    answers: dict[str, Response], name: str
) -> None:
    found = answers[name]
    assert (found.text.strip(), found.finish_reason, found.trace.attempts) == ("", "length", 1)
    assert T in found.details.reasoning
    assert (found.prompt_tokens, found.completion_tokens, found.trace.failed_completion_tokens) == (100, 50, 0)


CUT = "Could not finish the message because max_tokens or model output limit was reached. Please try again."


@pytest.mark.parametrize("usage", [None, OPENAI])
def test_a_limit_that_thinking_used_up_is_no_error_although_the_endpoint_calls_it_one(usage: Any) -> None:
    body = {"error": {"message": CUT, "type": "invalid_request_error", "param": None, "code": None}, "usage": usage}
    with OpenAIServer(faults=[Fault("reply", status=400, body=json.dumps(body).encode(), times=-1)]) as server:
        found = ask(build(server), "hello")[0]
        assert len(server.requests) == 1
    tokens = (usage["prompt_tokens"], usage["completion_tokens"]) if usage else (0, 0)
    assert (found.text, found.finish_reason, found.prompt_tokens, found.completion_tokens) == ("", "length", *tokens)


def test_what_is_encrypted_of_a_thought_is_not_kept_but_shows_that_there_was_one() -> None:
    hidden = [said(None, reasoning_details=[ENCRYPTED]), said([{"type": "redacted_thinking", "data": "x"}])]
    ends = replied({str(number): body_of(message, PLAIN) for number, message in enumerate(hidden)})
    assert [(end.text, end.finish_reason, end.details.reasoning) for end in ends.values()] == [("", "length", "")] * 2


@pytest.mark.parametrize("odd", [7, True, [], {}, [None, 7, [[[[[[["yes"]]]]]]]], {"text": {"text": 7}}, {"a": "yes"}])
def test_a_thought_of_no_known_shape_does_not_spoil_the_answer(odd: Any) -> None:
    message = said(A, reasoning_content=odd, reasoning=odd, reasoning_details=odd, thinking=odd, thinking_blocks=odd)
    found = replied({"odd": body_of(message, PLAIN)})["odd"]
    assert (found.text, found.details.reasoning) == (A, "")


def test_a_completion_has_its_thoughts_in_its_text() -> None:
    body = {"choices": [{"text": f"{T}</think>\n\n{A}", "finish_reason": "stop"}], "usage": OPENAI, "model": "m-1"}
    found = replied({"x": body}, Completion)["x"]
    assert (found.text, found.details) == (A, ReplyDetails(T, 40, 64, served_model="m-1"))


def test_a_thought_is_cut_like_an_answer_and_holds_no_lone_surrogate() -> None:
    long = "\ud800" + "word " * LONGEST_TEXT
    found = replied({"x": body_of(said(A, reasoning=long), PLAIN)})["x"]
    assert (found.text, found.finish_reason) == (A, "stop")
    assert found.details.reasoning == "\ufffd" + long[1:LONGEST_TEXT]


def test_lone_surrogates_of_any_model_are_replaced_before_a_response_is_stored() -> None:
    odd = Response("a\ud800", details=ReplyDetails("b\udfff", served_model="m"))
    assert without_lone_surrogates(odd) == Response("a\ufffd", details=ReplyDetails("b\ufffd", served_model="m"))
    plain = Response("a", details=ReplyDetails("b"))
    assert without_lone_surrogates(plain) is plain


# What it cost

USAGES: list[tuple[Any, Usage]] = [
    (None, Usage()),
    ([], Usage()),
    ({}, Usage()),
    (PLAIN, Usage(100, 50)),
    (OPENAI, WHOLE),
    (XAI, APART),
    (GOOGLE, Usage(100, 90, 40)),
    ({**GOOGLE, "completion_tokens": 0}, Usage(100, 90, 90)),
    ({**PLAIN, "total_tokens": 0, "reasoning_tokens": 80}, Usage(100, 130, 80)),
    ({**PLAIN, "reasoning_tokens": 80}, Usage(100, 50, 50)),
    ({**PLAIN, "cached_tokens": 101}, Usage(100, 50, 0, 100)),
    ({**PLAIN, "cached_tokens": 90, "cache_write_tokens": 90}, Usage(100, 50, 0, 90, 10)),
    (
        {**PLAIN, "total_tokens": 234, "cache_read_input_tokens": 64, "cache_creation_input_tokens": 20},
        Usage(184, 50, 0, 64, 20),
    ),
    ({**PLAIN, "total_tokens": 254, "cached_tokens": 64, "reasoning_tokens": 40}, Usage(164, 90, 40, 64)),
    ({**PLAIN, "total_tokens": 100}, Usage(100, 50)),
    ({**PLAIN, "total_tokens": "190"}, Usage(100, 50)),
    ({"prompt_tokens": 7, "total_tokens": 7}, Usage(7)),
    (
        {"input_tokens": 16, "cache_read_input_tokens": 64, "cache_creation_input_tokens": 20, "output_tokens": 50},
        Usage(100, 50, 0, 64, 20),
    ),
    (
        {
            "input_tokens": 100,
            "input_tokens_details": {"cached_tokens": 64},
            "output_tokens": 50,
            "output_tokens_details": {"reasoning_tokens": 40},
            "total_tokens": 150,
        },
        WHOLE,
    ),
    ({**PLAIN, "prompt_tokens_details": None, "completion_tokens_details": [7]}, Usage(100, 50)),
    ({**PLAIN, "prompt_tokens_details": {"cached_tokens": -1}, "reasoning_tokens": "7"}, Usage(100, 50)),
]


@pytest.mark.parametrize(("usage", "counted"), USAGES)
def test_tokens_are_counted_in_one_way_whoever_counts_them(usage: Any, counted: Usage) -> None:
    assert usage_of(usage) == counted


def test_a_call_that_gave_no_answer_is_charged_with_what_it_thought() -> None:
    body = body_of(said(None), XAI, "content_filter")
    with OpenAIServer(faults=[Fault("reply", body=json.dumps(body).encode())]) as server:
        failed = error(build(server))
    assert (failed.trace.failed_prompt_tokens, failed.trace.failed_completion_tokens) == (100, 90)


# Who answered

NAMED = {"model": "gpt-5.6-2026-08-01", "system_fingerprint": "fp_1", "provider": "Together"}


def test_a_reply_s_names_are_kept_and_one_object_holds_them_for_all_replies() -> None:
    first, second = replied({name: body_of(said(name), PLAIN, **NAMED) for name in ("a", "b")}).values()
    assert first.details == ReplyDetails(
        served_model="gpt-5.6-2026-08-01", system_fingerprint="fp_1", provider="Together"
    )
    assert first.details is second.details


def test_vectors_have_the_name_of_the_model_that_made_them() -> None:
    with OpenAIServer() as server:
        assert answer(build(server, Embeddings), "hello").details == ReplyDetails(served_model="gpt-4")


@pytest.mark.parametrize("odd", [None, 7, ["m"], {"id": "m"}, "", " \n"])
def test_a_name_that_is_none_is_not_kept(odd: Any) -> None:
    assert details_of({"model": odd, "system_fingerprint": odd, "provider": odd}) is NO_DETAILS


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("a\x1b[31m\nb\u202e", r"a\x1b[31m b\u202e"),
        ("\ud800", r"\ud800"),
        ("m" * 1000, "m" * LONGEST_NAME),
        ("\x1b" * 1000, (r"\x1b" * 1000)[:LONGEST_NAME]),
        ("ft:sk-secret-0123456789-0123456789", "ft:***"),
        ("m/my-own-key-0123456789", "m/***"),
    ],
)
def test_a_name_is_short_shows_as_what_it_is_and_holds_no_secret(
    monkeypatch: pytest.MonkeyPatch, name: str, kept: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "my-own-key-0123456789")
    assert details_of({"model": name}).served_model == kept


def test_a_reply_that_names_nothing_has_no_details() -> None:
    assert replied({"x": body_of(said(A), PLAIN)})["x"].details is NO_DETAILS
