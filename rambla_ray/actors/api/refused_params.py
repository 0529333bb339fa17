"""Which members of a request's body an endpoint says that it does not take.

No list of models says what an engine takes: its own words do. Endpoints name the member in a place of its own (the
`param` of OpenAI, the `loc` of servers with pydantic) or in a sentence, of which there are as many as there are
servers. Whether what is named here was sent at all, and by whose choice, the caller decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from rambla_ray.actors.api.openai_error_words import ErrorWords, objects_in, parsed
from rambla_ray.errors import CallError, ErrorKind

_CODES = ("unsupported_parameter", "unsupported_value", "unknown_parameter", "unrecognized_parameter")
_PREFIXES = frozenset({"body", "query", "__root__"})  # What the place of a member may begin with.

_NAMED = r"[\"'`“‘]?([a-z_][\w.]*)[\"'`”’]?"
_SENTENCES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # `temperature` is deprecated for this model; max_tokens is not supported with this model
        rf"{_NAMED} (?:is|are) (?:deprecated|unsupported|not (?:supported|permitted|allowed|accepted)|no longer)\b",
        # `temperature` and `top_p` cannot both be specified for this model
        rf"\b(?:and|or) {_NAMED} (?:cannot|can't|may not) (?:both )?be (?:specified|set|used)\b",
        # `temperature` may only be set to 1 when thinking is enabled; `top_k` must be unset when thinking is enabled
        rf"{_NAMED} (?:(?:may|can) only be set|must be (?:[\w.]+ ){{0,9}}unset)\b",
        # Unsupported value: 'temperature' does not support 0 with this model; Unknown parameter: 'x'; Unknown name "x"
        r"\b(?:unsupported|unknown|unrecognized|unexpected|invalid) (?:parameter|value|argument|field|name|key)s?:? ?"
        rf"{_NAMED}",
        # Unrecognized request argument supplied: x; Argument not supported on this model: x
        rf"\barguments? (?:supplied|not supported[^:]{{0,40}}): {_NAMED}",
        rf"\bunexpected keyword argument {_NAMED}",
        rf"\bextraneous key \[{_NAMED}",
        # openai does not support parameters: ['temperature']
        r"\bdoes(?: not|n't) support (?:the )?(?:(?:parameter|option|argument|field)s?:? ?)?[\[{(]?"
        rf"{_NAMED}",
        # x: Extra inputs are not permitted; in the lines of pydantic's own report without the colon
        rf"{_NAMED}:? (?:extra inputs are|extra fields) not permitted\b",
        # thinking: Input tag 'adaptive' found using 'type' does not match; max_tokens: 9 > 8, which is the maximum
        rf"{_NAMED}: (?:input tag '[\w-]{{1,40}}' found using|\d+ > \d+, which is the maximum)\b",
        # What pydantic says, as Python writes it: vLLM passes it on so.
        r"'loc': \('body', '([a-z_]\w*)'[^)]{0,200}\), 'msg': '(?:extra inputs are|extra fields) not permitted\b",
    )
)
_AROUND = "\"'`“”‘’.:"  # What an endpoint may have put around a sentence, and a match begins or ends with.
_INNER_CAPITAL = re.compile(r"(?<=[a-z0-9])([A-Z])")


def refused_members(body: bytes, redacted: Callable[[str], str], sent: str) -> Iterator[str]:
    """The names of members, with dots for those inside of others, that an error says are not taken.

    Args:
        body: of the reply.
        redacted: makes its words safe, so that what they repeat of a prompt is not read.
        sent: the texts that were asked; a sentence that stands in them, in upper or lower case, is not read either.
    """
    error = parsed(body)
    for level in objects_in(error):
        yield from _in_its_place(level)
    words, asked = redacted(ErrorWords.of(error).text), " ".join(sent.split()).lower()
    for pattern in _SENTENCES:
        for match in pattern.finditer(words):
            if match[0].strip(_AROUND).lower() not in asked:
                yield _INNER_CAPITAL.sub(r"_\1", match[1].strip(".")).lower()


def _in_its_place(level: dict[str, Any]) -> Iterator[str]:
    """The member that an object of an error names in a place of its own."""
    name, place = level.get("param"), level.get("loc")
    if isinstance(name, str) and any(level.get("code") == code for code in _CODES):
        yield name
    if isinstance(place, list):
        parts = [str(part) for part in place]
        yield ".".join(parts[1:] if parts[:1] and parts[0] in _PREFIXES else parts)


def unsupported(error: CallError, what: str) -> CallError:
    """The same error as one of every request: in one line what is refused and what to write, and the reply's words."""
    found = CallError(ErrorKind.UNSUPPORTED, f"{what} ({error.message})")
    found.prompt_tokens, found.completion_tokens = error.prompt_tokens, error.completion_tokens
    return found
