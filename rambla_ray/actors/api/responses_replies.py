"""What the answers of OpenAI's Responses API hold: texts, reasoning, how it ended, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rambla_ray.actors.api.openai_endings import Ending, ending_of
from rambla_ray.actors.api.reply_fields import completion_tokens, name_of, prompt_tokens, tokens_in
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import ReplyDetails, Response, well_formed

Parts = Sequence[dict[str, Any]]
_TEXTS = ("output_text", "text")
_COMMENTARY = "commentary"  # The phase of a message that the model writes before its answer.


def responses_answer(body: Any) -> Response:
    """The answer in a parsed body of `/responses`: a text, or none where the reply says what the tokens went into.

    Raises:
        CallError: `refused`, when a filter or the model declined; `server`, when the endpoint broke off; `garbage`,
            when the answer is not there yet, or there is no text without a reason.
        AttributeError, LookupError, TypeError: it has not the shape of a reply.
    """
    items: Parts = body["output"] or []
    messages = [item for item in items if item.get("type", "message") == "message"]
    parts = [part for message in messages if message.get("phase") != _COMMENTARY for part in message["content"] or []]
    text = "".join(part["text"] for part in parts if part.get("type") in _TEXTS)
    usage = body.get("usage")
    details = ReplyDetails(
        reasoning=well_formed("\n\n".join(_reasoning(items))),
        reasoning_tokens=tokens_in(usage, "output_tokens_details", "reasoning_tokens"),
        cached_tokens=tokens_in(usage, "input_tokens_details", "cached_tokens"),
        cache_write_tokens=tokens_in(usage, "input_tokens_details", "cache_write_tokens"),
        served_model=name_of(body.get("model")),
        provider=name_of(body.get("provider")),
    )
    ending = _ending(body, has_declined=any(part.get("type") == "refusal" for part in parts))
    if not text.strip():
        ending = _ending_without_text(ending, items, details)
    return Response(
        text=well_formed(text),
        finish_reason=str(ending),
        prompt_tokens=prompt_tokens(usage),
        completion_tokens=completion_tokens(usage),
        details=details,
    )


def _ending(body: dict[str, Any], *, has_declined: bool) -> Ending:
    status = body.get("status", "completed")
    if ending_of(status) is Ending.ERROR:
        raise CallError(ErrorKind.SERVER, f"the answer ended with status {name_of(status)}")
    if status not in ("completed", "incomplete"):
        raise CallError(ErrorKind.GARBAGE, f"the answer is not there: its status is {name_of(status) or 'no word'}")
    if has_declined:
        return Ending.FILTERED
    if status == "completed":
        return Ending.STOP
    reason = ending_of((body.get("incomplete_details") or {}).get("reason"))
    return Ending.FILTERED if reason is Ending.FILTERED else Ending.LENGTH


def _ending_without_text(ending: Ending, items: Parts, details: ReplyDetails) -> Ending:
    """How it came that there is no text. A model whose tokens went into reasoning alone was cut off."""
    if ending is Ending.FILTERED:
        raise CallError(ErrorKind.REFUSED, "no answer: declined, or withheld by a filter")
    if ending is Ending.LENGTH:
        return ending
    if not items:
        raise CallError(ErrorKind.GARBAGE, "the reply has no output")
    kinds = {item.get("type") for item in items}
    has_reasoned = "reasoning" in kinds or details.reasoning_tokens > 0
    return Ending.LENGTH if has_reasoned and kinds <= {"reasoning", "message"} else ending


def _reasoning(items: Parts) -> Iterator[str]:
    """What the model shows of its reasoning, whole or summed up, and what it wrote before its answer."""
    for item in items:
        if item.get("type") == "reasoning" or item.get("phase") == _COMMENTARY:
            for part in item.get("content") or item.get("summary") or []:
                if isinstance(part.get("text"), str) and part["text"]:
                    yield part["text"]
