"""SIGINT and SIGTERM before anything has been asked: one line, at once, and no process is left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from ray_head import words_of
from waiting import wait_until

REPO = Path(__file__).resolve().parent.parent
END_S = 3.0  # What ends at a signal has so long for it.
BENCH = ("jobs/bench.py", "model=mock", "task=mcqabaseline", "limit=2")
KEYLESS = ("jobs/bench.py", "model=openai_chat", "model.params.api_key_command=[sleep, '600']")
SERVE = ("jobs/serve.py", "model=mock", "port=0")
pytestmark = pytest.mark.processes

Moment = Callable[[psutil.Process], bool]


def has_loaded(library: str) -> Moment:
    """The moment from which on a process has a library in its memory, of which it imports more just then."""
    return lambda process: any(library in region.path for region in process.memory_maps())


def runs(name: str) -> Moment:
    """The moment from which on a process of Ray's runs."""
    return lambda process: any(
        name in word for child in process.children(recursive=True) for word in words_of(child)[:1]
    )


def is_connected(process: psutil.Process) -> bool:
    """Whether a process is connected to a server of this test, which never answers."""
    return any(connection.status == psutil.CONN_ESTABLISHED for connection in process.net_connections("tcp"))


@pytest.mark.parametrize(
    ("words", "place", "moment", "number"),
    [
        pytest.param(BENCH, "local", has_loaded("pyarrow"), signal.SIGINT, id="importing"),
        pytest.param(BENCH, "local", has_loaded("_raylet"), signal.SIGTERM, id="importing Ray"),
        pytest.param(BENCH, "silent", is_connected, signal.SIGINT, id="connecting"),
        pytest.param((*BENCH, "doctor=true"), "silent", is_connected, signal.SIGTERM, id="the doctor"),
        pytest.param(SERVE, "silent", is_connected, signal.SIGINT, id="serving"),
        pytest.param(KEYLESS, "local", runs("sleep"), signal.SIGINT, id="running a key command"),
        pytest.param(BENCH, "local", runs("gcs_server"), signal.SIGTERM, id="starting the head"),
        pytest.param(BENCH, "local", runs("raylet"), signal.SIGINT, id="starting the node"),
        pytest.param(SERVE, "local", runs("raylet"), signal.SIGTERM, id="starting to serve"),
    ],
)
def test_a_signal_ends_what_has_asked_nothing(tmp_path, words, place, moment, number, monkeypatch):
    monkeypatch.setenv("RAMBLA_ALLOW_KEY_COMMAND", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = "local" if place == "local" else f"127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, *words, f"address={address}"]
        command += [f"runs_dir={tmp_path / 'runs'}"] if words[0] == "jobs/bench.py" else []
        started = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process = psutil.Process(started.pid)
        wait_until(lambda: moment(process), "the moment")
        children = process.children(recursive=True)
        started.send_signal(number)
        signalled = time.monotonic()
        out, err = started.communicate(timeout=60)
    assert time.monotonic() - signalled < END_S
    assert started.returncode == 130, err
    (line,) = err.splitlines()
    assert line.startswith("interrupted")
    assert out == ""
    assert list(tmp_path.iterdir()) == []
    _, alive = psutil.wait_procs(children, END_S)
    assert alive == []


def test_an_interrupted_start_is_continued_by_the_line_that_it_prints(tmp_path):
    command = [sys.executable, *BENCH, "address=local", f"runs_dir={tmp_path}"]
    started = subprocess.Popen(command, cwd=REPO, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: runs("gcs_server")(psutil.Process(started.pid)), "a head")
    os.kill(started.pid, signal.SIGINT)
    _, err = started.communicate(timeout=60)
    continues = f"Continue with: python {' '.join(BENCH)} address=local runs_dir={tmp_path}\n"
    assert err == f"interrupted; what was answered is kept. {continues}"
