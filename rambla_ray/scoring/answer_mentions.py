"""Choices that are mentioned and not asserted: each becomes "~", so that no rule takes it for the answer.

A choice is only mentioned in a list of options, in a question, and in a clause whose words before it deny it, suppose
it or report what somebody else says.
"""

from __future__ import annotations

import re

from rambla_ray.scoring.answer_tokens import CHOICE, NO_CHOICE

_JOIN = (
    r"""["')\]]{0,2}\s?(?:[,/|]\s?(?:(?:or|and|nor)\s)?|\b(?:or|and/or|and|nor|vs\.?|versus)\s)"""
    r"""(?:(?:perhaps|maybe|possibly)\s)?["'(\[]{0,2}"""
)
_LIST = re.compile(rf"{CHOICE}(?:{_JOIN}{CHOICE})+")
_COUNTED = re.compile(rf"({CHOICE})[\"']?\s?[(=:]\s?\d{{1,6}}\b\)?")  # "yes (12), no (8)"
_OPTION = re.compile(rf"^[ \t]*[(\[]?({CHOICE}|\w)[).:\]](?=[ \t]+\S)", re.MULTILINE)
_QUOTED_QUESTION = re.compile(r'"[^"\n]{0,400}\?"')
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
_CHATTER = re.compile(
    rf"{CHOICE}[,.!:]? (?:(?:sorry|unfortunately|of course|sure|certainly|absolutely|indeed|okay|i'm afraid"
    rf"|gladly)[,!.]? )*"
    r"(?:(?:i|we)(?:'d|'ll|'m|'ve| would| will| can(?:not|'t)?| could(?:n't)?| am| do(?:n't)?| have(?:n't)?| did)?"
    r"(?: (?:love to|like to|not|also|certainly|gladly|be|am|just|now|currently|really|able to|unable to|more than"
    r"|very|going to"
    r"|have))*"
    rf" {_ABLE}|let me (?:know|take|look|see|help)|as an ai|that(?:'s| is) an? (?:\w+ )?(?:good|great|interesting"
    r"|important"
    rf"|excellent|valid|fair|common) |(?:great|good|interesting|excellent) question|thank|go ahead|feel free"
    rf"|how (?:can|may)|what (?:would|can|is your)|which (?:one|abstract))"
    rf"|{CHOICE}[,!]? (?:(?:of course|sure|certainly)[,!.]? )?please\b(?! (?:note|see|refer|bear))"
)

