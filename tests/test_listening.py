"""Where the processes of a local run listen, and who is let in."""

from __future__ import annotations

import ipaddress
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from driver import Driver, wait_for_requests
from openai_server import OpenAIServer

REPO = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.processes


def listening(process: psutil.Process) -> dict[str, set[str]]:
    """By the name of a process, on which addresses it listens: this one and those that it has started."""
    found: dict[str, set[str]] = {}
    for one in (process, *process.children(recursive=True)):
        for connection in one.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                found.setdefault(one.name(), set()).add(connection.laddr.ip)
    return found


def is_of_this_machine(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def test_a_local_run_listens_on_loopback_alone_behind_a_token_of_its_user(tmp_path):
    home, runs_dir = tmp_path / "home", tmp_path / "runs"
    home.mkdir()
    with OpenAIServer(latency=60.0) as server:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
        driver = Driver(server, runs_dir, "limit=2", environment={**environment, "HOME": str(home)})
        wait_for_requests(server, 1)
        found = listening(psutil.Process(driver.process.pid))
        driver.process.send_signal(signal.SIGINT)
        driver.process.send_signal(signal.SIGTERM)  # a second one does not wait for the answers
        status, out, err = driver.finish()
    assert status == 130, err
    assert {"gcs_server", "raylet"} < found.keys()
    assert any(name.startswith("ray::") for name in found)
    assert {name: addresses for name, addresses in found.items() if not all(map(is_of_this_machine, addresses))} == {}
    file = home / ".ray" / "auth_token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "token" not in err
    written = [path.read_bytes() for path in runs_dir.rglob("*") if path.is_file()]
    assert written
    assert not any(file.read_bytes() in text for text in [*written, out.encode(), err.encode()])


def test_a_local_run_without_a_token_says_so(tmp_path):
    command = [sys.executable, "jobs/bench.py", "model=mock", "task=mcqabaseline", "address=local", "doctor=true"]
    command += [f"runs_dir={tmp_path}"]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=True, timeout=180)
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: RAY_AUTH_MODE=disabled turns Ray's tokens off: ")
