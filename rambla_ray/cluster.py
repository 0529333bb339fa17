"""The Ray cluster a run is on: joining one or starting one, and what it has."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# that an actor died, at length: the run says so in a note
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"^A worker died or was killed|There are infinite retries")

import ray

from rambla_ray.errors import UserError
from rambla_ray.plan import Cluster

CONNECT_S = 5.0  # how long a cluster's port may take to answer


def connect(address: str | None, *, verbose: bool) -> None:
    """Join a cluster, or start a local one. Raises UserError when there is none at `address`."""
    if not ray.is_initialized():
        if not verbose:
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # the C++ core writes to stderr on its own
        with contextlib.nullcontext() if verbose else _stderr_aside():
            _init(address, log_to_driver=verbose, logging_level=logging.INFO if verbose else logging.ERROR)
    for name in ("ray", "ray.data"):
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
    address = address or os.environ.get("RAY_ADDRESS") or "local"
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
        hint = "" if "refused" in str(error) else "; one with token authentication needs RAY_AUTH_MODE=token"
        raise UserError(f"address={address}: no Ray cluster there: {str(error).splitlines()[0][:160]}{hint}") from None


def cluster() -> Cluster:
    """What the connected cluster has now."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Cluster(
        cpus=sum(node.get("CPU", 0.0) for node in nodes),
        gpus=sum(node.get("GPU", 0.0) for node in nodes),
        node_cpus=max(node.get("CPU", 0.0) for node in nodes),
        node_gpus=max(node.get("GPU", 0.0) for node in nodes),
    )
