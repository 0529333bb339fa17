"""The Ray cluster a run is on: joining one or starting one, and what it has."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray logs at length that an actor died; the run says so itself, in a note.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"^A worker died or was killed|There are infinite retries")

import ray

from rambla_ray.config.run import cluster_address
from rambla_ray.config.sections import Pool
from rambla_ray.display import one_line
from rambla_ray.errors import UserError
from rambla_ray.run import ray_internals, token
from rambla_ray.run.address import HeadAddress
from rambla_ray.run.capacity import NodeResources
from rambla_ray.run.placement import Cluster
from rambla_ray.run.pool_resources import actor_resources, bundles_of

LONGEST_REASON = 160  # What Ray says is cut to so many characters.
GIB = 1024**3


def connect(address: str | None, *, verbose: bool) -> list[str]:
    """Join a cluster, or start a local one; returns warnings of who else gets into the latter, a line for each.

    Raises:
        UserError: there is none at `address`, or it does not start.
    """
    is_own = False
    if not ray.is_initialized():
        if not verbose:
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # The C++ core writes to stderr by itself.
        with contextlib.nullcontext() if verbose else _stderr_aside():
            is_own = _init(address, log_to_driver=verbose, logging_level=logging.INFO if verbose else logging.ERROR)
    configure_logging(verbose=verbose)
    return list(token.warnings(os.environ, is_checked=ray_internals.checks_tokens())) if is_own else []


def configure_logging(*, verbose: bool) -> None:
    """Let Ray's log lines through, or not; to be called again after an import of `ray.data`, which undoes it."""
    for name in ("ray", "ray.data", "ray.serve"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.CRITICAL)


@contextlib.contextmanager
def _stderr_aside() -> Iterator[None]:
    """Keep off the terminal what Ray's C++ core writes to file descriptor 2 while it starts."""
    terminal = os.dup(2)
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def _init(address: str | None, **options: Any) -> bool:
    """`ray.init` at an address as the options have it; returns whether the cluster is this process's own.

    Without one, no cluster is looked for: what Ray finds on a machine may be another process's own, and end with it.
    """
    address = cluster_address(address)
    if address.startswith("ray://"):
        raise UserError(
            f"address={address}: Ray Data does not run through Ray Client; submit a job (ray job submit --address "
            "http://HEAD:8265 --working-dir . -- python jobs/bench.py ...), or run on a node with address=HOST:PORT"
        )
    try:
        return _start(options) if address == "local" else _join(address, options)
    except UserError:
        raise
    except UnicodeEncodeError:
        # Ray reads the command line and the working folder's name itself, in the encoding of the locale.
        raise UserError(
            f"address={address}: Ray cannot pass on the command line, or this folder's name, in the encoding "
            f"{sys.getfilesystemencoding()}; set PYTHONUTF8=1"
        ) from None
    except Exception as error:  # noqa: BLE001 - where a node does not start, Ray raises nothing more special
        raise UserError(_why_not(address, error)) from None


def _start(options: Mapping[str, Any]) -> bool:
    """Start a cluster of this process's own, which only who is on this machine and has its user's token gets into."""
    token.secure(os.environ, ray_internals.new_token())
    with ray_internals.on_loopback():
        ray.init("local", include_dashboard=False, **options)
    atexit.register(ray_internals.end_monitor)  # It runs before `ray.shutdown` at the end of the process.
    return True


def _join(address: str, options: Mapping[str, Any]) -> bool:
    if address == "auto":
        return _join_what_runs_here(options)
    HeadAddress.parse(address).check()
    ray_internals.await_head(address)
    ray.init(address, **options)
    return False


def _join_what_runs_here(options: Mapping[str, Any]) -> bool:
    """Join the cluster on this machine; start one where there is none, or one has left no more than its address."""
    address = ray_internals.running_head()
    if address is None or address == "local":
        return _start(options)
    try:
        HeadAddress.parse(address).check()
    except ConnectionError:
        if os.environ.get("RAY_ADDRESS"):
            raise
        return _start(options)
    ray_internals.show_token_if_any()
    ray_internals.await_head(address)
    ray.init("auto", **options)
    return False


def _why_not(address: str, error: Exception) -> str:
    """Why no cluster could be joined or started, in one line."""
    reason = one_line(str(error) or type(error).__name__, LONGEST_REASON)
    if address == "local":
        return f"address=local: Ray does not start on this machine: {reason}; verbose=true shows what Ray itself says"
    if "AuthToken" in reason:
        reason = "it lets in who shows its token: set RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN"
    return f"address={address}: no Ray cluster there: {reason}"


def own_cluster() -> Cluster:
    """What a cluster has that this process starts: found out before it does so, as far as it has not.

    Raises:
        UserError: none would start.
    """
    if ray.is_initialized():
        return connected_cluster()
    try:
        resources = ray_internals.own_resources()
    except Exception as error:  # noqa: BLE001 - as where Ray starts, which asks the same
        raise UserError(_why_not("local", error)) from None
    return Cluster(nodes=(node_resources(resources),), memory_gib=_memory_gib([resources]))


def connected_cluster() -> Cluster:
    """What the connected cluster has now, and whether it may grow."""
    alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    free = ray_internals.free_resources()
    return Cluster(
        nodes=tuple(map(node_resources, alive.values())),
        free=tuple(node_resources(free.get(node_id, {})) for node_id in alive),
        grows=ray_internals.has_autoscaler(),
        memory_gib=_memory_gib(alive.values()),
    )


def _memory_gib(nodes: Iterable[Mapping[str, float]]) -> float:
    """The memory for processes among Ray's resources of some nodes."""
    return sum(node.get("memory", 0.0) for node in nodes) / GIB


def node_resources(resources: Mapping[str, float]) -> NodeResources:
    """The CPUs and GPUs among Ray's resources of a node, or of a request."""
    return NodeResources(resources.get("CPU", 0.0), resources.get("GPU", 0.0))


def first_infeasible(pools: Sequence[Pool]) -> Pool | None:
    """The first of some pools for whose actors the autoscaler has no kind of node, once it has been asked for them."""
    infeasible = [list(map(node_resources, request)) for request in ray_internals.infeasible_requests()]
    return next((pool for pool in pools if _requests(pool) in infeasible), None)


def _requests(pool: Pool) -> list[NodeResources]:
    """What the autoscaler is asked for by an actor of a settled pool."""
    return [actor_resources(pool)] if pool.node_count == 1 else list(map(node_resources, bundles_of(pool)))


def dashboard() -> str:
    """Host and port of the connected cluster's dashboard, which takes jobs; empty where there is none."""
    return str(ray.init(ignore_reinit_error=True, logging_level=logging.ERROR).address_info["webui_url"] or "")
