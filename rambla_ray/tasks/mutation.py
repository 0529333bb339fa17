"""Mutation: spelling mistakes in a text, one character of a word at a time, as RAmBLA makes them."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import string
import unicodedata

import numpy as np
from numpy.typing import NDArray

_PLAIN = re.compile("[A-Za-z0-9]")  # It finds most words that can be changed, without a look at each character.


class TooFewWords(ValueError):
    """The text has fewer words that can be changed than mutations were asked for."""


class CharacterMutator:
    """Replaces one character in each of several words by another of its kind.

    This is RAmBLA's character-level mutator with `swap_character`, `match_character_type` and
    `single_mutation_per_word`. Its generator is its own and runs on from one call to the next; from a fresh seed the
    outputs are those of the original, which seeds numpy's global generator. Two differences: seed 0 is a seed here
    (the original then does not seed at all), and a character that has no kind (Chinese letters, combining marks) is
    never chosen, where the original may choose it and fail.
    """

    def __init__(self, seed: int) -> None:
        """A generator seeded with `seed`, 0 ≤ seed < 2**32. Raises ValueError outside of that."""
        self._generator = np.random.RandomState(seed)

    def restart(self, seed: int) -> None:
        """Continue as a new mutator with `seed` would, at a hundredth of its cost."""
        self._generator.seed(seed)

    def __call__(self, text: str, count: int) -> str:
        """`text` with `count` different words changed by one character each; whitespace and length stay.

        Raises:
            TooFewWords: fewer than `count` words have a character that can be changed.
            ValueError: `count` is negative.
        """
        if count < 0:
            raise ValueError(f"the number of mutations is {count}, below 0")
        if count == 0:
            return text
        split, words = _changeable(text)
        parts = list(split)
        if count > len(words):
            raise TooFewWords(f"{len(words)} words can be changed, {count} were asked for")
        for place in self._generator.choice(words, count, replace=False):
            parts[place] = self._swap_character(parts[place])
        return "".join(parts)

    def _swap_character(self, word: str) -> str:
        places = [place for place, character in enumerate(word) if _alphabet(character)]
        place = places[self._generator.randint(len(places))]  # It draws as choice() does, at a third of its cost.
        others = _alphabet(word[place]).replace(word[place], "")
        return word[:place] + others[self._generator.randint(len(others))] + word[place + 1 :]


@functools.lru_cache(maxsize=1024)
def _changeable(text: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The words and spaces of a text, and the places of words that can be changed; a schedule asks several times."""
    parts = tuple(re.split(r"(\s+)", text))
    # A set, because the original draws from list(set(...)), whose order in CPython is not ascending for long texts.
    eligible = {place for place, part in enumerate(parts) if _PLAIN.search(part) or any(map(_alphabet, part))}
    return parts, np.array(list(eligible), dtype=np.int64)


def sample_seed(seed: int, *parts: str) -> int:
    """A 32-bit seed for one sample of a run: the first four bytes of sha256 over the run's seed and `parts`.

    With its own seed, a sample comes out the same whatever the order, number or batching of the others.
    """
    digest = hashlib.sha256(json.dumps([seed, *parts]).encode()).digest()
    return int.from_bytes(digest[:4], "big")


@functools.cache
def _alphabet(character: str) -> str:
    """The characters of the same kind; empty for one that has no kind, and for whitespace."""
    if unicodedata.category(character)[0] in "PS":
        return ""
    if character.isupper():
        return string.ascii_uppercase
    if character.islower():
        return string.ascii_lowercase
    return string.digits if character.isnumeric() else ""
