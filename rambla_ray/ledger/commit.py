"""Many calls that each want their records on the disk share one commit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class GroupCommit:
    """Commits that many calls share: what is added while one is under way is durable with the next.

    Args:
        commit: makes durable what was added before it was called; runs in a thread.
        gather_s: how long each commit waits for more before it starts, in seconds.
    """

    def __init__(self, commit: Callable[[], None], gather_s: float) -> None:
        self._commit, self._gather_s = commit, gather_s
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def wait(self) -> None:
        """Return when all that was added before this call is durable. Raises what the commit raises."""
        if self._running is not None:
            if self._next is None:
                self._next = asyncio.create_task(self._run_after(self._running))
            await self._next
            return
        self._running = asyncio.create_task(self._run())
        await self._running

    async def _run_after(self, running: asyncio.Task[None]) -> None:
        await asyncio.wait([running])
        self._running, self._next = self._next, None
        await self._run()

    async def _run(self) -> None:
        try:
            await asyncio.sleep(self._gather_s)
            await asyncio.to_thread(self._commit)
        finally:
            if self._running is asyncio.current_task():
                self._running = None
