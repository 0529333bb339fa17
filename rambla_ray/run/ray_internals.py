"""What is asked of Ray's private modules, because its public interface has no answer; all of it is in this file."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
import ray._private.state
from ray._private import ray_constants, services
from ray._private.authentication.authentication_token_generator import generate_new_authentication_token
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray._private.resource_and_label_spec import ResourceAndLabelSpec
from ray._raylet import (  # type: ignore[attr-defined]
    GCS_AUTOSCALER_STATE_NAMESPACE,
    GCS_AUTOSCALER_V2_ENABLED_KEY,
    AuthenticationMode,
    GcsClient,
    get_authentication_mode,
)
from ray.core.generated import autoscaler_pb2

STATUS_S = 5.0  # The head of the cluster may take so long to say what it waits for.
ANSWER_S = 5.0  # The head of a cluster may take so long to give its id, which it does at once.


def await_head(address: str) -> None:
    """Ask the head of a cluster for its id.

    `ray.init` does so for 40 seconds in which no signal gets through, and no option of it says for how long.

    Raises:
        OSError: there is no head at the address, or none that this process may ask.
    """
    reasons: list[str] = ["nobody answers as the head of a Ray cluster does"]
    asking = threading.Thread(target=_ask_head, args=(address, reasons), daemon=True)
    asking.start()
    asking.join(ANSWER_S)
    if reasons:
        raise OSError(reasons[-1])


def _ask_head(address: str, reasons: list[str]) -> None:
    try:
        GcsClient(address=address)
    except Exception as error:  # noqa: BLE001 - Ray says it with errors of several kinds, and each is the reason
        reasons.append(str(error).removesuffix("RPC error: ") or reasons[0])
    else:
        reasons.clear()


def running_head() -> str | None:
    """Where the head is of the cluster that `auto` means: RAY_ADDRESS, or one on this machine. None without one."""
    with contextlib.suppress(ConnectionError):
        return str(services.get_ray_address_from_environment("auto", None))
    return None


def show_token_if_any() -> None:
    """Show this user's token, where there is one, to clusters that are joined: `ray.init("auto")` does so as well."""
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """While inside, what Ray starts has the address 127.0.0.1, and listens on that alone.

    So it is by default where Ray supports no clusters, on macOS. `ray.init(_node_ip_address="127.0.0.1")` does not do
    it: Ray takes the machine's other address in its place, and its processes listen on all that there are.
    """
    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    os.environ[name] = "0"  # for the processes that are started
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        del os.environ[name]


def checks_tokens() -> bool:
    """Whether the processes of the cluster let in only who shows a token."""
    return bool(get_authentication_mode() == AuthenticationMode.TOKEN)


def new_token() -> str:
    """A token as Ray makes one."""
    return str(generate_new_authentication_token())


def own_resources() -> Mapping[str, float]:
    """The resources that a cluster would have which is started on this machine, as Ray finds them when it does so."""
    logging.getLogger(ResourceAndLabelSpec.__module__).setLevel(logging.CRITICAL)
    found = ResourceAndLabelSpec().resolve(is_head=True).to_resource_dict()
    return {name: float(amount) for name, amount in found.items()}


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


def infeasible_requests() -> Sequence[Sequence[Mapping[str, float]]]:
    """The requests for which the autoscaler has no kind of node: of an actor its resources, of a group its bundles'.

    Publicly they are only in the text of `ray status` and in a log: a request that cannot be met waits without end.
    """
    reply = autoscaler_pb2.GetClusterStatusReply()
    reply.ParseFromString(_head().get_cluster_status(timeout_s=STATUS_S))
    state = reply.autoscaling_state
    groups = [
        [request.resources_bundle for selector in gang.bundle_selectors for request in selector.resource_requests]
        for gang in state.infeasible_gang_resource_requests
    ]
    return [*([request.resources_bundle] for request in state.infeasible_resource_requests), *groups]


def end_monitor() -> None:
    """End the autoscaler's monitor of the cluster that this process has started, if it has: it holds nothing.

    `ray.shutdown` asks it to end, which it does not do in the second that it gets for that.
    """
    node = ray._private.worker._global_node
    processes = node.all_processes if node is not None and node.is_head() else {}
    for monitor in processes.get(ray_constants.PROCESS_TYPE_MONITOR, ()):
        monitor.process.kill()


def _head() -> Any:
    """The client of the cluster's head that this process has; the public interface does not hand it out."""
    return ray._private.worker.global_worker.gcs_client
