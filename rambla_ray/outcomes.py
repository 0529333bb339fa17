"""How a sample ends: from its steps and the reader's answer to exactly one outcome."""

from __future__ import annotations

from rambla_ray.config import TaskConfig
from rambla_ray.errors import ErrorKind
from rambla_ray.parsing import read_rambla
from rambla_ray.schema import Outcome, Role, Sample, Step

_OUTCOME_OF_ERROR = {ErrorKind.TOO_LONG: Outcome.TOO_LONG, ErrorKind.REFUSED: Outcome.REFUSED}


def has_ended(sample: Sample) -> bool:
    """Whether no further stage can be asked: the last step has no answer, or nothing is in it."""
    return bool(sample.steps) and (sample.steps[-1].failed or not sample.steps[-1].text.strip())


def finish(sample: Sample, task: TaskConfig) -> None:
    """Read the answer of a sample that has passed every pool, and set how it ends.

    A step of another role than the target's that fails or cannot be read is never the target's fault: a judge's ends
    in `judge_failed`, a rephraser's in `failed`.
    """
    answered = len(sample.steps) == len(task.generates) and not sample.steps[-1].failed
    read = read_rambla(sample.steps[-1].text, task.answer.choices) if answered else None
    sample.answer = sample.rambla_answer = read or ""
    sample.outcome = Outcome.SCORED if read else _outcome_without_answer(sample.steps[-1])


def _outcome_without_answer(last: Step) -> Outcome:
    if last.role == Role.JUDGE:
        return Outcome.JUDGE_FAILED
    if last.role == Role.REPHRASER:
        return Outcome.FAILED
    if last.failed:
        return _OUTCOME_OF_ERROR.get(ErrorKind(last.error_kind), Outcome.FAILED)
    if last.finish_reason == "content_filter":
        return Outcome.REFUSED
    if not last.text.strip():
        return Outcome.EMPTY
    return Outcome.TRUNCATED if last.finish_reason == "length" else Outcome.UNPARSED