# What governs a clause. Each is looked for in the words of the clause that stand before the choice.
_NO_DENIAL = re.compile(
    r"\b(?:no|without(?: any)?|beyond|little|leaves? no|not a) (?:\w+ )?(?:doubt|question|dispute)\b(?! of)"
    r"|\bnot (?:only|just|merely|surprising\w*)\b"
    r"|\b(?:nobody|no one|no-one|none|cannot|can't|can not|hardly)\b.{0,20}?\b(?:den(?:y|ied|ies)|doubts?|doubted"
    r"|disput\w+|but)\b"
    r"|\b(?:undeniabl|undoubted|doubtless)\w*|\bno (?:wonder|surprise|matter)\b|\bthan not\b|\bwhether or not\b"
    r"|\bwhy not\b|\bdo(?:es)? not change\b"
)
_DENIED = re.compile(
    r"\b(?:not|never|nobody|no one|no-one|none|neither|nor|cannot|hardly|scarcely|barely|unlikely|doubt\w*|den(?:y"
    r"|ies|ied)|disput\w+|disagree\w*"
    r"|refut\w+|reject\w*|ruled? out|rules out|excludes?|wrong|incorrect|inaccurate|mistake\w*|erroneous\w*"
    r"|unjustified|premature|misleading|naive"
    r"|unwarranted|unfounded|inappropriate|far from|by no means|instead of|rather than|other than|anything but"
    r"|opposed to|contrary to|little|few|no longer|contradict(?:s|ed|ing)?|conflicts?|disprov\w+|argues? against"
    r"|no \w+ (?:would|could|can|should|has|have|ever|will)"
    r"|no (?:\w+ ){0,2}(?:reason|basis|evidence|grounds?|support|indication|way|justification|proof|case)|overstat\w*"
    r"|fails? to|failed to|too \w+ to|(?:hard|difficult|impossible|reluctant|unable|insufficient|unsafe|unwise"
    r"|rash|tempting|not enough) to|stops? short of"
    r"|short of|against|without|avoid\w*|prevent\w*|refus\w+|hesitat\w+|unsure"
    r"|uncertain|unclear|unknown|unproven|skeptical|sceptical|myth|fallacy|caution\w*|ignor\w+)\b|n't\b"
    r"|\bno (?:[\w-]+ ){0,3}[\"']?$"
)
_SUPPOSED = re.compile(
    r"\b(?:if|whether|suppos\w+|assum\w+|imagin\w+|unless|until|in case (?:of|the answer|it)\b|provid(?:ed"
    r"|ing) that|let us say|let's say|hypothe(?:tical\w*|si[sz]e[sd]?)|for argument"
    r"|would have (?:been|said|answered)|had been|(?:had|were|should|was) (?:the|it|this|that|my)\b|tempt\w+"
    r"|initial\w*|at first|first (?:thought|impression|instinct|reaction|glance)|previously"
    r"|originally|earlier|formerly|might|may|could|possibly|perhaps|partly|partially|maybe|one can|can (?:say"
    r"|think|argue|answer)|seem(?:s|ed)? to (?:suggest|say) at|pretend\w*|wonder\w*|depend\w*|require[sd]?"
    r"|expect(?:ed|s)?|want(?:s|ed)?|wish\w*|hop(?:e|ed|ing)|used to|almost(?! certainly| surely)|nearly|not quite"
    r"|for example|for instance"
    r"|e\.g\.|such as)\b"
    r"|\b(?:has|have|had) (?:\w+ )?been\s[\"']?$|^\s*(?:to (?:answer|say|conclude|call|label)|(?:answering|saying"
    r"|calling|labell?ing|concluding"
    r"|choosing))\s(?:[\w']+\s){0,3}[\"']?$"
)
_EVIDENT_IF = re.compile(
    r"\bif (?:i|we|one|you|forced|pressed|asked|anything)\b(?: (?:had|have|has|must|was|were|am|go|going|look"
    r"|insist|rely"
    r"|judge|are|is|follow|trust|believe|only|forced|pressed|to|by|choose|pick|decide))*"
    r"|\bif (?:the|this|these) (?:abstract|authors?|data|study|results?|text|findings?"
    r"|paper)\b[^,]{0,30}\b(?:right|correct|believed|trusted|reliable)"
    r"|\b(?:even|as) if\b|\bwhether (?:or not\b|\w+ or \w+)|\b(?:to|on) (?:the )?(?:question (?:of "
    r"|as to )?)?whether\b"
)
_SUPPOSES = re.compile(
    r"(?:(?:^|[.,;:]\s)\s*(?:were|should|had (?:the|it|this|that|there|they|we|i)\b)|(?:^|[\n\s(\"'])(?:if|suppos\w+"
    r"|assuming|imagine|until|provid(?:ed|ing) that|only (?:if|when)|whether))\s"
)
_STATES = (
    r"(?:abstract|stud(?:y|ies)|authors?|texts?|results?|data|findings?|papers?|articles?|evidence|trials?|passage"
    r"|context|investigators|researchers|analys[ei]s|conclusions?|tables?|figures?|experiments?|review"
    r"|meta-analysis|report|document|information|premise|above|i|we|this|these|that|it|which|provided)"
)
_SAYS = (
    r"(?:(?:(?<=would )|(?<=will )|(?<=should )|(?<=must )|(?<=to )|(?<=they )|(?<=you ))answer|says?|said"
    r"|claim(?:s|ed)?|argu(?:e|es|ed)|believe[sd]?|thinks?|thought(?<!second thought)|replie[sd]|responds"
    r"|responded"
    r"|answers|answered|concludes?|concluded|votes|voted"
    r"|maintain(?:s|ed)?|contend(?:s|ed)?|insist(?:s|ed)?|assert(?:s|ed)?|wrote|writes|guess(?:ed|es)|chose|picked"
    r"|selected|opted"
    r"|felt|feels|decided|stated|suspect(?:s|ed)?|agreed?|told|declared?|announced|reckons?|holds?|held"
    r"|teach(?:es)?|taught|states|noted?|notes|reports|reported|found|finds|remark(?:s|ed)?|points out)"
)
_OWN_SUBJECT = re.compile(
    rf"(?:^|[^\w'])(?:i|we|i'd|i'll|me|{_STATES})(?: of (?:the|this) [\w ]{{1,30}})?(?:'d|'ll)?(?: (?:would|will"
    rf"|must|have to|can|therefore|thus|also|still|clearly|then|do|now|itself|explicitly|hereby|firmly|strongly"
    rf"|fairly|confidently|in the end|ultimately|have|has|to))*\s$"
)
_ONCE = re.compile(  # "I first thought", "I was going to say"
    r"\bi (?:(?:initially|first|had|once|almost|nearly) )?(?:thought|considered|guessed|believed|suspected|felt|said)$"
    r"|\bi (?:was|wanted|used|would like|tried|hoped|intended|meant|almost|would have(?! to)) "
)
_MINE = re.compile(
    r"\b(?:i|we|i'd|i'll|i'm|me|let's|safe to|fair to|reasonable to|have to|has to|one must|led to"
    r"|question (?:\w+ ){1,3}be|(?:every|good|strong|ample) reason to|it (?:can|must|should) be)\b"
)
_OTHERS = re.compile(
    r"\b(?:previous|earlier|prior|other|another|(?:their|his|her|your)(?! (?:discussion|conclusions?|abstract"
    r"|paper|study|results|article|own)\b)|some|many|most|several|critics?|older|former|few|experts?|reviewers?"
    r"|colleagues?|opponents|proponents|sceptics|skeptics|clinicians|physicians|doctors"
    r"|patients?|participants?|respondents?|annotators?|raters?|readers?|editors?|press|media|manufacturers?"
    r"|sponsors?|guidelines?|textbooks?|people|students?|users?|survey\w*|editorials?|commentar(?:y|ies)"
    r"|gpt[\w.-]*|chatgpt|wikipedia|google|bloggers?|companies|company|first (?:reviewer|rater|author)|second"
    r"|one (?:reviewer|author|group|side|patient|rater)|others)\b"
)
_SAY_VERB = re.compile(
    rf"\b{_SAYS}\b(?=\s*(?:(?:that|the|it|this|to be|so|an?|for|with|as|against|in favou?r|[{NO_CHOICE}])(?=\W|$)"
    rf"|[\"':,(]|$))"
)
_QUOTING = re.compile(
    r"\b(?:says?|said|repl(?:ies|ied)|answer(?:s|ed)|respond(?:s|ed)|wrote|writes|argue[sd]|claim(?:s|ed)|told"
    r"|asked|exclaimed)\b(?:[^,:]{0,20}[,:]\s*[\"']|[,:]\s*)$"
)  # The patient replied, "No."
_ORDER = re.compile(
    r"\s*(?:please )?(?:answer|say|reply|respond|write|choose|select|mark)\s[\"']?$"
)  # "When in doubt, answer no."
_INFERS = re.compile(
    r"\b(?:suggest|show|indicate|impl[iy]|support|conclude|prove|mark|label|labell|rate|judge|consider|code)(?:s"
    r"|es|ed|d)?\b"
)
_PASSIVE = re.compile(
    r"\b(?:is|are|was|were|been|being)(?: (?:often|widely|generally|commonly|sometimes|frequently|usually|long"
    r"|once|now))* (?:claimed|believed|said|argued|thought|assumed|held|hypothesi[sz]ed|supposed|suspected|alleged"
    r"|rumou?red|asserted|contended|labell?ed|marked|rated|recorded|coded)\b"
)
_THEIR_WORD = re.compile(
    r"\b(?:their|his|her|your|(?!study|abstract|author|authors|paper|article|question|trial|text|data|passage"
    r"|context|investigators|researchers|it|that|let|today|here|there|what|analysis)[a-z]+'s|(?!authors"
    r"|investigators|researchers|studies)[a-z]+s')"
    r" (?:\w+ ){0,2}(?:reply|answer|verdict|opinion|response|conclusion|view|guess|choice|vote|decision|label"
    r"|rating|judge?ment|stance|position|claim)\b"
    r"|\b(?:survey|questionnaire|panel|expert|reviewer|patient|media|textbook|model|user|student|default|majority"
    r"|popular|gut|intuitive|naive|wrong|incorrect|expected|usual|old|opposite|alternative|obvious"
    r"|temptin\w+)(?:'s)? (?:\w+ )?(?:answer|reply|response|verdict|view|opinion|label|option|choice)\b"
)
_ACCORDING_TO_OTHERS = re.compile(
    rf"\b(?:according to|in the (?:opinion|view|eyes|words) of)\s(?!(?:the |this |these |its |our |my "
    rf"|what )?(?:[\w-]+ ){{0,2}}{_STATES}\b)|\baccording to (?:\w+ )?(?:previous|earlier|prior|other|some)\b"
)

