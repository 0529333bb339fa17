"""Whether the targets of a run can say how likely the choices of its tasks are, where a task asks for that."""

from __future__ import annotations

from collections.abc import Mapping

from rambla_ray.config.model import ModelConfig
from rambla_ray.config.task import TaskConfig
from rambla_ray.errors import UserError


def for_likelihood(targets: Mapping[str, ModelConfig], tasks: Mapping[str, TaskConfig]) -> dict[str, ModelConfig]:
    """The targets, settled for what the tasks ask.

    Raises:
        UserError: naming a task that is answered by likelihood, a model that cannot, and the reason.
    """
    asking = next((name for name, task in tasks.items() if task.answer.by == "likelihood"), None)
    if asking is None:
        return dict(targets)
    return {name: _settled(name, config, asking) for name, config in targets.items()}


def _settled(name: str, config: ModelConfig, task: str) -> ModelConfig:
    try:
        params = config.params.for_likelihood()
        if config.batch is not None:
            raise UserError("is asked in batches of its provider, which give none; leave batch out")
    except UserError as error:
        raise UserError(
            f"task {task} is answered by likelihood (answer.by), but model {name} ({config.name}) {error}"
        ) from None
    return config.model_copy(update={"params": params})
