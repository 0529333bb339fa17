"""Pool resources: what the actors of a settled pool take, of a node, in Ray's bundles, and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rambla_ray.config.sections import Pool
from rambla_ray.display import counted
from rambla_ray.run.capacity import Demand, NodeResources


def actor_resources(pool: Pool) -> NodeResources:
    """What one actor takes of each of its nodes."""
    nodes = pool.node_count
    return NodeResources(round((pool.num_cpus or 0.0) / nodes, 4), (pool.num_gpus or 0.0) / nodes)


def bundles_of(pool: Pool) -> list[dict[str, float]]:
    """What one actor over several nodes takes, in bundles: one for each GPU, as vLLM refuses larger ones."""
    gpus = int(pool.num_gpus or 0)
    cpus = round((pool.num_cpus or 0.0) / gpus, 4)
    return [{"GPU": 1.0, **({"CPU": cpus} if cpus else {})} for _ in range(gpus)]


def demands(pools: Sequence[Pool]) -> list[Demand]:
    """What all actors of some pools take, the pools at their smallest."""
    return [
        Demand(
            actor_resources(pool),
            pool.min_size * pool.node_count,
            most_on_a_node=pool.min_size if pool.node_count > 1 else math.inf,
        )
        for pool in pools
    ]


def describe_resources(pool: Pool) -> str:
    """What one actor takes, in words."""
    part = actor_resources(pool)
    taken = ((part.cpus, "CPU"), (part.gpus, "GPU"))
    words = " and ".join(counted(count, what) for count, what in taken if count) or "no CPU"
    return words if pool.node_count == 1 else f"{counted(pool.node_count, 'node')} with {words} each"
