"""What the answers of OpenAI's Responses API hold: a text, the reasoning before it, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rambla_ray.actors.api.openai_endings import Ending, ending_of
from rambla_ray.actors.api.openai_reasoning import reasoning_and_text
from rambla_ray.actors.api.reply_details import response_of
from rambla_ray.actors.api.token_usage import usage_of
from rambla_ray.display import folded
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Response

Items = Sequence[dict[str, Any]]
_COMMENTARY = "commentary"  # The phase of a message that the model writes before its answer.


def responses_answer(body: Any) -> Response:
    """The answer in a parsed body of `/responses`: a text, or none where the reply says what the tokens went into.

    Raises:
        CallError: `refused`, when a filter or the model declined; `server`, when the endpoint broke off; `garbage`,
            when the answer is not there yet, or there is no text without a reason.
        AttributeError, LookupError, TypeError: it has not the shape of a reply.
    """
    items: Items = body["output"] or []
    parts = [part for item in items if _is_answer(item) for part in item["content"] or []]
    reasoning, text = reasoning_and_text({"reasoning": [item for item in items if _is_thought(item)]}, parts)
    usage = usage_of(body.get("usage"))
    ending = _ending(body, has_declined=any(part.get("type") == "refusal" for part in parts))
    if not text or text.isspace():
        ending = _ending_without_text(ending, items, thought=bool(reasoning or usage.reasoning_tokens))
    return response_of(body, usage, text, reasoning, str(ending))


def _is_answer(item: dict[str, Any]) -> bool:
    return item.get("type", "message") == "message" and item.get("phase") != _COMMENTARY


def _is_thought(item: dict[str, Any]) -> bool:
    return item.get("type") == "reasoning" or item.get("phase") == _COMMENTARY


def _ending(body: dict[str, Any], *, has_declined: bool) -> Ending:
    status = body.get("status", "completed")
    if ending_of(status) is Ending.ERROR:
        raise CallError(ErrorKind.SERVER, f"the answer ended with status {folded(status, 40)}")
    if status not in ("completed", "incomplete"):
        raise CallError(ErrorKind.GARBAGE, f"the answer is not there: its status is {folded(str(status), 40)}")
    if has_declined:
        return Ending.FILTERED
    if status == "completed":
        return Ending.STOP
    reason = ending_of((body.get("incomplete_details") or {}).get("reason"))
    return Ending.FILTERED if reason is Ending.FILTERED else Ending.LENGTH


def _ending_without_text(ending: Ending, items: Items, *, thought: bool) -> Ending:
    """How it came that there is no text. A model that has `thought`, and no more, was cut off."""
    if ending is Ending.FILTERED:
        raise CallError(ErrorKind.REFUSED, "no answer: declined, or withheld by a filter")
    if ending is Ending.LENGTH:
        return ending
    if not items:
        raise CallError(ErrorKind.GARBAGE, "the reply has no output")
    kinds = {item.get("type", "message") for item in items}
    has_thought = thought or "reasoning" in kinds
    return Ending.LENGTH if has_thought and kinds <= {"reasoning", "message"} else ending
