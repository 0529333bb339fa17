"""How a sample ends: from its steps and the reader's answer to exactly one outcome."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

from rambla_ray.config.task import TaskConfig
from rambla_ray.errors import ErrorKind
from rambla_ray.schema import NULL, SCORE, Outcome, Role, Sample, Step
from rambla_ray.scoring.reading import Reading, read_rambla, read_robust
from rambla_ray.scoring.votes import majority_of
from rambla_ray.tasks.reader import possible_replies
from rambla_ray.tasks.stages import Compare

SHORT = 200  # Texts of at most so many characters often come again, so what was read from them is cached.
_OUTCOME_OF_ERROR = {ErrorKind.TOO_LONG: Outcome.TOO_LONG, ErrorKind.REFUSED: Outcome.REFUSED}
_NO_READING = Reading(None, "no answer")


def has_ended(sample: Sample, judges: int = 1) -> bool:
    """Whether no further stage can be asked: the last step has no answer, or an empty one.

    Of several judges, none keeps the others from answering.
    """
    if not sample.steps or (judges > 1 and sample.steps[-1].role == Role.JUDGE):
        return False
    return sample.steps[-1].failed or not sample.steps[-1].text.strip()


def has_passed(sample: Sample, task: TaskConfig) -> bool:
    """Whether there is nothing left to ask for the task's own stages."""
    return has_ended(sample, task.judges) or len(sample.stage_steps) == len(task.turns)


def finish(sample: Sample, task: TaskConfig) -> None:
    """Read the answer of a sample that has passed every pool, and set how it ends.

    Answers are stored as labels. A step of another role than the target's that fails or cannot be read is never the
    target's fault: a judge's ends in `judge_failed`, a rephraser's in `failed`. Where the rules read nothing, the
    answer is the choice that the reader named, if it was asked; RAmBLA's answer is its own rule's alone.

    Each of several judges is read by itself. The answer is the label that most of those that could be read voted for;
    where two labels have as many votes, or nobody voted, the sample ends in `judge_failed`. RAmBLA's answer is the
    majority of what its own rule reads.
    """
    last, answered = _last_step(sample, task)
    if answered and task.judges > 1:
        _count_votes(sample, task)
        return
    if answered and last.finish_reason == SCORE:
        sample.answer = sample.rambla_answer = last.text if _is_score(last.text, task) else ""
        sample.outcome = Outcome.SCORED if sample.answer else Outcome.UNPARSED
        return
    reading, as_rambla = _readings(last, task) if answered else (_NO_READING, None)
    answer = reading.answer or _named_by_reader(sample, task)
    sample.answer, sample.rambla_answer = _label(answer, task), _label(as_rambla, task)
    sample.outcome = Outcome.SCORED if answer else _outcome_without_answer(last, refused=reading.refused)


def text_for_reader(sample: Sample, task: TaskConfig) -> str:
    """The text of an answer that the rules cannot read, for the reader; empty where it has nothing to read.

    It has not where there is no whole answer (failed, empty, cut off, declined), where a model gave a score, and where
    the rules did read one. Nor is it asked about several judges: where one cannot be read, the others' votes count.

    Args:
        sample: a sample that `finish` has ended.
        task: its task.
    """
    last, answered = _last_step(sample, task)
    if sample.answer or not answered or last.finish_reason == SCORE or task.judges > 1:
        return ""
    reading, _ = _readings(last, task)
    return last.text if _reason_without_answer(last, refused=reading.refused) == Outcome.UNPARSED else ""


def _count_votes(sample: Sample, task: TaskConfig) -> None:
    """Read the answers of several judges, which are a sample's last steps, and set how it ends."""
    ballots = [_vote(step, task) for step in sample.steps[-task.judges :]]
    sample.steps[-task.judges :] = [
        replace(step, vote=vote) for step, (vote, _) in zip(sample.steps[-task.judges :], ballots, strict=True)
    ]
    sample.answer = majority_of([vote for vote, _ in ballots])
    sample.rambla_answer = majority_of([as_rambla for _, as_rambla in ballots])
    sample.outcome = Outcome.SCORED if sample.answer else Outcome.JUDGE_FAILED


def _vote(answer: Step, task: TaskConfig) -> tuple[str, str]:
    """The label that each set of rules reads in one judge's answer; empty where there is none."""
    if answer.failed:
        return "", ""
    if answer.finish_reason == SCORE:  # A number is no vote.
        label = answer.text if answer.text in task.answer.label_names else ""
        return label, label
    reading, as_rambla = _readings(answer, task)
    return _label(reading.answer, task), _label(as_rambla, task)


def _label(choice: str | None, task: TaskConfig) -> str:
    """The label that a choice stands for; empty for none."""
    return task.answer.label_of(choice) if choice else ""


def _last_step(sample: Sample, task: TaskConfig) -> tuple[Step, bool]:
    """The last step of the task's own stages, and whether all of them were answered, or put to several judges."""
    steps = sample.stage_steps
    return steps[-1], len(steps) == len(task.turns) and (task.judges > 1 or not steps[-1].failed)


def _readings(answer: Step, task: TaskConfig) -> tuple[Reading, str | None]:
    """What each set of rules reads in an answer to a task; where likelihoods were asked for, the likeliest choice."""
    if task.answer.by == "likelihood":
        choice = answer.text if answer.text in task.answer.choices else None
        return Reading(choice, "likelihood"), choice
    read = _read_cached if len(answer.text) <= SHORT else _read
    compares, cut = isinstance(task.generates[-1], Compare), answer.finish_reason == "length"
    return read(answer.text, task.answer.choices, compares=compares, cut=cut)


def _read(text: str, choices: tuple[str, ...], *, compares: bool, cut: bool) -> tuple[Reading, str | None]:
    """Where texts are compared, RAmBLA's rules take `null` for a choice; `cut` is a text that reached its limit."""
    as_rambla = read_rambla(text, (*choices, NULL) if compares else choices)
    return read_robust(text, choices, cut=cut), None if as_rambla == NULL else as_rambla


_read_cached = lru_cache(maxsize=4096)(_read)


def _named_by_reader(sample: Sample, task: TaskConfig) -> str | None:
    """The choice that the reader named; None where it was not asked, failed, or named none."""
    step = sample.steps[-1]
    if step.role != Role.READER or step.failed:
        return None
    replies, cut = possible_replies(task.answer.choices), step.finish_reason == "length"
    named = read_robust(step.text, replies, cut=cut).answer
    return named if named in task.answer.choices else None


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
    return _reason_without_answer(last, refused=refused)


def _reason_without_answer(last: Step, *, refused: bool) -> Outcome:
    """Why nothing was read from a step, whoever made it."""
    if last.failed:
        return _OUTCOME_OF_ERROR.get(ErrorKind(last.error_kind), Outcome.FAILED)
    if refused or last.finish_reason == "content_filter":
        return Outcome.REFUSED
    if last.finish_reason == "length":  # Without any text where thinking has taken all the tokens.
        return Outcome.TRUNCATED
    return Outcome.UNPARSED if last.text.strip() else Outcome.EMPTY
