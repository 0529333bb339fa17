"""A validation error as one line that names the key and what exists there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import get_args

from pydantic import BaseModel, ValidationError

from rambla_ray.display import SHOWN_CHARACTERS, one_line
from rambla_ray.errors import choose_from

# What stands in the place of a fault for one of several types that a value may have, such as `constrained-str`.
_ALTERNATIVE = re.compile(r"constrained-\w+|[\w-]+\[.+\]", re.DOTALL)


def explain(error: ValidationError, model: type[BaseModel], inside: str = "") -> str:
    """The first fault of a validation error in one line.

    Args:
        error: the validation error of pydantic.
        model: the model that was validated.
        inside: the key under which that model stands.
    """
    faults = error.errors(include_url=False)
    # Where a key is not known, that is the fault to show: others, such as a missing key, often follow from a typo.
    fault = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    location = [part for part in map(str, fault["loc"]) if not _ALTERNATIVE.fullmatch(part)]
    key = ".".join([inside, *location] if inside else location)
    if fault["type"] == "extra_forbidden":
        return (
            f"no key '{one_line(key, SHOWN_CHARACTERS)}'; {choose_from(location[-1], _keys_at(model, location[:-1]))}"
        )
    if fault["type"] == "missing":
        return f"key '{key}' is missing"
    reason = fault["msg"].removeprefix("Value error, ").partition(" or instance of ")[0]
    value = fault.get("input")
    if isinstance(value, bool) and "string" in fault["type"]:
        reason = "put it in quotes: YAML reads yes, no, on and off as true and false"
    may_be_secret = "api_key_" in key  # Somebody may have put the key itself there.
    is_shown = isinstance(value, str | int | float | bool | None) and not may_be_secret
    shown = f" (got {_short(value)})" if is_shown else ""
    return f"{key}: {reason}{shown}" if key else reason


def _short(value: object) -> str:
    """A value in a few characters; Python writes no whole number of more than 4,300 digits."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length():,} bits"
    return f"{value!r}"[:72]


def _keys_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """The keys that exist at a place inside a model."""
    for part in location:
        field = model.model_fields.get(part)
        inner = _section(field.annotation) if field else None
        if inner is None:
            break
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _section(annotation: object) -> type[BaseModel] | None:
    """The section that a key holds, which may be optional; None where it holds none."""
    for kind in get_args(annotation) or (annotation,):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None
