"""Stopping a run in order: signals let its stream run dry, and a watcher stops what cannot go on."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any, Self

from ray.exceptions import RayError

from rambla_ray.run.cluster import first_infeasible
from rambla_ray.run.placement import Level
from rambla_ray.run.pool_resources import describe_resources

WATCH_S = 0.5  # It is looked so often whether the run is to stop.


class OrderlyStop:
    """While inside, SIGINT and SIGTERM let the stream run dry, and a stream that does not is given up.

    Giving up, like a second signal, is a KeyboardInterrupt in the main thread.

    Args:
        ledger: handle of the run's `LedgerService`, which lets nothing new be asked once it is stopped.
        progress: asks it for its counts; see `LedgerService.progress`.
        taken_over: says why the run must stop, as another invocation of it has begun; empty while it need not.
        growing: the levels for whose actors nodes may come; the run is stopped where the autoscaler has none.
        drain_s: how long what is in flight is waited for, in seconds.
    """

    def __init__(
        self,
        ledger: Any,
        progress: Callable[[], Mapping[str, Any]],
        taken_over: Callable[[], str],
        growing: Sequence[Level],
        drain_s: float,
    ) -> None:
        self._ledger = ledger
        self._progress = progress
        self._taken_over = taken_over
        self._growing = {level.name: level for level in growing}
        self._drain_s = drain_s
        self._interrupted = threading.Event()
        self._over = threading.Event()
        self._gave_up = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._handlers: dict[signal.Signals, Any] = {}

    @property
    def interrupted(self) -> bool:
        """Whether a signal came."""
        return self._interrupted.is_set()

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._on_signal)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._watcher.join()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted.is_set() or self._gave_up.is_set():
            raise KeyboardInterrupt
        self._interrupted.set()

    def _watch(self) -> None:
        """Runs in a thread of its own, where what takes a while does not hold up the stream."""
        is_stopped = False
        while not self._over.wait(WATCH_S):
            if self._interrupted.is_set() and not is_stopped:
                is_stopped = True
                self._ledger.stop.remote("interrupted", "interrupted")
            if (reason := self._taken_over()) and not is_stopped:
                is_stopped = True
                self._ledger.stop.remote("lease", reason)
            with contextlib.suppress(RayError, RuntimeError):
                self._stop_where_no_node_can_come()
            with contextlib.suppress(RayError):
                counts = self._progress()
                if counts["stopped"] and not self._over.wait(self._drain_s if counts["models"] else WATCH_S):
                    self._gave_up.set()
                    os.kill(os.getpid(), signal.SIGINT)
                    return

    def _stop_where_no_node_can_come(self) -> None:
        """Stop the run when the autoscaler says that it has no node for a pool's actors."""
        if not self._growing:
            return
        infeasible = first_infeasible([level.pool for level in self._growing.values()])
        for name, level in self._growing.items():
            if level.pool == infeasible:
                kind = "kind of node with" if level.pool.node_count == 1 else "kinds of nodes for"
                message = (
                    f"model {name}: the cluster's autoscaler has no {kind} "
                    f"{describe_resources(level.pool)}; set pool.num_cpus and pool.num_gpus to what one has"
                )
                self._ledger.stop.remote("placement", message)
