"""The commands in a process of their own each, without the second that an interpreter takes to import them.

A server imports the package once and forks for each command line: the child is the real function of the command, with
the real streams, and may die of a signal, run out of memory or never end. `ForkServer` is its client.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

COMMANDS = {
    "bench": "rambla_ray.run.command",
    "report": "rambla_ray.run.command",
    "serve": "rambla_ray.serving.command",
}
# What a command imports on its way to where it refuses what it is given.
IMPORTED = (
    *(
        "rambla_ray.run.invocation",
        "rambla_ray.results.report",
        "rambla_ray.results.audit",
        "rambla_ray.results.score",
    ),
    *("rambla_ray.actors.openai", "rambla_ray.actors.mock", "rambla_ray.actors.overlap", "rambla_ray.actors.judges"),
    *("pyarrow.parquet", "transformers"),
)
STARTS_A_PROCESS = frozenset({"subprocess.Popen", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec"})
STARTED_A_PROCESS = 97  # The exit status of a command that wanted to start a process, and was not let.
MOST_MEMORY = 8 * 2**30
PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status, or the negative number of the signal that killed it."""

    status: int
    err: bytes
    seconds: float
    left_processes: bool


class ForkServer:
    """Runs command lines one after another; each has a deadline in seconds, at which it is killed."""

    def __init__(self, environment: Mapping[str, str], deadline_s: float) -> None:
        self._environment = dict(environment)
        self._deadline_s = deadline_s

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment, text=True
        )
        return self

    def __exit__(self, *exc: object) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()

    def run(self, command: str, words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Ended:
        """Run a command in a folder, with more in its environment."""
        asked = {
            "command": command,
            "words": list(words),
            "folder": str(folder),
            "environment": {**self._environment, **environment},
            "deadline_s": self._deadline_s,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        reply = json.loads(self._process.stdout.readline())
        return Ended(err=(folder / "stderr").read_bytes(), **reply)


def serve() -> None:
    """Read command lines from stdin until it ends; a line of JSON for each goes to stdout."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # So that what a command leaves behind is seen here.
    for module in (*COMMANDS.values(), *IMPORTED):
        importlib.import_module(module)
    for line in sys.stdin:
        print(json.dumps(_run(**json.loads(line))), flush=True)


def _run(command: str, deadline_s: float, **given: Any) -> dict[str, Any]:
    start = time.monotonic()
    child = os.fork()
    if not child:
        _be_the_command(command, **given)
    poll = select.poll()
    descriptor = os.pidfd_open(child)
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(deadline_s * 1000):
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(descriptor)
    seconds = time.monotonic() - start
    return {
        "status": os.waitstatus_to_exitcode(status),
        "seconds": seconds,
        "left_processes": _end_what_is_left(child),
    }


def _end_what_is_left(group: int) -> bool:
    """Whether a command left processes, which are then ended."""
    left = False
    with contextlib.suppress(ChildProcessError):
        while True:
            left = os.waitpid(-1, os.WNOHANG)[0] == 0 or left
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            os.waitpid(-1, 0)
    return left


def _be_the_command(command: str, words: list[str], folder: str, environment: dict[str, str]) -> None:
    """Run a command in this process, and end it."""
    status = 1  # The one of a Python program that ends with a traceback.
    try:
        os.setsid()
        for limit, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, MOST_MEMORY)):
            resource.setrlimit(limit, (most, most))
        os.chdir(folder)
        for stream, path in enumerate(("/dev/null", "stdout", "stderr")):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), stream)
        os.environ.clear()
        os.environ.update(environment)
        sys.addaudithook(_start_no_process)
        status = getattr(sys.modules[COMMANDS[command]], command)(words)
    except BaseException:  # noqa: BLE001 - whatever would end a Python program with a traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _start_no_process(event: str, arguments: tuple[Any, ...]) -> None:
    """End this process before it starts another, such as one of Ray's; but for the question for the processor."""
    if event in STARTS_A_PROCESS and arguments[0] != "uname":
        os._exit(STARTED_A_PROCESS)


if __name__ == "__main__":
    serve()
