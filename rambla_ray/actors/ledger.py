"""The ledger as a service of one run: an actor that answers, claims and stores, and each model actor's client to it.

One actor beside the driver reads and writes the folder, so that workers need no shared disk. A request is *claimed*
before it is asked: a second sample with the same request waits for the first one's answer. Calls are grouped, some
milliseconds' worth at a time, so that the service costs little per request.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Any

import ray
from ray.exceptions import RayError

from rambla_ray.errors import Draining, ErrorKind
from rambla_ray.ledger import Ledger, Record
from rambla_ray.schema import Response
from rambla_ray.storage import Folder

GROUP_S = 0.005  # how long calls are gathered before they are sent together
COMMIT_S = 0.05  # how long records are gathered before one fsync
OWNER_SILENT_S = 10.0  # after which the claims of an owner that said nothing are free again
HEARTBEAT_S = 3.0
WAIT_S = 1.0  # how long one call waits for another's answer, before it asks again

# What a claim ends in: a record (stored, or failed earlier in this run), or one of these.
YOURS, WAIT, DRAINING = "yours", "wait", "draining"
Claim = Record | str


class LedgerService:
    """The Ray actor. One per run, on the driver's node.

    Args:
        location: the ledger's folder.
        run_id: the run it serves.
    """

    def __init__(self, location: str, run_id: str) -> None:
        self._ledger = Ledger(Folder(location), run_id)
        self._failed: dict[str, Record] = {}  # in this invocation: identical requests share their failure
        self._owner: dict[str, str] = {}  # claimed request_id → who asks it
        self._waiting: dict[str, asyncio.Future[Record]] = {}
        self._heard: dict[str, float] = {}
        self._commit: asyncio.Task[None] | None = None
        self._models: dict[str, dict[str, Any]] = {}
        self._asked = 0
        self._draining = False

    async def claim(self, owner: str, request_ids: list[str]) -> list[Claim]:
        """For each request: its record, `YOURS` (ask it), `WAIT` (somebody else is asking it), or `DRAINING`."""
        self._heard[owner] = time.monotonic()
        return [self._claim(owner, request_id) for request_id in request_ids]

    def _claim(self, owner: str, request_id: str) -> Claim:
        response = self._ledger.get(request_id)
        if response is not None:
            return Record(request_id, "", "", "", response)
        if request_id in self._failed:
            return self._failed[request_id]
        if request_id in self._owner:
            return WAIT
        if self._draining:
            return DRAINING
        self._owner[request_id] = owner
        return YOURS

    async def wait(self, owner: str, request_id: str) -> Claim:
        """What a claimed request ends in; `WAIT` after a while, `YOURS` when whoever asked it has died."""
        self._heard[owner] = time.monotonic()
        holder = self._owner.get(request_id)
        if holder is not None:
            future = self._waiting.setdefault(request_id, asyncio.get_running_loop().create_future())
            try:
                return await asyncio.wait_for(asyncio.shield(future), WAIT_S)
            except TimeoutError:
                if time.monotonic() - self._heard.get(holder, 0.0) > OWNER_SILENT_S:
                    self._owner.pop(request_id, None)
        return self._claim(owner, request_id)

    async def store(self, owner: str, records: list[Record]) -> None:
        """Take records in and return when they are durable."""
        self._heard[owner] = time.monotonic()
        self._ledger.add(records)
        self._asked += sum(record.response.attempts if record.response else record.attempts for record in records)
        if self._commit is None or self._commit.done():
            self._commit = asyncio.create_task(self._commit_soon())
        await self._commit
        for record in records:
            if record.response is None:
                self._failed[record.request_id] = record
            self._owner.pop(record.request_id, None)
            waiting = self._waiting.pop(record.request_id, None)
            if waiting and not waiting.done():
                waiting.set_result(record)

    async def _commit_soon(self) -> None:
        await asyncio.sleep(COMMIT_S)
        self._commit = None  # what is added from here on belongs to the next one
        self._ledger.commit()

    async def drain(self, timeout_s: float) -> int:
        """Let nothing new be asked, and wait for what is in flight; returns how many requests are still out."""
        self._draining = True
        deadline = time.monotonic() + timeout_s
        while self._owner and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        self._ledger.commit()
        return len(self._owner)

    async def alive(self, owner: str) -> None:
        """A sign of life from an owner that is busy with a long call."""
        self._heard[owner] = time.monotonic()

    async def describe(self, model: str, identity: dict[str, Any], place: dict[str, Any]) -> None:
        """A model actor has loaded: what it is, and where, for the run directory."""
        self._models.setdefault(model, {"identity": identity, "actors": []})["actors"].append(place)

    async def progress(self) -> dict[str, Any]:
        """Counts so far: calls of this invocation, the run's spending, what the ledger held, what the models are."""
        return {
            "calls": self._asked,
            "in_flight": len(self._owner),
            "stored": len(self._ledger),
            "damaged": self._ledger.damaged,
            "spent": [
                {"model": model, "role": role, **asdict(spent)}
                for (model, role), spent in sorted(self._ledger.spent.items())
            ],
            "models": self._models,
        }


