"""A real cluster as a user starts one: `ray start --head`, with a dashboard that takes jobs."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

import psutil
from ray.job_submission import JobStatus, JobSubmissionClient
from waiting import wait_until

REPO = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PORTS = ("dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
PORTS += ("runtime-env-agent-port", "ray-client-server-port")
START_S = 120.0
JOB_S = 180.0


def free_ports(count: int) -> list[int]:
    """Ports that nobody listened on a moment ago, all different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


class Node:
    """A node on this machine: `ray start --block` and all that it starts."""

    _process: subprocess.Popen[bytes]

    def runs(self, name: str) -> list[psutil.Process]:
        """Its processes that Ray calls so."""
        children = psutil.Process(self._process.pid).children(recursive=True)
        return [process for process in children if any(name in word for word in words_of(process))]

    def kill(self) -> None:
        """SIGKILL to everything: as if the machine were gone."""
        first = psutil.Process(self._process.pid)
        processes = [first, *first.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, 30)
        self._process.wait()

    def _start(self, words: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> None:
        command = [str(BIN / "ray"), "start", "--block", *words]
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command, env=environment, cwd=folder, stdout=file, stderr=subprocess.STDOUT
            )


def words_of(process: psutil.Process) -> list[str]:
    """The command line of a process that may end meanwhile."""
    with suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


class Worker(Node):
    """A node with one CPU that joins a head."""

    def __init__(self, head: Head) -> None:
        self._head = head

    def __enter__(self) -> Self:
        words = [f"--address={self._head.address}", "--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000"]
        words += [f"--dashboard-agent-listen-port={free_ports(1)[0]}"]
        log = self._head.folder / f"worker-{secrets.token_hex(4)}.log"
        self._start(words, self._head.environment, self._head.folder, log)
        wait_until(lambda: "Ray runtime started" in log.read_text(), "a worker", START_S)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.poll() is None:
            self.kill()


class Head(Node):
    """A head node with two CPUs, in a folder and on ports of its own; its processes and files go with it.

    `token` says whether whoever talks to it must show one; `environment` is what its processes have beside ours.
    """

    def __init__(self, *, token: bool, environment: Mapping[str, str]) -> None:
        self.token = secrets.token_hex(32) if token else ""
        self.folder = Path(tempfile.mkdtemp(prefix="head-"))  # short: sockets in it have paths of 107 bytes at most
        self._ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.url = f"http://127.0.0.1:{self._ports['dashboard-port']}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "OPENAI_"))},
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "RAY_AUTH_MODE": "disabled",
            "FORCE_COLOR": "1",
            **environment,
        }
        if token:
            (self.folder / "token").write_text(self.token)
            self.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "token")}

    def __enter__(self) -> Self:
        ports = [f"--{name}={port}" for name, port in self._ports.items()]
        words = ["--head", "--port=0", *ports, f"--temp-dir={self.folder / 'ray'}", "--num-cpus=2", "--num-gpus=0"]
        self.log = self.folder / "start.log"
        self._start([*words, "--object-store-memory=200000000"], self.environment, self.folder, self.log)
        try:
            self.client = wait_until(self._answers, f"ray start: {self.log.read_text()}", START_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def _answers(self) -> JobSubmissionClient | None:
        """A client, once jobs are taken: the agent that starts them registers some seconds after the dashboard."""
        assert self._process.poll() is None, self.log.read_text()
        try:
            client = JobSubmissionClient(self.url, headers={"Authorization": f"Bearer {self.token}"})
            job = client.submit_job(entrypoint="true")
            return client if wait_until(lambda: client.get_job_status(job).is_terminal(), "a first job") else None
        except (ConnectionError, RuntimeError):
            return None

    @property
    def session(self) -> Path:
        """Ray's own folder: logs, sockets, working directories of jobs."""
        return (self.folder / "ray" / "session_latest").resolve()

    @property
    def address(self) -> str:
        """Where nodes join."""
        return (self.folder / "ray" / "ray_current_cluster").read_text()

    def run(self, command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """A command as somebody types it who knows the token, but not what else is in the cluster's environment."""
        names = ("PATH", "HOME", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_USAGE_STATS_ENABLED")
        environment = {name: self.environment[name] for name in names if name in self.environment}
        return subprocess.run(
            command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=JOB_S
        )

    def submit(self, checkout: Path, *words: str, **env_vars: str) -> str:
        """Submit `jobs/bench.py` with these words; returns the job's id."""
        return self.client.submit_job(
            entrypoint="python jobs/bench.py " + " ".join(words),
            runtime_env={"working_dir": str(checkout), **({"env_vars": env_vars} if env_vars else {})},
        )

    def ended(self, job: str) -> tuple[JobStatus, str]:
        """How a job ended, and its log."""
        wait_until(lambda: self.client.get_job_status(job).is_terminal(), f"job {job}")
        return self.client.get_job_status(job), self.client.get_job_logs(job)
