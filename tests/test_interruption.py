"""Real signals to a real run, and to each of its processes: nothing is lost, and nothing is asked twice for it."""

from __future__ import annotations

import itertools
import json
import signal
import time

import pytest
from driver import (
    AT_ONCE,
    DEMO_YES_NO,
    REPEATED,
    Driver,
    calls_of,
    metrics_of,
    repeats,
    wait_for_distinct,
    wait_for_requests,
)
from faults import Fault
from made_items import item, write_items
from openai_server import OpenAIServer

from rambla_ray.ledger.claims import OWNER_SILENT_S

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    runs_dir = tmp_path_factory.mktemp("whole")
    with OpenAIServer() as server:
        status, _, err = Driver(server, runs_dir).finish()
        assert status == 0, err
    return metrics_of(runs_dir)


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


def test_a_run_survives_ten_deaths_of_its_processes(tmp_path, uninterrupted):
    """The model's actor, the ledger and the governor die in turns, and at last the driver.

    The actor dies twice: what it was about to ask at a third death would be given up.
    """
    repeated: list[int] = []
    with OpenAIServer(latency=0.2) as server:
        words = ("rate.requests_per_minute=6000", "pool.max_size=1")
        driver = Driver(server, tmp_path, *words)
        turns = ["PoolActor", "LedgerService", "Governor"]
        for number, name in enumerate([*turns, *turns, "LedgerService", "Governor", "LedgerService"]):
            wait_for_distinct(server, 5 * number + 6)
            repeated.append(repeats(server))
            driver.kill(name)
        wait_for_distinct(server, 51)
        driver.process.kill()
        driver.finish()
        repeated.append(repeats(server))
        status, _, err = Driver(server, tmp_path, *words).finish()
        assert status == 0, err
        repeated.append(repeats(server))
        distinct, asked = len(server.snapshot()["per_prompt"]), len(server.requests)
    assert metrics_of(tmp_path) == uninterrupted
    assert distinct == DEMO_YES_NO
    assert repeated[0] == 0
    assert [after - before for before, after in itertools.pairwise(repeated) if after - before > REPEATED] == []
    spent = calls_of(tmp_path)
    assert spent["answered"] == spent["calls"] == DEMO_YES_NO
    assert asked <= spent["calls"] + spent["repeated"]


def test_a_ledger_that_is_stopped_for_a_while_holds_nobody_to_be_dead(tmp_path):
    """Each question stands twice among the items, so that one waits for the other's answer meanwhile."""
    items = {f"{number}{twin}": item(f"Is it number {number}?") for number in range(20) for twin in "ab"}
    with OpenAIServer(latency=1.0) as server:
        driver = Driver(server, tmp_path, "task=mcqabaseline", write_items(tmp_path, items))
        wait_for_distinct(server, 2 * AT_ONCE)
        ledger = driver.process_of("LedgerService")
        ledger.suspend()
        time.sleep(OWNER_SILENT_S + 2)  # This long it is deaf.
        while_stopped = len(server.requests)
        ledger.resume()
        server.latency = 0.05
        status, _, err = driver.finish()
        assert status == 0, err
        assert (repeats(server), len(server.requests)) == (0, 20)
    assert while_stopped <= 4 * AT_ONCE  # Whose answers are not durable asks nothing more.
    assert "died" not in err
    spent = calls_of(tmp_path)
    assert (spent["calls"], spent["answered"], spent["reused"], spent["repeated"]) == (20, 20, 20, 0)


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
