"""Which models have answered a run: what an actor asks that gets nothing but 403s."""

from __future__ import annotations

from collections.abc import Mapping

from rambla_ray.actors.model import Answered
from rambla_ray.ledger.spent import Spent


class ModelAnswers:
    """What is known of a run's models by their answers.

    Args:
        spent: by (model, role), what the run has spent so far; it changes while the run goes on.

    Attributes:
        reused: models of which the ledger held an answer that was asked for.
        unanswered: owners that have asked, since none of their requests had an answer.
    """

    def __init__(self, spent: Mapping[tuple[str, str], Spent]) -> None:
        self._spent = spent
        self._before = {key: entry.answered for key, entry in spent.items()}
        self.reused: set[str] = set()
        self.unanswered: set[str] = set()

    def came(self, model: str) -> bool:
        """Whether the model has given an answer in this invocation, in any role."""
        return any(
            entry.answered > self._before.get((name, role), 0)
            for (name, role), entry in self._spent.items()
            if name == model
        )

    def of(self, model: str) -> Answered:
        """Whether the model has answered, now or before."""
        if self.came(model):
            return Answered.NOW
        paid = any(count for (name, _), count in self._before.items() if name == model)
        return Answered.BEFORE if paid or model in self.reused else Answered.NEVER
