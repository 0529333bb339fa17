"""Words that look like a choice and are none: "no" as a determiner or for number, initials, digits of numbers."""

from __future__ import annotations

import re

# What may follow a choice that begins no phrase such as "no difference".
_GOES_ON = (
    r"(?:because|since|as|not (?:really|at all)|but|although|though|while|based|according|given|due|it|the|this"
    r"|that|these|those"
    r"|they|there"
    r"|we|i|you|he|she|whether|with|after|for|on|at|from|here|overall|indeed|under|when|in(?! vitro| vivo| situ"
    r"| \d| two| three| four| five| ten| every)|per|which|if|unless|only if|to (?:this|that|the|your|each|me"
    r"|one another)"
    r"|is (?:correct|right|the|my|best|beyond|clear|obvious|certain|evident))\b"
)
_IN_BRACKETS = rf"\((?![^()\n]{{0,80}}\)\s(?!{_GOES_ON})[a-z])"  # "no (p = 0.3)", not "no (3 %) deaths"
FOLLOWED = rf"""(?=["']{{0,2}}\s?(?:$|[.,;:!?|~→\])]|/\s|\[\d|-(?![\w%])|{_IN_BRACKETS}|{_GOES_ON}))"""
_AS_ANSWER = re.compile(
    rf"{FOLLOWED}|\s?(?:/|\||\b(?:or|and|nor|vs|versus|for|in|among|no|to [\"']?yes)\b|=)", re.MULTILINE
)
# "No." for number: "No. 12", "Grant No. R01"; but "No. 12 patients relapsed in each arm" answers.
_NUMBER = re.compile(
    r"\. (?:of|per)\b|(?:\.|°)?[ ]{0,2}#?(?:[A-Z]{1,4}-?)?(?!1[.)]\s)\d[\w./-]*(?!\s?%)(?![.,]?\d)"
    r"(?!\s(?:of\s(?:the\s)?\d|out of|percent|in \d|(?!was|is|has|does|this|series|days)[a-z]{2,}s\b|women|men"
    r"|children|people|mg))"
)
_NUMBERED = re.compile(  # "ref. no. 14", "grant no 7"
    r"\b(?:ref|refs|references?|grants?|awards?|trials?|registration|registry|tables?|figures?|fig|protocols?"
    r"|patients?|cases?"
    r"|records?|id|lot|batch|cat|catalogue?|approval|permit|project|contract|sample|series|question|item|page|vol"
    r"|issue"
    r"|article|report|identifier|document|licen[cs]e|code)\.?[ :]{1,2}[(]?$",
    re.IGNORECASE,
)
_DIGIT = re.compile(r"\.?[ ]{0,2}#?[A-Z]{0,4}-?\d", re.IGNORECASE)
_IN_A_LIST = re.compile(r"(?:\bor|\band|\bnor|\bvs\.?|\bversus|[/|])\s?[\"'(\[]{0,2}$")
_BEFORE_NOUN = re.compile(
    r"(?:\b(?:(?<!go )(?<!going )(?<!answer )(?<!answered )(?<!went )(?<!gone )with|had|have|has|having|show(?:s"
    r"|ed|ing)?|found|finds?|reveal(?:s|ed)|report(?:s|ed)|there (?:is|are|was|were|be)"
    r"|almost|virtually|essentially|practically|repeat|detected|caused|of|little or)|[a-z] table|[a-z] ref)\s$",
    re.IGNORECASE,
)
_LISTED_NOUN = re.compile(r"\s?[,(/-]|\s(?:or|and|for|in|at)\b|\s*$")
_WRAPPED = re.compile(r"\n(?!no\b|yes\b|because\b)[a-z]")
_DEGREE = re.compile(
    r",?\s(?:mild|moderate|low|minimal|slight|partial|little|weak|some|minor|one|poor)(?:,|\s(?:or"
    r"|and|to)\b)"
)
_WRAPPED_PHRASE = re.compile(
    r"\n(?:significant|statistically|clinically|differences?|evidence|associations?"
    r"|effects?|major"
    r"|serious|adverse|such|further|other|relevant|clear|patients?|deaths?)\b(?!\s?[:=])"
)
_LINE_OR_CUE = re.compile(
    r"(?:^|\n|[:(*\"'=|]|\b(?:is|answer|option|choice|letter|so|therefore|thus))[\s*(\"'>#-]{0,6}$", re.IGNORECASE
)
_INITIAL = re.compile(r"[A-Z]\.\s?$|\w\.$")
_ANSWER_LABEL = re.compile(r":\s{0,3}[(\[]?[A-E][)\].]{0,2}\s*$", re.MULTILINE)  # "A: B", where A is for answer
_CITED = re.compile(r"\[\d{1,2}\] \w")  # "[1] Smith et al."
_IN_A_NUMBER = re.compile(r"\s?[:/,-]\d|\s-\s\d|,\s\d{4}")


def is_lookalike(found: re.Match[str], name: str) -> bool:
    """Whether what was found as the choice `name` is another word."""
    if name == "no":
        return not _is_answer(found)
    if len(name) == 1 and name.isdigit():
        return _is_part_of_a_number(found)
    if len(name) == 1 and name.isascii():
        return _is_initial(found, name)
    return name == "true" and found.string[found.end() : found.end() + 4] in (" for", " of ")


def _is_answer(found: re.Match[str]) -> bool:
    """Whether a "no" may be an answer: no determiner ("no deaths", "no (3 %) deaths") and no "No." for number."""
    text, start, end = found.string, found.start(), found.end()
    before = text[max(0, start - 24) : start]
    if found.group() != "NO" and _NUMBER.match(text, end):
        return False
    if (
        before.lower().endswith(("oh ", "uh-oh, "))
        or _DEGREE.match(text, end)
        or (_NUMBERED.search(before) and _DIGIT.match(text, end))
    ):
        return False
    if _IN_A_LIST.search(before) or (text[end : end + 1] in ("'", '"') and before.endswith(text[end])):
        return True
    wrapped = _WRAPPED_PHRASE.match(text, end) or (re.search(r"[a-z] $", before) and _WRAPPED.match(text, end))
    return (
        bool(_AS_ANSWER.match(text, end))
        and not wrapped
        and not (_LISTED_NOUN.match(text, end) and _BEFORE_NOUN.search(before))
    )


def _is_part_of_a_number(found: re.Match[str]) -> bool:
    """Whether a digit stands in "1:2", "1-4 days", "1,796", "[1] Smith" or "(1) to examine, (2) to compare"."""
    text, start, end = found.string, found.start(), found.end()
    if _IN_A_NUMBER.match(text, end) or (start > 1 and text[start - 1] in ":/,-" and text[start - 2].isdigit()):
        return True
    return bool(_CITED.match(text, max(0, start - 1))) or (text[start - 1 : start] == "(" and "(2)" in text)


def _is_initial(found: re.Match[str], name: str) -> bool:
    """Whether a letter stands in "M. D. Anderson" or "the bacterium A. schaalii", or is the "A:" before an answer."""
    text, start, end = found.string, found.start(), found.end()
    before = text[max(0, start - 24) : start]
    if (name == "a" and _ANSWER_LABEL.match(text, end)) or re.search(r"\w\.$", before):
        return True
    is_name = re.match(r"\.\s?[A-Za-z]", text[end : end + 3]) and found.group().isupper()
    return bool(is_name and (_INITIAL.search(before[-3:]) or not _LINE_OR_CUE.search(before)))
