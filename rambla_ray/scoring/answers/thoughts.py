"""What a model thinks before it answers, where it stands in the text of the answer, in the marks of any family."""

from __future__ import annotations

import re
from collections.abc import Sequence

_THOUGHT = (
    r"(?:[a-z]{1,12}[:_])?(?:think(?:ing)?|thoughts?|reasoning|reflections?|reflect|scratch_?pad|analysis|rationale"
    r"|(?:inner[_ ]|internal[_ ])?monologue|chain[_ ]of[_ ]thought|cot)"
)
# <think>, [THINK], ◁think▷, <|START_THINKING|>, <|begin_of_thought|>, and what closes them; then MedGemma's
CLOSE = (
    rf"[<\[◁]\|?\s?/\s?\|?{_THOUGHT}\s?\|?[>\]▷]|<\|(?:end|stop)_(?:of_)?{_THOUGHT}\|>|<unused95>"
    r"|<\|inner_suffix\|>|<channel\|>"  # Apertus, Gemma 4
    # Harmony: the channel of the answer, which follows that of the thoughts
    r"|(?:<\|end\|>\s?)?(?:<\|start\|>assistant)?<\|channel\|>final[^\n]{0,60}?<\|message\|>"
)
OPEN = (
    rf"[<\[◁]\|?{_THOUGHT}(?:\s[^<>\n]{{0,40}})?\|?[>\]▷]|<\|(?:start|begin)_(?:of_)?{_THOUGHT}\|>"
    r"|<unused94>(?:thought\n)?|<\|inner_prefix\|>|<\|channel>(?:thought\n)?"
    r"|(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)(?:[^\n]{0,60}?<\|message\|>)?"
)
_BARE_BEGINNING = "analysis"
BARE_OPEN = r"\A\s{0,9}(?-i:analysis)(?=(?-i:[A-Z]))|assistant(?:analysis|commentary)"  # Harmony without its marks

_BARE_CLOSE = "assistantfinal"
_ONE_OPEN, _ONE_CLOSE = re.compile(OPEN, re.IGNORECASE), re.compile(CLOSE, re.IGNORECASE)
_ENDS_WITH_OPEN = re.compile(rf"(?:{OPEN})\s{{0,9}}\Z", re.IGNORECASE)
_MAY_BECOME_MARK = re.compile(r"[<\[◁][^<>\[\]◁▷\n]{0,80}\Z")
NOT_QUOTED = r"(?<![\s(][\"'`“‘«])"  # A mark in quotes is spoken of.
_MARK = re.compile(
    rf"{NOT_QUOTED}(?:(?P<close>{CLOSE}|(?-i:{_BARE_CLOSE}))|(?P<open>{OPEN}|{BARE_OPEN}))", re.IGNORECASE
)
# Every mark begins so, and little else does: most texts need not be searched for marks, which takes much longer.
_BEGINS_MARK = re.compile(r"[<\[◁](?:\|?[a-zA-Z]|\|?\s?/)")
_BEGINS_BARE = re.compile(r"\s{0,9}(?:analysis[A-Z]|assistant(?:analysis|commentary))")
# Marks that models are trained on. Others, such as [Analysis], may be a heading of an ordinary answer.
_SURE = re.compile(r"<(?:\w{1,12}[:_])?(?:think|thought|reasoning)|\[think|<\||<unused|◁|a", re.IGNORECASE)
# What frames an answer, or a thought, in the special tokens of its model.
_HEAD = re.compile(r"(?:\s{0,9}<\|[^|<>\n]{0,40}\|>)+")
_TAIL = re.compile(r"(?:<\|[^|<>\n]{0,40}\|>(?:assistant)?\s{0,9})+\Z")
_LONGEST_TAIL = 200
_SEARCHED = 2_000_000  # So many characters of a text are searched for marks, which bounds the time.


def split_thoughts(text: str) -> tuple[str, str]:
    """The thoughts in a text, and the answer that is left; of a text without any, an empty string and the text.

    Thoughts begin where the text does: with a mark, or without one where the prompt's template wrote it, as what
    closes them shows. Those that are never closed reach to the end, and leave no answer. Of a text that began so,
    later blocks are thoughts, too. A mark in the middle of a text that begins otherwise is a part of it, and so is
    one that is never closed and may be a heading.
    """
    marks = _outermost(text) if _may_be_marked(text) else []
    if not _begins_with_thought(text, marks):
        return "", text
    thoughts: list[str] = []
    said: list[str] = []
    since, inside = 0, False
    for mark in marks:
        piece, opens = text[since : mark.start()], mark["open"] is not None
        if not (opens or inside):  # It was never opened, so all that was said before it is a thought.
            thoughts, said = [*thoughts, *said], []
        (said if opens else thoughts).append(piece)
        since, inside = mark.end(), opens
    (thoughts if inside else said).append(text[since:])
    return _joined(thoughts).strip(), _joined(said).lstrip()


def is_open(mark: str) -> bool:
    """Whether a text is a mark that opens a thought, and nothing else."""
    return _ONE_OPEN.fullmatch(mark) is not None


def is_close(mark: str) -> bool:
    """Whether a text is a mark that closes a thought, and nothing else."""
    return _ONE_CLOSE.fullmatch(mark) is not None


def ends_with_open(text: str) -> bool:
    """Whether a text ends with a mark that opens a thought, but for space."""
    return _ENDS_WITH_OPEN.search(text[-_LONGEST_TAIL:]) is not None


def ends_inside(text: str) -> bool:
    """Whether a text ends inside of a thought that a mark in it has opened."""
    marks = _outermost(text)
    return bool(marks) and marks[-1]["open"] is not None


def settled(text: str) -> int:
    """How many characters of a text that is still written are answer for certain, as far as marks in it can tell.

    None are while it may begin with a mark, and what may become one at its end is not.
    """
    begun = text.lstrip()
    if not begun or _BARE_BEGINNING.startswith(begun) or _ONE_OPEN.match(begun):
        return 0
    unfinished = _MAY_BECOME_MARK.search(text, max(0, len(text) - _LONGEST_TAIL))
    return unfinished.start() if unfinished else len(text)


def _may_be_marked(text: str) -> bool:
    return (
        _BEGINS_MARK.search(text, 0, _SEARCHED) is not None
        or _BEGINS_BARE.match(text) is not None
        or _BARE_CLOSE in text
    )


def _outermost(text: str) -> list[re.Match[str]]:
    """The marks in a text, but for what opens a block inside another."""
    marks: list[re.Match[str]] = []
    for mark in _MARK.finditer(text, 0, _SEARCHED):
        if mark["open"] is None or not marks or marks[-1]["open"] is None:
            marks.append(mark)
    return marks


def _begins_with_thought(text: str, marks: Sequence[re.Match[str]]) -> bool:
    """Whether a text begins with a thought, as its first marks show."""
    if not marks or marks[0]["open"] is None:
        return bool(marks)
    is_closed = len(marks) > 1
    return not text[: marks[0].start()].strip() and (is_closed or _SURE.match(marks[0][0].lstrip()) is not None)


def _joined(pieces: list[str]) -> str:
    """Pieces of a text, one below the other, without what frames them."""
    return "\n".join(bare for piece in pieces if (bare := _without_frame(piece)).strip())


def _without_frame(piece: str) -> str:
    """A piece without the special tokens at its two ends."""
    head = _HEAD.match(piece)
    bare = piece[head.end() :] if head else piece
    return bare[:-_LONGEST_TAIL] + _TAIL.sub("", bare[-_LONGEST_TAIL:])
