"""What a request has of its model's params: members of the body, system prompts, headers; what it is known by."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai_models
import pytest
from faults import Fault
from openai_models import AZURE, Chat, Completion, Embeddings, build, endpoint, error, params
from picky_server import PickyServer

from rambla_ray.actors.api.http_model import PLACEHOLDER
from rambla_ray.actors.model import ASSUMED_ANSWER_TOKENS
from rambla_ray.actors.openai import OpenAIChat, OpenAICompletion, OpenAIEmbeddings, OpenAIModel
from rambla_ray.config.sections import Pool
from rambla_ray.errors import ErrorKind
from rambla_ray.schema import GenerationOptions, Identity, Message, Request, canonical_json

only_a_key = openai_models.only_a_key  # It runs by itself before each test of this file.

MESSAGES = [{"role": "user", "content": "a\nb"}]
RAMBLA = {"temperature": 0.0, "max_tokens": 800, "top_p": 0.95}
SYSTEM = {"role": "system", "content": "Be brief."}


# What was sent, and what it was known by, before any of these params but RAmBLA's existed.
PROMPT = "Is it so?\nSay “yes”."
RECORDED: list[tuple[type[OpenAIModel], dict[str, Any], bytes, str]] = [
    (
        OpenAIChat,
        {"temperature": 0.0, "engine": "gpt-4-32k"},
        rb'{"model":"gpt-4-32k","messages":[{"role":"user","content":"Is it so?\nSay \u201cyes\u201d."}],'
        b'"max_tokens":800,"temperature":0.0,"top_p":0.95}',
        "81a1e13bc11d590a96885e758352f89f18d68566768fde1a969afcfd706953f3",
    ),
    (
        OpenAIChat,
        {"temperature": 0.0, "engine": "gpt-4-32k", "base_url": "https://here.example", **AZURE},
        rb'{"model":"gpt-4-32k","messages":[{"role":"user","content":"Is it so?\nSay \u201cyes\u201d."}],'
        b'"max_tokens":800,"temperature":0.0,"top_p":0.95}',
        "9fbb4fdfc2f96f2115674e21dcc42b8aeb8d29e29cb9511112d3cc5a84bd7aac",
    ),
    (
        OpenAICompletion,
        {"temperature": 0.0},
        rb'{"model":"text-davinci-003","prompt":"Is it so?\nSay \u201cyes\u201d.",'
        b'"max_tokens":800,"temperature":0.0,"top_p":0.95}',
        "e891d5b24d2a36740fdbf407a75c6ac0fcda99424fd35babd6a31e89d6e7f139",
    ),
    (
        OpenAIEmbeddings,
        {},
        rb'{"model":"text-embedding-ada-002","input":"Is it so? Say \u201cyes\u201d.","encoding_format":"base64"}',
        "156acf9fd815fbfd7ebf54e7b29993510f185f3ddaffbf809f0605e6b8e02142",
    ),
]


@pytest.mark.parametrize(("kind", "given", "body", "request_id"), RECORDED)
def test_a_request_from_ramblas_yaml_is_byte_for_byte_what_it_was(
    kind: type[OpenAIModel], given: dict[str, Any], body: bytes, request_id: str
) -> None:
    model, request = kind(kind.Params(**given).resolved(), Pool(), None), Request(PROMPT)
    assert model.body(request) == body
    assert Identity(model.identity()).request_id(model.request_identity(request)) == request_id


def test_a_served_request_to_ramblas_yaml_is_what_it_was() -> None:
    model = OpenAIChat(params(engine="gpt-4-32k"), Pool(), None)
    request = Request("", messages=(Message("user", "x"),), options=GenerationOptions(max_tokens=5))
    assert model.body(request) == (
        b'{"model": "gpt-4-32k", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5, '
        b'"temperature": 0.0, "top_p": 0.95}'
    )
    request_id = Identity(model.identity()).request_id(model.request_identity(request))
    assert request_id == "d06ee5ef0aefedbc6a1064b5509407f75aaf5f4fc6fb0ff1e9d59819be87430f"


def test_no_new_param_stands_in_the_stored_params_of_ramblas_yaml() -> None:
    known = {"engine", "base_url", "api_type", "api_version", "api_key_var", "async_calls", *RAMBLA}
    assert set(params().model_dump(mode="json")) == known


TODAYS = {
    "reasoning_effort": "low",
    "verbosity": "high",
    "seed": -3,
    "stop": ["\n", "END"],
    "frequency_penalty": -2.0,
    "presence_penalty": 0.5,
    "service_tier": "flex",
    "response_format": {"type": "json_object"},
}


@pytest.mark.parametrize(
    ("kind", "given", "body"),
    [
        (Chat, {}, RAMBLA),
        (Chat, {"temperature": None}, {"max_tokens": 800, "top_p": 0.95}),
        (Chat, {"temperature": None, "top_p": None, "max_tokens": None}, {}),
        (Chat, {"max_completion_tokens": 4000}, {"temperature": 0.0, "max_completion_tokens": 4000}),
        (Chat, {"reasoning_effort": "low"}, {"temperature": 0.0, "reasoning_effort": "low"}),
        (Chat, {"reasoning_effort": None, "max_completion_tokens": None}, RAMBLA),
        (Chat, {"reasoning_effort": "low", "max_tokens": 7, "top_p": 0.5},
         {"temperature": 0.0, "reasoning_effort": "low", "max_tokens": 7, "top_p": 0.5}),
        (Chat, {"max_completion_tokens": 9, "max_tokens": 7, "top_p": 1},
         {"temperature": 0.0, "max_completion_tokens": 9, "top_p": 1.0}),
        (Chat, TODAYS, {"temperature": 0.0, **TODAYS}),
        (Chat, {"stop": "END"}, {**RAMBLA, "stop": "END"}),
        (Chat, {"extra_body": {"top_p": 0.1, "top_k": 5, "a": {"b": [None, 1.5]}}},
         {**RAMBLA, "top_p": 0.1, "top_k": 5, "a": {"b": [None, 1.5]}}),
        (Chat, {"extra_body": {"stream": False, "n": 1}}, {**RAMBLA, "stream": False, "n": 1}),
        (Completion, {"temperature": None, "seed": 1, "stop": "E", "presence_penalty": 1, "extra_body": {"top_k": 5}},
         {"max_tokens": 800, "top_p": 0.95, "seed": 1, "stop": "E", "presence_penalty": 1.0, "top_k": 5}),
        (Embeddings, {"extra_body": {"dimensions": 8}}, {"encoding_format": "base64", "dimensions": 8}),
    ],
)  # fmt: skip
def test_a_body_holds_what_is_given_and_nothing_that_is_null(
    kind: type[OpenAIModel], given: dict[str, Any], body: dict[str, Any]
) -> None:
    question = {Chat: {"messages": MESSAGES}, Completion: {"prompt": "a\nb"}, Embeddings: {"input": "a b"}}[kind]
    with endpoint(400) as (url, bodies):
        assert error(build(url, kind, **given), "a\nb").kind == ErrorKind.BAD_REQUEST
    assert bodies == [{"model": "gpt-4", **question, **body}]


def test_a_temperature_that_is_absent_is_not_sent() -> None:
    body = OpenAIChat(OpenAIChat.Params(engine="gpt").resolved(), Pool(), None).body(Request("hello"))
    assert json.loads(body).keys() == {"model", "messages", "max_tokens", "top_p"}


@pytest.mark.parametrize("given", [{}, {"max_completion_tokens": 9}, {"reasoning_effort": "low"}, TODAYS])
def test_params_that_were_stored_are_the_same_when_they_are_read_again(given: dict[str, Any]) -> None:
    once = params(**given)
    assert Chat.Params.model_validate(once.model_dump(mode="json")).resolved() == once
    assert canonical_json(once.model_dump(mode="json")) == canonical_json(once.model_dump())


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        *((change, True) for change in ({name: value} for name, value in TODAYS.items())),
        *(({name: None}, True) for name in RAMBLA),
        ({"system": "Be brief."}, True),
        ({"extra_body": {"top_k": 5}}, True),
        ({"max_completion_tokens": 800}, True),
        ({"extra_headers": {"X-Team": "a"}}, False),
    ],
)
def test_what_may_change_an_answer_is_in_the_identity(change: dict[str, Any], differs: bool) -> None:
    one, other = (Chat(params(**given), Pool(), None).identity() for given in ({}, change))
    assert (canonical_json(one) != canonical_json(other)) == differs


# The longest answer


@pytest.mark.parametrize(
    ("given", "sent", "limit"),
    [
        ({}, "max_tokens", 800),
        ({"max_completion_tokens": 4000}, "max_completion_tokens", 4000),
        ({"max_completion_tokens": 4000, "max_tokens": 7}, "max_completion_tokens", 4000),
        ({"reasoning_effort": "low", "max_tokens": 7}, "max_tokens", 7),
        ({"extra_body": {"max_tokens": 20}}, "max_tokens", 20),
        ({"reasoning_effort": "low"}, "max_completion_tokens", None),
        ({"max_tokens": None}, "max_tokens", None),
    ],
)
def test_estimates_and_options_follow_the_limit_that_is_sent(
    given: dict[str, Any], sent: str, limit: int | None
) -> None:
    model, longest = build("https://here.example", **given), limit or ASSUMED_ANSWER_TOKENS
    request = Request("12345678")
    assert model.params.longest_answer == model.max_answer_tokens(request) == longest
    assert (model.estimate_tokens(request), model.size(request)) == (3 + longest, (8, longest))
    assert bool(model.params.remarks) == (limit is None)
    short = Request("12345678", options=GenerationOptions(max_tokens=5))
    body = json.loads(model.body(short))
    assert (body[sent], body.keys() & {"max_tokens", "max_completion_tokens"}) == (5, {sent})
    assert (model.max_answer_tokens(short), model.estimate_tokens(short)) == (5, 3 + 5)


# System prompts


@pytest.mark.parametrize(
    ("request_", "own", "messages"),
    [
        (Request("hi"), None, [("user", "hi")]),
        (Request("hi"), "Be brief.", [("system", "Be brief."), ("user", "hi")]),
        (Request("hi", system="Be long."), None, [("system", "Be long."), ("user", "hi")]),
        (Request("hi", system="Be long."), "Be brief.", [("system", "Be long."), ("user", "hi")]),
        (Request("", messages=(Message("user", "hi"),)), "Be brief.", [("system", "Be brief."), ("user", "hi")]),
        (Request("", messages=(Message("system", "Mine."), Message("user", "hi"))), "Be brief.",
         [("system", "Mine."), ("user", "hi")]),
        (Request("hi", options=GenerationOptions(seed=3)), "Be brief.", [("system", "Be brief."), ("user", "hi")]),
    ],
)  # fmt: skip
def test_the_nearest_system_prompt_is_sent_before_the_users_message(
    request_: Request, own: str | None, messages: list[tuple[str, str]]
) -> None:
    model = build("https://here.example", system=own)
    turns = json.loads(model.body(request_))["messages"]
    assert [(turn["role"], turn["content"]) for turn in turns] == messages


def test_estimates_count_the_system_prompt_that_is_sent() -> None:
    plain, brief = build("https://here.example"), build("https://here.example", system="x" * 40)
    alone, own = Request("y" * 8), Request("y" * 8, system="z" * 80)
    assert brief.estimate_tokens(alone) == plain.estimate_tokens(alone) + 10
    assert brief.size(alone)[0] == plain.size(alone)[0] + 40
    assert brief.estimate_tokens(own) == plain.estimate_tokens(own) == 3 + 20 + 800
    assert brief.size(own) == plain.size(own) == (89, 800)


@pytest.mark.parametrize("text", [PLACEHOLDER[:-34] + ">", json.dumps(PLACEHOLDER[:-34]), '"', "\\", "{prompt}"])
@pytest.mark.parametrize("name", ["system", "stop", "extra_body", "reasoning_effort"])
def test_a_param_that_looks_like_the_place_of_the_prompt_is_sent_as_it_is(name: str, text: str) -> None:
    value: Any = {text: [text]} if name == "extra_body" else text
    with PickyServer(answer=str.upper) as server:
        model = build(server, **{name: value})
        asyncio.run(model.generate(Request("hello")))
        (body,) = server.bodies
    sent = body[text] == [text] if name == "extra_body" else body.get(name, body["messages"][0]["content"]) == text
    assert sent
    assert body["messages"][-1]["content"] == "hello"


def test_an_error_that_repeats_the_system_prompt_is_stored_without_it() -> None:
    secret = "You are the assistant of a hospital that nobody may know the name of."
    body = b'{"error": {"message": "I do not like: {prompt}", "code": "x"}}'
    with PickyServer(faults=[Fault("reply", status=400, body=body, times=-1)]) as server:
        assert secret[:40] not in error(build(server, system=secret)).message


# Headers


def test_headers_are_sent_beside_or_in_place_of_the_packages_own() -> None:
    headers = {"X-Title": "rambla ray", "user-AGENT": "mine", "OpenAI-Organization": "org-1"}
    with PickyServer(answer=str.upper) as server:
        asyncio.run(build(server, extra_headers=headers).generate(Request("hello")))
        (sent,) = server.headers
    assert {name: sent[name] for name in headers} == headers
    assert sent["Authorization"] == "Bearer sk-test"
    assert [name.lower() for name in sent].count("user-agent") == 1
