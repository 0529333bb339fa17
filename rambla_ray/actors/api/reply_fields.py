"""What stands in the replies of several APIs: numbers of tokens, which each counts in its own way, and names."""

from __future__ import annotations

from typing import Any

from rambla_ray.display import folded

LONGEST_NAME = 200  # The name of what answered, or of how it ended, is cut to so many characters.

# The parts of a prompt as Anthropic counts them: what its cache did not hold, what was read from it, what was written.
INPUT, CACHE_READ, CACHE_WRITE = "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"


def token_count(usage: Any, name: str) -> int:
    """A number of tokens in a reply's `usage`; 0 where that is no such number."""
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and 0 <= count < 2**31 else 0


def tokens_in(usage: Any, details: str, name: str) -> int:
    """A number of tokens in an object inside a usage, such as `output_tokens_details`."""
    return token_count(usage.get(details) if isinstance(usage, dict) else None, name)


def prompt_tokens(usage: Any) -> int:
    """All tokens of a prompt, those in a cache among them, whichever API counted them."""
    return token_count(usage, "prompt_tokens") or sum(
        token_count(usage, name) for name in (INPUT, CACHE_READ, CACHE_WRITE)
    )


def completion_tokens(usage: Any) -> int:
    """All tokens of an answer, those of reasoning among them, whichever API counted them."""
    return token_count(usage, "completion_tokens") or token_count(usage, "output_tokens")


def name_of(value: Any) -> str:
    """A name in a reply as it is kept; empty for what is none."""
    return folded(value)[:LONGEST_NAME] if isinstance(value, str) else ""
