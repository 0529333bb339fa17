"""What governs the clause in which a choice stands: whether its words deny the choice, suppose it or report it."""

from __future__ import annotations

import re

from rambla_ray.scoring.answers.tokens import NO_CHOICE

# Each is looked for in the words of the clause that stand before the choice.
_NO_DENIAL = re.compile(
    r"\b(?:no|without(?: any)?|beyond|little|leaves? no|not a) (?:\w+ )?(?:doubt|question|dispute)\b(?! of)"
    r"|\bnot (?:only|just|merely|surprising\w*)\b"
    r"|\b(?:nobody|no one|no-one|none|few (?:would|will|could|can)|cannot|can't|can not"
    r"|hardly)\b.{0,20}?\b(?:den(?:y|ied|ies)|doubts?|doubted"
    r"|disput\w+|contest|object|but)\b"
    r"|\b(?:undeniabl|undoubted|doubtless)\w*|\bno (?:wonder|surprise|matter)\b|\bthan not\b|\bwhether or not\b"
    r"|\bwhy not\b|\bdo(?:es)? not change\b"
)
_DENIED = re.compile(
    r"\b(?:not|never|nobody|scant|refrain\w*|nothing|nowhere|no one|no-one|none|neither|nor|cannot|hardly|scarcely"
    r"|barely|unlikely"
    r"|doubt\w*|den(?:y"
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
    r"\b(?:if|whether|suppos\w+|assum\w+|imagin\w+|unless|until|in the (?:event|case) that|in case (?:of"
    r"|the answer|it)\b|provid(?:ed"
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
    r"|\b(?:i|we) (?:can|may)(?: (?:\w+ly|thus|therefore|now|only|still))* (?:answer|say|conclude|reply|respond)\b"
    r"|\bunless (?:i(?:'m| am)|otherwise)\b"
    r"|\b(?:even|as) if\b|\bwhether (?:or not\b|\w+ or \w+)|\b(?:to|on) (?:the )?(?:question (?:of "
    r"|as to )?)?whether\b"
)
_SUPPOSES = re.compile(
    r"(?:(?:^|[.,;:]\s)\s*(?:were|should|(?:as|so) long as|on condition that|provid(?:ed|ing)(?! (?:by|in|with|for"
    r"|to|context"
    r"|abstract|text|above|information))|had (?:the|it|this|that|there|they|we|i)\b)|(?:^|[\n\s(\"'])(?:if|unless"
    r"|suppos\w+"
    r"|assuming|imagine|until|provid(?:ed|ing) that|only (?:if|when)|whether))\s"
    r"|\bin (?:an?|another|some other) (?:\w+ )?(?:world|universe|scenario)\b|\b(?:hypothetically|theoretically"
    r"|in theory|in principle|on paper|(?:on|under) (?:the|this"
    r"|that) (?:assumption|condition|premise))\b"
)
_STATES = (
    r"(?:abstract|stud(?:y|ies)|authors?|texts?|results?|data|findings?|papers?|articles?|evidence|trials?|passage"
    r"|context|investigators|researchers|analys[ei]s|conclusions?|numbers|statistics|p[ -]values?|intervals?"
    r"|ratios?|curves|tables?|figures?|experiments?|review"
    r"|meta-analysis|report|document|information|premise|above|i|we|this|these|that|it|which|provided|title)"
)
_SAYS = (
    r"(?:(?:(?<=would )|(?<=will )|(?<=should )|(?<=must )|(?<=to )|(?<=they )|(?<=you ))answer|saying|answering"
    r"|says?|said"
    r"|claim(?:s|ed)?|argu(?:e|es|ed)|believe[sd]?|thinks?|thought(?<!second thought)|replie[sd]|responds"
    r"|responded"
    r"|answers|answered|concludes?|concluded|votes|voted"
    r"|maintain(?:s|ed)?|contend(?:s|ed)?|insist(?:s|ed)?|assert(?:s|ed)?|wrote|writes|guess(?:ed|es)|chose|picked"
    r"|selected|opted"
    r"|felt|feels|decided|stated|suspect(?:s|ed)?|agreed?|told|declared?|announced|reckons?|holds?|held"
    r"|teach(?:es)?|taught|states|noted?|notes|reports|reported|found|finds|remark(?:s|ed)?|points out)"
)
_OWN_SUBJECT = re.compile(
    rf"(?:^|[^\w'])(?:i|we|i'd|i'll|me|{_STATES})(?: of (?:the|this) [\w ]{{1,30}})?(?:'d|'ll)?"
    r"(?: (?:all|both|would|will|should"
    r"|must|have to|can|therefore|thus|also|still|clearly|then|do|now|itself|themselves|explicitly|hereby|firmly"
    r"|strongly"
    rf"|fairly|confidently|in the end|ultimately|have|has|(?:am|'m) \w+ in))*\s$"
)
_ONCE = re.compile(  # "I first thought", "I was going to say"
    r"\bi (?:(?:initially|first|had|once|almost|nearly) )?(?:thought|considered|guessed|believed|suspected|felt|said)$"
    r"|\bi (?:was|wanted|used|would like|tried|hoped|intended|meant|almost|would have(?! to)) "
)
_MINE = re.compile(  # "I am inclined to say", "it is safe to say", "the question can be answered"
    r"\b(?:(?:i|we|i'd|i'll|i'm|me|let's)(?: (?:am|are|can|cannot|can't|do|don't|not|only|\w+ly|inclined|prepared"
    r"|therefore|thus|hence|so|now|also|still"
    r"|going|ready|able|regret|sorry|pleased|happy|glad"
    r"|comfortable|confident|forced|compelled|bound|tempted|need|want|have|had|lean|in|to))*"
    r"|(?:safe|fair|reasonable|have|has|need|led|justified|possible|enough|(?:every|good|strong|ample) reason"
    r"|(?:allows?|lets?|leads?|enables?|forces?|permits?) (?:us|me|one)) to|one (?:must|should)"
    r"|question (?:[\w~]+ ){0,3}(?:is"
    r"|be)(?: \w+ly)?"
    r"|it (?:can|must|should) be|confident in)\s$"
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
    r"\b(?:says?|said|repl(?:ies|ied)|answer(?:s|ed)|wrote|writes|argue[sd]|claim(?:s|ed)|told"
    r"|asked|exclaimed)\b(?:[^,:]{0,20}[,:]\s*[\"']|[,:]\s*)$|\bresponds?(?:ed)?(?:,\s*[\"']|:\s*)$"
)  # The patient replied, "No."
_TO_ANSWER = re.compile(
    r"(?:^|[,;.]|\bso)\s*(?:to (?:answer|say|respond|reply|conclude)|answering)\b[^,;:]{0,60}:\s*$"
)  # "To answer plainly: no"
_ORDER = re.compile(
    r"\s*(?:please )?(?:answer|say|reply|respond|write|choose|select|mark)\s[\"']?$"
)  # "When in doubt, answer no."
_INFERS = re.compile(
    r"\b(?:suggest|show|indicate|impl[iy]|support|conclude|prove|mark|label|labell|rate|judge|consider|code)(?:s"
    r"|es|ed|d)?\b"
)
_PASSIVE = re.compile(
    r"\b(?:rumou?r|word|legend|gossip) (?:is|has it)\b|\b(?:is|are|was|were|been|being)(?: (?:often|widely"
    r"|generally|commonly|sometimes|frequently|usually|long"
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
    r"|reference|gold|official"
    r"|popular|gut|intuitive|naive|wrong|incorrect|expected|usual|old|opposite|alternative|obvious"
    r"|temptin\w+)(?:'s)? (?:\w+ )?(?:answer|reply|response|verdict|view|opinion|label|option|choice)\b"
    r"|^\s*(?:(?:and|but|while) )?(?:the )?(?:others?|rest|remainder|majority|minority)\s[\"']?$"
)
_ACCORDING_TO_OTHERS = re.compile(
    r"(?:\b(?:according to|in the (?:opinion|view|eyes|words) of)|(?:^|[.;]\s)\s*per)\s(?!(?:the |this |these "
    r"|its |our |my "
    rf"|what )?(?:[\w-]+ ){{0,2}}{_STATES}\b)|\baccording to (?:\w+ )?(?:previous|earlier|prior|other|some)\b"
    rf"|\bas (?!(?:the |these |this |our )?(?:\w+ ){{0,2}}{_STATES}\b)(?:[\w-]+ ){{1,4}}(?:put|puts|said|says|wrote"
    r"|claims|claimed"
    r"|argued|argues|noted|notes)\b"
)

