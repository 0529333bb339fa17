"""Joining a cluster: what cannot be joined is one line, in seconds."""

from __future__ import annotations

import os
import socket
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


def test_a_port_at_which_nobody_answers_is_refused_in_seconds(tmp_path):
    """Whatever asks there; they wait side by side."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        bench, serve = ("jobs/bench.py", "model=mock"), ("jobs/serve.py", "model=mock", "port=0")
        by_word, by_variable = os.environ, os.environ | {"RAY_ADDRESS": address}
        asking = {}
        for words, environment in (
            ((*bench, f"address={address}"), by_word),
            (bench, by_variable),
            ((*bench, "address=auto"), by_variable),
            ((*bench, f"address={address}", "doctor=true"), by_word),
            ((*serve, f"address={address}"), by_word),
        ):
            given = [*words, *([f"runs_dir={tmp_path}/{len(asking)}"] if words[0] == "jobs/bench.py" else [])]
            asking[words] = subprocess.Popen(
                [sys.executable, *given], cwd=REPO, env=environment, stderr=subprocess.PIPE, text=True
            )
        ended = {words: (one.communicate(timeout=60)[1], one.returncode) for words, one in asking.items()}
    refusal = "no Ray cluster there: the port is open, and nobody answers there in 3 s"
    is_refused = {words: (refusal in err, err.count("\n"), status) for words, (err, status) in ended.items()}
    assert is_refused == dict.fromkeys(asking, (True, 1, 1)), ended


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("jobs/bench.py", "pool.min_size=100000"), "100000 actors are as many processes"),
        (("jobs/bench.py", "pool.num_gpus=64"), "one actor asks for 64 GPUs, the largest node has 0"),
        (("jobs/serve.py", "pool.num_cpus=1000"), "one actor asks for 1000 CPUs"),
    ],
)
def test_what_this_machine_cannot_hold_is_refused_before_ray_starts(tmp_path, words, reason):
    sessions = tmp_path / "ray"
    sessions.mkdir()
    environment = os.environ | {"RAY_TMPDIR": str(sessions), "CUDA_VISIBLE_DEVICES": ""}
    given = [sys.executable, *words, "model=mock", "address=local"]
    given += [f"runs_dir={tmp_path}/runs"] if words[0] == "jobs/bench.py" else ["port=0"]
    done = subprocess.run(given, cwd=REPO, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert reason in line
    assert list(sessions.iterdir()) == []
    assert not (tmp_path / "runs").exists()


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
