"""What is asked of Ray's private modules, because its public interface has no answer; all of it is in this file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import ray._private.state
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._raylet import (  # type: ignore[attr-defined]
    GCS_AUTOSCALER_STATE_NAMESPACE,
    GCS_AUTOSCALER_V2_ENABLED_KEY,
)
from ray.core.generated import autoscaler_pb2

STATUS_S = 5.0  # The head of the cluster may take so long to say what it waits for.


def free_resources() -> Mapping[str, Mapping[str, float]]:
    """By node id, the resources that nobody uses.

    The public `ray.available_resources` has only their sum, and `ray.nodes` only what each node has in all.
    """
    free: Mapping[str, Mapping[str, float]] = ray._private.state.available_resources_per_node()
    return free


def has_autoscaler() -> bool:
    """Whether nodes may come.

    No public function says so: `ray status` reads the same keys of the head's store, and prints them as text.
    """
    store = _head()
    if store.internal_kv_get(GCS_AUTOSCALER_V2_ENABLED_KEY.encode(), GCS_AUTOSCALER_STATE_NAMESPACE.encode()) == b"1":
        return True
    report = json.loads(store.internal_kv_get(DEBUG_AUTOSCALING_STATUS.encode(), None) or b"{}")
    types = (report.get("autoscaler_report") or {}).get("node_type_mapping") or {}
    return any(kind != f"node_{node}" for node, kind in types.items())  # Without an autoscaler, types are named so.


def infeasible_requests() -> Sequence[Mapping[str, float]]:
    """The resources of each request for which the autoscaler has no kind of node.

    Publicly they are only in the text of `ray status` and in a log: a request that cannot be met waits without end.
    """
    reply = autoscaler_pb2.GetClusterStatusReply()
    reply.ParseFromString(_head().get_cluster_status(timeout_s=STATUS_S))
    return [request.resources_bundle for request in reply.autoscaling_state.infeasible_resource_requests]


def _head() -> Any:
    """The client of the cluster's head that this process has; the public interface does not hand it out."""
    return ray._private.worker.global_worker.gcs_client
