"""A model that stands in for vLLM over several nodes: it starts a worker on each GPU as vLLM does, and says where."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from pathlib import Path
from typing import ClassVar

import ray
from pydantic import Field
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rambla_ray.actors.base import Model
from rambla_ray.actors.local.several_nodes import check_bundles, parallelism
from rambla_ray.actors.model import Emit
from rambla_ray.config.model import ModelParams
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.schema import Request, Response


@ray.remote(num_cpus=0, num_gpus=1)
class Worker:
    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()


class SpreadParams(ModelParams):
    is_local: ClassVar[bool] = True

    until: str = Field("", description="a file that is waited for; empty for none")

    @property
    def several_nodes_fault(self) -> str:
        return ""


class Spread(Model):
    Params = SpreadParams

    def __init__(self, params: ModelParams, pool: Pool, rate: Rate | None) -> None:
        super().__init__(params, pool, rate)
        self._until = Path(params.until) if isinstance(params, SpreadParams) and params.until else None
        loading = threading.Thread(target=self._load)  # as models are loaded
        loading.start()
        loading.join()

    def _load(self) -> None:
        check_bundles(self.pool)
        group = get_current_placement_group()
        self._workers = [
            Worker.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, place)).remote()
            for place, bundle in enumerate(group.bundle_specs)
            if bundle["GPU"]
        ]
        nodes = ray.get([worker.node.remote() for worker in self._workers])
        self._found = {
            "group": group.id.hex(),
            "gpus": dict(Counter(nodes)),
            "own": ray.get_runtime_context().get_node_id(),
            "arguments": parallelism(self.pool),
        }

    def identity(self) -> dict[str, object]:
        return {"kind": "spread"}

    async def generate(self, request: Request, emit: Emit | None = None) -> Response:
        while self._until is not None and not self._until.exists():
            await asyncio.sleep(0.05)
        return Response(json.dumps({"answer": "yes", **self._found}), "stop", 1, 1)
