"""The ledger as a service of one run: an actor that answers, claims and stores, and each model actor's client to it.

One actor beside the driver reads and writes the folder, so that workers need no shared disk. A request is *claimed*
before it is asked: a second sample with the same request waits for the first one's answer. Calls are grouped, some
milliseconds' worth at a time, and records travel as the lines they are stored as, so that the service costs little
per request.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import ray
from ray.exceptions import RayError

from rambla_ray.config.sections import Budget, Price
from rambla_ray.errors import FATAL, CallError, Draining, ErrorKind
from rambla_ray.ledger.store import Ledger, Record
from rambla_ray.schema import Response
from rambla_ray.storage import Folder

GROUP_S = 0.005  # how long calls are gathered before they are sent together
PART_S = 0.5  # how long records are gathered before a new part in a bucket
OWNER_SILENT_S = 10.0  # after which an owner that said nothing is held to be dead
HEARTBEAT_S = 1.0
LATE_S = 0.1  # after which an answer that is not durable yet keeps its actor from asking more
PART_LATE_S = 2.0  # the same, in a bucket
WAIT_S = 1.0  # how long one call waits for another's answer, before it asks again
DEATHS = 3  # processes that may die asking a request before it is given up
FIRST_CALLS = 8  # that a budget bears at the same time before it is known what a call costs
SUSPECT = 2  # deaths after which a request is asked alone in its process, so that no other shares the blame

# What a claim ends in: a record's line (stored, or failed earlier in this run), or one of these.
YOURS, ALONE, WAIT, DRAINING = "yours", "alone", "wait", "draining"
Claim = bytes | str


class LedgerService:
    """The Ray actor. One per run, on the driver's node.

    Args:
        location: the ledger's folder.
        run_id: the run it serves.
        budget: what the run may spend.
        prices: what models charge, by (model config, role).
    """

    def __init__(
        self, location: str, run_id: str, budget: Budget, prices: Mapping[tuple[str, str], Price | None]
    ) -> None:
        folder = Folder(location)
        self._ledger = Ledger(folder, run_id)
        self._run_id = run_id
        self._budget, self._prices = budget, prices
        self._gather_s, self._late_s = (0.0, LATE_S) if folder.is_local else (PART_S, PART_LATE_S)
        self._failed: dict[str, bytes] = {}  # in this invocation: identical requests share their failure
        self._owner: dict[str, str] = {}  # claimed request_id → who asks it
        self._claims: dict[str, dict[str, tuple[str, str]]] = {}  # owner → what it asks, for which model and role
        self._alone: dict[str, str] = {}  # owner → the suspect it asks, or will when nothing else is out
        self._process: dict[str, str] = {}  # Ray's id of a model actor → its latest owner name
        self._heard: dict[str, float] = {}
        self._dead: set[str] = set()
        self._waiting: dict[str, asyncio.Future[bytes | None]] = {}
        self._turn: asyncio.Future[bytes | None] | None = None  # done when a suspect may have its turn, or has had it
        self._commit: asyncio.Task[None] | None = None
        self._next_commit: asyncio.Task[None] | None = None
        self._models: dict[str, dict[str, Any]] = {}
        self._work: dict[str, dict[str, dict[str, float]]] = {}  # model → owner → what that actor has done
        self._notes: dict[str, None] = {}
        self._stopped: tuple[str, str] | None = None
        if self._ledger.damaged:
            self._notes[f"{self._ledger.damaged} damaged records in the ledger {location} were skipped"] = None
        self._check_budget()
        gc.freeze()  # what is loaded stays

    async def hello(self, owner: str, actor_id: str) -> float:
        """An owner has started. If it is a model actor's second life, what the first one was asking is free again.

        Returns the seconds after which an answer of its that is not durable is late.
        """
        before = self._process.get(actor_id)
        self._process[actor_id] = owner
        self._heard[owner] = time.monotonic()
        if before is not None and before != owner:
            self._dead.add(before)
            self._bury(before)
        return self._late_s

    async def claim(self, owner: str, model: str, wanted: Sequence[tuple[str, str]]) -> list[Claim]:
        """For each (request_id, role): its record's line, or `YOURS` (ask it), `ALONE` (ask it; nothing else is being
        asked in this process), `WAIT` (somebody else is asking it), `DRAINING` (nothing new is asked any more)."""
        self._heard[owner] = time.monotonic()
        claims = [self._claim(owner, model, request_id, role) for request_id, role in wanted]
        granted = [(*one, claim) for one, claim in zip(wanted, claims, strict=True) if claim in (YOURS, ALONE)]
        self._ledger.mark("c", ((request_id, model, role) for request_id, role, _ in granted))
        return claims

    def _claim(self, owner: str, model: str, request_id: str, role: str) -> Claim:
        line = self._ledger.line(request_id) or self._failed.get(request_id)
        if line is not None:
            return line
        if request_id in self._owner:
            return WAIT
        if self._stopped or owner in self._dead:  # the dead may still have a call of `wait` here
            return DRAINING
        if not self._affordable():
            return WAIT
        deaths = self._ledger.deaths[request_id]
        if deaths >= DEATHS:
            return self._give_up(model, request_id, role)
        mine = self._claims.setdefault(owner, {})
        if deaths >= SUSPECT:
            if self._alone.setdefault(owner, request_id) != request_id or mine:
                return WAIT
        elif owner in self._alone:
            return WAIT
        self._owner[request_id] = owner
        mine[request_id] = (model, role)
        return ALONE if owner in self._alone else YOURS

    def _give_up(self, model: str, request_id: str, role: str) -> bytes:
        error = f"the process that asked it died, {DEATHS} times"
        record = Record(request_id, self._run_id, model, role, error_kind=ErrorKind.DIED, error=error, at=time.time())
        self._failed[request_id] = record.to_line()
        self._ledger.add([self._failed[request_id]])
        return self._failed[request_id]

    async def wait(self, owner: str, model: str, request_id: str, role: str) -> Claim:
        """What a request that was not granted ends in; `WAIT` after a while, a grant when whoever asked it died."""
        self._heard[owner] = time.monotonic()
        holder = self._owner.get(request_id)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes | None]
        if holder is not None:
            future = self._waiting.setdefault(request_id, loop.create_future())
        else:  # it, or another in its process, is a suspect and waits for its turn
            self._turn = future = self._turn or loop.create_future()
        try:
            ended = await asyncio.wait_for(asyncio.shield(future), WAIT_S)
        except TimeoutError:
            if holder and time.monotonic() - self._heard.get(holder, 0.0) > OWNER_SILENT_S:
                self._bury(holder)
        else:
            if ended is not None:
                return ended
        (claim,) = await self.claim(owner, model, [(request_id, role)])
        return claim

    async def release(self, owner: str, request_ids: list[str]) -> None:
        """What was granted was not asked after all, and is free again."""
        self._heard[owner] = time.monotonic()
        claims = self._claims.get(owner, {})
        mine = [(request_id, *claims.pop(request_id)) for request_id in request_ids if request_id in claims]
        self._ledger.mark("r", mine)
        for request_id, _, _ in mine:
            self._free(request_id)

    async def store(self, owner: str, lines: list[bytes]) -> bool:
        """Take records in and return when they are durable: whether the run is being stopped."""
        self._heard[owner] = time.monotonic()
        self._ledger.add(lines)
        self._check_budget()
        await self._committed()
        for line in lines:
            self._ended(line)
        return self._stopped is not None

    def _ended(self, line: bytes) -> None:
        request_id = line[11:75].decode()
        if line[9:10] == b"f":
            self._failed[request_id] = line
        self._claims.get(self._owner.get(request_id, ""), {}).pop(request_id, None)
        self._free(request_id, line)

    def _free(self, request_id: str, line: bytes | None = None) -> None:
        """Nobody asks a request any more; whoever waits for it gets its record, or may claim it."""
        self._owner.pop(request_id, None)
        self._next_turn(request_id)
        waiting = self._waiting.pop(request_id, None)
        if waiting and not waiting.done():
            waiting.set_result(line)

    def _next_turn(self, request_id: str = "") -> None:
        """A request has ended: a suspect has had its turn, or may be the next."""
        for other in [owner for owner, suspect in self._alone.items() if suspect == request_id]:
            del self._alone[other]
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)
        self._turn = None

    def _bury(self, owner: str) -> None:
        """An owner is dead: each request it was asking counts one death, and is free again."""
        claims = self._claims.pop(owner, {})
        self._alone.pop(owner, None)
        self._ledger.mark("d", ((request_id, model, role) for request_id, (model, role) in claims.items()))
        for name in {model for model, _ in claims.values()}:
            self._notes.setdefault(f"model {name}: an actor died; what it was asking is asked again")
        for request_id in claims:
            self._free(request_id)
        self._next_turn()

    async def _committed(self) -> None:
        """Return when all that was added is durable. What comes while one commit is under way shares the next."""
        if self._commit is not None:
            if self._next_commit is None:
                self._next_commit = asyncio.create_task(self._commit_after(self._commit))
            await self._next_commit
            return
        self._commit = asyncio.create_task(self._commit_now())
        await self._commit

    async def _commit_after(self, running: asyncio.Task[None]) -> None:
        await asyncio.wait([running])
        self._commit, self._next_commit = self._next_commit, None
        await self._commit_now()

    async def _commit_now(self) -> None:
        try:
            await asyncio.sleep(self._gather_s)
            await asyncio.to_thread(self._ledger.commit)
        finally:
            if self._commit is asyncio.current_task():
                self._commit = None

    def _used(self) -> tuple[int, float]:
        """Tokens and US dollars so far; the latter of models that have a price."""
        spent = self._ledger.spent
        usd = sum(
            price.cost(one.prompt_tokens, one.completion_tokens)
            for who, one in spent.items()
            if (price := self._prices.get(who)) is not None
        )
        return sum(one.prompt_tokens + one.completion_tokens for one in spent.values()), usd

    def _check_budget(self) -> None:
        if not self._budget.is_set or self._stopped:
            return
        tokens, usd = self._used()
        if self._budget.tokens is not None and tokens >= self._budget.tokens:
            self._stopped = ("budget", f"the budget of {self._budget.tokens} tokens is spent ({tokens})")
        if self._budget.usd is not None and usd >= self._budget.usd:
            self._stopped = ("budget", f"the budget of ${self._budget.usd:g} is spent (${usd:.4f})")

    def _affordable(self) -> bool:
        """Whether the budget bears one more call beside those that are out, if they cost what calls have cost so far.

        One alone is always made: that the budget is spent is known only when it is.
        """
        out = len(self._owner)
        if not self._budget.is_set or not out:
            return True
        answered = sum(spent.answered for spent in self._ledger.spent.values())
        if not answered:
            return out < FIRST_CALLS
        tokens, usd = self._used()
        shares = ((tokens, self._budget.tokens), (usd, self._budget.usd))
        return all(used * (1 + (out + 1) / answered) <= whole for used, whole in shares if whole is not None)

    async def stop(self, why: str, message: str) -> None:
        """Let nothing new be asked; the first reason stays.

        Args:
            why: `interrupted`, `budget`, or the kind of error that no other call would escape.
            message: one line for the user.
        """
        self._stopped = self._stopped or (why, message)

    async def alive(self, owner: str) -> bool:
        """A sign of life from an owner that is busy with a long call; whether the run is being stopped."""
        self._heard[owner] = time.monotonic()
        return self._stopped is not None

    async def note(self, line: str) -> None:
        """A line for the user, who sees it once however many actors say it."""
        self._notes.setdefault(line)

    async def describe(self, model: str, identity: dict[str, Any], place: dict[str, Any]) -> None:
        """A model actor has loaded: what it is, and where, for the run directory."""
        self._models.setdefault(model, {"identity": identity, "actors": []})["actors"].append(place)

    async def worked(self, owner: str, model: str, work: dict[str, float]) -> None:
        """What a local model's actor has done since it started."""
        self._work.setdefault(model, {})[owner] = work

    async def progress(self) -> dict[str, Any]:
        """Counts so far: the run's spending over all its invocations, what is in flight, what the models are."""
        tokens, usd = self._used()
        budget = f"{tokens} of {self._budget.tokens} tokens" if self._budget.tokens is not None else ""
        if self._budget.usd is not None:
            budget = f"${usd:.4f} of ${self._budget.usd:g}"
        return {
            "calls": sum(spent.calls for spent in self._ledger.spent.values()),
            "in_flight": len(self._owner),
            "stored": len(self._ledger),
            "spent": [
                {"model": model, "role": role, **asdict(spent)}
                for (model, role), spent in sorted(self._ledger.spent.items())
            ],
            "models": self._models,
            "work": {model: list(actors.values()) for model, actors in self._work.items()},
            "notes": list(self._notes),
            "budget": budget,
            "stopped": self._stopped,
            "pid": os.getpid(),
        }


