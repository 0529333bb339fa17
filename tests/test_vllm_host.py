"""What an engine's processes have of the machine: cores, a log that says why they failed, and a guard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from waiting import wait_until

from rambla_ray.actors.local import vllm_guard
from rambla_ray.actors.local.vllm_host import RECORD, Cores, Host, first_cause

TRACEBACK = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n'
WAITS = "import time; time.sleep(1000)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAITS}"


# Makes shared memory and a semaphore that nothing else removes, and lets go of the former once a line has come.
SHARES = """
import sys, time
from multiprocessing import get_context, resource_tracker, shared_memory
memory, lock = shared_memory.SharedMemory(create=True, size=8), get_context("spawn").Lock()
resource_tracker.unregister(memory._name, "shared_memory")
resource_tracker.unregister(lock._semlock.name, "semaphore")
print(memory.name, f"sem.{lock._semlock.name[1:]}", flush=True)
sys.stdin.readline()
memory.close()
print("closed", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks on cores that no engine on this machine holds."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_engines_compute_on_different_cores(own_locks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7})
    with closing(Cores(1)) as one, closing(Cores(2)) as two, closing(Cores(1)) as none:
        assert (one.numbers, two.numbers) == ([3], [5, 7])
        assert two.settings == {"VLLM_CPU_OMP_THREADS_BIND": "5,7"}
        assert none.settings == {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    with closing(Cores(1)) as again:
        assert again.numbers == [3]


def test_an_engine_that_wants_more_cores_than_are_free_holds_none(
    own_locks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with closing(Cores(1)) as one, closing(Cores(2)) as two, closing(Cores(1)) as three:
        assert (one.numbers, two.numbers, three.numbers) == ([0], [], [1])


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (f"{RECORD}failed\n{TRACEBACK}ValueError: no memory\nleft", "ValueError: no memory"),
        (
            f"{RECORD}failed\n{TRACEBACK}a.b.OddError: one\n{RECORD}failed\n{TRACEBACK}RuntimeError: two",
            "OddError: one",
        ),
        (f"{RECORD}failed\n{TRACEBACK}KeyError: 'a'\n\nDuring handling\n{TRACEBACK}ValueError: b", "ValueError: b"),
        (f"{RECORD}a worker died\nunexpectedly", "a worker died"),
        ("", ""),
    ],
)
def test_the_first_error_of_a_log_is_the_cause(log: str, cause: str) -> None:
    assert first_cause(log) == cause


@pytest.mark.processes
def test_an_engine_ends_with_the_process_that_started_it(own_locks: None, tmp_path: Path) -> None:
    """One is killed that holds a host with two engines' processes, of which one does not end when it is asked to."""
    program = (
        "import subprocess, sys, time; from rambla_ray.actors.local.vllm_host import Host\n"
        "host = Host(None, {})\n"
        "with host.environment():\n"
        f"    children = [subprocess.Popen([sys.executable, '-c', each]) for each in ({WAITS!r}, {STUBBORN!r})]\n"
        "print(*[child.pid for child in children], flush=True); time.sleep(1000)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
    assert owner.stdout
    children = [int(word) for word in owner.stdout.readline().split()]
    assert len(children) == 2
    assert all(Path(f"/proc/{child}").exists() for child in children)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), "the end of an engine", 60)
    wait_until(lambda: not list(tmp_path.glob("rambla_ray-vllm-*")), "its folder to be removed")


@pytest.mark.processes
def test_a_host_that_is_closed_ends_what_is_left_and_leaves_others_alone(own_locks: None) -> None:
    other = subprocess.Popen([sys.executable, "-c", WAITS])
    host = Host(None, {"MORE": "1"})
    with host.environment():
        child = subprocess.Popen([sys.executable, "-c", WAITS])
        assert os.environ["MORE"] == "1"
    assert {"MORE", vllm_guard.MARK}.isdisjoint(os.environ)
    with host.ending():
        pass
    assert child.wait(30) == -signal.SIGTERM
    assert other.poll() is None
    other.kill()
    other.wait()


@pytest.mark.processes
def test_what_a_process_has_shared_is_removed_also_where_it_has_let_go_of_it(own_locks: None, tmp_path: Path) -> None:
    (tmp_path / "shares.py").write_text(SHARES)
    host = Host(None, {})
    with host.starting():
        child = subprocess.Popen(
            [sys.executable, tmp_path / "shares.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdin
        assert child.stdout
        files = [Path("/dev/shm", name) for name in child.stdout.readline().split()]
    assert [file.exists() for file in files] == [True, True]
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == "closed\n"
    with host.ending():
        pass
    assert [file.exists() for file in files] == [False, False]
    child.communicate()
