"""Reading answers: from a model's text to one of the task's choices, as RAmBLA does and as a careful human would."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


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

    `rule` names the row of _ASSERTIONS that read it, or is `json`, `correction` (a later word took an earlier one
    back), `cannot_tell`, `conflict` (two choices asserted, neither takes the other back), `refusal`, `nothing`.
    """

    answer: str | None
    rule: str
    refused: bool = False


def read_robust(text: str, choices: Sequence[str]) -> Reading:
    """The choice that `text` asserts, by an explicit rule; None where it asserts none, or two that differ.

    `choices` are lower-case words or phrases. Hidden reasoning and markup go first; a base model that goes on with
    a question of its own is read up to there. Only the two ends of a long text are read, so the time is bounded.
    """
    plain = _tokenise(_without_markup(_two_ends(_without_reasoning(text)), choices), choices)
    first, *later = _NEXT_PROMPT.split(plain)
    for part in [first] if first.strip() else later:  # a text that begins with one is an echo of the prompt
        reading = _read_part(_without_mentions(part), choices)
        if reading.rule != "nothing":
            return reading
    return Reading(None, "nothing")


def _read_part(text: str, choices: Sequence[str]) -> Reading:
    """Weigh the assertions of one answer in the order of the text.

    A correction replaces what stands, and so does a rule of higher rank; a different choice of the same or a lower
    rank is a conflict, which only a correction or a higher rank resolves. Rank 0 counts where no other rule applies.
    """
    marked = {found.group(1) for found in _JSON.finditer(text)}
    if len(marked) == 1:
        return Reading(_choice(marked.pop(), choices), "json")
    found = {m.start(1): (rank, rule, m.group(1)) for rank, rule, row in _ASSERTIONS for m in row.finditer(text)}
    corrections = [m.end() for m in _CORRECTION.finditer(text)]
    held, held_rank, held_rule, since = "", -1, "nothing", 0
    top = max((rank for rank, _, _ in found.values()), default=0)
    for position, (rank, rule, token) in sorted(found.items()):
        if rank == 0 < top:
            continue
        if held_rank >= 0 and any(since < at <= position for at in corrections):
            held, held_rank, held_rule = token, rank, "correction"
        elif rank > held_rank:
            held, held_rank, held_rule = token, rank, rule
        elif token != held:
            held, held_rule = "", "conflict"
        since = position
    if held_rule != "nothing":
        return Reading(_choice(held, choices) if held else None, held_rule)
    if _CANNOT_TELL.search(text):
        return Reading("unknown" if "unknown" in choices else None, "cannot_tell")
    if _REFUSAL.search(text):
        return Reading(None, "refusal", refused=True)
    return Reading(None, "nothing")


# What is not the answer: hidden reasoning, the middle of a very long text, markup.

_END_OF_REASONING = re.compile(
    r"[<\[◁]/(?:think|thinking|thought|reasoning)[>\]▷]|<\|channel\|>final<\|message\|>", re.IGNORECASE
)
_REASONING = re.compile(r"[<\[◁](?:think|thinking|thought|reasoning)[>\]▷]|<\|channel\|>analysis", re.IGNORECASE)
_END_OF_TURN = re.compile(r"<\|[^|<>\n]{0,40}\|>|</s>|<eos>|<end_of_turn>|\[/?INST\]")
_MARKUP = [
    (re.compile(r"<(?:final[ _])?answer>|\\boxed\b", re.IGNORECASE), "\nfinal answer: "),
    (re.compile(r"</?[a-z][^<>\n]{0,80}>|\\(?:text|math)[a-z]{0,4}\b|_", re.IGNORECASE), " "),
    (re.compile(r"[“”„«»]"), '"'),
    (re.compile(r"[‘’´]"), "'"),
    (re.compile(r"[–—−]"), " - "),
    (re.compile(r"。"), ". "),
    (re.compile(r"""[^\w\s.,;:!?'"()\[\]/|=%-]"""), " "),  # bold, code, headings, braces, emojis
    (re.compile(r"[^\S\n]+"), " "),
]
_ENDS = 4000


def _without_reasoning(text: str) -> str:
    """What follows the last closed block of reasoning, up to one that is never closed, in the model's first turn."""
    text = _REASONING.split(_END_OF_REASONING.split(text)[-1], maxsplit=1)[0]
    return next((turn for turn in _END_OF_TURN.split(text) if turn.strip()), "")


