"""How a sample ends: from its steps and the reader's answer to exactly one outcome."""

from __future__ import annotations

import math
from functools import lru_cache

from rambla_ray.config.task import TaskConfig
from rambla_ray.errors import ErrorKind
from rambla_ray.schema import SCORE, Outcome, Role, Sample, Step
from rambla_ray.scoring.reading import Reading, read_rambla, read_robust

SHORT = 200  # Texts of at most so many characters often come again, so what was read from them is cached.
_OUTCOME_OF_ERROR = {ErrorKind.TOO_LONG: Outcome.TOO_LONG, ErrorKind.REFUSED: Outcome.REFUSED}


def has_ended(sample: Sample) -> bool:
    """Whether no further stage can be asked: the last step has no answer, or an empty one."""
    return bool(sample.steps) and (sample.steps[-1].failed or not sample.steps[-1].text.strip())


def finish(sample: Sample, task: TaskConfig) -> None:
    """Read the answer of a sample that has passed every pool, and set how it ends.

    Answers are stored as labels. A step of another role than the target's that fails or cannot be read is never the
    target's fault: a judge's ends in `judge_failed`, a rephraser's in `failed`.
    """
    last = sample.steps[-1]
    answered = len(sample.steps) == len(task.generates) and not last.failed
    if answered and last.finish_reason == SCORE:
        sample.answer = sample.rambla_answer = last.text if _is_score(last.text, task) else ""
        sample.outcome = Outcome.SCORED if sample.answer else Outcome.UNPARSED
        return
    reading, as_rambla = Reading(None, "no answer"), None
    if answered:
        read = _read_cached if len(last.text) <= SHORT else _read
        reading, as_rambla = read(last.text, task.answer.choices, last.finish_reason == "length")
    sample.answer = task.answer.label_of(reading.answer) if reading.answer else ""
    sample.rambla_answer = task.answer.label_of(as_rambla) if as_rambla else ""
    sample.outcome = Outcome.SCORED if reading.answer else _outcome_without_answer(last, refused=reading.refused)


def _read(text: str, choices: tuple[str, ...], cut: bool) -> tuple[Reading, str | None]:
    """The reading of each of the two readers; `cut` says that the text reached its length limit."""
    return read_robust(text, choices, cut=cut), read_rambla(text, choices)


_read_cached = lru_cache(maxsize=4096)(_read)


def _is_score(text: str, task: TaskConfig) -> bool:
    """Whether a text is a valid answer of a model that compares texts: a label, or a finite number."""
    try:
        return text in task.answer.label_names or math.isfinite(float(text))
    except ValueError:
        return False


def _outcome_without_answer(last: Step, *, refused: bool) -> Outcome:
    if last.role == Role.JUDGE:
        return Outcome.JUDGE_FAILED
    if last.role == Role.REPHRASER:
        return Outcome.FAILED
    if last.failed:
        return _OUTCOME_OF_ERROR.get(ErrorKind(last.error_kind), Outcome.FAILED)
    if refused or last.finish_reason == "content_filter":
        return Outcome.REFUSED
    if not last.text.strip():
        return Outcome.EMPTY
    return Outcome.TRUNCATED if last.finish_reason == "length" else Outcome.UNPARSED
