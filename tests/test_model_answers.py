"""Whether a model has answered a run: what the ledger's service says to an actor that gets nothing but 403s."""

from __future__ import annotations

import asyncio
from pathlib import Path

from test_ledger_service import claim, line, rid, run

from rambla_ray.actors.ledger import LedgerService
from rambla_ray.actors.model import Answered
from rambla_ray.ledger.record import Record
from rambla_ray.schema import Response


def test_a_model_has_answered_now_once_an_answer_is_stored_and_before_in_the_next_invocation(tmp_path: Path) -> None:
    async def first(service: LedgerService) -> None:
        await claim(service, "one", "a")
        assert await service.answered("one", "m") == Answered.NEVER
        await service.store("one", [line("a")])
        assert await service.answered("one", "m") == Answered.NOW
        assert await service.answered("one", "another model") == Answered.NEVER

    async def second(service: LedgerService) -> None:
        assert await service.answered("one", "m") == Answered.BEFORE

    run(first, tmp_path)
    run(second, tmp_path)


def test_an_answer_of_another_run_that_is_used_counts_as_one_before(tmp_path: Path) -> None:
    other = Record(rid("a"), "another run", "m", "target", Response("yes")).to_line()

    async def body(service: LedgerService) -> None:
        assert await service.answered("one", "m") == Answered.NEVER
        assert await claim(service, "one", "a") == [other]
        assert await service.answered("one", "m") == Answered.BEFORE

    (tmp_path / "x.ledger").write_bytes(other)
    run(body, tmp_path)


async def asked_by_two(service: LedgerService) -> asyncio.Task[Answered | None]:
    """Two owners that ask; one of them wants to know whether the model has answered."""
    await claim(service, "one", "a")
    await claim(service, "other", "b")
    waiting = asyncio.create_task(service.answered("one", "m"))
    await asyncio.sleep(0)
    return waiting


def test_what_another_actor_asks_is_waited_for(tmp_path: Path) -> None:
    async def body(service: LedgerService) -> None:
        waiting = await asked_by_two(service)
        assert not waiting.done()
        await service.store("other", [line("b")])
        assert await waiting is None  # Asked anew, as the client does, it knows.
        assert await service.answered("one", "m") == Answered.NOW

    run(body, tmp_path)


def test_actors_that_all_get_nothing_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async def body(service: LedgerService) -> None:
        waiting = await asked_by_two(service)
        assert await service.answered("other", "m") == Answered.NEVER
        assert await waiting is None
        assert await service.answered("one", "m") == Answered.NEVER
        await claim(service, "other", "c")
        assert await service.answered("one", "m") is None

    run(body, tmp_path)
