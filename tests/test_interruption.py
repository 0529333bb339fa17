"""Real signals to a real run, and to each of its processes: nothing is lost, and nothing is asked twice for it."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from faults import Fault
from openai_server import OpenAIServer

DEMO_YES_NO = 57
AT_ONCE = 4  # So many calls are in flight.
# After a SIGKILL, those in flight may be asked again, and those before them whose answers were not durable yet: the
# endpoint takes longer than an answer may before it keeps its actor from asking more, so that these are no more.
REPEATED = 2 * AT_ONCE
DEADLINE_S = 180.0  # What it limits takes 15 s on a machine with nothing else to do.
REPO = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.processes


class Driver:
    """`python jobs/bench.py` on a cluster of its own, against a server of this test."""

    def __init__(self, server: OpenAIServer, runs_dir: Path | str, *words: str) -> None:
        self.command = [
            *(sys.executable, "jobs/bench.py", "address=local", "model=openai_chat", "model.params.api_type=openai"),
            f"model.params.base_url={server.base_url}",
            *(f"runs_dir={runs_dir}", f"pool.max_concurrency={AT_ONCE}"),
            *words,
        ]
        self.process = subprocess.Popen(
            self.command,
            cwd=REPO,
            env={**os.environ, "OPENAI_API_KEY": server.key},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def kill(self, name: str) -> None:
        """SIGKILL to the process of this run that Ray calls so."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            if any(name in word for word in process.cmdline()):
                process.kill()
                return
        raise AssertionError(f"there is no {name} process")

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out, err


def wait_for_requests(server: OpenAIServer, count: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while len(server.requests) < count:
        assert time.monotonic() < deadline, f"only {len(server.requests)} requests came"
        time.sleep(0.01)


def repeats(server: OpenAIServer) -> int:
    """Requests that the server has had more than once."""
    counts = server.snapshot()["per_prompt"].values()
    return sum(counts) - len(counts)


def wait_for_distinct(server: OpenAIServer, count: int) -> None:
    """Wait until so many different requests have come."""
    deadline = time.monotonic() + DEADLINE_S
    while len(server.snapshot()["per_prompt"]) < count:
        assert time.monotonic() < deadline, f"only {len(server.snapshot()['per_prompt'])} distinct requests came"
        time.sleep(0.01)


def metrics_of(runs_dir: Path) -> bytes:
    (path,) = runs_dir.glob("*/metrics.json")
    return path.read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    runs_dir = tmp_path_factory.mktemp("whole")
    with OpenAIServer() as server:
        status, _, err = Driver(server, runs_dir).finish()
        assert status == 0, err
    return metrics_of(runs_dir)


def calls_of(runs_dir: Path) -> dict[str, Any]:
    (path,) = runs_dir.glob("*/calls.json")
    (entry,) = json.loads(path.read_text())["models"]
    return entry


def test_a_run_that_is_stopped_in_every_way_goes_on_to_the_same_bytes(tmp_path, uninterrupted):
    """The same command four times: interrupted, terminated, killed, and left to end."""
    written = b""
    with OpenAIServer() as server:
        for stop, status in ((signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)):
            server.latency = 0.2
            driver = Driver(server, tmp_path)
            wait_for_requests(server, len(server.requests) + 2 * AT_ONCE)
            server.latency = 2.0  # Until the signal is seen, however busy the machine is, few more requests come.
            driver.process.send_signal(stop)
            ended, out, err = driver.finish()
            assert ended == status, err
            if stop == signal.SIGKILL:
                assert metrics_of(tmp_path) == written  # What is killed outright writes nothing.
                break
            assert "Continue with: python jobs/bench.py address=local" in err
            assert "PARTIAL" in out
            partial = json.loads(metrics_of(tmp_path))["partial"]
            assert 0 < partial["samples"] < partial["expected"] == DEMO_YES_NO
            assert partial["samples"] == calls_of(tmp_path)["answered"] == len(server.requests)
            assert calls_of(tmp_path)["repeated"] == repeats(server) == 0
            written = metrics_of(tmp_path)
        server.latency = 0.2
        again, _, err = Driver(server, tmp_path).finish()
        assert again == 0, err
        repeated, distinct = repeats(server), len(server.snapshot()["per_prompt"])
    assert metrics_of(tmp_path) == uninterrupted
    assert repeated <= REPEATED
    spent = calls_of(tmp_path)
    assert spent["answered"] == spent["calls"] == distinct
    assert repeated <= spent["repeated"] <= 3 * 16  # the claims of three blocks


def test_a_run_survives_the_death_of_each_of_its_actors(tmp_path, uninterrupted):
    """One run, in which the model's actor, the ledger and the governor die one after the other."""
    repeated: list[int] = []
    with OpenAIServer(latency=0.2) as server:
        driver = Driver(server, tmp_path, "rate.requests_per_minute=6000")
        for name, after in (("PoolActor", 12), ("LedgerService", 26), ("Governor", 40)):
            wait_for_distinct(server, after)
            repeated.append(repeats(server))
            driver.kill(name)
        status, _, err = driver.finish()
        assert status == 0, err
        repeated.append(repeats(server))
        distinct = len(server.snapshot()["per_prompt"])
    assert metrics_of(tmp_path) == uninterrupted
    assert distinct == DEMO_YES_NO
    assert repeated[0] == 0
    assert [after - before for before, after in itertools.pairwise(repeated) if after - before > REPEATED] == []


def test_a_call_that_never_ends_is_given_up_when_the_run_is_stopped(tmp_path):
    with OpenAIServer(faults=[Fault("hang", every=20)]) as server:
        driver = Driver(server, tmp_path)
        wait_for_requests(server, 40)
        driver.process.send_signal(signal.SIGINT)
        driver.process.send_signal(signal.SIGTERM)  # a second one does not wait
        status, _, err = driver.finish()
    assert status == 130, err
    assert json.loads(metrics_of(tmp_path))["partial"]["expected"] == DEMO_YES_NO
    assert calls_of(tmp_path)["answered"] >= 30
    assert calls_of(tmp_path)["repeated"] >= 2
