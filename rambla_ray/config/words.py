"""What the right side of a `key=value` word means: the text that was typed, unless its key takes something else.

A word is not YAML: where a key takes text, `yes`, `1e3`, `a: b` and `/data/set #3` are that text. `null`, or nothing,
means that there is no value. `{...}` and `[...]` are read as YAML where a key takes more than text. Quotes around a
whole value are left out, so that `"null"` is a text too.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import re
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel

from rambla_ray.config.parsing import parse_quoted, parse_yaml, refuse_long_interpolations
from rambla_ray.tasks.closed import options_of

NO_VALUE = frozenset({"", "null", "Null", "NULL"})
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
BRACKETS = ("{}", "[]")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


def as_typed(word: str) -> str:
    """A word in UTF-8, as terminals send it, where Python has read it in the encoding of another locale."""
    with contextlib.suppress(UnicodeError):
        return os.fsencode(word).decode()
    return word


def read_value(word: str, kind: Any) -> Any:
    """The value that a word gives to a key.

    Args:
        word: what stands behind `=`.
        kind: the type of the key's values, as `type_at` finds it.

    Raises:
        yaml.YAMLError, OmegaConfBaseException, ValueError: what is in brackets is not YAML, or too deep.
    """
    if word in NO_VALUE:
        return None
    refuse_long_interpolations(word)
    if _is_quoted(word):
        return _unquoted(word)
    if word[0] + word[-1] in BRACKETS and not _is_plain_text(kind):
        return _parsed(word, or_text=kind is None)
    if kind is Any and word in BOOLEANS:
        return BOOLEANS[word]
    return word if kind is None or takes_text(kind) or bool in options_of(kind) else _number(word)


def _parsed(word: str, *, or_text: bool) -> Any:
    """What is in brackets, as YAML reads it."""
    try:
        return parse_yaml(f"value: {word}")["value"]
    except yaml.YAMLError:
        if or_text:
            return word
        raise


def type_at(model: type[BaseModel], keys: Sequence[str]) -> Any:
    """The type of the values at a key inside a config's model; None when the model does not say it."""
    kind: Any = model
    for key in keys:
        kind = _type_inside(kind, key)
    return kind


def _type_inside(kind: Any, key: str) -> Any:
    for option in options_of(kind):
        if option in (Any, dict):
            return Any
        if get_origin(option) in (dict, Mapping):
            return get_args(option)[1]
        if inspect.isclass(option) and issubclass(option, BaseModel):
            fields = option.model_fields.items()
            return next((field.annotation for name, field in fields if key in (name, field.alias)), None)
    return None


def _is_plain_text(kind: Any) -> bool:
    """Whether a type has no values but texts, and none."""
    return all(option is NoneType or _is_str(option) for option in options_of(kind))


def takes_text(kind: Any) -> bool:
    """Whether a type has texts among its values, or inside of them."""
    return any(_is_str(option) or any(map(takes_text, _parts(option))) for option in options_of(kind))


def _parts(option: Any) -> tuple[Any, ...]:
    """The types of what a list or a mapping holds."""
    origin = get_origin(option)
    if origin is Literal:
        return ()
    return get_args(option)[1:] if origin in (dict, Mapping) else get_args(option)


def _is_str(option: Any) -> bool:
    return inspect.isclass(option) and issubclass(option, str)


def _number(word: str) -> int | float | str:
    """The number that a word writes in the decimal system, else the word."""
    if _INTEGER.fullmatch(word):
        return int(word)
    return float(word) if _FLOAT.fullmatch(word) and math.isfinite(float(word)) else word


def _is_quoted(word: str) -> bool:
    return len(word) > 1 and word[0] in "'\"" and word[-1] == word[0]


def _unquoted(word: str) -> str:
    """The text inside quotes, as YAML reads it; the word itself where the two quotes do not belong together."""
    try:
        text = parse_quoted(word)
    except yaml.YAMLError:
        return word
    return word if text is None else text
