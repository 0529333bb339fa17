"""What the sections of every config have in common: unknown keys and values of another kind are errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

SEEDS = 2**32  # Seeds are below it: NumPy's generators take no others.
_LONGEST_WHOLE = 64  # Where a key takes anything, a whole number has no more bits than this.


class Closed(BaseModel):
    """A config section: unknown keys are errors, values do not change, and a number is a finite number."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic takes true for 1 and 1 for true, and whatever there is where a key takes anything."""
        fault = _fault(value, cls.model_fields[str(info.field_name)].annotation)
        if fault:
            raise ValueError(fault)
        return value


def omitted(description: str, **bounds: Any) -> Any:
    """A key that may be left out: then neither what is stored nor what a request is known by has it."""
    return Field(None, exclude_if=lambda value: value is None, description=description, **bounds)


MOST_EPOCHS = 1000  # An item is asked at most so often.


def draws_per_item(description: str) -> Any:
    """A number of draws of each item; one is what there is without it, and is stored as little."""
    return Field(None, ge=1, le=MOST_EPOCHS, exclude_if=lambda count: count in (None, 1), description=description)


def options_of(kind: Any) -> Iterator[Any]:
    """The members of a union, or the one type, without what annotates them."""
    if get_origin(kind) is Annotated:
        yield from options_of(get_args(kind)[0])
    elif get_origin(kind) in (Union, UnionType):
        for member in get_args(kind):
            yield from options_of(member)
    else:
        yield kind


def _fault(value: Any, kind: Any) -> str:
    """Why a value, or one inside of it, is not what a type takes; empty where pydantic may decide."""
    options = list(options_of(kind))
    if Any in options:
        return _endless(value)
    takes_number, takes_truth = int in options or float in options, bool in options
    if isinstance(value, bool):
        return "" if takes_truth or not takes_number else "Input should be a number, not true or false"
    if isinstance(value, int | float):
        return "Input should be true or false" if takes_truth and not takes_number else ""
    faults = (_fault(inner, part) for option in options for inner, part in _inside(value, option))
    return next(filter(None, faults), "")


def _inside(value: Any, option: Any) -> Iterator[tuple[Any, Any]]:
    """What a list or a mapping holds, each with the type that it should have."""
    origin, parts = get_origin(option), get_args(option)
    if origin in (list, tuple) and isinstance(value, list | tuple):
        yield from ((inner, parts[0]) for inner in value)
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        yield from ((key, parts[0]) for key in value)
        yield from ((inner, parts[1]) for inner in value.values())


def _endless(value: Any) -> str:
    """Why a value of any kind is a number that no library takes; empty where it is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return "Input should be a finite number"
    if isinstance(value, int) and value.bit_length() > _LONGEST_WHOLE:
        return f"a whole number has at most {_LONGEST_WHOLE} bits"
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next(filter(None, map(_endless, inside)), "")
