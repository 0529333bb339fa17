"""vLLM's engine as a backend of a local language model: its own weights, batching and memory, in this actor's GPUs.

Written for vLLM 0.29, the version that needs the torch of constraints.txt.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from rambla_ray.actors.local.usage import LocalUsage, UsageClock
from rambla_ray.config.sections import Pool
from rambla_ray.errors import CallError, ErrorKind

if TYPE_CHECKING:
    from rambla_ray.actors.huggingface import HuggingFaceParams, Prompt

MEMORY_SHARE = 0.9  # of the part of each GPU that is this actor's, for weights and cache
GREEDY: Mapping[str, Any] = {"temperature": 0.0}
OF_A_DRAW = ("temperature", "top_p", "top_k")


class VLLM:
    """The engine, in processes of its own. Prompts are asked one by one, and it forms its batches itself.

    Args:
        params: the model's.
        pool: resources of this actor: one GPU, or as many as the model is spread over.
        generation: what the model does, resolved: a transformers.GenerationConfig.
        dtype: of its weights, by torch's name.
        work: where what was done is counted.
    """

    def __init__(self, params: HuggingFaceParams, pool: Pool, generation: Any, dtype: str, work: LocalUsage) -> None:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

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
                distributed_executor_backend="mp" if gpus > 1 else None,  # this actor has all the GPUs already
                generation_config="vllm",  # nothing is left for the engine to fill in
                disable_log_stats=True,
                **({} if pool.batch_size == "auto" else {"max_num_seqs": pool.batch_size}),
            )
        )
        eos = generation.eos_token_id
        self._ends: list[int] = eos if isinstance(eos, list) else [] if eos is None else [eos]
        self._options = {
            "repetition_penalty": generation.repetition_penalty or 1.0,
            "min_tokens": generation.min_new_tokens or 0,
        }
        self._work = work
        self._numbers = itertools.count()
        self._out = 0
        self._clock = UsageClock(work)
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, job: Prompt) -> None:
        """Answer a prompt; see `BaseHuggingFaceModel.take`."""
        task = self._spawn(self._ask(job))
        if job.done is not None:
            job.done.add_done_callback(lambda done: task.cancel() if done.cancelled() else None)

    async def _ask(self, job: Prompt) -> None:
        self._count(1)
        try:
            job.answer(await self._tokens(job), self._ends)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the engine's own errors, which differ from version to version
            job.error = CallError(ErrorKind.INTERNAL, f"vllm: {type(error).__name__}: {str(error)[:200]}")
            if type(error).__name__ == "EngineDeadError":
                job.error = CallError(ErrorKind.LOAD, "vllm's engine has died; its own log says why")
        finally:
            self._count(-1)
        if job.error is None:
            self._work.requests += 1
            self._work.computed_tokens += job.response.prompt_tokens
        job.tell(self._work)

    async def _tokens(self, job: Prompt) -> list[int]:
        """The tokens that the engine makes of a prompt; leaving the loop early ends the request there."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        stream = job.emit is not None or bool(job.stop)
        drawn: Mapping[str, Any] = GREEDY
        if job.draw is not None:
            drawn = {name: value for name, value in job.draw.options if name in OF_A_DRAW}
            drawn = {**drawn, "seed": job.draw.seed % 2**63}
        sampling = SamplingParams(
            **self._options,
            **drawn,
            max_tokens=job.max_new_tokens,
            ignore_eos=True,  # the end tokens are ours, all of them
            stop_token_ids=self._ends,
            detokenize=False,
            output_kind=RequestOutputKind.CUMULATIVE if stream else RequestOutputKind.FINAL_ONLY,
        )
        made: list[int] = []
        answers = self._engine.generate(TokensPrompt(prompt_token_ids=job.tokens), sampling, str(next(self._numbers)))
        try:
            async for output in answers:
                made = list(output.outputs[0].token_ids)
                if stream and job.wrote(made.copy):
                    break
        finally:
            await answers.aclose()
        return made

    def _count(self, one: int) -> None:
        """Keep the time: busy as long as the engine has a prompt, else idle."""
        before, self._out = self._out, self._out + one
        if not (before and self._out):
            self._clock.count(busy=bool(before))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