def _two_ends(text: str) -> str:
    """The beginning and the end of a text, cut between words; the "/" neither ends a sentence nor begins one."""
    if len(text) <= 2 * _ENDS:
        return text
    return text[:_ENDS].rpartition(" ")[0] + " / " + text[-_ENDS:].partition(" ")[2]


def _without_markup(text: str, choices: Sequence[str]) -> str:
    text = unicodedata.normalize("NFKC", text)
    words = "|".join(re.escape(choice) for choice in choices if len(choice) > 1)
    text = re.sub(rf"<({words})>", r" \1 ", text, flags=re.IGNORECASE)  # "<yes>" is no tag, "<b>" is
    for pattern, plain in _MARKUP:
        text = pattern.sub(plain, text)
    return text


# Each choice becomes one private-use character, so that the rules below are the same for all choices.

_FIRST = 0xE000
_X = "[\ue000-\uf8ff]"


def _tokenise(text: str, choices: Sequence[str]) -> str:
    """The text in lower case with each choice that stands as a word of its own as one character.

    Not in "no-one" or "0.5"; and a lone letter only in upper case or before punctuation, for "a" is an article.
    """

    def word(choice: str) -> str:
        if len(choice) == 1 and choice.isalpha():
            return rf"(?-i:{choice.upper()})|{choice}(?=\s*(?:[.,;:!)\]\"']|$))"
        return r"\s+".join(map(re.escape, choice.split()))

    longest_first = sorted(choices, key=len, reverse=True)
    words = "|".join(f"({word(choice)})" for choice in longest_first)
    return re.sub(
        rf"(?<!\w)(?<!\w['-])(?<!\d\.)(?:{words})(?!['-]?\w|\.\d|\s?%)",
        lambda m: chr(_FIRST + choices.index(longest_first[(m.lastindex or 1) - 1])),
        text,
        flags=re.IGNORECASE | re.MULTILINE,
    ).lower()


def _choice(token: str, choices: Sequence[str]) -> str:
    return choices[ord(token) - _FIRST]


# Choices that are mentioned, not asserted: each becomes "~".

_NEXT_PROMPT = re.compile(r"^[ \t]*(?:question|q|user|human|instruction|abstract|context)[ \d]{0,4}:", re.MULTILINE)
_OPTION = re.compile(rf"^[ \t]*[(\[]?({_X}|\w)[).:\]](?=[ \t]+\S)", re.MULTILINE)
_OTHER = "\ue000-\uf8ff"  # Inside [^...] it matches up to the next choice.
_JOIN = (
    r"""["')\]]{0,2}\s?(?:[,/|]\s?(?:(?:or|and|nor)\s)?|\b(?:or|and/or|and|nor|vs\.?|versus)\s)"""
    r"""(?:(?:perhaps|maybe|possibly)\s)?["'(\[]{0,2}"""
)
_LIST = re.compile(rf"{_X}(?:{_JOIN}{_X})+")
_MENTIONS = [
    # A quoted question, or any: "Is it yes?"
    re.compile(r'"[^"\n]{0,400}\?"'),
    re.compile(r"[^.!?;\n]{0,400}\?"),
    # Negated: "not yes", "rather than no", "neither yes", "cannot say no"
    re.compile(
        r"(?:\bnot|n't|\bcannot|\bnever|\bneither|\bnor|\bthan|\binstead of|\bopposed to)\s"
        rf"(?:(?:an?|the|be|say|answer|simply|necessarily|simple|with)\s){{0,3}}[\"'(]?{_X}"
    ),
    # Chatter: "Yes, I can help with that!"
    re.compile(rf"{_X}[,.!] i(?:'d| can| would|'m| am)? (?:help|be happy|be glad|happy|glad|understand)\b"),
    # Only supposed, denied or thought at first: "if yes", "to answer no", "one might say yes", "initially no"
    re.compile(
        r"(?:\b(?:if|whether|suppose|assuming|unless|until|would have been|had been|tempted|some|doubt|nobody"
        r"|initially|at first|previously|(?:wrong|incorrect) to say|not true that|hard to|difficult to"
        r"|(?:can|could|might|may) (?:say|think|argue|answer))|(?:^|[.,;]\s)to (?:answer|say))"
        rf"\b[^.,;:?!\n{_OTHER}]{{0,80}}{_X}",
        re.MULTILINE,
    ),
]


