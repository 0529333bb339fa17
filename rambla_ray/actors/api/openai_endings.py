"""How an answer of an OpenAI-compatible endpoint ended: the words of many endpoints for the few things that happen."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any


class Ending(StrEnum):
    """What a finish reason means; the values are the OpenAI API's own words, where it has one."""

    STOP = "stop"
    LENGTH = "length"  # The longest answer, or the model's context, was reached.
    FILTERED = "content_filter"  # A filter withheld the answer or a part of it, or the model declined.
    ERROR = "error"  # The endpoint broke the answer off: what there is of a text is no answer.


_WORDS = {
    Ending.LENGTH: (
        *("length", "max_length", "model_length", "max_tokens", "max_output_tokens", "max_completion_tokens"),
        *("max_new_tokens", "token_limit", "error_limit", "context_length_exceeded", "context_window_exceeded"),
        "model_context_window_exceeded",
    ),
    Ending.FILTERED: (
        *("content_filter", "content_filtered", "contentfilter", "content_policy", "policy_violation", "moderation"),
        *("safety", "image_safety", "recitation", "prohibited_content", "blocklist", "spii", "language"),
        *("refusal", "refused", "guardrail", "guardrails", "guardrail_intervened", "sensitive", "error_toxic"),
        "model_armor",
    ),
    Ending.ERROR: (
        *("error", "abort", "aborted", "cancel", "cancelled", "canceled", "user_cancel", "fail", "failed", "failure"),
        *("timeout", "network_error", "server_error", "internal_error", "model_error", "engine_error", "overloaded"),
        *("engine_overloaded", "insufficient_system_resource", "preempted", "interrupted", "disconnected"),
    ),
}
_ENDING_OF = {word: ending for ending, words in _WORDS.items() for word in words}


def ending_of(reason: Any) -> Ending:
    """What a finish reason of any type means: its first word counts, in upper or lower case. STOP for all others."""
    if reason == "stop" or not isinstance(reason, str):
        return Ending.STOP
    word = re.split(r"[:\s]", reason.strip().lower(), maxsplit=1)[0].rpartition(".")[2].replace("-", "_")
    return _ENDING_OF.get(word.removeprefix("finish_reason_"), Ending.STOP)
