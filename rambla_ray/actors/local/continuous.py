"""Continuous batching with transformers: prompts join and leave the running batch one by one, their keys and values
are kept in pages, and equal beginnings share theirs."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from transformers import ContinuousBatchingConfig, GenerationConfig

from rambla_ray.actors.local.usage import LocalUsage, UsageClock
from rambla_ray.errors import CallError, ErrorKind

if TYPE_CHECKING:
    from rambla_ray.actors.huggingface import Prompt

PAGE_TOKENS = 32  # of a CPU's cache; a GPU's kernels have a size of their own
STEP_TOKENS = 512  # that a CPU computes together
MEMORY_SHARE = 0.8  # of a GPU's memory that the model left free, for the cache
TRIES = 4  # batches that may break under a prompt, each smaller than the one before
logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)  # what broke is told as an outcome


class Continuous:
    """A running batch, kept by transformers' manager in a thread of its own.

    When it runs out of memory, what it held is asked again in a batch half as large; when it breaks otherwise, what it
    held fails, and a new batch takes what comes.

    Args:
        model: the loaded model.
        generation: what it does, resolved.
        work: where what was done is counted.
        note: takes a line for the user.
        cache_tokens: how many tokens the cache holds; None for what fits a GPU.
        memory_share: the part of the GPU's memory that is this actor's.
        most: prompts in the batch at most; None for as many as fit.
    """

    def __init__(
        self,
        model: Any,
        generation: GenerationConfig,
        work: LocalUsage,
        note: Callable[[str], None],
        cache_tokens: int | None,
        memory_share: float,
        most: int | None,
    ) -> None:
        self._model = model
        self._generation = generation
        self._work = work
        self._note = note
        self._cache_tokens = cache_tokens
        self._memory_share = MEMORY_SHARE * memory_share
        self._most = most
        self._step_tokens = STEP_TOKENS if cache_tokens is not None else None
        self._numbers = itertools.count()
        self._manager: Any = None
        self._out: dict[Prompt, str] = {}  # what the manager has, by its name there
        self._tries: dict[Prompt, int] = {}  # of those that a batch broke under
        self._steps_before = 0  # of managers that have gone
        self._clock = UsageClock(work)
        eos = generation.eos_token_id
        self._ends = eos if isinstance(eos, list) else [-1 if eos is None else eos]

    def take(self, job: Prompt) -> None:
        """Answer a prompt; see `BaseHuggingFaceModel.take`."""
        if not self._out:
            self._clock.count(busy=False)
        if job.done is not None and job not in self._tries:
            job.done.add_done_callback(partial(self._not_needed, job))
        self._out[job] = name = str(next(self._numbers))
        added = None
        while added is None:
            manager = self._running()
            manager.register_result_handler(name, partial(self._came, manager, job, name))
            added = manager.add_request(
                job.tokens,
                request_id=name,
                max_new_tokens=job.max_new_tokens,
                eos_token_id=self._ends,
                streaming=job.emit is not None or bool(job.stop),
            )
            if added is None:  # it is at its end
                self._end(manager)

    def _running(self) -> Any:
        """The manager, started anew if the last one broke."""
        if self._manager is not None and self._manager.is_running():
            return self._manager
        if self._manager is not None:
            self._end(self._manager)
        pages = None if self._cache_tokens is None else max(2, self._cache_tokens // PAGE_TOKENS)
        config = ContinuousBatchingConfig(
            **({"page_size": PAGE_TOKENS, "num_blocks": pages} if pages else {}),
            max_batch_tokens=self._step_tokens,
            max_memory_percent=None if pages else self._memory_share,
            max_requests_per_batch=self._most,
            auto_switch_to_flash=importlib.util.find_spec("flash_attn") is not None,  # never code from the hub
            drop_unsupported_processors=False,
        )
        self._manager = self._model.init_continuous_batching(
            generation_config=self._generation, continuous_batching_config=config
        )
        starter = threading.Thread(target=self._manager.start, daemon=True)  # whose thread then is one, too
        starter.start()
        starter.join()
        return self._manager

    def _came(self, manager: Any, job: Prompt, name: str, output: Any) -> None:
        """A prompt's tokens so far, or all of them, or why there are none. In the event loop."""
        if self._out.get(job) != name:  # it was not needed any more, or is asked again
            return
        if output.error is not None:
            self._broke(manager, job, output.error)
            return
        stopped = job.wrote(lambda: output.generated_tokens)
        if not stopped and not output.is_finished():
            return
        if not output.is_finished():
            self._cancel(manager, name)
        job.answer(output.generated_tokens, self._ends)
        self._work.computed_tokens += job.response.prompt_tokens
        self._forget(job)
        job.tell(self._work)

    def _forget(self, job: Prompt) -> None:
        del self._out[job]
        self._tries.pop(job, None)
        self._work.requests += 1
        self._work.batches = self._steps_before + getattr(self._manager, "current_batch", 0)
        if not self._out:
            self._clock.count(busy=True)

    def _not_needed(self, job: Prompt, done: Any) -> None:
        if done.cancelled() and job in self._out:
            self._cancel(self._manager, self._out[job])
            self._forget(job)

    def _cancel(self, manager: Any, name: str) -> None:
        """Let the manager drop a prompt, and what it still says of it; it has no way of its own for the latter."""
        manager.cancel_request(name)
        manager.output_router.result_handlers.pop(name, None)
        while manager.get_result(timeout=0) is not None:  # of those dropped before
            pass

    def _end(self, manager: Any) -> None:
        """Wait for the end of a manager that broke: what it held is free then."""
        manager.join(time.perf_counter())
        if manager is self._manager:
            self._steps_before, self._manager = self._work.batches, None

    def _broke(self, manager: Any, job: Prompt, error: str) -> None:
        """A prompt, or the batch that it was in, has failed."""
        tries = self._tries[job] = self._tries.get(job, 0) + 1
        too_much = "out of memory" in error.lower()
        if too_much and tries < TRIES:
            if manager is self._manager:
                self._end(manager)
                self._halve()
            self.take(job)
            return
        if too_much:
            reason = f"a prompt of {len(job.tokens)} tokens fills the device, even in a smaller batch"
            job.error = CallError(ErrorKind.OUT_OF_MEMORY, reason)
        else:
            job.error = CallError(ErrorKind.INTERNAL, f"continuous batching broke: {error[:200]}")
        self._forget(job)
        job.tell(self._work)

    def _halve(self) -> None:
        """The next manager gets half of the memory."""
        import torch

        self._work.out_of_memory += 1
        self._memory_share /= 2
        self._cache_tokens = None if self._cache_tokens is None else self._cache_tokens // 2
        if self._step_tokens is not None:
            self._step_tokens = max(1, self._step_tokens // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._note("the running batch did not fit into memory; from now on it has half as much")
