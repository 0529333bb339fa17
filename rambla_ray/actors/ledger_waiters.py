"""What callers of the ledger service wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rambla_ray.ledger.claims import Claimed


class Waiters:
    """What pending calls wait for: the end of a request that another asks, a suspect's turn, or room in the budget."""

    def __init__(self) -> None:
        self._ends: dict[str, asyncio.Future[bytes | None]] = {}
        self._turn: asyncio.Future[bytes | None] | None = None
        self._room: dict[asyncio.Future[bytes | None], None] = {}  # Who came first is first.

    def end_of(self, request_id: str) -> asyncio.Future[bytes | None]:
        """Done when nobody asks a request any more: with its line, or None when it may be claimed."""
        return self._ends.setdefault(request_id, asyncio.get_running_loop().create_future())

    def turn(self) -> asyncio.Future[bytes | None]:
        """Done, with None, when any request has ended: a suspect may have its turn now, or has had it."""
        self._turn = self._turn or asyncio.get_running_loop().create_future()
        return self._turn

    async def room(self, seconds: float) -> None:
        """Wait until the budget may have room, for so long at most; one at a time is woken, the longest first.

        Whoever then gets what it waited for calls `offer_room`, as there may be room for another.
        """
        future = asyncio.get_running_loop().create_future()
        self._room[future] = None
        try:
            await asyncio.wait_for(future, seconds)
        except TimeoutError:
            self._room.pop(future, None)

    def offer_room(self) -> None:
        """Wake the one that has waited the longest for room in the budget."""
        if self._room:
            future = next(iter(self._room))
            del self._room[future]
            if not future.done():
                future.set_result(None)

    def end(self, request_id: str, line: bytes | None = None) -> None:
        """Wake who waits for a request, and for a turn."""
        self._next_turn()
        future = self._ends.pop(request_id, None)
        if future is not None and not future.done():
            future.set_result(line)

    def wake(self, freed: Sequence[Claimed]) -> None:
        """Wake who waits for any of the requests that are free again, and for a turn."""
        for request_id, _, _ in freed:
            self.end(request_id)
        self._next_turn()

    def _next_turn(self) -> None:
        self.offer_room()
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)
        self._turn = None
