"""What a ledger knows of batches: which requests are in one, and that nobody pays, or is blamed, twice for them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rambla_ray.actors.ledger import LedgerService
from rambla_ray.actors.model import BatchCounts
from rambla_ray.config.sections import Budget
from rambla_ray.errors import ErrorKind
from rambla_ray.ledger.batches import BatchMark
from rambla_ray.ledger.claims import SUSPECT, Claim
from rambla_ray.ledger.record import Kind, Record, check, run_tag
from rambla_ray.ledger.store import Ledger
from rambla_ray.schema import Response
from rambla_ray.storage import Folder

RUN, MODEL, ROLE = "run", "m", "target"


def rid(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def mark(*names: str) -> BatchMark:
    return BatchMark.new(RUN, MODEL, map(rid, names), at=5.0)


def answer(name: str) -> bytes:
    return Record(rid(name), RUN, MODEL, ROLE, Response("yes")).to_line()


def failure(name: str) -> bytes:
    return Record(rid(name), RUN, MODEL, ROLE, error_kind=ErrorKind.SERVER, error="HTTP 500").to_line()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Folder(str(tmp_path)), RUN)


def again(ledger: Ledger, tmp_path: Path, run: str = RUN) -> Ledger:
    """The same folder, as another process finds it."""
    ledger.commit()
    return Ledger(Folder(str(tmp_path)), run)


def held(ledger: Ledger, *names: str) -> list[tuple[str, ...]]:
    """Of each batch among these requests, those that have not ended."""
    return [found.request_ids for found in ledger.batches.among(map(rid, names))]


def test_what_is_known_of_a_batch_is_read_again_by_any_run(ledger: Ledger, tmp_path: Path) -> None:
    batch = mark("a", "b")
    ledger.add_batch(batch.first_line())
    assert again(ledger, tmp_path, "another").batches.among([rid("b")]) == [batch]
    batch = replace(batch, input_file="file-1", batch="batch_1", created=7.5)
    ledger.add_batch(batch.line_of("input_file"))
    ledger.add_batch(batch.line_of("batch", "created"))
    assert again(ledger, tmp_path, "another").batches.among([rid("a"), rid("b")]) == [batch]
    assert again(ledger, tmp_path).batches.among([rid("c")]) == []


@pytest.mark.parametrize("end", [answer, failure])
def test_a_request_leaves_its_batch_when_it_has_ended(
    end: Callable[[str], bytes], ledger: Ledger, tmp_path: Path
) -> None:
    ledger.add_batch(mark("a", "b").first_line())
    ledger.add([end("a")])
    for opened in (ledger, again(ledger, tmp_path)):
        assert held(opened, "a") == []
        assert held(opened, "a", "b") == [(rid("b"),)]
    ledger.add([end("b")])
    assert not again(ledger, tmp_path).batches


def test_a_request_is_in_the_last_batch_that_was_written_down_with_it(ledger: Ledger, tmp_path: Path) -> None:
    ledger.add_batch(mark("a", "b").first_line())
    ledger.add_batch(mark("b", "c").first_line())
    assert held(again(ledger, tmp_path), "a", "b") == [(rid("a"),), (rid("b"), rid("c"))]


def test_nobody_attaches_to_a_batch_that_is_of_no_use(ledger: Ledger, tmp_path: Path) -> None:
    batch = replace(mark("a", "b"), ended="not there")
    ledger.add_batch(batch.first_line())
    ledger.add_batch(batch.line_of("ended"))
    assert not again(ledger, tmp_path).batches


def test_a_line_about_a_batch_is_of_no_run_and_costs_none_anything(ledger: Ledger, tmp_path: Path) -> None:
    line = mark("a").first_line()
    kind, tag, run = check(line)
    assert (kind, len(tag), run) == (Kind.BATCH, 64, run_tag("").encode())
    ledger.add_batch(line)
    opened = again(ledger, tmp_path)
    assert (dict(opened.spent), opened.damaged, len(opened)) == ({}, 0, 0)


def test_a_damaged_line_about_a_batch_is_skipped_and_counted(ledger: Ledger, tmp_path: Path) -> None:
    good = mark("a")
    ledger.add_batch(good.first_line())
    ledger.commit()
    (segment,) = tmp_path.glob("*.ledger")
    torn = mark("b").first_line()
    segment.write_bytes(segment.read_bytes() + torn[:100] + b"\n")
    opened = Ledger(Folder(str(tmp_path)), RUN)
    assert (opened.damaged, held(opened, "a"), held(opened, "b")) == (1, [(rid("a"),)], [])


def test_a_claim_on_what_is_in_a_batch_is_no_further_call(ledger: Ledger, tmp_path: Path) -> None:
    ledger.mark(Kind.CLAIM, [(rid(name), MODEL, ROLE) for name in ("a", "live")])
    ledger.add_batch(mark("a").first_line())
    for _ in range(2):
        ledger.mark(Kind.CLAIM, [(rid(name), MODEL, ROLE) for name in ("a", "live")])
    ledger.add([answer("a"), answer("live")])
    assert again(ledger, tmp_path).spent[MODEL, ROLE].repeated == 2


def served(body: Callable[[LedgerService], Awaitable[None]], folder: Path) -> None:
    async def whole() -> None:
        await body(LedgerService(str(folder), RUN, Budget(), {}))

    asyncio.run(whole())


def test_no_request_in_a_batch_is_to_blame_for_the_death_of_a_process(tmp_path: Path) -> None:
    async def body(service: LedgerService) -> None:
        await service.mark_batch(mark("a").first_line())
        for life in range(SUSPECT):
            await service.register(f"life {life}", "actor")
            wanted = [(rid(name), ROLE) for name in ("a", "live")]
            assert await service.claim(f"life {life}", MODEL, wanted) == [Claim.GRANTED] * 2
        await service.register("last", "actor")
        assert await service.claim("last", MODEL, [(rid("a"), ROLE)]) == [Claim.GRANTED]
        assert await service.claim("last", MODEL, [(rid("live"), ROLE)]) == [Claim.PENDING]
        notes = (await service.progress())["notes"]
        assert notes == [f"model {MODEL}: an actor died; {what}" for what in NOTED]

    served(body, tmp_path)


NOTED = ("what it was asking is asked again", "its batches go on")


def test_the_batches_of_the_dead_are_not_counted_beside_those_of_the_living(tmp_path: Path) -> None:
    async def body(service: LedgerService) -> None:
        for owner in ("first", "second"):
            await service.register(owner, "actor")
            await service.report_batches(owner, MODEL, BatchCounts(1, 10, 100))
        await service.report_batches("elsewhere", MODEL, BatchCounts(2, 5, 50))
        await service.report_batches("elsewhere", "done", BatchCounts())
        assert (await service.progress())["batches"] == {MODEL: (3, 15, 150)}

    served(body, tmp_path)
