"""The plan: which samples a run is made of, which pools they pass, and whether the cluster can hold those at once."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rambla_ray import prompts
from rambla_ray.config import ModelConfig, Pool, RunConfig, TaskConfig
from rambla_ray.datasets import load_items
from rambla_ray.errors import ErrorKind, UserError
from rambla_ray.registry import model_class
from rambla_ray.schema import Role, Sample, Step
from rambla_ray.stages import Compare, Generate, Item, Transform

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
        for name, task in config.tasks.items():
            _check_labels(name, task, loaded[task.dataset])
        self._items = {
            (name, variant): _transformed(name, task, loaded[task.dataset], config.options.seed, variant)
            for name, task in config.tasks.items()
            for variant in task.variants
        }
        for target in config.targets:
            for level in self.levels(target):
                _check_produces(level, config.tasks)

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
        for (name, variant), items in self._items.items():
            answer = self.config.tasks[name].answer
            for item in items:
                yield Sample(
                    sample_id=f"{target}/{name}/{variant or '-'}/{item.root_id}",
                    root_id=item.root_id,
                    model=target,
                    task=name,
                    variant=variant,
                    target=answer.expect or item.fields[answer.target],
                    fields=dict(item.fields),
                    steps=[_not_asked(target, item.fault)] if item.fault else [],
                )

    def blocks(self, target: str, actors: int) -> Iterator[list[Sample]]:
        """A target's samples in blocks, small enough that each of `actors` gets some."""
        total = self.samples_per_target
        rows = min(max(ROWS_PER_BLOCK, min(256, total // 512)), math.ceil(total / (2 * actors)))
        samples = self.samples(target)
        while block := list(itertools.islice(samples, rows)):
            yield block

    def describe(self) -> dict[str, Any]:
        """The plan as JSON values: per task its samples and stages, per target its pools and what it will be asked.

        Tokens are estimated at four characters each. What a later stage is sent depends on what earlier ones answer:
        its calls are an upper bound, its tokens an estimate from the item's own texts.
        """
        asked: dict[str, list[list[_Prompt]]] = {}
        tasks: dict[str, Any] = {}
        for name, task in self.config.tasks.items():
            items = [item for variant in task.variants for item in self._items[name, variant]]
            asked[name] = [_asked(stage, items) for stage in task.generates]
            tasks[name] = {
                "samples": len(items),
                "variants": [variant for variant in task.variants if variant],
                "dataset": task.dataset,
                "labels": dict(sorted(Counter(item.fields[task.answer.target] for item in items).items())),
                "not_asked": sum(bool(item.fault) for item in items),
                "stages": [
                    {
                        "kind": stage.kind,
                        "role": stage.role,
                        "writes": stage.output,
                        "calls": len(sent),
                        "distinct_prompts": len(set(sent)),
                        "prompt_tokens": sum(prompt.tokens for prompt in sent),
                    }
                    for stage, sent in zip(task.generates, asked[name], strict=True)
                ],
                "example_prompt": prompts.render(task.generates[0].template, _known(task.generates[0], items[0])),
            }
        return {
            "synthetic": self.config.synthetic,
            "samples_per_target": self.samples_per_target,
            "tasks": tasks,
            "streams": {
                target: [
                    {
                        "model": level.name,
                        "kind": level.config.name,
                        "roles": list(level.roles),
                        **self._load(level, asked),
                    }
                    for level in self.levels(target)
                ]
                for target in self.config.targets
            },
        }

    def _load(self, level: Level, asked: Mapping[str, list[list[_Prompt]]]) -> dict[str, Any]:
        """What a pool will be asked: unique calls whose prompt is known, others at most, tokens, cost."""
        known: set[_Prompt] = set()
        later = tokens = 0
        for name, task in self.config.tasks.items():
            for number, (stage, sent) in enumerate(zip(task.generates, asked[name], strict=True)):
                if stage.role not in level.roles:
                    continue
                if number == 0:
                    known.update(sent)
                else:
                    later += len(sent)
                    tokens += sum(prompt.tokens for prompt in sent)
        tokens += sum(prompt.tokens for prompt in known)
        load: dict[str, Any] = {"unique_calls": len(known), "later_calls_at_most": later, "prompt_tokens": tokens}
        if level.config.price:
            longest = level.config.params.get("max_tokens") or 0
            load["cost_usd_at_most"] = level.config.price.cost(tokens, (len(known) + later) * longest)
        return load

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


def _known(stage: Generate, item: Item) -> dict[str, str]:
    """The fields a stage reads, as far as they are known before anything is answered."""
    return {name: item.fields.get(name, "") for name in stage.reads()}


class _Prompt(NamedTuple):
    """A prompt that will be sent: enough to tell it from others, and about how long it is."""

    digest: bytes
    tokens: int


def _asked(stage: Generate, items: Sequence[Item]) -> list[_Prompt]:
    """What a stage will send, as far as it is known, for each item that can be asked."""
    rendered = (prompts.render(stage.template, _known(stage, item)) for item in items if not item.fault)
    return [
        _Prompt(hashlib.sha256(prompt.encode(errors="surrogatepass")).digest(), len(prompt) // 4 + 1)
        for prompt in rendered
    ]


def _not_asked(model: str, fault: str) -> Step:
    """The step of a sample that no stage can ask."""
    return Step(
        stage="plan",
        role=Role.TARGET,
        model=model,
        request_id="",
        prompt="",
        error_kind=ErrorKind.BAD_ITEM,
        error=fault,
    )


def _transformed(name: str, task: TaskConfig, items: list[Item], seed: int, variant: str) -> list[Item]:
    try:
        for stage in task.stages:
            if isinstance(stage, Transform):
                items = stage.apply(items, seed, variant)
    except UserError as error:
        raise UserError(f"task {name}: {error}") from None
    return items


def _check_labels(name: str, task: TaskConfig, items: Sequence[Item]) -> None:
    labels = Counter(item.fields[task.answer.target] for item in items)
    strange = [label for label in labels if label not in task.answer.label_names]
    if strange:
        raise UserError(
            f"task {name}: {sum(labels[label] for label in strange)} of {len(items)} items have "
            f"a {task.answer.target} that is not among the labels {', '.join(task.answer.label_names)}: "
            f"'{strange[0][:40]}'; add it to answer.choices, or drop them with keep in dataset {task.dataset}"
        )


def _check_produces(level: Level, tasks: Mapping[str, TaskConfig]) -> None:
    if model_class(level.config.name, level.name).produces == "text":
        return
    for name, task in tasks.items():
        for stage in task.generates:
            if stage.role in level.roles and not isinstance(stage, Compare):
                raise UserError(
                    f"model {level.name} compares two texts, but task {name} asks its {stage.role} for an answer; "
                    "choose a text model, or a similarity task"
                )
