"""How far a run that may end early asks: no item is asked that is too far beyond those that have been looked at."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

WAIT_S = 1.0  # One call waits for so long before it is made again: the service may have started anew meanwhile.


class Horizon:
    """The place in the run's order up to which items are asked. Nothing is before it until it has moved."""

    def __init__(self) -> None:
        self._end = 0
        self._is_stopped = False
        self._moved: asyncio.Event | None = None

    def move(self, end: int) -> None:
        """Let the items before a place be asked; it never moves back."""
        if end > self._end:
            self._end = end
            self._wake()

    def stop(self) -> None:
        """Let nothing more be asked."""
        self._is_stopped = True
        self._wake()

    def _wake(self) -> None:
        if self._moved is not None:
            self._moved.set()
            self._moved = None

    async def admits(self, place: int) -> bool | None:
        """Whether the items from a place on may be asked; if not, it has waited a while. None once it has stopped."""
        if place >= self._end and not self._is_stopped:
            self._moved = self._moved or asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), WAIT_S)
        return None if self._is_stopped else place < self._end


async def wait_for_turn(service: Any, place: int) -> bool:
    """Wait until items from a place on may be asked; whether they are, and the run is not being stopped.

    Args:
        service: handle of the run's `LedgerService`.
        place: that of the first of them in the run's order.
    """
    while (admitted := await service.admit.remote(place)) is False:
        pass
    return admitted is not None
