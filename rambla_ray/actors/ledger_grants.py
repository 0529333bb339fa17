"""Grants of calls: who asks what, within what the budget bears."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from rambla_ray.actors.ledger_budget import BudgetMeter, Holding
from rambla_ray.actors.ledger_costs import Key
from rambla_ray.actors.ledger_waiters import Waiters
from rambla_ray.actors.model import Size
from rambla_ray.ledger.claims import Claim, Claimed, Claims

GRANTED = (Claim.GRANTED, Claim.GRANTED_ALONE)


class Terms(NamedTuple):
    """What an owner learns when it registers."""

    late_s: float  # An answer of its that is not durable after so many seconds is late.
    has_budget: bool  # Its claims are to say what a call may cost.


class Grants:
    """Grants what is claimed when the budget bears it, and holds what it may cost until it has ended.

    Args:
        claims: who asks what.
        meter: what that may cost.
        waiters: who waits for room in the budget.
        stop: stops the run, for a reason in one line.
    """

    def __init__(self, claims: Claims, meter: BudgetMeter, waiters: Waiters, stop: Callable[[str], None]) -> None:
        self._claims, self._meter, self._waiters, self._stop = claims, meter, waiters, stop

    def claim(self, owner: str, request_id: str, key: Key, size: Size) -> Claim:
        """An owner would ask a request that has no record, for a call of such a size."""
        reservation = self._meter.offer(key, size)
        claim = self._claims.claim(owner, request_id, *key, is_affordable=reservation is not None)
        if reservation is None and claim is Claim.PENDING and self._claims.owner_of(request_id) is None:
            claim = self._unless_in_vain(key, size)
        elif reservation is not None and claim in GRANTED:
            self._meter.hold(owner, request_id, key, size, reservation)
        return self._and_next(claim)

    async def reserve(self, owner: str, model: str, holding: Holding, seconds: float) -> Claim:
        """An owner would make another call of a request that it asks: granted, draining, or pending after a while."""
        key, size = (model, holding.role), holding.size
        self._meter.restore(owner, model, holding)
        is_full = self.lacks_room(key, size, is_first=False)
        if is_full and self._unless_in_vain(key, size, is_first=False) is Claim.PENDING:
            await self._waiters.room(seconds)
        reservation = None if self._claims.draining else self._meter.offer(key, size, is_first=False)
        if reservation is None:
            return self._and_next(self._unless_in_vain(key, size, is_first=False))
        self._meter.hold(owner, holding.request_id, key, size, reservation)
        return self._and_next(Claim.GRANTED)

    def lacks_room(self, key: Key, size: Size, *, is_first: bool = True) -> bool:
        """Whether a call is to wait for room in the budget."""
        return not self._claims.draining and self._meter.offer(key, size, is_first=is_first) is None

    def restore(self, owner: str, model: str, holding: Holding) -> None:
        """An owner asks what an earlier life of the service has granted."""
        self._claims.restore(owner, holding.request_id, model, holding.role)
        self._meter.restore(owner, model, holding)

    def release(self, owner: str, request_ids: Iterable[str]) -> list[Claimed]:
        """An owner does not ask after all; returns which of these were its own, and are free again."""
        return self._dropped(owner, self._claims.release(owner, request_ids))

    def declare_dead(self, owner: str) -> list[Claimed]:
        """An owner is dead; returns what it was asking, which is free again."""
        return self._dropped(owner, self._claims.declare_dead(owner))

    def _dropped(self, owner: str, requests: list[Claimed]) -> list[Claimed]:
        for request_id, _, _ in requests:
            self._meter.drop(owner, request_id)
        return requests

    def _unless_in_vain(self, key: Key, size: Size, *, is_first: bool = True) -> Claim:
        """What becomes of a call that the budget does not bear now: it waits; or it never will, and the run stops."""
        if message := self._meter.shortage(key, size, is_first=is_first):
            self._stop(message)
        return Claim.DRAINING if self._claims.draining else Claim.PENDING

    def _and_next(self, claim: Claim) -> Claim:
        """A claim after which there may still be room for the next that waits, or none waits any more."""
        if claim is not Claim.PENDING:
            self._waiters.offer_room()
        return claim
