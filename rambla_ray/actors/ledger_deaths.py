"""Deaths that a run survives: of its ledger service, and of the owners of requests."""

from __future__ import annotations

from dataclasses import dataclass

import ray

from rambla_ray.actors.ledger_batches import RunBatches
from rambla_ray.actors.ledger_board import RunBoard
from rambla_ray.actors.ledger_grants import Grants
from rambla_ray.actors.ledger_records import Records
from rambla_ray.actors.ledger_waiters import Waiters
from rambla_ray.ledger.claims import Claims
from rambla_ray.ledger.record import Kind


def has_died_before() -> bool:
    """Whether this process is another life of the service."""
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return False
    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


@dataclass(frozen=True)
class Deaths:
    """Declares owners dead, and frees what they were asking; see `LedgerService` for the parts."""

    claims: Claims
    grants: Grants
    batches: RunBatches
    records: Records
    waiters: Waiters
    board: RunBoard

    def declare(self, owner: str) -> None:
        """Each request that an owner was asking is free again, and counts one death unless it is in a batch."""
        spared = self.grants.release(owner, filter(self.batches.hold, self.claims.asked_by(owner)))
        lost = self.grants.declare_dead(owner)
        self.batches.forget(owner)
        self.records.note(Kind.RELEASE, spared)
        self.records.note(Kind.DEATH, lost)
        for what, asked in (("what it was asking is asked again", lost), ("its batches go on", spared)):
            for name in {model for _, model, _ in asked}:
                self.board.notify(f"model {name}: an actor died; {what}")
        self.waiters.wake([*lost, *spared])
