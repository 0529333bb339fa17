"""SIGKILL to all of a run at each point of its batch: one batch is paid, and the numbers are the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from batch_server import BatchServer, Script
from driver import DEMO_YES_NO, Driver, calls_of, metrics_of, repeats
from faults import bad_request
from waiting import wait_until

pytestmark = pytest.mark.processes
BATCH = "model.batch={max_wait_s: 600, poll_s: 0.2}"


class Killer:
    """Kills a run when the server is about to serve a request, or to reply to one.

    Args:
        what: a method and the beginning of a path.
        nth: the how manyth of these requests is the last of the run.
        is_served: the server does what it is asked before the run dies.
    """

    def __init__(self, server: BatchServer, what: str, nth: int = 1, *, is_served: bool = False) -> None:
        self._what, self._left = what, nth
        self._is_served = is_served
        self.driver: Driver | None = None
        server.on_request, server.on_reply = (nothing, self._strike) if is_served else (self._strike, nothing)

    def _strike(self, what: str) -> None:
        if not what.startswith(self._what) or self._left == 0:
            return
        self._left -= 1
        if self._left == 0 and self.driver is not None:
            kill_all(self.driver)
            raise bad_request("The one who asked is dead.", 500)


def nothing(what: str) -> None:
    """Do nothing at a request."""


def kill_all(driver: Driver) -> None:
    """SIGKILL to the driver and to all that it started."""
    parent = psutil.Process(driver.process.pid)
    for process in [parent, *parent.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def kill_the_actor_alone(driver: Driver, server: BatchServer) -> None:
    """SIGKILL to the model's actor while a batch runs; returns when another waits for it."""
    look = "GET /v1/batches/batch_0"
    wait_until(lambda: server.seen[look], "a look at the batch")
    driver.kill("PoolActor")
    before = server.seen[look]
    wait_until(lambda: server.seen[look] > before + 2, "the looks of another actor")


POINTS: dict[str, Callable[[BatchServer], Killer]] = {
    "before its input is uploaded": lambda server: Killer(server, "POST /v1/files"),
    "before it is created": lambda server: Killer(server, "POST /v1/batches"),
    "before its name is stored": lambda server: Killer(server, "POST /v1/batches", is_served=True),
    "while it runs": lambda server: Killer(server, "GET /v1/batches/", 2),
    "while its results are read": lambda server: Killer(server, "GET /v1/files/"),
}


def test_a_run_that_is_killed_at_each_point_of_its_batch_pays_once(tmp_path: Path) -> None:
    with BatchServer(Script(takes_s=3600)) as server:
        status, _, err = Driver(server, tmp_path / "live").finish()
        assert status == 0, err
        server.reset()
        for name, killer_at in POINTS.items():
            if name == "while its results are read":
                server.batches["batch_0"].ends_at = 0
            server.on_request = server.on_reply = nothing
            driver = Driver(server, tmp_path / "batch", BATCH)
            if name == "while it runs":
                kill_the_actor_alone(driver, server)
            killer = killer_at(server)
            killer.driver = driver
            ended, _, err = driver.finish()
            assert ended == -9, f"{name}: {err}"
        server.on_request = server.on_reply = nothing
        status, _, err = Driver(server, tmp_path / "batch", BATCH).finish()
        assert status == 0, err
        assert (len(server.batches), repeats(server)) == (1, 0)
        assert len(server.snapshot()["per_prompt"]) == DEMO_YES_NO
    assert metrics_of(tmp_path / "batch") == metrics_of(tmp_path / "live")
    spent = calls_of(tmp_path / "batch")
    assert (spent["calls"], spent["answered"], spent["repeated"]) == (DEMO_YES_NO, DEMO_YES_NO, 0)
