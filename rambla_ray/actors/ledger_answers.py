"""Which models have answered a run: what an actor asks that gets nothing but 403s."""

from __future__ import annotations

from collections.abc import Mapping

from rambla_ray.actors.model import Answered
from rambla_ray.ledger.claims import Claims
from rambla_ray.ledger.spent import Spent


class ModelAnswers:
    """What is known of a run's models by their answers.

    Args:
        spent: by (model, role), what the run has spent so far; it changes while the run goes on.
        claims: who asks what.

    Attributes:
        reused: models of which the ledger held an answer that was asked for.
        unanswered: owners that reported that none of their requests has been answered, and have claimed none since.
    """

    def __init__(self, spent: Mapping[tuple[str, str], Spent], claims: Claims) -> None:
        self._spent = spent
        self._claims = claims
        self._before = {key: entry.answered for key, entry in spent.items()}
        self.reused: set[str] = set()
        self.unanswered: set[str] = set()

    def known_to(self, owner: str, model: str) -> Answered | None:
        """What is known to an owner without an answer of its own; None while others that ask may get one."""
        self.unanswered.add(owner)
        if self._came(model):
            return Answered.NOW
        if self._claims.asked_by_others(model, self.unanswered):
            return None
        paid = any(count for (name, _), count in self._before.items() if name == model)
        return Answered.BEFORE if paid or model in self.reused else Answered.NEVER

    def _came(self, model: str) -> bool:
        """Whether the model has given an answer in this invocation, in any role."""
        return any(
            entry.answered > self._before.get((name, role), 0)
            for (name, role), entry in self._spent.items()
            if name == model
        )
