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


class Demand(NamedTuple):
    """Some equal parts of actors, each of which is to be on one node.

    Args:
        part: what one takes: an actor, or what it takes of each of its nodes.
        parts: how many there are.
        most_on_a_node: of those parts at most so many may be on the same node.
    """

    part: NodeResources
    parts: int
    most_on_a_node: float = math.inf


def _times(amount: float, part: float) -> int:
    """How often an amount holds a part of it, past the rounding of decimal fractions in binary."""
    return max(0, math.floor(round(amount / part, 6)))


def fit(demands: Sequence[Demand], nodes: Sequence[NodeResources]) -> bool:
    """Whether all demands find room: the largest parts first, each on the node that is left with the least.

    Actors over several nodes each, of which a node gets no more parts than there are actors, can always be put
    together so that each has its parts on different nodes.

    Args:
        demands: what is to be placed.
        nodes: what each has.
    """
    free = list(nodes)
    for part, waiting, most in sorted(demands, key=lambda demand: (demand.part.gpus, demand.part.cpus), reverse=True):
        if not any(part):
            return True  # An actor that takes nothing needs no node, nor do those after it.
        left = [node.less(part) for node in free]
        for place in sorted(range(len(free)), key=lambda place: (left[place].gpus, left[place].cpus)):
            placed = int(min(waiting, most, free[place].room_for(part)))
            free[place] = free[place].less(part, placed)
            waiting -= placed
        if waiting:
            return False
    return True
