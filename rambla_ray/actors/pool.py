"""The one stage shape: an actor that holds a model and answers, for its roles, the samples that stream past.

What streams between pools is one row per block of samples, their table packed in Arrow's own format, so that Ray Data
neither infers types nor cuts blocks anew. The first pool of a stream receives no samples but the places of items, and
makes the samples where they are asked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from rambla_ray.actors.asked import AskedModel, load
from rambla_ray.actors.ledger_horizon import wait_for_turn
from rambla_ray.actors.model import hide_gpus
from rambla_ray.config.labels import ModelNames
from rambla_ray.config.model import ModelConfig, ModelParams
from rambla_ray.config.requests import request_of
from rambla_ray.config.sections import Chaos
from rambla_ray.config.task import TaskConfig, sample_of
from rambla_ray.errors import Draining
from rambla_ray.schema import (
    Item,
    Role,
    Sample,
    Step,
    from_table,
    overwrite,
    to_table,
)
from rambla_ray.scoring.outcomes import finish, has_ended, has_passed, text_for_reader
from rambla_ray.tasks.reader import ReaderStage, shown_fields
from rambla_ray.tasks.stages import Generate

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


class PoolActor:
    """A Ray Data callable class. It never raises for a sample: a failure is a step with an error.

    Args:
        names: of the model.
        config: the model config, its pool settled.
        tasks: the run's tasks by name.
        roles: the roles this pool plays; a sample whose next stage is another's passes through untouched.
        ledger: handle of the run's `LedgerService`.
        run_id: the run.
        items: in the first pool that samples pass, where they come from: per (task, variant), a Ray object reference
            of its items' table; see `Plan.tables`. Samples of other targets may have passed pools before it.
        is_last: whether samples end here, and are read and given their outcome.
        chaos: faults to inject.
        reader: in a run with a reader, what asks it; the last pool plays its role. A pool that plays no other loads
            its model when there is something to read.
        kin: the other targets that this actor answers for, by their names, and their params.
        seat: which of the judges it is, where it plays the judge.
    """

    def __init__(
        self,
        names: ModelNames,
        config: ModelConfig,
        tasks: Mapping[str, TaskConfig],
        roles: frozenset[Role],
        ledger: Any,
        run_id: str,
        items: Mapping[tuple[str, str], Any] | None,
        is_last: bool,
        chaos: Chaos,
        reader: ReaderStage | None = None,
        kin: Mapping[ModelNames, ModelParams] = MappingProxyType({}),
        seat: int = 0,
    ) -> None:
        self._tasks = tasks
        self._roles = roles
        self._seat = seat
        self._items, self._ledger = items, ledger
        self._is_last = is_last
        self._reader = reader
        hide_gpus(config.pool)
        self._models = {
            member.name: AskedModel(member, config.with_params(params), ledger, run_id, chaos)
            for member, params in [(names, config.params), *kin.items()]
        }
        self._first = self._models[names.name]
        if roles != {Role.READER}:
            load(self._models)

    def __del__(self) -> None:
        """Ray Data lets go of it where an actor ends in order."""
        for model in getattr(self, "_models", {}).values():
            model.close()

    async def __call__(self, row: dict[str, Any]) -> dict[str, bytes]:
        """One block of samples through all stages that are their next and this pool's."""
        samples = await self._samples(row)
        await asyncio.gather(*map(self._answer, samples))
        for model in self._models.values():
            await model.settle()
        return pack(to_table(samples))

    async def _samples(self, row: Mapping[str, Any]) -> list[Sample]:
        """The samples of a row: those it holds, or those to be made of the items it names; see `run.blocks`."""
        if self._items is None or PACKED in row:
            return list(from_table(unpack(row[PACKED])))
        if self._first.ledger.draining or ("place" in row and not await wait_for_turn(self._ledger, row["place"])):
            return []
        target, name, variant = row["target"], row["task"], row["variant"]
        items: pa.Table = await self._items[name, variant]
        numbers = range(row["first"], row["first"] + row["count"])
        draws = items.take([number % items.num_rows for number in numbers])
        return [
            sample_of(
                *(target, name, self._tasks[name], variant, Item(root_id, json.loads(fields), fault)),
                epoch=number // items.num_rows,
            )
            for number, root_id, fields, fault in zip(
                numbers, *(column.to_pylist() for column in draws.columns), strict=True
            )
        ]

    async def _answer(self, sample: Sample) -> None:
        """Ask a sample's stages, as long as they are this pool's and have an answer."""
        task = self._tasks[sample.task]
        for stage, seat in task.turns[len(sample.steps) :]:
            if (
                has_ended(sample, task.judges)
                or stage.role not in self._roles
                or (stage.role == Role.JUDGE and seat != self._seat)
                or (stage.role == Role.TARGET and sample.model not in self._models)
            ):
                break
            try:
                step = await self._ask(sample, stage)
            except Draining:
                break
            sample.steps.append(step)
            if not step.failed and (stage.role != Role.JUDGE or task.judges == 1):  # No judge reads another's answer.
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
            sample.steps.append(await self._ask(shown, self._reader))
        except Draining:
            sample.outcome = ""  # It has not ended: the run that continues this one asks the reader.
        else:
            finish(sample, task)

    async def _ask(self, sample: Sample, stage: Generate) -> Step:
        """One stage of one sample, as a step. Raises Draining."""
        if self._first.is_untried:  # A pool that plays the reader alone has waited for something to read.
            load(self._models)
        model = self._models[sample.model] if stage.role == Role.TARGET else self._first
        request = request_of(sample, self._tasks[sample.task], stage, scores=self._first.scores)
        return await model.ask(stage.phrased(sample.variant), sample.fields, request)
