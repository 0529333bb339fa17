"""What a reply says that it cost, counted in one way: a prompt with its cached part, an answer with its thoughts.

Endpoints count in three ways. OpenAI's numbers hold all; xAI and Google leave the tokens of thinking out of those of
the answer, which only their total shows; Anthropic leaves what its cache held out of those of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rambla_ray.errors import CallError

# What endpoints call them. DeepSeek, Moonshot, SGLang and Anthropic have them beside the others, and not in details.
_INPUT, _CACHE_READ, _CACHE_WRITE = "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"
_CACHED = ("cached_tokens", "prompt_cache_hit_tokens", _CACHE_READ, "cache_read_tokens")
_WRITTEN = ("cache_write_tokens", _CACHE_WRITE, "cache_creation_tokens", "cache_write_input_tokens")
_REASONING = ("reasoning_tokens", "thinking_tokens")
_OF_PROMPT = ("prompt_tokens_details", "input_tokens_details")
_OF_ANSWER = ("completion_tokens_details", "output_tokens_details")


class Usage(NamedTuple):
    """Tokens of one call. The last three are parts of the first two."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0


NO_USAGE = Usage()


def token_count(usage: Any, name: str) -> int:
    """A number of tokens in a reply's `usage`; 0 where that is no such number."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and 0 <= count < 2**31 else 0


def usage_of(usage: Any) -> Usage:
    """The `usage` of a reply; no tokens where it is none."""
    if not isinstance(usage, dict):
        return NO_USAGE
    prompt = token_count(usage, "prompt_tokens") or _disjoint_prompt(usage)
    completion = token_count(usage, "completion_tokens") or token_count(usage, "output_tokens")
    total = token_count(usage, "total_tokens")
    if len(usage) == 3 and total == prompt + completion:  # Most replies of servers of one's own.
        return Usage(prompt, completion)
    reasoning = _count(usage, _OF_ANSWER, _REASONING)
    cached, written = _count(usage, _OF_PROMPT, _CACHED), _count(usage, _OF_PROMPT, _WRITTEN)
    beyond_prompt, beyond_answer = _left_out(total - prompt - completion, reasoning, cached + written)
    if not total and reasoning > completion:  # It cannot be a part of it.
        beyond_answer = reasoning
    prompt, completion = prompt + beyond_prompt, completion + beyond_answer
    cached = min(cached, prompt)
    return Usage(
        prompt, completion, min(reasoning or beyond_answer, completion), cached, min(written, prompt - cached)
    )


def _disjoint_prompt(usage: dict[str, Any]) -> int:
    """A prompt as Anthropic counts it: what its cache did not hold, what was read from it, and written to it."""
    return sum(token_count(usage, name) for name in (_INPUT, _CACHE_READ, _CACHE_WRITE))


def _count(usage: dict[str, Any], details: Sequence[str], names: Sequence[str]) -> int:
    """The first number of tokens of one of these names, in the details or beside them."""
    for place in (*map(usage.get, details), usage):
        if place:
            for name in names:
                if count := token_count(place, name):
                    return count
    return 0


def _left_out(surplus: int, reasoning: int, in_cache: int) -> tuple[int, int]:
    """The tokens that a total has beyond those of the prompt and of the answer, as those of the one and of the other.

    What nothing else explains is thinking, which Google counts in its total alone.
    """
    if surplus <= 0:
        return 0, 0
    if in_cache and surplus != reasoning and surplus in (in_cache, in_cache + reasoning):
        return in_cache, surplus - in_cache
    return 0, surplus


def charge(error: CallError, body: Any) -> CallError:
    """The error of a parsed body, with the tokens that the body says it cost."""
    usage = usage_of(body.get("usage") if isinstance(body, dict) else None)
    error.prompt_tokens, error.completion_tokens = usage.prompt_tokens, usage.completion_tokens
    return error
