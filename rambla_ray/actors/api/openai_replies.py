"""What the answers of OpenAI-compatible endpoints hold: a text and how it ended, or vectors."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

from rambla_ray.actors.api.openai_endings import Ending, ending_of
from rambla_ray.actors.api.openai_reasoning import has_thought, reasoning_and_text
from rambla_ray.actors.api.reply_details import response_of
from rambla_ray.actors.api.token_usage import usage_of
from rambla_ray.display import folded
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Response

LONGEST_VECTOR = 100_000  # A vector with more numbers is no embedding.
LONGEST_REASON = 40  # A finish reason is cut to so many characters.

_CALLS = ("tool_calls", "function_call")


def chat_answer(body: Any) -> Response:
    """The answer in a parsed body of `/chat/completions`; `_answer` says what is raised."""
    choice = _first_choice(body)
    message = choice.get("message") or {}
    return _answer(body, choice, message, message.get("content"))


def completion_answer(body: Any) -> Response:
    """The answer in a parsed body of `/completions`; `_answer` says what is raised."""
    choice = _first_choice(body)
    return _answer(body, choice, choice, choice.get("text"))


def _first_choice(body: Any) -> dict[str, Any]:
    """The first of a body's choices. Raises CallError (`refused`) where a filter has left none."""
    if not body.get("choices") and _is_blocked(body):
        raise CallError(ErrorKind.REFUSED, "the content filter turned the prompt down")
    choice: dict[str, Any] = body["choices"][0]
    return choice


def _answer(body: dict[str, Any], choice: dict[str, Any], message: dict[str, Any], content: Any) -> Response:
    """The answer in a choice: a text, or none where the reply says what the tokens went into.

    Args:
        body: the reply.
        choice: the first of its choices.
        message: where a choice of its kind has the text, and what stands beside it.
        content: the text, or its parts.

    Raises:
        CallError: `refused`, when a filter or the model declined; `garbage`, when there is no text without a reason.
        AttributeError, LookupError, TypeError: it has not the shape of a reply.
    """
    reasoning, text = reasoning_and_text(message, content)
    usage = usage_of(body.get("usage"))
    reason = choice.get("finish_reason")
    ending = ending_of(reason)
    if not text or text.isspace():
        thought = bool(reasoning or usage.reasoning_tokens) or has_thought(message, content)
        ending = _ending_without_text(choice, message, content, thought=thought, charged=usage.completion_tokens > 0)
    finish_reason = _shown(reason) if ending is Ending.STOP else str(ending)
    return response_of(body, usage, text, reasoning, finish_reason)


def _ending_without_text(
    choice: dict[str, Any], message: dict[str, Any], content: Any, *, thought: bool, charged: bool
) -> Ending:
    """How it came that a choice has no text.

    A model that has `thought`, and no more, is cut off (LENGTH), whatever the endpoint calls it; one that called a
    tool, or was `charged` for tokens that are not shown, has answered nothing (STOP). Asked again it would do the
    same, and each time be charged for.
    """
    reason = choice.get("finish_reason")
    endings = {ending_of(reason), ending_of(choice.get("native_finish_reason"))}
    if Ending.FILTERED in endings or _has_declined(message, content) or _is_filtered(choice):
        raise CallError(ErrorKind.REFUSED, f"no answer: declined, or withheld by a filter ({_shown(reason)})")
    if Ending.LENGTH in endings:
        return Ending.LENGTH
    if any(message.get(name) for name in _CALLS):
        return Ending.STOP
    if thought:
        return Ending.LENGTH
    if isinstance(content, str) or (message and reason and charged):
        return Ending.STOP
    raise CallError(ErrorKind.GARBAGE, "the reply has a choice without text")


def _has_declined(message: dict[str, Any], content: Any) -> bool:
    """Whether the model said no, in a field of its own or in a part of the content."""
    parts = content if isinstance(content, list) else []
    return any(isinstance(place.get("refusal"), str) and place["refusal"] for place in (message, *parts))


def _is_blocked(body: dict[str, Any]) -> bool:
    """Whether a filter has turned the prompt down, as Google and Azure say it beside an empty list of choices."""
    feedback = body.get("promptFeedback") or body.get("prompt_feedback")
    if isinstance(feedback, dict) and (feedback.get("blockReason") or feedback.get("block_reason")):
        return True
    results = body.get("prompt_filter_results")
    return isinstance(results, list) and any(isinstance(result, dict) and _is_filtered(result) for result in results)


def _is_filtered(result: dict[str, Any]) -> bool:
    """Whether one of Azure's filters struck."""
    filters = result.get("content_filter_results")
    return isinstance(filters, dict) and any(
        isinstance(verdict, dict) and verdict.get("filtered") is True for verdict in filters.values()
    )


def _shown(reason: Any) -> str:
    """A finish reason as it is kept; `stop` for what is none."""
    return folded(reason)[:LONGEST_REASON] if reason and isinstance(reason, str) else str(Ending.STOP)


def vectors(body: Any, count: int) -> list[list[float]]:
    """The embeddings in a parsed body. Raises CallError (`garbage`) if there are not `count`, or one is no embedding.

    What the body lacks raises the error that the look-up raises.
    """
    embeddings = [_vector(item["embedding"]) for item in body["data"]]
    if len(embeddings) != count:
        raise CallError(ErrorKind.GARBAGE, f"the reply has {len(embeddings)} vectors for {count} texts")
    if not all(0 < len(vector) <= LONGEST_VECTOR for vector in embeddings):
        raise CallError(ErrorKind.GARBAGE, "the reply has an empty vector, or one that is no embedding")
    if not all(math.isfinite(number) for vector in embeddings for number in vector):
        raise CallError(ErrorKind.GARBAGE, "the reply has a vector with what is not a number")
    return embeddings


def _vector(value: Any) -> list[float]:
    """An embedding as a list of numbers, or as the package asks for it: base64 of little-endian float32."""
    if not isinstance(value, str):
        return [float(number) for number in value]
    packed = base64.b64decode(value, validate=True)
    if len(packed) % 4:
        raise CallError(ErrorKind.GARBAGE, f"the reply has a vector of {len(packed)} bytes, which are no float32")
    return [number for (number,) in struct.iter_unpack("<f", packed)]
