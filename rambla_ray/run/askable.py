"""Whether the models of a run can be asked what its tasks ask them, by what each kind of model takes and gives."""

from __future__ import annotations

from collections.abc import Mapping

from rambla_ray.config.task import TaskConfig
from rambla_ray.errors import UserError
from rambla_ray.run.placement import Level
from rambla_ray.schema import SCORE, Role
from rambla_ray.tasks.stages import Compare


def check_askable(level: Level, tasks: Mapping[str, TaskConfig]) -> None:
    """Refuse a model that gives no text where one is asked for, or sends no system prompt where a stage has one.

    Raises:
        UserError: naming the model, the task, and the way out.
    """
    _check_produces(level, tasks)
    _check_system_prompts(level, tasks)


def _check_produces(level: Level, tasks: Mapping[str, TaskConfig]) -> None:
    if level.config.params.produces == "text":
        return
    if Role.READER in level.roles:
        raise UserError(
            f"model {level.name} compares two texts, so it cannot read an answer; choose a text model with "
            "roles.reader=<model>"
        )
    for name, task in tasks.items():
        if Role.JUDGE in level.roles and task.judges > 1 and not level.config.params.can_vote:
            raise UserError(
                f"model {level.name} gives a number that says how alike two texts are, which is no vote, and task "
                f"{name} has a panel of {task.judges} judges; leave it out of roles.judge, or let it judge alone"
            )
        for stage in task.generates:
            if stage.role in level.roles and not isinstance(stage, Compare):
                raise UserError(
                    f"model {level.name} compares two texts, but task {name} asks its {stage.role} for an "
                    "answer; choose a text model, or a similarity task"
                )


def _check_system_prompts(level: Level, tasks: Mapping[str, TaskConfig]) -> None:
    """Refuse a stage with a system prompt whose model sends none; one that compares two texts reads no prompt."""
    params = level.config.params
    if params.takes_system_prompt or params.produces == SCORE:
        return
    for name, task in tasks.items():
        for stage in task.generates:
            if stage.role in level.roles and stage.system:
                raise UserError(
                    f"task {name} gives its {stage.role} a system prompt ({stage.kind}.system), which model "
                    f"{level.name} ({level.config.name}) has no place for: choose a chat model, or put it into the "
                    "template"
                )
