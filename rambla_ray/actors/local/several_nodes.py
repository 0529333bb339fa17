"""One model over several nodes: how vLLM's engine is to be split, and whether its GPUs lie so that it can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import ray
from ray.util import get_current_placement_group, placement_group_table

from rambla_ray.config.sections import Pool
from rambla_ray.errors import CallError, ErrorKind


def parallelism(pool: Pool) -> dict[str, Any]:
    """The arguments of vLLM's engine that say how a model is split over the GPUs of one actor.

    Each layer is split over the GPUs of a node, which are wired closely, and the layers over the nodes.
    """
    gpus = max(1, int(pool.num_gpus or 0))
    if pool.node_count == 1:  # The actor has all the GPUs already.
        return {"tensor_parallel_size": gpus, "distributed_executor_backend": "mp" if gpus > 1 else None}
    return {
        "tensor_parallel_size": gpus // pool.node_count,
        "pipeline_parallel_size": pool.node_count,
        "distributed_executor_backend": "ray",
    }


def check_bundles(pool: Pool) -> None:
    """Check that no layer is split over GPUs of two nodes, in the placement group of this actor.

    Raises:
        CallError: `load`: one is.
    """
    group = get_current_placement_group() if pool.node_count > 1 and ray.is_initialized() else None
    if group is not None:
        check_stages(pool, placement_group_table(group)["bundles_to_node_id"].values())


def check_stages(pool: Pool, nodes: Iterable[str]) -> None:
    """The same, of the nodes on which its GPUs lie. Raises CallError (`load`)."""
    stage = int(pool.num_gpus or 0) // pool.node_count
    counts = sorted(Counter(nodes).values(), reverse=True)
    if any(count % stage for count in counts):
        there = ", ".join(map(str, counts))
        reason = f"its {sum(counts)} GPUs lie on {len(counts)} nodes, with {there}: each needs {stage}"
        raise CallError(
            ErrorKind.LOAD, f"{reason}; set pool.num_gpus and pool.nodes to the nodes that the cluster has"
        )
