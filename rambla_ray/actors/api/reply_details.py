"""A response with what a reply says beside its answer: what the model thought, what was cached, who answered."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from rambla_ray.actors.api.token_usage import NO_USAGE, Usage
from rambla_ray.display import folded
from rambla_ray.redaction import redacted
from rambla_ray.schema import NO_DETAILS, ReplyDetails, Response, well_formed

LONGEST_NAME = 200  # The name of what answered is cut to so many characters.


def response_of(body: dict[str, Any], usage: Usage, text: str, reasoning: str, finish_reason: str) -> Response:
    """The response in a parsed body, of which the answer and how it ended are read already; see `details_of`."""
    return Response(
        text=well_formed(text),
        finish_reason=finish_reason,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        details=details_of(body, usage, well_formed(reasoning)),
    )


def details_of(body: dict[str, Any], usage: Usage = NO_USAGE, reasoning: str = "") -> ReplyDetails:
    """The details of a parsed body. Replies that differ in their answers alone share one object.

    Args:
        body: of an API that calls them as OpenAI's does; `provider` is OpenRouter's.
        usage: what the reply cost.
        reasoning: what the model thought.
    """
    names = _names(_text(body.get("model")), _text(body.get("system_fingerprint")), _text(body.get("provider")))
    parts = usage[2:]
    if not reasoning and not any(parts):
        return names
    return ReplyDetails(reasoning, *parts, names.served_model, names.system_fingerprint, names.provider)


def _text(value: Any) -> str:
    """What may be a name, cut; empty for what is no text."""
    return value[:LONGEST_NAME] if isinstance(value, str) else ""


@lru_cache(maxsize=256)
def _names(*names: str) -> ReplyDetails:
    """The details of a reply that has nothing but names, which come again with each: shown safely, as no secret."""
    model, fingerprint, provider = (redacted(folded(name))[:LONGEST_NAME] for name in names)
    if not (model or fingerprint or provider):
        return NO_DETAILS
    return ReplyDetails(served_model=model, system_fingerprint=fingerprint, provider=provider)
