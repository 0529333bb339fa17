"""Lists of options inside an answer: which choice stands behind which letter, and the text without the list."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rambla_ray.scoring.answers.tokens import CHOICE, Vocabulary

_LETTER = r"[(\[]?([A-Ea-e1-5])[.):\]]{1,2}\s{0,3}"
_OPTION = re.compile(
    rf"(?:^|[ ,;:]){_LETTER}[\"']?({CHOICE})[\"']?(?=[ ]{{0,2}}(?:$|[,;.]|or\b|and\b|[(\[]?[A-Ea-e1-5][.):\]]))",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Lettered:
    """A list of options: the choice behind each letter (in lower case), and the text without the list."""

    choices: dict[str, str]
    rest: str


def lettered(text: str, words: Vocabulary) -> Lettered | None:
    """The list of options in a text without markup, where it has one with two of the choices or more."""
    if not re.search(r"[A-Ea-e1-5][.):\]]", text):
        return None
    kept = words.pattern.sub(lambda found: words.tokenise(found.group()), text)
    choices: dict[str, str] = {}
    rest, since = "", 0
    for option in _OPTION.finditer(kept):
        letter, choice = option.group(1).lower(), words.choice(option.group(2))
        if letter not in choices and choice in choices.values():
            return None  # the answers to several questions: "1. yes 2. no 3. yes"
        if letter in choices:
            continue  # a second time it is an answer: "B. No"
        choices[letter] = choice
        rest, since = rest + kept[since : option.start()] + "\n", option.end()
    if len(choices) < 2:
        return None
    rest = re.sub(CHOICE, lambda token: words.choice(token.group()), rest + kept[since:])
    return Lettered(choices, rest)


_OPTION_LINE = re.compile(r"^[ \t]*[(\[*]{0,3}([A-Ea-e])[).:\]*]{1,3}[ \t]+(\S.{0,80}?)[ \t.]*$", re.MULTILINE)


def option_texts(text: str, words: Vocabulary) -> Lettered | None:
    """Where the choices are letters: the letter of each option's words in a list, and the rest of the text."""
    if any(len(name) != 1 for name in words.names):
        return None
    options = {words.named(letter): option.strip(" *_").lower() for letter, option in _OPTION_LINE.findall(text)}
    choices = {option: letter for letter, option in options.items() if letter and re.fullmatch(r"\w[\w ,/-]*", option)}
    return Lettered(choices, _OPTION_LINE.sub("", text)) if len(choices) > 1 else None