_CLAUSE_END = re.compile(
    r"[,:]\s|\s-\s|\s?→\s|\s\(|\)\s|(?:(?<!not)(?<!anything)(?<!nothing)(?<!\b(?:am|an|be"
    r"|is))(?<!\bi)(?<!\bwe)(?<!\bmust)(?<!would)\s)(?:but|so(?! that)|because|therefore"
    r"|thus|hence|yet|although|though|whereas|which|and (?:so|thus|therefore|hence|the|my|i))\b"
    rf"|\b(?:rul|reject|exclud|discard|dismiss|avoid|resist|drop)\w{{0,4}} (?:out )?[\"']?[{NO_CHOICE}][\"']?"
    r" (?:here )?(?=and\b|in favou?r of\b)"
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
    r"^[\"')]{0,2},? (only if|if|unless|provided|only when|had|were|should|as long as|in theory|in principle"
    r"|on paper)\b(?! (?:anything|only"
    r"|we go|i (?:had|have|must)))"
)
_REJECTED_AFTER = re.compile(
    r"^[\"']?, (?:is|was|would be|seems) (?:wrong|incorrect|mistaken|not)\b|^[\"'],? (?:as (?:one|some|he|she|they)"
    r"|(?:he|she|they|one \w+) (?:said|says|wrote))|^[\"')]{0,2}(?: here"
    r"| now)? (?:would (?!be (?:the|my|correct|right|best|most))|could\b|might\b|may\b"
    r"|cannot\b|does\b(?!\s?[.,;!])|do not\b|doesn't|isn't|is (?!(?:the |my )?(?:\w+ )?(?:correct|right|best"
    r"|choice|pick|option|vote"
    r"|answer|most|appropriate|what|supported|justified|warranted|reasonable|indicated|defensible|in order"
    r"|called for|beyond|clear|obvious|certain|evident|plain|well|fully|strongly|clearly))|was\b"
    r"|(?:seems|appears)\b(?! to be (?:the |my )?(?:right|correct|best|most|answer))"
    r"|can be (?:ruled|excluded"
    r"|rejected))"
)
_FAR = 260
_SUBJECT = 4  # words before a verb in which its subject stands


