"""The pipeline on one page: samples stream through pools of Ray actors, and out comes a run directory."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError

from rambla_ray.actors.pool import PACKED, PoolActor, unpack
from rambla_ray.display import print_error
from rambla_ray.errors import NotWritten, RunStopped, UserError
from rambla_ray.ledger.presence import Presence
from rambla_ray.results.calls import invocation
from rambla_ray.results.directory import RunDirectory, scoring_spec
from rambla_ray.results.progress import Progress
from rambla_ray.results.served import Served
from rambla_ray.results.stream_writer import StreamWriter
from rambla_ray.run.cluster import connected_cluster
from rambla_ray.run.ledger_service import start_ledger
from rambla_ray.run.node_groups import NodeGroups
from rambla_ray.run.placement import Cluster, Level, Placement, blocks_at_once, waiting_reason
from rambla_ray.run.plan import Plan
from rambla_ray.run.stopping import OrderlyStop
from rambla_ray.storage import Folder

DRAIN_S = 30.0  # A run that is being stopped waits so long for what is in flight.
Stream = tuple[str, ...]  # The targets that one dataset's samples are for.
NEVER = -1  # Ray Data's word for no timeout.
STALL_MARGIN_S = 900.0  # Loading and large batches may take so long beyond the slowest request without any progress.


@dataclass(eq=False)
class Run:
    """One invocation of a run, on a connected cluster. `Run.start` makes it, and a call runs it.

    Args:
        plan: what to ask.
        directory: where the results go.
        cluster: what the cluster had when the run started.
        placements: by stream, which is of one target or of several that share their actors, its pools.
        presence: tells other runs on the same ledger that this one goes on.
        ledger: handle of the run's `LedgerService`.
        before: object reference of the service's counts at the start of this invocation.
        items: per (task, variant), the object reference of its items' table.
        started: when this invocation started, as Unix time in seconds.
        drain_s: how long it waits for what is in flight when it is stopped, in seconds.
        groups: the placement groups of actors that are spread over several nodes.
        calls: how many were made in this invocation; known once it has ended.
        ended: how many samples have ended.
        answered: per (model, role), how many steps have an answer.
        served: by who served them, how many of those answers there are whose replies named it.
    """

    plan: Plan
    directory: RunDirectory
    cluster: Cluster
    placements: Mapping[Stream, Placement]
    presence: Presence
    ledger: Any
    before: Any
    items: Mapping[tuple[str, str], Any]
    started: float
    drain_s: float
    groups: NodeGroups = field(default_factory=NodeGroups)
    calls: int = 0
    ended: int = 0
    answered: Counter[tuple[str, str]] = field(default_factory=Counter)
    served: Counter[Served] = field(default_factory=Counter)

    @classmethod
    def start(cls, plan: Plan, directory: RunDirectory, words: Sequence[str], *, drain_s: float = DRAIN_S) -> Self:
        """Place the pools, start the ledger service, and write what is known before the first call.

        Args:
            plan: what to ask.
            directory: where the results go.
            words: the command line, for the run directory.
            drain_s: how long the run waits for what is in flight when it is stopped, in seconds.

        Raises:
            UserError: the cluster cannot hold a pool.
        """
        started, cluster = time.time(), connected_cluster()
        placements = {stream: Placement.of(plan.levels(stream[0]), cluster) for stream in plan.config.streams}
        presence = Presence(Folder(plan.config.ledger, plan.config.options.modes))
        ledger = start_ledger(plan.config, placements, presence.segment)
        before = ledger.progress.remote()
        for stream, placement in placements.items():
            for note in _notes(", ".join(map(plan.config.label, stream)), placement, cluster):
                print_error(note, "note")
        described = plan.describe()
        described["placement"] = {
            target: {"together": placement.together, "pools": [level.pool.model_dump() for level in placement.levels]}
            for stream, placement in placements.items()
            for target in stream
        }
        items = {key: table_ref for keys, table in plan.tables() for table_ref in [ray.put(table)] for key in keys}
        directory.begin(plan.config, described, words)
        return cls(plan, directory, cluster, placements, presence, ledger, before, items, started, drain_s)

    def __call__(self) -> dict[str, Any]:
        """Ask everything that the ledger does not hold, and write the run directory; returns metrics.json.

        SIGINT and SIGTERM stop it in order: nothing new is asked, what is in flight is waited for.

        Raises:
            RunStopped: a model cannot go on (a rejected key, an unknown engine), the budget is spent, the ledger
                cannot be written, or the cluster gave up. What was answered is kept, and the run directory holds what
                was scored until then.
            NotWritten: the run directory cannot be written. What was answered is kept.
            KeyboardInterrupt: the same, for a run that was interrupted.
        """
        levels = [level for placement in self.placements.values() for level in placement.levels]
        models = sorted({member.names.key for level in levels for member in level.family})
        labels = {target: self.plan.config.label(target) for target in self.plan.config.targets}
        growing = levels if self.cluster.grows else []
        gave_up = unwritten = ""
        with (
            OrderlyStop(self.ledger, self.progress, lambda: self.directory.taken_over, growing, self.drain_s) as stop,
            Progress(self._expected, models, self.progress, labels) as shown,
        ):
            try:
                for stream in self.placements:
                    self._collect(stream, shown)
                    if self.progress()["stopped"]:
                        break
            except KeyboardInterrupt:
                gave_up = "what was in flight did not come back in time"
            except NotWritten as error:
                gave_up = unwritten = str(error)
            except (RayError, SystemException, ExecutionTimeoutError) as error:  # No ledger, no nodes, no progress.
                gave_up = f"the cluster gave up: {_reason(error)}"
        counts, why = self._end(gave_up)
        try:
            self._write_calls(counts, finished=not why)
            if unwritten:
                raise NotWritten(unwritten)
            self.directory.write_errors()
            scores = self.directory.write_metrics()
        except (NotWritten, UserError) as error:  # The samples, too, may be gone or damaged by now.
            raise NotWritten("; ".join(dict.fromkeys(filter(None, (why, str(error)))))) from None
        if stop.interrupted:
            raise KeyboardInterrupt
        if why:
            raise RunStopped(why)
        return scores

    @property
    def _expected(self) -> int:
        return self.plan.samples_per_target * len(self.plan.config.targets)

    def _collect(self, stream: Stream, shown: Progress) -> None:
        """Stream the samples of some targets into their files."""
        spec = scoring_spec(self.plan.config, self.plan.expected, self.plan.calibration)
        writer = StreamWriter({target: self.directory.sample_writer(target, spec) for target in stream})
        is_full = False
        try:
            for table in self._stream(stream):
                ended = table.filter(pc.not_equal(table["outcome"], ""))  # Others are not asked: the run is stopping.
                try:
                    if not is_full:
                        writer.add(ended)
                except NotWritten as error:  # What is in flight still gets into the ledger.
                    is_full = True
                    self.ledger.stop.remote("results", str(error))
                for outcome, count in zip(*pc.value_counts(ended["outcome"]).flatten(), strict=True):
                    shown.add(outcome.as_py(), count.as_py())
                self.ended += ended.num_rows
        finally:
            self.groups.remove()
            self.answered += writer.answered
            self.served += writer.served
            writer.close()

    def _stream(self, targets: Stream) -> Iterator[pa.Table]:
        """All samples of some targets, as they come out of the last pool, block by block."""
        placement = self.placements[targets]
        first, last = placement.levels[0], placement.levels[-1]
        of_each = self.plan.blocks(placement.levels)
        blocks = [{"target": target, **block} for target in targets for block in of_each]
        rows = max(block["count"] for block in blocks)
        self._configure_ray_data(placement)
        stream: ray.data.Dataset = ray.data.from_blocks([pa.Table.from_pylist([block]) for block in blocks])
        for level in placement.levels:
            at_once = blocks_at_once(level, rows, len(blocks))
            stream = self._through(stream, level, at_once, is_first=level is first, is_last=level is last)
            if not placement.together:
                stream = stream.materialize()  # This pool ends before the next begins.
                self.groups.remove()
        for batch in stream.iter_batches(batch_size=None, batch_format="pyarrow"):
            for packed in batch[PACKED]:
                yield unpack(packed.as_buffer())

    def _configure_ray_data(self, placement: Placement) -> None:
        """Ray Data's settings for a stream."""
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.memory_usage_poll_interval_s = None  # Otherwise each block gets a thread that measures memory.
        context.issue_detectors_config.detectors = []  # They ask for an actor's options where none is started.
        context.print_on_execution_start = self.plan.config.options.verbose
        rates = [level.config.rate for level in placement.levels]
        slowest_s = max(rate.give_up_after_s + rate.timeout_s for rate in rates)
        in_batches = any(level.config.batch for level in placement.levels)  # Their own deadline bounds them.
        context.execution_no_progress_timeout_s = NEVER if in_batches else STALL_MARGIN_S + slowest_s

    def _through(
        self, stream: ray.data.Dataset, level: Level, at_once: int, *, is_first: bool, is_last: bool
    ) -> ray.data.Dataset:
        """The stream through one pool, whose actors each work on so many blocks at once."""
        pool = level.pool
        work = cache(lambda: self.plan.longest_prompt(level)), lambda: self.plan.workload(level)
        params = level.config.params.planned(*work)
        return stream.map(
            PoolActor,
            fn_constructor_args=(
                level.names,
                level.config.model_copy(update={"params": params}),
                self.plan.config.tasks,
                frozenset(level.roles),
                self.ledger,
                self.plan.config.run_id,
                self.items if is_first else None,
                is_last,
                self.plan.config.options.chaos,
                self.plan.config.reader if is_last else None,
                {other.names: other.config.params.planned(*work) for other in level.kin},
                level.seat,
            ),
            compute=ray.data.ActorPoolStrategy(
                min_size=pool.min_size,
                max_size=pool.largest,
                max_concurrent_calls_per_actor=at_once,
                max_tasks_in_flight_per_actor=2 * at_once,
            ),
            **self.groups.options(pool),
        )

    def progress(self) -> dict[str, Any]:
        """The ledger service's counts, `calls` being those of this invocation; see `LedgerService.progress`."""
        before, counts = ray.get([self.before, self.ledger.progress.remote()])
        counts["calls"] -= before["calls"]
        of_this_invocation: dict[str, Any] = counts
        return of_this_invocation

    def _end(self, gave_up: str) -> tuple[dict[str, Any] | None, str]:
        """The last counts, None when the ledger service cannot be reached any more; and why the run stopped, if so."""
        try:
            counts = self.progress()
        except RayError:
            return None, gave_up
        self.calls = counts["calls"]
        kind, why = counts["stopped"] or ("", gave_up)
        is_complete = self.ended == self._expected
        return counts, "" if kind == "budget" and is_complete else why  # The last call may have been what was left.

    def _write_calls(self, counts: Mapping[str, Any] | None, *, finished: bool) -> None:
        """Write what the run took, as far as that is known. Raises NotWritten."""
        if counts is not None:
            now = invocation(self.started, counts["calls"], counts["work"], counts["lost"], finished=finished)
            self.directory.write_calls(self.plan.config, counts["spent"], self.answered, now, self.served)
            self.directory.write_env(counts["models"])


def _reason(error: BaseException) -> str:
    """The cause in what Ray says of a failure: the last line that names an error not of Ray's own wrapping."""
    named = re.findall(r"^\s*(?:[\w.]+\.)?(\w+(?:Error|Exception): .+)$", str(error), flags=re.MULTILINE)
    causes = [line for line in named if not line.startswith(("UserCodeException", "RayTaskError"))]
    return str(causes[-1] if causes else error)[:200]


def _notes(label: str, placement: Placement, cluster: Cluster) -> Iterator[str]:
    """What a user should know about how a target's stream is placed."""
    if not placement.together:
        order = ", then ".join(f"{level.names.label} ({', '.join(level.roles)})" for level in placement.levels)
        yield f"the models of {label}'s stream run one after another: {order}"
    for level in placement.levels:
        if waiting := waiting_reason(level, cluster):
            yield waiting
