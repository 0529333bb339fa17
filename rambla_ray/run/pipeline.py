"""The pipeline on one page: samples stream through pools of Ray actors, and out comes a run directory."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rambla_ray.actors.ledger import LedgerService
from rambla_ray.actors.pool import PACKED, PoolActor, Source, unpack
from rambla_ray.config.run import RunConfig
from rambla_ray.errors import RunStopped
from rambla_ray.results.calls import invocation
from rambla_ray.results.directory import RunDirectory, scoring_spec
from rambla_ray.results.progress import Progress
from rambla_ray.run.cluster import cluster, first_infeasible
from rambla_ray.run.placement import Cluster, Level, calls_per_actor, describe_resources, run_together, waiting_reason
from rambla_ray.run.plan import Plan

DRAIN_S = 30.0  # how long a run that is being stopped waits for what is in flight
WATCH_S = 0.5  # how often it is looked whether the run is to stop
STALL_MARGIN_S = 900.0  # without any progress, beyond what the slowest request may take: loading, large batches


class Run:
    """One invocation of a run, on a connected cluster.

    Args:
        plan: what to ask.
        directory: where the results go.
        words: the command line, for the run directory.
        drain_s: how long it waits for what is in flight when it is stopped, in seconds.
    """

    def __init__(self, plan: Plan, directory: RunDirectory, words: Sequence[str], *, drain_s: float = DRAIN_S) -> None:
        self.plan = plan
        self.directory = directory
        self.config: RunConfig = plan.config
        self._drain_s = drain_s
        self._started = time.time()
        self._answered: Counter[tuple[str, str]] = Counter()
        self._interrupted = threading.Event()
        self.calls = 0  # made in this invocation, once it has ended
        there = cluster()
        self._grows = there.grows
        self._settled = {target: self._settle(target, there) for target in self.config.targets}
        self._ledger = self._start_ledger()
        self._before = self._ledger.progress.remote()
        for target, (levels, together) in self._settled.items():
            if not together:
                order = ", then ".join(f"{level.name} ({', '.join(level.roles)})" for level in levels)
                print(f"note: the models of {target}'s stream run one after another: {order}", file=sys.stderr)
            for level in levels:
                if waiting := waiting_reason(level, there):
                    print(f"note: {waiting}", file=sys.stderr)
        streams = {
            target: {"together": together, "pools": [level.config.pool.model_dump() for level in levels]}
            for target, (levels, together) in self._settled.items()
        }
        directory.begin(self.config, {**plan.describe(), "placement": streams}, words)
        self._items = {key: ref for keys, table in plan.tables() for ref in [ray.put(table)] for key in keys}

    def _start_ledger(self) -> Any:
        """The run's ledger service, on this node, where it outlives its own death."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        prices = {
            (level.name, str(role)): level.config.price
            for levels, _ in self._settled.values()
            for level in levels
            for role in level.roles
        }
        return (
            ray.remote(LedgerService)
            .options(num_cpus=0, scheduling_strategy=here, max_restarts=-1, max_task_retries=-1, max_concurrency=4096)
            .remote(self.config.ledger, self.config.run_id, self.config.options.budget, prices)
        )

    def _settle(self, target: str, there: Cluster) -> tuple[list[Level], bool]:
        """A target's levels with their resources settled, and whether the cluster holds them all at once."""
        levels = [level.settled(there) for level in self.plan.levels(target)]
        return levels, run_together(levels, there)

    def __call__(self) -> dict[str, Any]:
        """Ask everything that the ledger does not hold, and write the run directory; returns metrics.json.

        SIGINT and SIGTERM stop it in order: nothing new is asked, what is in flight is waited for.

        Raises:
            RunStopped: a model cannot go on (a rejected key, an unknown engine), the budget is spent, or the cluster
                gave up. What was answered is kept, and the run directory holds what was scored until then.
            KeyboardInterrupt: the same, for a run that was interrupted.
        """
        total = self.plan.samples_per_target * len(self.config.targets)
        models = sorted({level.name for levels, _ in self._settled.values() for level in levels})
        gave_up = ""
        with self._stopping_in_order(), Progress(total, models, self.progress) as shown:
            try:
                for target in self.config.targets:
                    self._collect(target, shown)
                    if self.progress()["stopped"]:
                        break
            except KeyboardInterrupt:
                gave_up = "what was in flight did not come back in time"
            except (RayError, SystemException, ExecutionTimeoutError) as error:  # no ledger, no nodes, no progress
                gave_up = f"the cluster gave up: {_reason(error)}"
        scores, why = self._write(gave_up)
        if self._interrupted.is_set():
            raise KeyboardInterrupt
        if why:
            raise RunStopped(why)
        return scores

    def _collect(self, target: str, shown: Progress) -> None:
        """Stream a target's samples into their files."""
        writer = self.directory.sample_writer(target, scoring_spec(self.config, self.plan.expected))
        try:
            for table in self._stream(target):
                ended = table.filter(pc.not_equal(table["outcome"], ""))  # the rest was not asked: the run is stopping
                writer.add(ended)
                for outcome, count in zip(*pc.value_counts(ended["outcome"]).flatten(), strict=True):
                    shown.add(outcome.as_py(), count.as_py())
        finally:
            writer.close()
            self._answered += writer.answered

    def _stream(self, target: str) -> Iterator[pa.Table]:
        """All samples of a target, as they come out of the last pool, block by block."""
        levels, together = self._settled[target]
        blocks = self.plan.blocks(levels[0])
        rows = max(block["count"] for block in blocks)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.memory_usage_poll_interval_s = None  # else a thread for every block
        context.print_on_execution_start = self.config.options.verbose
        context.execution_no_progress_timeout_s = STALL_MARGIN_S + max(
            level.config.rate.give_up_after_s + level.config.rate.timeout_s for level in levels
        )
        stream: ray.data.Dataset = ray.data.from_blocks([pa.Table.from_pylist([block]) for block in blocks])
        for level in levels:
            source = Source(target, self._items) if level is levels[0] else None
            stream = self._through(stream, level, rows, source, is_last=level is levels[-1])
            if not together:
                stream = stream.materialize()  # this pool ends before the next begins
        for batch in stream.iter_batches(batch_size=None, batch_format="pyarrow"):
            for packed in batch[PACKED]:
                yield unpack(packed.as_buffer())

    def _through(
        self, stream: ray.data.Dataset, level: Level, rows: int, source: Source | None, *, is_last: bool
    ) -> ray.data.Dataset:
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
                source,
                is_last,
                self.config.options.chaos,
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

    @contextlib.contextmanager
    def _stopping_in_order(self) -> Iterator[None]:
        """While inside, SIGINT and SIGTERM let the stream run dry, and a stream that does not is given up.

        Giving up, like a second signal, is a KeyboardInterrupt in the main thread.
        """
        over, patience_lost = threading.Event(), threading.Event()

        def stop(number: int, frame: Any) -> None:
            if self._interrupted.is_set() or patience_lost.is_set():
                raise KeyboardInterrupt
            self._interrupted.set()

        def watch() -> None:
            told = False
            while not over.wait(WATCH_S):
                if self._interrupted.is_set() and not told:
                    told = True
                    self._ledger.stop.remote("interrupted", "interrupted")
                with contextlib.suppress(RayError, RuntimeError):
                    self._check_that_nodes_can_come()
                with contextlib.suppress(RayError):
                    counts = self.progress()
                    if counts["stopped"] and not over.wait(self._drain_s if counts["models"] else WATCH_S):
                        patience_lost.set()
                        os.kill(os.getpid(), signal.SIGINT)
                        return

        kept = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            for number, handler in kept.items():
                signal.signal(number, handler)

    def _check_that_nodes_can_come(self) -> None:
        """Stop the run when the autoscaler says that it has no node for a pool's actors."""
        if not self._grows:
            return
        levels = {level.name: level for levels, _ in self._settled.values() for level in levels}
        refused = first_infeasible([level.config.pool for level in levels.values()])
        for name, level in levels.items():
            if level.config.pool == refused:
                one = describe_resources(level.config.pool)
                message = (
                    f"model {name}: the cluster's autoscaler has no kind of node with {one}; set pool.num_cpus and "
                    "pool.num_gpus to what one has"
                )
                self._ledger.stop.remote("placement", message)

    def progress(self) -> dict[str, Any]:
        """The ledger service's counts, `calls` being those of this invocation; see `LedgerService.progress`."""
        before, counts = ray.get([self._before, self._ledger.progress.remote()])
        counts["calls"] -= before["calls"]
        found: dict[str, Any] = counts
        return found

    def _write(self, gave_up: str) -> tuple[dict[str, Any], str]:
        """Write what the run has come to; returns metrics.json, and why the run stopped, if it did."""
        self.directory.write_errors()
        try:
            counts = self.progress()
        except RayError:  # the ledger service cannot be had any more; the samples can
            return self.directory.write_metrics(), gave_up
        why = counts["stopped"][1] if counts["stopped"] else gave_up
        now = invocation(self._started, counts["calls"], counts["work"], finished=not why)
        self.calls = counts["calls"]
        self.directory.write_calls(self.config, counts["spent"], self._answered, now)
        self.directory.write_env(counts["models"])
        return self.directory.write_metrics(), why


def _reason(error: BaseException) -> str:
    """The cause in what Ray says of a failure: the last line that names an error not of Ray's own wrapping."""
    named = re.findall(r"^\s*(?:[\w.]+\.)?(\w+(?:Error|Exception): .+)$", str(error), flags=re.MULTILINE)
    causes = [line for line in named if not line.startswith(("UserCodeException", "RayTaskError"))]
    return str(causes[-1] if causes else error)[:200]
