"""Who served answers: the model, its fingerprint and the provider that replies name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

NAMED = ("served_model", "system_fingerprint", "provider")  # The columns of a step that say it.
_OWN = ("model", "role")
_BETWEEN = "\n"  # It is in no name of a model config; in what a reply names, it may blur two columns into one.


class Served(NamedTuple):
    """A model config in a role, and what a reply of it named; empty what it did not."""

    config: str
    role: str
    model: str
    system_fingerprint: str
    provider: str

    @property
    def names(self) -> tuple[str, ...]:
        """What the reply named."""
        return self[len(_OWN) :]


_KEYS = Served._fields[len(_OWN) :]
NOBODY = ("",) * len(_KEYS)


def count_answers(steps: pa.StructArray) -> dict[Served, int]:
    """How many of these steps have an answer, by who served it: what is empty takes no pass of its own."""
    columns = [steps.field(name) for name in (*_OWN, *NAMED)]
    joined = pc.binary_join_element_wise(*columns, _BETWEEN)
    found = joined.filter(pc.equal(steps.field("error_kind"), "")).value_counts().to_pylist()
    return {Served(*entry["values"].split(_BETWEEN, len(Served._fields) - 1)): entry["counts"] for entry in found}


def listed(counts: Iterable[tuple[Sequence[str], int]], **common: str) -> list[dict[str, Any]]:
    """Counts of answers by what their replies named, in an order of their own; empty where no reply named anything.

    Args:
        counts: what replies named, in the order of `NAMED`, and how many answers did so.
        common: what all have in common.
    """
    named = sorted((tuple(names), answers) for names, answers in counts)
    if not any(any(names) for names, _ in named):
        return []
    return [{**common, **dict(zip(_KEYS, names, strict=True)), "answers": answers} for names, answers in named]


def differing(served: Iterable[Mapping[str, Any]]) -> bool:
    """Whether answers were served by more than one; what a reply did not name differs from nothing."""
    entries = list(served)
    return any(len({entry[key] for entry in entries if entry[key]}) > 1 for key in _KEYS)
