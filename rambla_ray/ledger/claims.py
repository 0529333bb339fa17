"""Who asks what in one run: a state machine with no clock, disk or network of its own.

An *owner* is one life of a model actor: its process. It claims a request before it asks it, so that no two ask the
same. When an owner dies, what it was asking is free again, and each of those requests counts one death, because one of
them may have taken the process down. After `SUSPECT` deaths a request is a suspect: it is asked alone in its process,
so that no other shares the blame. After `DEATHS` it is given up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from enum import Enum

SUSPECT = 2  # Deaths after which a request is asked alone in its process.
DEATHS = 3  # Deaths after which a request is given up.
OWNER_SILENT_S = 10.0  # An owner that has not called for so long is held to be dead.

Claimed = tuple[str, str, str]  # A claimed request: its request_id, and the model and role that it is asked for.


class Claim(Enum):
    """What becomes of a claim on a request that has no record yet."""

    GRANTED = "granted"  # The owner asks it now.
    GRANTED_ALONE = "granted alone"  # The same, while its process asks nothing else.
    PENDING = "pending"  # Not now: another (run) asks it, it or another is a suspect, or the budget does not bear it.
    DRAINING = "draining"  # Nothing new is asked any more.
    GIVEN_UP = "given up"  # It is never asked again: too many processes died asking it.


class Claims:
    """The claims of one run. Times are seconds of any clock that does not go back.

    Args:
        deaths: by request_id, how many processes died asking it before this invocation.
        asked_elsewhere: whether another run asks a request.
    """

    def __init__(
        self,
        deaths: Mapping[str, int] | None = None,
        asked_elsewhere: Callable[[str], bool] = lambda request_id: False,
    ) -> None:
        self._deaths = Counter(deaths)
        self._asked_elsewhere = asked_elsewhere
        self._owner_of: dict[str, str] = {}  # request_id → the owner that asks it
        self._asking: dict[str, dict[str, Claimed]] = {}  # owner → what it asks, by request_id
        self._alone: dict[str, str] = {}  # owner → the suspect it asks, or will when nothing else is in flight there
        self._owner_in: dict[str, str] = {}  # Ray's id of a model actor → its latest owner
        self._registered: set[str] = set()
        self._last_call: dict[str, float] = {}  # owner → when it last called
        self._replaced: set[str] = set()  # owners that are known to be dead, because their actor has started again
        self.draining = False

    @property
    def in_flight(self) -> int:
        """How many requests are being asked."""
        return len(self._owner_of)

    def owner_of(self, request_id: str) -> str | None:
        """Who asks a request, if anybody does."""
        return self._owner_of.get(request_id)

    def asked_by(self, owner: str) -> list[str]:
        """The request_ids that an owner asks."""
        return list(self._asking.get(owner, {}))

    def asked_by_others(self, model: str, owners: Container[str]) -> bool:
        """Whether an owner that is none of these asks something of a model."""
        return any(
            model == its_model
            for owner, asking in self._asking.items()
            if owner not in owners
            for _, its_model, _ in asking.values()
        )

    def register(self, owner: str, actor_id: str, now: float) -> str | None:
        """An owner has started; returns the one before it in the same actor, which is dead, if there was any.

        The caller passes that one to `declare_dead`.
        """
        self.heartbeat(owner, now)
        self._registered.add(owner)
        before = self._owner_in.get(actor_id)
        self._owner_in[actor_id] = owner
        if before is None or before == owner:
            return None
        self._replaced.add(before)
        return before

    def heartbeat(self, owner: str, now: float) -> None:
        """An owner has called."""
        self._last_call[owner] = now

    def is_silent(self, owner: str, now: float) -> bool:
        """Whether an owner has not called for so long that it is held to be dead."""
        return now - self._last_call.get(owner, 0.0) > OWNER_SILENT_S

    def silent_owners(self, now: float) -> list[str]:
        """Those who ask something and are silent."""
        return [owner for owner, asking in self._asking.items() if asking and self.is_silent(owner, now)]

    def knows(self, owner: str) -> bool:
        """Whether an owner has registered."""
        return owner in self._registered

    def restore(self, owner: str, request_id: str, model: str, role: str) -> None:
        """An owner asks a request that it was granted before these claims were made, unless another asks it now."""
        if request_id in self._owner_of or owner in self._replaced:
            return
        self._owner_of[request_id] = owner
        self._asking.setdefault(owner, {})[request_id] = (request_id, model, role)
        if self._deaths[request_id] >= SUSPECT:
            self._alone[owner] = request_id

    def claim(self, owner: str, request_id: str, model: str, role: str, *, is_affordable: bool = True) -> Claim:
        """Claim a request that has no record.

        Args:
            owner: who.
            request_id: what.
            model: whom it will ask.
            role: for which role.
            is_affordable: whether the budget bears one more call.
        """
        if request_id in self._owner_of:
            return Claim.PENDING
        if self.draining or owner in self._replaced:  # the dead may still have a call here that waits
            return Claim.DRAINING
        if self._asked_elsewhere(request_id) or not is_affordable:
            return Claim.PENDING
        deaths = self._deaths[request_id]
        if deaths >= DEATHS:
            return Claim.GIVEN_UP
        asking = self._asking.setdefault(owner, {})
        if deaths >= SUSPECT:
            if self._alone.setdefault(owner, request_id) != request_id or asking:
                return Claim.PENDING
        elif owner in self._alone:
            return Claim.PENDING
        self._owner_of[request_id] = owner
        asking[request_id] = (request_id, model, role)
        return Claim.GRANTED_ALONE if owner in self._alone else Claim.GRANTED

    def release(self, owner: str, request_ids: Iterable[str]) -> list[Claimed]:
        """An owner does not ask after all; returns which of these were its own, and are free again."""
        asking = self._asking.get(owner, {})
        released = [asking.pop(request_id) for request_id in request_ids if request_id in asking]
        for request_id, _, _ in released:
            self._free(request_id)
        return released

    def end(self, request_id: str) -> None:
        """A request has an answer or has failed, whoever asked it."""
        self._asking.get(self._owner_of.get(request_id, ""), {}).pop(request_id, None)
        self._free(request_id)

    def declare_dead(self, owner: str) -> list[Claimed]:
        """An owner is dead; returns what it was asking, which counts one death each and is free again."""
        lost = list(self._asking.pop(owner, {}).values())
        self._alone.pop(owner, None)
        for request_id, _, _ in lost:
            self._deaths[request_id] += 1
            self._free(request_id)
        return lost

    def drain(self) -> None:
        """Grant nothing any more."""
        self.draining = True

    def _free(self, request_id: str) -> None:
        """Nobody asks a request any more. If it is a suspect, no owner keeps its process free for it now."""
        self._owner_of.pop(request_id, None)
        for owner in [owner for owner, suspect in self._alone.items() if suspect == request_id]:
            del self._alone[owner]
