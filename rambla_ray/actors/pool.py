"""The one stage shape: an actor that holds one model and answers, for its roles, the samples that stream past.

What streams between pools is one row per block of samples, their table packed in Arrow's own format, so that Ray Data
neither infers types nor cuts blocks anew. The first pool of a stream receives no samples but the places of items, and
makes the samples where they are asked.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from rambla_ray.actors.ledger_client import LedgerClient
from rambla_ray.actors.model import Model, hide_gpus, without_lone_surrogates
from rambla_ray.config.labels import ModelNames
from rambla_ray.config.model import ModelConfig
from rambla_ray.config.sections import Batch, Chaos
from rambla_ray.config.task import TaskConfig, sample_of
from rambla_ray.errors import FATAL, CallError, Draining, ErrorKind
from rambla_ray.ledger.record import Record
from rambla_ray.schema import (
    SCORE,
    Identity,
    Item,
    Request,
    Role,
    Sample,
    Step,
    from_table,
    overwrite,
    to_table,
)
from rambla_ray.scoring.likelihoods import probabilities
from rambla_ray.scoring.outcomes import finish, has_ended, has_passed, text_for_reader
from rambla_ray.tasks import prompts
from rambla_ray.tasks.reader import ReaderStage, shown_fields
from rambla_ray.tasks.stages import Compare, Generate

PACKED = "samples"  # The one column that streams from pool to pool.


def pack(table: pa.Table) -> dict[str, bytes]:
    """A table as the one row that streams."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return {PACKED: sink.getvalue().to_pybytes()}


def unpack(data: bytes) -> pa.Table:
    """The table in a row that streamed."""
    return pa.ipc.open_stream(data).read_all()


@dataclass(frozen=True)
class Source:
    """Where the first pool of a stream finds the items to make samples of.

    Args:
        target: the model under test.
        items: per (task, variant), a Ray object reference of its items' table; see `Plan.tables`.
    """

    target: str
    items: Mapping[tuple[str, str], Any]


