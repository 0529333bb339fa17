"""The items of a run's tasks: those of each dataset, what a task's stages make of them, and their right answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from rambla_ray.config.dataset import Selection, normalised
from rambla_ray.config.run import RunConfig
from rambla_ray.config.task import TaskConfig
from rambla_ray.data.source import load_dataset
from rambla_ray.errors import UserError
from rambla_ray.schema import Item
from rambla_ray.scoring.order import place
from rambla_ray.tasks.transforms import Transform


def selections_of(config: RunConfig) -> dict[str, Selection]:
    """The items of each dataset. Raises UserError, which names the tasks whose data could be read, if any."""
    loaded: dict[str, Selection] = {}
    failed: list[UserError] = []
    for name, dataset in config.datasets.items():
        try:
            loaded[name] = load_dataset(dataset, name, demo=config.synthetic)
        except UserError as error:
            failed.append(error)
    if failed:
        others = ",".join(name for name, task in config.tasks.items() if task.dataset in loaded)
        raise UserError(f"{failed[0]}{f'; the data of these can be read: task={others}' if others else ''}")
    return loaded


def by_variant(name: str, task: TaskConfig, items: list[Item], seed: int) -> dict[str, list[Item]]:
    """The items of each variant of a task; phrasings share theirs. Raises UserError."""
    if task.phrased is not None:
        return dict.fromkeys(task.variants, transformed(name, task, items, seed, task.variants[0]))
    return {variant: transformed(name, task, items, seed, variant) for variant in task.variants}


def transformed(name: str, task: TaskConfig, items: list[Item], seed: int, variant: str) -> list[Item]:
    """The items of one variant of a task, as its stages that ask nobody make them. Raises UserError."""
    try:
        for stage in task.stages:
            if isinstance(stage, Transform):
                items = stage.apply(items, seed, variant)
    except UserError as error:
        raise UserError(f"task {name}: {error}") from None
    return items


def in_order_of(seed: int, items: dict[tuple[str, str], list[Item]]) -> dict[tuple[str, str], list[Item]]:
    """The items of each cell in the order of a run that may end early; cells that share theirs still do."""
    by_list = {id(own): own for own in items.values()}
    ordered = {key: sorted(own, key=lambda item: place(seed, item.root_id)) for key, own in by_list.items()}
    return {cell: ordered[id(own)] for cell, own in items.items()}


def labelled(name: str, task: TaskConfig, items: list[Item]) -> list[Item]:
    """The items, each with its right answer as the task's labels write it. Raises UserError where one is no label."""
    field, names = task.answer.target, task.answer.label_names
    written = {normalised(label): label for label in reversed(names)}
    labels = Counter(item.fields[field] for item in items)
    unknown = [label for label in labels if normalised(label) not in written]
    if unknown:
        raise UserError(
            f"task {name}: {sum(labels[label] for label in unknown)} of {len(items)} items have "
            f"a {field} that is not among the labels {', '.join(names)}: "
            f"'{unknown[0][:40]}'; add it to answer.choices, or drop them with keep in dataset {task.dataset}"
        )
    label_of = {label: label if label in names else written[normalised(label)] for label in labels}
    if all(label == known for label, known in label_of.items()):
        return items  # Tasks that change nothing share their items.
    return [replace(item, fields={**item.fields, field: label_of[item.fields[field]]}) for item in items]
