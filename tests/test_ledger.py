"""The ledger: what was paid for is kept through torn tails and damage, and a failure is never an answer."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drawn import COUNT, SECONDS, TEXT, traces
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_lines import rid

from rambla_ray.ledger.record import FORMAT, Kind, NewerFormat, Record, check, peek, run_tag
from rambla_ray.ledger.store import SUFFIX, Ledger
from rambla_ray.schema import CallTrace, Response, Try
from rambla_ray.storage import Folder

RESPONSES = st.builds(
    Response,
    text=TEXT,
    finish_reason=TEXT,
    prompt_tokens=COUNT,
    completion_tokens=COUNT,
    latency_s=SECONDS,
    trace=traces(TEXT),
)
ABOUT = {
    "request_id": st.text("0123456789abcdef", min_size=64, max_size=64),
    **dict.fromkeys(("run_id", "model", "role"), TEXT),
    "at": SECONDS,
}
RECORDS = st.builds(Record, **ABOUT, response=RESPONSES) | st.builds(
    Record, **ABOUT, error_kind=TEXT, error=TEXT, call_trace=traces(TEXT, hedged=st.just(0))
)


def answer(request_id: str, text: str = "yes", run_id: str = "run", attempts: int = 1, role: str = "target") -> Record:
    tries = (*[Try(1.0, 0.25, "server: HTTP 500")] * (attempts - 1), Try(2.0, 0.5))
    response = Response(text, "stop", 10, 2, latency_s=0.5, trace=CallTrace(0.25, attempts, tries=tries))
    return Record(rid(request_id), run_id, "m", role, response)


def failure(request_id: str, run_id: str = "run", attempts: int = 3) -> Record:
    return Record(rid(request_id), run_id, "m", "target", None, "server", "HTTP 500", CallTrace(2.0, attempts))


def add(ledger: Ledger, *records: Record) -> None:
    ledger.add([record.to_line() for record in records])


def opened(folder: Path, run_id: str = "run") -> Ledger:
    return Ledger(Folder(str(folder)), run_id)


def stored(folder: Path, *records: Record) -> Path:
    """Write the records with a ledger of their own; returns its segment."""
    before = set(folder.glob(f"*{SUFFIX}"))
    ledger = opened(folder)
    add(ledger, *records)
    ledger.commit()
    (segment,) = set(folder.glob(f"*{SUFFIX}")) - before
    return segment


def text_of(ledger: Ledger, request_id: str) -> str | None:
    response = ledger.get(rid(request_id))
    return response.text if response else None


@settings(max_examples=60, deadline=None)
@given(RECORDS)
def test_a_record_survives_its_line(record: Record) -> None:
    line = record.to_line()
    assert Record.from_line(line) == record
    assert line.endswith(b"\n")
    assert line.splitlines() == [line[:-1]]


@settings(max_examples=60, deadline=None)
@given(RECORDS, st.data())
def test_a_damaged_line_is_no_record(record: Record, data: st.DataObject) -> None:
    line = bytearray(record.to_line())
    place = data.draw(st.integers(9, len(line) - 2))  # the checksum's own digits may change their case
    line[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match=r"."):
        Record.from_line(bytes(line))


@settings(max_examples=60, deadline=None)
@given(RECORDS, st.data())
def test_a_torn_line_is_no_record(record: Record, data: st.DataObject) -> None:
    line = record.to_line()
    with pytest.raises(ValueError, match=r"."):
        Record.from_line(line[: data.draw(st.integers(0, len(line) - 2))])


def with_members(line: bytes, **members: Any) -> bytes:
    """A line as another version may write it: with other members in its body, those before all the rest."""
    head, body = line[9:85], json.loads(line[85:])
    rest = head + json.dumps({**members, **body}, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(rest), rest)


@pytest.mark.parametrize("record", [answer("a", attempts=3), failure("a")], ids=["answer", "failure"])
def test_a_line_is_what_it_has_always_been_and_names_no_format(record: Record) -> None:
    line = record.to_line()
    assert with_members(line) == line
    assert line[85:].startswith(b'{"run":"run","model":"m","role":"target","at":0.0,"')
    assert Record.from_line(with_members(line, v=FORMAT)) == record


@pytest.mark.parametrize("run_id", ["run", "another"])
@pytest.mark.parametrize("member", ["mood", "v"])
def test_a_line_that_is_nested_too_deeply_is_skipped_and_counted(member: str, run_id: str, tmp_path: Path) -> None:
    line = with_members(answer("a").to_line(), **{member: 1}).rstrip(b"\n")
    rest = line[9:].replace(f'"{member}":1'.encode(), f'"{member}":'.encode() + b"[" * 100_000 + b"]" * 100_000, 1)
    (tmp_path / f"deep{SUFFIX}").write_bytes(b"%08x %s\n" % (zlib.crc32(rest), rest) + answer("b").to_line())
    ledger = opened(tmp_path, run_id)
    assert (text_of(ledger, "a"), text_of(ledger, "b"), ledger.damaged) == (None, "yes", 1)


@pytest.mark.parametrize("run_id", ["run", "another"])
def test_a_member_that_is_not_known_changes_nothing(run_id: str, tmp_path: Path) -> None:
    lines = [answer("a", "yes", run_id).to_line(), failure("b", run_id).to_line()]
    stored(tmp_path, answer("c"))
    (tmp_path / f"later{SUFFIX}").write_bytes(b"".join(with_members(line, mood={"v": 99}) for line in lines))
    ledger = opened(tmp_path, run_id)
    assert (text_of(ledger, "a"), len(ledger), ledger.damaged, ledger.newer) == ("yes", 2, 0, {})
    assert ledger.spent["m", "target"].failed == 1


@pytest.mark.parametrize("run_id", ["run", "another"])
def test_a_line_of_a_newer_format_is_skipped_and_counted_by_its_number(run_id: str, tmp_path: Path) -> None:
    newer = [with_members(answer(name).to_line(), v=99) for name in "ab"]
    newer += [with_members(failure("c").to_line(), v=100), with_members(answer("d").to_line(), v="x.y")]
    (tmp_path / f"x{SUFFIX}").write_bytes(b"".join(newer) + newer[0][:-9] + b"\n" + answer("e").to_line())
    ledger = opened(tmp_path, run_id)
    assert (len(ledger), text_of(ledger, "a"), text_of(ledger, "e")) == (1, None, "yes")
    assert (ledger.newer, ledger.damaged) == ({"99": 2, "100": 1, "x.y": 1}, 1)
    with pytest.raises(NewerFormat, match="format 99; this version reads up to 1"):
        ledger.add([newer[0]])
    add(ledger, answer("a", "again"))
    assert text_of(opened(tmp_path), "a") == "again"


@settings(max_examples=60, deadline=None)
@given(RECORDS)
def test_the_head_of_a_line_names_its_record(record: Record) -> None:
    line = record.to_line()
    kind = Kind.ANSWER if record.response else Kind.FAILURE
    assert peek(line) == check(line) == (kind, record.request_id, run_tag(record.run_id).encode())


def test_answers_are_served_before_and_after_they_are_committed(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    add(ledger, answer("a", "yes"), answer("b", "no"))
    assert (text_of(ledger, "a"), text_of(ledger, "b"), text_of(ledger, "c"), len(ledger)) == ("yes", "no", None, 2)
    ledger.commit()
    again = opened(tmp_path)
    assert (text_of(again, "a"), text_of(again, "b"), len(again), again.damaged) == ("yes", "no", 2, 0)
    assert again.get(rid("a")) == ledger.get(rid("a")) == answer("a").response


def test_a_ledger_goes_on_after_a_commit(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    for request_id in "abc":
        add(ledger, answer(request_id))
        ledger.commit()
    assert len(opened(tmp_path)) == 3
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failure_is_counted_and_never_served(tmp_path: Path) -> None:
    segment = stored(tmp_path, failure("a"))
    ledger = opened(tmp_path)
    assert (ledger.get(rid("a")), len(ledger), ledger.damaged) == (None, 0, 0)
    assert ledger.spent["m", "target"].failed == 1
    assert b"HTTP 500" in segment.read_bytes()


@pytest.mark.parametrize("first_fails", [True, False], ids=["before", "after"])
def test_an_answer_is_served_whether_a_failure_came_before_or_after(first_fails: bool, tmp_path: Path) -> None:
    records = [failure("a"), answer("a")]
    stored(tmp_path, *(records if first_fails else reversed(records)))
    assert text_of(opened(tmp_path), "a") == "yes"


def test_the_first_answer_to_a_request_stays(tmp_path: Path) -> None:
    stored(tmp_path, answer("a", "first"), answer("a", "second"))
    assert text_of(opened(tmp_path), "a") == "first"


@pytest.mark.parametrize("lost", [1, 2, 30, 100])
def test_a_torn_tail_is_skipped_and_counted(lost: int, tmp_path: Path) -> None:
    segment = stored(tmp_path, answer("a"), answer("b"))
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-lost])
    ledger = opened(tmp_path)
    kept = 1 if lost > 1 else 2  # without its line break alone, a record is whole
    assert (len(ledger), ledger.damaged) == (kept, 2 - kept)
    assert text_of(ledger, "a") == "yes"


def test_what_a_torn_tail_lost_can_be_asked_and_stored_again(tmp_path: Path) -> None:
    segment = stored(tmp_path, answer("a"), answer("b"))
    segment.write_bytes(segment.read_bytes()[:-9])
    stored(tmp_path, answer("b", "again"))
    ledger = opened(tmp_path)
    assert (text_of(ledger, "a"), text_of(ledger, "b"), ledger.damaged) == ("yes", "again", 1)


def test_a_corrupted_byte_costs_one_record(tmp_path: Path) -> None:
    segment = stored(tmp_path, answer("a", "yes"), answer("b", "no"), answer("c", "maybe"))
    segment.write_bytes(segment.read_bytes().replace(b'"no"', b'"na"'))
    ledger = opened(tmp_path)
    assert [text_of(ledger, request_id) for request_id in "abc"] == ["yes", None, "maybe"]
    assert ledger.damaged == 1


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_no_corrupted_byte_makes_a_wrong_answer(
    place: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    texts = {request_id: f"text of {request_id}" for request_id in "abcd"}
    segment = stored(folder, *(answer(request_id, text) for request_id, text in texts.items()))
    content = bytearray(segment.read_bytes())
    content[place % len(content)] = byte
    segment.write_bytes(content)
    ledger = opened(folder)
    served = {request_id: text_of(ledger, request_id) for request_id in texts if ledger.get(rid(request_id))}
    assert served.items() <= texts.items()
    assert len(served) >= 2  # a broken line break costs its two neighbours
    assert (ledger.damaged > 0) == (len(served) < 4)


def test_two_writers_have_a_segment_each_and_both_are_read(tmp_path: Path) -> None:
    one, other = opened(tmp_path), opened(tmp_path)
    add(one, answer("a", "of one"))
    add(other, answer("b", "of other"))
    one.commit()
    other.commit()
    add(one, answer("c", "of one"))
    one.commit()
    both = opened(tmp_path)
    assert [text_of(both, request_id) for request_id in "abc"] == ["of one", "of other", "of one"]
    assert len(list(tmp_path.glob(f"*{SUFFIX}"))) == 2


def test_what_was_spent_goes_on_for_the_run_and_not_for_another(tmp_path: Path) -> None:
    stored(tmp_path, answer("a", attempts=3), failure("b", attempts=5), answer("c", run_id="another"))
    ledger = opened(tmp_path)
    add(ledger, answer("d"))
    spent = ledger.spent["m", "target"]
    assert (spent.calls, spent.retried, spent.answered, spent.failed) == (9, 6, 2, 1)
    assert (spent.prompt_tokens, spent.completion_tokens, spent.calling_s, spent.waited_s) == (20, 4, 1.5, 2.5)
    assert opened(tmp_path, "another").spent["m", "target"].calls == 1
    assert opened(tmp_path, "new").spent == {}
    assert len(opened(tmp_path, "new")) == 3


def test_what_was_spent_is_counted_by_model_and_role(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    add(ledger, answer("a"), answer("b", role="judge"))
    add(ledger, replace(answer("c", role="judge"), model="n"))
    assert {key: spent.calls for key, spent in ledger.spent.items()} == {
        ("m", "target"): 1,
        ("m", "judge"): 1,
        ("n", "judge"): 1,
    }


def claim(ledger: Ledger, *request_ids: str) -> None:
    ledger.mark(Kind.CLAIM, ((rid(request_id), "m", "target") for request_id in request_ids))


def test_a_claim_that_nothing_follows_is_a_call_that_may_have_been_paid(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    claim(ledger, "a", "b", "c", "d")
    add(ledger, answer("a"), failure("b"))
    again = opened(tmp_path)  # the first process was killed with c and d in flight
    assert again.spent["m", "target"].repeated == 2
    claim(again, "c", "d")
    add(again, answer("c"), answer("d"))
    assert again.spent["m", "target"].repeated == opened(tmp_path).spent["m", "target"].repeated == 2
    assert opened(tmp_path).spent["m", "target"].answered == 3


def test_a_claim_that_was_released_cost_nothing(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    claim(ledger, "a")
    ledger.mark(Kind.RELEASE, [(rid("a"), "m", "target")])
    assert opened(tmp_path).spent["m", "target"].repeated == ledger.spent["m", "target"].repeated == 0


def test_a_record_that_is_stored_twice_counts_once(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    for _ in range(2):  # as when the service dies between writing and saying so
        add(ledger, answer("a"), failure("b"))
    add(opened(tmp_path), answer("a"), failure("b"))
    spent = opened(tmp_path).spent["m", "target"]
    assert (spent.answered, spent.failed) == (1, 1)


def test_deaths_are_remembered_by_the_run_and_by_no_other(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    for _ in range(2):
        ledger.mark(Kind.DEATH, [(rid("a"), "m", "target")])
    assert opened(tmp_path).deaths == {rid("a"): 2}
    assert opened(tmp_path, "another").deaths == {}


def test_a_hedged_call_is_charged_twice(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    add(
        ledger,
        Record(rid("a"), "run", "m", "target", Response("yes", "stop", 10, 2, trace=CallTrace(attempts=2, hedged=1))),
    )
    spent = ledger.spent["m", "target"]
    assert (spent.calls, spent.hedged, spent.retried, spent.prompt_tokens, spent.completion_tokens) == (2, 1, 0, 20, 4)


def test_what_attempts_without_an_answer_cost_is_counted(tmp_path: Path) -> None:
    trace = CallTrace(attempts=2, failed_prompt_tokens=100, failed_completion_tokens=800)
    answered = replace(answer("a"), response=Response("yes", "stop", 10, 2, trace=trace))
    stored(tmp_path, answered, replace(failure("b"), call_trace=trace))
    spent = opened(tmp_path).spent["m", "target"]
    assert (spent.answered, spent.failed, spent.prompt_tokens, spent.completion_tokens) == (1, 1, 210, 1602)


def test_a_line_says_what_attempts_without_an_answer_cost_only_where_they_cost_something() -> None:
    charged = CallTrace(attempts=2, failed_prompt_tokens=100)
    for record in (answer("a"), failure("b")):
        assert b"failed_" not in record.to_line()
    line = replace(failure("b"), call_trace=charged).to_line()
    assert b'"failed_prompt_tokens":100' in line
    assert b"failed_completion_tokens" not in line
    assert Record.from_line(line).trace == charged


def test_texts_that_no_file_holds_as_they_are_come_back(tmp_path: Path) -> None:
    text = "\ud800\x00\x1b[31m\u2028\n" + "x" * 2_000_000
    stored(tmp_path, answer("a", text), answer("b"))
    ledger = opened(tmp_path)
    assert (text_of(ledger, "a"), text_of(ledger, "b"), ledger.damaged) == (text, "yes", 0)


def test_a_commit_of_nothing_writes_nothing(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    ledger.commit()
    assert list(tmp_path.iterdir()) == []
    add(ledger, answer("a"))
    ledger.commit()
    size = [path.stat().st_size for path in tmp_path.iterdir()]
    ledger.commit()
    assert [path.stat().st_size for path in tmp_path.iterdir()] == size


def test_a_folder_that_does_not_exist_is_an_empty_ledger(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "none")
    assert (len(ledger), ledger.spent, ledger.damaged) == (0, {}, 0)
    assert not (tmp_path / "none").exists()


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("not a segment")
    stored(tmp_path, answer("a"))
    assert opened(tmp_path).damaged == 0


def test_a_bucket_gets_a_new_part_for_every_commit(tmp_path: Path) -> None:
    folder = Folder(f"file://{tmp_path}")
    ledger = Ledger(folder, "run")
    for request_id in "ab":
        add(ledger, answer(request_id))
        ledger.commit()
    assert len(folder.names(SUFFIX)) == 2
    assert len(Ledger(folder, "run")) == 2
