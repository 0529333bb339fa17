"""Text of unknown origin (answers, errors, names) made harmless for whoever looks at it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def one_line(text: str, longest: int = 200) -> str:
    r"""The beginning of a text, as one line of characters that show as what they are.

    Line breaks, terminal escapes, NUL, C1 controls, marks that turn the direction of writing and everything else that
    Python calls unprintable become `\n`, `\x1b`, `\u202e`.

    Args:
        text: anything.
        longest: characters of it to show; a text that is longer is cut, and its length follows.
    """
    shown = text[:longest]
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return shown if len(text) <= longest else f"{shown}… ({len(text)} characters)"


def in_markdown(line: str) -> str:
    """A line as Markdown that shows just it: no HTML, no formatting, no new cell of a table."""
    escaped = _MARKDOWN.sub(lambda match: f"\\{match[0]}", line)
    return "".join(_HTML.get(character, character) for character in escaped)


def counted(count: float, what: str) -> str:
    """A number of things, in words."""
    return f"{count:.12g} {what}{'' if count == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a report on a run or a cluster, and whether what it states is as it should be."""

    line: str
    holds: bool

    def __str__(self) -> str:
        return f"{'✓' if self.holds else '✗'} {self.line}"
