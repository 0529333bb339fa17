"""The ledger as a service: one asks and the others wait, the dead are known."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from rambla_ray.actors.ledger import LedgerService
from rambla_ray.actors.ledger_client import LedgerClient
from rambla_ray.config.labels import ModelNames
from rambla_ray.config.sections import Budget
from rambla_ray.errors import CallError, Draining, ErrorKind
from rambla_ray.ledger.claims import Claim
from rambla_ray.ledger.record import Record
from rambla_ray.schema import CallTrace, Response

RUN = "run"
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module


def rid(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def line(name: str, text: str = "yes", tokens: int = 10) -> bytes:
    return Record(
        rid(name), RUN, "m", "target", Response(text, prompt_tokens=tokens, completion_tokens=tokens)
    ).to_line()


def run(body: Callable[[LedgerService], Awaitable[None]], folder: Path) -> None:
    """A scenario with a service of its own, in this process."""

    async def whole() -> None:
        await body(LedgerService(str(folder), RUN, Budget(), {}))

    asyncio.run(whole())


async def claim(service: LedgerService, owner: str, *names: str) -> list[Any]:
    return list(await service.claim(owner, "m", [(rid(name), "target") for name in names]))


async def grant(service: LedgerService, owner: str, name: str) -> Any:
    """Wait as a client does."""
    while (granted := await service.wait(owner, "m", rid(name), "target")) == Claim.PENDING:
        pass
    return granted


def test_a_request_is_granted_once_and_its_answer_serves_everybody(tmp_path: Path) -> None:
    async def body(service: LedgerService) -> None:
        assert await claim(service, "one", "a", "b") == [Claim.GRANTED, Claim.GRANTED]
        assert await claim(service, "other", "a", "c") == [Claim.PENDING, Claim.GRANTED]
        waiting = asyncio.create_task(service.wait("other", "m", rid("a"), "target"))
        await service.store("one", [line("a")])
        assert await waiting == line("a")
        assert await claim(service, "third", "a") == [line("a")]

    run(body, tmp_path)


def test_what_is_released_goes_to_whoever_waits_for_it(tmp_path: Path) -> None:
    async def body(service: LedgerService) -> None:
        assert await claim(service, "one", "a") == [Claim.GRANTED]
        waiting = asyncio.create_task(service.wait("other", "m", rid("a"), "target"))
        await asyncio.sleep(0)
        await service.release("one", [rid("a")])
        assert await waiting == Claim.GRANTED
        progress = await service.progress()
        assert (progress["in_flight"], progress["spent"][0]["repeated"]) == (1, 1)

    run(body, tmp_path)


def test_what_is_stored_is_on_the_disk_before_store_returns(tmp_path: Path) -> None:
    async def body(service: LedgerService) -> None:
        names = [f"a{number}" for number in range(200)]
        await claim(service, "one", *names)
        await asyncio.gather(*(service.store("one", [line(name)]) for name in names))
        (segment,) = tmp_path.glob("*.ledger")
        kept = segment.read_bytes()
        assert all(line(name) in kept for name in names)

    run(body, tmp_path)


def test_a_second_life_frees_what_the_first_was_asking(tmp_path: Path) -> None:
    async def body(service: LedgerService) -> None:
        await service.register("first life", "actor")
        assert await claim(service, "first life", "a") == [Claim.GRANTED]
        waiting = asyncio.create_task(service.wait("other", "m", rid("a"), "target"))
        await asyncio.sleep(0)
        await service.register("second life", "actor")
        assert await waiting == Claim.GRANTED
        assert (await service.progress())["spent"][0]["repeated"] == 2  # the lost claim, and the one in flight

    run(body, tmp_path)


def test_a_request_that_killed_two_processes_is_asked_alone_and_a_third_death_ends_it(tmp_path: Path) -> None:
    async def body(service: LedgerService) -> None:
        for life in range(2):
            await service.register(f"life {life}", "actor")
            assert await claim(service, f"life {life}", "poison", "innocent") == [Claim.GRANTED, Claim.GRANTED]
        await service.register("life 2", "actor")
        assert await claim(service, "life 2", "fresh", "poison", "innocent") == [
            Claim.GRANTED,
            Claim.PENDING,
            Claim.PENDING,
        ]
        await service.store("life 2", [line("fresh")])
        assert await claim(service, "life 2", "innocent", "poison", "fresher") == [
            Claim.PENDING,
            Claim.GRANTED_ALONE,
            Claim.PENDING,
        ]
        await service.register("life 3", "actor")
        (given_up,) = await claim(service, "life 3", "poison")
        record = Record.from_line(given_up)
        assert (record.error_kind, "died, 3 times" in record.error) == (ErrorKind.DIED, True)
        assert await claim(service, "life 3", "innocent") == [Claim.GRANTED_ALONE]
        assert await claim(service, "life 3", "fresher") == [Claim.PENDING]
        await service.store("life 3", [line("innocent")])
        assert await claim(service, "life 3", "fresher", "poison") == [Claim.GRANTED, given_up]

    async def next_invocation(service: LedgerService) -> None:
        (given_up,) = await claim(service, "new", "poison")
        assert Record.from_line(given_up).error_kind == ErrorKind.DIED

    run(body, tmp_path)
    run(next_invocation, tmp_path)


def test_the_dead_are_granted_nothing(tmp_path: Path) -> None:
    async def body(service: LedgerService) -> None:
        await service.register("first life", "actor")
        assert await claim(service, "other", "a") == [Claim.GRANTED]
        of_the_dead = asyncio.create_task(service.wait("first life", "m", rid("a"), "target"))
        await asyncio.sleep(0)
        await service.register("second life", "actor")
        await service.release("other", [rid("a")])
        assert await of_the_dead == Claim.DRAINING
        assert await claim(service, "second life", "a") == [Claim.GRANTED]

    run(body, tmp_path)


def test_a_suspect_that_waits_for_its_turn_gets_it_when_the_others_have_ended(tmp_path: Path) -> None:
    async def body(service: LedgerService) -> None:
        for life in range(2):
            await service.register(f"life {life}", "actor")
            await claim(service, f"life {life}", "suspect")
        await service.register("life 2", "actor")
        assert await claim(service, "life 2", "other", "suspect", "later") == [
            Claim.GRANTED,
            Claim.PENDING,
            Claim.PENDING,
        ]
        suspect = asyncio.create_task(service.wait("life 2", "m", rid("suspect"), "target"))
        await asyncio.sleep(0)
        await service.store("life 2", [line("other")])
        assert await suspect == Claim.GRANTED_ALONE
        later = asyncio.create_task(service.wait("life 2", "m", rid("later"), "target"))
        await asyncio.sleep(0)
        await service.store("life 2", [line("suspect")])
        assert await later == Claim.GRANTED

    run(body, tmp_path)


def test_a_failure_is_shared_in_one_invocation_and_asked_again_in_the_next(tmp_path: Path) -> None:
    failed = Record(
        rid("a"), RUN, "m", "target", error_kind="server", error="HTTP 500", call_trace=CallTrace(attempts=5)
    ).to_line()

    async def body(service: LedgerService) -> None:
        await claim(service, "one", "a")
        await service.store("one", [failed])
        assert await claim(service, "other", "a") == [failed]

    async def again(service: LedgerService) -> None:
        assert await claim(service, "one", "a") == [Claim.GRANTED]

    run(body, tmp_path)
    run(again, tmp_path)


def test_damage_is_told_to_the_user(tmp_path: Path) -> None:
    async def body(service: LedgerService) -> None:
        (note,) = (await service.progress())["notes"]
        assert note.startswith("2 damaged records in the ledger")

    (tmp_path / "x.ledger").write_bytes(line("a")[:-20] + b"\n" + line("b") + b"torn")
    run(body, tmp_path)


def test_records_of_a_newer_format_are_told_to_the_user(tmp_path: Path) -> None:
    async def body(service: LedgerService) -> None:
        (note,) = (await service.progress())["notes"]
        assert note.startswith(f"skipped in the ledger {tmp_path}: 1 record of format 99; this version")
        assert await claim(service, "one", "a", "b") == [Claim.GRANTED, line("b")]

    newer = line("a")[9:85] + b'{"v":99,"answer":"yes"}'
    (tmp_path / "x.ledger").write_bytes(b"%08x %s\n" % (zlib.crc32(newer), newer) + line("b"))
    run(body, tmp_path)


class Asker:
    """A model actor of this test: it asks what it is told to, and dies of poison."""

    def __init__(self, service: Any) -> None:
        self._client = LedgerClient(service, RUN, ModelNames("m", "m", "m"), lambda: None)

    async def ask(self, names: list[str]) -> list[str]:
        return list(await asyncio.gather(*map(self._ask, names)))

    async def _ask(self, name: str) -> str:
        try:
            granted = await self._client.claim(rid(name), "target")
        except Draining:
            return "draining"
        if not isinstance(granted, Record):
            if name == "poison":
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "held":
                await asyncio.Event().wait()
            if name == "fatal":
                error = CallError(ErrorKind.AUTH, "the key was rejected")
                return str((await self._client.store_failure(rid(name), "target", error)).error)
            granted = await self._client.store_answer(rid(name), "target", Response(f"answer to {name}"))
        return granted.response.text if granted.response else granted.error


@pytest.fixture
def service(ray_cluster: None, tmp_path: Path) -> Iterator[Any]:
    actor = (
        ray.remote(LedgerService)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=4096)
        .remote(str(tmp_path), RUN, Budget(), {})
    )
    yield actor
    ray.kill(actor)


def asker(service: Any) -> Any:
    return ray.remote(Asker).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote(service)


def test_a_request_that_takes_its_process_down_fails_and_its_neighbours_are_answered(service: Any) -> None:
    """Ray restarts the actor and runs the block again, as in a run; after three deaths it goes through."""
    names = [f"a{number}" for number in range(20)]
    texts = ray.get(asker(service).ask.remote([*names[:10], "poison", *names[10:]]), timeout=120)
    assert "died, 3 times" in texts.pop(10)
    assert texts == [f"answer to {name}" for name in names]


def test_the_service_goes_on_after_its_own_death(service: Any) -> None:
    one = asker(service)
    assert ray.get(one.ask.remote(["a"])) == ["answer to a"]
    pid = ray.get(service.progress.remote())["pid"]
    os.kill(pid, signal.SIGKILL)
    assert ray.get(one.ask.remote(["a", "b"]), timeout=60) == ["answer to a", "answer to b"]
    (spent,) = ray.get(service.progress.remote())["spent"]
    assert (spent["answered"], spent["repeated"]) == (2, 0)


def test_a_service_that_starts_again_learns_what_is_being_asked(ray_cluster: None, tmp_path: Path) -> None:
    service = (
        ray.remote(LedgerService)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=4096)
        .remote(str(tmp_path), RUN, Budget(tokens=10**6), {})
    )
    one, deadline = asker(service), time.monotonic() + 60
    held = one.ask.remote(["held"])
    try:
        while (first := ray.get(service.progress.remote()))["in_flight"] != 1:
            assert time.monotonic() < deadline
        os.kill(first["pid"], signal.SIGKILL)
        while (second := ray.get(service.progress.remote()))["in_flight"] != 1 or second["pid"] == first["pid"]:
            assert time.monotonic() < deadline
        claimed = service.claim.remote("other", "m", [(rid("held"), "target"), (rid("a"), "target")], [(10, 10)] * 2)
        assert ray.get(claimed) == [Claim.PENDING] * 2  # Others may still say what they ask.
        assert ray.get(asker(service).ask.remote(["a"]), timeout=60) == ["answer to a"]
    finally:
        ray.cancel(held)
        ray.kill(one)
        ray.kill(service)


def test_a_failure_that_no_call_would_escape_stops_the_run(service: Any) -> None:
    one, deadline = asker(service), time.monotonic() + 30
    assert ray.get(one.ask.remote(["fatal"])) == ["the key was rejected"]
    while not (stopped := ray.get(service.progress.remote())["stopped"]):
        assert time.monotonic() < deadline
    assert stopped == ("auth", "model m (target) cannot go on: the key was rejected")
    assert ray.get(one.ask.remote(["b"])) == ["draining"]
