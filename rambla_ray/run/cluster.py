"""The Ray cluster a run is on: joining one or starting one, and what it has."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# that an actor died, at length: the run says so in a note
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"^A worker died or was killed|There are infinite retries")

import ray
import ray._private.state
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._raylet import (  # type: ignore[attr-defined]
    GCS_AUTOSCALER_STATE_NAMESPACE,
    GCS_AUTOSCALER_V2_ENABLED_KEY,
)
from ray.core.generated import autoscaler_pb2

from rambla_ray.config.run import cluster_address
from rambla_ray.config.sections import Pool
from rambla_ray.errors import UserError
from rambla_ray.run.placement import Cluster, NodeResources

CONNECT_S = 5.0  # how long a cluster's port may take to answer
STATUS_S = 5.0  # how long its head may take to say how it is


def connect(address: str | None, *, verbose: bool) -> None:
    """Join a cluster, or start a local one. Raises UserError when there is none at `address`."""
    if not ray.is_initialized():
        if not verbose:
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # the C++ core writes to stderr on its own
        with contextlib.nullcontext() if verbose else _stderr_aside():
            _init(address, log_to_driver=verbose, logging_level=logging.INFO if verbose else logging.ERROR)
    settle_logging(verbose=verbose)


def settle_logging(*, verbose: bool) -> None:
    """Let Ray's log lines through, or not; `ray.data` undoes that when it is imported."""
    for name in ("ray", "ray.data", "ray.serve"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.CRITICAL)


@contextlib.contextmanager
def _stderr_aside() -> Iterator[None]:
    """Keep off the terminal what Ray's C++ core writes to file descriptor 2 while it starts."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _init(address: str | None, **options: Any) -> None:
    """`ray.init` at an address as the options have it.

    Without one, no cluster is looked for: what Ray finds on a machine may be another process's own, and end with it.
    """
    address = cluster_address(address)
    if address.startswith("ray://"):
        raise UserError(
            f"address={address}: Ray Data does not run through Ray Client; submit a job (ray job submit --address "
            "http://HEAD:8265 --working-dir . -- python jobs/bench.py ...), or run on a node with address=HOST:PORT"
        )
    try:
        if address == "auto":
            with contextlib.suppress(ConnectionError):
                ray.init("auto", **options)
                return
        if address in ("auto", "local"):
            ray.init("local", include_dashboard=False, **options)
        else:
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()  # Ray itself tries for minutes
            ray.init(address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        hint = (
            ""
            if "refused" in str(error)
            else "; one with token authentication needs RAY_AUTH_MODE=token, and its token in RAY_AUTH_TOKEN"
        )
        raise UserError(f"address={address}: no Ray cluster there: {str(error).splitlines()[0][:160]}{hint}") from None


def cluster() -> Cluster:
    """What the connected cluster has now, and whether it may grow."""
    alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    free = ray._private.state.available_resources_per_node()
    return Cluster(
        nodes=tuple(map(resources, alive.values())),
        free=tuple(resources(free.get(name, {})) for name in alive),
        grows=_has_autoscaler(),
    )


def resources(of_a_node: Mapping[str, float]) -> NodeResources:
    """What Ray says that a node has, or that is asked of one."""
    return NodeResources(of_a_node.get("CPU", 0.0), of_a_node.get("GPU", 0.0))


def _has_autoscaler() -> bool:
    """Whether nodes may come. Ray has no public way to ask; its `ray status` reads the same."""
    gcs = ray._private.worker.global_worker.gcs_client
    if gcs.internal_kv_get(GCS_AUTOSCALER_V2_ENABLED_KEY.encode(), GCS_AUTOSCALER_STATE_NAMESPACE.encode()) == b"1":
        return True
    report = json.loads(gcs.internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), None) or b"{}")
    types = (report.get("autoscaler_report") or {}).get("node_type_mapping") or {}
    return any(kind != f"node_{node}" for node, kind in types.items())  # so are they named where none is set up


def first_infeasible(pools: Sequence[Pool]) -> Pool | None:
    """The first of some pools for whose actors the autoscaler has no kind of node, once it has been asked for them."""
    reply = autoscaler_pb2.GetClusterStatusReply()
    reply.ParseFromString(ray._private.worker.global_worker.gcs_client.get_cluster_status(timeout_s=STATUS_S))
    asked = [resources(request.resources_bundle) for request in reply.autoscaling_state.infeasible_resource_requests]
    return next((pool for pool in pools if NodeResources(pool.num_cpus or 0.0, pool.num_gpus or 0.0) in asked), None)


def dashboard() -> str:
    """Host and port of the connected cluster's dashboard, which takes jobs; empty where there is none."""
    return str(ray.init(ignore_reinit_error=True, logging_level=logging.ERROR).address_info["webui_url"] or "")
