"""How likely choices are behind a prompt, by the completion API: each text is sent whole, and echoed with its tokens.

The API has no question for that, but `echo` sends the text back, and `logprobs` the log-probability of each of its
tokens. One call asks for all choices, as a list of texts. One token is generated behind each, as many servers take 0
for no limit; it is not looked at. lm-evaluation-harness asks in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from rambla_ray.actors.api.reply_details import details_of
from rambla_ray.actors.api.token_usage import usage_of
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Request, Response

DELIMITER = " "  # Between a prompt and a choice.
MEMBERS: dict[str, Any] = {"echo": True, "logprobs": 1, "max_tokens": 1}
WAY_OUT = "answer.by: likelihood needs an endpoint that sends echo and logprobs of /completions; leave answer.by out"


def asked_texts(request: Request) -> list[str]:
    """The prompt with each of the choices behind it."""
    return [f"{request.prompt}{DELIMITER}{choice}" for choice in request.continuations]


def apart(request: Request) -> list[Request]:
    """A request as one for each of its choices, each with the whole prompt; itself where it asks for none."""
    if not request.continuations:
        return [request]
    return [replace(request, prompt=text, continuations=(text,)) for text in asked_texts(request)]


def choices_answer(body: Any, request: Request) -> Response:
    """The answer to a request for choices in a parsed body of `/completions`.

    Raises:
        CallError: `unsupported`: the endpoint does not send log-probabilities of what it is sent.
            `garbage`: they are none, or not for every choice.
        AttributeError, LookupError, TypeError: it has not the shape of a reply.
    """
    texts = asked_texts(request)
    replies = sorted(body["choices"], key=lambda reply: int(reply.get("index") or 0))
    if len(replies) != len(texts):
        reason = f"the reply has {len(replies)} choices for {len(texts)} texts; {WAY_OUT}"
        raise CallError(ErrorKind.UNSUPPORTED, reason)
    stem = len(request.prompt.rstrip())
    logprobs = [_logprob(reply.get("logprobs"), text, stem) for reply, text in zip(replies, texts, strict=True)]
    usage = usage_of(body.get("usage"))
    return Response(
        text=request.continuations[logprobs.index(max(logprobs))],
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        details=replace(details_of(body, usage), choice_logprobs=tuple(logprobs)),
    )


def _logprob(found: Any, text: str, stem: int) -> float:
    """The log-probability of what stands in a text behind its first `stem` characters.

    A token that has a character on either side of that place counts: what it says of the text ends behind it.
    """
    tokens, numbers = (found.get(name) if isinstance(found, dict) else None for name in ("tokens", "token_logprobs"))
    if not tokens or not numbers or len(tokens) != len(numbers):
        raise CallError(ErrorKind.UNSUPPORTED, f"the reply has no log-probabilities of the prompt; {WAY_OUT}")
    before, begins = _places(tokens, text, found.get("text_offset"))
    ends = [*begins[1:], math.inf]
    first, last = before + stem, before + len(text)
    scored = [number for number, begin, end in zip(numbers, begins, ends, strict=True) if end > first and begin < last]
    if not scored:
        raise CallError(ErrorKind.UNSUPPORTED, f"the reply echoes no token of a choice; {WAY_OUT}")
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in scored):
        raise CallError(ErrorKind.GARBAGE, "the reply has a log-probability that is no number")
    return math.fsum(scored)


def _places(tokens: Sequence[str], text: str, offsets: Any) -> tuple[int, list[int]]:
    """Where a text begins among the characters of its tokens, and where each token does.

    A token for the beginning of a prompt may stand before the text. Where the tokens do not spell the text, as with
    parts of a character, the endpoint's own offsets say where they are. Raises CallError (`unsupported`): nowhere.
    """
    before = "".join(tokens).find(text)
    if before >= 0:
        return before, [0, *accumulate(map(len, tokens))][:-1]
    if isinstance(offsets, list) and len(offsets) == len(tokens) and offsets[-1] > 0:
        return 0, offsets
    raise CallError(ErrorKind.UNSUPPORTED, f"the reply does not echo the text that was sent; {WAY_OUT}")


def about_echo(error: CallError) -> CallError:
    """An error as one of every request, where it is about what is asked for here."""
    words = error.message.lower()
    is_about_echo = "echo" in words or "logprobs" in words or ("prompt" in words and "string" in words)
    if error.kind is not ErrorKind.BAD_REQUEST or not is_about_echo:
        return error
    return CallError(ErrorKind.UNSUPPORTED, f"{error.message}; {WAY_OUT}")
