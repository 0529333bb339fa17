"""A run's batches of a provider: what the ledger service holds of them, and a model actor's access to that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rambla_ray.actors.ledger_records import Records
from rambla_ray.actors.model import BatchCounts
from rambla_ray.ledger.batches import BatchMark
from rambla_ray.ledger.store import Ledger

SETTLE_S = 0.1  # It is looked so often whether the answers of a batch are durable.


class RunBatches:
    """The service's part.

    Args:
        ledger: the run's.
        records: what is written into it.
    """

    def __init__(self, ledger: Ledger, records: Records) -> None:
        self._ledger, self._records = ledger, records
        self._counts: dict[str, dict[str, BatchCounts]] = {}  # by model and owner

    async def mark(self, line: bytes) -> None:
        """Take a line about a batch in; returns when it is durable. Raises NotStored."""
        await self._records.mark_batch(line)

    def among(self, request_ids: Iterable[str]) -> list[BatchMark]:
        """The batches, of any run, that hold any of these requests."""
        return self._ledger.batches.among(request_ids)

    def hold(self, request_id: str) -> bool:
        """Whether a request is in a batch: no death of a process is its fault."""
        return request_id in self._ledger.batches

    def report(self, owner: str, model: str, counts: BatchCounts) -> None:
        """Replace what an owner's batches have done."""
        self._counts.setdefault(model, {})[owner] = counts

    def forget(self, owner: str) -> None:
        """An owner is dead; whoever takes its place reports its batches."""
        for of in self._counts.values():
            of.pop(owner, None)

    def describe(self) -> dict[str, BatchCounts]:
        """By model, its batches under way; none of those that have none."""
        totals = {
            model: BatchCounts(*(sum(counts[place] for counts in of.values()) for place in range(3)))
            for model, of in self._counts.items()
        }
        return {model: counts for model, counts in totals.items() if counts.batches}


class BatchBook:
    """An actor's part: it writes down, finds and reports its model's batches.

    Args:
        service: handle of the `LedgerService` actor.
        run_id: the run.
        owner: this life of the actor.
        model: the model config's name.
        key: what the run shows the model under.
        asking: what the actor asks and has not stored, by request_id.
        asked: returns the request_id that the present task asks.
    """

    def __init__(
        self,
        service: Any,
        run_id: str,
        owner: str,
        model: str,
        key: str,
        asking: Mapping[str, object],
        asked: Callable[[], str],
    ) -> None:
        self._service, self._run_id, self._owner = service, run_id, owner
        self._model, self._key = model, key
        self._asking = asking
        self.asked = asked

    def new(self, request_ids: Iterable[str]) -> BatchMark:
        """A batch of these requests, which is not written down yet."""
        return BatchMark.new(self._run_id, self._model, request_ids, time.time())

    async def among(self, request_ids: list[str]) -> list[BatchMark]:
        """The batches that hold any of these requests."""
        marks: list[BatchMark] = await self._service.batches_among.remote(request_ids)
        return marks

    async def write(self, line: bytes) -> None:
        """Store a line about a batch; returns when it is durable. Raises NotStored, and RayError without a service."""
        await self._service.mark_batch.remote(line)

    async def stored(self, request_ids: Iterable[str]) -> None:
        """Wait until the ends of these requests are durable."""
        for request_id in request_ids:
            while request_id in self._asking:
                await asyncio.sleep(SETTLE_S)

    def report(self, counts: BatchCounts) -> None:
        """Show the user what this actor's batches have done."""
        self._service.report_batches.remote(self._owner, self._key, counts)
