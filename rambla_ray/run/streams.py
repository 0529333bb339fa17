"""Streams: which targets are asked side by side, and the pools that their samples pass.

The samples of each target pass pools of their own, and flow together before the pools that all of them need: those of
the judges and of the reader, which so are loaded once. No target waits behind another, whatever the speed of each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from rambla_ray.config.run import RunConfig
from rambla_ray.run.placement import PROCESS_GIB, Cluster, Level, levels_of, run_together
from rambla_ray.run.pool_resources import actor_resources
from rambla_ray.schema import Role

Family = tuple[str, ...]  # A target, or several that share their actors.


@dataclass(frozen=True, slots=True)
class Branch:
    """What the samples of one target pass before they flow together with those of others.

    Args:
        targets: the target, or several that share their actors.
        levels: its pools, settled; none where the first of the pools for all is its own, that of a judge.
    """

    targets: Family
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True)
class Stream:
    """Targets that are asked side by side, on a cluster.

    Args:
        branches: one for each target, or several that share their actors.
        shared: the pools that the samples of all pass after those of their branch, settled.
        together: whether all these pools run at the same time. Where they do not, each ends before the next begins;
            the branches, if there are several, still run side by side.
    """

    branches: tuple[Branch, ...]
    shared: tuple[Level, ...]
    together: bool

    @classmethod
    def of(cls, config: RunConfig, families: Sequence[Family], cluster: Cluster) -> Self:
        """The stream of some targets on a cluster. Raises UserError; see `settle_pool`."""
        paths = {family: levels_of(config, family[0]) for family in families}
        branches, shared = _parted(paths)
        of_each = {family: _settled(levels, cluster, len(families)) for family, levels in branches.items()}
        settled = _settled(shared, cluster, 1)
        levels = [*(level for own in of_each.values() for level in own), *settled]
        together = run_together(levels, cluster)
        return cls(tuple(Branch(family, own) for family, own in of_each.items()), settled, together)

    @property
    def targets(self) -> tuple[str, ...]:
        """All targets, by branch."""
        return tuple(target for branch in self.branches for target in branch.targets)

    @property
    def levels(self) -> tuple[Level, ...]:
        """All pools."""
        return (*(level for branch in self.branches for level in branch.levels), *self.shared)

    def path(self, branch: Branch) -> tuple[Level, ...]:
        """The pools that the samples of a branch pass, in this order."""
        return (*branch.levels, *self.shared)


def streams_of(config: RunConfig, cluster: Cluster) -> tuple[Stream, ...]:
    """The streams of a run, which follow one another, with the targets of each; see `fit_beside`.

    Targets whose pools take nothing of the cluster come first. Each joins the first stream that has room for it.

    Raises:
        UserError: the cluster cannot hold a pool.
    """
    groups: list[list[Family]] = []
    for family in sorted(config.streams, key=lambda family: _takes_room(levels_of(config, family[0]))):
        group = next((group for group in groups if fit_beside(config, [*group, family], cluster)), None)
        if group is None:
            groups.append([family])
        else:
            group.append(family)
    return tuple(Stream.of(config, group, cluster) for group in groups)


def fit_beside(config: RunConfig, families: Sequence[Family], cluster: Cluster) -> bool:
    """Whether some targets are asked side by side.

    Those behind endpoints are, as far as there is memory for their processes. Local ones are where the nodes that are
    up hold all pools of the stream at once, and none would be loaded twice, as a local rephraser would. Who asks in
    batches of its provider has a stream of its own.

    Raises:
        UserError: the cluster cannot hold a pool.
    """
    stream = Stream.of(config, families, cluster)
    own = [level for branch in stream.branches for level in branch.levels]
    if any(level.config.batch for level in own):
        return False
    if sum(level.pool.min_size for level in stream.levels) * PROCESS_GIB > cluster.memory_gib:
        return False
    taking = [level.pool for level in stream.levels if any(actor_resources(level.pool))]
    return not _takes_room(own) or (stream.together and cluster.holds(taking))


def always_beside(config: RunConfig) -> list[Family]:
    """The groups of targets that are asked side by side whatever the cluster has, memory apart."""
    free: list[str] = []
    for family in config.streams:
        own = [level for level in levels_of(config, family[0]) if {Role.REPHRASER, Role.TARGET} & {*level.roles}]
        if not _takes_room(own) and not any(level.config.batch for level in own):
            free += family
    return [tuple(free)] if len(free) > 1 else []


def _takes_room(levels: Iterable[Level]) -> bool:
    """Whether actors of some pools take CPUs or GPUs, or would once they are settled."""
    return any(level.config.params.is_local or any(actor_resources(level.pool)) for level in levels)


def _parted(paths: Mapping[Family, tuple[Level, ...]]) -> tuple[dict[Family, tuple[Level, ...]], tuple[Level, ...]]:
    """The pools of each target alone, and those of all; one target has all of its own.

    A target that is also the first judge has its pool, which plays both roles, among those of all.
    """
    if len(paths) == 1:
        return dict(paths), ()
    branches, shared = {}, None
    for family, path in paths.items():
        place = next(place for place, level in enumerate(path) if Role.TARGET in level.roles)
        is_judge = path[place].roles[-1] != Role.TARGET
        own = place if is_judge else place + 1
        branches[family] = path[:own]
        if is_judge or shared is None:
            shared = path[own:]
    return branches, shared or ()


def _settled(levels: Sequence[Level], cluster: Cluster, branches: int) -> tuple[Level, ...]:
    """Pools with their resources settled. Raises UserError; see `settle_pool`.

    What a rephraser behind an endpoint writes is asked once, by the pool of whichever branch comes first; the pools
    of all branches together ask as much at the same time as one alone.
    """
    settled = []
    for level in levels:
        pool = level.pool
        if branches > 1 and level.roles == (Role.REPHRASER,) and not level.config.params.is_local:
            pool = pool.model_copy(update={"max_concurrency": math.ceil(pool.max_concurrency / branches)})
        settled.append(level.with_pool(pool).settled(cluster))
    return tuple(settled)
