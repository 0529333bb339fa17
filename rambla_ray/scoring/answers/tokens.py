"""Choices as tokens: each choice that stands as a word of its own becomes one private-use character.

So the rules are the same for all choices, and what only looks like a choice ("no deaths", "No. 12", "a dose of") is
told apart here, once.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from rambla_ray.scoring.answers.lookalikes import is_lookalike

_FIRST = 0xE000
CHOICE = "[\ue000-\uf8ff]"
NO_CHOICE = "\ue000-\uf8ff"  # Inside [^...] it matches up to the next choice.

_ADVERB = "(?:semantically|fully|strictly|entirely|really|completely|clinically|statistically|logically|truly|in fact)"
_CONTRACTED = re.compile(r"n't\b", re.IGNORECASE)
_ANSWER_IS = re.compile(
    r"(\b(?:question (?:\w+ ){1,6}answered|answers? (?:this|it|(?:the|this|its own) question)"
    r"|answer(?: to [^.,;:\n]{0,60})? (?:is|would be|must be|has to be"
    r"|remains))(?: (?:in the|an?|most likely|likely|probably|clearly|still|therefore|definitely))* )"
    r"(affirmative|negative|unclear|uncertain|undetermined|indeterminate|inconclusive|undecided|not clear"
    r"|not known)(?= ?(?:[.,;:!)]|$))",
    re.IGNORECASE | re.MULTILINE,
)
_NEXT_WORD = re.compile(r" ([a-z]+)\b", re.IGNORECASE)
_JOINING = {"or", "and", "nor", "vs", "versus", "vote", "votes", "answer", "answers", "response", "if", "is", "was"}
_JOINING |= {"would", "cannot", "could", "can", "may", "might", "does", "has", "needs", "requires", "seems", "means"}
_JOINING |= {"for", "in", "among", "at", "only", "to", "on", "with", "when"}
_JOINING |= {"appears", "looks", "sounds", "remains", "must", "should"}
_OTHER_WORDS = {"yes": r"|yep|yeah|yup|yea", "no": r"|nope|nah"}


def normalised(text: str) -> str:
    """The same characters for the same word: NFKC, lower case, one space for white space and "_"."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().replace("_", " ").split())


def _pattern(choice: str) -> str:
    word = normalised(choice)
    if len(word) == 1 and "a" <= word <= "z":  # "a" is an article
        return rf"(?-i:{word.upper()})|{word}(?=\s*(?:[.,;:!)\]\"']|$))"
    if word.isdigit():
        return rf"{word}(?:\.0{{1,2}}(?![\w.]))?"
    particle = "的?" if word in ("是", "对", "不是") else ""
    if word.startswith("not "):
        return rf"(?:not\s(?:{_ADVERB}\s)?|non-?\s?){re.escape(word[4:])}"
    return (
        r"[\s-]{1,3}".join(re.escape(piece) for piece in re.split(r"[\s-]+", word))
        + particle
        + _OTHER_WORDS.get(word, "")
    )


@dataclass(frozen=True)
class Vocabulary:
    """The choices of a task, and how they are found in a text."""

    choices: tuple[str, ...]
    names: tuple[str, ...]
    longest_first: tuple[int, ...]
    pattern: re.Pattern[str]

    def choice(self, token: str) -> str:
        """The choice that a token stands for, as the task writes it."""
        return self.choices[ord(token) - _FIRST]

    def named(self, text: str) -> str | None:
        """The choice that a whole text names."""
        name = normalised(text).strip(" .!\"'*`()[]")
        return self.choices[self.names.index(name)] if name in self.names else None

    def tokenise(self, text: str) -> str:
        """The text in lower case with each choice that stands as a word of its own as one character.

        Not in "no-one" or "0.5", and not where "no" is a determiner or short for number.
        """
        if any(name.startswith("not ") for name in self.names):
            text = _CONTRACTED.sub(" not", text)
        if _ANSWER_IS.search(text):
            text = _ANSWER_IS.sub(self._in_own_words, text)
        return self.pattern.sub(self._token_of, text).lower()

    def _in_own_words(self, found: re.Match[str]) -> str:
        word = found.group(2).lower()
        name = {"affirmative": "yes", "negative": "no"}.get(word, "unknown")
        return found.group(1) + name if name in self.names else found.group()

    def _token_of(self, found: re.Match[str]) -> str:
        index = self.longest_first[(found.lastindex or 1) - 1]
        if is_lookalike(found, self.names[index]):
            return found.group()
        token = chr(_FIRST + index)
        return f"{token}," if self.names[index] == "yes" and _runs_on(found, self.names) else token


@lru_cache(maxsize=256)
def vocabulary(choices: tuple[str, ...]) -> Vocabulary:
    """The vocabulary of `choices`."""
    order = tuple(sorted(range(len(choices)), key=lambda index: len(choices[index]), reverse=True))
    words = "|".join(f"({_pattern(choices[index])})" for index in order)
    pattern = rf"(?<!\w)(?<!\w['-])(?<!\d\.)(?:{words})(?!['-]?\w|\.\d|\s?%)"
    names = tuple(normalised(choice) for choice in choices)
    return Vocabulary(choices, names, order, re.compile(pattern, re.IGNORECASE | re.MULTILINE))


def _runs_on(found: re.Match[str], names: tuple[str, ...]) -> bool:
    """Whether a "yes" opens the text and goes on without a comma, as small models write: "yes zinc helps"."""
    if found.start() > 20 or re.search(r"\w", found.string[: found.start()]):
        return False
    following = _NEXT_WORD.match(found.string, found.end())
    return following is not None and following.group(1).lower() not in (*names, *_JOINING)
