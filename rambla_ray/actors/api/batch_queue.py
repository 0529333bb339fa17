"""Requests of one actor on their way into batches, and back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rambla_ray.actors.api.batch_provider import BatchLine, BatchProvider
from rambla_ray.actors.api.batch_run import BatchResult, BatchRun, NotThere, Stage
from rambla_ray.actors.model import BatchBook, BatchCounts
from rambla_ray.config.sections import Batch
from rambla_ray.errors import CallError, Draining, ErrorKind
from rambla_ray.ledger.batches import BatchMark

QUIET_S = 0.4  # A batch is closed when no request has come for so long: what would never come is not waited for.
SETTLE_S = 30.0  # The end of a block waits no longer for batches that are over to be written down and deleted.


class BatchQueue:
    """Gathers requests into batches, attaches to those that are under way, and hands out what came of each request.

    Args:
        provider: whose batches they are.
        book: where they are written down.
        terms: how long one is waited for.
        give_up_after_s: how long a creation is tried.
        notify: shows the user a line.
    """

    def __init__(
        self,
        provider: BatchProvider,
        book: BatchBook,
        terms: Batch,
        give_up_after_s: float,
        notify: Callable[[str], None],
    ) -> None:
        self._provider, self._book, self._terms = provider, book, terms
        self._give_up_after_s, self._notify = give_up_after_s, notify
        self._lines: dict[str, BatchLine] = {}  # What has come and is in no batch yet, by request_id.
        self._size = 0
        self._came = 0.0  # When the last of these came, by the loop's clock.
        self._waiting: dict[str, asyncio.Future[BatchResult]] = {}
        self._bodies: dict[str, BatchLine] = {}  # Of those that wait for a batch that was found.
        self._unclaimed: dict[str, BatchResult] = {}  # Of requests that nobody has asked for yet.
        self._runs: dict[str, BatchRun] = {}  # By tag, those that are not over.
        self._tasks: dict[asyncio.Task[None], BatchRun | None] = {}
        self._gathering: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()
        self._is_draining = False

    async def ask(self, line: BatchLine) -> BatchResult:
        """What becomes of a request in a batch.

        Raises:
            Draining: the run is being stopped; the batch goes on.
            CallError: `load`: the provider has no batches, refuses this one, or cannot be reached.
        """
        if self._is_draining:
            raise Draining
        if line.request_id in self._unclaimed:
            return self._unclaimed.pop(line.request_id)
        future: asyncio.Future[BatchResult] = asyncio.get_running_loop().create_future()
        self._waiting[line.request_id] = future
        self._add(line)
        try:
            return await future
        finally:
            self._waiting.pop(line.request_id, None)
            self._bodies.pop(line.request_id, None)
            self._lines.pop(line.request_id, None)

    async def settle(self) -> None:
        """Wait, though not for long, until batches that have ended are written down as such, and deleted."""
        over = [task for task, run in self._tasks.items() if run is not None and run.stage is Stage.OVER]
        if over:
            await asyncio.wait(over, timeout=SETTLE_S)

    def drain(self) -> None:
        """Whoever waits gets Draining. A batch that is being sent for is still written down as sent."""
        self._is_draining = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Draining())
        going_on = [run for run in self._runs.values() if run.stage is Stage.WAITING]
        if going_on:
            one = "batch goes" if len(going_on) == 1 else "batches go"
            self._notify(f"{len(going_on)} {one} on at the provider; the same command takes the answers from there")
        for task, run in self._tasks.items():
            if run is None or run.stage is not Stage.SENDING:
                task.cancel()

    def _add(self, line: BatchLine) -> None:
        self._lines[line.request_id] = line
        self._size += self._provider.size(line)
        self._came = asyncio.get_running_loop().time()
        if self._gathering is None or self._gathering.done():
            self._gathering = self._spawn(None, self._gather())

    async def _gather(self) -> None:
        """Wait until nothing more comes, or a batch is full, and send what has come."""
        loop, limits = asyncio.get_running_loop(), self._provider.limits
        while (wait_s := self._came + QUIET_S - loop.time()) > 0:
            if len(self._lines) >= limits.lines or self._size >= limits.size:
                break
            await asyncio.sleep(min(wait_s, QUIET_S / 10))
        lines, self._lines, self._size, self._gathering = list(self._lines.values()), {}, 0, None
        await self._guarded([line.request_id for line in lines], self._place(lines))

    async def _place(self, lines: Sequence[BatchLine]) -> None:
        """Attach to the batches that hold some of these requests, and put the others into new ones."""
        marks = await self._book.among([line.request_id for line in lines])
        by_id = {line.request_id: line for line in lines}
        for mark in marks:
            for request_id in by_id.keys() & set(mark.request_ids):
                self._bodies[request_id] = by_id.pop(request_id)
            if mark.tag not in self._runs:
                self._start(mark, ())
        if not by_id:
            return
        for part in self._parts(by_id.values()):
            self._start(self._book.new(line.request_id for line in part), part)

    def _parts(self, lines: Iterable[BatchLine]) -> Iterator[list[BatchLine]]:
        """The lines in as few parts as the limits of a batch allow."""
        part: list[BatchLine] = []
        size, limits = 0, self._provider.limits
        for line in lines:
            line_size = self._provider.size(line)
            if part and (len(part) >= limits.lines or size + line_size > limits.size):
                yield part
                part, size = [], 0
            part.append(line)
            size += line_size
        yield part

    def _start(self, mark: BatchMark, lines: Sequence[BatchLine]) -> None:
        run = self._runs[mark.tag] = BatchRun(
            *(self._provider, self._book, mark, lines, self._terms, self._give_up_after_s),
            *(self._notify, self._report),
        )
        self._spawn(run, self._guarded(mark.request_ids, self._follow(run)))

    async def _follow(self, run: BatchRun) -> None:
        """Hand out what becomes of a batch's requests; those of one that is not there come into another."""
        try:
            async with self._sending:
                if not self._is_draining:
                    await run.begin()
            if self._is_draining:
                return
            self._report()
            results = await run.results()
        except NotThere:
            await run.give_up()
            self._again(run.mark.request_ids)
            return
        finally:
            del self._runs[run.mark.tag]
            self._report()
        if self._hand_out(results):
            await run.close()

    async def _guarded(self, request_ids: Sequence[str], work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody must wait for these requests for ever
            self._fail(request_ids, error)

    def _again(self, request_ids: Iterable[str]) -> None:
        """Put requests whose batch is not there into a new one."""
        for line in [self._bodies.pop(request_id) for request_id in request_ids if request_id in self._bodies]:
            self._add(line)

    def _hand_out(self, results: Mapping[str, BatchResult]) -> bool:
        """Whether all of them were waited for; the others are kept for those who ask later."""
        for request_id, result in results.items():
            future = self._waiting.get(request_id)
            if future is None:
                self._unclaimed[request_id] = result
            elif not future.done():
                future.set_result(result)
        return not results.keys() & self._unclaimed.keys()

    def _fail(self, request_ids: Iterable[str], error: Exception) -> None:
        """Nothing can be known of these requests now: they are asked again, or found, when the run is continued."""
        message = error.message if isinstance(error, CallError) else f"{type(error).__name__}: {error}"
        for request_id in request_ids:
            future = self._waiting.get(request_id)
            if future is not None and not future.done():
                future.set_exception(CallError(ErrorKind.LOAD, f"batch: {message}"))

    def _report(self) -> None:
        states = [(run.state, run.mark.count) for run in self._runs.values() if run.stage is Stage.WAITING]
        done, requests = (sum(state.done for state, _ in states), sum(count for _, count in states))
        self._book.report(BatchCounts(len(states), done, requests))

    def _spawn(self, run: BatchRun | None, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = run
        task.add_done_callback(self._tasks.pop)
        return task