_SENTENCE_END = re.compile(r"[.!?;](?=[\s\"')]|$)|\n")
_CLAUSE_END = re.compile(
    r"[,:]\s|\s-\s|\s?→\s|\s\(|\)\s|(?:(?<!not)(?<!anything)(?<!nothing)\s)(?:but|so(?! that)|because|therefore"
    r"|thus|hence|yet|although|though|whereas|which|and (?:so|thus|therefore|hence|the|my|i))\b"
)
_ANSWER_AFTER_REASON = re.compile(
    r"^\s*(?:since|as|because|given|although|though|while|when|after|with|in|from|despite|for)\b(?:(?!\b(?:that"
    r"|think|believe|say|mean|conclude|suggest|claim|if|whether)\b).){3,200}?\b(?=(?:the|my) (?:\w+ )?(?:answer"
    r"|verdict|label|conclusion) )"
)
_ASIDE = re.compile(
    r",\s(?:frankly|however|though|of course|honestly|at least|i think|i believe|in my (?:view|opinion)"
    r"|given [^,]{1,60}|as [^,]{1,60}|in (?:fact|short|general)|therefore|then|for now|to be \w+),\s"
)
_CONDITION_AFTER = re.compile(
    r"^[\"')]{0,2},? (only if|if|unless|provided|only when|had|were|should|as long as)\b(?! (?:anything|only"
    r"|we go|i (?:had|have|must)))"
)
_REJECTED_AFTER = re.compile(
    r"^[\"')]{0,2}(?: here| now)? (?:would (?!be (?:the|my|correct|right|best|most))|could\b|might\b|may\b"
    r"|cannot\b|does\b(?!\s?[.,;!])|do not\b|doesn't|isn't|is (?!(?:the |my )?(?:\w+ )?(?:correct|right|best"
    r"|answer|most|appropriate|what|supported|justified))|was\b|seems\b|appears\b|can be (?:ruled|excluded"
    r"|rejected))"
)
_FAR = 260
_SUBJECT = 4  # words before a verb in which its subject stands


