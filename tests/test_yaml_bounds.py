"""YAML that would crash, hang or fill its parser is refused, and what people write is not."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf.errors import OmegaConfBaseException

from rambla_ray.config.parsing import (
    DEEPEST,
    LONGEST_INTERPOLATION,
    MOST_VALUES,
    parse_quoted,
    parse_resolved,
    parse_yaml,
)

LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))])
CHAIN = "\n".join(["a0: &a0 []", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 400))])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param(f"a: {'[' * 51}{']' * 51}", f"nested more than {DEEPEST} deep", id="nested"),
        pytest.param("{a: " * 100_000, f"nested more than {DEEPEST} deep", id="open"),
        pytest.param(LAUGHS, "holds more than", id="billion laughs"),
        pytest.param("a: &a [*a]", "alias \\*a stands inside of what it stands for", id="a list in itself"),
        pytest.param("a: &a {b: [*a]}", "alias \\*a stands inside", id="a mapping in itself"),
    ],
)
def test_what_no_config_has_is_refused(text: str, reason: str) -> None:
    for parse in (parse_yaml, lambda text: parse_resolved(text.encode())):
        with pytest.raises(ValueError, match=reason):
            parse(text)


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:" * 200 + "X" + "}" * 200,
        "${" * 50_000,
        f"${{{'a.' * 20_000}b}}",
        f"${{a{'[b]' * 20_000}}}",
        f"${{oc.decode:{{}}{'[' * 3_000}}}",
        "${oc.env:" + "A" * LONGEST_INTERPOLATION + "}",
        f"x ${{a}} ${{b: {'{c}' * 1_000}",
    ],
    ids=lambda value: value[:20],
)
def test_an_interpolation_that_takes_for_ever_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="an interpolation is nested too deeply, or longer than"):
        parse_yaml(f"a: '{value}'")


def test_one_that_is_short_and_deep_ends_in_an_error_too() -> None:
    with pytest.raises((ValueError, OmegaConfBaseException)):
        parse_yaml(f"a: '{'${' * 400}'")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f"a: {'[' * 49}{']' * 49}", None),
        ("a: &a {b: 1}\nc: *a", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: &a {b: 1}\nc: {<<: *a, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        (f"a: {' '.join(['${b}'] * 2_000)}", {"a": " ".join(["${b}"] * 2_000)}),
        (f"a: '\\${{x {'y' * 2_000}'", {"a": f"\\${{x {'y' * 2_000}"}),
        (f"a: 1 # ${{x\nb: {'y' * 2_000}", {"a": 1, "b": "y" * 2_000}),
        (f"a: '{{question}} {'{x}' * 2_000} ${{b}}'", {"a": f"{{question}} {'{x}' * 2_000} ${{b}}"}),
        (f"a: {'x' * 500_000}", {"a": "x" * 500_000}),
    ],
    ids=["deep", "alias", "merge", "many", "escaped", "comment", "braces", "long"],
)
def test_what_people_write_is_read(text: str, value: Any) -> None:
    assert parse_yaml(text) == (value or parse_yaml(text))


def test_a_config_holds_fewer_values_than_what_a_program_wrote() -> None:
    text = f"a: [{', '.join(['1'] * MOST_VALUES)}]"
    with pytest.raises(ValueError, match=f"holds more than {MOST_VALUES} values"):
        parse_yaml(text)
    assert len(parse_resolved(text.encode())["a"]) == MOST_VALUES


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ('"a\\tb"', "a\tb"),
        ("'it''s'", "it's"),
        ('"null"', "null"),
        (f'"a": {"[" * 100_000}{"]" * 100_000}, "b"', None),
    ],
    ids=["double", "single", "null", "no pair"],
)
def test_a_word_in_quotes_is_the_text_inside(word: str, text: str | None) -> None:
    assert parse_quoted(word) == text
