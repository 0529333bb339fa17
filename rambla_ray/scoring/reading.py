"""Reading answers: from a model's text to one of the task's choices, as RAmBLA does and as a careful human would."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rambla_ray.scoring.answers.mentions import without_mentions
from rambla_ray.scoring.answers.options import Lettered, lettered, option_texts
from rambla_ray.scoring.answers.other_words import (
    CANNOT_TELL,
    ENTAILS,
    REFUSAL,
    SHORT,
    SILENT_AT_FIRST,
    SILENT_ON_QUESTION,
)
from rambla_ray.scoring.answers.records import Form, read_broken_json, read_form
from rambla_ray.scoring.answers.rules import ARROW, ASSERTIONS, CONCEDED, CORRECTION, LABELLED, LAST_LETTER, STATEMENT
from rambla_ray.scoring.answers.text import parts, spoken, without_markup
from rambla_ray.scoring.answers.tokens import CHOICE, Vocabulary, normalised, vocabulary


def read_rambla(text: str, choices: Sequence[str]) -> str | None:
    """The choice RAmBLA reads from `text`, or None.

    Every "." is deleted, white space at the ends dropped, the rest lower-cased; then the first position at which
    one of `choices` stands as a whole word wins, and of several there the one listed first. As in the original the
    choices are used as regular expressions; the config admits plain words only.
    """
    found = re.search(r"\b(" + "|".join(choices) + r")\b", text.replace(".", "").strip().lower())
    return found.group(1) if found else None


@dataclass(frozen=True, slots=True)
class Reading:
    """What `read_robust` read from one answer.

    `rule` names the row of ASSERTIONS that read it, or is `json`, `yaml`, `box` (ticked, or the only choice that is
    called right), `probabilities` (a form), `option` (a letter of a list of options), `short` ("Nope."), `entails`,
    `correction` (a later word took an earlier one back), `cannot_tell`, `conflict` (two choices asserted, neither
    takes the other back), `refusal`, `cut` (what is asserted may not be the last word of a text that was cut off),
    `nothing`.
    """

    answer: str | None
    rule: str
    refused: bool = False


_NOTHING = Reading(None, "nothing")
_MOST_FORMS = 2  # how deep a sentence in a form, or a list of options, is read in its turn


def read_robust(text: str, choices: Sequence[str], *, cut: bool = False) -> Reading:
    """The choice that `text` asserts, by an explicit rule; None where it asserts none, or two that differ.

    `choices` are lower-case words or phrases. Hidden reasoning and markup go first; a base model that goes on with
    a question of its own is read up to there. Only the two ends of a long text are read, so the time is bounded.
    `cut` says that the text reached its length limit: an answer in mid-thought is then none. So it is where the last
    word shows that the text goes on.
    """
    words, own = vocabulary(tuple(choices)), spoken(text)
    for part in parts(own, lambda line: words.named(line) is not None):
        reading = _read_part(part, words)
        if reading.rule != "nothing":
            is_cut = (cut and own.endswith(part)) or _ENDS_OPEN.search(part[-40:])
            return _unless_in_mid_thought(part, reading, words) if is_cut and reading.answer else reading
    return _NOTHING


def _read_part(text: str, words: Vocabulary, depth: int = 0) -> Reading:
    """The reading of one answer: of a form in it where there is one, else of its sentences."""
    if depth < _MOST_FORMS:
        form = read_form(text, words, lambda value: _read_part(value, words, depth + 1).answer)
        if form:
            return _agreed(form, _read_part(form.rest, words, depth + 1))
    clean = without_markup(text, words.choices)
    if depth < _MOST_FORMS and (options := lettered(clean, words)):
        return _read_letter(options, words, depth)
    reading = _read_clean(clean, text, words)
    if reading.rule == "nothing" and depth < _MOST_FORMS and (texts := option_texts(text, words)):
        named = _read_part(texts.rest, vocabulary(tuple(texts.choices)), depth + 1).answer
        return Reading(texts.choices[named], "option") if named else reading
    return reading


def _agreed(form: Form, around: Reading) -> Reading:
    """The form's answer, unless the text around it takes it back or contradicts it."""
    if form.rule == "nothing":
        return around
    if around.answer in (None, form.answer) or form.answer is None:
        return Reading(form.answer, form.rule)
    return around if around.rule == "correction" else Reading(None, "conflict")


