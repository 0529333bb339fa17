"""What calls cost: the most that one may, and what one is likely to, by what those before it have cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rambla_ray.actors.model import Size
from rambla_ray.ledger.spent import Spent
from rambla_ray.schema import Tokens

BYTES_PER_TOKEN = 4  # Of a prompt whose model has not answered yet, a token is taken to be so many bytes long.
FRAME_TOKENS = 64  # A chat template is taken to put at most so many tokens around a prompt.

Key = tuple[str, str]  # A model config's name, and a role.


@dataclass(slots=True)
class _History:
    """What calls of one model in one role have cost in this invocation."""

    calls: int = 0
    prompt_bytes: int = 0
    tokens: Tokens = Tokens()  # noqa: RUF009 - it is a constant
    frame: int = FRAME_TOKENS  # The most tokens that a prompt had beyond its bytes.
    longest_answer: int = 0


class CallCosts:
    """Tokens that calls may have, and are likely to have.

    Args:
        spent: by (model config, role), what the run has spent so far, in earlier invocations too.
    """

    def __init__(self, spent: Mapping[Key, Spent]) -> None:
        self._spent = spent
        self._history: dict[Key, _History] = {}

    def most(self, key: Key, size: Size) -> Tokens:
        """The most tokens: no tokenizer makes more than one a byte, and a chat template adds a few."""
        prompt_bytes, longest_answer = size
        history = self._history.get(key, _UNKNOWN)
        frame = history.frame if prompt_bytes else 0
        return Tokens(prompt_bytes + frame, max(longest_answer, history.longest_answer))

    def likely(self, key: Key, size: Size) -> Tokens:
        """The tokens that a call is likely to have, rounded up; before any answer is known, one of it.

        What the endpoint's cache held of prompts so far, it is likely to hold of the next; that is rounded down.
        """
        prompt_bytes, longest_answer = size
        history = self._history.get(key)
        if not prompt_bytes:
            return Tokens()
        if history is not None:
            share, tokens = (prompt_bytes, history.prompt_bytes), history.tokens
            answer = _share_up(tokens.completion, 1, history.calls)
            return Tokens(_share_up(tokens.prompt, *share), answer, *_cache_shares(tokens, *share))
        if self.is_known(key):
            spent = self._spent[key]
            share, tokens = (1, spent.answered or spent.failed or 1), spent.tokens
            prompt, answer = _share_up(tokens.prompt, *share), _share_up(tokens.completion, *share)
            return Tokens(prompt, answer, *_cache_shares(tokens, *share))
        return Tokens(prompt_bytes // BYTES_PER_TOKEN + 1, min(1, longest_answer))

    def learn(self, key: Key, size: Size, tokens: Tokens) -> None:
        """A call has cost this."""
        prompt_bytes, _ = size
        if not prompt_bytes or not any(tokens):
            return
        history = self._history.setdefault(key, _History())
        history.calls += 1
        history.prompt_bytes += prompt_bytes
        history.tokens = history.tokens.plus(tokens)
        history.frame = max(history.frame, tokens.prompt - prompt_bytes)
        history.longest_answer = max(history.longest_answer, tokens.completion)

    def is_known(self, key: Key) -> bool:
        """Whether any call of a model in a role has said what it cost, in this invocation or before."""
        spent = self._spent.get(key, Spent())
        return key in self._history or spent.prompt_tokens + spent.completion_tokens > 0


def _share_up(whole: int, part: int, of: int) -> int:
    """So many parts of a number, rounded up."""
    return -(-whole * part // of)


def _cache_shares(tokens: Tokens, part: int, of: int) -> tuple[int, int]:
    """So many parts of what the endpoint's cache gave and took, rounded down."""
    return tokens.cached * part // of, tokens.cache_write * part // of


_UNKNOWN = _History()
