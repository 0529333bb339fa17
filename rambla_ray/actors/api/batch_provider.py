"""What a provider's batch API does, whoever's it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from rambla_ray.actors.api.http import HttpReply
from rambla_ray.ledger.batches import BatchMark


class BatchLine(NamedTuple):
    """A request of a batch: its request_id, and the JSON that would be posted for it live."""

    request_id: str
    body: bytes


class Limits(NamedTuple):
    """How large a batch may be."""

    lines: int
    size: int  # In bytes.


@dataclass(frozen=True, slots=True)
class BatchState:
    """How far a batch is.

    Args:
        word: the provider's word for it.
        is_over: it changes no more, and what it has can be read.
        refused: why the provider took none of it, in one line; empty where it did.
        done: requests that have ended.
        requests: all that are in it; 0 where the provider does not say.
        took_s: how long it took from its creation to its end, by the provider's clock; 0 where it does not say.
        results: where what it has is to be read.
    """

    word: str
    is_over: bool
    refused: str = ""
    done: int = 0
    requests: int = 0
    took_s: float = 0.0
    results: tuple[str, ...] = ()


# Takes a request_id, and the reply that a live call would have got; None where the request was not asked.
Take = Callable[[str, HttpReply | None], None]


class BatchProvider(Protocol):
    """The batch API of one endpoint. Methods raise CallError; those that say so make one attempt."""

    limits: Limits
    keeps_tags: bool  # A batch has its mark's tag there, so that what `find` finds is that batch for certain.

    def size(self, line: BatchLine) -> int:
        """How many bytes a request takes in a batch."""

    async def upload(self, mark: BatchMark, lines: Sequence[BatchLine]) -> str:
        """Bring a batch's input to the provider; returns its name there, empty where it is sent with the creation."""

    async def create(self, mark: BatchMark, lines: Sequence[BatchLine]) -> str:
        """Send for a batch whose input was uploaded; returns the provider's name of it. One attempt."""

    async def find(self, mark: BatchMark) -> str:
        """The provider's name of a batch that was perhaps created; empty where it was not."""

    async def state(self, batch: str) -> BatchState:
        """How far a batch is. One attempt."""

    async def read(self, state: BatchState, take: Take) -> None:
        """Read what a batch that is over has, in any order; a request may come twice."""

    async def cancel(self, batch: str) -> None:
        """Let a batch end as it is. One attempt."""

    async def discard(self, mark: BatchMark, state: BatchState) -> None:
        """Delete what the provider keeps of a batch whose answers are stored, as far as it can be deleted."""
