"""Joining a cluster: what cannot be joined is one line, in seconds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.processes


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "no Ray cluster there: [Errno 111] Connection refused"),
        ("ray://127.0.0.1:1", "Ray Data does not run through Ray Client; submit a job"),
        ("nonsense", "no Ray cluster there"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_one_line(tmp_path, address, reason):
    words = [sys.executable, "jobs/bench.py", "model=mock", f"address={address}", f"runs_dir={tmp_path}"]
    done = subprocess.run(words, cwd=REPO, env=os.environ, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert reason in line


@pytest.mark.parametrize(
    ("environment", "runs_dir", "reason"),
    [
        pytest.param({"RAY_TMPDIR": "/dev/null/x"}, "runs", "Ray does not start on this machine: ", id="no folder"),
        pytest.param({"LC_ALL": "C", "PYTHONUTF8": "0"}, "é", "in the encoding ascii; set PYTHONUTF8=1", id="locale"),
    ],
)
def test_a_cluster_that_does_not_start_here_is_one_line(tmp_path, environment, runs_dir, reason):
    words = [sys.executable, "jobs/bench.py", "model=mock", "address=local", f"runs_dir={tmp_path}/{runs_dir}"]
    done = subprocess.run(
        words, cwd=REPO, env=os.environ | environment, capture_output=True, encoding="utf-8", check=False, timeout=120
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: address=local: ")
    assert reason in line
