"""Cautions: answers that a limit cut, and scores whose answers more than one model gave, a line for each model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rambla_ray.display import one_line
from rambla_ray.results.served import differing
from rambla_ray.schema import Role

MOST_CELLS = 3  # So many cells are named in a line.
MOST_SERVED = 5  # And so many of those who served.
NAME_CHARS = 60  # What a reply named is cut to so many characters.
_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")  # Where several stand, the first one is sent.
_LOCAL, _LOCAL_LIMIT = "generation_config", "max_new_tokens"


class Limit(NamedTuple):
    """Where a model config says how long an answer may be, as the key in `params`, and its value."""

    key: str
    tokens: int | None


class Place(NamedTuple):
    """A model config in a role."""

    role: str
    config: str


def limits_of(question: Mapping[str, Any]) -> dict[Place, Limit]:
    """The limits of a run's models, from the question in its config.yaml; of those that have one there."""
    configs = {Place(Role.TARGET, name): model for name, model in question.get("targets", {}).items()}
    panels = {role: [model, *model.get("others", ())] for role, model in question.get("roles", {}).items()}
    configs |= {Place(role, one["config_name"]): one["config"] for role, panel in panels.items() for one in panel}
    found = {place: _limit_of(config.get("params", {})) for place, config in configs.items()}
    for role, panel in panels.items():
        names = [one["config_name"] for one in panel]
        found[Place(role, ",".join(names))] = _common({found[Place(role, name)] for name in names})
    return {place: limit for place, limit in found.items() if limit}


def _common(limits: Set[Limit | None]) -> Limit | None:
    """The limit of several models, as far as they have the same."""
    keys, tokens = ({getattr(limit, name, None) for limit in limits} for name in Limit._fields)
    key = keys.pop() if len(keys) == 1 else None
    return Limit(key, tokens.pop() if len(tokens) == 1 else None) if key else None


def _limit_of(params: Mapping[str, Any]) -> Limit | None:
    for key in _LIMITS:
        if params.get(key) is not None:
            return Limit(key, params[key])
    if isinstance(generation := params.get(_LOCAL), Mapping):
        return Limit(f"{_LOCAL}.{_LOCAL_LIMIT}", generation.get(_LOCAL_LIMIT))
    return None


@dataclass(slots=True)
class _Found:
    """What was found of one model in one role, over the cells where it was."""

    who: str
    cells: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    served: Counter[str] = field(default_factory=Counter)

    def where(self) -> str:
        """The cells, those first in which there is most of it."""
        named = [name for name, _ in self.cells.most_common(MOST_CELLS)]
        others = len(self.cells) - len(named)
        return ", ".join([*named, *([f"{others} more"] if others else [])])


def cut_lines(scores: Mapping[str, Any], limits: Mapping[Place, Limit]) -> Iterator[str]:
    """For each model whose limit cut answers, how many of how many, and the key to raise.

    Args:
        scores: what metrics.json holds.
        limits: as `limits_of` gives them.
    """
    found: dict[Place, _Found] = {}
    for cell in scores["cells"]:
        for role, count in _cut_by_role(cell).items():
            one = _found_of(found, scores, cell, role)
            one.cells[_name(cell)] += count
            one.samples += cell["n"]
    for place, one in found.items():
        limit = limits.get(place)
        advice = f"raise {limit.key}" if limit else "let it answer at greater length"
        at = f" at {limit.tokens} tokens" if limit and limit.tokens else ""
        yield f"{one.who}: {advice}: {one.cells.total()} of {one.samples} answers were cut{at} ({one.where()})"


def _cut_by_role(cell: Mapping[str, Any]) -> Mapping[str, int]:
    if by_role := cell.get("cut_by_role"):
        return dict(by_role)
    cut = cell.get("cut")
    return {Role.TARGET: cut["count"]} if cut and cut["count"] else {}


def served_lines(scores: Mapping[str, Any]) -> Iterator[str]:
    """For each model of which more than one served the answers of a cell, who they were."""
    found: dict[Place, _Found] = {}
    for cell in scores["cells"]:
        served = cell.get("served_by", [])
        for role, config in dict.fromkeys((entry["role"], entry.get("config", "")) for entry in served):
            of_role = [entry for entry in served if (entry["role"], entry.get("config", "")) == (role, config)]
            if differing(of_role):
                one = _found_of(found, scores, cell, role, config)
                one.cells[_name(cell)] += 1
                one.served.update({_served_name(entry): entry["answers"] for entry in of_role})
    for one in found.values():
        yield f"{one.who}: its answers came from more than one: {_counted(one.served)} (in {one.where()})"


def _found_of(
    found: dict[Place, _Found], scores: Mapping[str, Any], cell: Mapping[str, Any], role: str, config: str = ""
) -> _Found:
    """What there is already of the model that played a role in a cell: of several judges, of one or of all of them."""
    if role == Role.TARGET:
        return found.setdefault(Place(role, cell.get("config", cell["model"])), _Found(cell["model"]))
    played_by = config or scores["roles"].get(role, "")
    return found.setdefault(Place(role, played_by), _Found(f"the {role}, {played_by}"))


def _name(cell: Mapping[str, Any]) -> str:
    return f"{cell['task']} {cell['variant']}".rstrip()


def _served_name(entry: Mapping[str, Any]) -> str:
    names = (entry["model"], entry["system_fingerprint"], entry["provider"])
    return " ".join(one_line(name, NAME_CHARS) for name in names if name) or "nobody named"


def _counted(served: Counter[str]) -> str:
    ordered: Iterable[tuple[str, int]] = sorted(served.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{name} ({count})" for name, count in ordered]
    return ", ".join([*named[:MOST_SERVED], *([f"{len(named) - MOST_SERVED} more"] if named[MOST_SERVED:] else [])])
