"""Several draws of each item: what a plan refuses of them, and what it remarks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from rambla_ray.config.run import RunConfig
from rambla_ray.errors import UserError
from rambla_ray.schema import Item, draw_name

_LIKE_A_DRAW = re.compile(r"(?s)(.*)#[1-9][0-9]*")


def check_draw_names(task: str, draws: int, items: Sequence[Item]) -> None:
    """Refuse items whose own id is that of another item's draw. Raises UserError."""
    ids = {item.root_id for item in items} if draws > 1 else set()
    for root_id in sorted(filter(_LIKE_A_DRAW.fullmatch, ids)):
        other, _, number = root_id.rpartition("#")
        if other in ids and 1 < int(number[:5]) <= draws and draw_name(other, int(number[:5]) - 1) == root_id:
            raise UserError(
                f"task {task}: item {root_id} is called as draw {number} of item {other} would be; rename it, or "
                "leave epochs out"
            )


def repeat_notes(config: RunConfig) -> Iterator[str]:
    """A line for each task whose answers are not drawn, and for each target whose draws are alike."""
    for name, task in config.tasks.items():
        if task.answer.by == "likelihood" and (config.options.epochs or 1) > 1:
            yield f"task {name} is answered by likelihoods, which are the same each time: it is asked once"
    most = max(task.draws for task in config.tasks.values())
    for target, model in config.targets.items():
        if most > 1 and model.params.is_greedy:
            yield f"{config.label(target)} answers greedily: its {most} draws are alike"
