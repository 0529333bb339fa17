"""Two services on one ledger: what one asks the other waits for, and takes over when the first does not go on."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from ledger_lines import answered, failed, rid

from rambla_ray.actors.ledger import LedgerService
from rambla_ray.actors.ledger_turns import HELD, PATIENCE_S, WAITS
from rambla_ray.config.sections import Budget
from rambla_ray.ledger.claims import OWNER_SILENT_S, Claim
from rambla_ray.ledger.clock import WakingClock
from rambla_ray.ledger.others import REGISTER
from rambla_ray.ledger.record import Kind
from rambla_ray.ledger.store import Ledger
from rambla_ray.storage import Folder


def answer(name: str, run_id: str) -> bytes:
    return answered(name, run_id, f"to {name}", (10, 2))


def run_both(folder: Path, body: Callable[[LedgerService, LedgerService], Awaitable[None]]) -> None:
    async def whole() -> None:
        await body(*(LedgerService(str(folder), run_id, Budget(), {}) for run_id in ("one", "other")))

    asyncio.run(whole())


async def claim(service: LedgerService, *names: str) -> list[Any]:
    return list(await service.claim("owner", "m", [(rid(name), "target") for name in names]))


async def waited(service: LedgerService, name: str) -> Any:
    """Wait as a client does."""
    while (claimed := await service.wait("owner", "m", rid(name), "target")) is Claim.PENDING:
        pass
    return claimed


async def spent(service: LedgerService) -> list[tuple[int, int, int, int]]:
    counts = (await service.progress())["spent"]
    return [(entry["calls"], entry["answered"], entry["prompt_tokens"], entry["repeated"]) for entry in counts]


def test_an_answer_that_one_pays_serves_the_other(tmp_path: Path) -> None:
    async def body(one: LedgerService, other: LedgerService) -> None:
        assert await claim(one, "a", "b") == [Claim.GRANTED] * 2
        assert await claim(other, "a", "b", "c") == [Claim.PENDING, Claim.PENDING, Claim.GRANTED]
        assert await claim(one, "c") == [Claim.PENDING]
        waiting = [asyncio.create_task(waited(*pair)) for pair in ((other, "a"), (other, "b"), (one, "c"))]
        await one.store("owner", [answer("a", "one"), answer("b", "one")])
        await other.store("owner", [answer("c", "other")])
        assert await asyncio.gather(*waiting) == [answer("a", "one"), answer("b", "one"), answer("c", "other")]
        assert (await spent(one), await spent(other)) == ([(2, 2, 20, 0)], [(1, 1, 10, 0)])

    run_both(tmp_path, body)


@pytest.mark.parametrize("how", ["failure", "release", "end"])
def test_what_one_does_not_answer_the_other_asks(how: str, tmp_path: Path) -> None:
    async def body(one: LedgerService, other: LedgerService) -> None:
        assert await claim(one, "a") == [Claim.GRANTED]
        assert await claim(other, "a") == [Claim.PENDING]
        waiting = asyncio.create_task(waited(other, "a"))
        await asyncio.sleep(0)
        began = time.monotonic()
        if how == "failure":
            await one.store("owner", [failed("a", "one")])
        elif how == "release":
            await one.release("owner", [rid("a")])
        else:
            await one.register("owner", "actor")
            await one.register("its next life", "actor")
        assert await waiting is Claim.GRANTED
        assert time.monotonic() - began < 0.9  # It is woken, and need not claim again.
        assert (await other.progress())["spent"][0]["repeated"] == 1  # what it asks now

    run_both(tmp_path, body)


def test_a_run_that_dies_is_followed_at_once(tmp_path: Path) -> None:
    async def body(service: LedgerService) -> None:
        other = Ledger(Folder(str(tmp_path)), "other")
        assert other.others.lock()
        other.mark(Kind.CLAIM, [(rid("a"), "m", "target")])
        other.others.unlock()
        assert await claim(service, "a", "b") == [Claim.PENDING, Claim.GRANTED]
        waiting = asyncio.create_task(waited(service, "a"))
        await asyncio.sleep(0)
        del other
        assert await asyncio.wait_for(waiting, 0.9) is Claim.GRANTED

    async def whole() -> None:
        await body(LedgerService(str(tmp_path), "one", Budget(), {}))

    asyncio.run(whole())


def test_nobody_waits_for_an_actor_that_is_stopped(tmp_path: Path) -> None:
    """Its run goes on, and would not notice: what it waits for nobody in it wants."""
    hand = {"time": 0.0}

    async def body() -> None:
        clock = WakingClock(lambda: hand["time"])
        one = LedgerService(str(tmp_path), "one", Budget(), {}, clock=clock)
        other = LedgerService(str(tmp_path), "other", Budget(), {})
        assert (await claim(one, "a"), await claim(other, "a")) == ([Claim.GRANTED], [Claim.PENDING])
        waiting = asyncio.create_task(waited(other, "a"))
        while not waiting.done():
            hand["time"] += 0.1
            await one.heartbeat("another owner")
            await asyncio.sleep(0.01)
        assert await waiting is Claim.GRANTED
        assert hand["time"] > OWNER_SILENT_S
        assert (await one.progress())["notes"] == ["model m: an actor died; what it was asking is asked again"]
        assert (await other.progress())["notes"] == [WAITS]

    asyncio.run(body())


def test_a_run_that_is_being_stopped_waits_for_no_other(tmp_path: Path) -> None:
    async def body(one: LedgerService, other: LedgerService) -> None:
        assert (await claim(one, "a"), await claim(other, "a")) == ([Claim.GRANTED], [Claim.PENDING])
        waiting = asyncio.create_task(waited(other, "a"))
        await other.stop("interrupted", "interrupted")
        assert await waiting is Claim.DRAINING

    run_both(tmp_path, body)


def test_runs_that_wait_for_each_other_both_end(tmp_path: Path) -> None:
    names = [f"request {number}" for number in range(40)]
    asked: list[str] = []

    async def ask(service: LedgerService, run_id: str, name: str) -> bytes:
        (claimed,) = await claim(service, name)
        if claimed is Claim.PENDING:
            claimed = await waited(service, name)
        if claimed is Claim.GRANTED:
            asked.append(name)
            claimed = answer(name, run_id)
            await service.store("owner", [claimed])
        return bytes(claimed)

    async def body(one: LedgerService, other: LedgerService) -> None:
        runs = [(one, "one"), (other, "other")]
        first = [ask(*runs[number % 2], name) for number, name in enumerate(names)]
        second = [ask(*runs[number % 2 - 1], name) for number, name in enumerate(names)]
        lines = await asyncio.gather(*first, *second)
        assert sorted(asked) == sorted(names)
        assert lines[: len(names)] == lines[len(names) :]
        (of_one,), (of_other,) = await spent(one), await spent(other)
        assert of_one[0] + of_other[0] == len(names)
        assert of_one[3] == of_other[3] == 0

    run_both(tmp_path, body)


def test_a_lock_that_is_not_let_go_stops_nobody(tmp_path: Path) -> None:
    async def body(one: LedgerService, other: LedgerService) -> None:
        assert await claim(one, "a") == [Claim.GRANTED]
        holder = os.open(tmp_path / REGISTER, os.O_RDWR)
        fcntl.flock(holder, fcntl.LOCK_EX)  # as a process that is stopped while it claims
        began = time.monotonic()
        assert await claim(other, "b") == [Claim.GRANTED]
        assert await claim(other, "c", "d") == [Claim.GRANTED] * 2
        assert time.monotonic() - began < 2 * PATIENCE_S  # The second does not wait for it again.
        assert (await other.progress())["notes"] == [HELD]
        os.close(holder)
        assert await claim(other, "a", "e") == [Claim.PENDING, Claim.GRANTED]
        assert await claim(one, "b", "c") == [Claim.PENDING] * 2
        assert ((await other.progress())["notes"], (await one.progress())["notes"]) == ([HELD], [])

    run_both(tmp_path, body)


def test_a_ledger_that_cannot_be_locked_is_told_to_the_user_once(tmp_path: Path) -> None:
    (tmp_path / REGISTER).mkdir()

    async def body(one: LedgerService, other: LedgerService) -> None:
        for service in (one, one, other):
            await claim(service, "a")
        for service in (one, other):
            (note,) = (await service.progress())["notes"]
            assert note.startswith(f"the ledger '{tmp_path}' cannot be locked (Is a directory)")

    run_both(tmp_path, body)


def test_nobody_is_silent_because_the_service_did_not_listen(tmp_path: Path) -> None:
    """As when the service is stopped for a while: what its owners sent meanwhile is still to be read."""
    hand = {"time": 0.0}

    async def body(service: LedgerService) -> None:
        await service.register("owner", "actor")
        assert await claim(service, "a") == [Claim.GRANTED]
        waiting = asyncio.create_task(service.wait("other owner", "m", rid("a"), "target"))
        await asyncio.sleep(0)
        hand["time"] += 2 * OWNER_SILENT_S
        assert await waiting is Claim.PENDING
        assert (await service.progress())["in_flight"] == 1
        for _ in range(int(OWNER_SILENT_S)):  # Now it listens, and hears nothing.
            hand["time"] += 1
            await service.heartbeat("other owner")
        assert await service.wait("other owner", "m", rid("a"), "target") is Claim.GRANTED

    async def whole() -> None:
        clock = WakingClock(lambda: hand["time"])
        await body(LedgerService(str(tmp_path), "one", Budget(), {}, clock=clock))

    asyncio.run(whole())
