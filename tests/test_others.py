"""Two on one ledger at once: each sees what the other asks and answers, and nobody waits for the dead."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_lines import answered, claim, failed, opened, rid, text_of

from rambla_ray.ledger.clock import LONGEST_GAP_S, WakingClock
from rambla_ray.ledger.others import MANY_DEAD, REGISTER, SILENT_S
from rambla_ray.ledger.presence import Presence
from rambla_ray.ledger.record import Kind
from rambla_ray.ledger.segments import SUFFIX
from rambla_ray.ledger.store import Ledger
from rambla_ray.storage import Folder


class Stranger:
    """Another process that writes a segment byte by byte, with the locks that a ledger takes."""

    def __init__(self, folder: Path, name: str = f"stranger{SUFFIX}") -> None:
        self.file = open(folder / name, "ab", buffering=0)  # noqa: SIM115
        fcntl.flock(self.file, fcntl.LOCK_SH)
        with open(folder / REGISTER, "ab") as register:
            register.write(f"{name}\n".encode())

    def write(self, data: bytes) -> None:
        self.file.write(data)

    def die(self) -> None:
        self.file.close()

    __del__ = die


def test_what_one_asks_the_other_does_not_and_both_have_the_answer(tmp_path: Path) -> None:
    one, other = opened(tmp_path, "one"), opened(tmp_path, "other")
    assert (claim(one, "a", "b"), claim(other, "a", "b", "c"), claim(one, "c")) == ("ab", "c", "")
    one.add([answered("a", "one", "of one")])
    other.add([answered("c", "other", "of other")])
    assert (one.others.look(), other.others.look()) == ({rid("c")}, {rid("a")})
    assert [text_of(ledger, name) for ledger in (one, other) for name in "abc"] == ["of one", None, "of other"] * 2
    assert (claim(other, "a", "b", "c"), claim(one, "a", "c")) == ("", "")


@pytest.mark.parametrize("how", ["answer", "failure", "release", "death", "end of its process"])
def test_what_the_other_asks_is_free_once_it_no_longer_does(how: str, tmp_path: Path) -> None:
    one, other = opened(tmp_path, "one"), opened(tmp_path, "other")
    assert (claim(one, "a"), claim(other, "a")) == ("a", "")
    match how:
        case "answer":
            one.add([answered("a", "one")])
        case "failure":
            one.add([failed("a", "one")])
        case "release" | "death":
            one.mark(Kind.RELEASE if how == "release" else Kind.DEATH, [(rid("a"), "m", "target")])
        case _:
            del one
    assert other.others.look() == {rid("a")}
    assert claim(other, "a") == ("" if how == "answer" else "a")
    assert other.deaths == {}


def test_whoever_wrote_before_it_had_the_lock_is_met_when_it_claims(tmp_path: Path) -> None:
    one, other = opened(tmp_path, "one"), opened(tmp_path, "other")
    one.add([answered("z", "one")])
    assert (claim(one, "a"), claim(other, "a", "z"), text_of(other, "z")) == ("a", "", "yes")


@pytest.mark.parametrize("is_known", [True, False], ids=["met before", "met when it claims"])
def test_whoever_comes_later_knows_what_is_asked(is_known: bool, tmp_path: Path) -> None:
    one = opened(tmp_path, "one")
    claim(one, "z")
    early = opened(tmp_path, "other") if is_known else None
    assert claim(one, "a", "b") == "ab"
    one.add([answered("a", "one")])
    other = early or opened(tmp_path, "other")
    assert (claim(other, "a", "b", "z", "c"), text_of(other, "a"), other.damaged) == ("c", "yes", 0)


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    stranger, whole = Stranger(tmp_path), answered("b", "stranger", "read")
    stranger.write(answered("a", "stranger") + whole[:40])
    ledger = opened(tmp_path, "one")
    for cut in (40, 41, len(whole) - 1):
        assert (text_of(ledger, "a"), text_of(ledger, "b"), ledger.damaged) == ("yes", None, 0)
        stranger.write(whole[cut : {40: 41, 41: len(whole) - 1}.get(cut)])
        ledger.others.look()
    assert (text_of(ledger, "b"), ledger.damaged) == ("read", 0)


@pytest.mark.parametrize("dies", ["before it is met", "later"])
def test_the_torn_line_of_a_dead_writer_is_damaged(dies: str, tmp_path: Path) -> None:
    stranger = Stranger(tmp_path)
    stranger.write(answered("a", "stranger") + answered("b", "stranger")[:40])
    if dies == "before it is met":
        stranger.die()
    ledger = opened(tmp_path, "one")
    stranger.die()
    ledger.others.look()
    ledger.others.look()
    assert (text_of(ledger, "a"), text_of(ledger, "b"), ledger.damaged) == ("yes", None, 1)


def test_damage_and_newer_formats_in_a_segment_that_grows_are_counted(tmp_path: Path) -> None:
    stranger = Stranger(tmp_path)
    ledger = opened(tmp_path, "one")
    stranger.write(b"rubbish\n" + answered("a", "stranger").replace(b"yes", b"yep") + answered("b", "stranger"))
    ledger.others.look()
    assert (text_of(ledger, "a"), text_of(ledger, "b"), ledger.damaged) == (None, "yes", 2)


def test_what_a_writer_takes_back_is_no_answer_and_what_follows_is_read(tmp_path: Path) -> None:
    stranger, first = Stranger(tmp_path), answered("a", "stranger")
    stranger.write(first + answered("b", "stranger", "taken back"))
    ledger = opened(tmp_path, "one")
    assert text_of(ledger, "b") == "taken back"
    stranger.file.truncate(len(first))  # as when the disk is full in the middle of an append
    ledger.others.look()
    stranger.write(answered("c", "stranger", "taken back"))
    ledger.others.look()
    assert [text_of(ledger, name) for name in "abc"] == ["yes", None, "taken back"]
    assert claim(ledger, "a", "b", "c") == "b"


def test_each_run_counts_its_own_lines_alone_whoever_wrote_them(tmp_path: Path) -> None:
    earlier, other = opened(tmp_path, "run"), opened(tmp_path, "other")
    claim(earlier, "a", "b")
    later = opened(tmp_path, "run")  # of the same run, while its earlier invocation still ends
    earlier.add([answered("a", "run")])
    assert (claim(other, "c"), claim(later, "a", "b", "d")) == ("c", "d")
    earlier.add([answered("b", "run")])
    other.add([answered("c", "other")])
    later.add([answered("d", "run")])
    for ledger in (other, later, opened(tmp_path, "run"), opened(tmp_path, "other")):
        ledger.others.look()
    for ledger in (later, opened(tmp_path, "run")):
        spent = ledger.spent["m", "target"]
        assert (spent.calls, spent.answered, spent.repeated) == (3, 3, 0)
    assert other.spent["m", "target"].calls == opened(tmp_path, "other").spent["m", "target"].calls == 1


class Hand:
    """A clock whose hand the test moves."""

    time = 0.0

    def __call__(self) -> float:
        return self.time


def test_a_clock_stands_still_while_its_process_does() -> None:
    hand = Hand()
    clock = WakingClock(hand)
    readings = []
    for passed in (0.0, 0.5, LONGEST_GAP_S, 20.0, 0.25):
        hand.time += passed
        readings.append(clock.now())
    assert readings == [0.0, 0.5, 0.5 + LONGEST_GAP_S, 0.5 + 2 * LONGEST_GAP_S, 0.75 + 2 * LONGEST_GAP_S]


def test_a_writer_that_does_not_stir_is_not_waited_for_until_it_stirs_again(tmp_path: Path) -> None:
    hand = Hand()
    one, other = opened(tmp_path, "one"), opened(tmp_path, "other", WakingClock(hand))
    assert (claim(one, "a"), claim(other, "a")) == ("a", "")

    def pass_time(seconds: float) -> set[str]:
        freed: set[str] = set()
        for _ in range(int(seconds)):
            hand.time += 1
            freed |= other.others.look()
        return freed

    assert pass_time(SILENT_S) == set()
    one.others.stir()
    assert pass_time(SILENT_S) == set()
    assert (pass_time(2), other.others.are_asking(rid("a"))) == ({rid("a")}, False)
    one.others.stir()
    other.others.look()
    assert other.others.are_asking(rid("a"))
    hand.time += 10 * SILENT_S  # This process stood still, which says nothing of the other.
    other.others.look()
    assert other.others.are_asking(rid("a"))


def test_a_run_whose_service_starts_again_keeps_what_it_asks(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    presence, other = Presence(folder), opened(tmp_path, "other")
    first = Ledger(folder, "run", segment=presence.segment)
    assert (claim(first, "a", "b", "c"), claim(other, "a")) == ("abc", "")
    first.add([answered("a", "run")])
    del first  # It dies, and its run does not.
    torn = (tmp_path / (presence.segment + SUFFIX)).open("ab")
    torn.write(answered("b", "run")[:50])
    torn.close()
    assert claim(other, "a", "b", "c") == ""
    second = Ledger(folder, "run", segment=presence.segment)
    assert (claim(second, "d"), claim(other, "b", "d")) == ("d", "")
    second.add([answered("c", "run"), answered("d", "run")])
    del second
    again = opened(tmp_path, "run")
    for ledger in (again, other):
        assert claim(ledger, "b") == ""
        assert ([text_of(ledger, name) for name in "abcd"], ledger.damaged) == (["yes", None, "yes", "yes"], 1)
    spent = again.spent["m", "target"]
    assert (spent.answered, spent.repeated) == (3, 1)
    del presence
    assert claim(other, "b") == "b"


def test_a_run_that_asked_nothing_leaves_no_segment(tmp_path: Path) -> None:
    presence = Presence(Folder(str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == [presence.segment + SUFFIX]
    del presence
    assert list(tmp_path.iterdir()) == []
    in_bucket = Presence(Folder(f"file://{tmp_path}"))
    assert (list(tmp_path.iterdir()), in_bucket.segment != "") == ([], True)


def test_a_run_makes_the_folder_anew_that_another_has_removed(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "ledger"))
    folder.make_writable("ledger")
    (tmp_path / "ledger").rmdir()
    presence = Presence(folder)
    assert [path.name for path in (tmp_path / "ledger").iterdir()] == [presence.segment + SUFFIX]


def test_while_one_claims_the_other_does_not(tmp_path: Path) -> None:
    one, other = opened(tmp_path, "one"), opened(tmp_path, "other")
    assert one.others.lock()
    assert not other.others.lock()
    one.others.unlock()
    assert other.others.lock()
    assert not one.others.lock()
    other.others.unlock()
    assert one.others.note == other.others.note == ""


def test_a_disk_that_cannot_lock_leaves_each_alone_and_says_so(tmp_path: Path) -> None:
    (tmp_path / REGISTER).mkdir()
    one, other = opened(tmp_path, "one"), opened(tmp_path, "other")
    assert (claim(one, "a"), claim(other, "a", "b")) == ("a", "ab")
    assert one.others.note == other.others.note
    assert one.others.note == (
        f"the ledger '{tmp_path}' cannot be locked (Is a directory): runs that use it at the same time may each ask "
        "what they have in common"
    )
    one.add([answered("a", "one")])
    assert text_of(opened(tmp_path, "third"), "a") == "yes"


def test_a_bucket_has_no_locks_and_no_register(tmp_path: Path) -> None:
    one, other = (Ledger(Folder(f"file://{tmp_path}"), run_id) for run_id in ("one", "other"))
    assert (claim(one, "a"), claim(other, "a")) == ("a", "a")
    one.commit()
    assert (one.others.note, [path.suffix for path in tmp_path.iterdir()]) == ("", [SUFFIX])


@pytest.mark.parametrize(
    "content",
    [b"", b"torn", b"../x.ledger\n/etc/passwd\n\xff\xfe\nnone.ledger\n", b"\n" * 100],
    ids=["empty", "torn", "rubbish", "blank"],
)
def test_a_register_that_was_damaged_mends_itself(content: bytes, tmp_path: Path) -> None:
    one, other = opened(tmp_path, "one"), opened(tmp_path, "other")
    assert (claim(one, "a"), claim(other, "a", "b")) == ("a", "b")
    (tmp_path / REGISTER).write_bytes(content)
    assert (claim(one, "c"), claim(other, "c", "d"), claim(one, "b")) == ("c", "d", "")
    assert claim(opened(tmp_path, "third"), "a", "b", "c", "d", "e") == "e"
    (tmp_path / REGISTER).unlink()
    assert (claim(one, "f"), claim(other, "a", "c", "f"), claim(one, "d")) == ("f", "", "")


def test_a_register_does_not_grow_with_the_dead(tmp_path: Path) -> None:
    living = opened(tmp_path, "living")
    claim(living, "a")
    for number in range(2 * MANY_DEAD):
        claim(opened(tmp_path, f"run {number}"), f"of {number}")
    assert len((tmp_path / REGISTER).read_bytes().splitlines()) <= MANY_DEAD + 2
    assert claim(opened(tmp_path, "last"), "a", "b") == "b"


@contextlib.contextmanager
def few_files_open(more: int) -> Iterator[None]:
    """While inside, this process may open so many files more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(number) for number in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("where", ["{}", "file://{}"], ids=["disk", "bucket"])
def test_a_ledger_of_many_segments_keeps_few_files_open(where: str, tmp_path: Path) -> None:
    for number in range(500):
        (tmp_path / f"{number:03}{SUFFIX}").write_bytes(answered(f"of {number}", "run", f"text of {number}"))
    (tmp_path / f"empty{SUFFIX}").touch()
    with few_files_open(100):
        ledger = Ledger(Folder(where.format(tmp_path)), "run")
        assert [text_of(ledger, f"of {number}") for number in range(500)] == [
            f"text of {number}" for number in range(500)
        ]
        ledger.add([answered("new", "run")])
    assert (len(ledger), ledger.damaged, ledger.spent["m", "target"].answered) == (501, 0, 501)
