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
from rambla_ray.config.sections import Pool
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
        head: a local rephraser of several branches, settled. It ends before they begin, and so is loaded once.
    """

    branches: tuple[Branch, ...]
    shared: tuple[Level, ...]
    together: bool
    head: Level | None = None

    @classmethod
    def of(cls, config: RunConfig, families: Sequence[Family], cluster: Cluster) -> Self:
        """The stream of some targets on a cluster. Raises UserError; see `settle_pool`."""
        paths = {family: levels_of(config, family[0]) for family in families}
        if len(paths) == 1:
            ((family, path),) = paths.items()
            own = _settled(path, cluster)
            return cls((Branch(family, own),), (), run_together(own, cluster))
        head = next(filter(_is_local_rephraser, (path[0] for path in paths.values())), None)
        branches, shared = _parted(paths)
        parts = {family: _settled(_share(own, len(paths)), cluster) for family, own in branches.items()}
        settled = _settled(shared, cluster)
        levels = [*(level for own in parts.values() for level in own), *settled]
        return cls(
            tuple(Branch(family, own) for family, own in parts.items()),
            settled,
            run_together(levels, cluster),
            head and head.settled(cluster),
        )

    @property
    def targets(self) -> tuple[str, ...]:
        """All targets, by branch."""
        return tuple(target for branch in self.branches for target in branch.targets)

    @property
    def levels(self) -> tuple[Level, ...]:
        """All pools."""
        return (*self._heads, *(level for branch in self.branches for level in branch.levels), *self.shared)

    @property
    def _heads(self) -> tuple[Level, ...]:
        return () if self.head is None else (self.head,)

    def path(self, branch: Branch) -> tuple[Level, ...]:
        """The pools that the samples of a branch pass, in this order."""
        return (*self._heads, *branch.levels, *self.shared)


def streams_of(config: RunConfig, cluster: Cluster) -> tuple[Stream, ...]:
    """The streams of a run, which follow one another, with the targets of each; see `fit_beside`.

    Targets whose pools take nothing of the cluster come first. Each joins the first stream that has room for it.

    Raises:
        UserError: the cluster cannot hold a pool.
    """
    groups: list[list[Family]] = []
    for family in sorted(config.streams, key=lambda family: takes_room(config, family)):
        group = next((group for group in groups if fit_beside(config, [*group, family], cluster)), None)
        if group is None:
            groups.append([family])
        else:
            group.append(family)
    return tuple(Stream.of(config, group, cluster) for group in groups)


def fit_beside(config: RunConfig, families: Sequence[Family], cluster: Cluster) -> bool:
    """Whether some targets are asked side by side.

    Those behind endpoints are, as far as there is memory for their processes. Local ones are where the nodes that are
    up hold all pools of the stream at once. Who asks in batches of its provider has a stream of its own.

    Raises:
        UserError: the cluster cannot hold a pool.
    """
    if any(asks_in_batches(config, family) for family in families):
        return False
    stream = Stream.of(config, families, cluster)
    if sum(level.pool.min_size for level in stream.levels) * PROCESS_GIB > cluster.memory_gib:
        return False
    need_room = any(takes_room(config, family) for family in families)
    levels = [level for branch in stream.branches for level in branch.levels]
    taking = [pool for level in (*levels, *stream.shared * need_room) if any(actor_resources(pool := level.pool))]
    return cluster.holds(taking) and (stream.together or not need_room)


def takes_room(config: RunConfig, family: Family) -> bool:
    """Whether a target's actors take CPUs or GPUs, or will once they are settled."""
    model = config.targets[family[0]]
    return model.params.is_local or any(actor_resources(model.pool))


def asks_in_batches(config: RunConfig, family: Family) -> bool:
    """Whether a target, or who rephrases for it, asks in batches of its provider."""
    before = {Role.REPHRASER, Role.TARGET}
    return any(level.config.batch for level in levels_of(config, family[0]) if before & {*level.roles})


def describe_streams(config: RunConfig) -> dict[str, list[str]]:
    """Which targets are asked side by side, as far as that is known before the cluster is."""
    described: dict[str, list[str]] = {"side_by_side": [], "as_the_cluster_allows": [], "alone": []}
    for family in config.streams:
        kind = (
            "alone"
            if asks_in_batches(config, family)
            else "as_the_cluster_allows"
            if takes_room(config, family)
            else "side_by_side"
        )
        described[kind] += family
    return described


def _is_local_rephraser(level: Level) -> bool:
    return level.roles == (Role.REPHRASER,) and level.config.params.is_local


def _parted(paths: Mapping[Family, tuple[Level, ...]]) -> tuple[dict[Family, tuple[Level, ...]], tuple[Level, ...]]:
    """The pools of each target alone, without a local rephraser, and those of all.

    A target that is also the first judge has its pool, which plays both roles, among those of all.
    """
    branches, shared = {}, None
    for family, path in paths.items():
        place = next(place for place, level in enumerate(path) if Role.TARGET in level.roles)
        is_judge = path[place].roles[-1] != Role.TARGET
        own = place if is_judge else place + 1
        branches[family] = tuple(level for level in path[:own] if not _is_local_rephraser(level))
        if is_judge or shared is None:
            shared = path[own:]
    return branches, shared or ()


def _share(levels: Iterable[Level], branches: int) -> tuple[Level, ...]:
    """The pools of a branch, in which a rephraser behind an endpoint has its part of the calls in flight.

    Each branch has a pool of it. What it writes is asked once, by the pool of whichever branch comes first, and all
    together ask as much at the same time as one alone.
    """

    def part(pool: Pool) -> Pool:
        return pool.model_copy(update={"max_concurrency": math.ceil(pool.max_concurrency / branches)})

    return tuple(level.with_pool(part(level.pool)) if level.roles == (Role.REPHRASER,) else level for level in levels)


def _settled(levels: Iterable[Level], cluster: Cluster) -> tuple[Level, ...]:
    """Pools with their resources settled. Raises UserError; see `settle_pool`."""
    return tuple(level.settled(cluster) for level in levels)
