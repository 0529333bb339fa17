"""The text of an answer: what the model says to the reader, in plain characters, up to a question of its own.

Hidden reasoning, turns that follow, the middle of a very long text, markup and prompts that a base model goes on to
write are no part of it.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterator

from rambla_ray.scoring.answers.thoughts import BARE_OPEN, CLOSE, NOT_QUOTED, OPEN

_MARK = re.compile(
    # As a text shows them whose marks were stripped or put in other words: Harmony, Ollama
    rf"{NOT_QUOTED}(?:(?P<close>{CLOSE}|assistant\s?final(?=[\W\dA-Z]|yes|no|$)|\.\.\.\s?done thinking\.?)"
    rf"|(?P<open>{OPEN}|{BARE_OPEN}|\A\s{{0,9}}thinking(?:\.\.\.|…)))",
    re.IGNORECASE,
)
_END_OF_TURN = re.compile(r"<\|[^|<>\n]{0,40}\|>|<｜[^｜<>\n]{0,40}｜>|</s>|<eos>|<end_of_turn>|\[/?INST\]")
_ENDS = 4000


def spoken(text: str) -> str:
    """The model's first turn without its hidden reasoning, normalised (NFKC), and of a very long one the two ends."""
    spoken = re.sub("[¹²³⁰⁴-⁹]{1,3}", " ", _without_reasoning(text))  # marks of notes
    turn = next((turn for turn in _END_OF_TURN.split(spoken) if turn.strip()), "")
    return unicodedata.normalize("NFKC", _two_ends(html.unescape(turn))).replace("\ufe0f", "").replace("\u200b", "")


def _without_reasoning(text: str) -> str:
    """What follows the last closed block of reasoning, or where nothing does, what stands around the blocks.

    A block that is never closed reaches to the end, and one that is only closed began before the text.
    """
    pieces, since, inside = [""], 0, False
    for mark in _MARK.finditer(text):
        if mark.group("close"):
            pieces = pieces if inside else []  # what was never opened began before the text
            pieces.append("")
            inside = False
        elif not inside:
            pieces[-1] = text[since : mark.start()]
            inside = True
        since = mark.end()
    if not inside:
        pieces[-1] = text[since:]
    return pieces[-1] if pieces[-1].strip() else "\n".join(pieces)


def _two_ends(text: str) -> str:
    """The beginning and the end of a text, cut between words; the "/" neither ends a sentence nor begins one."""
    if len(text) <= 2 * _ENDS:
        return text
    return text[:_ENDS].rpartition(" ")[0] + " / " + text[-_ENDS:].partition(" ")[2]


# A base model goes on with a prompt of its own.

_DECORATION = r"^[ \t]*[#*>\[(_ \t-]{0,8}"
_PROMPT = re.compile(
    rf"{_DECORATION}(?:(?:next |new |another )?"
    r"(?:question|q|user|human|instructions?|abstract|context|title|passage|example|problem|input|text|premise"
    r"|sentence ?1|background|task|case|exercise|article|document|item|prompt)"
    r"(?:[ #.]{0,3}\d{1,4}(?: (?:of|/) \d{1,4})?)?[\])*_ ]{0,4}(?::|\.(?= )(?<=\d\.)|[*_\])]{0,3}$)"
    r"|next[*_ ]{0,3}:|\[(?:question|abstract|context|instruction)\])",
    re.MULTILINE | re.IGNORECASE,
)
_FIRST_LINE = re.compile(r"\s*(\S[^\n]{0,40})$", re.MULTILINE)
_NEW_QUESTION = re.compile(
    r"^[ \t]*(?:[-=*_]{3,}[ \t]*$|\d{1,3}[.)][ \t].{0,300}\?|[^\n]{0,300}\?|true or false\b|assistant[ ]?:"
    r"|(?:the|here is a|read the|answer the|consider the) following\b|(?:now )?(?:read|answer|choose|select"
    r"|based on) the\b"
    r"|you are (?:an?|given)\b)",
    re.MULTILINE | re.IGNORECASE,
)
_SECOND_THOUGHT = re.compile(r"\b(?:wait|actually|correction|hmm|sorry|edit|however|reconsider)\b", re.IGNORECASE)


def parts(text: str, is_answer: Callable[[str], bool]) -> Iterator[str]:
    """The answer, which is the text up to the next prompt; or, of a text that begins with one, what follows each.

    `is_answer` says whether a line is a choice and nothing else.
    """
    first, *later = _PROMPT.split(text)
    if re.search(r"\w", first) and not first.rstrip(" *_\n").endswith(":"):  # "Here is my analysis:" introduces a form
        yield _up_to_new_question(first, is_answer)
    else:
        yield from later or [first]


def _up_to_new_question(text: str, is_answer: Callable[[str], bool]) -> str:
    """The first line, where it is a choice and a question or a ruled line follows; all, where second thoughts do."""
    line = _FIRST_LINE.match(text)
    if line and is_answer(line.group(1)) and not _SECOND_THOUGHT.search(text):
        question = _NEW_QUESTION.search(text, line.end())
        return text[: question.start()] if question else text
    return text


# Markup.

_LABEL_TAG = (
    r"(?:answer|verdict|label|result|decision|prediction|conclusion|choice|classification|output|response|solution)"
)
_MARKUP = [
    (re.compile(r"\\[()\[\]]"), " "),  # the brackets of LaTeX
    (re.compile(r"<final>|[<\[](?:final[ _-]?)?answer[>\]]|\\boxed\b", re.IGNORECASE), "\nfinal answer: "),
    (re.compile(rf"<(?:final[ _-]?)?{_LABEL_TAG}>", re.IGNORECASE), "\nanswer: "),
    (re.compile(r"~~[^~\n]{1,200}~~|<(s|del|strike)>[^<\n]{1,200}</\1>", re.IGNORECASE), " "),
    (re.compile(r"\[/[a-z]{2,20}\]|</[a-z][^<>\n]{0,80}>", re.IGNORECASE), "\n"),
    (re.compile(r"<[a-z][^<>\n]{0,80}>|\\(?:text|math)[a-z]{0,4}\b|_", re.IGNORECASE), " "),
    (re.compile(r"-{0,3}(?<!\w-)->|={1,3}>|[→⇒➜➔⟶➡⟹]|\\(?:right|Right)arrow\b"), " → "),
    (re.compile(r"«\s(?=\w)|(?<=[\w.])\s»(?!\w)"), '"'),
    (re.compile(r"[“”„«»「」『』]"), '"'),
    (re.compile(r"[‘’´]"), "'"),
    (re.compile(r"([\"'])\1{1,5}"), r"\1"),
    (re.compile(r"(?<=\S)[ ]{1,3}#[ ]"), " - "),  # a comment after the value
    (re.compile(r"[–—−―]"), " - "),
    (re.compile(r"[。।]"), ". "),
    (re.compile(r"、"), ", "),
    (
        re.compile(r"""[^\w\s.,;:!?'"()\[\]/|=%→\u064b-\u065f\u0900-\u0e4f-]"""),
        " ",
    ),  # bold, code, headings, braces, emojis
    (re.compile(r"[^\S\n]+"), " "),
]


def without_markup(text: str, choices: tuple[str, ...]) -> str:
    """The text with one space between words, straight quotes, and a new line for what a tag names the answer."""
    words = "|".join(re.escape(choice) for choice in choices if len(choice) > 1)
    if "<" in text and words:
        text = re.sub(rf"<({words})>", r" \1 ", text, flags=re.IGNORECASE)  # "<yes>" is no tag, "<b>" is
    for pattern, plain in _MARKUP:
        text = pattern.sub(plain, text)
    return text
