"""Static batches: which of the jobs that wait run together, and what happens when memory does not suffice."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Generic

from rambla_ray.actors.local.job import J
from rambla_ray.actors.local.usage import LocalUsage, UsageClock
from rambla_ray.config.sections import Pool
from rambla_ray.errors import CallError, Draining, ErrorKind

GATHER_S = 0.02  # The first job of a batch waits this long for others to join it.
BATCH_SIZE = {"cpu": 64, "cuda": 256}  # The most jobs in a batch that fits itself.
BATCH_TOKENS = {"cpu": 4096, "cuda": 131072}  # The most tokens in such a batch, padding and answers included.
# An actor's first batch on a CPU has so few tokens, where many more wait: a full one takes half a minute, and what is
# wrong with all answers shows in the first.
FIRST_TOKENS, OF_MANY_TOKENS = 2048, 8192


@dataclass(frozen=True, slots=True)
class ModelContext:
    """What an engine takes from the model that it runs.

    Args:
        pool: resources and batch size of this actor.
        chip: cpu or cuda.
        usage: where what was done is counted.
        notify: takes a line for the user.
        thread: the model's thread, in which all its computing is done.
        begin: called in that thread before each batch.
        turn: the right to run batches, which models that share their weights have one after the other.
    """

    pool: Pool
    chip: str
    usage: LocalUsage
    notify: Callable[[str], None]
    thread: ThreadPoolExecutor
    begin: Callable[[], None] = lambda: None
    turn: Callable[[], AbstractAsyncContextManager[object]] = nullcontext


class BatchingEngine(ABC, Generic[J]):
    """An engine that answers the jobs that wait in batches, one batch after the other.

    A batch takes the longest jobs first, so that memory trouble shows at once. Those of one batch have their first
    tokens and their length in common, so that little is computed twice and little is padding.

    Attributes:
        batch_size: the most jobs in a batch.
        batch_tokens: the most tokens in a batch, padding and answers included; None for no limit.
    """

    def __init__(self, context: ModelContext) -> None:
        self._context = context
        self._usage = context.usage
        self._clock = UsageClock(context.usage)
        size = context.pool.batch_size
        self.batch_size = BATCH_SIZE[context.chip] if size == "auto" else size
        self.batch_tokens = BATCH_TOKENS[context.chip] if size == "auto" else None
        self._waiting: list[J] = []
        self._runner: asyncio.Task[None] | None = None

    @abstractmethod
    def run(self, jobs: list[J]) -> None:
        """Answer the jobs together: set the `response` or the `error` of each. Called in the model's thread."""

    def submit(self, job: J) -> None:
        self._waiting.append(job)
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run_waiting())

    def drain(self) -> None:
        waiting, self._waiting = self._waiting, []
        for job in waiting:
            if job.done is not None and not job.done.done():
                job.done.set_exception(Draining())

    async def _run_waiting(self) -> None:
        await asyncio.sleep(GATHER_S)
        while self._waiting:
            async with self._context.turn():
                await self._run_those(set(self._waiting))

    async def _run_those(self, jobs: set[J]) -> None:
        """Run batches, of whatever waits, until none of these jobs does: those of others have their turn then."""
        loop = asyncio.get_running_loop()
        while not jobs.isdisjoint(self._waiting) and (batch := self._next_batch()):
            self._clock.count(busy=False)
            await loop.run_in_executor(self._context.thread, self._run_halving, batch)
            self._clock.count(busy=True)
            self._usage.requests += len(batch)
            for job in batch:
                job.resolve(self._usage)

    def _next_batch(self) -> list[J]:
        """Take the longest job that waits, those that begin like it, the next longest, and so on while they fit."""
        self._waiting = [job for job in self._waiting if job.done is None or not job.done.done()]
        candidates = sorted(self._waiting, key=lambda job: len(job.tokens), reverse=True)
        batch: list[J] = []
        most = self._most_tokens()
        width = new = 0
        while candidates:
            beginning = candidates[0].tokens[: max(1, len(candidates[0].tokens) // 2)]
            similar = [job for job in candidates if job.tokens[: len(beginning)] == beginning]
            for job in similar:
                wider, newer = max(width, len(job.tokens)), max(new, job.max_new_tokens)
                too_many = len(batch) >= self.batch_size or (
                    most is not None and (len(batch) + 1) * (wider + newer) > most
                )
                if batch and (too_many or any(member.headroom < newer for member in (*batch, job))):
                    break
                batch.append(job)
                width, new = wider, newer
            else:
                taken = set(similar)
                candidates = [job for job in candidates if job not in taken]
                continue
            break
        taken = set(batch)
        self._waiting = [job for job in self._waiting if job not in taken]
        return batch

    def _most_tokens(self) -> int | None:
        """The most tokens in the next batch; None for no limit."""
        is_first = self.batch_tokens is not None and self._context.chip == "cpu" and self._usage.batches == 0
        if is_first and sum(len(job.tokens) + job.max_new_tokens for job in self._waiting) > OF_MANY_TOKENS:
            return min(FIRST_TOKENS, self.batch_tokens or FIRST_TOKENS)
        return self.batch_tokens

    def _run_halving(self, jobs: list[J]) -> None:
        """Run a batch; when memory does not suffice, run its halves, down to one job."""
        import torch

        self._usage.batches += 1
        try:
            self._context.begin()
            self.run(jobs)
            return
        except (torch.OutOfMemoryError, MemoryError):
            pass  # The halves run below, where nothing holds the failed batch's tensors any more.
        except Exception as error:  # noqa: BLE001 - the batch fails, the actor lives
            out_of_memory_on_cpu = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
            if not out_of_memory_on_cpu:
                for job in jobs:
                    job.error = error
                return
        self._usage.out_of_memory += 1
        if len(jobs) == 1:
            tokens = len(jobs[0].tokens)
            jobs[0].error = CallError(ErrorKind.OUT_OF_MEMORY, f"a prompt of {tokens} tokens alone fills the device")
            return
        if self._context.chip != "cpu":
            torch.cuda.empty_cache()
        half = len(jobs) // 2
        self._shrink(jobs, half)
        self._run_halving(jobs[:half])
        self._run_halving(jobs[half:])

    def _shrink(self, jobs: list[J], half: int) -> None:
        """Keep later batches to half of one that did not fit."""
        if half < self.batch_size:
            self._context.notify(f"a batch of {len(jobs)} did not fit into memory; from now on at most {half} at once")
        self.batch_size = min(half, self.batch_size)
        if self.batch_tokens is not None:
            widest = max(len(job.tokens) + job.max_new_tokens for job in jobs)
            self.batch_tokens = min(self.batch_tokens, half * widest)
