"""A model in a pool's actor, asked through the ledger: what it answers is stored before anything else sees it."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from rambla_ray.actors.ledger_client import LedgerClient
from rambla_ray.actors.model import Model, without_lone_surrogates
from rambla_ray.config.labels import ModelNames
from rambla_ray.config.model import ModelConfig
from rambla_ray.config.sections import Batch, Chaos
from rambla_ray.errors import FATAL, CallError, Draining, ErrorKind
from rambla_ray.ledger.record import Record
from rambla_ray.schema import SCORE, Identity, Request, Role, Step
from rambla_ray.scoring.likelihoods import probabilities
from rambla_ray.tasks import prompts
from rambla_ray.tasks.stages import Generate


class AskedModel:
    """One model of an actor. It never raises for a request but when the run is being stopped: a failure is a step.

    Args:
        names: of the model.
        config: the model config, its pool settled.
        ledger: handle of the run's `LedgerService`.
        run_id: the run.
        chaos: faults to inject.
    """

    def __init__(self, names: ModelNames, config: ModelConfig, ledger: Any, run_id: str, chaos: Chaos) -> None:
        self.config = config
        self.ledger = LedgerClient(ledger, run_id, names, self._drain, self._resume)
        self._name = names.name
        self._chaos = chaos
        self._granted = 0  # As many requests this actor was the one to ask.
        self._model: Model | None = None
        self._load_error: CallError | None = None  # It says why the model cannot be asked.

    @property
    def scores(self) -> bool:
        """Whether it says how alike the two texts of a request are."""
        return self.config.params.produces == SCORE

    @property
    def is_untried(self) -> bool:
        """Whether nobody has tried to load the model."""
        return self._model is None and self._load_error is None

    def attach(self, model: Model) -> None:
        """Answer with a model from now on. Raises CallError where it cannot be asked."""
        self._model = _batched(model, self.config.batch) if self.config.batch else model
        self._model.attach(self.ledger.run_context(self._chaos))
        identity = self._model.identity()
        self._identity = Identity(identity)
        self.ledger.describe(self.config.stored_identity(identity))
        self.report_usage()

    def fail(self, error: CallError) -> None:
        """Keep why the model cannot be asked."""
        self._load_error = error

    async def settle(self) -> None:
        """Do what is to be done at the end of a block."""
        if self._model is not None:
            await self._model.settle()
        self.report_usage()

    def close(self) -> None:
        """Give back what would outlive this process; nothing is asked any more."""
        if self._model is not None:
            self._model.close()

    def report_usage(self) -> None:
        """Report to the run what a local model has done so far."""
        if self._model is not None and (usage := self._model.measure()) is not None:
            self.ledger.report_usage(asdict(usage))

    def _drain(self) -> None:
        """The run is being stopped: what waits in the model for its turn is not asked any more."""
        if self._model is not None:
            self._model.drain()

    def _resume(self) -> None:
        """Answers have become durable: what was held back until then may be asked."""
        if self._model is not None:
            self._model.resume()

    async def ask(self, stage: Generate, fields: Mapping[str, str], request: Request) -> Step:
        """One stage of one sample, as a step: with an answer, or with the reason why there is none.

        Args:
            stage: whose request it is.
            fields: of the sample.
            request: what the stage sends.

        Raises:
            Draining: the run is being stopped.
        """
        prompt = request.prompt if request.pair is None else f"{request.prompt}\n\n{request.pair}"
        step = partial(Step, f"{stage.kind}:{stage.output}", str(stage.role), self._name, prompt=prompt)
        request_id = ""
        try:
            model = self._loaded_model()
            prompts.check_askable(stage.reads(), fields, prompt)
            request_id = self._identity.request_id(model.request_identity(request))
            record = await self._record(model, request_id, stage.role, request)
        except CallError as error:  # Nothing was asked.
            if error.kind in FATAL:
                self.ledger.stop(error, stage.role)
            return step(request_id, error_kind=error.kind, error=error.message)
        response = record.response
        if response is None:
            return step(request_id, trace=record.trace, error_kind=record.error_kind, error=record.error)
        return step(
            request_id,
            text=response.text,
            finish_reason=SCORE if self.scores else response.finish_reason,
            prompt_tokens=response.prompt_tokens,
            completion_tokens=response.completion_tokens,
            latency_s=response.latency_s,
            trace=response.trace,
            details=response.details,
            choice_probabilities=probabilities(response.details.choice_logprobs),
        )

    def _loaded_model(self) -> Model:
        """The model. Raises CallError when it could not be loaded."""
        if self._load_error is not None or self._model is None:
            raise self._load_error or CallError(ErrorKind.LOAD, "no model")
        return self._model

    async def _record(self, model: Model, request_id: str, role: Role, request: Request) -> Record:
        """The record of a request: from the ledger, or asked now and stored before anything else sees it.

        Raises:
            CallError: `load`, which is no end of a request: it is asked again when the model can be loaded.
            Draining: the run is being stopped.
        """
        claim = await self.ledger.claim(request_id, role, model.size(request))
        if isinstance(claim, Record):
            return claim
        self._granted += 1
        kill_every = 0 if self.config.batch else self._chaos.kill_actor_every  # A batch holds all that is asked.
        if kill_every and self._granted >= kill_every and not claim:
            os.kill(os.getpid(), signal.SIGKILL)  # A request that is asked alone is spared.
        try:
            response = without_lone_surrogates(await model.generate(request))
            return await self.ledger.store_answer(request_id, role, response)
        except CallError as error:
            if error.kind == ErrorKind.LOAD:
                self._load_error = error
                await self.ledger.release(request_id)
                raise
            return await self.ledger.store_failure(request_id, role, error)
        except Draining:
            await self.ledger.release(request_id)
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: a library's fault must not take the block with it
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            return await self.ledger.store_failure(request_id, role, CallError(ErrorKind.INTERNAL, reason))


def load(models: Mapping[str, AskedModel]) -> None:
    """Make the models of an actor, which differ in their params alone; what goes wrong is why they cannot be asked."""
    config = next(iter(models.values())).config
    try:
        for model in models.values():
            model.config.hide()
        made = config.kind.several(
            {name: model.config.params for name, model in models.items()}, config.pool, config.rate
        )
        for name, model in models.items():
            model.attach(made[name])
    except CallError as error:
        _fail(models, error)
    except Exception as error:  # noqa: BLE001 - a library's own: it ends the run in one line, not in a traceback
        _fail(models, CallError(ErrorKind.LOAD, f"{type(error).__name__}: {error}"))
    gc.freeze()  # Otherwise the collector spends a quarter of the time on the objects of imported modules.
    gc.set_threshold(10_000, 20, 20)


def _fail(models: Mapping[str, AskedModel], error: CallError) -> None:
    for model in models.values():
        model.fail(error)


def _batched(model: Any, terms: Batch) -> Model:
    """A model that is asked in batches; local models do not import what that takes."""
    from rambla_ray.actors.api.batched import BatchedModel

    return BatchedModel(model, terms)
