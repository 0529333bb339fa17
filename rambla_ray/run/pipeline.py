"""The pipeline on one page: samples stream through pools of Ray actors, and out comes a run directory."""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import pyarrow.compute as pc
import ray
from ray.data.exceptions import ExecutionTimeoutError, SystemException
from ray.exceptions import RayError

from rambla_ray.display import print_error
from rambla_ray.errors import NotWritten, RunStopped, UserError
from rambla_ray.ledger.presence import Presence
from rambla_ray.results.calls import invocation
from rambla_ray.results.directory import RunDirectory, scoring_spec
from rambla_ray.results.progress import Progress
from rambla_ray.results.served import Served
from rambla_ray.results.stream_writer import StreamWriter
from rambla_ray.run.cluster import connected_cluster
from rambla_ray.run.early_end import EarlyEnd
from rambla_ray.run.flow import Flow
from rambla_ray.run.ledger_service import start_ledger
from rambla_ray.run.placement import Cluster, waiting_reason
from rambla_ray.run.plan import Plan
from rambla_ray.run.stopping import OrderlyStop
from rambla_ray.run.streams import Stream, streams_of
from rambla_ray.storage import Folder

DRAIN_S = 30.0  # A run that is being stopped waits so long for what is in flight.


@dataclass(eq=False)
class Run:
    """One invocation of a run, on a connected cluster. `Run.start` makes it, and a call runs it.

    Args:
        plan: what to ask.
        directory: where the results go.
        cluster: what the cluster had when the run started.
        streams: the targets that are asked side by side, with their pools; one stream follows another.
        presence: tells other runs on the same ledger that this one goes on.
        ledger: handle of the run's `LedgerService`.
        before: object reference of the service's counts at the start of this invocation.
        flow: makes the streams' datasets.
        started: when this invocation started, as Unix time in seconds.
        drain_s: how long it waits for what is in flight when it is stopped, in seconds.
        early: ends the run when it is settled; None where it asks all items.
        calls: how many were made in this invocation; known once it has ended.
        ended: how many samples have ended.
        answered: per (model, role), how many steps have an answer.
        served: by who served them, how many of those answers there are whose replies named it.
    """

    plan: Plan
    directory: RunDirectory
    cluster: Cluster
    streams: Sequence[Stream]
    presence: Presence
    ledger: Any
    before: Any
    flow: Flow
    started: float
    drain_s: float
    early: EarlyEnd | None
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
        streams = streams_of(plan.config, cluster)
        presence = Presence(Folder(plan.config.ledger, plan.config.options.modes))
        ledger = start_ledger(plan.config, streams, presence.segment)
        before = ledger.progress.remote()
        early = EarlyEnd.of(plan, streams, ledger)
        for note in (*_notes(plan.config.label, streams, cluster), *(early.notes if early else ())):
            print_error(note, "note")
        described = {**plan.describe(), "placement": _described(streams)}
        items = {key: table_ref for keys, table in plan.tables() for table_ref in [ray.put(table)] for key in keys}
        directory.begin(plan.config, described, words)
        flow = Flow(plan, ledger, items)
        return cls(plan, directory, cluster, streams, presence, ledger, before, flow, started, drain_s, early)

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
        levels = [level for stream in self.streams for level in stream.levels]
        models = sorted({member.names.key for level in levels for member in level.family})
        labels = {target: self.plan.config.label(target) for target in self.plan.config.targets}
        growing = levels if self.cluster.grows else []
        gave_up = unwritten = ""
        with (
            OrderlyStop(self.ledger, self.progress, lambda: self.directory.taken_over, growing, self.drain_s) as stop,
            Progress(dict.fromkeys(labels, self.plan.samples_per_target), models, self.progress, labels) as shown,
        ):
            try:
                writers = [self._writer(stream) for stream in self.streams]
                with contextlib.ExitStack() as closing:
                    for stream, writer in zip(self.streams, writers, strict=True):
                        self._collect(stream, writer, shown, closing)
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

    def _writer(self, stream: Stream) -> StreamWriter:
        """What writes the samples of some targets."""
        spec = (
            self.early.spec()
            if self.early
            else scoring_spec(self.plan.config, self.plan.expected, self.plan.calibration)
        )
        return StreamWriter({target: self.directory.sample_writer(target, spec) for target in stream.targets})

    def _collect(self, stream: Stream, writer: StreamWriter, shown: Progress, closing: contextlib.ExitStack) -> None:
        """Stream the samples of some targets into their files. Those of a run that may end early are closed last."""
        early = self.early
        is_full = False
        try:
            for table in self.flow.tables(stream, is_held=bool(early and early.is_held(stream))):
                ended = table.filter(pc.not_equal(table["outcome"], ""))  # Others are not asked: the run is stopping.
                try:
                    if not is_full:
                        writer.add(ended)
                except NotWritten as error:  # What is in flight still gets into the ledger.
                    is_full = True
                    self.ledger.stop.remote("results", str(error))
                for counted in ended.group_by(["model", "outcome"]).aggregate([([], "count_all")]).to_pylist():
                    shown.add(counted["model"], counted["outcome"], counted["count_all"])
                self.ended += ended.num_rows
                if early:
                    early.add(ended)
        finally:
            self.flow.groups.remove()
            self.answered += writer.answered
            self.served += writer.served
            if early:
                closing.callback(lambda: writer.close(early.kept()))
            else:
                writer.close()

    def progress(self) -> dict[str, Any]:
        """The ledger service's counts, `calls` being those of this invocation; see `LedgerService.progress`."""
        if self.early:
            self.early.advance()
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
        is_complete = kind == "budget" and self.ended == self._expected  # The last call may have been what was left.
        return counts, "" if is_complete or (self.early and self.early.is_settled) else why

    def _write_calls(self, counts: Mapping[str, Any] | None, *, finished: bool) -> None:
        """Write what the run took, as far as that is known. Raises NotWritten."""
        if counts is not None:
            now = invocation(self.started, counts["calls"], counts["work"], counts["lost"], finished=finished)
            saved = self.early.saved(self.ended) if self.early else None
            self.directory.write_calls(self.plan.config, counts["spent"], self.answered, now, self.served, saved)
            self.directory.write_env(counts["models"])


