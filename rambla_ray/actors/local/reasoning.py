"""What a local model thinks before it answers: split off by tokens, before special tokens are dropped from its text.

Nothing here knows a model by its name. How thoughts are marked is read from the tokenizer: its response template,
which transformers parses; or those of its tokens that are marks, such as `<think>`, `[THINK]`, and the channels of
harmony. What only the text shows, as a mark that is spelled in several tokens, is found there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, Self

from rambla_ray.scoring.answers.thoughts import ends_inside, ends_with_open, is_close, is_open, split_thoughts

OPENED, CLOSED = "<think>", "<think></think>"  # In the place of marks that were found as tokens.
TAIL_TOKENS = 256  # What opens a thought stands among so many last tokens of a prompt.
_HARMONY = {"<|start|>": "start", "<|channel|>": "channel", "<|message|>": "message"}
_BEGINS_ANSWER = ("<|content|>", "<|START_RESPONSE|>")  # Where a model has marks for both, this closes a thought, too.
_ANSWERS = ("", "final", "assistant")  # The first words of the headers of harmony's messages that are answers.
_RESERVED = re.compile(r"<unused\d+>")  # A place in a vocabulary, which a model may or may not use as a mark.
_NAME = "thought\n"  # Some models name the channel behind the mark that opens it.
_THOUGHT_FIELD = re.compile("reasoning|think|thought")  # In the name of a response template's field.


@dataclass(frozen=True, slots=True)
class Answer:
    """What generated tokens say: the answer alone, and beside it the thoughts and how many tokens these have."""

    text: str
    reasoning: str = ""
    reasoning_tokens: int = 0


Read = Callable[[list[int]], Answer]


class Mark(Enum):
    """What a token does."""

    OPEN = "open"
    CLOSE = "close"
    START = "start"  # A message of harmony begins with its role,
    CHANNEL = "channel"  # its channel,
    MESSAGE = "message"  # and then its content.


@dataclass(slots=True)
class _Piece:
    """Tokens between two marks. Those of a header belong neither to a thought nor to the answer."""

    is_thought: bool
    is_header: bool = False
    tokens: list[int] = field(default_factory=list)


class Reasoning:
    """How the model of a tokenizer marks its thoughts, and the split of what it generates.

    Args:
        tokenizer: transformers' tokenizer.
        marks: by their numbers, the tokens that are marks.
        template: the tokenizer's response template, where it says what a thought is.
    """

    def __init__(self, tokenizer: Any, marks: Mapping[int, Mark], template: Mapping[str, Any] | None) -> None:
        self._tokenizer = tokenizer
        self._marks = marks
        self._template = template
        self._special = frozenset(tokenizer.all_special_ids)
        self._special_words = re.compile(
            "|".join(map(re.escape, _longest_first(tokenizer.all_special_tokens))) or r"\Z."
        )

    @classmethod
    def of(cls, tokenizer: Any) -> Self:
        """How a tokenizer's files say that it is. Raises ValueError: its response template is broken."""
        return cls(tokenizer, _marks_of(tokenizer), _response_template(tokenizer))

    def identity(self, *, opened: bool) -> dict[str, object]:
        """What may change an answer: by what it is split. Empty where thoughts show in the text alone.

        Answers that older versions stored have no marks where these are special tokens, or stand in the prompt, so
        that nobody could tell a thought in them from an answer. They are known by other request_ids.

        Args:
            opened: prompts end inside of a thought.
        """
        words = self._tokenizer.convert_ids_to_tokens(sorted(self._marks))
        by: dict[str, object] = {
            **({"marks": words} if self._marks else {}),
            **({"response_template": True} if self._template is not None else {}),
            **({"opened": True} if opened else {}),
        }
        return {"reasoning": by} if by else {}

    def reader(self, prompt: list[int], tail: str = "") -> Read:
        """What splits the tokens that are generated behind a prompt.

        Args:
            prompt: its tokens.
            tail: what the chat template writes behind the last message, if that is known.
        """
        by_marks = partial(self._by_marks, opened=self._is_opened(prompt, tail))
        if self._template is None:
            return by_marks
        return partial(self._by_template, prefix=self._raw(prompt), otherwise=by_marks)

    def _is_opened(self, prompt: Sequence[int], tail: str) -> bool:
        end = self._raw(prompt[-TAIL_TOKENS:])
        return ends_inside(tail) if tail and end.endswith(tail) else ends_with_open(end)

    def _by_template(self, tokens: list[int], *, prefix: str, otherwise: Read) -> Answer:
        """As transformers parses it by the tokenizer's response template."""
        try:
            message = self._tokenizer.parse_response(self._raw(tokens), prefix=prefix)
        except (ValueError, TypeError):  # It is not of the form that the template describes.
            return otherwise(tokens)
        parts = [value for name, value in message.items() if _THOUGHT_FIELD.search(name)]
        content, thoughts = message.get("content", ""), _joined(part for part in parts if isinstance(part, str))
        if not isinstance(content, str):
            return otherwise(tokens)
        more, text = split_thoughts(content)
        return self._counted(tokens, text, _joined([thoughts, more]).strip())

    def _by_marks(self, tokens: list[int], *, opened: bool) -> Answer:
        pieces = self._pieces(tokens, opened=opened)
        if len(pieces) == 1 and not opened:
            return self._by_text(tokens)
        thoughts = [self._thought(piece) for piece in pieces if piece.is_thought]
        said = [self._plain(piece.tokens) for piece in pieces if not (piece.is_thought or piece.is_header)]
        count = sum(len(piece.tokens) for piece in pieces if piece.is_thought)
        if pieces[-1].is_thought:  # What closes it may be spelled in several tokens.
            thoughts[-1], rest = split_thoughts(f"{OPENED}{thoughts[-1]}")
            said.append(rest)
            count -= self._count(rest)
        more, text = split_thoughts(f"{CLOSED}{_joined(said)}")
        reasoning = _joined([*thoughts, more]).strip()
        return Answer(text, reasoning, max(0, count) + self._count(more) if reasoning else 0)

    def _by_text(self, tokens: list[int]) -> Answer:
        """As the text shows it, with special tokens or without; where it shows no thought, the text as it is."""
        plain = self._plain(tokens)
        forms = [plain] if self._special.isdisjoint(tokens) else [self._raw(tokens), plain]
        for form in forms:
            thoughts, text = split_thoughts(form)
            if text != form:
                return self._counted(tokens, self._without_special(text), self._without_special(thoughts))
        return Answer(plain)

    def _pieces(self, tokens: Iterable[int], *, opened: bool) -> list[_Piece]:
        """What stands between the marks. A mark that closes what nothing opened makes thoughts of all before it."""
        pieces = [_Piece(opened)]
        for token in tokens:
            mark, last = self._marks.get(token), pieces[-1]
            if mark is None or (mark is Mark.OPEN and last.is_thought):
                last.tokens.append(token)
            elif mark is Mark.OPEN:
                pieces.append(_Piece(is_thought=True))
            elif mark is Mark.CLOSE:
                for piece in pieces if not last.is_thought else ():
                    piece.is_thought = True
                pieces.append(_Piece(is_thought=False))
            elif mark is Mark.MESSAGE:
                is_header = last.is_header or len(pieces) == 1  # The prompt may end within a header.
                pieces.append(_Piece(is_thought=not self._is_answer(last.tokens) if is_header else last.is_thought))
                last.is_header |= is_header
            else:
                pieces.append(_Piece(is_thought=False, is_header=True))
        return pieces

    def _is_answer(self, header: list[int]) -> bool:
        return next(iter(self._plain(header).split()), "") in _ANSWERS

    def _thought(self, piece: _Piece) -> str:
        return self._plain(piece.tokens).removeprefix(_NAME)

    def _counted(self, tokens: list[int], text: str, thoughts: str) -> Answer:
        """An answer that was split by its text: of tokens that say nothing but thoughts, all are thoughts."""
        count = (len(tokens) if not text.strip() else self._count(thoughts)) if thoughts else 0
        return Answer(text, thoughts, min(count, len(tokens)))

    def _count(self, text: str) -> int:
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else 0

    def _plain(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _raw(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False))

    def _without_special(self, text: str) -> str:
        return self._special_words.sub("", text)


