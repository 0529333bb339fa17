"""Placement: what each pool takes, and whether the cluster holds the pools of a stream at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from rambla_ray.config.labels import ModelNames
from rambla_ray.config.model import ModelConfig, RoleModel
from rambla_ray.config.run import RunConfig
from rambla_ray.config.sections import Pool
from rambla_ray.display import counted
from rambla_ray.errors import UserError
from rambla_ray.run.capacity import NodeResources, fit
from rambla_ray.run.pool_resources import actor_resources, demands, describe_resources
from rambla_ray.schema import Role

# The process of an actor takes at least so much memory, whatever its model: Python, Ray and this package.
PROCESS_GIB = 0.1
SMALLEST = 0.0001  # Ray counts CPUs and GPUs in these.


@dataclass(frozen=True, slots=True)
class PooledModel:
    """A model config, by its name, whose pool of actors is to be placed on a cluster."""

    name: str
    config: ModelConfig

    @property
    def names(self) -> ModelNames:
        """The names of the model."""
        return ModelNames(self.name, self.name, self.name)

    @property
    def pool(self) -> Pool:
        """The pool of actors that run the model."""
        return self.config.pool

    def settled(self, cluster: Cluster) -> Self:
        """This model with its pool's resources settled. Raises UserError; see `settle_pool`."""
        return self.with_pool(settle_pool(self, cluster))

    def with_pool(self, pool: Pool) -> Self:
        """This model with another pool."""
        return replace(self, config=self.config.model_copy(update={"pool": pool}))


@dataclass(frozen=True, slots=True)
class Level(PooledModel):
    """One pool of a stream, and the roles it plays: those that follow each other and have the same model config.

    Args:
        label: what people call the model, where that is not its name alone.
        key: what the run directory has it under, where its name stands for another model of the run, too.
        kin: the other targets that its actors answer for.
        seat: which of the judges it is, where it plays the judge.
    """

    roles: tuple[Role, ...]
    label: str = ""
    key: str = ""
    kin: tuple[Level, ...] = ()
    seat: int = 0

    @property
    def names(self) -> ModelNames:
        """The names of the model."""
        return ModelNames(self.name, self.label or self.name, self.key or self.name)

    @property
    def family(self) -> tuple[Level, ...]:
        """Itself, and those that share its actors."""
        return (self, *self.kin)


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a cluster has, and whether more may come.

    Args:
        nodes: the nodes that are up.
        free: of each node, what nobody uses; all of it when not given.
        grows: an autoscaler may start nodes. What they would have is not known before it is asked for.
        memory_gib: the memory for processes, of all nodes that are up together.
    """

    nodes: tuple[NodeResources, ...]
    free: tuple[NodeResources, ...] | None = None
    grows: bool = False
    memory_gib: float = math.inf

    @property
    def cpus(self) -> float:
        """The CPUs of all nodes together."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """The GPUs of all nodes together."""
        return sum(node.gpus for node in self.nodes)

    @property
    def node_cpus(self) -> float:
        """The CPUs of the node with the most."""
        return max((node.cpus for node in self.nodes), default=0.0)

    @property
    def node_gpus(self) -> float:
        """The GPUs of the node with the most."""
        return max((node.gpus for node in self.nodes), default=0.0)

    def holds(self, pools: Sequence[Pool]) -> bool:
        """Whether the nodes that are up hold all these pools, at their smallest, at the same time."""
        return fit(demands(pools), self.nodes)

    def holds_now(self, pools: Sequence[Pool]) -> bool:
        """The same, beside what others use."""
        return fit(demands(pools), self.nodes if self.free is None else self.free)


def levels_of(config: RunConfig, target: str) -> tuple[Level, ...]:
    """The pools that a target's samples pass, in this order."""
    levels: list[Level] = []
    used = config.used_roles()
    for role in Role:
        if role not in used:
            continue
        for level in (
            [_target_level(config, target)] if role == Role.TARGET else _role_levels(config.roles[role], role)
        ):
            if levels and (levels[-1].name, levels[-1].config) == (level.name, level.config):
                before = levels.pop()
                named = before if Role.TARGET in before.roles else level
                level = replace(named, roles=(*before.roles, role), seat=max(before.seat, level.seat))
            levels.append(level)
    return tuple(levels)


def _target_level(config: RunConfig, target: str) -> Level:
    stream = next(stream for stream in config.streams if target in stream)
    levels = {name: _alone(config, name) for name in stream}
    own = levels.pop(target)
    return replace(own, kin=tuple(levels.values()))


def _alone(config: RunConfig, target: str) -> Level:
    label = config.label(target)
    key = label if config.is_ambiguous(target) else target
    return Level(target, config.targets[target], (Role.TARGET,), label, key)


def _role_levels(played: RoleModel, role: Role) -> list[Level]:
    return [Level(player.config_name, player.config, (role,), seat=seat) for seat, player in enumerate(played.members)]


