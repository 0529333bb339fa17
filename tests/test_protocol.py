"""The OpenAI API as it is accepted and spoken: what is read, what is refused and in which words, what is sent."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import types
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.shared import ErrorObject
from pydantic import BaseModel

from rambla_ray.actors.api.openai_replies import chat_answer
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import GenerationOptions, Message, ReplyDetails, Request, Response
from rambla_ray.serving import replies
from rambla_ray.serving import requests as protocol
from rambla_ray.serving.requests import ApiError, ChatCall, CompletionCall, EmbeddingsCall

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> ChatCall:
    return protocol.parse(ChatCall, json.dumps({"model": "m", "messages": HELLO, **fields}).encode())


def refused(kind: Any, **fields: Any) -> ApiError:
    try:
        protocol.parse(kind, json.dumps({"model": "m", **fields}).encode()).requests()
    except ApiError as error:
        return error
    raise AssertionError("it was not refused")


def test_a_conversation_is_read_with_its_options():
    call = chat(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}]},
            {"role": "assistant", "content": "Hi"},
        ],
        max_tokens=1,
        max_completion_tokens=9,
        temperature=0,
        top_p=0.5,
        seed=-3,
        stop=["a", "b"],
    )
    assert call.requests() == [
        Request(
            "",
            messages=(Message("system", "Be brief."), Message("user", "Hello"), Message("assistant", "Hi")),
            options=GenerationOptions(max_tokens=9, temperature=0.0, top_p=0.5, seed=-3, stop=("a", "b")),
        )
    ]


def test_prompts_are_to_be_continued_as_they_stand():
    call = protocol.parse(CompletionCall, b'{"model": "m", "prompt": ["a", "b"], "stop": "x"}')
    options = GenerationOptions(stop=("x",))
    assert call.requests() == [Request(text, verbatim=True, options=options) for text in ("a", "b")]


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "tools": [], "tool_choice": "none", "logprobs": False, "response_format": {"type": "text"}},
        {"n": None, "stop": None, "stream": None, "frequency_penalty": 0.0, "logit_bias": {}, "user": "me"},
        {"messages": [{"role": "assistant", "content": "hello", "refusal": None, "tool_calls": []}]},
    ],
)
def test_what_changes_nothing_is_accepted(fields):
    (request,) = chat(**fields).requests()
    assert (request.text, request.options) == ("hello", GenerationOptions())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"frequency_penalty": 0.1}, "frequency_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_k": 3}, "top_k"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": "hello"}, "messages"),
        ({"model": None}, "model"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(fields, param):
    error = refused(ChatCall, **{"messages": HELLO, **fields})
    assert (error.status, error.body["error"]["param"], error.body["error"]["code"]) == (400, param, None)
    assert param in error.body["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        (CompletionCall, {"prompt": []}, "prompt"),
        (CompletionCall, {"prompt": [1, 2]}, "prompt[0]"),
        (CompletionCall, {"prompt": ["a", "b"], "stream": True}, "prompt"),
        (CompletionCall, {"prompt": "a", "echo": True}, "echo"),
        (CompletionCall, {"prompt": "a", "best_of": 3}, "best_of"),
        (EmbeddingsCall, {"input": ["a", ""]}, "input"),
        (EmbeddingsCall, {"input": ["a"] * (protocol.MOST_INPUTS + 1)}, "input"),
        (EmbeddingsCall, {"input": "a", "dimensions": 3}, "dimensions"),
        (EmbeddingsCall, {"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ],
)
def test_other_endpoints_refuse_in_the_same_way(kind, fields, param):
    assert refused(kind, **fields).body["error"]["param"] == param


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b"\xff", b'{"model": "\\ud800"}', b"[" * 100_000])
def test_a_body_that_is_no_request_is_refused(body):
    with pytest.raises(ApiError) as raised:
        protocol.parse(ChatCall, body)
    assert raised.value.status == 400


def test_a_refusal_does_not_repeat_what_was_sent():
    error = refused(ChatCall, messages=[{"role": "user", "content": {"secret": "patient 7"}}], n="patient 7")
    assert "patient" not in json.dumps(error.body)


JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_is_no_request_is_refused(body):
    for kind in (ChatCall, CompletionCall, EmbeddingsCall):
        with pytest.raises(ApiError):
            protocol.parse(kind, body)


STATUSES = {
    ErrorKind.TOO_LONG: (400, "context_length_exceeded"),
    ErrorKind.RATE_LIMITED: (429, "rate_limit_exceeded"),
    ErrorKind.SERVER: (502, "bad_gateway"),
    ErrorKind.AUTH: (502, "bad_gateway"),
    ErrorKind.TIMEOUT: (504, "timeout"),
    ErrorKind.DIED: (503, "unavailable"),
    ErrorKind.INTERNAL: (500, "internal"),
    ErrorKind.OUT_OF_MEMORY: (500, "out_of_memory"),
}


@pytest.mark.parametrize("kind", ErrorKind)
def test_every_error_of_a_model_has_a_status(kind):
    error = protocol.api_error(CallError(kind, "why", retry_after_s=2.0))
    assert 400 <= error.status < 600
    assert error.body["error"]["message"] == "why"
    if kind in STATUSES:
        assert (error.status, error.body["error"]["code"]) == STATUSES[kind]


def test_an_error_of_a_model_says_when_to_try_again():
    assert protocol.api_error(CallError(ErrorKind.RATE_LIMITED, "why", retry_after_s=2.0)).retry_after_s == 2.0


def events(stream: bytes) -> list[Any]:
    *events, done, rest = stream.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


@pytest.mark.parametrize("usage", [True, False])
def test_the_pieces_of_a_stream_add_up(usage):
    reply = replies.ReplyFrame(chat(stream=True, stream_options={"include_usage": usage}))
    response = Response("a µ b", "length", prompt_tokens=3, completion_tokens=2)
    sent = events(reply.first() + reply.piece("a µ") + reply.piece(" b") + reply.last(response))
    assert len({event["id"] for event in sent}) == 1
    chunks = [event["choices"][0] for event in sent if event["choices"]]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == "a µ b"
    assert [chunk["finish_reason"] for chunk in chunks] == [None, None, None, "length"]
    usages = [event["usage"] for event in sent if event.get("usage")]
    assert usages == ([{"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}] if usage else [])


def unknown_keys(value: Any) -> list[str]:
    """The keys that a reply has beside those that its type declares, in it and in its parts."""
    if isinstance(value, list):
        return [key for part in value for key in unknown_keys(part)]
    if not isinstance(value, BaseModel):
        return []
    parts = [getattr(value, name) for name in type(value).model_fields]
    return [*(value.model_extra or {}), *unknown_keys(parts)]


COMPLETION = protocol.parse(CompletionCall, b'{"model": "m", "prompt": ["a", "b"]}')
EMBEDDINGS = protocol.parse(EmbeddingsCall, b'{"model": "m", "input": ["a", "b"]}')
ANSWERS = [Response("x", prompt_tokens=1, completion_tokens=1), Response("y", "length", prompt_tokens=2)]


@pytest.mark.parametrize(
    ("kind", "reply"),
    [
        (ChatCompletion, replies.ReplyFrame(chat()).whole(ANSWERS[:1])),
        (types.Completion, replies.ReplyFrame(COMPLETION).whole(ANSWERS)),
        (types.CreateEmbeddingResponse, replies.embeddings(EMBEDDINGS, [Response("[0.5]"), Response("[1.0, 2.0]")])),
        (types.Model, replies.model("m", 1)),
        (types.Model, replies.models({"m": 1, "n": 2})["data"][1]),
        (ErrorObject, ApiError(400, "why").body["error"]),
        (ErrorObject, protocol.api_error(CallError(ErrorKind.TOO_LONG, "why")).body["error"]),
    ],
)
def test_a_whole_reply_is_what_the_official_client_takes_for_one(kind, reply):
    assert unknown_keys(kind.model_validate(reply, strict=True)) == []


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize(
    ("kind", "of", "own"),
    [(ChatCall, ChatCompletionChunk, {"messages": HELLO}), (CompletionCall, types.Completion, {"prompt": "a"})],
)
def test_every_piece_of_a_stream_is_what_the_official_client_takes_for_one(kind, of, own, usage):
    body = {"model": "m", "stream": True, "stream_options": {"include_usage": usage}, **own}
    reply = replies.ReplyFrame(protocol.parse(kind, json.dumps(body).encode()))
    sent = events(reply.first() + reply.piece("x") + reply.last(ANSWERS[0]))
    assert len(sent) == 2 + usage + (kind is ChatCall)
    for event in sent:
        for choice in event["choices"]:
            if of is types.Completion and choice["finish_reason"] is None:
                choice["finish_reason"] = "stop"  # The API sends null here, for which its type has no place.
        assert unknown_keys(of.model_validate_json(json.dumps(event), strict=True)) == []


def test_what_a_model_thought_is_sent_beside_what_it_says():
    thought = Response("x", prompt_tokens=3, completion_tokens=9, details=ReplyDetails("Hm.", reasoning_tokens=7))
    whole = replies.ReplyFrame(chat()).whole([thought])
    assert whole["choices"][0]["message"] == {
        "role": "assistant",
        "content": "x",
        "refusal": None,
        "reasoning_content": "Hm.",
    }
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": 7}
    stream = replies.ReplyFrame(chat(stream=True, stream_options={"include_usage": True})).last(thought)
    end, count = events(stream)
    assert end["choices"][0]["delta"] == {"reasoning_content": "Hm."}
    assert count["usage"] == whole["usage"]
    assert chat_answer(whole).details == ReplyDetails("Hm.", reasoning_tokens=7, served_model="m")


def test_several_completions_are_numbered_and_counted_together():
    call = protocol.parse(CompletionCall, b'{"model": "m", "prompt": ["a", "b"]}')
    whole = replies.ReplyFrame(call).whole([Response("x", prompt_tokens=1), Response("y", prompt_tokens=2)])
    assert [(choice["index"], choice["text"]) for choice in whole["choices"]] == [(0, "x"), (1, "y")]
    assert whole["usage"]["total_tokens"] == 3


def test_vectors_are_sent_as_numbers_or_packed():
    responses = [Response("[0.5, -1.0]", prompt_tokens=1), Response("[2.0, 0.25]", prompt_tokens=4)]
    plain = protocol.parse(EmbeddingsCall, b'{"model": "m", "input": ["a", "b"]}')
    packed = protocol.parse(EmbeddingsCall, b'{"model": "m", "input": "a", "encoding_format": "base64"}')
    body = replies.embeddings(plain, responses)
    assert [item["embedding"] for item in body["data"]] == [[0.5, -1.0], [2.0, 0.25]]
    assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    (item,) = replies.embeddings(packed, responses[:1])["data"]
    assert struct.unpack("<2f", base64.b64decode(item["embedding"])) == (0.5, -1.0)
