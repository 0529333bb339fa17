"""Capacity: how many actors have room on nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class NodeResources(NamedTuple):
    """CPUs and GPUs: what a node has, or what an actor takes of one."""

    cpus: float
    gpus: float

    def less(self, actor: NodeResources, count: int = 1) -> NodeResources:
        """What is left beside some equal actors; below zero where they have no room."""
        return NodeResources(round(self.cpus - count * actor.cpus, 6), round(self.gpus - count * actor.gpus, 6))

    def holds(self, actor: NodeResources) -> bool:
        """Whether an actor has room."""
        return min(self.less(actor)) >= 0

    def room_for(self, actor: NodeResources) -> int:
        """How many equal actors, which take something, have room."""
        by_cpus = _times(self.cpus, actor.cpus) if actor.cpus else math.inf
        if not actor.gpus:
            return int(by_cpus)
        if actor.gpus >= 1:
            return int(min(by_cpus, _times(self.gpus, actor.gpus)))
        whole = int(self.gpus)  # Actors that take a part of a GPU are together on it: a part of two is none.
        by_gpus = whole * _times(1, actor.gpus) + _times(round(self.gpus - whole, 6), actor.gpus)
        return int(min(by_cpus, by_gpus))


def _times(amount: float, part: float) -> int:
    """How often an amount holds a part of it, past the rounding of decimal fractions in binary."""
    return max(0, math.floor(round(amount / part, 6)))


def fit(actors: Sequence[tuple[NodeResources, int]], nodes: Sequence[NodeResources]) -> bool:
    """Whether all actors find room: the largest first, each on the node that is left with the least.

    Args:
        actors: what one takes, and how many equal ones there are.
        nodes: what each has.
    """
    free = list(nodes)
    for actor, waiting in sorted(actors, key=lambda group: (group[0].gpus, group[0].cpus), reverse=True):
        if not any(actor):
            return True  # An actor that takes nothing needs no node, nor do those after it.
        left = [node.less(actor) for node in free]
        for place in sorted(range(len(free)), key=lambda place: (left[place].gpus, left[place].cpus)):
            placed = min(waiting, free[place].room_for(actor))
            free[place] = free[place].less(actor, placed)
            waiting -= placed
        if waiting:
            return False
    return True