def _read_letter(options: Lettered, words: Vocabulary, depth: int) -> Reading:
    """The choice behind the letter that stands after a list of options, or what else the text after it asserts."""
    letter = _read_part(options.rest, vocabulary(tuple(options.choices)), depth + 1)
    word = _read_sentences(options.rest, words)
    if letter.answer is None:
        return word
    choice = options.choices[letter.answer]
    return Reading(choice, "option") if word.answer in (None, choice) else Reading(None, "conflict")


def _read_sentences(text: str, words: Vocabulary) -> Reading:
    return _read_clean(without_markup(text, words.choices), text, words)


def _read_clean(clean: str, text: str, words: Vocabulary) -> Reading:
    """The reading of sentences; `clean` is `text` without its markup."""
    tokenised = words.tokenise(clean)
    if '"' in tokenised or "'" in tokenised:
        broken = read_broken_json(tokenised, words)
        if broken:
            return Reading(broken, "json")
    plain = without_mentions(tokenised)
    reading = _weigh(plain, words)
    if reading.rule != "nothing" or _is_letter_amid_rubble(text):
        return reading
    return _read_other_words(plain, tokenised, words)


_DRESS = frozenset("$*_`'\"()[]<>.,;:!-#|“”‘’„«»。")


def _is_letter_amid_rubble(text: str) -> bool:
    """Whether the one letter of a text stands among characters that dress no answer, as "y" does in "}y{"."""
    return sum(map(str.isalnum, text)) == 1 and not all(c.isalnum() or c.isspace() or c in _DRESS for c in text)


def _weigh(text: str, words: Vocabulary) -> Reading:
    """Weigh the assertions of one answer in the order of the text.

    A correction replaces what stands, and so does a rule of higher rank; a different choice of the same or a lower
    rank is a conflict, which only a correction or a higher rank resolves. Rank 0 counts where no other rule applies.
    """
    found = {m.start(1): (rank, rule, m.group(1)) for rank, rule, row in ASSERTIONS for m in row.finditer(text)}
    found = found or _stated(text, words)
    corrections = [m.end() for pattern in (CORRECTION, ARROW) for m in pattern.finditer(text)]
    held, held_rank, held_rule, since = "", -1, "nothing", 0
    top = max((rank for rank, _, _ in found.values()), default=0)
    for position, (rank, rule, token) in sorted(found.items()):
        if rank == 0 < top or (rank < held_rank and CONCEDED.match(text, position)):
            continue
        if held_rank >= 0 and any(since < at <= position for at in corrections):
            held, held_rank, held_rule = token, rank, "correction"
        elif rank > held_rank:
            held, held_rank, held_rule = token, rank, rule
        elif token != held:
            held, held_rule = "", "conflict"
        since = position
    taken_back = _taken_back(text, since, corrections, words) if held_rank >= 0 else set()
    if taken_back - {held}:
        held, held_rule = (taken_back.pop(), "correction") if len(taken_back) == 1 else ("", "conflict")
    return Reading(words.choice(held) if held else None, held_rule)


def _taken_back(text: str, since: int, corrections: list[int], words: Vocabulary) -> set[str]:
    """A yes or no behind a correction, which no rule read: "no" in "Yes. I misread the table: no."."""
    later = [at for at in corrections if at > since]
    tokens = set(re.findall(CHOICE, text[min(later) :])) if later else set()
    return {token for token in tokens if normalised(words.choice(token)) in ("yes", "no")}


def _stated(text: str, words: Vocabulary) -> dict[int, tuple[int, str, str]]:
    """The choices that stand where an answer stands, without the words of a rule."""
    row = STATEMENT if {"yes", "no"} <= set(words.names) else LABELLED
    if all(len(name) == 1 for name in words.names):
        row = LAST_LETTER  # an "A" before it may be an article
    elif len(set(re.findall(CHOICE, text))) > 1:
        return {}
    if any(name.isdigit() for name in words.names):  # "(1)" is a reference
        return {}
    return {m.start(1): (0, "statement", m.group(1)) for m in row.finditer(text)}


