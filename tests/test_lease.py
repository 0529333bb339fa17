"""The lease of a run directory: one invocation of a run at a time, and none that waits for the dead for long."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai_server import OpenAIServer
from test_full_disk import no_file_larger_than, words

from rambla_ray.errors import NotWritten, UserError
from rambla_ray.results.holder import Holder, Process
from rambla_ray.results.lease import DEAD_AFTER_S, LEASE, LOOK_S, SETTLE_S, Clock, HeldFolder, Lease, Observer, Verdict
from rambla_ray.storage import Folder

RUN = "run"
HERE = Process.present()
NO_SUCH_PID = 2**31 - 1


def lease_of(token: str = "another", **process: Any) -> bytes:
    """The lease of a holder that is this process, but for what is given."""
    holder = Holder.of(HERE.model_copy(update=process), RUN)
    return holder.model_copy(update={"token": token, "started": 0.0, "heartbeat": 0.0}).to_json()


RUNNING = lease_of()
GONE = lease_of(pid=NO_SUCH_PID)
ANOTHER_OF_THIS_PID = lease_of(since="1")
ELSEWHERE = lease_of(machine="another boot")
HOSTILE = lease_of(machine="another boot", host="a\x1b[2J\nb")
CLONE = lease_of(host="clone")
NO_MACHINE = lease_of(machine="")
BEAT = ELSEWHERE.replace(b'"heartbeat":0.0', b'"heartbeat":1.0')
TAKEN_ELSEWHERE = lease_of("a third", machine="a third boot")
DAMAGED = {
    "empty": b"",
    "torn": RUNNING[: len(RUNNING) // 2],
    "binary": b"\xff\xfe\x00",
    "a list": b"[1]",
    "a scalar": b"7",
    "null": b"null",
    "other keys": b'{"a": 1}',
    "of another type": RUNNING.replace(f'"pid":{HERE.pid}'.encode(), b'"pid":"1"'),
    "a pid that signals everybody": RUNNING.replace(f'"pid":{HERE.pid}'.encode(), b'"pid":-1'),
    "deep": b"[" * 100_000,
    "newer": RUNNING.replace(b'"format":1', b'"format":2'),
}


class Wait:
    """A clock that goes as fast as somebody sleeps, and what happens meanwhile, by the second."""

    def __init__(self, happens: dict[float, Callable[[], object]] | None = None) -> None:
        self.slept, self._happens = 0.0, dict(happens or {})

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        for at in [at for at in self._happens if at <= self.slept]:
            self._happens.pop(at)()

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.slept, self.sleep)


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        ([(0, None)], Verdict.FREE),
        ([(0, RUNNING)], Verdict.ALIVE),
        ([(0, RUNNING), (100, RUNNING)], Verdict.ALIVE),
        ([(0, GONE)], Verdict.DEAD),
        ([(0, ANOTHER_OF_THIS_PID)], Verdict.DEAD),
        ([(0, ELSEWHERE)], Verdict.UNCLEAR),
        ([(0, CLONE)], Verdict.UNCLEAR),
        ([(0, NO_MACHINE)], Verdict.UNCLEAR),
        ([(0, ELSEWHERE), (DEAD_AFTER_S - 0.1, ELSEWHERE)], Verdict.UNCLEAR),
        ([(0, ELSEWHERE), (DEAD_AFTER_S, ELSEWHERE)], Verdict.DEAD),
        ([(0, ELSEWHERE), (DEAD_AFTER_S, BEAT)], Verdict.ALIVE),
        ([(0, ELSEWHERE), (1, TAKEN_ELSEWHERE)], Verdict.ALIVE),
        ([(0, ELSEWHERE), (1, None)], Verdict.FREE),
        ([(0, ELSEWHERE), (1, GONE)], Verdict.DEAD),
    ],
)
def test_a_lease_is_judged_by_what_was_seen_of_it(seen: list[tuple[float, bytes | None]], verdict: Verdict) -> None:
    observer = Observer(HERE)
    assert [observer.judge(data, now) for now, data in seen][-1] is verdict


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_a_lease_that_nobody_can_read_is_alive_while_it_changes(damaged: bytes) -> None:
    still, changing = Observer(HERE), Observer(HERE)
    assert [still.judge(damaged, now) for now in (0, 1, DEAD_AFTER_S)] == [
        Verdict.UNCLEAR,
        Verdict.UNCLEAR,
        Verdict.DEAD,
    ]
    assert [changing.judge(damaged + b" " * now, now) for now in (0, 1)] == [Verdict.UNCLEAR, Verdict.ALIVE]


def test_a_process_is_running_whoever_it_belongs_to() -> None:
    first = Process(host=HERE.host, machine=HERE.machine, pid=1, since=Path("/proc/1/stat").read_text().split()[21])
    assert first.is_running()


@pytest.mark.processes
def test_a_process_that_waits_to_be_reaped_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as child:
        since = Path(f"/proc/{child.pid}/stat").read_text().split()[21]
        process = HERE.model_copy(update={"pid": child.pid, "since": since})
        assert process.is_running()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not process.is_running()


# --- taking it -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["local", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """A run directory; what has a URI is treated as a bucket, whatever is behind it."""
    return Folder(f"file://{tmp_path}" if request.param == "bucket" else str(tmp_path))


@pytest.fixture
def settled_s(folder: Folder) -> float:
    return 0.0 if folder.is_local else SETTLE_S


def test_a_lease_is_there_while_it_is_held(folder: Folder, settled_s: float) -> None:
    wait = Wait()
    with Lease.of(folder, RUN).take(wait.clock) as lease:
        held = json.loads(folder.read(LEASE))
        with pytest.raises(UserError, match="goes on already"):
            Lease.of(folder, RUN).take()
    assert wait.slept == settled_s
    assert (held["format"], held["token"], held["process"]["pid"]) == (1, lease.holder.token, os.getpid())
    assert os.listdir(folder.root) == []


def test_who_is_refused_learns_by_whom(folder: Folder) -> None:
    folder.write(LEASE, RUNNING)
    with pytest.raises(UserError) as refused:
        Lease.of(folder, RUN).take()
    assert str(refused.value) == (
        f"run run ({folder.location}) goes on already: pid {HERE.pid} on {HERE.host}, since 1970-01-01 00:00:00 UTC, "
        f"last seen alive 1970-01-01 00:00:00 UTC by its clock; wait for its end, or stop it there (kill -INT "
        f"{HERE.pid}), and then run the same command again"
    )
    assert folder.read(LEASE) == RUNNING


@pytest.mark.parametrize("dead", [GONE, ANOTHER_OF_THIS_PID], ids=["gone", "its pid is another's"])
def test_a_dead_holder_of_this_machine_is_not_waited_for(
    folder: Folder, settled_s: float, dead: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.write(LEASE, dead)
    Path(folder.root, f"{LEASE}.1234.tmp").write_bytes(b"{")  # It died in the middle of a heartbeat.
    wait = Wait()
    with Lease.of(folder, RUN).take(wait.clock):
        assert os.listdir(folder.root) == [LEASE]
    assert wait.slept == settled_s
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dead", [ELSEWHERE, HOSTILE, *DAMAGED.values()], ids=["elsewhere", "hostile", *DAMAGED])
def test_who_gives_no_sign_of_life_is_taken_over_after_a_note(
    folder: Folder, settled_s: float, dead: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.write(LEASE, dead)
    wait = Wait()
    with Lease.of(folder, RUN).take(wait.clock) as lease:
        assert json.loads(folder.read(LEASE))["token"] == lease.holder.token
    assert DEAD_AFTER_S <= wait.slept - settled_s <= DEAD_AFTER_S + LOOK_S
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("note: run run ")
    assert note.isprintable()
    assert note.endswith("it is waited 10 s for a sign of life from there")


@pytest.mark.parametrize("before", [ELSEWHERE, b""], ids=["elsewhere", "half written"])
def test_who_shows_life_while_it_is_waited_goes_on(folder: Folder, before: bytes) -> None:
    folder.write(LEASE, before)
    wait = Wait({2.0: lambda: folder.write(LEASE, BEAT)})
    with pytest.raises(UserError, match=f"pid {HERE.pid} on {HERE.host}"):
        Lease.of(folder, RUN).take(wait.clock)
    assert wait.slept == 2.0


def test_who_is_writing_it_just_then_is_not_waited_for_with_a_note(
    folder: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.write(LEASE, b"")
    with pytest.raises(UserError, match="goes on already: pid"):
        Lease.of(folder, RUN).take(Wait({LOOK_S: lambda: folder.write(LEASE, RUNNING)}).clock)
    assert capsys.readouterr().err == ""


def test_who_ends_while_it_is_waited_is_followed_at_once(folder: Folder, settled_s: float) -> None:
    folder.write(LEASE, ELSEWHERE)
    wait = Wait({3.0: lambda: os.unlink(f"{folder.root}/{LEASE}")})
    with Lease.of(folder, RUN).take(wait.clock):
        assert wait.slept == 3.0 + settled_s


@pytest.mark.parametrize("make", [os.mkdir, lambda path: os.symlink(path, path)], ids=["a folder", "a loop"])
def test_what_is_no_file_is_refused_in_one_line(folder: Folder, make: Callable[[str], None]) -> None:
    make(f"{folder.root}/{LEASE}")
    with pytest.raises(
        UserError, match=r"lease.json cannot be read: .*; it says who runs this run now: if nobody does"
    ):
        Lease.of(folder, RUN).take()


def test_a_disk_without_room_for_it_is_refused_in_one_line(folder: Folder) -> None:
    with no_file_larger_than(0), pytest.raises(UserError, match=r"lease.json cannot be written: File too large"):
        Lease.of(folder, RUN).take()


def test_of_ten_at_the_same_moment_one_has_it(tmp_path: Path) -> None:
    folder, start = Folder(str(tmp_path)), threading.Barrier(10)
    taken: list[Lease] = []
    refused: list[str] = []

    def take() -> None:
        start.wait()
        try:
            taken.append(Lease.of(folder, RUN).take())
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 9)
    assert json.loads((tmp_path / LEASE).read_bytes())["token"] == taken[0].holder.token


def test_of_two_at_the_same_moment_in_a_bucket_the_later_one_has_it(tmp_path: Path) -> None:
    folder = Folder(f"file://{tmp_path}")
    wait = Wait({SETTLE_S / 2: lambda: folder.write(LEASE, TAKEN_ELSEWHERE)})
    with pytest.raises(UserError, match="goes on already: pid"):
        Lease.of(folder, RUN).take(wait.clock)
    assert folder.read(LEASE) == TAKEN_ELSEWHERE


def test_who_is_in_the_middle_of_writing_it_in_a_bucket_is_waited_for(tmp_path: Path) -> None:
    folder = Folder(f"file://{tmp_path}")
    wait = Wait({SETTLE_S: lambda: folder.write(LEASE, b""), 1.5: lambda: folder.write(LEASE, TAKEN_ELSEWHERE)})
    with pytest.raises(UserError, match="goes on already: pid"):
        Lease.of(folder, RUN).take(wait.clock)


# --- holding it ------------------------------------------------------------------------------------------------------


def test_a_heartbeat_changes_the_lease_and_nothing_else_in_it(folder: Folder) -> None:
    lease = Lease.of(folder, RUN).take(Wait().clock)
    before = json.loads(folder.read(LEASE))
    lease.renew()
    after = json.loads(folder.read(LEASE))
    assert after.pop("heartbeat") > before.pop("heartbeat")
    assert after == before


def test_who_finds_another_in_its_place_writes_nothing_more(folder: Folder) -> None:
    with Lease.of(folder, RUN).take(Wait().clock) as lease:
        held = HeldFolder(folder, lease)
        with held.writing():
            held.write("a", b"1")
        folder.write(LEASE, TAKEN_ELSEWHERE)
        lease.renew()
        taken = rf"run {folder.location} has been taken over by pid .* on .*"
        with pytest.raises(NotWritten, match=taken), held.writing():
            held.write("a", b"2")
    assert (folder.read("a"), folder.read(LEASE)) == (b"1", TAKEN_ELSEWHERE)


@pytest.mark.parametrize("left", [b"", b"\xff", b"{"])
def test_what_is_left_of_the_own_lease_is_renewed(folder: Folder, left: bytes) -> None:
    lease = Lease.of(folder, RUN).take(Wait().clock)
    folder.write(LEASE, left)
    lease.renew()
    assert (lease.lost, json.loads(folder.read(LEASE))["token"]) == ("", lease.holder.token)


def test_a_lease_that_was_deleted_is_written_again(folder: Folder) -> None:
    lease = Lease.of(folder, RUN).take(Wait().clock)
    os.unlink(f"{folder.root}/{LEASE}")
    lease.renew()
    assert (lease.lost, json.loads(folder.read(LEASE))["token"]) == ("", lease.holder.token)


def test_a_heartbeat_for_which_there_is_no_room_ends_nothing(folder: Folder) -> None:
    with Lease.of(folder, RUN).take(Wait().clock) as lease:
        with no_file_larger_than(0):
            lease.renew()
        assert lease.lost == ""
        lease.renew()
        assert json.loads(folder.read(LEASE))["token"] == lease.holder.token


def test_a_folder_that_was_removed_ends_nothing(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "run"))
    folder.make_writable("runs_dir")
    with Lease.of(folder, RUN).take() as lease:
        (tmp_path / "run" / LEASE).unlink()
        (tmp_path / "run").rmdir()
        lease.renew()
    assert lease.lost == ""


def test_where_no_file_can_be_opened_the_run_goes_on(folder: Folder) -> None:
    with Lease.of(folder, RUN).take(Wait().clock) as lease:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
        try:
            lease.renew()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert lease.lost == ""
        lease.renew()


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_that_was_taken_over_stops_with_4_and_writes_nothing_more(bench, tmp_path: Path) -> None:
    runs = tmp_path / "runs"

    def answer(prompt: str) -> str:
        if len(server.requests) == 3:
            (lease,) = runs.glob(f"*/{LEASE}")
            lease.write_bytes(TAKEN_ELSEWHERE)
        return "yes"

    with OpenAIServer(answer=answer, latency=0.5) as server:
        stopped = bench([*words(server, runs), "pool.max_concurrency=1"])
        asked = len(server.requests)
    assert stopped.status == 4
    last, second = stopped.err.splitlines()[-2:]
    assert last.startswith(f"stopped: run {stopped.run} has been taken over by pid {HERE.pid} on {HERE.host}, since ")
    assert second.startswith(f"{asked} calls were made; what was answered is kept. Continue with: python")
    assert {path.name for path in stopped.run.iterdir()} == {"config.yaml", "plan.json", "env.json", "samples", LEASE}
    assert list((stopped.run / "samples").iterdir()) == []
    assert (stopped.run / LEASE).read_bytes() == TAKEN_ELSEWHERE


def test_a_lease_that_was_not_taken_is_given_up_without_touching_what_is_there(tmp_path: Path) -> None:
    (tmp_path / LEASE).write_bytes(b"{")  # Somebody is writing it.
    Lease.of(Folder(str(tmp_path)), RUN).give_up()
    assert (tmp_path / LEASE).read_bytes() == b"{"


def test_a_lease_that_is_being_taken_can_be_given_up(tmp_path: Path) -> None:
    folder = Folder(f"file://{tmp_path}")
    lease = Lease.of(folder, RUN)
    with pytest.raises(UserError):
        lease.take(Wait({SETTLE_S: lease.give_up}).clock)
    assert folder.names("") == []
