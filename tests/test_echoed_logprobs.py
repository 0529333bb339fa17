"""Choices by the completion API: one call that echoes each text, and what endpoints make of it."""

from __future__ import annotations

import asyncio
import math
import re
from itertools import accumulate
from typing import Any

import pytest
from aiohttp import web
from openai_models import Completion, build, endpoint, only_a_key
from openai_server import OpenAIServer

from rambla_ray.actors.api.echoed_logprobs import choices_answer
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Request

__all__ = ["only_a_key"]  # A fixture.

CHOICES = ("yes", "no", "not known")
ASKED = Request("Is it so?\nAnswer:", continuations=CHOICES)
TOKENS = re.compile(r"\s?\w+|\s|\W")


def logprob(token: str) -> float:
    return -0.25 * len(token) - 0.5


def expected(choices: tuple[str, ...] = CHOICES) -> list[float]:
    return [sum(map(logprob, TOKENS.findall(f" {choice}"))) for choice in choices]


def echoed(text: str, *, first: str = "", generated: str = " so") -> dict[str, Any]:
    """The `logprobs` of a text: `first` is a token for its beginning, and `generated` one behind it."""
    tokens = [*([first] if first else []), *TOKENS.findall(text), *([generated] if generated else [])]
    numbers = [None, *map(logprob, tokens[1:])]
    return {"tokens": tokens, "token_logprobs": numbers, "text_offset": [0, *accumulate(map(len, tokens))][:-1]}


def reply_to(texts: list[str], **shape: Any) -> dict[str, Any]:
    choices = [{"index": number, "text": text, "logprobs": echoed(text, **shape)} for number, text in enumerate(texts)]
    read = sum(len(TOKENS.findall(text)) for text in texts)
    usage = {"prompt_tokens": read, "completion_tokens": len(texts), "total_tokens": read + len(texts)}
    return {"object": "text_completion", "model": "m-1", "choices": choices, "usage": usage}


TEXTS = [f"{ASKED.prompt} {choice}" for choice in CHOICES]


class EchoServer(OpenAIServer):
    """It echoes what it is sent, with log-probabilities."""

    asked: list[Any]

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        self.asked = [*getattr(self, "asked", []), body]
        return web.json_response(reply_to(body["prompt"]))


def test_all_choices_are_asked_in_one_call_that_echoes_them() -> None:
    with EchoServer() as server:
        model = build(server, Completion, top_p=None)
        response = asyncio.run(model.generate(ASKED))
        (body,) = server.asked
    assert {name: body[name] for name in ("prompt", "echo", "logprobs", "max_tokens")} == {
        "prompt": TEXTS,
        "echo": True,
        "logprobs": 1,
        "max_tokens": 1,
    }
    assert response.details.choice_logprobs == pytest.approx(expected())
    assert (response.text, response.trace.attempts) == ("no", 1)
    assert (response.prompt_tokens, response.completion_tokens) == (
        sum(len(TOKENS.findall(text)) for text in TEXTS),
        len(TEXTS),
    )
    assert response.details.served_model == "m-1"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"first": "<s>"}, id="a token for the beginning"),
        pytest.param({"generated": ""}, id="nothing generated"),
        pytest.param({"generated": " yes"}, id="a choice generated"),
    ],
)
def test_what_stands_around_the_text_does_not_count(change: dict[str, Any]) -> None:
    response = choices_answer(reply_to(TEXTS, **change), ASKED)
    assert response.details.choice_logprobs == pytest.approx(expected())


def test_the_order_of_the_reply_does_not_matter() -> None:
    body = reply_to(TEXTS)
    body["choices"].reverse()
    assert choices_answer(body, ASKED).details.choice_logprobs == pytest.approx(expected())


def test_tokens_that_do_not_spell_the_text_are_where_their_offsets_say() -> None:
    body = reply_to(TEXTS)
    for choice in body["choices"]:
        choice["logprobs"]["tokens"][0] = "bytes:\\xe2"
    assert choices_answer(body, ASKED).details.choice_logprobs == pytest.approx(expected())


def test_a_token_across_the_end_of_the_prompt_counts() -> None:
    logprobs = {"tokens": ["A", "nswer: y", "es"], "token_logprobs": [None, -2.0, -0.5]}
    body = {"choices": [{"index": 0, "logprobs": logprobs}]}
    response = choices_answer(body, Request("Answer:", continuations=("yes",)))
    assert response.details.choice_logprobs == (-2.5,)


def broken(**members: Any) -> dict[str, Any]:
    """A reply whose first choice has other log-probabilities."""
    body = reply_to(TEXTS)
    body["choices"][0]["logprobs"] |= members
    return body


def without_echo() -> dict[str, Any]:
    logprobs = {"tokens": [" so"], "token_logprobs": [-1.0], "text_offset": [0]}
    return {"choices": [{"index": number, "logprobs": logprobs} for number in range(3)]}


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ({"choices": [{"index": n, "text": "x", "logprobs": None} for n in range(3)]}, "unsupported", "no log-prob"),
        (without_echo(), "unsupported", "does not echo"),
        (broken(tokens=[]), "unsupported", "no log-prob"),
        ({"choices": reply_to(TEXTS)["choices"][:1]}, "unsupported", "1 choices for 3 texts"),
        (broken(token_logprobs=[math.nan] * len(echoed(TEXTS[0])["tokens"])), "garbage", "is no number"),
        (broken(token_logprobs=[None] * len(echoed(TEXTS[0])["tokens"])), "garbage", "is no number"),
    ],
)
def test_a_reply_without_log_probabilities_is_no_answer(body: Any, kind: str, words: str) -> None:
    with pytest.raises(CallError, match=words) as caught:
        choices_answer(body, ASKED)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Setting 'echo' and 'logprobs' at the same time is not supported for this model.", ErrorKind.UNSUPPORTED),
        ("prompt: Input should be a valid string", ErrorKind.UNSUPPORTED),
        ("something else is wrong", ErrorKind.BAD_REQUEST),
    ],
)
def test_an_endpoint_that_refuses_the_echo_refuses_every_request(message: str, kind: ErrorKind) -> None:
    with endpoint(400, message) as (url, bodies):
        model = build(url, Completion)
        with pytest.raises(CallError) as caught:
            asyncio.run(model.generate(ASKED))
    assert caught.value.kind == kind
    assert len(bodies) == 1


def test_a_server_that_echoes_nothing_is_found_out_by_its_first_reply() -> None:
    with OpenAIServer() as server, pytest.raises(CallError, match=r"answer\.by: likelihood needs") as caught:
        asyncio.run(build(server, Completion).generate(ASKED))
    assert caught.value.kind is ErrorKind.UNSUPPORTED


def test_a_request_reserves_what_all_its_texts_cost() -> None:
    model = build("http://127.0.0.1:9/v1", Completion)
    prompt_bytes = sum(map(len, TEXTS))
    assert model.size(ASKED) == (prompt_bytes, len(CHOICES))
    assert model.max_answer_tokens(ASKED) == len(CHOICES)
    assert model.estimate_tokens(ASKED) == sum(len(text) // 4 + 2 for text in TEXTS)
