"""The pipeline on one page: samples stream through pools of Ray actors, and out comes a run directory."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import pyarrow as pa
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rambla_ray.actors.ledger import LedgerService
from rambla_ray.actors.pool import PoolActor
from rambla_ray.config import RunConfig
from rambla_ray.errors import FATAL, ErrorKind, RunStopped, UserError
from rambla_ray.outcomes import finish
from rambla_ray.plan import Cluster, Level, Plan, calls_per_actor, fit_together, settle_pool
from rambla_ray.report import Progress
from rambla_ray.results import RunDirectory, invocation, scoring_spec
from rambla_ray.schema import STREAM_SCHEMA, Sample

CONNECT_S = 5.0  # how long a cluster's port may take to answer
DRAIN_S = 30.0  # how long an interrupted run waits for what is in flight


def connect(address: str | None, *, verbose: bool) -> None:
    """Join a cluster, or start a local one. Raises UserError when there is none at `address`."""
    if not ray.is_initialized():
        if not verbose:
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # the C++ core writes to stderr on its own
        with contextlib.nullcontext() if verbose else _stderr_aside():
            _init(address, log_to_driver=verbose, logging_level=logging.INFO if verbose else logging.ERROR)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # after ray.init, which sets its own
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = verbose
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


class Run:
    """One invocation of a run, on a connected cluster.

    Args:
        plan: what to ask.
        directory: where the results go.
        words: the command line, for the run directory.
    """

    def __init__(self, plan: Plan, directory: RunDirectory, words: Sequence[str]) -> None:
        self.plan = plan
        self.directory = directory
        self.config: RunConfig = plan.config
        self._started = time.time()
        self._answered: Counter[tuple[str, str]] = Counter()
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        there = cluster()
        self._settled = {target: self._settle(target, there) for target in self.config.targets}
        self._ledger: Any = (
            ray.remote(LedgerService)
            .options(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1, max_concurrency=4096)
            .remote(self.config.ledger, self.config.run_id)
        )
        for target, (levels, together) in self._settled.items():
            if not together:
                order = ", then ".join(level.name for level in levels)
                print(
                    f"note: the cluster cannot hold all models of {target}'s stream at once: {order}", file=sys.stderr
                )
        streams = {
            target: {"together": together, "pools": [level.config.pool.model_dump() for level in levels]}
            for target, (levels, together) in self._settled.items()
        }
        directory.begin(self.config, {**plan.describe(), "placement": streams}, words)

    def _settle(self, target: str, there: Cluster) -> tuple[list[Level], bool]:
        """A target's levels with their resources settled, and whether the cluster holds them all at once."""
        levels = [
            Level(level.name, level.config.model_copy(update={"pool": settle_pool(level, there)}), level.roles)
            for level in self.plan.levels(target)
        ]
        return levels, fit_together([level.config.pool for level in levels], there)

    def __call__(self) -> dict[str, Any]:
        """Ask everything that the ledger does not hold, and write the run directory; returns metrics.json.

        Raises:
            RunStopped: a model cannot go on (a rejected key, an unknown engine), or the cluster cannot. What was
                answered is kept.
        """
        errors: list[dict[str, Any]] = []
        total = self.plan.samples_per_target * len(self.config.targets)
        models = sorted({level.name for levels, _ in self._settled.values() for level in levels})
        with Progress(total, models, self.progress) as shown:
            for target in self.config.targets:
                writer = self.directory.sample_writer(target, scoring_spec(self.config))
                try:
                    for sample in self._stream(target):
                        self._stop_if_fatal(sample)
                        finish(sample, self.config.tasks[sample.task])
                        writer.add(sample)
                        shown.add(sample.outcome)
                except (
                    RayError,
                    SystemException,
                    ExecutionTimeoutError,
                ) as error:  # the ledger cannot be written, nodes are gone
                    raise RunStopped(f"the cluster gave up: {_reason(error)}") from None
                writer.close()
                self._answered += writer.answered
                errors += writer.errors
        return self._write(errors)

    def _stream(self, target: str) -> Iterator[Sample]:
        """All samples of a target, as they come out of the last pool."""
        levels, together = self._settled[target]
        actors = max(level.config.pool.largest for level in levels)
        blocks = [
            pa.Table.from_pylist([sample.to_row() for sample in block], schema=STREAM_SCHEMA)
            for block in self.plan.blocks(target, actors)
        ]
        rows = max(block.num_rows for block in blocks)
        stream: ray.data.Dataset = ray.data.from_blocks(blocks)
        for level in levels:
            stream = self._through(stream, level, rows)
            if not together:
                stream = stream.materialize()  # this pool ends before the next begins
        for batch in stream.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from map(Sample.from_row, batch.to_pylist())

    def _through(self, stream: ray.data.Dataset, level: Level, rows: int) -> ray.data.Dataset:
        """The stream through one pool."""
        pool = level.config.pool
        calls = calls_per_actor(pool, rows)
        return stream.map(
            PoolActor,
            fn_constructor_args=(
                level.name,
                level.config,
                self.config.tasks,
                frozenset(level.roles),
                self._ledger,
                self.config.run_id,
            ),
            compute=ray.data.ActorPoolStrategy(
                min_size=pool.min_size,
                max_size=pool.largest,
                max_concurrent_calls_per_actor=calls,
                max_tasks_in_flight_per_actor=2 * calls,
            ),
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus or None,
        )

    def _stop_if_fatal(self, sample: Sample) -> None:
        for step in sample.steps:
            if step.failed and ErrorKind(step.error_kind) in FATAL:
                raise RunStopped(f"model {step.model} ({step.role}) cannot go on: {step.error}")

    def progress(self) -> dict[str, Any]:
        """The ledger service's counts; see `LedgerService.progress`."""
        counts: dict[str, Any] = ray.get(self._ledger.progress.remote())
        return counts

    def record_calls(self, *, finished: bool) -> dict[str, Any]:
        """Write calls.json as of now; returns the counts."""
        counts = self.progress()
        now = invocation(self._started, counts["calls"], finished=finished)
        self.directory.write_calls(self.config, counts["spent"], self._answered, now)
        return counts

    def calls_when_stopped(self) -> int:
        """Write calls.json after a `RunStopped`; returns the calls made, or 1 when nobody is left to tell."""
        try:
            calls: int = self.record_calls(finished=False)["calls"]
        except RayError:
            return 1
        return calls

    def drain(self) -> int:
        """Stop asking, and wait a while for what is in flight; returns how many requests were given up."""
        given_up: int = ray.get(self._ledger.drain.remote(DRAIN_S))
        self.record_calls(finished=False)
        return given_up

    def _write(self, errors: list[dict[str, Any]]) -> dict[str, Any]:
        counts = self.record_calls(finished=True)
        self.directory.write_env(counts["models"])
        self.directory.write_errors(errors)
        return self.directory.write_metrics()


def _reason(error: BaseException) -> str:
    """The cause in what Ray says of a failure: the last line that names an error not of Ray's own wrapping."""
    named = re.findall(r"^\s*(?:[\w.]+\.)?(\w+(?:Error|Exception): .+)$", str(error), flags=re.MULTILINE)
    causes = [line for line in named if not line.startswith(("UserCodeException", "RayTaskError"))]
    return str(causes[-1] if causes else error)[:200]
