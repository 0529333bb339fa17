"""The plan: which samples a run is made of, which pools they pass, and whether the cluster can hold those at once."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rambla_ray import prompts
from rambla_ray.config import ModelConfig, Pool, RunConfig, TaskConfig
from rambla_ray.datasets import load_items
from rambla_ray.errors import ErrorKind, UserError
from rambla_ray.registry import model_class
from rambla_ray.schema import Role, Sample, Step
from rambla_ray.stages import Compare, Generate, Item, Transform

ROWS_PER_BLOCK = 16
MOST_ROWS_PER_BLOCK = 256  # for models that answer many requests at the same time


@dataclass(frozen=True, slots=True)
class Level:
    """One pool of a stream, and the roles it plays: those that follow each other and have the same model config."""

    name: str
    config: ModelConfig
    roles: tuple[Role, ...]

    def settled(self, cluster: Cluster) -> Level:
        """This level with its pool's resources settled. Raises UserError; see `settle_pool`."""
        return replace(self, config=self.config.model_copy(update={"pool": settle_pool(self, cluster)}))


class Node(NamedTuple):
    """What a node has."""

    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a cluster has, and whether more may come.

    Args:
        nodes: those that are there.
        free: of each, what nobody uses; all of it when not given.
        grows: an autoscaler may start nodes. What they would have is not known before it is asked for.
    """

    nodes: tuple[Node, ...]
    free: tuple[Node, ...] | None = None
    grows: bool = False

    @property
    def cpus(self) -> float:
        """Of all nodes together."""
        return sum(node.cpus for node in self.nodes)

    @property
    def node_cpus(self) -> float:
        """Of the node with the most."""
        return max((node.cpus for node in self.nodes), default=0.0)

    @property
    def node_gpus(self) -> float:
        """Of the node with the most."""
        return max((node.gpus for node in self.nodes), default=0.0)

    def holds(self, pools: Sequence[Pool]) -> bool:
        """Whether the nodes that are there hold all these pools, at their smallest, at the same time."""
        return _places(self.nodes, [actor for pool in pools for actor in _actors(pool)])

    def holds_now(self, pools: Sequence[Pool]) -> bool:
        """The same, with what others use left to them."""
        free = self.nodes if self.free is None else self.free
        return _places(free, [actor for pool in pools for actor in _actors(pool)])


def _actors(pool: Pool) -> list[Node]:
    """What each of a pool's actors takes, at its smallest."""
    return [Node(pool.num_cpus or 0.0, pool.num_gpus or 0.0)] * pool.min_size


def _places(nodes: Sequence[Node], actors: Sequence[Node]) -> bool:
    """Whether actors find room: the largest first, each on the node that is left with the least."""
    room = list(nodes)
    for actor in sorted(actors, key=lambda actor: (actor.gpus, actor.cpus), reverse=True):
        left = [Node(round(n.cpus - actor.cpus, 6), round(n.gpus - actor.gpus, 6)) for n in room]
        fitting = [place for place, node in enumerate(left) if min(node) >= 0]
        if not fitting:
            return not any(actor)  # it takes nothing
        best = min(fitting, key=lambda place: (left[place].gpus, left[place].cpus))
        room[best] = left[best]
    return True


