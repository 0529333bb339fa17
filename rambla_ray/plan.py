"""The plan: which samples a run is made of, which pools they pass, and whether the cluster can hold those at once."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rambla_ray import prompts
from rambla_ray.config import ModelConfig, Pool, RunConfig, TaskConfig
from rambla_ray.datasets import load_items
from rambla_ray.errors import UserError
from rambla_ray.registry import model_class
from rambla_ray.schema import Role, Sample
from rambla_ray.stages import Item, Transform

ROWS_PER_BLOCK = 16  # a block is the unit of streaming, of retry and of overhead


@dataclass(frozen=True, slots=True)
class Level:
    """One pool of a stream, and the roles it plays: those that follow each other and have the same model config."""

    name: str
    config: ModelConfig
    roles: tuple[Role, ...]


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a cluster has: CPUs and GPUs in all, and on its largest node."""

    cpus: float
    gpus: float
    node_cpus: float
    node_gpus: float


class Plan:
    """A run's samples and streams, before anything is asked.

    Args:
        config: the run.

    Raises:
        UserError: data that cannot be read, labels that cannot be answered, too few items, a missing key or file.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        loaded = {name: load_items(dataset, name, demo=config.synthetic) for name, dataset in config.datasets.items()}
        self._items = {
            name: _transformed(name, task, loaded[task.dataset], config.options.seed)
            for name, task in config.tasks.items()
        }
        for name, task in config.tasks.items():
            _check_labels(name, task, self._items[name])
        for target in config.targets:
            for level in self.levels(target):
                _check_produces_text(level)

    @property
    def samples_per_target(self) -> int:
        """How many samples one target's stream holds."""
        return sum(len(items) for items in self._items.values())

    def levels(self, target: str) -> tuple[Level, ...]:
        """The pools of a target's stream, in the order in which samples pass them."""
        levels: list[Level] = []
        used = {stage.role for task in self.config.tasks.values() for stage in task.generates}
        for role in Role:
            if role not in used:
                continue
            if role == Role.TARGET:
                name, config = target, self.config.targets[target]
            else:
                name, config = self.config.roles[role].config_name, self.config.roles[role].config
            if levels and (levels[-1].name, levels[-1].config) == (name, config):
                levels[-1] = Level(name, config, (*levels[-1].roles, role))
            else:
                levels.append(Level(name, config, (role,)))
        return tuple(levels)

    def samples(self, target: str) -> Iterator[Sample]:
        """A target's samples, by task and item."""
        for name, items in self._items.items():
            task = self.config.tasks[name]
            for item in items:
                yield Sample(
                    sample_id=f"{target}/{name}/-/{item.root_id}",
                    root_id=item.root_id,
                    model=target,
                    task=name,
                    variant="",
                    target=task.answer.expect or item.fields[task.answer.target],
                    fields=dict(item.fields),
                )

    def blocks(self, target: str, actors: int) -> Iterator[list[Sample]]:
        """A target's samples in blocks, small enough that each of `actors` gets some."""
        total = self.samples_per_target
        rows = min(max(ROWS_PER_BLOCK, min(256, total // 512)), math.ceil(total / (2 * actors)))
        samples = self.samples(target)
        while block := list(itertools.islice(samples, rows)):
            yield block

    def describe(self) -> dict[str, Any]:
        """The plan as JSON values: per task its samples and stages, per target its pools."""
        tasks = {}
        for name, task in self.config.tasks.items():
            items = self._items[name]
            first = task.generates[0]
            distinct = len({prompts.render(first.template, item.fields) for item in items})
            tasks[name] = {
                "samples": len(items),
                "dataset": task.dataset,
                "labels": dict(sorted(Counter(item.fields[task.answer.target] for item in items).items())),
                "stages": [
                    {
                        "role": stage.role,
                        "writes": stage.output,
                        "calls": len(items),
                        # what a later stage asks depends on what the earlier ones answer
                        "distinct_prompts": distinct if stage is first else None,
                    }
                    for stage in task.generates
                ],
                "example_prompt": prompts.render(first.template, items[0].fields),
            }
        return {
            "synthetic": self.config.synthetic,
            "samples_per_target": self.samples_per_target,
            "tasks": tasks,
            "streams": {
                target: [
                    {"model": level.name, "kind": level.config.name, "roles": list(level.roles)}
                    for level in self.levels(target)
                ]
                for target in self.config.targets
            },
        }

    def preflight(self, *, same_machine: bool) -> None:
        """Check every model that will be used. Raises UserError, naming the model, its role and the way out."""
        levels = {(level.name, level.roles): level for target in self.config.targets for level in self.levels(target)}
        for level in levels.values():
            kind = model_class(level.config.name, level.name)
            try:
                kind.preflight(kind.Params.model_validate(level.config.params), same_machine=same_machine)
            except UserError as error:
                raise UserError(f"model {level.name}: {error}{self._way_out(level)}") from None

    def _way_out(self, level: Level) -> str:
        if Role.TARGET in level.roles:
            return ""
        role = level.roles[0]
        tasks = [name for name, task in self.config.tasks.items() if any(s.role == role for s in task.generates)]
        return f"; it is the {role} of task {', '.join(tasks)}, choose another with roles.{role}=<model>"


def settle_pool(level: Level, cluster: Cluster) -> Pool:
    """The level's pool with its resources settled.

    An API model takes no CPU slot. A local model takes one GPU where the cluster has any, else an equal share of the
    CPUs for each of its actors.

    Raises:
        UserError: no node can hold one actor; the numbers are in the message.
    """
    pool = level.config.pool
    if not model_class(level.config.name, level.name).is_local:
        settled = pool.model_copy(update={"num_cpus": pool.num_cpus or 0.0, "num_gpus": pool.num_gpus or 0.0})
    else:
        gpus = pool.num_gpus if pool.num_gpus is not None else float(min(1.0, cluster.node_gpus))
        share = max(1, min(cluster.node_cpus, cluster.cpus // pool.min_size))
        cpus = pool.num_cpus if pool.num_cpus is not None else (0.0 if gpus else float(share))
        settled = pool.model_copy(update={"num_cpus": cpus, "num_gpus": gpus})
    for what, asked, largest in (
        ("CPUs", settled.num_cpus, cluster.node_cpus),
        ("GPUs", settled.num_gpus, cluster.node_gpus),
    ):
        if asked and asked > largest:
            raise UserError(
                f"model {level.name}: one actor asks for {asked:g} {what}, the largest node has {largest:g}; "
                f"set pool.num_{what.lower()}={largest:g} or add a node"
            )
    return settled


def fit_together(pools: Sequence[Pool], cluster: Cluster) -> bool:
    """Whether the cluster can hold all these pools, at their smallest, at the same time."""
    cpus = sum(pool.min_size * (pool.num_cpus or 0.0) for pool in pools)
    gpus = sum(pool.min_size * (pool.num_gpus or 0.0) for pool in pools)
    return cpus <= cluster.cpus and gpus <= cluster.gpus


def calls_per_actor(pool: Pool, rows_per_block: int) -> int:
    """How many blocks one actor works on at once, so that `max_concurrency` rows are in flight.

    Ray Data runs at most 16 rows of a block at the same time.
    """
    return math.ceil(pool.max_concurrency / min(16, rows_per_block))


def _transformed(name: str, task: TaskConfig, items: list[Item], seed: int) -> list[Item]:
    try:
        for stage in task.stages:
            if isinstance(stage, Transform):
                items = stage.apply(items, seed)
    except UserError as error:
        raise UserError(f"task {name}: {error}") from None
    return items


def _check_labels(name: str, task: TaskConfig, items: Sequence[Item]) -> None:
    labels = Counter(item.fields[task.answer.target] for item in items)
    strange = [label for label in labels if label not in task.answer.choices]
    if strange:
        raise UserError(
            f"task {name}: {sum(labels[label] for label in strange)} of {len(items)} items have "
            f"a {task.answer.target} that is not among the choices {', '.join(task.answer.choices)}: "
            f"'{strange[0][:40]}'; add it to answer.choices, or drop them with keep in dataset {task.dataset}"
        )


def _check_produces_text(level: Level) -> None:
    kind = model_class(level.config.name, level.name)
    if kind.produces != "text":
        raise UserError(
            f"model {level.name} gives a {kind.produces}, but as {level.roles[0]} it must answer with text; choose a "
            "text model"
        )
