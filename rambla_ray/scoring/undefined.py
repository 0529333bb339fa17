"""Numbers that do not exist: each has its reason, which becomes an entry in `null_reasons` of metrics.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAN = "undefined: 0/0, or a number that it is made of is undefined"
INFINITE = "infinite: a number other than 0 is divided by 0"


@dataclass(frozen=True, slots=True)
class Undefined:
    """Stands where a number would, and says why there is none."""

    reason: str


def without_nan(value: Any, where: str, reasons: dict[str, str]) -> Any:
    """`value` with None for what is undefined, NaN or infinite; `reasons` gets an entry for each, by dotted place."""
    if isinstance(value, Undefined):
        reasons[where] = value.reason
        return None
    if isinstance(value, float) and not math.isfinite(value):
        reasons[where] = NAN if math.isnan(value) else INFINITE
        return None
    if isinstance(value, Mapping):
        return {key: without_nan(inner, f"{where}.{key}" if where else key, reasons) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner, f"{where}[{number}]", reasons) for number, inner in enumerate(value)]
    return value


def explained(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers with None for what is undefined, and `null_reasons`, which says why by the dotted place of each."""
    reasons: dict[str, str] = {}
    return {**without_nan(numbers, "", reasons), "null_reasons": reasons}
