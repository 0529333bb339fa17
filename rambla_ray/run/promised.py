"""What each pool will be asked: every request of a run, known by what its model knows it by.

A sample is followed through its stages by the function that makes the actors' requests. What a later stage sends
depends on what earlier ones answer: it is known where the ledger holds those answers, and elsewhere it is one call at
most for each sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from rambla_ray.config.requests import request_of
from rambla_ray.config.task import TaskConfig
from rambla_ray.errors import CallError
from rambla_ray.ledger.look import Look
from rambla_ray.run.placement import Level
from rambla_ray.run.pool_calls import NOBODY, Asked, PoolCalls, Sent, Written
from rambla_ray.schema import Role, Sample, overwrite
from rambla_ray.scoring.outcomes import finish, text_for_reader
from rambla_ray.tasks import prompts
from rambla_ray.tasks.reader import ReaderStage, shown_fields
from rambla_ray.tasks.stages import Generate

Samples = Iterable[Sample]


def promised_calls(
    streams: Mapping[str, tuple[Sequence[Level], Samples]],
    tasks: Mapping[str, TaskConfig],
    readers: Mapping[str, ReaderStage | None],
    look: Look,
) -> dict[str, list[PoolCalls]]:
    """By target, what each of its pools will be asked.

    Args:
        streams: by target, its pools and its samples, whose fields are written into.
        tasks: by name.
        readers: by task, what asks the reader; None where nobody does.
        look: what the ledger holds.
    """
    sent = left = NOBODY
    calls: dict[str, list[PoolCalls]] = {}
    for target, (levels, samples) in streams.items():
        pools = [Asked(level, look) for level in levels]
        for sample in samples:
            _Followed(sample, tasks[sample.task], pools).follow(readers[sample.task])
        calls[target] = [pool.calls for pool in pools]
        for pool_calls in calls[target]:
            sent, left = pool_calls.close(sent, left)
    return calls


class _Followed:
    """A sample on its way through the pools.

    `sample` has what is known without any answer; `actual` what stands in the ledger, as long as that holds the answer
    to each request so far, and is None from where it does not.
    """

    def __init__(self, sample: Sample, task: TaskConfig, pools: Sequence[Asked]) -> None:
        self._sample, self._task, self._pools = sample, task, pools
        self._places = {
            (role, pool.level.seat if role == Role.JUDGE else 0): place
            for place, pool in enumerate(pools)
            for role in pool.level.roles
        }
        self._actual: Sample | None = None
        self._has_ended = False  # The ledger holds an answer without a text: nothing more is asked.
        self._is_read = False
        self._missing: set[str] = set()  # Fields that the item has no text for.
        self._writers: dict[str, Written] = {}  # By field, whose answer it will be.

    def follow(self, reader: ReaderStage | None) -> None:
        """Count the sample's requests in their pools."""
        if self._sample.steps:  # Its item has a fault, so that nobody is asked.
            return
        self._actual = replace(self._sample, fields=dict(self._sample.fields), steps=[])
        self._is_read = reader is not None
        for number, (stage, seat) in enumerate(self._task.turns):
            place = self._places[stage.role, seat]
            try:
                sent = self._count(self._pools[place], stage, is_first=not number)
            except CallError:  # It cannot be asked, so that nothing is.
                return
            self._writers[stage.output] = Written(place, sent.kind)
        if reader is not None:
            self._read(reader)

    def _goes_on(self, stage: Generate) -> bool:
        """Whether anything depends on the answer to a stage."""
        return self._is_read or stage is not self._task.generates[-1]

    def _count(self, pool: Asked, stage: Generate, *, is_first: bool) -> Sent:
        """Count one request. Raises CallError: the sample cannot be asked."""
        reads = stage.phrased(self._sample.variant).reads()
        parts = {name: self._writers[name] for name in reads if name in self._writers}
        request = request_of(self._sample, self._task, stage, scores=pool.scores)
        if not parts:
            prompts.check_askable(reads, self._sample.fields, f"{request.prompt}{request.pair or ''}")
        sent = pool.sent(request, self._task, stage)
        pool.calls.promise(sent, list(parts.values()), is_first=is_first)
        unseen = [
            part for name, part in parts.items() if name in self._missing
        ]  # Of others, the item's own text counts.
        if stage.output not in self._sample.fields:
            self._missing.add(stage.output)
        overwrite(self._sample.fields, stage.output, self._sample.fields.get(stage.output, ""))
        if self._has_ended:
            return sent
        exact: Sent | None = sent
        if parts:
            exact = None if self._actual is None else self._exact(pool, stage, self._actual)
        self._look_up(pool, stage, exact, sent, unseen)
        return sent

    def _exact(self, pool: Asked, stage: Generate, sample: Sample) -> Sent:
        return pool.sent(request_of(sample, self._task, stage, scores=pool.scores), self._task, stage)

    def _look_up(self, pool: Asked, stage: Generate, exact: Sent | None, sent: Sent, parts: Sequence[Written]) -> None:
        """Count a request as left to be asked, or go on with what the ledger answers."""
        wanted = self._actual is not None and self._goes_on(stage)
        response = pool.answer(exact, wanted=wanted) if exact is not None else None
        is_of_panel = stage.role == Role.JUDGE and self._task.judges > 1
        if exact is None or response is None:
            pool.calls.leave(exact, sent, parts)
            self._actual = None if not is_of_panel else self._actual
            return
        if self._actual is None:
            return
        self._actual.steps.append(pool.step(exact, stage, response))
        if is_of_panel:  # None of several judges keeps the others from answering.
            return
        overwrite(self._actual.fields, stage.output, response.text.strip())
        self._has_ended = not response.text.strip()

    def _read(self, reader: ReaderStage) -> None:
        """Count what the reader may be asked about the answer."""
        pool = self._pools[self._places[Role.READER, 0]]
        parts = [self._writers[self._task.generates[-1].output]]
        shown = replace(self._sample, fields=shown_fields(self._task.answer.choices, ""))
        sent = self._exact(pool, reader, shown)
        pool.calls.promise(sent, parts, is_first=False)
        if self._has_ended:
            return
        if self._actual is None or len(self._actual.steps) < len(self._task.turns):
            pool.calls.leave(None, sent, parts)
            return
        finish(self._actual, self._task)
        if text := text_for_reader(self._actual, self._task):
            shown = replace(self._actual, fields=shown_fields(self._task.answer.choices, text))
            self._look_up(pool, reader, self._exact(pool, reader, shown), sent, parts)
