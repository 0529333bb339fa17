"""A text on one line, on a terminal and in Markdown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from shown_page import Shown

from rambla_ray.display import LONGEST_ERROR, as_typed_in_a_shell, bounded, folded, in_markdown, one_line, print_error


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
@given(st.text(st.characters(exclude_categories=()), max_size=1_000), st.sampled_from(["utf-8", "ascii", "latin-1"]))
def test_a_message_is_bounded_in_the_characters_of_any_stream(text: str, encoding: str) -> None:
    line = bounded(text, encoding)
    assert line.isprintable()
    assert len(line) <= LONGEST_ERROR
    line.encode(encoding)
    if len(text) <= LONGEST_ERROR and text.isprintable() and encoding == "utf-8":
        assert line == text


def test_of_a_long_error_the_beginning_and_the_end_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(f"no model '{'x' * 10_000}'; choose another\nwith model=NAME")
    printed = capsys.readouterr().err
    assert printed.startswith("error: no model 'xxxx")
    assert printed.endswith(r"xxx'; choose another\nwith model=NAME" + "\n")
    assert len(printed) == LONGEST_ERROR + 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["python", "a b", "it's"], """python 'a b' 'it'"'"'s'"""),
        (["a=\x1b[2J\n"], r"$'a=\x1b[2J\x0a'"),
        (["'\\é\u202e\udcff"], r"$'\'\\é\xe2\x80\xae\xff'"),
    ],
)
def test_a_command_to_copy_stands_on_one_line(words: list[str], line: str) -> None:
    assert as_typed_in_a_shell(words) == line


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("<>&|\\`*_[]()!~$#-+.:/ ab1"), max_size=30) | st.text(max_size=30))
def test_markdown_of_a_line_shows_the_line(text: str) -> None:
    line = f"x{one_line(text)}x"
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(in_markdown(line))
    shown = Shown()
    shown.feed(rendered)
    assert "".join(shown.text).strip() == line
    assert shown.tags == ["p"]
