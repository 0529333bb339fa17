"""The way to a governor: an actor that is shared by name, or in a process outside of Ray an object of that process."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import weakref
from typing import Any

from rambla_ray.actors.api.governor import Governor, Grant, Report

NAMESPACE = "rambla_ray"
PROTOCOL = 4  # The version of `Governor.exchange`: actors of another version have a governor of their own.
REPLY_S = 20.0  # A governor may take so long to answer; its process has to start first.


class Unreachable(Exception):
    """The governor's actor does not answer."""


_of_this_process: weakref.WeakValueDictionary[str, Governor] = weakref.WeakValueDictionary()


def governor_name(scope: str) -> str:
    """The name of the actor that governs a scope, in `NAMESPACE`."""
    return f"governor-{hashlib.sha256(f'{PROTOCOL} {scope}'.encode()).hexdigest()[:16]}"


class GovernorClient:
    """A model's way to its governor, which is shared by name, and created if there is none.

    In a Ray cluster it is an actor that ends with the client that created it: the others then find, or create, the
    next one, and nothing is left behind. In a process outside of Ray it is an object of that process.

    Args:
        scope: what shares the limits; never holds a key.
    """

    def __init__(self, scope: str) -> None:
        self._name = governor_name(scope)
        self._local: Governor | None = None
        self._actor: Any = None
        ray = sys.modules.get("ray")  # Not imported where nothing else has: that takes a second.
        if ray is not None and ray.is_initialized():
            self._actor = self._find(ray)  # Its process starts while the model loads.

    async def exchange(self, report: Report) -> Grant:
        """Send a report and return what the governor answers. Raises Unreachable."""
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            if self._local is None:
                self._local = _of_this_process.setdefault(self._name, Governor())
            return self._local.exchange(report)
        try:
            if self._actor is None:
                self._actor = self._find(ray)
            async with asyncio.timeout(REPLY_S):
                grant: Grant = await self._actor.exchange.remote(report)
                return grant
        except (TimeoutError, ray.exceptions.RayError) as error:
            self._actor = None
            raise Unreachable(type(error).__name__) from None

    def _find(self, ray: Any) -> Any:
        return (
            ray.remote(Governor)
            .options(
                name=self._name,
                namespace=NAMESPACE,
                get_if_exists=True,
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,
            )
            .remote()
        )
