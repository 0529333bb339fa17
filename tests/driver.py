"""`python jobs/bench.py` in a process of its own, against a server of the test."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from openai_server import OpenAIServer
from waiting import DEADLINE_S, wait_until

AT_ONCE = 4  # So many calls are in flight.
DEMO_YES_NO = 57  # items of the demo set, each of which is a request
# After a SIGKILL, those in flight may be asked again, and those before them whose answers were not durable yet: the
# endpoint takes longer than an answer may before it keeps its actor from asking more, so that these are no more.
REPEATED = 2 * AT_ONCE
REPO = Path(__file__).resolve().parent.parent


class Driver:
    """`python jobs/bench.py` on a cluster of its own, against a server of this test.

    Args:
        server: the endpoint.
        runs_dir: where runs are kept.
        words: more of the command line.
        environment: of the process; that of this one when not given.
    """

    def __init__(
        self, server: OpenAIServer, runs_dir: Path | str, *words: str, environment: Mapping[str, str] = os.environ
    ) -> None:
        self.command = [
            *(sys.executable, "jobs/bench.py", "address=local", "model=openai_chat", "model.params.api_type=openai"),
            f"model.params.base_url={server.base_url}",
            *(f"runs_dir={runs_dir}", f"pool.max_concurrency={AT_ONCE}"),
            *words,
        ]
        self.process = subprocess.Popen(
            self.command,
            cwd=REPO,
            env={**environment, "OPENAI_API_KEY": server.key},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def process_of(self, name: str) -> psutil.Process:
        """The process of this run that Ray calls so, once it is there."""

        def found() -> psutil.Process | None:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):  # It ended just now.
                    if any(name in word for word in process.cmdline()):
                        return process
            return None

        return wait_until(found, f"a process {name}")

    def kill(self, name: str) -> None:
        """SIGKILL to the process of this run that Ray calls so."""
        self.process_of(name).kill()

    def finish(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, out, err


def wait_for_requests(server: OpenAIServer, count: int) -> None:
    wait_until(lambda: len(server.requests) >= count, f"{count} requests")


def repeats(server: OpenAIServer) -> int:
    """Requests that the server has had more than once."""
    counts = server.snapshot()["per_prompt"].values()
    return sum(counts) - len(counts)


def wait_for_distinct(server: OpenAIServer, count: int) -> None:
    """Wait until so many different requests have come."""
    wait_until(lambda: len(server.snapshot()["per_prompt"]) >= count, f"{count} distinct requests")


def metrics_of(runs_dir: Path) -> bytes:
    (path,) = runs_dir.glob("*/metrics.json")
    return path.read_bytes()


def calls_of(runs_dir: Path) -> dict[str, Any]:
    (path,) = runs_dir.glob("*/calls.json")
    (entry,) = json.loads(path.read_text())["models"]
    return entry