def _marks_of(tokenizer: Any) -> dict[int, Mark]:
    """The tokens of a vocabulary that were added to it and are marks."""
    special = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    added = {number: str(token) for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
    words, marks = {**added, **special}, {}
    for number, word in words.items():
        if number not in special and _RESERVED.fullmatch(word):
            continue  # Decoding keeps it, so the text shows whether it is one.
        if is_close(word):
            marks[number] = Mark.CLOSE
        elif is_open(word):
            marks[number] = Mark.OPEN
    if Mark.OPEN in marks.values():
        marks |= {number: Mark.CLOSE for number, word in words.items() if word in _BEGINS_ANSWER}
    harmony = {number: Mark(_HARMONY[word]) for number, word in words.items() if word in _HARMONY}
    return marks | harmony if {Mark.CHANNEL, Mark.MESSAGE} <= set(harmony.values()) else marks


def _response_template(tokenizer: Any) -> Mapping[str, Any] | None:
    """The response template of a tokenizer, if it has a field for thoughts. Raises ValueError: it is broken."""
    template = getattr(tokenizer, "response_template", None)
    if template is None:
        return None
    tokenizer.get_response_parser(prefix="")
    return template if any(map(_THOUGHT_FIELD.search, template["fields"])) else None


def _joined(pieces: Iterable[str]) -> str:
    return "\n".join(piece for piece in pieces if piece.strip())


def _longest_first(words: Iterable[str]) -> list[str]:
    return sorted(words, key=len, reverse=True)
