"""Choices that are mentioned and not asserted: each becomes "~", so that no rule takes it for the answer.

A choice is only mentioned in a list of options, in a question, and in a clause whose words before it deny it, suppose
it or report what somebody else says.
"""

from __future__ import annotations

import re

from rambla_ray.scoring.answers.clauses import is_mention
from rambla_ray.scoring.answers.tokens import CHOICE

_JOIN = (
    r"""["')\]]{0,2}\s?(?:[,/|-]\s?(?:(?:or|and|nor)\s)?|\b(?:or|and/or|and|nor|vs\.?|versus)\s)"""
    r"""(?:(?:perhaps|maybe|possibly)\s)?["'(\[]{0,2}"""
)
_LIST = re.compile(rf"{CHOICE}(?:{_JOIN}{CHOICE})+")
_COUNTED = re.compile(rf"({CHOICE})[\"']?\s?[(=:]\s?\d{{1,6}}\b\)?")  # "yes (12), no (8)"
_OPTION = re.compile(rf"^[ \t]*[(\[]?({CHOICE}|\w)[).:\]](?=[ \t]+\S)", re.MULTILINE)
_NUMBERED = re.compile(rf"\b\d{{1,2}}[.):]\s?[\"']?({CHOICE}|no(?= \d))")  # "1. yes 2. no 3. yes"
_QUOTED_QUESTION = re.compile(
    r"""\"[^"\n]{0,400}\?\"|(?<!\w)'[^"\n]{0,400}?\?'(?!\w)|(?<=\banswer to )[^?"\n]{0,300}\?(?=\s(?:is|would be)\b)"""
)
_QUESTION = re.compile(r"[^.!?;\n]{0,400}\?")
_SURVEY = re.compile(rf"\b(?:answered|answering|said|replied|responded|voted) [\"']?{CHOICE}[\"']? to \b")

# Chatter about what the assistant can do: "Yes, I can help with that!", "No, I cannot open links."
_ABLE = (
    r"(?:help|assist|happy|glad|delighted|pleased|understand|open|access|browse|visit|view|look (?:at|into|up)"
    r"|take a look|review"
    r"|see (?:the|any|your|an?) (?:attached |uploaded )?(?:link|image|file|attachment|pdf|figure|abstract|picture"
    r"|table|document)"
    r"|read (?:the|your|this|pdfs?|files?|links?|images?)|answer (?:questions?|your|this|that|any|medical|it)"
    r"|provide|offer|give (?:you |out )?(?:medical|personal|legal|health|any|an?) "
    r"|diagnose|prescribe|process|analy[sz]e (?:the|this|your|an?)|summari[sz]e|comply|do (?:that"
    r"|this|so)|search"
    r"|(?:an|just an|only an) (?:ai|assistant)|a (?:large )?language model|here\b|ready|access\b|the ability"
    r"|real-time|personal"
    r"|(?:carefully )?(?:read|received|seen|reviewed|looked)|know what you|familiar with|aware of|got it)"
)
_OPINION = (  # What "I" says in an answer: "Yes, I think so.", "No, I cannot see a difference."
    r"i(?:'d|'ll|'m|'ve)?(?: (?:would|will|do|did|am|have|can|could|must|may|should|cannot|can't|don't|didn't|wouldn't"
    r"|couldn't|not|also|still|therefore|now|fully|personally|strongly|really|quite|only|have to|be))*"
    r"(?: (?:think|believe|agree|disagree|see|find|found|conclude|concur|confident|sure|certain|convinced|inclined"
    r"|afraid|doubt|suspect|consider|regard|say|answer|argue|go with|interpret|infer|confirm|recommend|support|expect"
    r"|identify|detect|read (?:it|this|the (?:abstract|data|results?)) as|judge|feel|reckon|accept|endorse|deny|use"
    r"|trust|rule|state|assume|overlooked|misread|misjudged|missed|noticed?|saw|was|forgot|made)\b|\s?(?:[.,;!]|$))"
)
_COURTESY = (
    r"(?:let me (?:know|take|look|see|help)|as an ai|(?:great|good|interesting|excellent) question|thank|go ahead"
    r"|go on\b|carry on|continue|proceed"
    r"|feel free|how (?:can|may)|what(?:'s (?:the|your)| would| can| is your)|let's (?:begin|start|go|get|do)"
    r"|which (?:one|abstract)|(?:so )?(?:happy|glad|pleased) to"
    r"|got it|understood|noted|that (?:makes sense|sounds|works|would be (?:great|fine|helpful|nice))"
    r"|that(?:'s| is) (?:fine|ok|okay|alright|all right|an? (?:\w+ )?(?:good|great|interesting|important|excellent"
    r"|valid"
    r"|fair|common) )|you (?:can|may) (?:send|share|paste|ask)|(?:just )?(?:send|paste|share|tell me|ask away))"
)
_FILLERS = r"(?:(?:sorry|unfortunately|of course|sure|certainly|absolutely|indeed|okay|i'm afraid|gladly)[,!.]? )*"
_CHATTER = re.compile(
    rf"{CHOICE}[,.!:]? {_FILLERS}(?:{_COURTESY}"
    r"|(?:i|we)(?:'d|'ll|'m|'ve| would| will| can(?:not|'t)?| could(?:n't)?| am| do(?:n't)?| have(?:n't)?| did)?"
    r"(?: (?:love to|like to|not|also|certainly|gladly|be|am|just|now|currently|really|able to|unable to|more than"
    rf"|very|going to|have))* {_ABLE})"
    rf"|{CHOICE}[,!] {_FILLERS}(?:(?!{_OPINION})i\b|please\b(?! (?:note|see|refer|bear)))",
    re.MULTILINE,
)