def is_mention(sentence: str, at: int) -> bool:
    """Whether the clause in which a choice stands denies, supposes or reports it."""
    lead, clause = _clauses(_ASIDE.sub(" ", sentence[max(0, at - _FAR) : at]))
    after = sentence[at + 1 : at + 80]
    if clause.strip(" \"'(") and _CONDITION_AFTER.match(after):
        return bool(re.search(r"\b(?:would|could|can|may|might|'d)\b|\bis\b|:", clause))
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
    return bool(
        _THEIR_WORD.search(clause)
        or _PASSIVE.search(clause)
        or (_INFERS.search(clause) and _OTHERS.search(clause))
        or _is_said_by_others(clause)
        or _is_introduced_by_others(lead, clause)
    )


def _is_introduced_by_others(lead: str, clause: str) -> bool:
    """Whether the earlier clauses make this one quoted ("The patient replied,") or an order ("When in doubt,")."""
    if quoting := _QUOTING.search(lead):
        return not _own(lead[: quoting.start()], quoting.group())
    if lead.strip() and _ORDER.match(clause):
        return True
    if _ACCORDING_TO_OTHERS.search(lead) and not re.search(r"\bbut\b", lead):
        return True
    return (
        lead.rstrip().endswith(":")
        and not _TO_ANSWER.search(lead)
        and bool(_THEIR_WORD.search(lead) or _is_said_by_others(re.split(r"[,;]\s", lead.rstrip())[-1]))
    )


def _is_said_by_others(clause: str) -> bool:
    verbs = list(_SAY_VERB.finditer(clause))
    return bool(verbs) and not _own(clause[: verbs[-1].start()], verbs[-1].group())


def _own(subject: str, verb: str) -> bool:
    """Whether what is said is the model's own word, or the finding of the study that it was given."""
    if _ONCE.search(subject + verb):
        return False
    if not subject.strip() and verb in ("selected", "picked", "decided"):  # "Selected: no"
        return True
    mine = _OWN_SUBJECT.search(subject) or _MINE.search(subject)
    return bool(mine) and not _OTHERS.search(" ".join(subject.split()[-_SUBJECT:]))