def _without_mentions(text: str) -> str:
    def unless_asserted(found: re.Match[str]) -> str:
        """Leave "no, no" and "yes, no change" alone; "yes or no" and "yes, no, unknown" are lists of options."""
        tokens = re.findall(_X, found.group())
        is_list = len(set(tokens)) > 1 and (len(tokens) > 2 or "," not in found.group() or " or " in found.group())
        return "~" if is_list else found.group()

    text = re.sub(rf"({_X})(?:[ \t]+\1)+", r"\1", text)
    text = _LIST.sub(unless_asserted, text)
    if len(set(_OPTION.findall(text))) > 1:
        text = _OPTION.sub("~", text)
    for mention in _MENTIONS:
        text = mention.sub(lambda m: "?" if m.group().endswith("?") else "~", text)
    return text


# The rules: what may stand around a choice, then the table. Every gap is bounded, so that no text takes long.

_FILL = (  # It may stand between a cue and its choice.
    r"(?:(?:an?|the|this|that|it|is|are|be|as|to|towards?|with|for|pair|statement|claim|relation(?:ship)?|option|choice"
    r"|answer|label|question|semantically|(?:most |very |quite )?(?:likely|probably|clearly|definitely)|clear|simply"
    r"|simple|therefore|thus|indeed|in fact|still|certainly)[\s,:]{1,3}){0,8}"
)
_TOKEN = (  # A choice, with what shows that it does not begin a phrase such as "no difference".
    rf"""["'(\[]{{0,2}}({_X})(?=["')\]]|\s?(?:$|[.,;:!(|~-]|(?:because|since|as|but|although|though|while|based"""
    r"|according|given|due|it|the|this|that|these|they|there|we|i|you|whether|with|to (?:this|that|the|your|each)"
    r"|is (?:correct|right|the|my))\b))"
)
_START = r"(?:^|[.!?;]\s|(?<!\b\w)[.!?;])[\s>.|\"'(\[-]{0,5}(?:\d[.)]\s)?"
_GAP = rf"(?:\s(?:to|of|for|here|in|between)\b[^.!?;:\n{_OTHER}]{{0,80}}?|\s?[,(][^.!?;:\n{_OTHER}]{{0,80}}?[,)])?"
_ADJECTIVE = (
    r"(?:(?:final|correct|short|best|right|likely|most|appropriate|suitable|overall|two|my|the|own|similarity)\s){0,3}"
)
_NOUN = (
    r"(?:answer|verdict|label|classification|relation(?:ship)?|conclusion|response|output|pair|choice|option|decision"
    r"|prediction|judge?ment|score|rating|assistant|statements?|claim|sentences?)\b"
)
_CUE = (
    # "the answer to the question is", "the two sentences are"
    rf"(?:\b(?:(?:the|my|this|that|our|'s)\s{_ADJECTIVE}{_NOUN}|answer|label|verdict){_GAP}"
    r"\s?(?:is|are|would be|should be|must be|has to be|=)"
    # "Answer:", "Label -", "A:"
    rf"|{_START}{_ADJECTIVE}(?:{_NOUN}|a\b){_GAP}\s?[:=-]"
    # "I would say"
    r"|\bi(?:'d|'ll)?(?: (?:would|will|must|have to|therefore|still|also)){0,3}"
    r" (?:say|think|answer|choose|pick|select|go with|conclude|rate|classify|respond|label|lean)"
    # "in one word:", "the authors conclude:", "according to the abstract:", "answers the question with a clear"
    r"|\b(?:in one word|concludes?|to answer (?:your|the|this) question"
    rf"|(?:according to|based on|given|from)\s[^.!?;:,\n{_OTHER}]{{0,80}})\s?[,:]"
    r"|\banswers? the question with"
    rf")[\s:,-]{{0,4}}{_FILL}"
)
_SO = (
    r"\b(?:so|therefore|thus|hence|overall|consequently|accordingly|in (?:conclusion|summary|short)|to conclude)"
    r"[\s,:-]{1,3}(?:(?:in short|overall|then)[\s,:]{1,3})?"
)
_BACK = (
    r"(?:(?:^|[.,;:!?-])\s{0,3}(?:oh,? |no,? |but )?"
    r"(?:wait|actually|correction|edit|update|sorry|rather|i mean|hold on|apologies)\b"
    r"|\b(?:scratch that|on second thoughts?|on reflection|let me correct|i (?:misread|was wrong|stand corrected)"
    r"|i apologi[sz]e|(?:made a|my) mistake|(?:looking|look|reading) (?:more closely|closer|again)))"
)
_AGREE = r"(?:(?:well|sure|ok|okay|oh|probably|likely|most likely|definitely|certainly)[\s,:]{1,3})?"
_FINAL = rf"\bfinal answer\b{_GAP}\s?(?:is|would be|[:=-])[\s:-]{{0,4}}"

