"""The rules: which words around a choice assert it, and which say that there is no answer or none to be had.

They read a tokenised text (tokens.py) from which mentions are gone (mentions.py). Every gap is bounded,
so that no text takes long.
"""

from __future__ import annotations

import re

from rambla_ray.scoring.answers.lookalikes import FOLLOWED
from rambla_ray.scoring.answers.tokens import CHOICE, NO_CHOICE

# And after a choice that is no "no": "neutral with respect to", "an entailment relationship".
_FOLLOWED = (
    rf"(?:{FOLLOWED}|(?=[\"']{{0,2}}\s(?:rather than|instead of|as opposed|and not|answer(?=\s?(?:[.,;]|$))|of bias"
    r"|to (?:decide|tell|determine|answer|say|judge|conclude|assess|verify|evaluate)"
    r"|relation(?:ship)?|label|pair|with respect|between|by|in meaning|of (?:the"
    r"|each))\b))"
)
_FILL = (  # It may stand between a cue and its choice.
    r"(?:(?:an?|the|this|that|it|is|are|be|as|to|towards?|with|for|of|on|in|favou?r|pair|statement|claim"
    r"|relation(?:ship)?|option|choice|letter"
    r"|it's|that's|answer|label|question|category|class|\w{2,12}ly|nonetheless|nevertheless|(?:most |very "
    r"|quite )?(?:likely"
    r"|probably|clearly|definitely)|(?:most )?(?:accurately|appropriately|correctly)|clear|simply|resounding|firm"
    r"|definite|one of|an? (?:example|case|instance) of|cautious|qualified|strong"
    r"|simple|therefore|thus|indeed|in fact|still|certainly|ultimately|just|labell?ed|classified|considered"
    r"|best (?:described|classified|labell?ed|seen|viewed|regarded|characteri[sz]ed|read)|down)[\s,:]{1,3}){0,8}"
)
_LETTER = r"(?:[(\[]?(?:\d{1,2}|[a-e])(?:[.):\]]{1,2}\s{1,2}|\s(?=\()))?"  # "(b) no", "B (no)"
_CHOSEN = rf"{_LETTER}[\"'(\[]{{0,2}}({CHOICE}){_FOLLOWED}"
_START = (
    r"(?:^|[.!?;]\s|(?<!\b\w)[.!?;])[\s>.|\"'(\[-]{0,5}"
    r"(?:(?:(?:option|choice|answer|letter)\s)?[(\[]?[\da-e](?:[.)\]]{1,2}|\s-|(?<=\w\s\w):)\s)?"
)
_GAP = (
    rf"(?:\s(?:that (?:best )?(?:fits|applies|follows|emerges)|to|of|for|here|in|between|based on|from)\b"
    rf"[^.!?;:\n{NO_CHOICE}]{{0,80}}?"
    rf"|\s?[,(][^.!?;:\n{NO_CHOICE}]{{0,80}}?[,)])?"
)
_ADJECTIVE = (
    r"(?:(?:authors'?|study's|abstract's|final|correct|short|best|right|likely|most|appropriate|suitable|overall"
    r"|two|my|the|own|similarity"
    r"|revised|updated|corrected|actual|new|true|definitive|one-word|single-word|model|predicted|proper|accurate"
    r"|only|brief|direct)\s){0,3}"
)
_NOUN = (
    r"(?:answers?|verdict|label|classification|relation(?:ship)?|conclusion|response|output|pair|two|choice|option"
    r"|decision|determination|result|category|class"
    r"|prediction|judge?ment|score|rating|assistant|assessment|statements?|claim|sentences?|finding"
    r"|entailment relation|bottom line|takeaway|upshot|take|view|opinion|call|pick|vote|guess|stance)\b"
)
_LABEL = (  # Before a colon alone, in any language.
    rf"(?:{_NOUN}|a|ans|final|tl;dr|tldr|bottom line|in short|summary|in summary|in brief|letter|take-?home message"
    rf"|final thought|selected|chosen|picked|selecting|choosing|answering|upshot|overall"
    r"|respuesta(?: final| correcta)?|conclusión|veredicto|resultado|etiqueta|antwort|endgültige antwort|fazit"
    r"|ergebnis|urteil|entscheidung|bewertung|schlussfolgerung|lösung|décision(?: finale)?|jugement"
    r"|decisión(?: final)?"
    r"|decisione|decisão|beslissing|решение|заключение|决定|判定结果|판정|결과|القرار|निष्कर्ष|निर्णय"
    r"|réponse(?: finale)?|résultat|étiquette|ответ|итог|вывод|risposta(?: finale)?|risultato|resposta(?: final)?"
    r"|conclusão|antwoord|conclusie|svar|slutsats|vastaus"
    r"|odpowiedź|odpověď|odpoveď|válasz|răspuns|răspunsul|απάντηση|cevap|yanıt|jawaban|câu trả lời|đáp án|trả lời"
    r"|відповідь|отговор|одговор"
    r"|(?:最终|最終|正确)?(?:答案|回答|答え|答|结论|結論|判断|判定|结果|結果|标签)"
    r"|(?:최종 )?(?:정답|답변|답|결론)|(?:الإجابة|الجواب|إجابة|جواب)|उत्तर"
    r"|উত্তর|คำตอบ|תשובה|پاسخ)"
)
_FOREIGN = (  # "la respuesta es"
    r"(?:la (?:respuesta(?: correcta| final)?|risposta(?: corretta| finale)?) (?:es|è)"
    r"|la (?:bonne )?réponse(?: finale| correcte)? est|a resposta(?: correta| final)? é"
    r"|die (?:richtige |endgültige )?antwort (?:ist|lautet)|het (?:juiste )?antwoord is|(?:правильный )?ответ"
    r"|svaret är|svaret er|la respuesta a la pregunta es"
    r"|(?:最终|正确|所以|因此)?(?:答案|结论|結論|答え)(?:应该|應該)?(?:是|为|為|は)|정답은|답은)"
)
_CUE = (
    # "the answer to the question is", "the two sentences are"
    rf"(?:\b(?:(?:the|my|this|that|these|both|our|'s)\s{_ADJECTIVE}{_NOUN}|answer|label|verdict){_GAP}"
    r"\s?(?:is|are|would be|should be|must be|has to be|remains|becomes|comes out as|should read|will be|=|:)"
    # "Answer:", "Label -", "A:", "Respuesta:", "Verdict →"
    rf"|{_START}(?:{_ADJECTIVE}{_LABEL}|final {_LABEL}){_GAP}\s?[:=→|-]"
    rf"|{_FOREIGN}"
    # "I would say"
    r"|\b(?:i|we|one)(?:'d|'ll|'m|'re)?(?: (?:would|will|can|may|am|are|\w+ly|hence|so|must|have to|need to|therefore"
    r"|thus|still|also|now|change|changed|revise"
    r"|can only|do|hereby|should|am inclined to|am going to|am going with|stand by))*"
    r"(?: (?:my|the) (?:\w+ )?(?:answer|verdict|label|mind))?"
    r" (?:say|think|answer|choose|pick|select|go with|go for|conclude|rate|classify|respond|label|lean|vote|to"
    r"|settle on|opt for|judge|believe|stand by|am going with|score|grade|assign|mark|call|give|reply|answering"
    r"|choosing"
    r"|selecting|picking|saying|replying|responding with|concluding|voting|going (?:with|for)|consider|regard|deem"
    r"|find)(?: (?:this(?: (?:one|trial|study|pair|item|claim|statement))?|it"
    r"|the (?:(?:two|given|present) )?(?:pair|question|answer|claim|sentences|statements?|texts|relation(?:ship)?)))?"
    r"|\b(?:is|are|be) (?:\w+ly )?answered (?:with|by|as)|\bmine (?:is|would be)"
    r"|~[\"']? (?:here )?(?:and (?:answer|say|choose|pick|select|go with)|in favou?r of)"
    # "in one word:", "the authors conclude:", "according to the abstract:", "answers the question with a clear"
    r"|\b(?:(?:in|on|for|with) (?:one|a|a single) word|one[- ]word answer|concludes?(?: with| that)?"
    r"|(?:to answer|answering) (?:(?:your|the|this|that) question(?: \w+)?|\w+ly)"
    rf"|(?:according to|based on|given|from)\s[^.!?;:,\n{NO_CHOICE}]{{0,80}})\s?[,:]"
    r"|\banswers? (?:it|this|(?:the|this|that|its own) question)(?: with\b)?|\bconcludes? with|\banswer it with"
    # "the evidence is clear: yes"
    r"|\b(?:no (?:question|doubt|contest)|that is(?: to say)?|in favou?r|clear|plain|simple|straightforward|obvious"
    r"|i agree|unequivocal"
    r"|unambiguous|conclusive|direct|brief"
    r"|short|firm|in a nutshell|briefly|put (?:simply|shortly)|to put it \w+|simply put|in other words|in essence"
    r"|long story short)\s?[:,-]"
    # "the data point to", "which means", "that leaves us with", "it comes down to"
    r"|\b(?:points?|pointing|leans?|leaning|tends?|amounts?|comes? down|boils? down) (?:\w+ )?(?:to|towards?)"
    r"|\b(?:which|this|that|these|results?|data|findings?|evidence|abstract) (?:\w+ )?(?:means?|implies|imply"
    r"|suggests?|indicates?|supports?|favou?rs?|leaves?(?: us| me)?(?: with)?(?: only)?|makes? (?:it|this"
    r"|the answer)|gives?)"
    r"|\btells? (?:us|me)|\b(?:looks|sounds|feels|seems) like|\b(?:settled on|decided on|opting for|going with"
    r"|changed? (?:\w+ ){0,2}to)"
    rf")[\s:,-]{{0,4}}{_FILL}"
)
_SO = (
    r"\b(?:so|therefore|thus|hence|overall|consequently|accordingly|in (?:conclusion|summary|short|sum)"
    r"|to conclude|to sum up|all in all|ergo|as such|on balance|altogether|taken together|in the end)"
    r"[\s,:-]{1,3}(?:(?:in short|overall|then|yes or no|in one word|i'd say|again)[\s,:]{1,3})?"
)
_BACK = (
    r"(?:(?:^|[.,;:!?(-])\s{0,3}(?:oh,? |no,? |but |hmm,? |or )?"
    r"(?:wait|actually|correction|edit|update|sorry|rather|i meant?|oops|whoops|my bad|hold on|apologies|make that"
    r"|revised|hmm+"
    r"|on re-?reading|on (?:a )?(?:second|closer) (?:reading|look|inspection)|strike that|scratch that|never mind"
    r"|revision|erratum)\b"
    r"|\b(?:scratch that|strike that|on second thoughts?|on reflection|let me correct|chang(?:ed|ing) my (?:answer"
    r"|verdict|label|mind)|i (?:misread|misspoke"
    r"|was wrong|stand corrected|take (?:that|it) back|change my|now say|have to revise|must revise|revise my"
    r"|retract)"
    r"|i apologi[sz]e|(?:made a|my) mistake|(?:looking|look|reading|reread|rereading|re-reading"
    r"|thinking) (?:\w+ )?(?:more closely|closer|again|the \w+)|after (?:re-?reading|checking|a second)"
    r"|revised (?:answer|verdict|label)|(?:corrected|updated|new) answer|changed my mind))"
)
_CHANGED = (  # "changed my answer from yes to no"
    r"\b(?:chang|switch|revis|mov|updat|correct|flip|amend)(?:e|ed|es|ing|ped|ping)? "
    rf"(?:(?:my|the) {_ADJECTIVE}{_NOUN} |it )?from [\"']?{CHOICE}[\"']? (?:in)?to [\"']?"
)
_FACTS = (
    "abstract|evidence|stud(?:y|ies)|passage|text|data|premise|sentence|results?|findings?|it|this|trial|paper|article"
)
_AGREE = (
    r"(?:(?:well|sure|ok|okay|oh|hm+|probably|likely|most likely|very likely|almost certainly|definitely|certainly"
    r"|absolutely"
    r"|clearly|simply|indeed|obviously|evidently|apparently|naturally|surely|unfortunately|sadly|overall|a clear"
    r"|a definite|in general|generally|again|of course|maybe not"
    r"|then)[\s,:!]{1,3})?"
)
_FIRM = (
    "clear|cautious|qualified|resounding|definite|firm|strong|simple|tentative|flat|hesitant|straightforward"
    "|emphatic|solid|very"
)
_AGREE = rf"{_AGREE}(?:an? (?:(?:{_FIRM}) ){{1,2}})?"
_FINAL = rf"\b(?:final answer\b|final (?:verdict|label|decision)\b){_GAP}\s?(?:is|would be|[:=→-])[\s:-]{{0,4}}"