ITEM_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("root_id", "fields", "fault")]  # fields: a JSON string
)


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
        return levels_of(self.config, target)

    @property
    def expected(self) -> dict[tuple[str, str], int]:
        """How many samples each (task, variant) has, for one target."""
        return {key: len(items) for key, items in self._items.items()}

    def samples(self, target: str) -> Iterator[Sample]:
        """A target's samples, by task and item."""
        for (name, variant), items in self._items.items():
            for item in items:
                yield sample_of(target, name, self.config.tasks[name], variant, item)

    def tables(self) -> Iterator[tuple[list[tuple[str, str]], pa.Table]]:
        """The items as tables of `ITEM_SCHEMA`, each with the (task, variant) pairs that it is for.

        Tasks that change nothing in a dataset share its table.
        """
        users: dict[int, list[tuple[str, str]]] = {}
        for key, items in self._items.items():
            users.setdefault(id(items), []).append(key)
        for keys in users.values():
            items = self._items[keys[0]]
            columns = [[item.root_id for item in items], [json.dumps(item.fields) for item in items]]
            yield keys, pa.table([*columns, [item.fault for item in items]], schema=ITEM_SCHEMA)

    def blocks(self, first: Level) -> list[dict[str, Any]]:
        """One target's samples as blocks: `count` items from `first` on, of a task and variant.

        For a local model, the same items' blocks of all tasks follow each other: what their prompts begin with alike
        is computed once.

        A block is the unit of streaming, of retry and of overhead: small enough that each actor gets some and a slow
        model's answers come in steadily, large enough that its own cost is small beside that of its calls.

        Args:
            first: the first pool of the target's stream, settled.
        """
        pool = first.config.pool
        total, most = self.samples_per_target, ROWS_PER_BLOCK
        is_local = model_class(first.config.name, first.name).is_local
        if not is_local:
            most = max(most, min(MOST_ROWS_PER_BLOCK, max(pool.max_concurrency, total // 512)))
        rows = max(1, min(most, math.ceil(total / (2 * pool.largest))))
        blocks = [
            {"task": name, "variant": variant, "first": start, "count": min(rows, count - start)}
            for (name, variant), count in self.expected.items()
            for start in range(0, count, rows)
        ]
        return sorted(blocks, key=lambda block: block["first"]) if is_local else blocks

    def describe(self) -> dict[str, Any]:
        """The plan as JSON values: per task its samples and stages, per target its pools and what it will be asked.

        Tokens are estimated at four characters each. What a later stage is sent depends on what earlier ones answer:
        its calls are an upper bound, its tokens an estimate from the item's own texts.
        """
        asked: dict[str, list[_Asked]] = {}
        tasks: dict[str, Any] = {}
        for name, task in self.config.tasks.items():
            items = [item for variant in task.variants for item in self._items[name, variant]]
            asked[name] = [_Asked.of(stage, items) for stage in task.generates]
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
                        "calls": sent.calls,
                        "distinct_prompts": len(_distinct([sent.digests])),
                        "prompt_tokens": sent.tokens,
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

    def _load(self, level: Level, asked: Mapping[str, list[_Asked]]) -> dict[str, Any]:
        """What a pool will be asked: unique calls whose prompt is known, others at most, tokens, cost."""
        first: list[_Asked] = []
        later = tokens = 0
        for name, task in self.config.tasks.items():
            for number, (stage, sent) in enumerate(zip(task.generates, asked[name], strict=True)):
                if stage.role not in level.roles:
                    continue
                if number == 0:
                    first.append(sent)
                else:
                    later += sent.calls
                    tokens += sent.tokens
        known = _distinct([sent.digests for sent in first])
        tokens += int(known["tokens"].sum())
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
            if self.config.options.budget.usd is not None and kind.is_charged and not level.config.price:
                raise UserError(
                    f"budget.usd needs to know what model {level.name} charges: give it a price "
                    "(price: {input_per_million: ..., output_per_million: ...}), or use budget.tokens"
                )
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


def levels_of(config: RunConfig, target: str) -> tuple[Level, ...]:
    """The pools of a target's stream, in the order in which samples pass them."""
    levels: list[Level] = []
    used = {stage.role for task in config.tasks.values() for stage in task.generates}
    for role in Role:
        if role not in used:
            continue
        if role == Role.TARGET:
            name, model = target, config.targets[target]
        else:
            name, model = config.roles[role].config_name, config.roles[role].config
        if levels and (levels[-1].name, levels[-1].config) == (name, model):
            levels[-1] = Level(name, model, (*levels[-1].roles, role))
        else:
            levels.append(Level(name, model, (role,)))
    return tuple(levels)


def sample_of(target: str, name: str, task: TaskConfig, variant: str, item: Item) -> Sample:
    """The sample that an item is under one variant of a task, for one target."""
    return Sample(
        sample_id=f"{target}/{name}/{variant or '-'}/{item.root_id}",
        root_id=item.root_id,
        model=target,
        task=name,
        variant=variant,
        target=task.answer.expect or item.fields[task.answer.target],
        label=item.fields[task.answer.target],
        fields=dict(item.fields),
        steps=[_not_asked(target, item.fault)] if item.fault else [],
    )


def settle_pool(level: Level, cluster: Cluster) -> Pool:
    """The level's pool with its resources settled.

    An API model takes no CPU slot. A local model takes one GPU where the cluster has any, or may get some, else an
    equal share of the CPUs for each of its actors.

    Raises:
        UserError: the cluster cannot hold the pool at its smallest; the numbers are in the message.
    """
    pool = level.config.pool
    if not model_class(level.config.name, level.name).is_local:
        settled = pool.model_copy(update={"num_cpus": pool.num_cpus or 0.0, "num_gpus": pool.num_gpus or 0.0})
    else:
        most = 1.0 if cluster.grows else cluster.node_gpus
        gpus = pool.num_gpus if pool.num_gpus is not None else min(1.0, most)
        share = max(1, min(cluster.node_cpus, cluster.cpus // pool.min_size))
        cpus = pool.num_cpus if pool.num_cpus is not None else (0.0 if gpus else float(share))
        settled = pool.model_copy(update={"num_cpus": cpus, "num_gpus": gpus})
    if cluster.grows or cluster.holds([settled]):
        return settled
    for what, asked, largest in (
        ("CPUs", settled.num_cpus or 0.0, cluster.node_cpus),
        ("GPUs", settled.num_gpus or 0.0, cluster.node_gpus),
    ):
        if asked > largest:
            raise UserError(
                f"model {level.name}: one actor asks for {asked:g} {what}, the largest node has {largest:g}; "
                f"set pool.num_{what.lower()}={largest:g} or add a node"
            )
    fits = next(
        size
        for size in range(pool.min_size - 1, -1, -1)
        if cluster.holds([settled.model_copy(update={"min_size": size})])
    )
    one = said(settled)
    if not fits:
        raise UserError(f"model {level.name}: one actor asks for {one}, and no node has both; add a node")
    raise UserError(
        f"model {level.name}: {pool.min_size} actors of {one} each do not fit the cluster, which has room for {fits}; "
        f"set pool.min_size={fits} or add nodes"
    )


def said(pool: Pool) -> str:
    """What one actor of a settled pool takes, in words."""
    taken = ((pool.num_cpus, "CPU"), (pool.num_gpus, "GPU"))
    return " and ".join(counted(count, what) for count, what in taken if count) or "no CPU"


def counted(count: float, what: str) -> str:
    """A number of things, in words."""
    return f"{count:.12g} {what}{'' if count == 1 else 's'}"


def waits_for(level: Level, cluster: Cluster) -> str:
    """What a settled level that has no room now waits for; empty when it has room."""
    pool = level.config.pool
    if cluster.holds_now([pool]):
        return ""
    actors = f"{counted(pool.min_size, 'actor')} of {said(pool)}"
    source = "others give it back" if cluster.holds([pool]) else "the cluster's autoscaler brings it"
    return f"model {level.name} waits until there is room for {actors}: {source}"


def run_together(levels: Sequence[Level], cluster: Cluster) -> bool:
    """Whether a stream's pools run at the same time, or one after another, each freed before the next.

    They do where the cluster, as it is, holds them all, unless one local model would be loaded twice. Whether nodes
    that an autoscaler brings would hold them is not known: a pool that waits for its node stops the whole stream.
    """
    local = [level.config for level in levels if model_class(level.config.name, level.name).is_local]
    if any(config in local[:place] for place, config in enumerate(local)):
        return False
    taking = [level.config.pool for level in levels if level.config.pool.num_cpus or level.config.pool.num_gpus]
    return len(taking) <= 1 or cluster.holds(taking)


def calls_per_actor(pool: Pool, rows_per_block: int) -> int:
    """How many blocks one actor works on at once, so that `max_concurrency` rows are being asked.

    Rows that wait for the ledger, or for the others of their block, ask nothing: hence three times as many, and two.
    """
    return math.ceil(3 * pool.max_concurrency / rows_per_block) + 2


def _known(stage: Generate, item: Item) -> dict[str, str]:
    """The fields a stage reads, as far as they are known before anything is answered."""
    return {name: item.fields.get(name, "") for name in stage.reads()}


_PROMPT = np.dtype([("digest", "V16"), ("tokens", np.int64)])


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a stage will send: for each prompt a digest to tell it from others, and about how long it is in tokens."""

    digests: NDArray[np.void]

    @classmethod
    def of(cls, stage: Generate, items: Sequence[Item]) -> _Asked:
        """As far as it is known before anything is answered, for each item that can be asked."""
        prompt_of = (prompts.render(stage.template, _known(stage, item)) for item in items if not item.fault)
        return cls(
            np.fromiter(
                ((_digest(prompt), len(prompt) // 4 + 1) for prompt in prompt_of),
                dtype=_PROMPT,
            )
        )

    @property
    def calls(self) -> int:
        return len(self.digests)

    @property
    def tokens(self) -> int:
        return int(self.digests["tokens"].sum())


def _digest(prompt: str) -> bytes:
    return hashlib.blake2b(prompt.encode(errors="surrogatepass"), digest_size=16).digest()


def _distinct(digests: Sequence[NDArray[np.void]]) -> NDArray[np.void]:
    """The rows of some arrays, each digest once."""
    rows = np.concatenate(digests) if digests else np.empty(0, dtype=_PROMPT)
    _, first = np.unique(rows["digest"], return_index=True)
    return rows[first]


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