# (rank, rule, row): group 1 of a row is the choice that it asserts; a later one of a higher rank replaces it.
_ASSERTIONS = [
    (rank, rule, re.compile(row, re.MULTILINE))
    for rank, rule, row in (
        # "it is unknown", which may speak of something else
        (0, "predicate", rf"\b(?:it|this|that|these|they)(?: is|'s| are) {_FILL}{_TOKEN}"),
        (1, "leading", rf"{_START}{_AGREE}{_TOKEN}"),  # "Yes, because", "Sure! No.", "Probably yes."
        (1, "leading", rf"{_START}{_X}, {_TOKEN}"),  # "Yes, no, maybe"
        (1, "set_off", rf"(?<![{_OTHER}])(?:,|,? but|\bthat)\s{_TOKEN}"),  # "It does, yes.", "but yes, it is safe"
        (1, "correction", rf"{_BACK}[\s,:-]{{0,4}}{_FILL}{_TOKEN}"),  # "actually no", "Correction: yes"
        (2, "cue", _CUE + _TOKEN),  # "The answer is yes"
        (2, "cue", rf"({_X})[\"')]? is (?:the )?(?:correct|right|best)\b"),  # "B is correct"
        (3, "conclusion", rf"{_SO}(?:{_CUE})?{_FILL}{_TOKEN}"),  # "..., so yes", "Therefore the answer is no"
        (4, "final", rf"{_FINAL}{_FILL}{_TOKEN}"),  # "Final answer: no", <answer>, \boxed{}
    )
]
_JSON = re.compile(
    rf"""["'][a-z ]{{0,20}}(?:answer|label|score|verdict|decision)["']\s?:\s?["']?({_X})["']?\s?(?:,|$)""",
    re.MULTILINE,
)
_CORRECTION = re.compile(_BACK, re.MULTILINE)

# No choice is asserted: why. "No" itself may be a choice, so it is looked for as one as well.

_CANNOT = r"(?:cannot|can't|can not|could not|unable to|not able to|not possible to|impossible to)"
_CANNOT_TELL = re.compile(
    rf"{_CANNOT} (?:be )?(?:determine|tell\b|known?\b|conclude|infer)"
    rf"|{_CANNOT} (?:be )?answer(?:ed)?\b[^.\n]{{0,40}}\b(?:from|based on|with|using) the"
    rf"|(?:insufficient|not enough|inadequate|lack of|\bno|{_X}|does not|doesn't) (?:\w+ )?(?:enough |sufficient )?"
    r"(?:(?:information|evidence|data|details?) (?:\w+ ){0,4}"
    r"to (?:answer|determine|say|tell|know|conclude|decide|draw|assess|make|give)"
    r"|(?:information|details?) (?:\w+ ){0,4}(?:about|on|regarding))\b"  # a study may well lack evidence on a matter
    r"|(?:insufficient|not enough) information"
    r"|\b(?:abstract|context|text|passage|information|document|premise) (?:provided |given )?"
    r"(?:does not|doesn't|do not|did not) (?:\w+ )?"
    r"(?:say|state|mention|contain|provide|address|specify|report|include|discuss|give|answer|tell)"
    r"(?! (?:any )?evidence)"
    r"|\b(?:study|article) (?:does not|doesn't|did not) (?:say|state|mention|address|specify|answer)"
    rf"|\bi (?:do not|don't) know\b|(?:\bno|{_X}) way to (?:know|tell)|{_X} whether"
    r"|\bnot (?:stated|mentioned|specified|addressed|reported) in the"
)
_REFUSAL = re.compile(
    r"\b(?:i|we)(?:'m| am)? ?(?:sorry,? )?(?:but i )?(?:must )?(?:cannot|can't|can not|unable to|not able to"
    r"|not qualified to|won't|will not|decline to) "
    r"(?:\w+ ){0,2}(?:provide|answer|help|assist|give|offer|fulfill?|comply|respond|diagnose|advise|recommend)\b(?! ~)"
    r"|\bas an ai\b[^.\n]{0,60}\b(?:cannot|can't|unable|not able|don't)|\bi must decline"
)