class PoolActor:
    """A Ray Data callable class. It never raises for a sample: a failure is a step with an error.

    Args:
        names: of the model.
        config: the model config, its pool settled.
        tasks: the run's tasks by name.
        roles: the roles this pool plays; a sample whose next stage is another's passes through untouched.
        ledger: handle of the run's `LedgerService`.
        run_id: the run.
        source: in the first pool of a stream, where its samples come from.
        is_last: whether samples end here, and are read and given their outcome.
        chaos: faults to inject.
        reader: in a run with a reader, what asks it; the last pool plays its role. A pool that plays no other loads
            its model when there is something to read.
    """

    def __init__(
        self,
        names: ModelNames,
        config: ModelConfig,
        tasks: Mapping[str, TaskConfig],
        roles: frozenset[Role],
        ledger: Any,
        run_id: str,
        source: Source | None,
        is_last: bool,
        chaos: Chaos,
        reader: ReaderStage | None = None,
    ) -> None:
        self._name = names.name
        self._tasks = tasks
        self._roles = roles
        self._ledger = LedgerClient(ledger, run_id, names, self._drain, self._resume)
        self._source = source
        self._is_last = is_last
        self._config, self._chaos, self._reader = config, chaos, reader
        self._granted = 0  # requests that this actor was the one to ask
        self._model: Model | None = None
        self._load_error: CallError | None = None  # why the model cannot be asked
        hide_gpus(config.pool)
        self._scores = config.params.produces == SCORE
        if roles != {Role.READER}:
            self._load()

    def _load(self) -> None:
        """Make the model; what goes wrong is why it cannot be asked."""
        config = self._config
        config.hide()
        try:
            model = config.kind(config.params, config.pool, config.rate)
            self._model = _batched(model, config.batch) if config.batch else model
            self._model.attach(self._ledger.run_context(self._chaos))
            identity = self._model.identity()
            self._identity = Identity(identity)
            self._ledger.describe(config.stored_identity(identity))
            self._report_usage()
        except CallError as error:
            self._load_error = error
        except Exception as error:  # noqa: BLE001 - a library's own: it ends the run in one line, not in a traceback
            self._load_error = CallError(ErrorKind.LOAD, f"{type(error).__name__}: {error}")
        gc.freeze()  # else the collector spends a quarter of the time on the objects of imported modules
        gc.set_threshold(10_000, 20, 20)

    async def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        """One block of samples through all stages that are their next and this pool's."""
        samples = await self._samples(row)
        await asyncio.gather(*map(self._answer, samples))
        if self._model is not None:
            await self._model.settle()
        self._report_usage()
        return pack(to_table(samples))

    def _report_usage(self) -> None:
        """Report to the run what a local model has done so far."""
        if self._model is not None and (usage := self._model.measure()) is not None:
            self._ledger.report_usage(asdict(usage))

    def _drain(self) -> None:
        """The run is being stopped: what waits in the model for its turn is not asked any more."""
        if self._model is not None:
            self._model.drain()

    def _resume(self) -> None:
        """Answers have become durable: what was held back until then may be asked."""
        if self._model is not None:
            self._model.resume()

    async def _samples(self, row: Mapping[str, Any]) -> list[Sample]:
        """The samples of a row: those it holds, or those to be made of the items it names."""
        if self._source is None:
            return list(from_table(unpack(row[PACKED])))
        if self._ledger.draining:
            return []
        name, variant = row["task"], row["variant"]
        items: pa.Table = await self._source.items[name, variant]
        return [
            sample_of(self._source.target, name, self._tasks[name], variant, Item(root_id, json.loads(fields), fault))
            for root_id, fields, fault in zip(
                *(column.to_pylist() for column in items.slice(row["first"], row["count"]).columns), strict=True
            )
        ]

    async def _answer(self, sample: Sample) -> None:
        """Ask a sample's stages, as long as they are this pool's and have an answer."""
        task = self._tasks[sample.task]
        for stage in task.generates[len(sample.steps) :]:
            if has_ended(sample) or stage.role not in self._roles:
                break
            try:
                step = await self._ask(sample, stage, is_last=stage is task.generates[-1])
            except Draining:
                break
            sample.steps.append(step)
            if not step.failed:
                overwrite(sample.fields, stage.output, step.text.strip())
        if self._is_last and has_passed(sample, task):
            await self._end(sample, task)

    async def _end(self, sample: Sample, task: TaskConfig) -> None:
        """Read a sample's answer, or have it read by the reader, and set how it ends."""
        finish(sample, task)
        if self._reader is None or not (text := text_for_reader(sample, task)):
            return
        shown = replace(sample, fields=shown_fields(task.answer.choices, text))
        try:
            sample.steps.append(await self._ask(shown, self._reader, is_last=True))
        except Draining:
            sample.outcome = ""  # It has not ended: the run that continues this one asks the reader.
        else:
            finish(sample, task)

    async def _ask(self, sample: Sample, stage: Generate, *, is_last: bool) -> Step:
        """One stage of one sample, as a step: with an answer, or with the reason why there is none."""
        request = self._request(sample, stage, is_last=is_last)
        prompt = request.prompt if request.pair is None else f"{request.prompt}\n\n{request.pair}"
        step = partial(Step, f"{stage.kind}:{stage.output}", str(stage.role), self._name, prompt=prompt)
        request_id = ""
        try:
            model = self._loaded_model()
            prompts.check_askable(stage.reads(), sample.fields, prompt)
            request_id = self._identity.request_id(model.request_identity(request))
            record = await self._record(model, request_id, stage.role, request)
        except CallError as error:  # nothing was asked
            if error.kind in FATAL:
                self._ledger.stop(error, stage.role)
            return step(request_id, error_kind=error.kind, error=error.message)
        response = record.response
        if response is None:
            return step(request_id, trace=record.trace, error_kind=record.error_kind, error=record.error)
        return step(
            request_id,
            text=response.text,
            finish_reason=SCORE if self._scores else response.finish_reason,
            prompt_tokens=response.prompt_tokens,
            completion_tokens=response.completion_tokens,
            latency_s=response.latency_s,
            trace=response.trace,
            details=response.details,
            choice_probabilities=probabilities(response.details.choice_logprobs),
        )

    def _loaded_model(self) -> Model:
        """The model. Raises CallError when it could not be loaded, or failed to load when it was first asked."""
        if self._model is None and self._load_error is None:
            self._load()
        if self._load_error is not None or self._model is None:
            raise self._load_error or CallError(ErrorKind.LOAD, "no model")
        return self._model

    def _request(self, sample: Sample, stage: Generate, *, is_last: bool) -> Request:
        """What a stage sends: the filled template, or the two texts themselves to a model that compares them."""
        task = self._tasks[sample.task]
        answer = task.answer
        own: dict[str, Any] = {
            "sample_id": sample.sample_id,
            "target": answer.choice_for(sample.target),
            "choices": answer.choices if is_last else (),
            "continuations": task.choices_asked_by(stage),
        }
        if isinstance(stage, Compare) and self._scores:
            return Request(sample.fields[stage.left], sample.fields[stage.right], **own)
        return Request(prompts.render(stage.template, sample.fields), system=stage.system or "", **own)

    async def _record(self, model: Model, request_id: str, role: Role, request: Request) -> Record:
        """The record of a request: from the ledger, or asked now and stored before anything else sees it.

        Raises:
            CallError: `load`, which is no end of a request: it is asked again when the model can be loaded.
            Draining: the run is being stopped.
        """
        claim = await self._ledger.claim(request_id, role, model.size(request))
        if isinstance(claim, Record):
            return claim
        self._granted += 1
        kill_every = 0 if self._config.batch else self._chaos.kill_actor_every  # A batch holds all that is asked.
        if kill_every and self._granted >= kill_every and not claim:
            os.kill(os.getpid(), signal.SIGKILL)  # chaos, which spares a request that is asked alone
        try:
            response = without_lone_surrogates(await model.generate(request))
            return await self._ledger.store_answer(request_id, role, response)
        except CallError as error:
            if error.kind == ErrorKind.LOAD:
                self._load_error = error
                await self._ledger.release(request_id)
                raise
            return await self._ledger.store_failure(request_id, role, error)
        except Draining:
            await self._ledger.release(request_id)
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: a library's fault must not take the block with it
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            return await self._ledger.store_failure(request_id, role, CallError(ErrorKind.INTERNAL, reason))


def _batched(model: Any, terms: Batch) -> Model:
    """A model that is asked in batches; local models do not import what that takes."""
    from rambla_ray.actors.api.batched import BatchedModel

    return BatchedModel(model, terms)
