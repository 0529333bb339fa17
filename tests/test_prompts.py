"""Templates: data goes in verbatim, and what cannot be filled is refused before anything runs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rambla_cases import recorded

from rambla_ray.tasks.prompts import placeholders, render

# Where this project differs from RAmBLA on purpose: a placeholder may stand twice, a field may stay unused.
ALLOWED_HERE = {("{q}{q}", 1): "zz", ("{q}", 2): "z"}


def test_prompts_are_those_of_rambla() -> None:
    cases = recorded("prompt_formatter_cases")
    got, expected = [], []
    for case in cases:
        template, row = case["template"], case["row"]
        fields = {name: row[column] for column, name in case["var_map"].items() if column in row}
        try:
            got.append(render(template, fields))
        except (ValueError, KeyError):
            got.append("refused")
        theirs = "refused" if isinstance(case["out"], dict) else case["out"]
        expected.append(ALLOWED_HERE.get((template, len(fields)), theirs) if theirs == "refused" else theirs)
    assert len(cases) == 10
    assert got == expected


@pytest.mark.parametrize(
    ("template", "fields", "expected"),
    [
        pytest.param("Q: {q}", {"q": "why?"}, "Q: why?", id="plain"),
        pytest.param("{q}", {"q": "a {b} {} {{c}}"}, "a {b} {} {{c}}", id="braces in data"),
        pytest.param("{q} {{lit}}", {"q": "z"}, "z {lit}", id="literal braces"),
        pytest.param("{{{q}}}", {"q": "z"}, "{z}", id="literal braces around a field"),
        pytest.param("{q} {q}", {"q": "z"}, "z z", id="a field twice"),
        pytest.param("{q}", {"q": "z", "other": "y"}, "z", id="a field unused"),
        pytest.param("{q}\n", {"q": "  z\n"}, "  z\n\n", id="white space kept"),
        pytest.param("{q:>3}|{q!r}", {"q": "z"}, "  z|'z'", id="width and conversion"),
        pytest.param("{q}", {"q": ""}, "", id="empty value"),
    ],
)
def test_a_template_is_filled(template: str, fields: dict[str, str], expected: str) -> None:
    assert render(template, fields) == expected


@settings(max_examples=50, deadline=None)
@given(st.text(), st.text())
def test_values_go_in_verbatim(one: str, other: str) -> None:
    assert render("{a}|{b}|{a}", {"a": one, "b": other}) == f"{one}|{other}|{one}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [("{q}", {"q"}), ("{b} {a} {b} {{c}}", {"a", "b"}), ("{original_context:>4}", {"original_context"})],
)
def test_placeholders_are_the_fields_a_template_asks_for(template: str, expected: set[str]) -> None:
    assert placeholders(template) == expected


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        pytest.param("", "at least one", id="empty"),
        pytest.param("no placeholder", "at least one", id="none"),
        pytest.param("{{q}}", "at least one", id="only literal braces"),
        pytest.param("{}", "not a field name", id="positional"),
        pytest.param("{0}", "not a field name", id="index"),
        pytest.param("{q.upper}", "not a field name", id="attribute"),
        pytest.param("{q[0]}", "not a field name", id="item"),
        pytest.param("{ q }", "not a field name", id="spaces"),
        pytest.param("{q:{w}}", "nests", id="nested"),
        pytest.param("{q", "expected '}'", id="not closed"),
        pytest.param("a } {q}", "Single '}'", id="not opened"),
        pytest.param("{q!x}", "conversion", id="unknown conversion"),
        pytest.param("{q:d}", "format", id="a number's format"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused_before_it_is_used(template: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        placeholders(template)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(KeyError, match="c"):
        render("{q} {c}", {"q": "z"})
