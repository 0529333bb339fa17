"""Continuous batching with transformers: prompts join and leave the running batch one by one.

Keys and values are kept in pages; prompts that begin alike share theirs.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import math
import threading
import time
from functools import partial
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig

from rambla_ray.actors.local.batching import ModelContext
from rambla_ray.actors.local.job import NOT_A_NUMBER, LanguageJob, Prompt, end_tokens
from rambla_ray.actors.local.usage import UsageClock
from rambla_ray.errors import CallError, ErrorKind

CPU_CACHE_TOKENS = 16384  # The tokens that the cache holds on a CPU.
PAGE_TOKENS = 32  # The size of a page on a CPU; a GPU's kernels have one of their own.
STEP_TOKENS = 512  # The tokens that a CPU computes together.
MEMORY_SHARE = 0.8  # The cache's part of the GPU memory that the model left free.
TRIES = 4  # A prompt fails when this many batches broke while it was in them; each was smaller than the one before.
NO_PROBABILITIES = "probability tensor contains either"  # torch's words where it shall draw by what is no number.
logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)  # What breaks is the outcome of a request.


class Continuous:
    """A running batch, kept by transformers' manager in a thread of its own.

    When it runs out of memory, the prompts in it run again in a batch half as large. When it breaks otherwise, they
    fail, and a new batch takes those that come later.

    Where a prompt's numbers are none, those of its neighbours become so, too: what a mask hides is multiplied by zero,
    which makes no number of NaN. So all that were in the batch run again, in halves of which each has a cache of its
    own, until a prompt that has no numbers is alone and fails.

    Args:
        model: the loaded model.
        generation: what it does, resolved.
        context: of the model's actor; `batch_size` is the most prompts in the batch, auto for as many as fit.
        memory_share: the part of the GPU's memory that is this actor's.
    """

    def __init__(self, model: Any, generation: GenerationConfig, context: ModelContext, memory_share: float) -> None:
        self._model = model
        self._generation = generation
        self._usage = context.usage
        self._notify = context.notify
        on_cpu = context.chip == "cpu"
        self._cache_tokens = CPU_CACHE_TOKENS if on_cpu else None  # None for as many as fit a GPU.
        self._step_tokens = STEP_TOKENS if on_cpu else None
        self._memory_share = MEMORY_SHARE * memory_share
        self._batch_size = None if context.pool.batch_size == "auto" else context.pool.batch_size
        self._numbers = itertools.count()
        self._manager: Any = None
        self._running: dict[Prompt, str] = {}  # The prompts that the manager has, and their names there.
        self._apart: list[list[Prompt]] = []  # Groups that are to run one after another, as a prompt had no numbers.
        self._is_apart = False  # Whether such a group runs.
        self._waiting: list[Prompt] = []  # Prompts that came meanwhile.
        self._tries: dict[Prompt, int] = {}  # For prompts whose batch broke: how often.
        self._earlier_steps = 0  # The steps of managers that have ended.
        self._clock = UsageClock(context.usage)
        self._end_tokens = end_tokens(generation.eos_token_id) or [-1]  # -1 is no token.

    def submit(self, job: LanguageJob) -> None:
        if not isinstance(job, Prompt):
            reason = "backend transformers_continuous gives no likelihoods; backend: transformers does"
            job.refuse(CallError(ErrorKind.LOAD, reason))
            return
        if job.done is not None:
            job.done.add_done_callback(partial(self._drop_cancelled, job))
        if self._is_apart:
            self._waiting.append(job)
        else:
            self._start(job)

    def _start(self, job: Prompt) -> None:
        """Give the manager a prompt."""
        if not self._running:
            self._clock.count(busy=False)
        self._running[job] = name = str(next(self._numbers))
        added = None
        while added is None:
            manager = self._running_manager()
            manager.register_result_handler(name, partial(self._on_output, manager, job, name))
            added = manager.add_request(
                job.tokens,
                request_id=name,
                max_new_tokens=job.max_new_tokens,
                eos_token_id=self._end_tokens,
                streaming=job.emit is not None or bool(job.stop),
            )
            if added is None:  # The manager has broken, and takes no prompts any more.
                self._end(manager)

    def drain(self) -> None:
        """Nothing happens: the manager has every prompt already."""

    def _running_manager(self) -> Any:
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
            max_requests_per_batch=self._batch_size,
            return_logprobs=True,  # They show where a model's numbers are none.
            auto_switch_to_flash=importlib.util.find_spec("flash_attn") is not None,  # Never load code from the hub.
            drop_unsupported_processors=False,
        )
        self._manager = self._model.init_continuous_batching(
            generation_config=self._generation, continuous_batching_config=config
        )
        # The manager starts a thread of its own, which is a daemon if the thread that starts it is one.
        starter = threading.Thread(target=self._manager.start, daemon=True)
        starter.start()
        starter.join()
        return self._manager

    def _on_output(self, manager: Any, job: Prompt, name: str, output: Any) -> None:
        """Take a prompt's tokens so far, or all of them, or why there are none. Called in the event loop."""
        if self._running.get(job) != name:  # The prompt was cancelled, or runs again under another name.
            return
        if output.error is not None and NO_PROBABILITIES not in output.error:
            self._on_failure(manager, job, output.error)
            return
        if output.error is not None or any(map(math.isnan, output.logprobs)):
            self._on_no_numbers(manager)
            return
        stopped = job.on_token(lambda: output.generated_tokens)
        if not stopped and not output.is_finished():
            return
        if not output.is_finished():
            self._cancel(manager, name)
        job.set_response(output.generated_tokens, self._end_tokens)
        self._usage.computed_tokens += job.response.prompt_tokens
        self._remove(job)
        job.resolve(self._usage)

    def _remove(self, job: Prompt) -> None:
        del self._running[job]
        self._tries.pop(job, None)
        self._usage.requests += 1
        self._usage.batches = self._earlier_steps + getattr(self._manager, "current_batch", 0)
        if not self._running:
            self._clock.count(busy=True)
            if self._is_apart:
                self._run_next_group()

    def _drop_cancelled(self, job: Prompt, done: Any) -> None:
        if not done.cancelled():
            return
        if job in self._running:
            self._cancel(self._manager, self._running[job])
            self._remove(job)
        for group in (self._waiting, *self._apart):
            if job in group:
                group.remove(job)

    def _cancel(self, manager: Any, name: str) -> None:
        """Let the manager drop a prompt and its later outputs; it has no way of its own for the latter."""
        manager.cancel_request(name)
        manager.output_router.result_handlers.pop(name, None)
        while manager.get_result(timeout=0) is not None:  # Outputs of prompts that were dropped before.
            pass

    def _end(self, manager: Any) -> None:
        """Wait for the end of a manager that broke, which frees its memory."""
        manager.join(time.perf_counter())
        if manager is self._manager:
            self._earlier_steps, self._manager = self._usage.batches, None

    def _on_no_numbers(self, manager: Any) -> None:
        """Handle that what was computed of a prompt is no number: of itself, or of one that ran beside it."""
        group, self._running = list(self._running), {}
        self._clock.count(busy=True)
        self._stop(manager)
        if self._is_apart and len(group) == 1:
            (job,) = group
            job.error = CallError(ErrorKind.INTERNAL, NOT_A_NUMBER)
            self._tries.pop(job, None)
            self._usage.requests += 1
            job.resolve(self._usage)
        else:
            half = len(group) // 2
            self._apart[:0] = [group[:half], group[half:]]
        self._run_next_group()

    def _run_next_group(self) -> None:
        """Run a group apart, on a cache of its own; once there is none, all that came meanwhile."""
        group: list[Prompt] = []
        while self._apart and not group:
            group = self._apart.pop(0)
        self._is_apart = bool(group)
        if not group:
            group, self._waiting = self._waiting, []
        elif self._manager is not None:
            self._stop(self._manager)
        for job in group:
            self._start(job)

    def _stop(self, manager: Any) -> None:
        """End a manager that may be running."""
        manager.stop(hard_stop=True)
        self._end(manager)

    def _on_failure(self, manager: Any, job: Prompt, error: str) -> None:
        """Handle that a prompt, or the batch that it was in, has failed."""
        tries = self._tries[job] = self._tries.get(job, 0) + 1
        out_of_memory = "out of memory" in error.lower()
        if out_of_memory and tries < TRIES:
            if manager is self._manager:
                self._end(manager)
                self._halve()
            self._start(job)
            return
        if out_of_memory:
            reason = f"a prompt of {len(job.tokens)} tokens fills the device, even in a smaller batch"
            job.error = CallError(ErrorKind.OUT_OF_MEMORY, reason)
        else:
            job.error = CallError(ErrorKind.INTERNAL, f"continuous batching broke: {error[:200]}")
        self._remove(job)
        job.resolve(self._usage)

    def _halve(self) -> None:
        """Give the next manager half of the memory."""
        import torch

        self._usage.out_of_memory += 1
        self._memory_share /= 2
        self._cache_tokens = None if self._cache_tokens is None else self._cache_tokens // 2
        if self._step_tokens is not None:
            self._step_tokens = max(1, self._step_tokens // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._notify("the running batch did not fit into memory; from now on it has half as much")
