"""Placement groups: the GPUs of actors whose model is spread over several nodes.

Each such actor lies in a group of its own, which Ray gives it whole or not at all, so that two that wait never hold
half of what they need each. Ray removes the groups of a driver that has died.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import placement_group, remove_placement_group
from ray.util.annotations import RayDeprecationWarning
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rambla_ray.config.sections import Pool
from rambla_ray.run import ray_internals
from rambla_ray.run.capacity import NodeResources
from rambla_ray.run.cluster import node_resources
from rambla_ray.run.pool_resources import actor_resources, bundles_of

# Ray fills one node before it takes the next, those with the most free GPUs first.
STRATEGY = "PACK"
NODE_ID = "ray.io/node-id"  # The label under which Ray has a node's id.


class NodeGroups:
    """The placement groups of a run."""

    def __init__(self) -> None:
        self._groups: list[PlacementGroup] = []
        self._parts: Counter[str] = Counter()  # By node, the GPUs that groups were given on it.

    def options(self, pool: Pool) -> dict[str, Any]:
        """Ray Data's options for where the actors of a settled pool run."""
        if pool.node_count == 1:
            return {"num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus or None}
        # What an actor takes is its group's. Ray Data has no other way yet to give each actor a group of its own.
        warnings.filterwarnings("ignore", "`ray_remote_args_fn` is deprecated", RayDeprecationWarning)
        return {"num_cpus": 0, "ray_remote_args_fn": partial(self._new_actor, pool)}

    def _new_actor(self, pool: Pool) -> dict[str, Any]:
        """Ray's options for the next actor of a pool: it lies in a new group, as does what it starts."""
        bundles, nodes = bundles_of(pool), self._chosen_nodes(pool)
        selectors = (
            [{NODE_ID: nodes[place * len(nodes) // len(bundles)]} for place in range(len(bundles))] if nodes else None
        )
        group = placement_group(bundles, strategy=STRATEGY, bundle_label_selector=selectors)
        self._groups.append(group)
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, 0, True)}

    def remove(self) -> None:
        """Give back what all groups hold; whatever still runs in them ends."""
        for group in self._groups:
            with contextlib.suppress(RayError):
                remove_placement_group(group)
        self._groups.clear()
        self._parts.clear()

    def _chosen_nodes(self, pool: Pool) -> list[str]:
        """The nodes of the next actor; none where Ray's own order does, or nodes are still to come.

        Ray would fill a node that has more GPUs than the actor is to get of each with those for the next one, too.
        """
        part = actor_resources(pool)
        nodes = {node["NodeID"]: node_resources(node["Resources"]) for node in ray.nodes() if node["Alive"]}
        if all(node.gpus <= part.gpus for node in nodes.values()):
            return []
        now = {node_id: node_resources(free) for node_id, free in ray_internals.free_resources().items()}
        for has in (now, nodes):  # Where too few have room now, others will give it back.
            able = self._able_nodes(part, nodes, has)
            if len(able) >= pool.node_count:
                chosen = able[: pool.node_count]
                self._parts.update(dict.fromkeys(chosen, int(part.gpus)))
                return chosen
        return []

    def _able_nodes(
        self, part: NodeResources, nodes: Mapping[str, NodeResources], has: Mapping[str, NodeResources]
    ) -> list[str]:
        """The nodes that have room for an actor's part, those with the least of it first.

        Args:
            part: what an actor takes of each of its nodes.
            nodes: what each node has.
            has: what of it may be taken. Groups of the last moment may not be missing in it yet.
        """
        left = {
            node_id: min(free.gpus, nodes[node_id].gpus - self._parts[node_id])
            for node_id, free in has.items()
            if node_id in nodes and free.cpus >= part.cpus
        }
        return sorted((node_id for node_id in left if left[node_id] >= part.gpus), key=left.__getitem__)
