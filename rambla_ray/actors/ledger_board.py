"""What a run's user is shown beside its counts: notes, the models that were loaded, and what local ones do."""

from __future__ import annotations

from typing import Any

from rambla_ray.display import counted
from rambla_ray.ledger.record import FORMAT
from rambla_ray.ledger.store import Ledger


class RunBoard:
    """What the actors of a run report beside their records."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, Any]] = {}  # By model, its identity and where its actors are.
        self._usage: dict[str, dict[str, dict[str, float]]] = {}  # By model and owner, what that actor has done.
        self._notes: dict[str, None] = {}  # Its keys are the lines, in the order in which they came first.

    def notify(self, line: str) -> None:
        """Add a line for the user, unless it is there already."""
        self._notes.setdefault(line)

    def notes(self) -> list[str]:
        """The lines for the user."""
        return list(self._notes)

    def describe(self, model: str, identity: dict[str, Any], actor: dict[str, Any]) -> None:
        """Add an actor of a model."""
        self.models.setdefault(model, {"identity": identity, "actors": []})["actors"].append(actor)

    def report_usage(self, owner: str, model: str, usage: dict[str, float]) -> None:
        """Replace what an actor has done so far."""
        self._usage.setdefault(model, {})[owner] = usage

    def usage(self) -> dict[str, list[dict[str, float]]]:
        """By model, what each of its actors has done."""
        return {model: list(actors.values()) for model, actors in self._usage.items()}


def load_notes(ledger: Ledger, location: str) -> list[str]:
    """Lines for the user about records that could not be read."""
    notes = []
    if ledger.damaged:
        notes.append(f"{ledger.damaged} damaged records in the ledger {location} were skipped")
    for number, count in ledger.newer.items():
        notes.append(
            f"skipped in the ledger {location}: {counted(count, 'record')} of format {number}; this version of "
            f"rambla_ray reads formats up to {FORMAT}, a newer one may serve them instead of asking again"
        )
    return notes
