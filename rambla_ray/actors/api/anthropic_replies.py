"""What the answers of Anthropic's Messages API hold: texts, thoughts, how it ended, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rambla_ray.actors.api.openai_endings import Ending, ending_of
from rambla_ray.actors.api.reply_fields import (
    CACHE_READ,
    CACHE_WRITE,
    completion_tokens,
    name_of,
    prompt_tokens,
    token_count,
    tokens_in,
)
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import ReplyDetails, Response, well_formed

_THOUGHTS = ("thinking", "redacted_thinking")
_UNFINISHED = "pause_turn"  # The endpoint stopped in the middle of a turn, which another request would go on with.


def messages_answer(body: Any) -> Response:
    """The answer in a parsed body of `/v1/messages`: a text, or none where the reply says what the tokens went into.

    Raises:
        CallError: `refused`, when the model declined or a filter struck; `server`, when the endpoint broke off;
            `garbage`, when there is no text without a reason.
        AttributeError, LookupError, TypeError: it has not the shape of a reply.
    """
    parts: list[dict[str, Any]] = body["content"] or []
    text = "".join(part["text"] for part in parts if part.get("type") == "text")
    ending = _ending(body.get("stop_reason"), parts, has_text=bool(text.strip()))
    usage = body.get("usage")
    return Response(
        text=well_formed(text),
        finish_reason=str(ending),
        prompt_tokens=prompt_tokens(usage),
        completion_tokens=completion_tokens(usage),
        details=ReplyDetails(
            reasoning=well_formed("\n\n".join(_thoughts(parts))),
            reasoning_tokens=tokens_in(usage, "output_tokens_details", "thinking_tokens"),
            cached_tokens=token_count(usage, CACHE_READ),
            cache_write_tokens=token_count(usage, CACHE_WRITE),
            served_model=name_of(body.get("model")),
        ),
    )


def _ending(reason: Any, parts: Sequence[dict[str, Any]], *, has_text: bool) -> Ending:
    """How an answer ended. One without a text whose tokens went into thinking was cut off, whatever it is called."""
    ending = Ending.LENGTH if reason == _UNFINISHED else ending_of(reason)
    shown = name_of(reason) or "none"
    if ending is Ending.ERROR:
        raise CallError(ErrorKind.SERVER, f"the answer ended with stop_reason {shown}")
    if has_text:
        return ending
    if ending is Ending.FILTERED:
        raise CallError(ErrorKind.REFUSED, f"no answer: declined, or withheld by a filter (stop_reason {shown})")
    if not isinstance(reason, str):
        raise CallError(ErrorKind.GARBAGE, "the reply has no text and no stop_reason")
    is_tool_use = any(part.get("type") == "tool_use" for part in parts)
    has_thought = any(part.get("type") in _THOUGHTS for part in parts)
    return Ending.LENGTH if has_thought and not is_tool_use else ending


def _thoughts(parts: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What the model shows of its thinking; what is redacted is encrypted, and stands for nothing that can be read."""
    for part in parts:
        if part.get("type") == "thinking" and isinstance(part.get("thinking"), str) and part["thinking"]:
            yield part["thinking"]