# (rank, rule, row): group 1 of a row is the choice that it asserts; a later one of a higher rank replaces it.
ASSERTIONS = [
    (rank, rule, re.compile(row, re.MULTILINE))
    for rank, rule, row in (
        # "it is unknown", which may speak of something else
        (
            0,
            "predicate",
            r"\b(?:it|this|that|these|they|(?:this|the) (?:study|paper|trial|record))(?: is|'s| are|'d be"
            rf"| would be| must be| should be| has to be| remains| will be| can only be) {_FILL}{_CHOSEN}",
        ),
        (
            0,
            "predicate",
            rf"\b(?:there(?: is|'s)|hypothesis is|premise is|sentence is|statement is|one is) {_FILL}{_CHOSEN}",
        ),
        (
            0,
            "predicate",
            rf"\b(?:{_FACTS}) (?:\w+ly )?({CHOICE}) (?:the|this|that) (?:claim|statement|hypothesis|premise"
            rf"|sentence)\b",
        ),
        (
            0,
            "predicate",
            rf"\bwhich (?:is|would be|corresponds to|matches) (?:option|choice|answer|letter|an?(?: clear)?) {_CHOSEN}"
            r"(?=[\"')]{0,3}\s?(?:\.|$))",
        ),
        (
            0,
            "predicate",
            r"\b(?:affirms?|confirms?|supports?|shows?|speaks?|agrees?|answers?|settles?|establish(?:es)?|works?"
            r"|safe|effective)\b"
            rf"[^.!?;:\n{NO_CHOICE}]{{0,40}}:\s[\"']?({CHOICE})(?=[\"']?\s?(?:[.!]|$))",
        ),  # "The conclusion confirms it: yes."
        (
            0,
            "predicate",
            rf"\w \w+:\s({CHOICE}),\s(?:it|this|that|they|the)\s",
        ),  # "No harm was done: yes, it is safe."
        (0, "predicate", rf"\b(?:in|form|constitutes?|represents?|has|have|shows?) (?:an? |clear |direct )*{_CHOSEN}"),
        (1, "leading", rf"{_START}{_AGREE}{_CHOSEN}"),  # "Yes, because", "Sure! No.", "Probably yes."
        (1, "leading", rf"{_START}{CHOICE}, {_CHOSEN}"),  # "Yes, no, maybe"
        (
            1,
            "leading",
            r"\A[\s\"'(]{0,4}(?:print|return|outcome:(?=\s[^\s.]{1,3}[\s.]{0,9}\Z)|(?:label|call|mark"
            r"|put) (?:it|this|down)"
            r"|(?:answer )?(?:option|choice|letter|choose|pick|select)"
            rf"|answer(?=\s[\"'(]{{0,2}}{CHOICE}[\"')]{{0,2}}(?:[.,:;!]|$)))\s?{_CHOSEN}",
        ),  # "Option C"
        (
            1,
            "set_off",
            rf"(?<![{NO_CHOICE}])(?:,|,? but|\bthat)\s(?:(?:\w{{3,12}}ly|now|still|indeed)\s)?{_CHOSEN}(?![)\]]\s\w)",
        ),
        (1, "set_off", rf"~[\"']?,? but (?:after|on|upon|following) (?:\w+ ){{1,4}}{_CHOSEN}"),
        (1, "correction", rf"{_CHANGED}({CHOICE})"),
        (1, "set_off", rf"→ (?:[^.;!?\n{NO_CHOICE}]{{0,40}}: )?{_AGREE}{_CHOSEN}"),  # "p = 0.6 → no"
        (1, "correction", rf"{_BACK}[\s,:-]{{0,4}}{_FILL}{_CHOSEN}"),  # "actually no", "Correction: yes"
        (2, "cue", _CUE + _CHOSEN),  # "The answer is yes"
        (
            2,
            "cue",
            rf"({CHOICE})[\"')]{{0,2}} (?:(?:is|seems|would be|(?:seems|appears) to be)\b"
            r"(?: (?:the|my|most|by far|clearly|therefore|thus"
            r"|also|a))* (?:correct|right|best|answer|verdict|label|appropriate|warranted|justified"
            r"|well supported"
            r"|supported|(?<=my )(?:choice|pick|option"
            r"|vote))\b|(?:does|fits(?: better| best)?"
            rf"|applies|it is|is it|is better)\b(?=\s?(?:[.,;!]|$)))",
        ),  # "B is correct"
        (
            3,
            "conclusion",
            rf"{_SO}(?:{_CUE}|the answer was )?{_FILL}{_CHOSEN}",
        ),  # "..., so yes", "Therefore the answer is no"
        (4, "final", rf"{_FINAL}{_FILL}{_CHOSEN}"),  # "Final answer: no", <answer>, \boxed{}
    )
]
# "I have to go with no.", where the choices are words that are seldom anything but an answer
STATEMENT = re.compile(
    r"\b(?:answer\w*|question|verdict|say|go|going|call|lean\w*|conclu\w+|evidence|data|results?|abstract"
    r"|findings?|study|trial|authors?|vote|favou?r\w*|point\w*"
    rf"|suggest\w*|support\w*|indicat\w*|mean\w*|settle|opt|confident|inclined"
    rf"|decide)\b[^.;!?:\n{NO_CHOICE}]{{0,60}}(?<!\bwas)(?<!\bwere)\s[\"']?({CHOICE})"
    r"(?=[\"')]{0,2}\s?(?:[.!]|$)|[\"']? (?:on this|here|to this|in this|because|since|as|given|from me)\b)",
    re.MULTILINE,
)
# "The best next step is an ECG (D).", where the choices are letters
LAST_LETTER = re.compile(rf"[a-z] \(({CHOICE})\)[\s.!]{{0,9}}\Z")
# "Risk of bias: low", "They cannot both be true: contradiction.", where the choices are neither yes and no nor letters
LABELLED = re.compile(
    rf"(?:\A\s{{0,5}}\w[\w ]{{0,40}}\s?[:=]|[\w~]+ [\w~]+ [\w~]+:)\s?[\"']?({CHOICE})[\"']?[\s.!]{{0,9}}\Z"
)
CONCEDED = re.compile(rf"{CHOICE},[^.;!?\n]{{0,200}}\b(?:but|although|though|however)\b")
ARROW = re.compile(
    rf"{CHOICE}[\"')]{{0,2}}[^.;!?\n{NO_CHOICE}]{{0,40}}→(?=[^.;!?\n{NO_CHOICE}]{{0,40}}{CHOICE})"
)  # "yes → no"
CORRECTION = re.compile(_BACK, re.MULTILINE)