class LedgerClient:
    """One model actor's access to the ledger service.

    Args:
        service: handle of the `LedgerService` actor.
        run_id: the run.
        model: the model config's name.
        on_stop: called once, when this actor hears that the run is being stopped, or can reach its ledger no more.
        on_durable: called when answers have become durable.
    """

    def __init__(
        self,
        service: Any,
        run_id: str,
        model: str,
        on_stop: Callable[[], None],
        on_durable: Callable[[], None] = lambda: None,
    ) -> None:
        self._service = service
        self._run_id = run_id
        self._model = model
        self._owner = uuid.uuid4().hex
        self._claims: list[tuple[str, str, asyncio.Future[Claim]]] = []
        self._lines: list[tuple[bytes, asyncio.Future[None]]] = []
        self._open = 0
        self._beating = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_stop, self._on_durable = on_stop, on_durable
        self._unstored: dict[asyncio.Future[None], float] = {}  # answers that are not durable → since when
        self._late_s = LATE_S
        self.draining = False  # the run is being stopped
        self._hello = service.hello.remote(self._owner, ray.get_runtime_context().get_actor_id())

    def is_late(self) -> bool:
        """Whether an answer has waited for long to become durable: were this process to die, it would be lost, and
        so would those that more calls bring."""
        since = next(iter(self._unstored.values()), None)
        return since is not None and time.monotonic() - since > self._late_s

    async def claim(self, request_id: str, role: str) -> Record | bool:
        """The record of a request that was asked already, or a grant: ask it now, and then `store` what comes.

        Returns:
            A record; or whether the request is alone in this process, because others died asking it.

        Raises:
            Draining: the run is being stopped.
        """
        self._keep_alive()
        future: asyncio.Future[Claim] = asyncio.get_running_loop().create_future()
        self._claims.append((request_id, role, future))
        if len(self._claims) == 1:
            self._spawn(self._send_claims())
        answer = await future
        while answer == WAIT:
            answer = await self._service.wait.remote(self._owner, self._model, request_id, role)
        if isinstance(answer, bytes):
            return Record.from_line(answer)
        if answer == DRAINING:
            self._hear(True)
            raise Draining
        self._open += 1
        return answer == ALONE

    async def release(self, request_id: str) -> None:
        """What was granted will not be asked."""
        self._open -= 1
        await self._service.release.remote(self._owner, [request_id])

    async def answered(self, request_id: str, role: str, response: Response) -> Record:
        """Store an answer; returns its record once it is durable."""
        return await self._store(Record(request_id, self._run_id, self._model, role, response, at=time.time()))

    async def failed(self, request_id: str, role: str, error: CallError) -> Record:
        """Store that a request ended without an answer; returns its record once it is durable."""
        about: dict[str, Any] = {"error_kind": error.kind, "error": error.message, "call_trace": error.trace}
        about |= {"at": time.time()}
        if error.kind in FATAL:
            self.stop(error, role)
        return await self._store(Record(request_id, self._run_id, self._model, role, **about))

    async def _store(self, record: Record) -> Record:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.append((record.to_line(), future))
        if len(self._lines) == 1:
            self._spawn(self._send_lines())
        self._unstored[future] = time.monotonic()
        await future
        self._open -= 1
        return record

    def stop(self, error: CallError, role: str) -> None:
        """Stop the run: no other call would end better."""
        message = f"model {self._model} ({role}) cannot go on: {error.message}"
        self._service.stop.remote(str(error.kind), message)

    def note(self, line: str) -> None:
        """Tell the user a line."""
        self._service.note.remote(f"model {self._model}: {line}")

    def describe(self, identity: dict[str, Any]) -> None:
        """Tell the run what a model is, once it has loaded, and where this actor runs."""
        place = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "gpus": [str(gpu) for gpu in ray.get_gpu_ids()],
            "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }
        self._service.describe.remote(self._model, identity, place)

    def worked(self, work: Mapping[str, float]) -> None:
        """Tell the run what this actor's model has done so far."""
        self._service.worked.remote(self._owner, self._model, dict(work))

    async def _send_claims(self) -> None:
        await asyncio.sleep(GROUP_S)
        group, self._claims = self._claims, []
        wanted = [(request_id, role) for request_id, role, _ in group]
        try:
            self._late_s = await self._hello
            answers = await self._service.claim.remote(self._owner, self._model, wanted)
        except RayError as error:
            self._lose([future for *_, future in group], error)
            return
        for (*_, future), answer in zip(group, answers, strict=True):
            future.set_result(answer)

    async def _send_lines(self) -> None:
        await asyncio.sleep(GROUP_S)
        group, self._lines = self._lines, []
        try:
            self._hear(await self._service.store.remote(self._owner, [line for line, _ in group]))
        except RayError as error:
            self._lose([future for _, future in group], error)
            return
        for _, future in group:
            future.set_result(None)
            del self._unstored[future]
        self._on_durable()

    def _lose(self, futures: list[asyncio.Future[Any]], error: RayError) -> None:
        """The service is gone, as it is when the driver died, or cannot write: every waiting row must hear of it, and
        no answer that comes from now on can be kept."""
        self._hear(True)
        for future in futures:
            future.set_exception(error)

    def _keep_alive(self) -> None:
        if not self._beating:
            self._beating = True
            self._spawn(self._heartbeat())

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if self._open:
                with contextlib.suppress(RayError):
                    self._hear(await self._service.alive.remote(self._owner))

    def _hear(self, stopped: bool) -> None:
        if stopped and not self.draining:
            self.draining = True
            self._on_stop()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
