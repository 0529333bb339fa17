"""A run's turns among the runs that use one ledger at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

from rambla_ray.actors.ledger_waiters import Waiters
from rambla_ray.ledger.claims import Claims
from rambla_ray.ledger.clock import WakingClock
from rambla_ray.ledger.store import Ledger

RETRY_S = 0.001  # Whoever has the lock holds it for less.
PATIENCE_S = 2.0  # One that holds it for longer is stopped.
LOOK_S = 0.1  # While a call waits for what another run asks, it is looked so often whether that has ended.
STIR_S = 2.0  # A run that asks shows the others so often that it goes on.
WAITS = "another run on this ledger is asking what this one would ask, too: it waits for the answers"
HELD = "another process holds the lock of the ledger, as one that is stopped does: what it asks may be asked twice"


class Turns:
    """Claims are decided in turns: while one run decides, it knows what all others have claimed.

    Args:
        ledger: the run's.
        claims: what the run asks.
        waiters: those that wait for what other runs ask are woken when it has ended.
        notify: shows the user a line.
    """

    def __init__(self, ledger: Ledger, claims: Claims, waiters: Waiters, notify: Callable[[str], None]) -> None:
        self._ledger, self._claims, self._waiters, self._notify = ledger, claims, waiters, notify
        self._watching: asyncio.Task[None] | None = None
        self._watchers = 0  # calls that wait for what another run asks
        self._is_patient = True

    @contextlib.asynccontextmanager
    async def turn(self, request_ids: Iterable[str]) -> AsyncIterator[None]:
        """While inside, which must not wait for anything, no other run claims, and what they wrote is known.

        There is no need for it where none of the requests is free to be claimed.
        """
        if not any(map(self._is_free, request_ids)):
            yield
            return
        await self._lock()
        try:
            self._look()
            yield
        finally:
            self._ledger.others.unlock()

    def _is_free(self, request_id: str) -> bool:
        """Whether a claim might be granted, as far as is known from the last look."""
        return not (
            self._claims.draining
            or self._claims.owner_of(request_id) is not None
            or self._ledger.others.are_asking(request_id)
            or request_id in self._ledger
        )

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """While inside, a call waits for what another run asks."""
        self._watchers += 1
        self._notify(WAITS)
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            self._watchers -= 1

    async def _lock(self) -> None:
        """Get the lock; or go on without it when another holds it for too long, as one that is stopped does.

        That risks to ask what the other asks, which costs a call; to wait would stop this run, too.
        """
        began = time.monotonic()
        while not self._ledger.others.lock():
            if not self._is_patient or time.monotonic() - began > PATIENCE_S:
                self._is_patient = False  # From here on it is tried once for each turn.
                self._notify(HELD)
                return
            await asyncio.sleep(RETRY_S)
        self._is_patient = True
        self._ledger.join()
        if self._ledger.others.note:
            self._notify(self._ledger.others.note)

    def _look(self) -> None:
        for request_id in self._ledger.others.look():
            self._waiters.end(request_id, self._ledger.line(request_id))

    async def _watch(self) -> None:
        while self._watchers:
            await asyncio.sleep(LOOK_S)
            self._look()

    async def beat(self, clock: WakingClock, declare_dead: Callable[[str], None]) -> None:
        """For ever, show other runs that this one goes on; an owner that does not is nothing to wait for.

        Args:
            clock: the one by which owners are silent.
            declare_dead: called with each that is, while there are other runs.
        """
        while True:
            await asyncio.sleep(STIR_S)
            if not self._claims.in_flight:
                continue
            self._ledger.others.stir()
            self._ledger.others.lock()  # To meet those that are new; who cannot have it looks all the same.
            self._look()
            self._ledger.others.unlock()
            if self._ledger.others.are_there:
                for owner in self._claims.silent_owners(clock.now()):
                    declare_dead(owner)
