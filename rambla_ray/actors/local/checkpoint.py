"""A HuggingFace checkpoint in an actor: its thread, in which it is loaded and computes, and the way of a request."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Generic

from rambla_ray.actors.local import memory
from rambla_ray.actors.local.askable import check_texts, check_tokens
from rambla_ray.actors.local.batching import BatchingEngine, ModelContext
from rambla_ray.actors.local.checkpoint_params import CheckpointParams
from rambla_ray.actors.local.family import Family
from rambla_ray.actors.local.job import Engine, J
from rambla_ray.actors.local.loading import CheckpointModel
from rambla_ray.actors.local.special_tokens import known_tokens
from rambla_ray.actors.local.usage import LocalUsage
from rambla_ray.actors.model import Emit, Model
from rambla_ray.config.model import ModelParams
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.errors import Draining
from rambla_ray.schema import CallTrace, Request, Response, Try


class BaseHuggingFaceModel(CheckpointModel, Generic[J]):
    """A checkpoint in this actor. A subclass loads it, turns requests into jobs, and runs a batch of jobs.

    `load` is called at once, `load_weights` in the model's thread behind it: answers that the ledger holds already
    do not wait for weights.

    Requests that wait are answered together, in batches that `run` gets; a subclass with another order of its own
    overrides `make_engine`.

    Attributes:
        known_tokens: of how many tokens the model has embeddings, as far as that is known once it is loaded.
    """

    known_tokens: int | None
    _identity: dict[str, object]  # Set by load().
    _engine: Engine[J]  # Set once the weights are loaded.

    def __init__(self, params: CheckpointParams, pool: Pool, rate: Rate | None, family: Family | None = None) -> None:
        super().__init__(params, pool, rate, family)
        self._began = time.monotonic()
        self._thread = family.thread if family else ThreadPoolExecutor(1, thread_name_prefix="model")
        self._draining = False
        self.load()
        if family:
            family.adapters.append(self.adapter)
        else:
            self.start_loading()

    def start_loading(self) -> None:
        """Begin to load the weights, in the model's thread. Those of a family begin once all of it are made."""
        self._loaded = self._thread.submit(self._finish_loading, self._began)

    @classmethod
    def several(cls, params: Mapping[str, ModelParams], pool: Pool, rate: Rate | None) -> dict[str, Model]:
        if len(params) == 1:
            return super().several(params, pool, rate)
        family = Family()
        models = {
            name: cls(own, pool, rate, family) for name, own in params.items() if isinstance(own, CheckpointParams)
        }
        for model in models.values():
            model.start_loading()
        return dict(models)

    @abstractmethod
    def load(self) -> None:
        """Settle what the model is: tokenizer, config, identity. Raises CallError (`load`) when it cannot."""

    def load_weights(self) -> None:
        """Load what is needed to answer, unless `load` has. Raises CallError (`load`)."""
        return None

    @abstractmethod
    def prepare(self, request: Request) -> J:
        """A request as a job: its tokens and limits. Raises CallError (`too_long`, `bad_request`)."""

    def run(self, jobs: list[J]) -> None:
        """Answer the jobs together: set the `response` or the `error` of each. Called in the model's thread.

        Every subclass defines it that does not override `make_engine`.
        """
        raise NotImplementedError

    def make_engine(self) -> Engine[J]:
        """What answers jobs: batches for `run`. Called in the model's thread, once the weights are loaded."""
        return _ModelBatches(self, self.engine_context())

    def engine_context(self) -> ModelContext:
        """What an engine takes from this model."""
        return ModelContext(
            pool=self.pool,
            chip=self.chip,
            usage=self.usage,
            notify=lambda line: self.context.notify(line),
            thread=self._thread,
            **(self.family.terms(self.adapter) if self.family else {}),
        )

    def open(self) -> None:
        self._loaded.result()

    def _finish_loading(self, began: float) -> None:
        with self.loading():
            self.load_weights()
            self.known_tokens = known_tokens(getattr(self, "_model", None), self._config)
            self._engine = self.make_engine()
        self.usage.load_s = time.monotonic() - began

    def identity(self) -> dict[str, object]:
        return self._identity

    def drain(self) -> None:
        self._draining = True
        if self._loaded.done() and self._loaded.exception() is None:
            self._engine.drain()

    def measure(self) -> LocalUsage:
        return replace(self.usage, peak_bytes=memory.peak_bytes(self.chip))

    async def generate(self, request: Request, emit: Emit | None = None) -> Response:
        at, began = time.time(), time.monotonic()
        if self._draining:
            raise Draining
        if not self._loaded.done():
            await asyncio.shield(asyncio.wrap_future(self._loaded))
        self._loaded.result()
        if self._draining:
            raise Draining
        check_texts(request)
        job = self.prepare(request)
        if self.known_tokens:
            check_tokens(job.encodings, self.known_tokens, self._tokenizer)
        job.emit = emit
        job.done = asyncio.get_running_loop().create_future()
        self._engine.submit(job)
        response = await job.done
        took = time.monotonic() - began
        return replace(response, latency_s=took, trace=CallTrace(attempts=1, tries=(Try(at, took),)))


class _ModelBatches(BatchingEngine[J]):
    """Batches that a model's own `run` answers."""

    def __init__(self, model: BaseHuggingFaceModel[J], context: ModelContext) -> None:
        super().__init__(context)
        self._model = model

    def run(self, jobs: list[J]) -> None:
        self._model.run(jobs)