def _reason(error: BaseException) -> str:
    """The cause in what Ray says of a failure: the last line that names an error not of Ray's own wrapping."""
    named = re.findall(r"^\s*(?:[\w.]+\.)?(\w+(?:Error|Exception): .+)$", str(error), flags=re.MULTILINE)
    causes = [line for line in named if not line.startswith(("UserCodeException", "RayTaskError"))]
    return str(causes[-1] if causes else error)[:200]


def _described(streams: Sequence[Stream]) -> dict[str, Any]:
    """By target, its pools, whether they run at the same time, and which targets are asked beside it."""
    return {
        target: {
            "together": stream.together,
            "pools": [level.pool.model_dump() for level in stream.path(branch)],
            "beside": [other for other in stream.targets if other != target],
        }
        for stream in streams
        for branch in stream.branches
        for target in branch.targets
    }


def _notes(label: Callable[[str], str], streams: Sequence[Stream], cluster: Cluster) -> Iterator[str]:
    """What a user should know about how the targets of some streams, which have labels, are placed."""
    for stream in streams:
        yield from _notes_of(label, stream, cluster)


def _notes_of(label: Callable[[str], str], stream: Stream, cluster: Cluster) -> Iterator[str]:
    names = ", ".join(map(label, stream.targets))
    if len(stream.branches) > 1:
        yield f"asked side by side: {names}"
    if stream.head is not None:
        yield f"{stream.head.names.label} rephrases for all of {names} before they are asked"
    if not stream.together:
        levels = stream.shared if len(stream.branches) > 1 else stream.levels
        order = ", then ".join(f"{level.names.label} ({', '.join(level.roles)})" for level in levels)
        yield f"the models of {names}'s stream run one after another: {order}"
    for level in stream.levels:
        if waiting := waiting_reason(level, cluster):
            yield waiting
