"""One running engine of vLLM: its processes, from their start to their end, and what it makes of tokens.

Written for vLLM 0.29, the version of constraints-vllm.txt.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from vllm import AsyncEngineArgs, SamplingParams, TokensPrompt
from vllm.exceptions import VLLMClientError
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase

from rambla_ray.actors.local.adapters import Adapter
from rambla_ray.actors.local.usage import LocalUsage
from rambla_ray.actors.local.vllm_host import Host
from rambla_ray.display import folded
from rambla_ray.errors import CallError, ErrorKind

SHUTDOWN_S = 8.0  # The engine's processes have so long to give back what they hold.
GREEDY: Mapping[str, Any] = {"temperature": 0.0}
_ENDS_WHOLE = "Engine core initialization failed"  # vLLM's words where a process of its own has failed.


class RunningEngine:
    """The engine, in processes of its own, which end with this one.

    Args:
        arguments: of vLLM's engine.
        adapters: those that requests may name.
        threads: as many compute on CPUs; None where a GPU does.
        usage: where steps and computed tokens are counted.

    Raises:
        CallError: `load`: it does not start; the message is vLLM's own cause in one line.
    """

    def __init__(
        self, arguments: Mapping[str, Any], adapters: Sequence[Adapter], threads: int | None, usage: LocalUsage
    ) -> None:
        # Without compiled models, what vLLM compiles beside them takes longer than it saves.
        eager = threads is not None and arguments.get("enforce_eager")
        self._host = Host(threads, {"TORCHDYNAMO_DISABLE": "1"} if eager else {})
        self._numbers = itertools.count()
        before = set(multiprocessing.active_children())
        try:
            with self._host.starting():
                self._engine = AsyncLLM.from_engine_args(
                    AsyncEngineArgs(**arguments), stat_loggers=[lambda *_: _Steps(usage)]
                )
        except Exception as error:  # noqa: BLE001 - vLLM's own errors, which differ from version to version
            with self._host.ending():
                reason = self._start_error(error)
            raise CallError(ErrorKind.LOAD, reason) from None
        self._processes = [process for process in multiprocessing.active_children() if process not in before]
        self.longest = int(self._engine.model_config.max_model_len)
        try:
            self._adapters = {adapter: self._request_of(adapter, number) for number, adapter in enumerate(adapters, 1)}
        except ValueError as error:
            self.close()
            raise CallError(ErrorKind.LOAD, f"backend vllm cannot take the adapter: {folded(str(error))}") from None

    def _start_error(self, error: Exception) -> str:
        said = folded(str(error), 300)
        cause = self._host.cause() if _ENDS_WHOLE in said else ""
        return f"vllm: {cause or f'{type(error).__name__}: {said}'}"

    def _request_of(self, adapter: Adapter, number: int) -> LoRARequest:
        """How a request names an adapter. Raises ValueError where vLLM cannot take it."""
        config = self._engine.vllm_config.lora_config
        PEFTHelper.from_local_dir(str(adapter.folder), self.longest).validate_legal(config)
        return LoRARequest(adapter.identity, number, str(adapter.folder))

    async def tokens(
        self, prompt: list[int], adapter: Adapter | None, *, streams: bool, **options: Any
    ) -> AsyncGenerator[list[int], None]:
        """The tokens of an answer: all at its end, or those so far again and again. Left early, the request ends.

        It raises what vLLM does; see `call_error`.
        """
        kind = RequestOutputKind.CUMULATIVE if streams else RequestOutputKind.FINAL_ONLY
        async with aclosing(self._outputs(prompt, adapter, output_kind=kind, **options)) as outputs:
            async for output in outputs:
                yield list(output.outputs[0].token_ids)

    async def next_logprobs(
        self, prompt: list[int], adapter: Adapter | None, tokens: Sequence[int]
    ) -> dict[int, float]:
        """The log-probability of each of some tokens behind a prompt. It raises what vLLM does."""
        asked = {"max_tokens": 1, "logprob_token_ids": list(tokens), "output_kind": RequestOutputKind.FINAL_ONLY}
        found: dict[int, float] = {}
        async with aclosing(self._outputs(prompt, adapter, **GREEDY, **asked)) as outputs:
            async for output in outputs:
                logprobs = output.outputs[0].logprobs[0]
                found = {token: float(logprobs[token].logprob) for token in tokens}
        return found

    async def _outputs(self, prompt: list[int], adapter: Adapter | None, **options: Any) -> AsyncGenerator[Any, None]:
        """What the engine yields for a request."""
        sampling = SamplingParams(**options, detokenize=False)
        lora = self._adapters[adapter] if adapter else None
        request, number = TokensPrompt(prompt_token_ids=prompt), str(next(self._numbers))
        async with aclosing(self._engine.generate(request, sampling, number, lora_request=lora)) as outputs:
            async for output in outputs:
                yield output

    def call_error(self, error: Exception) -> CallError:
        """What it means that vLLM raised this for a request.

        `load`: the engine has died. `bad_request`: a value that vLLM does not take. `internal`: its own fault.
        """
        if isinstance(error, EngineDeadError):
            return self.death()
        is_of_request = isinstance(error, VLLMClientError | ValueError)
        cause = error.__cause__ or error
        reason = folded(str(cause) or type(cause).__name__, 300)
        return CallError(ErrorKind.BAD_REQUEST if is_of_request else ErrorKind.INTERNAL, f"vllm: {reason}")

    @property
    def is_dead(self) -> bool:
        """Whether it cannot answer any more."""
        return bool(self._engine.errored)

    def death(self) -> CallError:
        """That it has died, and why, as far as that is known."""
        codes = [process.exitcode for process in self._processes if process.exitcode]
        ended = f"its process ended with {codes[0]}" if codes else "its own log may say why"
        killed = f"its process was ended by signal {-codes[0]}" if codes and codes[0] < 0 else ended
        return CallError(ErrorKind.LOAD, f"vllm's engine has died: {self._host.cause() or killed}")

    def close(self) -> None:
        """End it, and give back what it holds: memory, shared memory, cores."""
        with self._host.ending():
            self._engine.shutdown(timeout=SHUTDOWN_S)
            self._close_sockets()

    def _close_sockets(self) -> None:
        """Close what vLLM 0.29 leaves open where the event loop that asked it has ended.

        Their context would wait for them when it is collected, and so would this process, wherever it is then.
        """
        resources = self._engine.engine_core.resources
        task = resources.output_queue_task
        if task is not None and task.get_loop().is_closed():
            resources.input_socket.close(linger=0)
            resources.output_socket.close(linger=0)


class _Steps(StatLoggerBase):  # type: ignore[misc] # It is not known to mypy, which is run without vLLM.
    """Counts the engine's steps, each of which is a batch, and the tokens of prompts that it computes."""

    def __init__(self, usage: LocalUsage) -> None:
        self._usage = usage

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        if iteration_stats is not None:
            self._usage.batches += 1
            self._usage.computed_tokens += iteration_stats.prompt_token_stats.computed

    def log_engine_initialized(self) -> None:
        return None
