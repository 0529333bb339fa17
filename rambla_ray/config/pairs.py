"""What a task's `pair_with` names: a task, or one of its variants, whose answers are to the same items."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from rambla_ray.config.dataset import DatasetConfig
from rambla_ray.config.task import TaskConfig
from rambla_ray.errors import UserError, choose_from


def check_pairs(
    tasks: Mapping[str, TaskConfig],
    datasets: Mapping[str, DatasetConfig],
    known: Collection[str],
    load: Callable[[str], TaskConfig],
) -> None:
    """Check the pairs of a run. One with a task that is not in the run is left out of the results, and no fault.

    Args:
        tasks: the tasks of the run.
        datasets: their datasets.
        known: the names of all tasks that there are.
        load: returns a task that is not in the run.

    Raises:
        UserError: a pair with nothing, with itself, with items of another kind, or one of a circle.
    """
    for name, task in tasks.items():
        if task.pair_with is None:
            continue
        where = f"task {name}: pair_with '{task.pair_with}'"
        other, _, variant = task.pair_with.partition("/")
        if other not in known:
            raise UserError(f"{where} names no task; {choose_from(other, known)}")
        partner = tasks[other] if other in tasks else load(other)
        if variant not in partner.variants:
            raise UserError(f"{where} {_no_such_variant(other, variant, partner)}")
        if other == name and partner.variants == ("",):
            raise UserError(f"{where} is the task itself; name another, or none (null)")
        if other in tasks and datasets[task.dataset].format != datasets[partner.dataset].format:
            raise UserError(
                f"{where} is asked about other items: its dataset is {partner.dataset}, and not {task.dataset}; name "
                "a task on the same items, or none (null)"
            )
    _refuse_circles({name: _partner(task) for name, task in tasks.items()})


def _no_such_variant(other: str, variant: str, partner: TaskConfig) -> str:
    if partner.variants == ("",):
        return f"names a variant, and task {other} has none; write '{other}'"
    if not variant:
        return f"needs a variant of that task: {', '.join(f'{other}/{variant}' for variant in partner.variants)}"
    return f"names no variant of that task; {choose_from(variant, partner.variants)}; or name none (null)"


def _partner(task: TaskConfig) -> str:
    """The task that another is compared with; empty without one."""
    return (task.pair_with or "").partition("/")[0]


def _refuse_circles(partners: Mapping[str, str]) -> None:
    """Raise a UserError where tasks are each compared with the next, and the last with the first."""
    for first in partners:
        way = [first]
        while (following := partners.get(way[-1], "")) not in (*way, ""):
            way.append(following)
        if following == first and len(way) > 1:
            raise UserError(
                f"task {first}: pair_with goes round in a circle ({' → '.join([*way, first])}), so that no task is "
                "what the others are measured against; leave one out (null)"
            )
