"""The same command twice at once: one asks, the other is refused in a line; and none waits for one that was killed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from driver import AT_ONCE, DEMO_YES_NO, REPEATED, Driver, repeats, wait_for_requests
from openai_server import OpenAIServer

pytestmark = pytest.mark.processes
AT_THE_SAME_MOMENT = 10


class HoldingServer(OpenAIServer):
    """It answers nothing until it is released."""

    def __init__(self) -> None:
        super().__init__(together=AT_ONCE + 1)

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._were_together.set)


def is_refusal_of(driver: Driver, pid: int) -> bool:
    """Whether a command ended before any call, in one line that names the process that runs the run."""
    status, out, err = driver.finish()
    line = f"goes on already: pid {pid} on {os.uname().nodename}, since "
    return (status, out, err.count("\n")) == (1, "", 1) and line in err and f"(kill -INT {pid})" in err


def test_the_second_is_refused_and_what_was_asked_is_what_is_counted(tmp_path: Path) -> None:
    with HoldingServer() as server:
        first = Driver(server, tmp_path)
        wait_for_requests(server, AT_ONCE)
        assert is_refusal_of(Driver(server, tmp_path), first.process.pid)
        first.process.send_signal(signal.SIGSTOP)
        asleep = is_refusal_of(Driver(server, tmp_path), first.process.pid)
        first.process.send_signal(signal.SIGCONT)
        server.release()
        status, _, err = first.finish()
        assert (status, asleep) == (0, True), err
        (written,) = tmp_path.glob("*/calls.json")
        calls = json.loads(written.read_text())
        assert calls["models"][0]["calls"] == len(server.requests) == DEMO_YES_NO
        assert len(calls["invocations"]) == 1
    (run,) = tmp_path.glob("*/metrics.json")
    assert list(run.parent.glob("lease*")) == []


@pytest.mark.parametrize("scheme", ["", "file://"], ids=["local", "bucket"])
def test_of_ten_started_at_once_one_runs(tmp_path: Path, scheme: str) -> None:
    with OpenAIServer() as server:
        drivers = [Driver(server, f"{scheme}{tmp_path}") for _ in range(AT_THE_SAME_MOMENT)]
        ends = [driver.finish() for driver in drivers]
        assert len(server.requests) == DEMO_YES_NO, ends
    assert sorted(status for status, _, _ in ends) == [0] + [1] * (AT_THE_SAME_MOMENT - 1)
    (winner,) = (driver.process.pid for driver, end in zip(drivers, ends, strict=True) if end[0] == 0)
    refused = [err for status, _, err in ends if status == 1]
    assert [err for err in refused if err.count("\n") != 1 or f"pid {winner} on" not in err] == []


def test_one_that_was_killed_is_followed_at_once(tmp_path: Path) -> None:
    with OpenAIServer(latency=0.2) as server:
        first = Driver(server, tmp_path)
        wait_for_requests(server, 2 * AT_ONCE)
        first.process.kill()
        began, second = time.monotonic(), Driver(server, tmp_path)
        first.finish()
        (lease,) = tmp_path.glob("*/lease.json")
        while json.loads(lease.read_bytes())["process"]["pid"] != second.process.pid:
            assert second.process.poll() is None
            time.sleep(0.01)
        assert time.monotonic() - began < 10.0  # It takes a second on a machine with nothing else to do.
        status, _, err = second.finish()
        assert status == 0, err
        assert "sign of life" not in err
        assert repeats(server) <= REPEATED
