"""Real signals to a real driver process: nothing is lost, and the same command goes on from there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from openai_server import OpenAIServer

REPO = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


class Driver:
    """`python jobs/bench.py` on a cluster of its own, against a server of this test."""

    def __init__(self, server: OpenAIServer, runs_dir: Path) -> None:
        self.command = [
            *(sys.executable, "jobs/bench.py", "address=local", "model=openai_chat", "model.params.api_type=openai"),
            f"model.params.base_url={server.base_url}",
            *(f"runs_dir={runs_dir}", "pool.max_concurrency=4"),
        ]
        self.process = subprocess.Popen(
            self.command,
            cwd=REPO,
            env={**os.environ, "OPENAI_API_KEY": server.key},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err


def wait_for_requests(server: OpenAIServer, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(server.requests) < count:
        assert time.monotonic() < deadline, f"only {len(server.requests)} requests came"
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


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, uninterrupted, stop, status):
    with OpenAIServer(latency=0.2) as server:
        driver = Driver(server, tmp_path)
        wait_for_requests(server, 20)
        driver.process.send_signal(stop)
        stopped = time.monotonic()
        ended, _, err = driver.finish()
        assert ended == status
        if stop != signal.SIGKILL:
            assert "Continue with: python jobs/bench.py address=local" in err
        assert not list(tmp_path.glob("*/metrics.json"))
        last_second = sum(request.time > stopped - 1.0 - server.latency for request in server.requests)
        again, _, err = Driver(server, tmp_path).finish()
        assert again == 0, err
        asked, distinct = len(server.requests), len(server.snapshot()["per_prompt"])
    assert metrics_of(tmp_path) == uninterrupted
    repeated = asked - distinct
    assert repeated <= last_second if stop == signal.SIGKILL else repeated == 0
    (calls,) = tmp_path.glob("*/calls.json")
    assert json.loads(calls.read_text())["models"][0]["answered"] == distinct
