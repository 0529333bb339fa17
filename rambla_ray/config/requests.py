"""What a stage sends for a sample: made here for the actors that ask, and for the plan that counts what they will."""

from __future__ import annotations

from typing import Any

from rambla_ray.config.task import TaskConfig, first_draw
from rambla_ray.schema import Request, Role, Sample
from rambla_ray.tasks.stages import Compare, Generate


def request_of(sample: Sample, task: TaskConfig, stage: Generate, *, scores: bool) -> Request:
    """The filled template, or the two texts themselves to a model that compares them.

    Args:
        sample: whose fields are sent.
        task: its task.
        stage: one of the task's, or what asks the reader.
        scores: whether the model that is asked says how alike two texts are.

    Raises:
        KeyError: the sample lacks a field.
    """
    is_last = stage.role == Role.READER or stage is task.generates[-1]
    own: dict[str, Any] = {
        # A paraphrase is part of the question, which is put once; what two texts have in common is no draw.
        "epoch": 0 if stage.role == Role.REPHRASER or scores else sample.epoch,
        "sample_id": first_draw(sample),
        "target": task.answer.choice_for(sample.target),
        "choices": task.answer.choices if is_last else (),
        "continuations": task.choices_asked_by(stage),
    }
    if isinstance(stage, Compare) and scores:
        return Request(sample.fields[stage.left], sample.fields[stage.right], **own)
    return Request(stage.phrased(sample.variant).render(sample.fields), system=stage.system or "", **own)
