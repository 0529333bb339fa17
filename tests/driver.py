"""`python jobs/bench.py` in a process of its own, against a server of the test."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from openai_server import OpenAIServer

AT_ONCE = 4  # So many calls are in flight.
DEADLINE_S = 180.0  # What it limits takes 15 s on a machine with nothing else to do.
REPO = Path(__file__).resolve().parent.parent


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

    def process_of(self, name: str) -> psutil.Process:
        """The process of this run that Ray calls so, once it is there."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):  # It ended just now.
                    if any(name in word for word in process.cmdline()):
                        return process
        raise AssertionError(f"there is no {name} process")

    def kill(self, name: str) -> None:
        """SIGKILL to the process of this run that Ray calls so."""
        self.process_of(name).kill()

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


def calls_of(runs_dir: Path) -> dict[str, Any]:
    (path,) = runs_dir.glob("*/calls.json")
    (entry,) = json.loads(path.read_text())["models"]
    return entry