def without_mentions(text: str) -> str:
    """A tokenised text in which only the choices that may be asserted are left."""
    text = re.sub(rf"({CHOICE})(?:[ \t]+\1)+", r"\1", text)
    text = _LIST.sub(_unless_asserted, text)
    if len(set(_COUNTED.findall(text))) > 1:
        text = _COUNTED.sub("~", text)
    if len(set(_OPTION.findall(text))) > 1:
        text = _OPTION.sub(lambda option: "~" if re.search(CHOICE, option.group()) else option.group(), text)
    text = _QUESTION.sub("?", _QUOTED_QUESTION.sub("~", text))
    text = _SURVEY.sub("~", _CHATTER.sub("~", text))
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
    return re.sub(CHOICE, lambda token: "~" if _is_mention(sentence, token.start()) else token.group(), sentence)


def _is_mention(sentence: str, at: int) -> bool:
    """Whether the clause in which a choice stands denies, supposes or reports it."""
    lead, clause = _clauses(_ASIDE.sub(" ", sentence[max(0, at - _FAR) : at]))
    after = sentence[at + 1 : at + 80]
    if clause.strip(" \"'(") and _CONDITION_AFTER.match(after):
        return bool(re.search(r"\b(?:would|could|might|'d)\b|\bis\b|:", clause))
    clause = _NO_DENIAL.sub(" ", clause)
    return bool(
        _DENIED.search(clause)
        or _SUPPOSED.search(_EVIDENT_IF.sub(" ", clause))
        or (
            _SUPPOSES.search(_EVIDENT_IF.sub(" ", lead))
            and not re.match(r"\s*(?:but|so|still|yet|therefore|hence)\b", clause)
        )
        or _is_reported(lead, clause)
        or _REJECTED_AFTER.match(after)
    )


def _clauses(before: str) -> tuple[str, str]:
    """What stands before a choice in its sentence: the earlier clauses, and the words of its own clause."""
    reason = _ANSWER_AFTER_REASON.match(before)
    since = reason.end() if reason else 0
    for end in _CLAUSE_END.finditer(before, since):
        if not re.match(r"\s*that\b", before[end.end() :]):  # "I doubt, as they do, that ..."
            since = end.end()
    return before[:since], before[since:]


def _is_reported(lead: str, clause: str) -> bool:
    if _THEIR_WORD.search(clause) or _PASSIVE.search(clause):
        return True
    if _QUOTING.search(lead) and not _own(lead.rstrip(", \"'")):
        return True
    if lead.strip() and _ORDER.match(clause):
        return True
    if _ACCORDING_TO_OTHERS.search(lead) and not re.search(r"\bbut\b", lead):
        return True
    if lead.rstrip().endswith(":"):
        before_colon = re.split(r"[,;]\s", lead.rstrip())[-1]
        if _THEIR_WORD.search(lead) or (_SAY_VERB.search(before_colon) and not _own(before_colon)):
            return True
    if _INFERS.search(clause) and _OTHERS.search(clause):
        return True
    return bool(_SAY_VERB.search(clause)) and not _own(clause)


def _own(clause: str) -> bool:
    """Whether what a clause says is the model's own word, or the finding of the study that it was given."""
    verb = list(_SAY_VERB.finditer(clause))[-1]
    subject = clause[: verb.start()]
    if _ONCE.search(clause[: verb.end()]):
        return False
    mine = _OWN_SUBJECT.search(subject) or _MINE.search(subject)
    return bool(mine) and not _OTHERS.search(" ".join(subject.split()[-_SUBJECT:]))
