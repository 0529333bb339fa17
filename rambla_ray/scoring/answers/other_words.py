"""Answers in other words than the choices', and what says that there is none: "Nope.", "It cannot be determined."

Like the rules, they read a tokenised text (tokens.py), and every gap is bounded.
"""

from __future__ import annotations

import re

from rambla_ray.scoring.answers.tokens import CHOICE

_CANNOT = (
    r"(?:cannot|can't|can not|(?<=\bit )could not|(?<=\bi )could not|(?<=\bi )couldn't|unable to|not able to"
    r"|(?:not|isn't) possible to|impossible to)"
)
_SOURCE = r"(?:abstract|context|text|passage|information|document|premise|excerpt|article|paper|study|source)s?"
_SILENT = (
    rf"\b{_SOURCE} (?:provided |given |above )?(?:does not|doesn't|do not|don't|did not|didn't|never|fails? to"
    rf"|is silent|(?:says?|mentions?|states?|contains?) nothing)"
)
CANNOT_TELL = re.compile(
    rf"{_CANNOT} (?:\w+ )?(?:be )?(?:\w+ly )?(?:sure\b|certain\b|determined?|tell|known?|concluded?|infer(?:red)?"
    r"|decided?"
    r"|ascertain(?:ed)?"
    rf"|establish(?:ed)?|say\b(?! (?:~|that)))\b(?! (?:how|why|which|what|when|who|the (?:cause|reason|mechanism))\b)"
    rf"|\b(?:nothing|nowhere) in (?:the|this) (?:\w+ )?{_SOURCE} (?:\w+ )?(?:address|answer|mention|say|state|tell"
    rf"|indicate|suggest|relate|speak|help)"
    rf"|{_SOURCE} lacks? (?:\w+ ){{0,3}}(?:information|data|details?|evidence)"
    rf"|{_SOURCE} (?:\w+ )?(?:gives?|provides?|contains?|offers?|has|makes?) no (?:\w+ )?(?:answer|mention"
    rf"|information|details?|indication|statement|clue|hint)"
    rf"|{_CANNOT} (?:be )?answer(?:ed)?\b(?! [\"']?~)[^.\n]{{0,40}}\b(?:from|based on|with|using) (?:the|this|what)"
    r"|(?:insufficient|not enough|inadequate|lack of|\bno|does not|doesn't) (?:\w+ )?(?:enough |sufficient )?"
    r"(?:(?:information|evidence|data|details?) (?:\w+ ){0,4}"
    r"to (?:answer|determine|say|tell|know|conclude|decide|draw|assess|make|give)"
    r"|(?:information|details?) (?:\w+ ){0,4}(?:about|on|regarding))\b"  # a study may well lack evidence on a matter
    r"|(?:insufficient|not enough|too little) information"
    r"|\b(?:i|we) (?:do not|don't) know\b(?! (?:how|why|which|what|when|who))|\bno way (?:to|of) (?:know|tell"
    r"|answer|say)|\b(?:cannot|can't|could not|couldn't|unable to) find (?:the|an|any|this) (?:answer|information"
    r"|mention)|\bno (?:\w+ )?(?:answer|conclusion) (?:can|could|is|exists|to|in the|given|provided)|\bno telling"
    r"|\b(?:it|this|that|answer|information|outcome|effect|association|question|topic)(?: (?:is|was|are"
    r"|were))? not (?:stated"
    r"|mentioned|specified|addressed|reported|given|answered|answerable|discussed|found|contained|available"
    r"|covered|determinable) (?:in|from|by) (?:the|this)"
    rf"|\b(?:question|this|it) (?:is|remains) unanswerable\b"
    rf"|\b(?:the answer|it|this|information) (?:is|was) not (?:in|given|stated|found|answerable|to be found|provided"
    rf"|mentioned)\b|\bquestion (?:is not|isn't|was not|cannot be|can't be) answer"
)
# What a text does not say is the answer only where it opens the reply or is what was asked.
SILENT_AT_FIRST = re.compile(
    rf"\A[\s\"'(]*(?:(?:unfortunately|however|based on [^,.]{{0,60}}|from [^,.]{{0,40}}|sorry"
    rf"|well)[,:]? )?(?:i'm afraid )?(?:the |this )?(?:\w+ )?{_SILENT}(?<!study did not)(?<!study does not)"
    r" (?:\w+ )?(?:say|state|mention|contain|provide|address|specify|report|include|discuss|give|answer|tell|cover"
    r"|examine|indicate|describe|make)?"
    r"(?! (?:any )?evidence)"
)
SILENT_ON_QUESTION = re.compile(
    rf"(?:{_SILENT}|\bit (?:does not|doesn't)) (?:\w+ )?(?:say|state|mention|contain|provide|address|specify"
    rf"|report|include|discuss|give|answer|tell|cover|examine|indicate|make clear)"
    r"(?:s)? (?:whether|if|the (?:question|answer|topic|issue)|this(?: question| point| issue| topic)?|an answer"
    r"|that|enough|sufficient|any information|information|it\b)"
)
_HELP = (
    r"(?:provide|answer|help|assist|give|offer|fulfil+|comply|respond|diagnose|advise|recommend|open|access|browse"
    r"|visit|view|process|discuss|engage|continue|prescribe"
    r"|generate|share|complete|support|comment|participate|do (?:that|this)|see (?:the|your|any"
    r"|an?) (?:\w+ )?(?:link|image|file|attachment|picture|figure)|read (?:pdf|file|link|image|attach)\w*"
    r"|talk about|speculate)"
)
REFUSAL = re.compile(
    r"\b(?:i|we)(?:'m| am)? ?(?:sorry,? )?(?:but )?(?:i )?(?:must )?(?:(?:really|just|simply"
    r"|unfortunately) )?(?:cannot|can't|can not|am unable to|unable to|not able to|not allowed to|not permitted to"
    r"|not qualified to|not comfortable|not in a position to|won't|will not|decline to|have to decline|must refuse"
    r"|refuse to|do not feel comfortable|don't feel comfortable) "
    rf"(?:\w+ ){{0,2}}(?:{_HELP}|providing|answering|giving|helping)\b(?! (?:~|{CHOICE}))"
    r"|\bas an ai\b[^.\n]{0,60}\b(?:cannot|can't|unable|not able|don't)|\bi must (?:respectfully )?decline"
    r"|\bi(?:'m| am) (?:just |only |merely )?(?:an ai|a (?:large )?language model)\b[^\n]{0,120}\b(?:cannot|can't"
    r"|unable|not able|don't|do not|consult)"
    r"|\bi (?:do not|don't) (?:currently )?have (?:access to|the ability to|personal|medical)|\b(?:this|that"
    r"|your) (?:request|question|prompt) (?:violates|goes against|is against)|\bnot (?:appropriate|possible"
    r"|ethical|right|able) for me to|\bagainst my (?:guidelines|policy"
    r"|policies|programming)"
    r"|\bcannot (?:comply|assist|help with)|\bi(?:'d| would) (?:rather|prefer) not (?:to )?answer"
)

