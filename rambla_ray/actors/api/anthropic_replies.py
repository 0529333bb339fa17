"""What the answers of Anthropic's Messages API hold: a text, what was thought before it, and how it ended."""

from __future__ import annotations

from typing import Any

from rambla_ray.actors.api.openai_endings import Ending, ending_of
from rambla_ray.actors.api.openai_reasoning import has_thought, reasoning_and_text
from rambla_ray.actors.api.reply_details import response_of
from rambla_ray.actors.api.token_usage import usage_of
from rambla_ray.display import folded
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Response

_UNFINISHED = "pause_turn"  # The endpoint stopped in the middle of a turn, which another request would go on with.
_TOOL = "tool_use"


def messages_answer(body: Any) -> Response:
    """The answer in a parsed body of `/v1/messages`: a text, or none where the reply says what the tokens went into.

    Raises:
        CallError: `refused`, when the model declined or a filter struck; `server`, when the endpoint broke off;
            `garbage`, when there is no text without a reason.
        AttributeError, LookupError, TypeError: it has not the shape of a reply.
    """
    content = body["content"] or []
    reasoning, text = reasoning_and_text({}, content)
    usage = usage_of(body.get("usage"))
    ending = _ending(body.get("stop_reason"))
    if not text or text.isspace():
        has_called = any(part.get("type") == _TOOL for part in content)
        thought = bool(reasoning or usage.reasoning_tokens) or has_thought({}, content)
        ending = _ending_without_text(ending, body.get("stop_reason"), thought=thought and not has_called)
    return response_of(body, usage, text, reasoning, str(ending))


def _ending(reason: Any) -> Ending:
    ending = Ending.LENGTH if reason == _UNFINISHED else ending_of(reason)
    if ending is Ending.ERROR:
        raise CallError(ErrorKind.SERVER, f"the answer ended with stop_reason {folded(str(reason), 40)}")
    return ending


def _ending_without_text(ending: Ending, reason: Any, *, thought: bool) -> Ending:
    """How it came that there is no text. A model that has `thought`, and no more, was cut off."""
    if ending is Ending.FILTERED:
        raise CallError(ErrorKind.REFUSED, "no answer: declined, or withheld by a filter")
    if not isinstance(reason, str):
        raise CallError(ErrorKind.GARBAGE, "the reply has no text and no stop_reason")
    return Ending.LENGTH if thought else ending
