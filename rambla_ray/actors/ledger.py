"""The ledger as a service of one run: an actor that grants claims, stores records and holds the budget.

One actor beside the driver reads and writes the folder, so that workers need no shared disk. A request is claimed
before it is asked: a second sample with the same request waits for the first one's answer. Records travel as the lines
they are stored as, so that the service costs little per request.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from rambla_ray.actors.ledger_answers import ModelAnswers
from rambla_ray.actors.ledger_batches import RunBatches
from rambla_ray.actors.ledger_board import RunBoard, load_notes
from rambla_ray.actors.ledger_budget import BudgetMeter, Holding
from rambla_ray.actors.ledger_deaths import Deaths, has_died_before
from rambla_ray.actors.ledger_grants import GRANTED, Grants, Terms
from rambla_ray.actors.ledger_horizon import Horizon
from rambla_ray.actors.ledger_records import Records
from rambla_ray.actors.ledger_turns import Turns
from rambla_ray.actors.ledger_waiters import Waiters
from rambla_ray.actors.model import NO_SIZE, Answered, BatchCounts, Size
from rambla_ray.config.sections import Budget, Price
from rambla_ray.errors import NotStored
from rambla_ray.file_modes import Modes
from rambla_ray.ledger.batches import BatchMark
from rambla_ray.ledger.claims import OWNER_SILENT_S, Claim, Claims
from rambla_ray.ledger.clock import WakingClock
from rambla_ray.ledger.record import Kind, peek
from rambla_ray.ledger.store import Ledger
from rambla_ray.storage import Folder

WAIT_S = 1.0  # One call waits for so long for another's answer, before it claims again.


class LedgerService:
    """The Ray actor. One per run, on the driver's node.

    Args:
        location: the ledger's folder.
        run_id: the run it serves.
        budget: what the run may spend.
        prices: what models charge, by (model config, role).
        modes: the rights to the files that are created there.
        segment: the name of what it writes, which an earlier life of it may have begun.
        clock: the one by which owners and other runs are silent.
        batched: (model config, role) whose requests are sent in batches.
    """

    def __init__(
        self,
        location: str,
        run_id: str,
        budget: Budget,
        prices: Mapping[tuple[str, str], Price | None],
        modes: Modes = Modes(),  # noqa: B008 - it is a constant
        segment: str | None = None,
        clock: WakingClock | None = None,
        batched: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:
        folder = Folder(location, modes)
        self._clock = clock or WakingClock()
        self._ledger = Ledger(folder, run_id, self._clock, segment)
        self._records = Records(folder, self._ledger, run_id, partial(self._stop, "ledger"))
        self._batches = RunBatches(self._ledger, self._records)
        self._meter = BudgetMeter(
            budget, prices, self._ledger.spent, batched, blind_s=OWNER_SILENT_S if has_died_before() else 0
        )
        self._claims = Claims(self._ledger.deaths, self._ledger.others.are_asking)
        self._answers = ModelAnswers(self._ledger.spent, self._claims)
        self._waiters = Waiters()
        self._grants = Grants(self._claims, self._meter, self._waiters, partial(self._stop, "budget"))
        self._board, self._horizon = RunBoard(), Horizon()
        self._turns = Turns(self._ledger, self._claims, self._waiters, self._board.notify)
        self._deaths = Deaths(self._claims, self._grants, self._batches, self._records, self._waiters, self._board)
        self._beating: asyncio.Task[None] | None = None
        self._stopped: tuple[str, str] | None = None
        for note in load_notes(self._ledger, location):
            self._board.notify(note)
        gc.freeze()  # What is loaded stays.

    async def register(self, owner: str, actor_id: str, model: str = "", asking: Sequence[Holding] = ()) -> Terms:
        """An owner has started, or this has. If it is a model actor's second life, what the first asked is free again.

        Args:
            owner: its name, which no other life of an actor has.
            actor_id: of the actor and the model in it, which all its lives share.
            model: the name of its model config.
            asking: what it asks, as it was granted by an earlier life of this service.
        """
        before = self._claims.register(owner, actor_id, self._clock.now())
        if before is not None:
            self._deaths.declare(before)
        for holding in asking:
            if self._records.line(holding.request_id) is None:
                self._grants.restore(owner, model, holding)
        return Terms(self._records.late_s, self._meter.is_set)

    async def claim(
        self, owner: str, model: str, wanted: Sequence[tuple[str, str]], sizes: Sequence[Size] = ()
    ) -> list[bytes | Claim]:
        """For each (request_id, role): the line of its record (an answer, or a failure of this run), or a claim.

        In a run with a budget, `sizes` says of each what a call may cost.
        """
        self._claims.heartbeat(owner, self._clock.now())
        self._beating = self._beating or asyncio.create_task(self._turns.beat(self._clock, self._deaths.declare))
        async with self._turns.turn(
            request_id for request_id, _ in wanted if request_id not in self._records.failures
        ):
            return self._decide(owner, model, wanted, sizes or [NO_SIZE] * len(wanted))

    def _decide(
        self, owner: str, model: str, wanted: Sequence[tuple[str, str]], sizes: Sequence[Size]
    ) -> list[bytes | Claim]:
        claims = [
            self._claim(owner, model, request_id, role, size)
            for (request_id, role), size in zip(wanted, sizes, strict=True)
        ]
        granted = [request for request, claim in zip(wanted, claims, strict=True) if claim in GRANTED]
        if granted:
            self._answers.unanswered.discard(owner)
        try:
            self._records.mark(Kind.CLAIM, ((request_id, model, role) for request_id, role in granted))
        except NotStored:
            self._grants.release(owner, [request_id for request_id, _ in granted])
            return [Claim.DRAINING if claim in GRANTED else claim for claim in claims]
        return claims

    def _claim(self, owner: str, model: str, request_id: str, role: str, size: Size) -> bytes | Claim:
        line = self._records.line(request_id)
        if line is not None:
            if request_id in self._ledger:
                self._answers.reused.add(model)
            return line
        claim = self._grants.claim(owner, request_id, (model, role), size)
        return self._records.give_up(request_id, model, role) if claim is Claim.GIVEN_UP else claim

    async def wait(self, owner: str, model: str, request_id: str, role: str, size: Size = NO_SIZE) -> bytes | Claim:
        """What becomes of a pending claim: its request's line, a grant once that is free, or pending after a while.

        When nobody asks it, it waits for room in the budget, or for a suspect's turn: its own, or that of another in
        its process. An owner that asks it and has not called for too long is declared dead. Another run that asks it
        is watched.
        """
        self._claims.heartbeat(owner, self._clock.now())
        other = self._claims.owner_of(request_id)
        is_elsewhere = self._ledger.others.are_asking(request_id)
        is_asked = other is not None or is_elsewhere
        if not is_asked and self._grants.lacks_room((model, role), size):
            await self._waiters.room(WAIT_S)
            return (await self.claim(owner, model, [(request_id, role)], [size]))[0]
        future = self._waiters.end_of(request_id) if is_asked else self._waiters.turn()
        try:
            with self._turns.watching() if is_elsewhere else contextlib.nullcontext():
                line = await asyncio.wait_for(asyncio.shield(future), WAIT_S)
        except TimeoutError:
            if other is not None and self._claims.is_silent(other, self._clock.now()):
                self._deaths.declare(other)
            line = None
        if line is not None:
            return line
        (claim,) = await self.claim(owner, model, [(request_id, role)], [size])
        return claim

    async def answered(self, owner: str, model: str) -> Answered | None:
        """What `ModelAnswers.known_to` says; None after a while, or once any request has ended: ask again."""
        self._claims.heartbeat(owner, self._clock.now())
        known = self._answers.known_to(owner, model)
        if known is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._waiters.turn()), WAIT_S)
        return known

    async def release(self, owner: str, request_ids: list[str]) -> None:
        """What was granted was not asked after all, and is free again."""
        self._claims.heartbeat(owner, self._clock.now())
        released = self._grants.release(owner, request_ids)
        self._records.note(Kind.RELEASE, released)
        self._waiters.wake(released)

    async def store(self, owner: str, lines: list[bytes]) -> bool:
        """Take records in and return when they are durable: whether the run is being stopped. Raises NotStored."""
        self._claims.heartbeat(owner, self._clock.now())
        try:
            async with self._records.storing(lines):
                self._meter.recorded(owner, lines)
                self._check_budget()
        except NotStored:
            self._lose(owner, lines)
            raise
        for line in lines:
            _, request_id, _ = peek(line)
            self._claims.end(request_id)
            self._waiters.end(request_id, line)
        return self._stopped is not None

    def _lose(self, owner: str, lines: Sequence[bytes]) -> None:
        """Requests whose records could not be stored have ended, and are asked again when the run is continued."""
        for line in lines:
            _, request_id, _ = peek(line)
            self._meter.drop(owner, request_id)
            self._claims.end(request_id)
            self._waiters.end(request_id)

    def _check_budget(self) -> None:
        """Let nothing that waits in a model for its turn be sent once the budget is spent.

        Where nothing is in flight, the next claim stops the run: there may be none, and the run be complete.
        """
        if self._stopped is None and self._meter.in_flight and (message := self._meter.exhausted()):
            self._stop("budget", message)

    def _stop(self, why: str, message: str) -> None:
        if self._stopped is None:
            self._stopped = (why, message)
            self._claims.drain()
            self._waiters.offer_room()
            self._horizon.stop()

    async def stop(self, why: str, message: str) -> None:
        """Let nothing new be asked; the first reason stays.

        Args:
            why: `interrupted`, `lease`, `results`, `budget`, `placement`, `settled`, or an error that no other call
                would escape.
            message: one line for the user.
        """
        self._stop(why, message)

    async def advance(self, place: int) -> None:
        """See `Horizon.move`."""
        self._horizon.move(place)

    async def admit(self, place: int) -> bool | None:
        """See `Horizon.admits`."""
        return await self._horizon.admits(place)

    async def charge(self, owner: str, holding: Holding) -> bool:
        """A call gave no answer and was charged for, while its request goes on; whether the run is being stopped."""
        self._meter.charge(owner, holding)
        self._check_budget()
        self._waiters.offer_room()
        return self._stopped is not None

    async def reserve(self, owner: str, model: str, holding: Holding) -> Claim:
        """Another call of a request that an owner asks: it is granted, draining or, after a while, pending."""
        return await self._grants.reserve(owner, model, holding, WAIT_S)

    async def heartbeat(self, owner: str) -> bool | None:
        """An owner that is busy with a long call is alive; returns whether the run is being stopped, None to an owner
        that is to register: this service has started again."""
        self._claims.heartbeat(owner, self._clock.now())
        return self._stopped is not None if self._claims.knows(owner) else None

    async def notify(self, line: str) -> None:
        """Show the user a line, once however many actors send it."""
        self._board.notify(line)

    async def describe(self, model: str, identity: dict[str, Any], actor: dict[str, Any]) -> None:
        """A model actor has loaded: what the model is, and where the actor runs, for the run directory."""
        self._board.describe(model, identity, actor)

    async def report_usage(self, owner: str, model: str, usage: dict[str, float]) -> None:
        """What a local model's actor has done since it started."""
        self._board.report_usage(owner, model, usage)

    async def mark_batch(self, line: bytes) -> None:
        """Take a line about a provider's batch in; returns when it is durable. Raises NotStored."""
        await self._batches.mark(line)

    async def batches_among(self, request_ids: list[str]) -> list[BatchMark]:
        """The provider's batches that hold any of these requests."""
        return self._batches.among(request_ids)

    async def report_batches(self, owner: str, model: str, counts: BatchCounts) -> None:
        """What the batches that an owner waits for have done."""
        self._batches.report(owner, model, counts)

    async def progress(self) -> dict[str, Any]:
        """Counts so far: the run's spending over all its invocations, what is in flight, what the models are."""
        spent = self._ledger.spent
        return {
            "calls": sum(entry.calls for entry in spent.values()) + self._records.lost.uncounted_calls,
            "in_flight": self._claims.in_flight,
            "stored": len(self._ledger),
            "spent": [{"model": model, "role": role, **asdict(spent[model, role])} for model, role in sorted(spent)],
            "models": self._board.models,
            "work": self._board.usage(),
            "batches": self._batches.describe(),
            "notes": self._board.notes(),
            "budget": self._meter.describe(),
            "stopped": self._stopped and (self._stopped[0], self._records.lost.explain(self._stopped[1])),
            "lost": self._records.lost.describe(),
            "pid": os.getpid(),
        }
