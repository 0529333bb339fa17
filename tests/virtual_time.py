"""An event loop whose clock leaps to the next timer, so that a test of waits takes none, and always the same turns.

Only for tests without sockets and threads: their events would come too late.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from rambla_ray.actors.api.governor import Governor, Grant, Report
from rambla_ray.actors.mock import MockModel
from rambla_ray.schema import Request, Response

T = TypeVar("T")
BEGAN = 1000.0  # A monotonic clock starts anywhere.


class _Leap(selectors.SelectSelector):
    now = BEGAN

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits for something that no timer brings")
        self.now += max(0.0, timeout)
        return super().select(0)


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._leap = _Leap()
        super().__init__(self._leap)

    def time(self) -> float:
        return self._leap.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run, in virtual time."""
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(main)


def now() -> float:
    """Seconds by the running loop's clock."""
    return asyncio.get_running_loop().time()


class LocalClient:
    """The way to a governor of this process, by the clock of the loop that calls first; one for all scopes."""

    def __init__(self, scope: str = "") -> None:
        self.governor: Governor | None = None

    async def exchange(self, report: Report) -> Grant:
        if self.governor is None:
            self.governor = Governor(now)
        return self.governor.exchange(report)


class Timed(MockModel):
    """A mock behind a governor, which notes when its calls begin, and how many are in flight at most."""

    adaptive = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.began: list[float] = []
        self.in_flight = self.most_in_flight = 0

    async def call(self, request: Request) -> Response:
        self.began.append(now())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self.reply(request)
        finally:
            self.in_flight -= 1

    async def reply(self, request: Request) -> Response:
        return await super().call(request)
