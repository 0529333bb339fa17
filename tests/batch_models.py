"""Models that ask in batches, on a ledger in a folder of the test, without a cluster."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import openai_models
import pytest
from openai_models import QUICK, Chat, build

from rambla_ray.actors.api import batch_http, batch_queue, batch_run
from rambla_ray.actors.api.batched import BatchedModel
from rambla_ray.actors.api.http_model import HTTPModel
from rambla_ray.actors.model import BatchCounts, RunContext
from rambla_ray.config.sections import Batch, Rate
from rambla_ray.errors import CallError, Draining, ErrorKind
from rambla_ray.ledger.batches import BatchMark
from rambla_ray.ledger.record import Record
from rambla_ray.ledger.store import Ledger
from rambla_ray.schema import Request, Response
from rambla_ray.storage import Folder

RUN, MODEL, ROLE = "run", "m", "target"
ASKED: ContextVar[str] = ContextVar("asked")
ASKERS: list[Asker] = []  # Those of the present test.
only_a_key = openai_models.only_a_key


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Waits that are a second in life are as short as a test's server needs them."""
    monkeypatch.setattr(batch_queue, "QUIET_S", 0.05)
    monkeypatch.setattr(batch_run, "CREATE_PAUSE_S", 0.05)
    monkeypatch.setattr(batch_http, "FIRST_PAUSE_S", 0.01)
    yield
    for asker in ASKERS:
        del asker.book.ledger  # Its file is closed, though those who have it refer to each other.
    ASKERS.clear()


def request_id(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()


class Book:
    """A run's batches, as `BatchBook` has them, on a ledger that is opened here."""

    def __init__(self, folder: Path, run: str = RUN) -> None:
        self.run = run
        self.ledger = Ledger(Folder(str(folder)), run)
        self.asked = ASKED.get
        self.counts: list[BatchCounts] = []
        self.lines: list[bytes] = []
        self.dies_after: int | None = None  # So many lines about batches are written, and then nothing more.

    def new(self, request_ids: Iterable[str]) -> BatchMark:
        return BatchMark.new(self.run, MODEL, request_ids, time.time())

    async def among(self, request_ids: list[str]) -> list[BatchMark]:
        return self.ledger.batches.among(request_ids)

    async def write(self, line: bytes) -> None:
        if self.dies_after is not None and len(self.lines) >= self.dies_after:
            raise ConnectionError("the run is dead")
        self.lines.append(line)
        self.ledger.add_batch(line)

    async def stored(self, request_ids: Iterable[str]) -> None:
        for name in request_ids:
            while self.ledger.line(name) is None and name not in self.ledger._index.tally.failures:
                await asyncio.sleep(0.01)

    def report(self, counts: BatchCounts) -> None:
        self.counts.append(counts)


class Asker:
    """One life of a model actor: a model that asks in batches, and stores what comes as the pool does.

    Args:
        server: the endpoint, or a model of one.
        folder: of the ledger.
        terms: keys of the section `batch`.
    """

    def __init__(self, server: Any, folder: Path, *, kind: type[Any] = Chat, run: str = RUN, **terms: Any) -> None:
        ASKERS.append(self)
        self.book = Book(folder, run)
        self.notes: list[str] = []
        rate = Rate(give_up_after_s=2, timeout_s=5)
        section = Batch(**{"max_wait_s": 60, "poll_s": 0.02, **terms})
        self.model = BatchedModel(server if isinstance(server, HTTPModel) else build(server, kind, rate=rate), section)
        self.model.attach(RunContext(notify=self.notes.append, batches=self.book))

    async def ask_one(self, prompt: str) -> Response | CallError | Draining:
        ASKED.set(request_id(prompt))
        try:
            response = await self.model.generate(Request(prompt))
        except CallError as error:
            if error.kind is not ErrorKind.LOAD:
                self._store(prompt, error_kind=error.kind, error=error.message, call_trace=error.trace)
            return error
        except Draining as stopped:
            return stopped
        self._store(prompt, response=response)
        return response

    def _store(self, prompt: str, **what: Any) -> None:
        self.book.ledger.add([Record(request_id(prompt), self.book.run, MODEL, ROLE, **what).to_line()])

    async def ask_all(self, prompts: Iterable[str]) -> list[Any]:
        ended = await asyncio.gather(*(asyncio.create_task(self.ask_one(prompt)) for prompt in prompts))
        await self.model.settle()
        return list(ended)

    def ask(self, *prompts: str) -> list[Any]:
        """What became of the prompts, asked together: responses and errors."""
        return asyncio.run(self.ask_all(prompts))


__all__ = ["QUICK", "Asker", "Book", "hurried", "only_a_key", "request_id"]
