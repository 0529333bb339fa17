"""A text on one line, on a terminal and in Markdown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from shown_page import Shown

from rambla_ray.display import folded, in_markdown, one_line


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=())), st.integers(0, 50))
def test_one_line_is_printable_and_bounded(text: str, longest: int) -> None:
    line = one_line(text, longest)
    assert line.isprintable()
    assert len(line) <= 10 * longest + 40
    assert one_line(line, len(line)) == line
    assert one_line(text, len(text)) == text or not text.isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 是 😀 'q' [b] <i>", "plain é 是 😀 'q' [b] <i>"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\u202eab", r"\u202eab"),
        ("\ud800", r"\ud800"),
        ("abcdef", "abcde… (6 characters)"),
        ("\x00bcdef", r"\x00bcde… (6 characters)"),
    ],
)
def test_one_line_says_what_it_cannot_show(text: str, shown: str) -> None:
    assert one_line(text, 5 if "bcdef" in text else 200) == shown


@pytest.mark.parametrize(
    ("text", "longest", "shown"),
    [
        (" a\n\tb  c ", None, "a b c"),
        ("a\n b c", 3, "a b"),
        ("\x1b[31m\u202e", None, r"\x1b[31m\u202e"),
        ("\x1bab", 2, r"\x1ba"),
    ],
)
def test_what_is_folded_stands_on_one_line(text: str, longest: int | None, shown: str) -> None:
    assert folded(text, longest) == shown


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("<>&|\\`*_[]()!~$#-+.:/ ab1"), max_size=30) | st.text(max_size=30))
def test_markdown_of_a_line_shows_the_line(text: str) -> None:
    line = f"x{one_line(text)}x"
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(in_markdown(line))
    shown = Shown()
    shown.feed(rendered)
    assert "".join(shown.text).strip() == line
    assert shown.tags == ["p"]
