"""A model actor's client to the ledger service of its run."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import ContextVar
from typing import Any

import ray
from ray.exceptions import RayError

from rambla_ray.actors.ledger_batches import BatchBook
from rambla_ray.actors.ledger_budget import Holding
from rambla_ray.actors.ledger_grants import Terms
from rambla_ray.actors.model import NO_SIZE, Answered, RunContext, Size
from rambla_ray.config.labels import ModelNames
from rambla_ray.config.sections import Chaos
from rambla_ray.errors import FATAL, CallError, Draining, NotStored
from rambla_ray.ledger.claims import Claim
from rambla_ray.ledger.record import Record
from rambla_ray.schema import Response

GROUP_S = 0.005  # Claims, and records, are gathered for so long before they are sent together.
HEARTBEAT_S = 1.0  # A client with requests in flight calls the service at least this often.

# The request_id that a task asks: a model knows a request by its text alone, and reports what its calls cost.
_ASKED: ContextVar[str] = ContextVar("asked")


class LedgerClient:
    """One model actor's access to the ledger service.

    Args:
        service: handle of the `LedgerService` actor.
        run_id: the run.
        names: of the model.
        on_stop: called once, when the run is being stopped, or the ledger cannot be reached any more.
        on_durable: called when answers have become durable.
    """

    def __init__(
        self,
        service: Any,
        run_id: str,
        names: ModelNames,
        on_stop: Callable[[], None],
        on_durable: Callable[[], None] = lambda: None,
    ) -> None:
        self._service = service
        self._run_id = run_id
        self._names, self._model = names, names.name
        self._owner = uuid.uuid4().hex
        # request_id, role, what a call may cost, what becomes of it
        self._claims: list[tuple[str, str, Size, asyncio.Future[bytes | Claim]]] = []
        self._lines: list[tuple[bytes, asyncio.Future[None]]] = []
        self._asking: dict[str, Holding] = {}  # what was granted and has not ended, by request_id
        self._is_beating = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_stop, self._on_durable = on_stop, on_durable
        self._unstored: dict[asyncio.Future[None], float] = {}  # answers that are not durable → since when
        self._terms = Terms(late_s=math.inf, has_budget=False)  # until the service has sent its own
        self.draining = False  # the run is being stopped
        # What all lives of it share, which is not the actor alone: that may hold models with a client each.
        self._lives = f"{ray.get_runtime_context().get_actor_id()}/{names.key}"
        self._registered = service.register.remote(self._owner, self._lives)

    def run_context(self, chaos: Chaos) -> RunContext:
        """What a model takes from the run by way of this client, and the faults to inject."""
        return RunContext(
            notify=self.notify,
            chaos=chaos,
            is_held=self.is_late,
            answered=self.answered,
            charge=self.charge,
            reserve=self.reserve,
            batches=BatchBook(
                *(self._service, self._run_id, self._owner, self._model, self._names.key),
                *(self._asking, _ASKED.get),
            ),
        )

    def is_late(self) -> bool:
        """Whether an answer has waited for long to become durable: were this process to die, it would be lost, and
        so would those that more calls bring."""
        since = next(iter(self._unstored.values()), None)
        return since is not None and time.monotonic() - since > self._terms.late_s

    async def claim(self, request_id: str, role: str, size: Size = NO_SIZE) -> Record | bool:
        """The record of a request that was asked already, or a grant: ask it now, and store what comes.

        Args:
            request_id: the request.
            role: who is asked.
            size: what a call may cost.

        Returns:
            A record; or whether the request is alone in this process, because others died asking it.

        Raises:
            Draining: the run is being stopped.
        """
        self._start_heartbeats()
        future: asyncio.Future[bytes | Claim] = asyncio.get_running_loop().create_future()
        self._claims.append((request_id, role, size, future))
        if len(self._claims) == 1:
            self._spawn(self._send_claims())
        claim = await future
        while claim is Claim.PENDING:
            claim = await self._service.wait.remote(self._owner, self._model, request_id, role, size)
        if isinstance(claim, bytes):
            return Record.from_line(claim)
        if claim is Claim.DRAINING:
            self._drain()
            raise Draining
        self._asking[request_id] = Holding(request_id, role, size)
        _ASKED.set(request_id)
        return claim is Claim.GRANTED_ALONE

    async def release(self, request_id: str) -> None:
        """What was granted will not be asked."""
        del self._asking[request_id]
        await self._service.release.remote(self._owner, [request_id])

    async def answered(self) -> Answered:
        """Whether this model has answered the run, once nobody else can still find out; see `RunContext`."""
        known: Answered | None = None
        while known is None:
            try:
                known = await self._service.answered.remote(self._owner, self._model)
            except RayError:  # The service is gone, and with it the run.
                known = Answered.NEVER
        return known

    async def store_answer(self, request_id: str, role: str, response: Response) -> Record:
        """Store an answer; returns its record once it is durable. Raises Draining: the ledger cannot be written."""
        return await self._store(Record(request_id, self._run_id, self._model, role, response, at=time.time()))

    async def store_failure(self, request_id: str, role: str, error: CallError) -> Record:
        """Store that a request ended without an answer; returns its record, or raises, as `store_answer` does."""
        record = Record(
            *(request_id, self._run_id, self._model, role),
            error_kind=error.kind,
            error=error.message,
            call_trace=error.trace,
            at=time.time(),
        )
        if error.kind in FATAL:
            self.stop(error, role)
        return await self._store(record)

    async def _store(self, record: Record) -> Record:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.append((record.to_line(), future))
        if len(self._lines) == 1:
            self._spawn(self._send_lines())
        self._unstored[future] = time.monotonic()
        await future
        del self._asking[record.request_id]
        return record

    def charge(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Report what a call cost that gave no answer, while its request goes on; its record will say so, too.

        It is sent before this returns, so that it arrives before the record, which it is taken off for.
        """
        before = self._asking[_ASKED.get()]
        holding = self._asking[before.request_id] = before._replace(
            calls=max(0, before.calls - 1),
            prompt_tokens=before.prompt_tokens + prompt_tokens,
            completion_tokens=before.completion_tokens + completion_tokens,
        )
        self._spawn(self._drain_if(self._service.charge.remote(self._owner, holding)))

    async def reserve(self) -> bool:
        """Whether the budget bears another call of the request that this task asks; it waits a moment for it.

        Raises:
            Draining: the run is being stopped.
        """
        if not self._terms.has_budget:
            return True
        request_id = _ASKED.get()
        try:
            claim = await self._service.reserve.remote(self._owner, self._model, self._asking[request_id])
        except RayError:  # The service is gone, and with it the run.
            claim = Claim.DRAINING
        if claim is Claim.DRAINING:
            self._drain()
            raise Draining
        if claim is Claim.GRANTED:
            holding = self._asking[request_id]
            self._asking[request_id] = holding._replace(calls=holding.calls + 1)
        return claim is Claim.GRANTED

    async def _drain_if(self, is_stopped: Awaitable[bool]) -> None:
        with contextlib.suppress(RayError):
            if await is_stopped:
                self._drain()

    def stop(self, error: CallError, role: str) -> None:
        """Stop the run: no other call would end better."""
        message = f"model {self._names.label} ({role}) cannot go on: {error.message}"
        self._service.stop.remote(str(error.kind), message)

    def notify(self, line: str) -> None:
        """Show the user a line about this model."""
        self._service.notify.remote(f"model {self._names.label}: {line}")

    def describe(self, identity: dict[str, Any]) -> None:
        """Report what the model is, once it has loaded, and where this actor runs."""
        actor = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "gpus": [str(gpu) for gpu in ray.get_gpu_ids()],
            "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }
        self._service.describe.remote(self._names.key, identity, actor)

    def report_usage(self, usage: Mapping[str, float]) -> None:
        """Report what this actor's model has done since it started."""
        self._service.report_usage.remote(self._owner, self._names.key, dict(usage))

    async def _send_claims(self) -> None:
        await asyncio.sleep(GROUP_S)
        group, self._claims = self._claims, []
        wanted = [(request_id, role) for request_id, role, *_ in group]
        try:
            self._terms = await self._registered
            sizes = [size for _, _, size, _ in group] if self._terms.has_budget else []
            claims = await self._service.claim.remote(self._owner, self._model, wanted, sizes)
        except RayError as error:
            self._fail([future for *_, future in group], error)
            return
        for (*_, future), claim in zip(group, claims, strict=True):
            future.set_result(claim)

    async def _send_lines(self) -> None:
        await asyncio.sleep(GROUP_S)
        group, self._lines = self._lines, []
        try:
            is_stopped = await self._service.store.remote(self._owner, [line for line, _ in group])
        except NotStored:
            self._fail([future for _, future in group], Draining())
            return
        except RayError as error:
            self._fail([future for _, future in group], error)
            return
        if is_stopped:
            self._drain()
        for _, future in group:
            future.set_result(None)
            del self._unstored[future]
        self._on_durable()

    def _fail(self, futures: list[asyncio.Future[Any]], error: RayError | Draining) -> None:
        """The service is gone, as it is when the driver died, or it cannot write: every row that waits gets the error,
        and no answer that comes from now on can be kept."""
        self._drain()
        for future in futures:
            self._unstored.pop(future, None)
            future.set_exception(error)

    def _start_heartbeats(self) -> None:
        if not self._is_beating:
            self._is_beating = True
            self._spawn(self._send_heartbeats())

    async def _send_heartbeats(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if self._asking:
                with contextlib.suppress(RayError):
                    await self._send_heartbeat()

    async def _send_heartbeat(self) -> None:
        is_stopped = await self._service.heartbeat.remote(self._owner)
        if is_stopped is None:  # The service has started again, and does not know what this asks.
            asking = list(self._asking.values())
            self._registered = self._service.register.remote(self._owner, self._lives, self._model, asking)
        elif is_stopped:
            self._drain()

    def _drain(self) -> None:
        """The run is being stopped."""
        if not self.draining:
            self.draining = True
            self._on_stop()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