class LedgerClient:
    """One model actor's access to the ledger service.

    Args:
        service: handle of the `LedgerService` actor.
    """

    def __init__(self, service: Any, run_id: str) -> None:
        self._service = service
        self._run_id = run_id
        self._owner = uuid.uuid4().hex
        self._claims: list[tuple[str, asyncio.Future[Claim]]] = []
        self._records: list[tuple[Record, asyncio.Future[None]]] = []
        self._open = 0
        self._beating = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def claim(self, request_id: str) -> Record | None:
        """The record of a request that was asked already, or None: ask it now, and then `store` what comes.

        Raises:
            Draining: the run is being stopped.
        """
        self._keep_alive()
        future: asyncio.Future[Claim] = asyncio.get_running_loop().create_future()
        self._claims.append((request_id, future))
        if len(self._claims) == 1:
            self._spawn(self._send_claims())
        answer = await future
        while answer == WAIT:
            answer = await self._service.wait.remote(self._owner, request_id)
        if isinstance(answer, Record):
            return answer
        if answer == DRAINING:
            raise Draining
        self._open += 1
        return None

    async def store(self, record: Record) -> None:
        """Return when the record is durable."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._records.append((record, future))
        if len(self._records) == 1:
            self._spawn(self._send_records())
        await future
        self._open -= 1

    def answer(self, request_id: str, model: str, role: str, response: Response) -> Record:
        """The record of an answer, in this run."""
        return Record(request_id, self._run_id, model, role, response, at=time.time())

    def failure(self, request_id: str, model: str, role: str, kind: ErrorKind, error: str, attempts: int) -> Record:
        """The record of a request that ended without an answer, in this run."""
        return Record(
            request_id,
            self._run_id,
            model,
            role,
            error_kind=kind,
            error=error,
            attempts=attempts,
            at=time.time(),
        )

    def describe(self, model: str, identity: dict[str, Any]) -> None:
        """Tell the run what a model is, once it has loaded, and where this actor runs."""
        place = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "gpus": [str(gpu) for gpu in ray.get_gpu_ids()],
            "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }
        self._service.describe.remote(model, identity, place)

    async def _send_claims(self) -> None:
        await asyncio.sleep(GROUP_S)
        group, self._claims = self._claims, []
        try:
            answers = await self._service.claim.remote(self._owner, [request_id for request_id, _ in group])
        except RayError as error:  # the service is gone, or cannot write: every waiting row must hear of it
            _fail([future for _, future in group], error)
            return
        for (_, future), answer in zip(group, answers, strict=True):
            future.set_result(answer)

    async def _send_records(self) -> None:
        await asyncio.sleep(GROUP_S)
        group, self._records = self._records, []
        try:
            await self._service.store.remote(self._owner, [record for record, _ in group])
        except RayError as error:  # as above
            _fail([future for _, future in group], error)
            return
        for _, future in group:
            future.set_result(None)

    def _keep_alive(self) -> None:
        if not self._beating:
            self._beating = True
            self._spawn(self._heartbeat())

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if self._open:
                self._service.alive.remote(self._owner)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _fail(futures: list[asyncio.Future[Any]], error: Exception) -> None:
    for future in futures:
        future.set_exception(error)