_SENTENCE_END = re.compile(r"[.!?;](?=[\s\"')]|$)|\n")


def without_mentions(text: str) -> str:
    """A tokenised text in which only the choices that may be asserted are left."""
    text = re.sub(rf"({CHOICE})(?:(?:[ \t]+\1)+|,? and \1(?=\s?[.,:!;]|$))", r"\1", text)
    text = _LIST.sub(_unless_asserted, text)
    if len(set(_COUNTED.findall(text))) > 1:
        text = _COUNTED.sub("~", text)
    if len(set(_NUMBERED.findall(text))) > 1:
        text = _NUMBERED.sub("~", text)
    if len(set(_OPTION.findall(text))) > 1:
        text = _OPTION.sub(lambda option: "~" if re.search(CHOICE, option.group()) else option.group(), text)
    text = _SURVEY.sub("~", _CHATTER.sub("~", text))  # before questions: "Yes! What's the question?"
    text = _QUESTION.sub("?", _QUOTED_QUESTION.sub("~", text))
    return "".join(_sentences(text))


def _unless_asserted(found: re.Match[str]) -> str:
    """Leave "no, no" and "yes, no change" alone; "yes or no" and "yes, no, unknown" are lists of options."""
    tokens = re.findall(CHOICE, found.group())
    is_list = len(set(tokens)) > 1 and (len(tokens) > 2 or "," not in found.group() or " or " in found.group())
    return "~" if is_list else found.group()


def _sentences(text: str) -> list[str]:
    done, since, supposing = [], 0, False
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    for end in [*ends, len(text)]:
        sentence, since = text[since:end], end
        if re.search(CHOICE, sentence):
            goes_on = supposing and re.match(
                r"\s*(?:then|in (?:that|this|which) case|that would|this would)\b", sentence
            )
            done.append(re.sub(CHOICE, "~", sentence) if goes_on else _asserted(sentence))
        else:
            done.append(sentence)
        if sentence.strip():
            supposing = bool(
                re.match(
                    r"\s*(?:suppose|assume|imagine|let us (?:say|suppose|assume)|say that|hypothetically)\b", sentence
                )
            )
    return done


def _asserted(sentence: str) -> str:
    return re.sub(CHOICE, lambda token: "~" if is_mention(sentence, token.start()) else token.group(), sentence)
