"""vLLM's engine as a backend of a local language model: its own weights, batching and memory."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import aclosing
from typing import Any

from rambla_ray.actors.local.adapters import Adapter
from rambla_ray.actors.local.batching import ModelContext
from rambla_ray.actors.local.job import Choices, LanguageJob, Prompt, end_tokens
from rambla_ray.actors.local.usage import UsageClock
from rambla_ray.actors.local.vllm_engine import GREEDY, RunningEngine

DRAW_OPTIONS = ("temperature", "top_p", "top_k")  # The options of a draw that vLLM takes.


class VLLM:
    """A model on a running engine. The engine gets prompts one by one, and forms its batches itself.

    Args:
        engine: which models that differ in their adapters alone share.
        adapter: of this model.
        generation: what the model does, resolved: a transformers.GenerationConfig.
        context: of the model's actor.
    """

    def __init__(self, engine: RunningEngine, adapter: Adapter | None, generation: Any, context: ModelContext) -> None:
        self.engine = engine
        self._adapter = adapter
        self._end_tokens = end_tokens(generation.eos_token_id)
        self._penalty = generation.repetition_penalty or 1.0
        self._shortest = generation.min_new_tokens or 0
        self._usage = context.usage
        self._running = 0
        self._clock = UsageClock(context.usage)
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, job: LanguageJob) -> None:
        task = self._spawn(self._answer(job))
        if job.done is not None:
            job.done.add_done_callback(lambda done: task.cancel() if done.cancelled() else None)

    def drain(self) -> None:
        """Nothing happens: the engine has every prompt already."""

    async def _answer(self, job: LanguageJob) -> None:
        self._count(1)
        try:
            if isinstance(job, Choices):
                job.set_logprobs(await self._likelihoods(job))
            else:
                job.set_response(await self._generate(job), self._end_tokens)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the engine's own errors, which differ from version to version
            job.error = self.engine.call_error(error)
        finally:
            self._count(-1)
        if job.error is None:
            self._usage.requests += 1
        job.resolve(self._usage)

    async def _generate(self, job: Prompt) -> list[int]:
        """The tokens that the engine makes of a prompt; leaving the loop early ends the request there."""
        streams = job.emit is not None or bool(job.stop)
        draw: Mapping[str, Any] = GREEDY
        if job.draw is not None:
            draw = {name: value for name, value in job.draw.options if name in DRAW_OPTIONS}
            draw = {**draw, "seed": job.draw.seed % 2**63}
        options = {
            **draw,
            "repetition_penalty": self._penalty,
            "min_tokens": min(self._shortest, job.max_new_tokens),
            "max_tokens": job.max_new_tokens,
            "ignore_eos": True,  # All end tokens are in stop_token_ids.
            "stop_token_ids": self._end_tokens,
        }
        tokens: list[int] = []
        async with aclosing(self.engine.tokens(job.tokens, self._adapter, streams=streams, **options)) as answers:
            async for tokens in answers:
                if streams and job.on_token(tokens.copy):
                    break
        return tokens

    async def _likelihoods(self, job: Choices) -> list[float]:
        """The log-probability of each continuation.

        Each beginning that rows have in common is asked once for all tokens that follow it. The shortest one, which
        holds the prompt, is asked first: the others find it in the engine's cache of prefixes.
        """
        following: dict[tuple[int, ...], list[int]] = {}
        for row, scored in zip(job.rows, job.scored, strict=True):
            for place in range(len(row) - scored, len(row)):
                tokens = following.setdefault(tuple(row[:place]), [])
                if row[place] not in tokens:
                    tokens.append(row[place])
        first, *others = sorted(following, key=len)
        found = {first: await self._next(first, following)}
        found |= dict(
            zip(others, await asyncio.gather(*(self._next(each, following) for each in others)), strict=True)
        )
        return [
            sum(found[tuple(row[:place])][row[place]] for place in range(len(row) - scored, len(row)))
            for row, scored in zip(job.rows, job.scored, strict=True)
        ]

    async def _next(
        self, beginning: tuple[int, ...], following: Mapping[tuple[int, ...], list[int]]
    ) -> dict[int, float]:
        return await self.engine.next_logprobs(list(beginning), self._adapter, following[beginning])

    def _count(self, change: int) -> None:
        """Count the engine's prompts and its time: busy as long as it has a prompt, else idle."""
        before, self._running = self._running, self._running + change
        if not (before and self._running):
            self._clock.count(busy=bool(before))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