def settle_pool(model: PooledModel, cluster: Cluster) -> Pool:
    """The model's pool with its resources settled.

    An API model takes no CPU slot. A local model takes one GPU where the cluster has any, or may get some, else an
    equal share of the CPUs for each of its actors.

    Raises:
        UserError: the cluster cannot hold the pool at its smallest; the numbers are in the message.
    """
    pool = model.pool
    _refuse_parts(model.name, pool)
    if not model.config.params.is_local:
        actors = {"min_size": 1, "max_size": 1} if model.config.batch else {}  # All it asks goes into few batches.
        takes = {"num_cpus": pool.num_cpus or 0.0, "num_gpus": pool.num_gpus or 0.0}
        settled = pool.model_copy(update={**actors, **takes})
    else:
        most = 1.0 if cluster.grows else cluster.node_gpus
        gpus = pool.num_gpus if pool.num_gpus is not None else min(1.0, most)
        share = max(1, min(cluster.node_cpus, cluster.cpus // pool.min_size))
        cpus = pool.num_cpus if pool.num_cpus is not None else (0.0 if gpus else float(share))
        settled = pool.model_copy(update={"num_cpus": cpus, "num_gpus": gpus})
    if not cluster.grows and not cluster.holds([settled]):
        raise UserError(f"model {model.name}: {_why_no_room(settled, cluster)}")
    _refuse_crowd(model.name, settled, cluster)
    return settled


def _refuse_parts(name: str, pool: Pool) -> None:
    """Refuse what Ray gives to no actor."""
    for key, asked in (("num_cpus", pool.num_cpus or 0.0), ("num_gpus", pool.num_gpus or 0.0)):
        if 0 < asked < SMALLEST:
            raise UserError(
                f"model {name}: pool.{key}={asked:g} is less than Ray gives to an actor; set 0 or {SMALLEST}"
            )
    gpus = pool.num_gpus or 0.0
    if gpus > 1 and gpus != int(gpus):
        raise UserError(
            f"model {name}: pool.num_gpus={gpus:g}: an actor gets a part of one GPU, or whole ones; "
            f"set {int(gpus)} or {int(gpus) + 1}"
        )


def _refuse_crowd(name: str, pool: Pool, cluster: Cluster) -> None:
    """Refuse more actors than the nodes that are up have memory for, unless others may come for them."""
    takes_nothing = not any(actor_resources(pool))  # No node comes for an actor that takes nothing.
    key, count = ("max_size", pool.largest) if takes_nothing and pool.max_size else ("min_size", pool.min_size)
    if count == 1 or count * PROCESS_GIB <= cluster.memory_gib or (cluster.grows and not takes_nothing):
        return
    most = max(1, int(cluster.memory_gib / PROCESS_GIB))
    raise UserError(
        f"model {name}: {count} actors are as many processes, which take {count * PROCESS_GIB:.0f} GiB of memory or "
        f"more, and the cluster has {cluster.memory_gib:.0f}; set pool.{key}={most} or less"
    )


def _why_no_room(pool: Pool, cluster: Cluster) -> str:
    """Why the nodes that are up do not hold a settled pool at its smallest, and what to do about it."""
    if pool.node_count > 1:
        return _why_no_room_on_nodes(pool, cluster)
    actor = actor_resources(pool)
    for what, asked, largest in (
        ("CPUs", actor.cpus, cluster.node_cpus),
        ("GPUs", actor.gpus, cluster.node_gpus),
    ):
        if asked > largest:
            return (
                f"one actor asks for {asked:g} {what}, the largest node has {largest:g}; "
                f"set pool.num_{what.lower()}={largest:g} or add a node"
            )
    room = sum(node.room_for(actor) for node in cluster.nodes)
    resources = describe_resources(pool)
    if not room:
        return f"one actor asks for {resources}, and no node has both; add a node"
    return (
        f"{pool.min_size} actors of {resources} each do not fit the cluster, which has room for {room}; "
        f"set pool.min_size={room} or add nodes"
    )


def _why_no_room_on_nodes(pool: Pool, cluster: Cluster) -> str:
    """The same, for a pool whose actors are spread over several nodes each."""
    part = actor_resources(pool)
    able = sum(node.holds(part) for node in cluster.nodes)
    asked = describe_resources(pool)
    if able < pool.node_count:
        return (
            f"one actor asks for {asked}, of which the cluster has {able}; set pool.nodes to what it has, or add nodes"
        )
    return (
        f"{pool.min_size} actors, each of {asked}, do not fit the cluster; set a smaller pool.min_size, or add nodes"
    )


def waiting_reason(model: PooledModel, cluster: Cluster) -> str:
    """What a settled model that has no room now waits for; empty when it has room."""
    pool = model.pool
    if cluster.holds_now([pool]):
        return ""
    actors = f"{counted(pool.min_size, 'actor')} of {describe_resources(pool)}"
    source = "others give it back" if cluster.holds([pool]) else "the cluster's autoscaler brings it"
    return f"model {model.name} waits until there is room for {actors}: {source}"


def run_together(levels: Sequence[PooledModel], cluster: Cluster) -> bool:
    """Whether a stream's pools run at the same time, or one after another, each freed before the next.

    They do where the cluster, as it is, holds them all, unless one local model would be loaded twice, or one asks in
    batches, which need all samples at once. Whether nodes that an autoscaler brings would hold them is not known: a
    pool that waits for its node stops the whole stream.
    """
    local = [level.config for level in levels if level.config.params.is_local]
    if len(levels) > 1 and any(level.config.batch for level in levels):
        return False
    if any(config in local[:place] for place, config in enumerate(local)):
        return False
    taking = [level.pool for level in levels if any(actor_resources(level.pool))]
    return len(taking) <= 1 or cluster.holds(taking)


def blocks_at_once(level: Level, rows_per_block: int, blocks: int) -> int:
    """How many of a stream's blocks one actor of a level works on at once: all, where it asks in batches."""
    return blocks if level.config.batch else calls_per_actor(level.pool, rows_per_block)


def calls_per_actor(pool: Pool, rows_per_block: int) -> int:
    """How many blocks one actor works on at once, so that `max_concurrency` rows are being asked.

    Rows that wait for the ledger, or for the others of their block, ask nothing: hence three times the concurrency in
    rows, and two blocks more.
    """
    return math.ceil(3 * pool.max_concurrency / rows_per_block) + 2
