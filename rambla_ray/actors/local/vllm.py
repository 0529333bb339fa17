"""vLLM's engine as a backend of a local language model: its own weights, batching and memory, in this actor's GPUs.

Written for vLLM 0.29, the version that needs the torch of constraints.txt.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Mapping
from typing import Any

from rambla_ray.actors.local.batching import ModelContext
from rambla_ray.actors.local.job import LanguageJob, Prompt, end_tokens
from rambla_ray.actors.local.params import HuggingFaceParams
from rambla_ray.actors.local.usage import UsageClock
from rambla_ray.errors import CallError, ErrorKind

MEMORY_SHARE = 0.9  # The share of this actor's part of each GPU that weights and cache take.
GREEDY: Mapping[str, Any] = {"temperature": 0.0}
DRAW_OPTIONS = ("temperature", "top_p", "top_k")  # The options of a draw that vLLM takes.


class VLLM:
    """The engine, in processes of its own. It gets prompts one by one, and forms its batches itself.

    Args:
        params: the model's.
        generation: what the model does, resolved: a transformers.GenerationConfig.
        dtype: of its weights, by torch's name.
        context: of the model's actor, whose pool has one GPU, or as many as the model is spread over.
    """

    def __init__(self, params: HuggingFaceParams, generation: Any, dtype: str, context: ModelContext) -> None:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        pool = context.pool
        gpus = pool.num_gpus or 0.0
        self._engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=params.model_name,
                tokenizer=params.tokenizer_name,
                revision=params.revision,
                tokenizer_revision=params.revision,
                trust_remote_code=params.trust_remote_code,
                dtype=dtype,
                quantization=params.loading_params.get("quantization"),
                tensor_parallel_size=max(1, int(gpus)),
                gpu_memory_utilization=MEMORY_SHARE * min(1.0, gpus or 1.0),
                distributed_executor_backend="mp" if gpus > 1 else None,  # This actor has all the GPUs already.
                generation_config="vllm",  # Nothing is left for the engine to fill in.
                disable_log_stats=True,
                **({} if pool.batch_size == "auto" else {"max_num_seqs": pool.batch_size}),
            )
        )
        self._end_tokens = end_tokens(generation.eos_token_id)
        self._options = {
            "repetition_penalty": generation.repetition_penalty or 1.0,
            "min_tokens": generation.min_new_tokens or 0,
        }
        self._usage = context.usage
        self._numbers = itertools.count()
        self._running = 0
        self._clock = UsageClock(context.usage)
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, job: LanguageJob) -> None:
        if not isinstance(job, Prompt):
            job.refuse(CallError(ErrorKind.LOAD, "backend vllm gives no likelihoods; backend: transformers does"))
            return
        task = self._spawn(self._answer(job))
        if job.done is not None:
            job.done.add_done_callback(lambda done: task.cancel() if done.cancelled() else None)

    def drain(self) -> None:
        """Nothing happens: the engine has every prompt already."""

    async def _answer(self, job: Prompt) -> None:
        self._count(1)
        try:
            job.set_response(await self._generate(job), self._end_tokens)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the engine's own errors, which differ from version to version
            job.error = CallError(ErrorKind.INTERNAL, f"vllm: {type(error).__name__}: {str(error)[:200]}")
            if type(error).__name__ == "EngineDeadError":
                job.error = CallError(ErrorKind.LOAD, "vllm's engine has died; its own log says why")
        finally:
            self._count(-1)
        if job.error is None:
            self._usage.requests += 1
            self._usage.computed_tokens += job.response.prompt_tokens
        job.resolve(self._usage)

    async def _generate(self, job: Prompt) -> list[int]:
        """The tokens that the engine makes of a prompt; leaving the loop early ends the request there."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        stream = job.emit is not None or bool(job.stop)
        draw: Mapping[str, Any] = GREEDY
        if job.draw is not None:
            draw = {name: value for name, value in job.draw.options if name in DRAW_OPTIONS}
            draw = {**draw, "seed": job.draw.seed % 2**63}
        sampling = SamplingParams(
            **self._options,
            **draw,
            max_tokens=job.max_new_tokens,
            ignore_eos=True,  # All end tokens are in stop_token_ids.
            stop_token_ids=self._end_tokens,
            detokenize=False,
            output_kind=RequestOutputKind.CUMULATIVE if stream else RequestOutputKind.FINAL_ONLY,
        )
        tokens: list[int] = []
        answers = self._engine.generate(TokensPrompt(prompt_token_ids=job.tokens), sampling, str(next(self._numbers)))
        try:
            async for output in answers:
                tokens = list(output.outputs[0].token_ids)
                if stream and job.on_token(tokens.copy):
                    break
        finally:
            await answers.aclose()
        return tokens

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