def _read_other_words(text: str, tokenised: str, words: Vocabulary) -> Reading:
    """What a text says in other words than the choices': a short form, no answer to be had, a refusal."""
    unlabelled = _LABEL.sub("", text, count=1) if _LABEL.match(text) else text
    for name, where, pattern in SHORT:
        if name in words.names and pattern.fullmatch(_bare(unlabelled if where == "whole" else _opening(unlabelled))):
            return Reading(words.named(name), "short")
    if _says_it_cannot_tell(unlabelled):
        return Reading(words.named("unknown"), "cannot_tell")
    if REFUSAL.search(tokenised):  # "No, I cannot open links." begins with what is no answer
        return Reading(None, "refusal", refused=True)
    return _read_relation(text, words)


def _says_it_cannot_tell(text: str) -> bool:
    silent = SILENT_AT_FIRST.search(text) and not re.search(r"\b(?:but|however|still|nevertheless|yet)\b", text)
    return bool(CANNOT_TELL.search(text) or silent or SILENT_ON_QUESTION.search(text))


def _read_relation(text: str, words: Vocabulary) -> Reading:
    """The relation of two sentences as a verb: "the premise entails the hypothesis"."""
    named = {name for name, pattern in ENTAILS if name in words.names for found in pattern.finditer(text)}
    if len(named) != 1 or _UNSURE_RELATION.search(text):
        return _NOTHING
    return Reading(words.named(named.pop()), "entails")


_UNSURE_RELATION = re.compile(r"\b(?:not|neither|nor|cannot|never|no|if|would|might|may|whether)\b|n't\b|\?|~")
_LABEL = re.compile(r"\s*(?:the )?(?:final )?(?:answer|verdict|label|conclusion|result)(?: is)?\s?[:=-]\s*")


def _opening(text: str) -> str:
    return re.split(r"[.!?,;\n](?:\s|$)|\s-\s", text.strip(), maxsplit=1)[0]


def _bare(text: str) -> str:
    return text.strip(" \n.!\"'()[]:,-")


# A text that its length limit cut off.

_THINKING = re.compile(
    r"\b(?:hmm+|wait|okay|ok|alright|let me|let's|let us|we need to|i need to|i should|i must|the user"
    r"|step by step|first,"
    r"|the question (?:is|asks)|but (?:is|then|what|maybe)|maybe|however|on the other hand|to (?:decide|determine"
    r"|answer))\b",
    re.IGNORECASE,
)
_ENDS_OPEN = re.compile(
    r"\b(?:the|an?|of|and|but|is|are|was|were|to|in|on|that|because|whether|if|with|for|by|from|as|which|however)\s*$",
    re.IGNORECASE,
)
_TURNS = re.compile(r"\b(?:but|unless|although|while|whereas|if|except|yet)\b", re.IGNORECASE)
_LAST_WORDS = 400


def _unless_in_mid_thought(text: str, reading: Reading, words: Vocabulary) -> Reading:
    """The reading of a text that was cut off, if it is an answer at its beginning or a final answer without a but."""
    if reading.rule in ("json", "yaml", "box"):
        return reading
    text = without_markup(text, words.choices)
    opening = re.match(r"\s*[^\n]{1,400}?(?:[.!?:](?=[\s*]|$)|\n|$)(?:\s*[^\s.!?\n]{1,40}[.!]?(?=\s|$))?", text)
    first = _read_sentences(opening.group(), words) if opening else _NOTHING
    if opening and opening.end() == len(text) and first.rule != "leading" and _TURNS.search(text):
        return Reading(None, "cut")
    if first.answer == reading.answer and not _THINKING.search(text[: opening.end() + 40] if opening else text):
        return reading if reading.rule != "correction" else Reading(None, "cut")
    if reading.rule == "final" and not _THINKING.search(text[-_LAST_WORDS:].rpartition("inal")[2]):
        return reading
    return Reading(None, "cut")
