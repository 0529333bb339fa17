"""The one stage shape: an actor that holds one model and answers, for its roles, the samples that stream past."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from rambla_ray import prompts
from rambla_ray.actors.base import Model
from rambla_ray.actors.ledger import LedgerClient
from rambla_ray.config import ModelConfig, TaskConfig
from rambla_ray.errors import CallError, Draining, ErrorKind
from rambla_ray.ledger import Record
from rambla_ray.outcomes import has_ended
from rambla_ray.registry import model_class
from rambla_ray.schema import SCORE, Request, Role, Sample, Step, request_id, well_formed
from rambla_ray.stages import Compare, Generate, overwrite


class PoolActor:
    """A Ray Data callable class. It never raises for a sample: a failure is a step with an error.

    Args:
        name: the model config's name.
        config: the model config, its pool settled.
        tasks: the run's tasks by name.
        roles: the roles this pool plays; a sample whose next stage is another's passes through untouched.
        ledger: handle of the run's `LedgerService`.
        run_id: the run.
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        tasks: Mapping[str, TaskConfig],
        roles: frozenset[Role],
        ledger: Any,
        run_id: str,
    ) -> None:
        self._name = name
        self._tasks = tasks
        self._roles = roles
        self._ledger = LedgerClient(ledger, run_id)
        self._model: Model | None = None
        self._broken: CallError | None = None
        kind = model_class(config.name, name)
        try:
            self._model = kind(kind.Params.model_validate(config.params), config.pool, config.rate)
            self._ledger.describe(name, self._model.identity())
        except CallError as error:
            self._broken = error
        except Exception as error:  # noqa: BLE001 - a library's own; told for every sample, it ends the run in a line
            self._broken = CallError(ErrorKind.LOAD, f"{type(error).__name__}: {error}")

    async def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        """One sample through all stages that are its next and this pool's."""
        sample = Sample.from_row(row)
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
        return sample.to_row()

    async def _ask(self, sample: Sample, stage: Generate, *, is_last: bool) -> Step:
        """One stage of one sample, as a step: with an answer, or with the reason why there is none."""
        scores = self._model is not None and self._model.produces == SCORE
        request = self._request(sample, stage, is_last=is_last, scores=scores)
        step = Step(
            stage=f"{stage.kind}:{stage.output}",
            role=stage.role,
            model=self._name,
            request_id="",
            prompt=request.prompt if request.pair is None else f"{request.prompt}\n\n{request.pair}",
        )
        fault = self._broken or _unaskable(stage, sample.fields, step.prompt)
        if fault or self._model is None:
            fault = fault or CallError(ErrorKind.LOAD, "no model")
            return replace(step, error_kind=fault.kind, error=fault.message)
        step = replace(step, request_id=request_id(self._model.request_identity(request)))
        record = await self._answered(self._model, step, request)
        if record.response is None:
            return replace(step, error_kind=record.error_kind, error=record.error, attempts=record.attempts)
        given = asdict(record.response)
        if scores:
            given["finish_reason"] = SCORE
        return replace(step, **given)

    def _request(self, sample: Sample, stage: Generate, *, is_last: bool, scores: bool) -> Request:
        """What a stage sends: the filled template, or the two texts themselves to a model that compares them."""
        answer = self._tasks[sample.task].answer
        hints: dict[str, Any] = {
            "sample_id": sample.sample_id,
            "target": answer.choice_for(sample.target),
            "choices": answer.choices if is_last else (),
        }
        if isinstance(stage, Compare) and scores:
            return Request(sample.fields[stage.left], sample.fields[stage.right], **hints)
        return Request(prompts.render(stage.template, sample.fields), **hints)

    async def _answered(self, model: Model, step: Step, request: Request) -> Record:
        """The record of a request: from the ledger, or asked now and stored before anything else sees it."""
        known = await self._ledger.claim(step.request_id)
        if known is not None:
            return known
        about = (step.request_id, self._name, step.role)
        try:
            response = await model.generate(request)
            record = self._ledger.answer(*about, replace(response, text=well_formed(response.text)))
        except CallError as error:
            record = self._ledger.failure(*about, error.kind, error.message, error.attempts)
        except Exception as error:  # noqa: BLE001 - the boundary: a library's fault must not take the block with it
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            record = self._ledger.failure(*about, ErrorKind.INTERNAL, reason, 1)
        await self._ledger.store(record)
        return record


def _unaskable(stage: Generate, fields: Mapping[str, str], prompt: str) -> CallError | None:
    """Why a sample cannot be asked, if it cannot: an empty field, or text that is not valid Unicode."""
    empty = sorted(name for name in stage.reads() if not fields[name].strip())
    if empty:
        return CallError(ErrorKind.BAD_ITEM, f"field '{empty[0]}' is empty")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        return CallError(ErrorKind.BAD_ITEM, f"lone surrogate at character {error.start} of the prompt")
    return None
