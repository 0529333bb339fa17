"""A cell of a record, whatever type its file gives it, as the text that a model is asked."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from rambla_ray.config.dataset import normalised
from rambla_ray.schema import well_formed

# Types whose `str` is what a reader would write.
_WRITTEN = (int, float, datetime.date, datetime.time, datetime.timedelta, uuid.UUID)


class NotText(ValueError):
    """A value that no text stands for."""


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, NaN, or pandas' time that is none."""
    return value is None or (isinstance(value, float | np.floating | datetime.datetime) and bool(value != value))


def text(value: Any) -> str:
    """A cell as text: empty for a missing one, bytes as UTF-8, JSON for lists and mappings. Raises NotText."""
    if isinstance(value, str):
        return str(value)
    if is_missing(value):
        return ""
    if isinstance(value, np.generic | np.ndarray):
        return text(value.tolist())
    if isinstance(value, bool | list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=_inside_json)
    if isinstance(value, bytes | bytearray | memoryview):
        return _decoded(bytes(value))
    if isinstance(value, Decimal):
        return format(value, "f")
    if not isinstance(value, _WRITTEN):
        raise NotText(f"is a {type(value).__name__}, and no text")
    return str(value)


def _inside_json(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else text(value)


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise NotText("holds bytes that are not UTF-8 text") from None


def is_text(value: Any) -> bool:
    """Whether a text stands for a value."""
    try:
        text(value)
    except NotText:
        return False
    return True


def texts(value: Any) -> list[str]:
    """A list of texts. Raises TypeError for anything else: a lone text would be read as a list of its characters."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, list) or not all(isinstance(part, str | bytes) for part in value):
        raise TypeError(f"expected a list of texts, not {str(value)[:60]!r}")
    return list(map(text, value))


def whole(value: Any) -> str:
    """A value as text. A whole number has no decimals, even where pandas made it a float as other rows lack it."""
    return text(int(value) if isinstance(value, float | np.floating) and value.is_integer() else value)


def identifier(value: Any, column: str) -> str:
    """The id of an item. Raises ValueError when it is missing."""
    root_id = well_formed(whole(value))
    if not root_id.strip():
        raise ValueError(f"its id ('{column}') is missing")
    return root_id


def one_of(value: Any, column: str, words: Mapping[str, str]) -> str:
    """The word that stands for a label, which may be its number, its name or the word. Raises ValueError."""
    try:
        return words[normalised(whole(value))]
    except KeyError:
        known = ", ".join(words)
        raise ValueError(f"its {column} is {whole(value)[:60]!r}, and not one of {known}") from None


def lost_integers(values: list[Any]) -> bool:
    """Whether a column holds integers that were made floats, as pandas does where some rows have none."""
    present = [value for value in values if not is_missing(value)]
    return 0 < len(present) < len(values) and all(
        isinstance(value, float | np.floating) and value.is_integer() for value in present
    )