# Whole answers, or first sentences, in other words than the choices'.

_NOT_KNOWN = (
    r"(?:(?:the |this )?(?:evidence|information|data|abstract|results?|findings?) (?:is|are|remains?) |i(?:'m"
    r"| am) |it(?:'s| is) |it remains |this (?:is|remains) |still |(?:honestly|sorry),? |the answer (?:is:?"
    r"|remains) |that is )?(?:currently |largely |quite |too |very )?(?:unclear|not clear|uncertain|undetermined"
    r"|indeterminate|inconclusive|unanswerable|not answerable|not known|unsure|not sure|undecided|insufficient"
    r"|not sufficient"
    r"|hard to (?:say|tell|know)|difficult to (?:say|tell)|can't (?:tell|say)|cannot (?:tell|say|know|be (?:known"
    r"|determined|answered|said|inferred|concluded))|can't be (?:known|determined|answered)|not determinable"
    r"|not possible to (?:say|tell)"
    r"|(?:there is |there's )?(?:not enough|insufficient|inadequate) (?:information|evidence|data|info|detail"
    r"|context)|no (?:information|idea|data)|not (?:stated|mentioned|specified|reported|given|addressed|provided"
    r"|available|in the (?:text|abstract|passage)))"
    r"(?: (?:from|in|by|based on|given|with|to|at|on)\b[^.\n]{0,80})?"
)
SHORT = [  # meaning, where, pattern of the whole text or of its first sentence
    (
        "yes",
        "whole",
        re.compile(
            r"(?:yes|y|certainly|of course|sure|indeed|correct|that(?:'s| is) (?:correct|right|true)|right|exactly"
            r"|positive|it does|definitely so|without (?:a )?doubt|aye|true)"
        ),
    ),
    (
        "yes",
        "first",
        re.compile(
            r"(?:affirmative|absolutely|definitely|undoubtedly|most certainly|most definitely|unquestionably"
            r"|in the affirmative|very much so)"
        ),
    ),
    (
        "no",
        "whole",
        re.compile(
            r"(?:n|incorrect|that(?:'s| is) (?:incorrect|wrong|false|not (?:correct|right|true))|it does not"
            r"|it doesn't|false|unlikely|nay)"
        ),
    ),
    (
        "no",
        "first",
        re.compile(
            r"(?:negative|(?:absolutely|definitely|certainly|most certainly|of course|most definitely|almost certainly"
            r"|probably|most likely|clearly|apparently|likely) not|not at all|not really|by no means|in the negative"
            r"|no way|in no way|far from it|hardly|not in the least)"
        ),
    ),
    ("unknown", "first", re.compile(_NOT_KNOWN)),
    ("maybe", "whole", re.compile(r"(?:perhaps|possibly|it might|it may be)")),
]
ENTAILS = [
    (
        "contradiction",
        re.compile(
            r"\b(?:hypothesis|premise|sentences?|statements?|one|two|they|each other|first|second|it|which"
            r"|this)\b[^.;!?\n]{0,40}\b(?:contradicts?|contradicting|conflicts? with|is contradicted by"
            r"|are contradictory|contradict each other|are mutually exclusive)\b"
        ),
    ),
    (
        "entailment",
        re.compile(
            r"\b(?:entails|is entailed by|logically follows|follows (?:logically |directly |necessarily )?from"
            r"|necessarily (?:true|follows))\b"
        ),
    ),
]
