"""Prompt templates: Python format strings with named placeholders, checked before anything runs."""

from __future__ import annotations

import string
from collections.abc import Mapping
from functools import cache

from rambla_ray.display import one_line


@cache
def placeholders(template: str) -> frozenset[str]:
    """The names of the fields that a template needs.

    Raises:
        ValueError: broken braces, no placeholder at all, or one that is not a plain name.
    """
    names = set()
    for _, name, spec, _ in string.Formatter().parse(template):
        if name is None:
            continue
        if not name.isidentifier():
            raise ValueError(f"placeholder {{{one_line(name)}}} is not a field name")
        if spec and "{" in spec:
            raise ValueError(f"placeholder {{{one_line(name)}:{one_line(spec)}}} nests another")
        names.add(name)
    if not names:
        raise ValueError("a template needs at least one {placeholder}")
    template.format_map(dict.fromkeys(names, ""))  # This raises for conversions and formats that text does not have.
    return frozenset(names)


def render(template: str, fields: Mapping[str, str]) -> str:
    """Fill `template`; values go in verbatim, so braces in data are safe. Raises KeyError on a missing field."""
    return template.format_map({name: fields[name] for name in placeholders(template)})
