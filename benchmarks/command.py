"""A benchmark's commands: each runs to its end in an environment that leads to no other endpoint or cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"  # The fake endpoint listens here.
REPOSITORY = Path(__file__).resolve().parent.parent

Json = dict[str, Any]


@dataclass(frozen=True)
class Finished:
    """How a process ended.

    `seconds` runs from its start to its exit; `began` is its start by time.monotonic(), `began_at` by time.time().
    """

    status: int | None  # None if it was stopped when its time was over.
    seconds: float
    began: float
    began_at: float
    log: Path

    @property
    def fault(self) -> str:
        """What went wrong, in a line with the last that it wrote; empty if nothing did."""
        if self.status == 0:
            return ""
        lines = [
            line.strip()
            for line in self.log.read_text(errors="replace", encoding="utf-8").splitlines()
            if line.strip()
        ]
        how = f"not over after {self.seconds:.0f} s" if self.status is None else f"exit status {self.status}"
        return f"{how}: {lines[-1][:160] if lines else 'it said nothing'}"


def run(command: Sequence[str | Path], log: Path, timeout_s: float, environment: Mapping[str, str]) -> Finished:
    """Run a command to its end, in a process group of its own, its words written to `log`.

    Args:
        environment: laid over this process's own, less what would lead a client to another endpoint or cluster.
    """
    strayed = ("RAY_", "OPENAI_", "HF_", "AZURE_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(strayed)}
    began, began_at = time.monotonic(), time.time()
    with log.open("w", encoding="utf-8") as words:
        process = subprocess.Popen(  # noqa: S603 - the benchmark's own commands
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
            env={**kept, "OPENAI_API_KEY": "sk-test", "NO_PROXY": HOST, "RAY_USAGE_STATS_ENABLED": "0", **environment},
            cwd=REPOSITORY,
            start_new_session=True,
        )
        status: int | None = None
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            _end(process, signal.SIGTERM)
        except BaseException:
            _end(process, signal.SIGINT)
            raise
    return Finished(status, time.monotonic() - began, began, began_at, log)


def _end(process: subprocess.Popen[bytes], politely: signal.Signals) -> None:
    """End a process with a signal that lets it clean up; then for certain, with all that is left of its group."""
    process.send_signal(politely)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
