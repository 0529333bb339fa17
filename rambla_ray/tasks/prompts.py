"""Prompt templates: Python format strings with named placeholders, checked before anything runs."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from functools import cache
from typing import Annotated

from pydantic import AfterValidator, Field

from rambla_ray.display import one_line

LONGEST = 10_000_000  # Characters of a template.
WIDEST = 1000  # So many characters a placeholder may pad its text to, or keep of it.
_NUMBER = re.compile(r"\d+")


@cache
def placeholders(template: str) -> frozenset[str]:
    """The names of the fields that a template needs.

    Raises:
        ValueError: broken braces, no placeholder at all, one that is not a plain name, or one that pads its text to
            more than any prompt needs.
    """
    names = set()
    for _, name, spec, _ in string.Formatter().parse(template):
        if name is None:
            continue
        if not name.isidentifier():
            raise ValueError(f"placeholder {{{one_line(name)}}} is not a field name")
        if spec and "{" in spec:
            raise ValueError(f"placeholder {{{one_line(name)}:{one_line(spec)}}} nests another")
        if any(len(number) > len(str(WIDEST)) or int(number) > WIDEST for number in _NUMBER.findall(spec or "")):
            raise ValueError(f"placeholder {{{one_line(name)}:{one_line(spec or '', 40)}}} is wider than {WIDEST:,}")
        names.add(name)
    if not names:
        raise ValueError("a template needs at least one {placeholder}")
    template.format_map(dict.fromkeys(names, ""))  # This raises for conversions and formats that text does not have.
    return frozenset(names)


def render(template: str, fields: Mapping[str, str]) -> str:
    """Fill `template`; values go in verbatim, so braces in data are safe. Raises KeyError on a missing field."""
    return template.format_map({name: fields[name] for name in placeholders(template)})


def _checked(template: str) -> str:
    placeholders(template)
    return template


def _as_system(text: str) -> str:
    if not text.strip():
        raise ValueError("a system prompt is not empty; leave it out")
    return text


SystemPrompt = Annotated[str, Field(max_length=LONGEST), AfterValidator(_as_system)]  # As it stands: no placeholders.
Template = Annotated[str, Field(max_length=LONGEST), AfterValidator(_checked)]
