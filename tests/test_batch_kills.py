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


BEFORE_ITS_NAME_IS_KNOWN: dict[str, Callable[[BatchServer], Killer]] = {
    "before its input is uploaded": lambda server: Killer(server, "POST /v1/files"),
    "before it is created": lambda server: Killer(server, "POST /v1/batches"),
    "before its name is stored": lambda server: Killer(server, "POST /v1/batches", is_served=True),
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """metrics.json of a live run."""
    runs_dir = tmp_path_factory.mktemp("live")
    with BatchServer() as server:
        status, _, err = Driver(server, runs_dir).finish()
        assert status == 0, err
    return metrics_of(runs_dir)


def killed(server: BatchServer, driver: Driver, killer: Killer) -> None:
    """A run that ends by a killer."""
    killer.driver = driver
    ended, _, err = driver.finish()
    assert ended == -9, err
    server.on_request = server.on_reply = nothing


def ends_well(server: BatchServer, runs_dir: Path, metrics: bytes) -> None:
    """The next run goes on to the end: one batch is paid, and the numbers are those of a live run."""
    status, _, err = Driver(server, runs_dir, BATCH).finish()
    assert status == 0, err
    assert (len(server.batches), server.live_calls, repeats(server)) == (1, 0, 0)
    assert len(server.snapshot()["per_prompt"]) == DEMO_YES_NO
    assert metrics_of(runs_dir) == metrics
    spent = calls_of(runs_dir)
    assert (spent["calls"], spent["answered"], spent["repeated"]) == (DEMO_YES_NO, DEMO_YES_NO, 0)


def test_a_run_that_is_killed_before_it_knows_its_batch_pays_once(tmp_path: Path, uninterrupted: bytes) -> None:
    with BatchServer() as server:
        for killer_at in BEFORE_ITS_NAME_IS_KNOWN.values():
            killed(server, Driver(server, tmp_path, BATCH), killer_at(server))
        ends_well(server, tmp_path, uninterrupted)


def test_a_run_that_is_killed_while_its_batch_runs_or_is_read_pays_once(tmp_path: Path, uninterrupted: bytes) -> None:
    with BatchServer(Script(takes_s=3600)) as server:
        driver = Driver(server, tmp_path, BATCH)
        kill_the_actor_alone(driver, server)
        killed(server, driver, Killer(server, "GET /v1/batches/", 2))
        server.batches["batch_0"].ends_at = 0
        killed(server, Driver(server, tmp_path, BATCH), Killer(server, "GET /v1/files/"))
        ends_well(server, tmp_path, uninterrupted)
