"""The ledger service of a run, started on the driver's node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rambla_ray.actors.ledger import LedgerService
from rambla_ray.config.run import RunConfig
from rambla_ray.run.streams import Stream


def start_ledger(config: RunConfig, streams: Sequence[Stream], segment: str) -> Any:
    """The run's ledger service, on this node, where it outlives its own death.

    Args:
        config: the run.
        streams: of the run, with their pools.
        segment: the ledger's segment that this run writes.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    configs = {
        (member.name, str(role)): member.config
        for stream in streams
        for level in stream.levels
        for member in level.family
        for role in level.roles
    }
    prices = {key: model.price for key, model in configs.items()}
    batched = frozenset(key for key, model in configs.items() if model.batch is not None)
    return (
        ray.remote(LedgerService)
        .options(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1, max_concurrency=4096)
        .remote(
            *(config.ledger, config.run_id, config.options.budget, prices, config.options.modes, segment),
            batched=batched,
        )
    )
